"""Bits per byte from the manifest's bytes and tokens."""

import json
import math
from pathlib import Path

import pytest

from nano3.config import PretrainConfig
from nano3.training.dataset import open_data
from nano3.training.order.budgets import make_plan
from nano3.training.run.bits_per_byte import BitsPerByte
from nano3.training.run.metrics import Metrics, read_metrics

LN2 = math.log(2)


def with_datasets(data_dir: Path, **changes: dict[str, int]) -> BitsPerByte:
    """Return the conversion for docs with 4 and code with 2 bytes per token; `changes` are merged into a dataset."""
    path = data_dir / "manifest.json"
    manifest = json.loads(path.read_text())
    splits = {dataset["name"]: dataset["splits"] for dataset in manifest["datasets"]}
    manifest["datasets"] = [
        {
            "name": name, "weight": 1.0, "path": "x", "revision": None, "files": 1, "documents": 1, "empty": 0,
            "tokens": 1000, "text_bytes": size, "skipped": {}, "truncated": 0, "special_tokens": 0,
            "splits": splits[name],
        } | changes.get(name, {})
        for name, size in (("docs", 4000), ("code", 2000))
    ]  # fmt: skip
    path.write_text(json.dumps(manifest))
    return BitsPerByte(open_data(data_dir))


def test_each_dataset_and_the_blend(data_dir: Path) -> None:
    """The blend's bits are over the blend's bytes: 0.75 x 4 + 0.25 x 2 for a token."""
    bits = with_datasets(data_dir)
    found = bits.valid({"docs": 8 * LN2, "code": 4 * LN2}, {"docs": 0.75, "code": 0.25})
    assert found == pytest.approx(
        {
            "valid_bits_per_byte": 7 / 3.5,
            "valid_bits_per_byte/docs": 2,
            "valid_bits_per_byte/code": 2,
        }
    )
    assert bits.train(7 * LN2) == pytest.approx({"bits_per_byte": 2})


def test_a_training_loss_is_over_what_its_iteration_reads(data_dir: Path, tmp_path: Path) -> None:
    """In a staged mixture that is not the blend of the data."""
    with_datasets(data_dir)
    config, data = PretrainConfig(), open_data(data_dir)
    t = config.train
    t.sample_order, t.train_iters, t.global_batch_size, t.seq_length = "nano3", 4, 8, 16
    t.mixture = [{"until": 2, "blend": {"code": 1}}, {"blend": {"docs": 3, "code": 1}}]
    metrics = Metrics(tmp_path, 0, train_iters=4, data=data, order=make_plan(config, data))
    for iteration in range(1, 5):
        metrics.log(iteration=iteration, loss=7 * LN2)
    metrics.close()
    found = [line["bits_per_byte"] for line in read_metrics(tmp_path) if "loss" in line]
    assert found == pytest.approx([7 / 2, 7 / 2, 7 / 3.5, 7 / 3.5])


@pytest.mark.parametrize("unknown", [{"truncated": 1}, {"text_bytes": 0}])
def test_a_dataset_with_unknown_bytes_is_left_out(data_dir: Path, unknown: dict[str, int]) -> None:
    """The manifest counts the bytes of whole documents, also of those that were cut."""
    bits = with_datasets(data_dir, code=unknown)
    assert set(bits.valid({"docs": 1.0, "code": 1.0}, {"docs": 0.75, "code": 0.25})) == {"valid_bits_per_byte/docs"}
    assert bits.train(1.0) == {}


def test_data_without_datasets_in_its_manifest(data_dir: Path) -> None:
    assert BitsPerByte(open_data(data_dir)).valid({"docs": 1.0}, {"docs": 1.0}) == {}
