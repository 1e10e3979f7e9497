"""Compare the fast engine with the reference on edge cases and on the first documents of every dataset."""

from nano3.data.build.unit_encoder import Worker
from nano3.data.sources.readers import read_documents
from nano3.data.tokenization.edge_cases import edge_cases
from nano3.data.tokenization.encoders import first_difference
from nano3.data.tokenization.engines import Engines
from nano3.utils.errors import Nano3Error

SAMPLE_CHARS = 200_000  # of all datasets together; the reference encodes about two million a second
MAX_TEXT_CHARS = 20_000


def compare_engines(worker: Worker, engines: Engines) -> str:
    """Compare the ids of both engines.

    Args:
        worker: A worker with the encoders of both engines.
        engines: The engines.

    Returns:
        What differs, or "".
    """
    if worker.fast is None:
        return ""
    special = [token.content for token in engines.reference.get_added_tokens_decoder().values()][:64]
    texts = [*edge_cases(special), *sample_texts(worker)]
    wrong = first_difference(worker.fast, worker.reference, texts)
    return "" if wrong is None else f"fastokens gives other ids than tokenizers for {texts[wrong][:60]!r}"


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
