"""What Megatron-LM's fast tool (`tools/preprocess_data_fast.py`, August 2026) does: a thin equivalent, not the tool.

No registry package carries the tool or the tokenizer method it calls, so this follows its steps over the packages
that it uses: a spawned process imports Megatron's arguments and tokenizers, gigatoken encodes the whole file on all
cores, and megatron-core's builder takes one document after another. Where the tool's way is not known to the letter,
the cheaper one is taken: the end-of-document token is appended to views of one flat array, not to the awkward array.
"""

import multiprocessing
import sys

import awkward as ak
import gigatoken
import numpy as np
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer
from megatron_standard import tokenizer_options


def process(text: str, tokenizer_folder: str, output: str) -> None:
    tokenizer = build_tokenizer(tokenizer_options(tokenizer_folder))
    engine = gigatoken.Tokenizer(f"{tokenizer_folder}/tokenizer.json")
    documents = engine.encode_files(gigatoken.JsonlFileSource([text], field="text"))
    lengths = ak.to_numpy(ak.num(documents)).tolist()
    flat = ak.to_numpy(ak.flatten(documents))
    builder = IndexedDatasetBuilder(f"{output}/text.bin", dtype=DType.optimal_dtype(tokenizer.vocab_size))
    start = 0
    for length in lengths:
        builder.add_document(np.append(flat[start : start + length], tokenizer.eod), [length + 1])
        start += length
    builder.finalize(f"{output}/text.idx")


if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.starmap(process, [tuple(sys.argv[1:4])])
