"""Texts that tokenizers are known to encode differently. Engines are compared on them before the fast one is used."""

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
