"""Who is measured, and the exact command of each: the same text, the same tokenizer, an end-of-document token after
every document, 4 bytes a token, no validation split, two workers where the tool has workers."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import corpus
import tokenizer
from corpus import Corpus

PEERS = Path(__file__).parent / "peers"


@dataclass(frozen=True)
class Job:
    """One run: what to read, which tokenizer folder, where to write, and the interpreter of the contender."""

    text: Corpus
    tokenizer: Path
    output: Path
    python: Path
    workers: int
    patience: float  # seconds to wait for a quiet machine before starting

    def driver(self, name: str, text: Path, *more: object) -> list[str]:
        """Command of a driver in peers/."""
        return [str(self.python), str(PEERS / name), str(text), str(self.tokenizer), str(self.output), *map(str, more)]


@dataclass(frozen=True)
class Contender:
    """A tool in one setting. `fast` ones also run on the large text; `in_order` ones keep the order of documents."""

    title: str
    environment: str | None  # of environments.PACKAGES; None is this project's own
    command: Callable[[Job], list[str]]
    fast: bool = False
    in_order: bool = True


def nano3(text: Path, job: Job, workers: int) -> list[str]:
    """`python -m nano3.data_prep` on one file, as a user types it."""
    blend = job.output.with_suffix(".blend.json")
    blend.write_text(json.dumps({"datasets": [{"name": "text", "path": str(text), "weight": 1.0}]}) + "\n")
    keys = {
        "blend_path": blend,
        "output_dir": job.output,
        "tokenizer_model": job.tokenizer,
        "valid_fraction": 0,
        "test_fraction": 0,
        "workers": workers,
    }
    return [sys.executable, "-m", "nano3.data_prep", *(f"{key}={value}" for key, value in keys.items())]


def dolma(job: Job) -> list[str]:
    """dolma's own command line; it always shuffles documents."""
    options = {
        "--documents": f"{job.text.parts}/*.jsonl",
        "--destination": job.output,
        "--tokenizer.name_or_path": job.tokenizer / "tokenizer.json",
        "--tokenizer.eos_token_id": tokenizer.EOS_ID,
        "--tokenizer.pad_token_id": 0,
        "--processes": job.workers,
        "--dtype": "uint32",
    }
    words = [str(word) for pair in options.items() for word in pair]
    return [str(job.python.with_name("dolma")), "tokens", *words]


CONTENDERS: dict[str, Contender] = {
    "nano3": Contender("nano3, jsonl", None, lambda job: nano3(job.text.jsonl, job, job.workers), fast=True),
    "nano3-parquet": Contender(
        "nano3, parquet", None, lambda job: nano3(job.text.parquet, job, job.workers), fast=True
    ),
    "nano3-1-worker": Contender("nano3, jsonl, 1 worker", None, lambda job: nano3(job.text.jsonl, job, 1), fast=True),
    "nano3-1-core": Contender(
        "nano3, jsonl, 1 worker on 1 core",
        None,
        lambda job: ["taskset", "-c", "0", *nano3(job.text.jsonl, job, 1)],
        fast=True,
    ),
    "megatron-fast": Contender(
        "Megatron-LM fast tool (thin equivalent, gigatoken)",
        "megatron",
        lambda job: job.driver("megatron_fast.py", job.text.jsonl),
        fast=True,
    ),
    "megatron": Contender(
        "Megatron-LM preprocess_data (thin equivalent)",
        "megatron",
        lambda job: job.driver("megatron_standard.py", job.text.jsonl, job.workers),
    ),
    "datatrove": Contender(
        "datatrove MegatronDocumentTokenizer",
        "datatrove",
        lambda job: job.driver("datatrove_pipeline.py", job.text.parts, job.workers, corpus.PARTS),
    ),
    "dolma": Contender("dolma tokens", "dolma", dolma, in_order=False),
    "curator": Contender(
        "NeMo Curator writer stage (no Ray)",
        "curator",
        lambda job: job.driver("curator_stage.py", job.text.parts, job.workers),
        in_order=False,
    ),
    "datasets": Contender(
        "datasets.map + IndexedDatasetBuilder",
        "datasets",
        lambda job: job.driver("datasets_map.py", job.text.jsonl, job.workers),
    ),
}
