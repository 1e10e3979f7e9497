"""Build Megatron's order of samples before a run starts, without its GPUs.

A start builds it on rank 0 while all other ranks wait, for a time that grows with samples times shards. Megatron's own
builder writes it here, too, so the start finds the files under the names that it looks for.
"""

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nano3.config import PretrainConfig
from nano3.training.dataset import open_data
from nano3.training.megatron import schema, settings
from nano3.training.run.index_cache import add_files, cache_folder, complete_files
from nano3.utils.console import say, size_text

DEFAULT_SURPLUS = 0.005  # of GPTDatasetConfig.mid_level_dataset_surplus


@dataclass(frozen=True)
class IndexRequest:
    """What to build, as plain values: the arguments of a job.

    Attributes:
        data: The data folder.
        cache: The folder of the index in the run folder.
        seq_length: Tokens in a sample.
        seed: Random seed of the order.
        samples: Samples of the run.
        surplus: Share of samples that each shard gets in addition.
        tokenizer: Megatron-Bridge's section `tokenizer`, which the names of the files depend on; None for
            backend=transformers.
    """

    data: str
    cache: str
    seq_length: int
    seed: int
    samples: int
    surplus: float = DEFAULT_SURPLUS
    tokenizer: dict[str, Any] | None = None

    def to_text(self) -> str:
        """Return the request as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> "IndexRequest":
        """Return the request that `to_text` has written."""
        return cls(**json.loads(text))


def make_request(config: PretrainConfig, data: Path, run_dir: Path) -> IndexRequest:
    """Return the request for the training samples of a run.

    Args:
        config: The run's configuration.
        data: The data folder.
        run_dir: The run folder.

    Raises:
        UserError: The data folder is not usable.
    """
    opened = open_data(data)
    opened.require(config.train.seq_length, ["train"])
    surplus, tokenizer = DEFAULT_SURPLUS, None
    if config.backend == "megatron":
        known = schema.load_bundled(config.recipe._target_)
        chosen = settings.chosen_fields(config, known)
        surplus = chosen.get("dataset.mid_level_dataset_surplus", known.value("dataset.mid_level_dataset_surplus"))
        tokenizer = _tokenizer_section(chosen, known.value("tokenizer", {}), str(opened.tokenizer))
    return IndexRequest(
        data=str(opened.folder),
        cache=str(cache_folder(run_dir, opened.fingerprint)),
        seq_length=config.train.seq_length,
        seed=config.train.seed,
        samples=config.train.train_iters * config.train.global_batch_size,
        surplus=DEFAULT_SURPLUS if surplus is None else surplus,
        tokenizer=tokenizer,
    )


def _tokenizer_section(chosen: Mapping[str, Any], recipe: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Return the tokenizer section of the run: the recipe's, the user's values, and those of `data_settings`."""
    unset: dict[str, Any] = dict.fromkeys(("chat_template", "vocab_file", "merge_file", "special_tokens"))
    flags = ("trust_remote_code", "tokenizer_hf_no_use_fast", "tokenizer_hf_no_include_special_tokens")
    unset |= {"metadata_path": None, **dict.fromkeys(flags, False)}
    own = {path.removeprefix("tokenizer."): v for path, v in chosen.items() if path.startswith("tokenizer.")}
    fixed = {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": folder, "pad_vocab_size": False}
    return {**unset, **recipe, **own, **fixed}


def main(text: str) -> int:
    """Build the order of one run.

    Args:
        text: Result of `IndexRequest.to_text`.

    Returns:
        Exit code 0.
    """
    request = IndexRequest.from_text(text)
    began, cache = time.perf_counter(), Path(request.cache)
    work = cache.with_name(f".{cache.name}.ahead")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        for name in complete_files(cache):
            (work / name).symlink_to(cache / name)
        build(request, work)
        made = [path for path in work.iterdir() if not path.is_symlink()]
        size = sum(path.stat().st_size for path in made)
        add_files(cache, made)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if not made:
        say(f"the order of {request.samples:,} samples is there already: {cache}")
        return 0
    seconds = time.perf_counter() - began
    say(f"built the order of {request.samples:,} samples in {seconds:,.0f} s, {size_text(size)}: {cache}")
    return 0


def build(request: IndexRequest, folder: Path) -> None:
    """Have Megatron build the index of a run's training samples.

    Args:
        request: What to build.
        folder: The folder to write to; files that are there already are used.
    """
    from nano3.training.hf.datasets import DatasetBuilder

    tokenizer = None
    if request.tokenizer is not None:
        from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer

        tokenizer = build_tokenizer(SimpleNamespace(**request.tokenizer))
    DatasetBuilder(
        open_data(Path(request.data)), request.seq_length, request.seed, folder, tokenizer=tokenizer,
        surplus=request.surplus,
    ).train(request.samples)  # fmt: skip
