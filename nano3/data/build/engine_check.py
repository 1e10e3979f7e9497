"""The proof that the fast engine gives the reference's ids: on a table of edge cases and on the start of every
dataset.
"""

from typing import Any

from nano3.data.build.unit_encoder import Worker
from nano3.data.sources.readers import read_documents
from nano3.data.tokenization.edge_cases import edge_cases
from nano3.data.tokenization.encoders import first_difference
from nano3.data.tokenization.engines import Engines
from nano3.utils.errors import Nano3Error

SAMPLE_CHARS = 200_000  # of all datasets together; the reference takes about half a second for a million
MAX_TEXT_CHARS = 20_000


def compare_engines(worker: Worker, engines: Engines) -> str:
    """Compare the engines. Gives "" when they agree, else what they disagree about."""
    if worker.fast is None:
        return ""
    special = [token.content for token in engines.reference.get_added_tokens_decoder().values()][:64]
    texts = [*edge_cases(special), *sample_texts(worker)]
    wrong = first_difference(worker.fast, worker.reference, texts)
    return "" if wrong is None else f"fastokens gives other ids than tokenizers for {texts[wrong][:60]!r}"


def sample_texts(worker: Worker) -> list[str]:
    """The start of every dataset. A fault in the data is left to the run, which tells it with its row."""
    texts: list[str] = []
    for dataset in worker.plan.datasets:
        left = SAMPLE_CHARS // len(worker.plan.datasets)
        try:
            batch: Any = next(iter(read_documents(dataset.whole_file(0))), None)
        except Nano3Error:
            continue
        for text in batch.texts if batch else ():
            texts.append(text[: min(left, MAX_TEXT_CHARS)])
            left -= len(texts[-1])
            if left <= 0:
                break
    return texts
