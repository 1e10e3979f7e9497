"""Find a tokenizer's files and read its vocabulary and special tokens, without loading the tokenizer.

A tokenizer is a Hugging Face `tokenizer.json` (byte-level BPE, SentencePiece-style BPE or Unigram, WordPiece) next to
a `tokenizer_config.json` and possibly a `special_tokens_map.json`.
"""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from nano3.data.sources.hub_path import ALLOWED_MODELS
from nano3.data.sources.listing import check_name
from nano3.data.tokenization.end_of_document import end_of_turn_problem, find_token
from nano3.utils.disk_errors import reason
from nano3.utils.errors import UserError
from nano3.utils.files import expand_user, read_json, write_json

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
# End-of-document tokens that are recognized if no config names one.
USUAL_EOD = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")
UINT16_VOCAB = 65500  # Megatron's own limit (DType.optimal_dtype), a little under 65536


class ModelSection(msgspec.Struct):
    """The section `model` of a tokenizer.json. Only the vocabulary is read; the merges are larger."""

    vocab: dict[str, int] | list[Any]


class AddedToken(msgspec.Struct):
    """An entry of `added_tokens` in a tokenizer.json."""

    content: str
    id: int
    special: bool = False


class TokenizerJson(msgspec.Struct):
    """The parts of a tokenizer.json that are read."""

    model: ModelSection
    added_tokens: list[AddedToken] | None = None


@dataclass(frozen=True)
class TokenizerInfo:
    """What data preparation needs to know about a tokenizer.

    Attributes:
        model: Hub id, folder or file, as configured.
        folder: Folder of its files.
        sha256: SHA-256 of tokenizer.json.
        vocab_size: Number of ids.
        eod_id: Id of the end-of-document token, or None if it has none.
        eod_token: Text of the end-of-document token, or None.
        bos_id: Id of the beginning-of-sequence token, or None.
        special_ids: Sorted ids of special tokens.
        revision: Commit of a tokenizer from the Hub.
        json_name: Name of tokenizer.json in the folder.
        bos_token: Text of the beginning-of-sequence token, or None.
        eod_warning: Why the end-of-document token may be the wrong one, or "".
    """

    model: str
    folder: str
    sha256: str
    vocab_size: int
    eod_id: int | None
    eod_token: str | None
    bos_id: int | None
    special_ids: tuple[int, ...]
    revision: str | None = None
    json_name: str = "tokenizer.json"
    bos_token: str | None = None
    eod_warning: str = ""

    @property
    def file(self) -> str:
        """Path of tokenizer.json."""
        return str(Path(self.folder) / self.json_name)

    def framing(self, add_bos: bool, add_eos: bool) -> str:
        """Return in words which tokens begin and end a document."""
        return describe_framing((self.bos_token, self.bos_id), (self.eod_token, self.eod_id), add_bos, add_eos)


def describe_framing(
    bos: tuple[str | None, int | None], eod: tuple[str | None, int | None], add_bos: bool, add_eos: bool
) -> str:
    """Return in words which tokens begin and end a document.

    Args:
        bos: Text and id of the beginning-of-sequence token.
        eod: Text and id of the end-of-document token.
        add_bos: Whether documents begin with it.
        add_eos: Whether documents end with it.
    """
    end = f"each document ends with {eod[0]!r} (id {eod[1]})" if add_eos else "no token ends a document (add_eos=false)"
    return end + (f" and begins with {bos[0]!r} (id {bos[1]})" if add_bos else "")


def find_tokenizer(model: str, add_bos: bool, add_eos: bool, eod_token: str | None = None) -> TokenizerInfo:
    """Find the files of a tokenizer and read them.

    Args:
        model: Hub id, folder, or path of a tokenizer.json.
        add_bos: Whether the data needs a beginning-of-sequence token.
        add_eos: Whether the data needs an end-of-document token.
        eod_token: Text or id of the end-of-document token; None for the one that the tokenizer's files name.

    Raises:
        UserError: There is no such tokenizer, its files cannot be read, they do not name a token that is needed, or
            the eos_token ends a turn of a conversation.
    """
    path, revision = locate_tokenizer(model)
    check_name(str(path), f"tokenizer_model={model}")  # it goes into the plan
    try:
        data = path.read_bytes()
        spec = msgspec.json.decode(data, type=TokenizerJson)
        ids = token_ids(spec)
    except OSError as error:
        raise UserError(f"tokenizer_model={model}: {path} cannot be read: {reason(error, path)}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError) as error:
        raise UserError(f"tokenizer_model={model}: {path} is not a Hugging Face tokenizer.json ({error})") from error
    names = read_special_tokens(path.parent)
    special = [token.content for token in spec.added_tokens or []]
    if eod_token is not None:
        eod: str | None = find_token(eod_token, ids, special)
    else:
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
    problem = warning = ""
    if add_eos and eod in ids and eod_token is None:
        problem, warning = end_of_turn_problem(model, eod, ids, special, path.parent)
    if problem or problems:
        raise UserError([*problems, *filter(None, [problem])])
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
        bos_token=bos if bos in ids else None,
        eod_warning=warning,
    )


def locate_tokenizer(model: str) -> tuple[Path, str | None]:
    """Return the path of a model's tokenizer.json and, from the Hub, its commit."""
    # Links are not followed: every file in the Hub's cache is a link, and its target is not next to the config files.
    path = expand_user(model).absolute()
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as error:  # no permission, or a name that is too long
        raise UserError(f"tokenizer_model={model}: {reason(error, path)}") from error
    if is_file:
        return path, None
    if is_folder:
        if not (path / "tokenizer.json").is_file():
            raise UserError(
                f"tokenizer_model={model}: the folder has no tokenizer.json. Convert it once with "
                f"transformers.AutoTokenizer.from_pretrained(...).save_pretrained({str(path)!r})."
            )
        return path / "tokenizer.json", None
    if is_local_path(model):
        raise UserError(f"tokenizer_model={model}: no such file or folder. {ALLOWED_MODELS}.")
    from nano3.data.sources.hub import download_tokenizer

    return download_tokenizer(model, FILES)


def is_local_path(model: str) -> bool:
    """Return whether `model` denotes a local file or folder, existing or not, rather than a Hub id."""
    words = model.partition("@")[0].split("/")  # a revision may have slashes: refs/pr/1
    looks_local = model.startswith(("/", ".", "~")) or model.endswith(".json") or len(words) > 2
    return looks_local or not model or os.path.exists(expand_user(model))  # noqa: PTH110  Path.exists may raise


def token_ids(spec: TokenizerJson) -> dict[str, int]:
    """Return the id of each token of the vocabulary and of the added tokens."""
    vocab = spec.model.vocab
    ids = dict(vocab) if isinstance(vocab, dict) else {entry[0]: i for i, entry in enumerate(vocab)}
    ids.update({token.content: token.id for token in spec.added_tokens or []})
    if not ids:
        raise KeyError("empty vocabulary")
    return ids


def read_special_tokens(folder: Path) -> dict[str, str]:
    """Return eos_token and bos_token from the config files in a folder; tokenizer_config.json takes precedence."""
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


def guess_eod_token(spec: TokenizerJson) -> str | None:
    """Return the special token that is a usual end-of-document token; None if there are several or none."""
    special = {t.content for t in spec.added_tokens or [] if t.special}
    found = [name for name in USUAL_EOD if name in special]
    return found[0] if len(found) == 1 else None


def smallest_dtype(vocab_size: int) -> str:
    """Return the dtype that Megatron picks for a vocabulary: uint16 below 65,500 ids, else int32."""
    return "uint16" if vocab_size < UINT16_VOCAB else "int32"


def copy_tokenizer(info: TokenizerInfo, folder: Path) -> None:
    """Copy the tokenizer's files into a folder of the data, which records what the ids mean.

    The copy names the data's end-of-document token as its eos_token, as training takes it from there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(info.file, folder / "tokenizer.json")
    for name in FILES[1:]:
        if (Path(info.folder) / name).is_file():
            shutil.copyfile(Path(info.folder) / name, folder / name)
    if info.eod_token is None or read_special_tokens(folder).get("eos_token") == info.eod_token:
        return
    for name in FILES[1:]:
        path = folder / name
        config = read_json(path) if path.is_file() else {}
        if name == "tokenizer_config.json" or "eos_token" in config:
            path.unlink(missing_ok=True)  # the copy may be read-only
            write_json(path, {**config, "eos_token": info.eod_token})
