"""The ceiling: the bare fastokens engine in a loop over text that is already in memory, in one or two processes.

Prints a JSON line: MB of text a second, over all processes, with a cold and then a warm cache. One thread a process.
"""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

Passes = list[tuple[float, float, int]]  # start and end in seconds of the system clock, bytes encoded
Results = Queue[Passes]
BATCH = 4_000_000  # bytes of text


def batches(path: str, part: int, parts: int) -> Iterator[list[str]]:
    """Every `parts`-th batch of documents."""
    batch: list[str] = []
    size = number = 0
    with Path(path).open(encoding="utf-8") as lines:
        for line in lines:
            batch.append(json.loads(line)["text"])
            size += len(line)
            if size >= BATCH:
                if number % parts == part:
                    yield batch
                batch, size, number = [], 0, number + 1
    if number % parts == part:
        yield batch


def encode(path: str, tokenizer: str, part: int, parts: int, barrier: Barrier) -> Passes:
    """Encode this process's share twice."""
    os.environ["FASTOKENS_BPE_THREADS"] = "1"
    from fastokens import _native

    engine = _native.Tokenizer.from_file(tokenizer)
    text = list(batches(path, part, parts))
    size = sum(len(document.encode()) for batch in text for document in batch)
    passes = []
    for _ in range(2):
        barrier.wait()
        start = time.time()
        for batch in text:
            engine.encode_batch_flat(batch)
        passes.append((start, time.time(), size))
    return passes


def worker(path: str, tokenizer: str, part: int, parts: int, barrier: Barrier, results: Results) -> None:
    """A process of `main`."""
    results.put(encode(path, tokenizer, part, parts, barrier))


def main(path: str, tokenizer: str, parts: int) -> None:
    """Start the processes, let them begin each pass together, print the joint rates."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(parts), context.Queue()
    jobs = [context.Process(target=worker, args=(path, tokenizer, n, parts, barrier, results)) for n in range(parts)]
    for job in jobs:
        job.start()
    shares = [results.get() for _ in jobs]
    for job in jobs:
        job.join()
    rates = []
    for one_pass in zip(*shares, strict=True):
        seconds = max(end for _, end, _ in one_pass) - min(start for start, _, _ in one_pass)
        rates.append(sum(size for _, _, size in one_pass) / 1e6 / seconds)
    print(json.dumps({"cold_mb_per_s": round(rates[0], 1), "warm_mb_per_s": round(rates[1], 1)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
