"""Make the bundled corpus and tokenizer; running it again gives the same bytes.

    uv run --no-project --python 3.12.1 --with tokenizers==0.22.2 --with pyarrow==26.0.1 --with zstandard==0.25.0 \
        python nano3/sample/make_sample.py SOURCES

SOURCES holds the unpacked sdists of Django 5.2.9 and SymPy 1.14.0; the third source is the standard library.
Three formats on purpose: the quickstart exercises parquet, zstd- and gzip-compressed JSON lines.
"""

import gzip
import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
VOCABULARY = 4096
SPECIAL = ["<unk>", "<s>", "</s>"]
# Words with their leading space, digits one by one, runs of punctuation: the shape of today's large vocabularies.
PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PACKAGES = (
    "asyncio",
    "collections",
    "concurrent",
    "email",
    "html",
    "http",
    "importlib",
    "json",
    "logging",
    "unittest",
    "urllib",
    "xml",
)

Document = dict[str, str]


def documents(root: Path, patterns: tuple[str, ...], skip: str = "\0") -> Iterator[Document]:
    """Every file under `root` that matches, in name order, as {"id", "text"}; files under 200 characters stay out."""
    for path in sorted({p for pattern in patterns for p in root.glob(pattern)}):
        name = path.relative_to(root).as_posix()
        text = path.read_text(encoding="utf-8")
        if skip not in name and len(text) >= 200:
            yield {"id": name, "text": text}


def write_parquet(path: Path, docs: list[Document]) -> None:
    """Write documents as one parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(docs), path, compression="zstd", compression_level=19, row_group_size=64)


def lines(docs: list[Document]) -> bytes:
    """Return documents as JSON lines."""
    return b"".join(json.dumps(d, ensure_ascii=False).encode() + b"\n" for d in docs)


def write_tokenizer(folder: Path, texts: list[str]) -> None:
    """A byte-level BPE of 4,096 ids, trained on the corpus itself."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def main(sources: Path) -> None:
    """Write the corpus and its tokenizer beside this file, from the unpacked source archives in `sources`."""
    import zstandard

    stdlib = Path(sysconfig.get_path("stdlib"))
    docs = list(documents(next(sources.glob("[dD]jango-*")) / "docs", ("**/*.txt",), skip="releases/"))
    math = list(documents(next(sources.glob("sympy-*")) / "doc" / "src", ("**/*.rst", "**/*.md")))
    code = list(documents(stdlib, ("*.py", *(f"{p}/**/*.py" for p in PACKAGES))))
    write_parquet(HERE / "docs.parquet", docs)
    (HERE / "code.jsonl.zst").write_bytes(zstandard.ZstdCompressor(level=19).compress(lines(code)))
    (HERE / "math.jsonl.gz").write_bytes(gzip.compress(lines(math), compresslevel=9, mtime=0))
    write_tokenizer(HERE / "tokenizer", [d["text"] for d in docs + math + code])
    for name, part in (("docs", docs), ("math", math), ("code", code)):
        print(f"{name}: {len(part)} documents, {sum(len(d['text'].encode()) for d in part):,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
