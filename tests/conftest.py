"""Spare the garbage collector, import submitit early, keep the user's cache, heed Ctrl-C, allow slow property tests."""

import contextlib
import gc
import os
import signal
import tempfile
from pathlib import Path

import pytest

# Thousands of tests and torch are objects that stay: the collector need not visit them again and again.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


# Tokenizers that passed the engine check, and compiled kernels: shared by this session's processes, unless you set it.
if "NANO3_CACHE" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="nano3-cache-", ignore_cleanup_errors=True)  # removed at exit
    os.environ["NANO3_CACHE"] = _CACHE.name

# A shell without job control starts background processes with SIGINT ignored, and nohup those with SIGHUP ignored. The
# tests' own processes would inherit that: those that are interrupted would run on.
for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, default)

# Importing submitit reconfigures logging, which closes existing handlers. absl's handler (imported by Megatron)
# closes its stream too: inside a test with `capfd` that was pytest's own, and every later test in the process failed.
with contextlib.suppress(ImportError):
    import submitit  # noqa: F401

with contextlib.suppress(ImportError):  # a GPU machine may lack it, and its tests do not need it
    from hypothesis import HealthCheck, settings

    settings.register_profile("any speed", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any speed")


@pytest.fixture
def srun_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An `srun` that does nothing: without any, submitit writes no job script on a machine that has no Slurm."""
    folder = tmp_path / "slurm-bin"
    folder.mkdir()
    (folder / "srun").write_text("#!/bin/sh\n")
    (folder / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
