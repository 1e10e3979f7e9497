"""The points of a sweep over nano3.pretrain: one preflight table, and all problems with their points."""

from pathlib import Path

import pytest
from commands import SMALL, Commands

from nano3.pretrain_sweep import show_preflight


def test_shared_rows_are_shown_once_and_differences_by_point(capsys: pytest.CaptureFixture[str]) -> None:
    shared = [("backend", "transformers"), ("  docs", "40%"), ("warning", "a"), ("warning", "b")]
    show_preflight({f"lr={lr}": [*shared, ("learning rate", f"WSD {lr}")] for lr in (1, 2)})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Preflight of 2 points" and lines[2:5] == [
        "backend  transformers",
        "docs     40%",
        "warning  a; b",
    ]
    assert [line.split() for line in lines[5:]] == [
        ["Differences"],
        ["point", "learning", "rate"],
        ["lr=1", "WSD", "1"],
        ["lr=2", "WSD", "2"],
    ]


def test_the_problems_of_all_points_are_told_at_once(tmp_path: Path, data: Path) -> None:
    cli = Commands(tmp_path)
    words = ["-m", "nano3.pretrain", "-m", *SMALL, f"run.data={data}", "optimizer.lr=1e-3,-1", "train.eval_iters=0"]
    err = cli(*words, "scheduler.lr_warmup_iters=2,9", "train.micro_batch_size=2,3", code=2).stderr
    assert "error: train.eval_iters=0 must be at least 1." in err, "a problem of every point has no label"
    assert err.count("optimizer.lr=-1.0 must be at least 0.") == 1
    assert "error: point optimizer.lr=-1__scheduler.lr_warmup_iters=2__train.micro_batch_size=2, " in err
    assert "train.global_batch_size=4 is not a multiple of train.micro_batch_size" in err
    assert not (tmp_path / "output").exists()
