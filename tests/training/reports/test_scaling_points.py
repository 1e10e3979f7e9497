"""A model of the ladder, trained here: what a point of a scaling law says is what was trained."""

from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from training_processes import train_here

from nano3.cli.app import register_config, to_typed_config
from nano3.cli.config_groups import conf_dir
from nano3.config import PretrainConfig
from nano3.training.checks.lr_schedule import with_default_decay
from nano3.training.dataset import open_data
from nano3.training.reports.scaling_points import MeasuredRun, comparison_problems, measure_run
from nano3.training.run.checkpoints import latest_checkpoint, read_checkpoint_info
from nano3.training.run.record import DataReference, save_run_config


def tiny_run(data: Path, run_dir: Path, *words: str) -> PretrainConfig:
    register_config()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        given = [
            "+experiment=scaling_cpu",
            "train.seq_length=32",
            "ladder.eval_samples=12",
            "ladder.tokens_per_parameter=0.01",
            f"run.data={data}",
            *words,
        ]
        config: PretrainConfig = to_typed_config(compose("pretrain", given))
    run = replace(config.run, output_dir=str(run_dir))
    checkpoint = replace(config.checkpoint, save=str(run_dir / "checkpoints"))
    return with_default_decay(replace(config, run=run, checkpoint=checkpoint))


def test_two_trained_sizes_are_comparable_points(data: Path, tmp_path: Path) -> None:
    found = []
    for size in ("1m", "2m"):
        run_dir = tmp_path / size
        config = tiny_run(data, run_dir, f"ladder.size={size}", "train.train_iters=4", "train.threads=1")
        fingerprint = open_data(data).fingerprint
        save_run_config(run_dir, config, DataReference(str(data), str(data), fingerprint), [])
        outcome = train_here(config, data, run_dir)
        assert (outcome.status, outcome.iteration) == ("finished", 4)
        (run_dir / "finished.json").write_text('{"iteration": 4, "checkpoint": null}')  # as rank_main does
        point = measure_run(size, run_dir)
        assert isinstance(point, MeasuredRun)
        saved = latest_checkpoint(run_dir / "checkpoints")
        assert saved is not None
        embeddings = 2 * 4096 * config.model.hidden_size
        assert point.total == read_checkpoint_info(saved).parameters - embeddings
        assert point.point.tokens == 4 * config.train.global_batch_size * 32
        assert point.epochs is not None and point.epochs < 1
        assert point.point.loss == pytest.approx(8.4, abs=0.6)
        found.append(point)
    assert comparison_problems(found) == []
