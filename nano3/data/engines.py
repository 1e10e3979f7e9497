"""The two tokenizer engines, loaded without numpy or pyarrow: the process that loads them must have no threads when
it forks.

`tokenizers` is the reference: its ids are right by definition. `fastokens` gives the same ids a hundred times faster
where it can read the tokenizer; it is used only after a proof (`tokenize.py`).
"""

from dataclasses import dataclass
from typing import Any

REFERENCE = "tokenizers"
FAST = "fastokens"


@dataclass
class Engines:
    """`fast` is None when it may not or cannot be used; `why_not` then says why."""

    reference: Any
    fast: Any
    why_not: str = ""


def load_engines(file: str, split_special_tokens: bool, fast: bool) -> Engines:
    """Load a tokenizer.json into both engines (the reference only, when not `fast`).

    Truncation and padding that the file may ask for are switched off: documents stay whole.
    """
    from tokenizers import Tokenizer

    reference = Tokenizer.from_file(file)
    reference.no_truncation()
    reference.no_padding()
    reference.encode_special_tokens = split_special_tokens
    if not fast:
        return Engines(reference, None)
    from fastokens import _native

    try:
        quick = _native.Tokenizer.from_file(file)
    except (ValueError, RuntimeError, NotImplementedError, OSError) as error:
        return Engines(reference, None, f"fastokens cannot read this tokenizer: {error}")
    quick.no_truncation()
    quick.no_padding()
    return Engines(reference, quick)
