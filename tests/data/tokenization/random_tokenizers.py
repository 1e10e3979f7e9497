"""Random tokenizers and texts made of their tokens, to attack the acceptance of the fast engine."""

import json
import random
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

WORDS = [
    "hello",
    "world",
    "Don't",
    "naïve",
    "ÀÉ",
    "straße",
    "ﬁne",
    "日本語",
    "русский",
    "the",
    "THE",
    "İ",
    "x1",
    "foo_bar",
]
CORPUS = " ".join(WORDS * 3) + "\n  def f(x):\n\treturn x + 12345  # ok\n\n" + "a  b   c    d\n\n\n e\r\n" * 3
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
PATTERNS = [GPT2, LLAMA3, QWEN, r"\s+", r"\p{N}{1,3}", r"[^\s]+", r"\w+|[^\w\s]+", r"(?<=\d)(?=\D)", r" ?\S+|\s+"]
BEHAVIORS = ["isolated", "removed", "merged_with_previous", "merged_with_next", "contiguous"]
CONTENTS = [
    "<|im_start|>", "<|im_end|>", "<|im", "<s>", "</s>", "<pad>", "[MASK]", "<|END|>", "é", "É", "ﬁ", "Hello", "hello",
    "the", "12", "1", " ", "  ", "\n", "\n\n", "\t", " \n", "\r\n", "\u00a0", " x", "x ", "▁", "▁the", "A", "a", "ab",
    "日本", "e\u0301", "<0x41>", "_", "don't", "'", "-", "--", "<unk>", "😀", "İ", "ß", "Ġ",
]  # fmt: skip
PIECES = [
    " ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u3000", "a", "B", "x", "7", "12", "1234", "é", "E\u0301",
    "ﬁ", "İ", "ß", "日本", "😀", "'s", "'LL", ".", "...", "-", "_", "<", "|", ">", "▁", "Ġ", "\x00", "\u200b", "\u0301",
    "<0x41>", "the", "Hello", "HELLO",
]  # fmt: skip


def random_normalizer(rng: random.Random, deep: bool = True) -> normalizers.Normalizer | None:
    """Return a random normalizer or None."""
    choices = [
        lambda: None,
        lambda: None,
        normalizers.NFC,
        normalizers.NFD,
        normalizers.NFKC,
        normalizers.NFKD,
        normalizers.Lowercase,
        normalizers.StripAccents,
        lambda: normalizers.Strip(left=rng.random() < 0.5, right=rng.random() < 0.5),
        lambda: normalizers.Prepend(rng.choice(["▁", " ", "x"])),
        lambda: normalizers.Replace(rng.choice([" ", "a", "\n", "  "]), rng.choice(["▁", "", "b", " "])),
        lambda: normalizers.Replace(
            Regex(rng.choice([r"\s+", r"\d", r" {2,}", r"[aeiou]"])), rng.choice(["▁", "", "0"])
        ),
        lambda: normalizers.BertNormalizer(lowercase=rng.random() < 0.5),
        normalizers.Nmt,
    ]
    if deep and rng.random() < 0.3:
        parts = [random_normalizer(rng, False) for _ in range(rng.randint(2, 3))]
        return normalizers.Sequence([part for part in parts if part])
    return rng.choice(choices)()


def random_pre_tokenizer(rng: random.Random, deep: bool = True) -> pre_tokenizers.PreTokenizer | None:
    """Return a random pre-tokenizer or None."""
    p = pre_tokenizers
    choices = [
        lambda: None,
        lambda: p.ByteLevel(add_prefix_space=rng.random() < 0.5, use_regex=rng.random() < 0.7),
        lambda: p.ByteLevel(add_prefix_space=False, use_regex=True),
        lambda: p.Metaspace(prepend_scheme=rng.choice(["always", "never", "first"]), split=rng.random() < 0.5),
        lambda: p.Split(Regex(rng.choice(PATTERNS)), rng.choice(BEHAVIORS), invert=rng.random() < 0.3),
        lambda: p.Split(Regex(rng.choice(PATTERNS[:3])), "isolated"),
        lambda: p.Split(rng.choice([" ", "a", "\n"]), rng.choice(BEHAVIORS)),
        p.Whitespace,
        p.WhitespaceSplit,
        lambda: p.Punctuation(rng.choice(BEHAVIORS)),
        lambda: p.Digits(individual_digits=rng.random() < 0.5),
        p.BertPreTokenizer,
        p.UnicodeScripts,
    ]
    if deep and rng.random() < 0.5:
        parts = [random_pre_tokenizer(rng, False) for _ in range(rng.randint(1, 2))]
        parts.append(p.ByteLevel(add_prefix_space=rng.random() < 0.2, use_regex=rng.random() < 0.3))
        return p.Sequence([part for part in parts if part])
    return rng.choice(choices)()


def random_model(rng: random.Random) -> Tokenizer:
    """Return a tokenizer trained on a few words: mostly byte-level BPE, also BPE of characters and WordPiece."""
    corpus = [CORPUS, "".join(rng.choices(PIECES + WORDS, k=200))]
    kind = rng.random()
    if kind < 0.6:
        tokenizer = Tokenizer(models.BPE(ignore_merges=rng.random() < 0.3))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=rng.randint(280, 420), initial_alphabet=alphabet, show_progress=False)
    elif kind < 0.9:
        fallback = rng.random() < 0.6
        extra = {} if rng.random() < 0.8 else {rng.choice(["continuing_subword_prefix", "end_of_word_suffix"]): "##"}
        tokenizer = Tokenizer(
            models.BPE(unk_token="<unk>", byte_fallback=fallback, fuse_unk=rng.random() < 0.5, **extra)
        )
        if not extra:
            tokenizer.normalizer = normalizers.Replace(" ", "▁")
        letters = [f"<0x{i:02X}>" for i in range(256 if rng.random() < 0.8 else 128)] if fallback else []
        trainer = trainers.BpeTrainer(
            vocab_size=len(letters) + rng.randint(120, 300), special_tokens=["<unk>", *letters], show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def random_tokenizer(rng: random.Random) -> Tokenizer:
    """Return a tokenizer with random parts and added tokens. Half of them are built like known ones."""
    tokenizer = random_model(rng)
    plain = rng.random() < 0.5
    if not plain:
        if normalizer := random_normalizer(rng):
            tokenizer.normalizer = normalizer
        if rng.random() < 0.7 and (pre_tokenizer := random_pre_tokenizer(rng)):
            tokenizer.pre_tokenizer = pre_tokenizer
    elif rng.random() < 0.5 and type(tokenizer.pre_tokenizer).__name__ == "ByteLevel":
        split = pre_tokenizers.Split(Regex(rng.choice([GPT2, LLAMA3, QWEN])), "isolated")
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, last])
    wild = rng.random() < (0.3 if plain else 0.5)
    contents = [text for text in CONTENTS if wild or not any(map(str.isspace, text))]
    alike = rng.random() < 0.5
    for content in rng.sample(contents, rng.randint(1, 6)):
        flags = {name: wild and rng.random() < 0.25 for name in ("lstrip", "rstrip", "single_word")}
        special = rng.random() < 0.6
        normalized = rng.random() < 0.4 if wild else (alike and not special)
        tokenizer.add_tokens([AddedToken(content, normalized=normalized, special=special, **flags)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> Path:
    """Write tokenizer.json into a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps({}))
    return folder / "tokenizer.json"


def random_texts(tokenizer: Tokenizer, rng: random.Random, count: int) -> list[str]:
    """Return texts made of the tokenizer's added tokens, its vocabulary, and pieces known to make trouble."""
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    added += [text for token in added for text in (token.upper(), token.lower(), token[:-1], token[1:]) if text]
    vocabulary = [t.replace("Ġ", " ").replace("Ċ", "\n").replace("▁", " ") for t in sorted(tokenizer.get_vocab())]
    pools = [added, added, vocabulary, PIECES, PIECES, WORDS]
    return [
        "".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 12))).encode(errors="ignore").decode()
        for _ in range(count)
    ]
