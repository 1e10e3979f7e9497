"""What Megatron-LM's documented `tools/preprocess_data.py` does, over megatron-core's own classes.

The wheel of megatron-core carries every module that the tool uses, but not the tool, so this driver is its thinnest
equivalent: the same imports, tokenizer, pool of workers (`imap`, 32 lines at a time) and one `add_document` a document.
"""

import argparse
import json
import multiprocessing
import sys

from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer
from megatron.training.arguments import _add_tokenizer_args


class Encoder:
    """Encodes one line of jsonl; each worker builds its own tokenizer."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options

    def start(self) -> None:
        Encoder.tokenizer = build_tokenizer(self.options)

    def encode(self, line: str) -> list[int]:
        ids = Encoder.tokenizer.tokenize(json.loads(line)["text"])
        if ids:
            ids.append(Encoder.tokenizer.eod)
        return ids


def tokenizer_options(folder: str) -> argparse.Namespace:
    """Megatron's tokenizer arguments for a Hugging Face folder, with the values its tools fill in."""
    parser = _add_tokenizer_args(argparse.ArgumentParser())
    options = parser.parse_args(["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", folder])
    options.rank = 1
    options.make_vocab_size_divisible_by = 128
    options.tensor_model_parallel_size = 1
    options.vocab_extra_ids = 0
    return options


def main(text: str, tokenizer_folder: str, output: str, workers: int) -> None:
    encoder = Encoder(tokenizer_options(tokenizer_folder))
    tokenizer = build_tokenizer(encoder.options)
    builder = IndexedDatasetBuilder(f"{output}/text.bin", dtype=DType.optimal_dtype(tokenizer.vocab_size))
    with open(text, encoding="utf-8") as lines, multiprocessing.Pool(workers, encoder.start) as pool:  # noqa: PTH123
        for ids in pool.imap(encoder.encode, lines, 32):
            builder.add_document(ids, [len(ids)] if ids else [])
        builder.finalize(f"{output}/text.idx")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
