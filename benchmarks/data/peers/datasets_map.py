"""The usual script around `datasets`: load jsonl, map the tokenizer in batches, write with megatron-core."""

import sys

import numpy as np
from datasets import load_dataset
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from transformers import AutoTokenizer


def main(text: str, tokenizer_folder: str, output: str, workers: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        ids = tokenizer(batch["text"], add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return {"ids": [[*row, tokenizer.eos_token_id] for row in ids]}

    rows = load_dataset("json", data_files=text, split="train", cache_dir=f"{output}/cache")
    rows = rows.map(encode, batched=True, num_proc=workers, remove_columns=rows.column_names)
    builder = IndexedDatasetBuilder(f"{output}/text.bin", dtype=np.int32)
    for row in rows.with_format("numpy"):
        builder.add_document(row["ids"], [len(row["ids"])])
    builder.finalize(f"{output}/text.idx")


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]))
