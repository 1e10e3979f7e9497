"""Which tokenizers the fast engine may encode: those whose structure it is known to treat as the reference does.

A comparison on texts cannot cover everything, so a tokenizer with a feature for which random tokenizers gave other ids
than the reference is refused before any text is compared (`tests/data/tokenization/test_engine_attack.py`). The
features that common byte-level and SentencePiece-style BPE tokenizers have are allowed; the rest are rare.
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

ALLOWED_NORMALIZERS = ("NFC", "Prepend", "Replace")
ALLOWED_PRE_TOKENIZERS = ("ByteLevel", "Digits", "Split")
ALLOWED_SPLITS = (("Isolated", False), ("Removed", True))  # behavior, invert: matches and gaps, or matches alone
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


class AddedToken(msgspec.Struct):
    """An entry of `added_tokens` in a tokenizer.json, with the flags that say where it matches."""

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = False


class Model(msgspec.Struct):
    """The settings of a model, without its vocabulary and merges, which are large."""

    dropout: float | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    unk_token: str | None = None
    byte_fallback: bool | None = None


class Structure(msgspec.Struct):
    """The parts of a tokenizer.json that decide how a text is cut into words before the model sees it."""

    model: Model
    added_tokens: list[AddedToken] | None = None
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None

    @property
    def normalizers(self) -> list[dict[str, Any]]:
        """The normalizers, without the sequences that group them."""
        return flatten(self.normalizer, "normalizers")

    @property
    def pre_tokenizers(self) -> list[dict[str, Any]]:
        """The pre-tokenizers, without the sequences that group them."""
        return flatten(self.pre_tokenizer, "pretokenizers")


def read_structure(file: str) -> Structure:
    """Read the structure of a tokenizer.json, which was read before and is valid."""
    return msgspec.json.decode(Path(file).read_bytes(), type=Structure)


def flatten(component: dict[str, Any] | None, members: str) -> list[dict[str, Any]]:
    """Return a component, or the members of a sequence of components and of the sequences in it.

    Args:
        component: A normalizer or pre-tokenizer, or None.
        members: The key of a sequence's members.
    """
    if component is None:
        return []
    if component.get("type") != "Sequence":
        return [component]
    return [part for member in component.get(members, []) for part in flatten(member, members)]


def byte_letters() -> dict[str, int]:
    """Return the byte of each of the 256 letters of byte-level vocabularies (`bytes_to_unicode` of GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def refusal_reason(structure: Structure, vocabulary: Collection[str]) -> str:
    """Return why the fast engine must not encode with this tokenizer, or "".

    Args:
        structure: The structure of the tokenizer.
        vocabulary: Its tokens.
    """
    return (
        model_reason(structure.model)
        or normalizer_reason(structure)
        or pre_tokenizer_reason(structure)
        or vocabulary_reason(structure, vocabulary)
        or added_token_reason(structure)
    )


def model_reason(model: Model) -> str:
    """Return why the model's settings are not supported, or ""."""
    if model.dropout:
        return f"its merges are dropped at random (dropout={model.dropout})"
    if model.continuing_subword_prefix or model.end_of_word_suffix:
        return "its tokens have a prefix or suffix for the parts of a word"
    return ""


def normalizer_reason(structure: Structure) -> str:
    """Return why the normalizers are not supported, or ""."""
    for normalizer in structure.normalizers:
        if normalizer.get("type") not in ALLOWED_NORMALIZERS:
            return f"it has the normalizer {normalizer.get('type')}"
        if "Regex" in normalizer.get("pattern", {}):
            return "its normalizer replaces a regular expression"
    return ""


def pre_tokenizer_reason(structure: Structure) -> str:
    """Return why the pre-tokenizers are not supported, or ""."""
    for part in structure.pre_tokenizers:
        if part.get("type") not in ALLOWED_PRE_TOKENIZERS:
            return f"it has the pre-tokenizer {part.get('type')}"
        if part["type"] == "Split" and (part.get("behavior"), part.get("invert", False)) not in ALLOWED_SPLITS:
            return f"its pre-tokenizer Split has behavior={part.get('behavior')}, invert={part.get('invert', False)}"
    return ""


def vocabulary_reason(structure: Structure, vocabulary: Collection[str]) -> str:
    """Return why texts may have characters without a token, which the engines treat differently, or ""."""
    if any(part.get("type") == "ByteLevel" for part in structure.pre_tokenizers):
        if missing := [letter for letter in byte_letters() if letter not in vocabulary]:
            return f"its vocabulary has no token for {len(missing)} of the 256 bytes"
        return ""
    if structure.model.unk_token is None or structure.model.unk_token not in vocabulary:
        return "its vocabulary has no token for unknown characters"
    if structure.model.byte_fallback:
        if missing := [name for name in map("<0x{:02X}>".format, range(256)) if name not in vocabulary]:
            return f"its vocabulary has no token for {len(missing)} of the 256 bytes"
        for token in vocabulary:
            if len(token) > 6 and BYTE_TOKEN.search(token):
                return f"its merges join tokens of bytes ({token!r})"
    return ""


def added_token_reason(structure: Structure) -> str:
    """Return why the added tokens may be matched differently by the fast engine, or ""."""
    tokens = structure.added_tokens or []
    for token in tokens:
        flags = [name for name in ("lstrip", "rstrip", "single_word") if getattr(token, name)]
        if flags:
            return f"its added token {token.content!r} has {' and '.join(flags)}"
        if any(char.isspace() for char in token.content):
            return f"its added token {token.content!r} has white space"
        if token.normalized and structure.normalizers:
            return f"its added token {token.content!r} is matched in normalized text"
    groups = [[t.content for t in tokens if t.normalized is normalized] for normalized in (True, False)]
    if all(groups) and (pair := overlapping(*groups)):
        return f"its added tokens {pair[0]!r} and {pair[1]!r} overlap, and only one has normalized=true"
    return ""


def overlapping(ones: list[str], others: list[str]) -> tuple[str, str] | None:
    """Return a text of each list that can overlap in a longer text: one holds the other, or a beginning is an end."""
    for first, second, swap in ((ones, others, False), (others, ones, True)):
        pieces = {text[:end]: text for text in first for end in range(1, len(text) + 1)}
        for text in second:
            whole = next((other for other in first if other in text), None)
            found = whole or next((pieces[text[i:]] for i in range(len(text)) if text[i:] in pieces), None)
            if found:
                return (text, found) if swap else (found, text)
    return None
