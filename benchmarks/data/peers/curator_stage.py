"""NeMo Curator's MegatronTokenizerWriter stage, one jsonl file a task, on a plain pool of processes.

Without Ray: starting a Ray cluster would only add to the time.
"""

import multiprocessing
import sys
from pathlib import Path

import pandas as pd
from nemo_curator.stages.text.io.writer.megatron_tokenizer import MegatronTokenizerWriter
from nemo_curator.tasks import DocumentBatch


def tokenize(job: tuple[str, str, str]) -> None:
    path, tokenizer_folder, output = job
    stage = MegatronTokenizerWriter(path=output, model_identifier=tokenizer_folder, append_eod=True)
    stage.setup()
    batch = DocumentBatch(dataset_name="text", data=pd.read_json(path, lines=True))
    batch._metadata["source_files"] = [path]
    stage.process(batch)


def main(parts: str, tokenizer_folder: str, output: str, workers: int) -> None:
    jobs = [(str(path), tokenizer_folder, output) for path in sorted(Path(parts).glob("*.jsonl"))]
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        pool.map(tokenize, jobs, chunksize=1)


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]))
