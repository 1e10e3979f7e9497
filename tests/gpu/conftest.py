"""Fixtures of the tests on a real GPU."""

from pathlib import Path

import pytest
from gpu_runs import Runs, gpus


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A folder with the bundled corpus prepared in it."""
    if not gpus():
        pytest.skip("no GPU")
    runs = Runs(tmp_path_factory.mktemp("gpu"))
    runs("-m", "nano3.data_prep", "data_blend=sample", "output_dir=data", "valid_fraction=0.05", timeout=300)
    return runs


@pytest.fixture(scope="session")
def undisturbed(runs: Runs) -> Path:
    """The run folder of 40 undisturbed iterations; read-only."""
    runs.train("undisturbed")
    return runs.dir("undisturbed")
