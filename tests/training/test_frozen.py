"""What happens around a backend's training: registering checkpoints, telling how the run ended."""

import sys
from pathlib import Path

import pytest
from training_processes import tiny_config

from nano3.artifacts import store
from nano3.errors import UserError
from nano3.files import read_json, write_json
from nano3.training.conclude import conclude
from nano3.training.frozen import MODEL_ARTIFACT, SaveRecorder, tell
from nano3.training.outcome import Outcome


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder as `freeze` leaves it, and an artifact store of this test's own."""
    monkeypatch.setenv("NANO3_HOME", str(tmp_path / "home"))
    data = {"reference": "DataBlendsArtifact-pretrain:v1", "folder": "/data", "fingerprint": "f" * 64}
    write_json(tmp_path / "run/starts/0001/start.json", {"data": data, "code": {"commit": None}})
    return tmp_path / "run"


def save(recorder: SaveRecorder, iteration: int) -> Path:
    folder = recorder.run_dir / "checkpoints" / f"iter_{iteration:07d}"
    folder.mkdir(parents=True)
    recorder(iteration, folder)
    return folder


def test_a_checkpoint_is_registered_under_the_runs_name(run_dir: Path) -> None:
    folder = save(SaveRecorder(tiny_config(), run_dir), 4)
    assert store.resolve(f"{MODEL_ARTIFACT}:tiny").path == str(folder)
    assert read_json(run_dir / "progress.json") == {"iteration": 4, "checkpoint": str(folder)}


@pytest.mark.parametrize("name", ["my run", "lr=1e-3", "a/b", "latest", "v7", "日本"])
def test_no_name_ends_a_run_at_its_first_checkpoint(run_dir: Path, name: str) -> None:
    """Preflight refuses these; a run folder of an older version may still hold one."""
    folder = save(SaveRecorder(tiny_config(**{"run.name": name}), run_dir), 4)
    assert store.resolve(MODEL_ARTIFACT).path == str(folder)


def test_a_registry_that_fails_is_told_once_and_training_goes_on(run_dir: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("NANO3_HOME", str(run_dir / "a file"))
    (run_dir / "a file").write_text("where the store should be")
    recorder = SaveRecorder(tiny_config(), run_dir)
    save(recorder, 4)
    save(recorder, 8)
    told = capsys.readouterr().err
    assert told.count("could not be registered") == 1
    assert "iter_0000004" in told and "Training goes on" in " ".join(told.split())
    assert read_json(run_dir / "progress.json")["iteration"] == 8


def test_a_progress_file_that_cannot_be_written_is_an_error(run_dir: Path) -> None:
    """Only registering may fail: what a launcher watches may not."""
    (run_dir / "progress.json").mkdir()
    with pytest.raises(OSError):
        save(SaveRecorder(tiny_config(), run_dir), 4)


def test_a_run_shorter_than_its_log_interval_is_finished(run_dir: Path, capsys) -> None:
    """No training line was written: there is no summary, and the run is finished all the same."""
    tell(tiny_config(), run_dir, Outcome("finished", 3, run_dir / "checkpoints/iter_0000003"), as_asked=True)
    assert read_json(run_dir / "finished.json")["iteration"] == 3
    told = " ".join(capsys.readouterr().err.split())
    assert "no summary: " in told and "has no training lines yet" in told and "no loss.png: " in told


def test_without_matplotlib_the_table_is_shown(run_dir: Path, monkeypatch, capsys) -> None:
    """The extra `megatron` does not bring it."""
    line = '{"iteration": 1, "loss": 2.0, "lr": 0.1, "consumed_tokens": 10, "tokens_per_s": 5.0}\n'
    (run_dir / "metrics.jsonl").write_text(line)
    for name in [name for name in sys.modules if name.startswith("matplotlib")] + ["matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    conclude(tiny_config(), run_dir)
    out, err = capsys.readouterr()
    assert "training loss" in out and "loss curve" not in out
    assert "no loss.png: matplotlib" in err


def test_a_run_without_checkpoints_says_so(run_dir: Path, capsys) -> None:
    """As one that warms the kernel cache: checkpoint.save_interval=0."""
    tell(tiny_config(), run_dir, Outcome("stopped", 2, None, "train.exit_iteration=2"), as_asked=True)
    assert read_json(run_dir / "finished.json") == {"iteration": 2, "checkpoint": None}
    assert "no checkpoint was saved" in capsys.readouterr().out


def test_a_summary_of_nothing_is_still_an_error_for_who_asks(run_dir: Path) -> None:
    from nano3.training.summary import summarize

    with pytest.raises(UserError, match="no training lines yet"):
        summarize(run_dir)
