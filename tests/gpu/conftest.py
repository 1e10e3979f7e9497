"""Fixtures of the tests on a real GPU. Slow ones are created once for all pytest-xdist workers."""

import os
from pathlib import Path

import pytest
from gpu_runs import ENGINE, FOLLOW, REHEARSAL, Runs, gpus, made_once


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A folder with the prepared bundled corpus: NANO3_GPU_RUNS, which is kept, or a temporary folder."""
    if not gpus() and not REHEARSAL:
        pytest.skip("no GPU")
    base = tmp_path_factory.getbasetemp()
    temporary = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder = Path(os.environ.get("NANO3_GPU_RUNS", temporary))
    folder.mkdir(parents=True, exist_ok=True)
    runs = Runs(folder)
    with made_once(folder, "data") as wanted:
        if wanted:
            words = ["data_blend=sample", "output_dir=data", "valid_fraction=0.05", f"engine={ENGINE}"]
            runs("-m", "nano3.data_prep", *words, timeout=300)
    return runs


@pytest.fixture(scope="session")
def undisturbed(runs: Runs) -> Path:
    """The run folder of 40 undisturbed iterations; read-only."""
    with made_once(runs.folder, "undisturbed") as wanted:
        if wanted:
            runs.train("undisturbed")
    return runs.dir("undisturbed")


@pytest.fixture(scope="session")
def first_weights(runs: Runs) -> Path:
    """The transformers backend's initial weights of the micro model, in Hugging Face format."""
    with made_once(runs.folder, "first_weights") as wanted:
        if wanted:
            unmoved = ["train.train_iters=1", "scheduler.lr_decay_style=constant", "scheduler.lr_warmup_iters=0"]
            unmoved += ["model.moe_router_bias_update_rate=0", "optimizer.lr=1e-12"]
            runs.train("first_weights", "backend=transformers", *FOLLOW, *unmoved)
    return runs.dir("first_weights") / "checkpoints/iter_0000001/hf"


@pytest.fixture(scope="session")
def followed(runs: Runs, first_weights: Path) -> Path:
    """The run folder of 20 logged iterations from these weights on one GPU; read-only."""
    with made_once(runs.folder, "followed") as wanted:
        if wanted:
            runs.follow("follow_megatron", first_weights)
    return runs.dir("follow_megatron")
