"""Tokenizers and a hub client for the data tests."""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import forked_worker_servers
import pytest
from hub_server import Hub, HubEnv
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from nano3 import sample
from nano3.data.build.worker_client import WorkerServerClient

SAMPLE = Path(sample.__file__).parent
SPECIAL = ["<unk>", "<s>", "</s>", "<|tool|>"]


def corpus() -> list[str]:
    """Return text to train tokenizers on: the source of this library."""
    return [path.read_text() for path in sorted(SAMPLE.parent.rglob("*.py"))]


@pytest.fixture(autouse=True, scope="module")
def _forked_worker_servers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fork the worker servers, except in modules about their start, which set REAL_STARTS."""
    with pytest.MonkeyPatch.context() as patch:
        if not getattr(request.module, "REAL_STARTS", False):
            patch.setattr(WorkerServerClient, "__init__", forked_worker_servers.start)
        yield


@pytest.fixture(scope="session")
def tokenizers_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of pytest-xdist share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tokenizers"
    folder.mkdir(exist_ok=True)
    return folder


def made_once(folder: Path, make: Callable[[], Tokenizer]) -> Path:
    """Return a folder with tokenizer.json and tokenizer_config.json; one process makes it, the others wait for it."""
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            unfinished.mkdir(exist_ok=True)
            make().save(str(unfinished / "tokenizer.json"))
            (unfinished / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "bos_token": "<s>"}))
            unfinished.rename(folder)
    return folder


@pytest.fixture(scope="session")
def byte_bpe(tokenizers_dir: Path) -> Path:
    """A tokenizer like GPT-2's."""
    return made_once(tokenizers_dir / "byte_bpe", make_byte_bpe)


def make_byte_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


@pytest.fixture(scope="session")
def sentencepiece_bpe(tokenizers_dir: Path) -> Path:
    """A tokenizer like Llama 2's: spaces become a visible character, unknown characters become bytes."""
    return made_once(tokenizers_dir / "sentencepiece_bpe", make_sentencepiece_bpe)


def make_sentencepiece_bpe() -> Tokenizer:
    alphabet = [f"<0x{i:02X}>" for i in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=[*SPECIAL, *alphabet], max_token_length=8, show_progress=False
    )
    lines = [line for text in corpus() for line in text.splitlines()]
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def unigram(tokenizers_dir: Path) -> Path:
    """A tokenizer like T5's; fastokens cannot load it."""
    return made_once(tokenizers_dir / "unigram", make_unigram)


def make_unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(corpus()[:3], trainer)
    return tokenizer


@pytest.fixture(scope="session")
def tekken(tokenizers_dir: Path) -> Path:
    """Mistral's Tekken with 131,072 ids, which appears to be Nemotron 3 Nano's vocabulary."""
    return made_once(tokenizers_dir / "tekken", make_tekken)


def make_tekken() -> Tokenizer:
    import base64

    import mistral_common

    source = json.loads((Path(mistral_common.__file__).parent / "data" / "tekken_240911.json").read_text())
    config = source["config"]
    special = config["default_num_special_tokens"]
    ranks = {
        base64.b64decode(e["token_bytes"]): e["rank"] for e in source["vocab"][: config["default_vocab_size"] - special]
    }
    table = byte_to_char()

    def name(token: bytes) -> str:
        return "".join(table[b] for b in token)

    names = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", *(f"<SPECIAL_{i}>" for i in range(5, special))]
    vocab = {n: i for i, n in enumerate(names)} | {name(t): r + special for t, r in ranks.items()}
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        pairs = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
        pairs.sort(key=lambda p: (ranks[p[0]], ranks[p[1]]))
        merges += [(name(a), name(b)) for a, b in pairs if ranks[a] < rank and ranks[b] < rank]
    from tokenizers import Regex

    tokenizer = Tokenizer(models.BPE(vocab, merges, fuse_unk=False, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(config["pattern"]), behavior="isolated", invert=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in names])
    return tokenizer


@pytest.fixture
def hub_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubEnv:
    """Return a function that points the hub's client at a server, in this process and in workers."""
    from huggingface_hub import HfFileSystem

    def use(hub: Hub, token: str | None = None) -> None:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))  # set on import
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.setenv("HF_TOKEN", token or "")
        HfFileSystem.clear_instance_cache()

    return use


def byte_to_char() -> dict[int, str]:
    """Return GPT-2's printable characters for bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(rest)}}
