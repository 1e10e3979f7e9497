"""Decide whether the fast engine may be used: by the tokenizer's structure, and by comparisons with the reference.

A tokenizer is compared on texts made for it (`edge_cases`). That takes two seconds, so a tokenizer that passed is
recorded in the user's cache folder, for this version of the engines. The first documents of every dataset are compared
in every build.
"""

import contextlib
import hashlib
import os
from pathlib import Path

import msgspec

from nano3.data.build.unit_encoder import Worker
from nano3.data.planning.plan import Plan
from nano3.data.sources.readers import read_documents
from nano3.data.tokenization.edge_cases import tokenizer_cases
from nano3.data.tokenization.encoders import Encoder, describe_difference
from nano3.data.tokenization.engines import Engines
from nano3.data.tokenization.fast_support import read_structure, refusal_reason
from nano3.utils.errors import Nano3Error
from nano3.utils.files import expand_user
from nano3.utils.provenance import installed_versions

CHECK_VERSION = 1  # raise it when the check changes, so that tokenizers are compared again
SAMPLE_CHARS = 200_000  # of all datasets together; the reference encodes about two million a second
MAX_TEXT_CHARS = 20_000


def compare_engines(worker: Worker, engines: Engines) -> str:
    """Compare the ids of both engines.

    Args:
        worker: A worker with the encoders of both engines.
        engines: The engines.

    Returns:
        Why the fast engine must not be used, or "".
    """
    if worker.fast is None:
        return ""
    mark = verified_mark(worker.plan)
    if not mark.exists():
        if problem := check_tokenizer(worker.plan.tokenizer.file, engines, worker.fast, worker.reference):
            return problem
        with contextlib.suppress(OSError):  # without a cache folder, every build compares
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
    return describe_difference(worker.fast, worker.reference, sample_texts(worker))


def check_tokenizer(file: str, engines: Engines, fast: Encoder, reference: Encoder) -> str:
    """Return why the fast engine must not encode with a tokenizer, or "".

    Args:
        file: Path of its tokenizer.json.
        engines: The engines.
        fast: Encoder of the fast engine.
        reference: Encoder of the reference engine.
    """
    structure = read_structure(file)
    vocabulary = engines.reference.get_vocab()
    if reason := refusal_reason(structure, vocabulary):
        return f"the fast engine is not used for this tokenizer: {reason}"
    return describe_difference(fast, reference, tokenizer_cases(structure, vocabulary))


def verified_mark(plan: Plan) -> Path:
    """Return the path of the file that says that the engines agree on a plan's tokenizer."""
    versions = installed_versions(("tokenizers", "fastokens"))
    key = [CHECK_VERSION, plan.tokenizer.sha256, plan.options.split_special_tokens, sorted(versions.items())]
    default = expand_user(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "nano3"
    folder = expand_user(os.environ.get("NANO3_CACHE") or str(default))
    return folder / "verified_tokenizers" / hashlib.sha256(msgspec.json.encode(key)).hexdigest()


def sample_texts(worker: Worker) -> list[str]:
    """Return the first documents of every dataset. Skip bad input, as building the units reports it with its row."""
    texts: list[str] = []
    for dataset in worker.plan.datasets:
        left = SAMPLE_CHARS // len(worker.plan.datasets)
        try:
            batch = next(iter(read_documents(dataset.whole_file(0))), None)
        except Nano3Error:
            continue
        for text in batch.texts if batch else ():
            texts.append(text[: min(left, MAX_TEXT_CHARS)])
            left -= len(texts[-1])
            if left <= 0:
                break
    return texts
