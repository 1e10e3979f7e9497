"""The start of a run and its hangs with Megatron-Bridge on real GPUs: an index that was built ahead, and NCCL."""

import os
import re
import signal
from pathlib import Path

import pytest
from gpu_runs import BOTH, DENSE, MARKS, MICRO, ROOT, SHORT, Runs, gpus

from nano3.utils.errors import HANG_EXIT_CODE

pytestmark = MARKS


def test_a_start_finds_the_order_that_was_built_ahead(runs: Runs) -> None:
    """The job that built it has seen no GPU, and Megatron-Bridge builds no index of the training samples."""
    words = [*MICRO, *SHORT, "run.name=ahead", "run.data=data"]
    text = runs("-m", "nano3", "index", *words, CUDA_VISIBLE_DEVICES="")
    assert "built the order of 96 samples" in text
    ahead = {path.name: path.stat().st_ino for path in runs.dir("ahead").glob("index_cache/*/*-train-*")}
    assert ahead
    runs.train("ahead", *SHORT, "run.data=data")
    after = {path.name: path.stat().st_ino for path in runs.dir("ahead").glob("index_cache/*/*-train-*")}
    assert after == ahead


@pytest.mark.skipif(gpus() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("kind", ["left out", "stopped"])
def test_a_rank_that_enters_no_collective_ends_the_run_and_is_named(runs: Runs, tmp_path: Path, kind: str) -> None:
    """NCCL would hold the GPUs for ten minutes. The next start resumes from the newest checkpoint."""
    name, trigger = f"hang_{kind.replace(' ', '_')}", tmp_path / "leave"
    words = [
        *DENSE,
        "train.train_iters=4000",
        "train.eval_interval=0",
        "checkpoint.save_interval=20",
        "logger.log_interval=1",
    ]
    words += ["cluster.nproc_per_node=2"]
    path = f"{ROOT / 'tests' / 'faults'}{os.pathsep}{runs.env['PYTHONPATH']}"
    fault = {"NANO3_FAULT": str(trigger), "PYTHONPATH": path}
    process = runs.start(name, *words, "train.hang_timeout_s=10", **BOTH, **fault)
    runs.wait_for(name, 30, process)
    if kind == "stopped":
        os.kill(int((runs.dir(name) / "logs" / "1.pid").read_text()), signal.SIGSTOP)
    else:
        trigger.touch()
    text = runs.finish(process, code=HANG_EXIT_CODE, timeout=300)
    waited = re.search(r"error: hang: no progress for (\d+) s", text)
    assert waited and int(waited[1]) < 60  # the first step, which compiles, does not count
    stacks = {rank: (runs.dir(name) / "hang" / f"rank_{rank}.txt").read_text() for rank in (0, 1)}
    if kind == "stopped":
        assert "is behind and does not answer: it is stopped" in text
        assert "rank 1 on" in stacks[1] and ("bridge/training/train.py" in stacks[1] or "no stack: " in stacks[1])
    else:
        assert "read_from_a_server_that_never_answers" in text
        assert "read_from_a_server_that_never_answers" in stacks[1]
    assert "megatron/bridge/training/train.py" in stacks[0]  # in whatever needs the other rank next
    reached = max(runs.losses(name))
    text = runs.train(name, *words, f"train.exit_iteration={reached // 20 * 20 + 5}", **BOTH)
    assert "resuming from iteration" in text
