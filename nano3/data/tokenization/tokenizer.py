"""Which tokenizer: where its files are, what they say about vocabulary and end of document. Loads no tokenizer.

A tokenizer is a Hugging Face `tokenizer.json` (byte-level BPE, SentencePiece-style BPE or Unigram, WordPiece) with,
beside it, `tokenizer_config.json` and perhaps `special_tokens_map.json`.
"""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from nano3.data.sources.listing import check_name
from nano3.utils.errors import UserError
from nano3.utils.files import read_json

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
# End-of-document tokens that are recognised when no config names one.
USUAL_EOD = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")
UINT16_VOCAB = 65500  # Megatron's own limit (DType.optimal_dtype), a little under 65536


class ModelPart(msgspec.Struct):
    """The part `model` of a tokenizer.json: its vocabulary. The merges, the larger half of the file, are skipped."""

    vocab: dict[str, int] | list[Any]


class AddedToken(msgspec.Struct):
    """An entry of a tokenizer.json's `added_tokens`."""

    content: str
    id: int
    special: bool = False


class Spec(msgspec.Struct):
    """What is read of a tokenizer.json."""

    model: ModelPart
    added_tokens: list[AddedToken] | None = None


@dataclass(frozen=True)
class TokenizerInfo:
    """What the data path must know of a tokenizer. `revision` is the commit when it came from a hub."""

    model: str
    folder: str
    sha256: str
    vocab_size: int
    eod_id: int | None
    eod_token: str | None
    bos_id: int | None
    special_ids: tuple[int, ...]
    revision: str | None = None

    @property
    def file(self) -> str:
        """Path of tokenizer.json."""
        return str(Path(self.folder) / self.json_name)

    json_name: str = "tokenizer.json"


def find_tokenizer(model: str, add_bos: bool, add_eos: bool) -> TokenizerInfo:
    """Find the files of `model` (hub id, folder, or tokenizer.json) and read them.

    Raises `UserError` when there are none, when they cannot be read, or when they name no token that is needed.
    """
    path, revision = locate_tokenizer(model)
    check_name(str(path), f"tokenizer_model={model}")  # it goes into the plan
    try:
        data = path.read_bytes()
        spec = msgspec.json.decode(data, type=Spec)
        ids = token_ids(spec)
    except OSError as error:
        raise UserError(f"tokenizer_model={model}: {path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError) as error:
        raise UserError(f"tokenizer_model={model}: {path} is not a Hugging Face tokenizer.json ({error})") from error
    names = read_special_tokens(path.parent)
    eod = names.get("eos_token") or guess_eod_token(spec)
    bos = names.get("bos_token")
    problems = []
    for wanted, option, name in ((add_eos, "add_eos", eod), (add_bos, "add_bos", bos)):
        kind = "eos_token" if option == "add_eos" else "bos_token"
        if wanted and name is None:
            problems.append(
                f"tokenizer_model={model}: no {kind}, which {option}=true needs. Name it in {path.parent}/"
                f'tokenizer_config.json, for example {{"{kind}": "</s>"}}, or set {option}=false.'
            )
        elif wanted and name not in ids:
            problems.append(f"tokenizer_model={model}: the {kind} {name!r} is not in the vocabulary of {path}.")
    if problems:
        raise UserError(problems)
    return TokenizerInfo(
        model=model,
        folder=str(path.parent),
        sha256=hashlib.sha256(data).hexdigest(),
        vocab_size=max(ids.values()) + 1,
        eod_id=ids.get(eod) if eod else None,
        eod_token=eod if eod in ids else None,
        bos_id=ids.get(bos) if bos else None,
        special_ids=tuple(sorted(t.id for t in spec.added_tokens or [] if t.special)),
        revision=revision,
        json_name=path.name,
    )


def locate_tokenizer(model: str) -> tuple[Path, str | None]:
    """Path of the tokenizer.json and, from a hub, its commit."""
    # Links are not followed: in a hub's cache each file is one, and what they lead to lies without the config files.
    path = Path(model).expanduser().absolute()
    if path.is_file():
        return path, None
    if path.is_dir():
        if not (path / "tokenizer.json").is_file():
            raise UserError(
                f"tokenizer_model={model}: the folder has no tokenizer.json. Convert it once with "
                f"transformers.AutoTokenizer.from_pretrained(...).save_pretrained({str(path)!r})."
            )
        return path / "tokenizer.json", None
    if is_local_path(model):
        raise UserError(f"tokenizer_model={model}: no such file or folder.")
    from nano3.data.sources.hub import download_tokenizer

    return download_tokenizer(model, FILES)


def is_local_path(model: str) -> bool:
    """Whether `model` means a file or folder of this machine, be it there or not, and no hub id."""
    looks_local = model.startswith(("/", ".", "~")) or model.endswith(".json") or model.count("/") > 1
    return looks_local or not model or Path(model).expanduser().exists()


def token_ids(spec: Spec) -> dict[str, int]:
    """Token text to id over the model's vocabulary and the added tokens."""
    vocab = spec.model.vocab
    ids = dict(vocab) if isinstance(vocab, dict) else {entry[0]: i for i, entry in enumerate(vocab)}
    ids.update({token.content: token.id for token in spec.added_tokens or []})
    if not ids:
        raise KeyError("empty vocabulary")
    return ids


def read_special_tokens(folder: Path) -> dict[str, str]:
    """eos_token and bos_token as the config files beside tokenizer.json name them; tokenizer_config.json wins."""
    names: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if not (folder / file).is_file():
            continue
        try:
            config = read_json(folder / file)
        except ValueError as error:
            raise UserError(f"{folder / file}: not valid JSON ({error})") from error
        if not isinstance(config, dict):
            raise UserError(f"{folder / file}: a JSON {type(config).__name__}, not an object")
        for kind in ("eos_token", "bos_token"):
            value = config.get(kind)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                names[kind] = value
    return names


def guess_eod_token(spec: Spec) -> str | None:
    """The one special token that is commonly an end of document; None when there are several or none."""
    special = {t.content for t in spec.added_tokens or [] if t.special}
    found = [name for name in USUAL_EOD if name in special]
    return found[0] if len(found) == 1 else None


def smallest_dtype(vocab_size: int) -> str:
    """Return the dtype that Megatron picks for a vocabulary: uint16 below 65,500 ids, else int32."""
    return "uint16" if vocab_size < UINT16_VOCAB else "int32"


def copy_tokenizer(info: TokenizerInfo, folder: Path) -> None:
    """Put the tokenizer's files beside the data, so that nobody has to guess later what the ids mean."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(info.file, folder / "tokenizer.json")
    for name in FILES[1:]:
        if (Path(info.folder) / name).is_file():
            shutil.copyfile(Path(info.folder) / name, folder / name)
