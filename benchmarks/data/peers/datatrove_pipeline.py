"""datatrove's own pipeline: JsonlReader, then MegatronDocumentTokenizer, one task a file, on a local executor."""

import sys

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import MegatronDocumentTokenizer


def main(parts: str, tokenizer_folder: str, output: str, workers: int, tasks: int) -> None:
    reader = JsonlReader(parts, glob_pattern="*.jsonl")
    writer = MegatronDocumentTokenizer(
        output, tokenizer_name_or_path=f"{tokenizer_folder}/tokenizer.json", eos_token="</s>"
    )
    LocalPipelineExecutor([reader, writer], tasks=tasks, workers=workers, logging_dir=f"{output}/log").run()


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5]))
