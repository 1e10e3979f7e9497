"""Texts that tokenizer engines are likely to encode differently: fixed ones, and ones made for a tokenizer.

Engines are compared on them before the fast one is used.
"""

import random
import sys
import unicodedata
from collections.abc import Iterable

from nano3.data.tokenization.fast_support import AddedToken, Structure, byte_letters

WORDS = [
    "hello",
    "Hello World",
    "don't",
    "I'LL",
    "naïve",
    "ÀÉÎ",
    "straße",
    "ﬁﬂ",
    "ｆｕｌｌ　ｗｉｄｔｈ",
    "Ελλάδα",
    "русский",
]
SCRIPTS = [
    "日本語のテキスト",
    "中文分词",
    "한국어",
    "ไทยไม่มีช่องว่าง",
    "हिन्दी",
    "العربية ١٢٣",
    "עברית",
    "தமிழ்",
    "ქართული",
]
SIGNS = [
    "👩‍👩‍👧‍👦",
    "🏳️‍🌈",
    "👍🏽",
    "e\u0301",
    "\u0301",
    "a\u200db",
    "\u200b",
    "\ufeff",
    "\u2028\u2029",
    "\ufffd",
    "\U0010ffff",
]
SPACE = [
    "",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\r",
    "\t\t x",
    " \n \n ",
    "\u00a0",
    "\u3000",
    "a \nb",
    "x  \n\n\n  y",
    " lead",
    "trail ",
]
ODD = ["\x00", "a\x00b", "\x00\x01\x02\x7f", "\x85", "\x1b[0m", "İi̇ı", "ŉ", "ǅ", "ß" * 50, "Ⅷ", "①²½", "٣", "𝟘𝟙"]
DIGITS = ["0", "12", "123", "1234567890", "3.14159", "1,000,000", "0x1F", "1e-5", "2024-01-01T00:00:00Z"]
CODE = [
    "def f(x):\n\treturn x  # ok\n",
    "if(a&&b){c++;}",
    "<a href='x'>&amp;</a>",
    "\\frac{1}{2}",
    "$$x^2$$",
    "a_b-c.d/e\\f",
]
LONG = [
    "a" * 5000,
    "ab" * 3000,
    "1" * 1000,
    " " * 1000,
    "\n" * 500,
    "!" * 700,
    "日" * 700,
    "é" * 700,
    "-=" * 400,
    "Zq" * 1500,
]
CODE_POINTS = ["".join(chr(c) for c in range(a, a + 256)) for a in range(0, 0x3400, 256)]
PLANES = [
    "".join(chr(c) for c in range(a, a + 64))
    for a in (0xA640, 0xFB00, 0xFE00, 0xFFC0, 0x1D400, 0x1F300, 0x1F900, 0xE0100)
]


def edge_cases(special: list[str]) -> list[str]:
    """Return all edge cases, including texts with the tokenizer's own added tokens (`special`) written literally."""
    literal = [f"{a}{token}{b}" for token in special for a, b in (("", ""), ("a ", " b"), ("x", "y"))]
    if special:
        literal += ["".join(special), " ".join(special), special[0][:-1], special[-1] * 3, special[0].upper()]
    mixed = [" ".join(WORDS + SCRIPTS + SIGNS), "\n".join(CODE + DIGITS), "".join(SPACE)]
    return [*WORDS, *SCRIPTS, *SIGNS, *SPACE, *ODD, *DIGITS, *CODE, *LONG, *CODE_POINTS, *PLANES, *literal, *mixed]


# Texts made for a tokenizer

ALL_PAIRS = 64  # added tokens of which every pair is tried; of more, a few of each kind
TOKENS_OF_A_KIND = 3
RANDOM_PAIRS = 2000
FUZZ_TEXTS = 15_000  # about two seconds of the reference engine, with everything else
MAX_WORDS = 20_000  # tokens of the vocabulary that are tried
CHARACTERS_IN_TEXT = 4
FUZZ_PIECES = 12  # most pieces of one of these texts
FUZZ_SEED = 1
IDEOGRAPHS = ((0x3400, 0xA000), (0xAC00, 0xD800), (0x17000, 0x19000), (0x20000, 0x323B0))
IDEOGRAPH_STEP = 64  # characters of these ranges are alike, so one of so many is taken


def tokenizer_cases(structure: Structure, vocabulary: Iterable[str]) -> list[str]:
    """Return texts made for a tokenizer: its added tokens, its vocabulary, all characters, and random mixtures.

    Args:
        structure: The structure of the tokenizer.
        vocabulary: Its tokens.
    """
    tokens = structure.added_tokens or []
    rng = random.Random(FUZZ_SEED)
    words = vocabulary_texts(structure, vocabulary)
    words = rng.sample(words, min(len(words), MAX_WORDS))
    texts = edge_cases([token.content for token in tokens][:ALL_PAIRS])
    texts += [*added_token_texts(tokens), *added_token_pairs(tokens, rng), *words, *character_texts()]
    return texts + random_texts(structure, words, rng, FUZZ_TEXTS)


def added_token_texts(tokens: list[AddedToken]) -> list[str]:
    """Return texts with each added token: alone, doubled, cut, in both cases, beside spaces, letters and digits."""
    texts = []
    for content in (token.content for token in tokens):
        texts += [
            content,
            content * 2,
            content[:-1],
            content[1:],
            content.upper(),
            content.lower(),
            content + content[:-1],
        ]
        for before, after in ((" ", " "), ("a", "b"), ("1", "2"), ("\n", "\n"), ("  ", "\t"), ("a ", " b"), (".", "é")):
            texts.append(f"{before}{content}{after}")
    return texts


def added_token_pairs(tokens: list[AddedToken], rng: random.Random) -> list[str]:
    """Return texts with two added tokens in both orders.

    Args:
        tokens: The added tokens. Of many, every pair of a few tokens of each kind is taken, and random pairs.
        rng: Chooses the random pairs.
    """
    contents = [token.content for token in tokens]
    if len(tokens) <= ALL_PAIRS:
        pairs = [(a, b) for a in contents for b in contents if a != b]
    else:
        kinds: dict[object, list[str]] = {}
        for token in tokens:
            flags = token.single_word, token.lstrip, token.rstrip, token.normalized, token.special
            key = (*flags, token.content[:1].isalnum(), token.content[-1:].isalnum(), token.content.isspace())
            kinds.setdefault(key, []).append(token.content)
        some = [content for group in kinds.values() for content in group[:TOKENS_OF_A_KIND]]
        pairs = [(a, b) for a in some for b in some if a != b]
        pairs += [(rng.choice(contents), rng.choice(contents)) for _ in range(RANDOM_PAIRS)]
    return [text for a, b in pairs for text in (a + b, f"{a} {b}")]


def vocabulary_texts(structure: Structure, vocabulary: Iterable[str]) -> list[str]:
    """Return the text of each token of the vocabulary, as far as it is valid UTF-8."""
    if not any(part.get("type") == "ByteLevel" for part in structure.pre_tokenizers):
        return sorted(token.replace("\u2581", " ") for token in vocabulary)
    letters = byte_letters()
    decoded = (bytes(letters[char] for char in token if char in letters) for token in sorted(vocabulary))
    return [text for data in decoded if (text := data.decode(errors="ignore"))]


def character_texts() -> list[str]:
    """Return texts with every assigned character beside letters, digits, white space and itself."""
    found = []
    for code in range(sys.maxunicode + 1):
        if code % IDEOGRAPH_STEP and any(low <= code < high for low, high in IDEOGRAPHS):
            continue
        char = chr(code)
        if unicodedata.category(char) not in ("Cn", "Co", "Cs"):
            found.append(f"a{char}b {char}1{char}{char}\n{char}'{char} ")
    return ["".join(found[i : i + CHARACTERS_IN_TEXT]) for i in range(0, len(found), CHARACTERS_IN_TEXT)]


def random_texts(structure: Structure, words: list[str], rng: random.Random, count: int) -> list[str]:
    """Return random mixtures of added tokens, words, and what the normalizers and pre-tokenizers look for.

    Args:
        structure: The structure of the tokenizer.
        words: Texts of its vocabulary.
        rng: The source of randomness.
        count: Number of texts.
    """
    added = [token.content for token in structure.added_tokens or []]
    added += [text for content in added for text in (content[:-1], content[1:], content.swapcase())]
    parts = [*structure.normalizers, *structure.pre_tokenizers]
    sought = [str(value) for part in parts for value in (part.get("prepend"), part.get("content")) if value]
    sought += [str(part["pattern"]["String"]) for part in parts if "String" in part.get("pattern", {})]
    pools = [
        pool for pool in (added, words, words, sought, SPACE, SIGNS, [*WORDS, *SCRIPTS], [*DIGITS, *ODD[:6]]) if pool
    ]
    return ["".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(2, FUZZ_PIECES))) for _ in range(count)]
