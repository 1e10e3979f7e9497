"""Text and tokenizers that are the same wherever and whenever they are made: no library's random choice is used."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SPECIAL = ("<unk>", "<s>", "</s>")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# What text has besides words of plain letters; the last one reads like the end-of-document token.
ODD = ["é", "日本", "😀", "\t", "\n\n", "{}", "0", "42", "x_y", "A.B", "(c)", "##", "—", "</s", "</s>"]
# A fixed time: what is remembered of a file has its time in it.
WRITTEN = 1_700_000_000


class Draw:
    """Knuth's linear congruential generator."""

    def __init__(self, seed: int) -> None:
        self._state = seed

    def below(self, bound: int) -> int:
        """A number from 0 to bound - 1."""
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        return (self._state >> 33) % bound

    def of[T](self, items: list[T]) -> T:
        """One of the items."""
        return items[self.below(len(items))]


def words(draw: Draw, count: int) -> list[str]:
    """Different enough words of 1 to 12 letters, of which the first in the alphabet are the most frequent."""
    return [
        "".join(LETTERS[min(draw.below(26), draw.below(26))] for _ in range(1 + draw.below(12))) for _ in range(count)
    ]


def documents(draw: Draw, count: int, longest: int, known: list[str]) -> Iterator[str]:
    """Documents of up to `longest` words; every thirteenth is empty."""
    for number in range(count):
        if number % 13 == 12:
            yield ""
            continue
        kinds = [draw.below(16) for _ in range(1 + draw.below(longest))]
        yield " ".join(draw.of(ODD) if kind == 0 else draw.of(known) for kind in kinds)


def jsonl(texts: list[str]) -> bytes:
    """JSON lines, half of them escaped, with the text in the middle."""
    rows = [{"id": i, "text": text, "more": {"text": "not this"}} for i, text in enumerate(texts)]
    return "".join(json.dumps(row, ensure_ascii=i % 2 == 0) + "\n" for i, row in enumerate(rows)).encode()


def tokenizer(folder: Path, merges: list[tuple[str, str]]) -> None:
    """A byte-level BPE with three special tokens, all bytes and these merges."""
    vocabulary = {name: i for i, name in enumerate(SPECIAL)}
    for token in [*byte_letters(), *(a + b for a, b in merges)]:
        vocabulary.setdefault(token, len(vocabulary))
    added = [
        {"id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        | {"special": True}
        for i, name in enumerate(SPECIAL)
    ]
    bytes_alone = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes_alone]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
        | {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
        | {"vocab": vocabulary, "merges": [list(pair) for pair in merges]},
    }
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(json.dumps(whole, ensure_ascii=False))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"} | names))


def byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level tokenizer."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def pairs_of_letters() -> list[tuple[str, str]]:
    """Two letters, and a blank and a letter."""
    return [(a, b) for a in ["Ġ", *LETTERS] for b in LETTERS]


# Small: made once and kept


def write_small(folder: Path) -> None:
    """Four files in four formats and a tokenizer of about 300 ids."""
    draw = Draw(1)
    known = words(draw, 300)
    made = {name: list(documents(draw, 14, 120, known)) for name in ("stories", "notes", "code", "letters")}
    text = folder / "text"
    text.mkdir(parents=True)
    (text / "stories.jsonl").write_bytes(jsonl(made["stories"]))
    (text / "letters.jsonl.gz").write_bytes(gzip.compress(jsonl(made["letters"]), mtime=0))
    pq.write_table(pa.table({"text": made["notes"]}), text / "notes.parquet", row_group_size=5)
    with pa.OSFile(str(text / "code.jsonl.zst"), "wb") as raw, pa.CompressedOutputStream(raw, "zstd") as packed:
        packed.write(jsonl(made["code"]))
    tokenizer(folder / "tokenizer", pairs_of_letters()[:40])


# Wide: made anew by each test


WIDE = 131_072  # ids: int32 on disk
IN_WIDE = (("long", "long.jsonl", 3), ("odd", "odd.jsonl", 1), ("pages", "pages", 0.5))


def write_wide(folder: Path) -> None:
    """wide/, 17 MB of text, in units of work that begin inside of a file, and a tokenizer whose ids need more than 16
    bits; and wide.json, a blend of it."""
    entries = [{"name": name, "path": f"wide/{path}", "weight": weight} for name, path, weight in IN_WIDE]
    (folder / "wide.json").write_text(json.dumps({"datasets": entries}))
    folder = folder / "wide"
    draw = Draw(2)
    known = words(draw, 20_000)
    blocks = [" ".join(draw.of(known) for _ in range(200)) for _ in range(500)]
    long = [" ".join(draw.of(blocks) for _ in range(1 + draw.below(15))) for _ in range(1400)]
    folder.mkdir(parents=True)
    (folder / "long.jsonl").write_bytes(jsonl(long))
    (folder / "odd.jsonl").write_bytes(jsonl(list(documents(draw, 500, 60, known))))
    (folder / "pages").mkdir()
    for number, page in enumerate(documents(draw, 40, 300, known)):
        (folder / "pages" / f"{number:02d}.txt").write_text(page)
    pairs = [a + b for a, b in pairs_of_letters() if a != "Ġ"]
    merges = pairs_of_letters() + [(pair, letter) for pair in pairs for letter in LETTERS]
    fours = [(a, b) for b in pairs for a in pairs][::4]
    tokenizer(folder / "tokenizer", merges + fours[: WIDE - len(SPECIAL) - 256 - len(merges)])
    found = len(json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"])
    assert found == WIDE, found
