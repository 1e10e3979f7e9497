"""What happens around a backend's training: registering checkpoints, telling how the run ended."""

import errno
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from training_processes import tiny_config

from nano3.artifacts import store
from nano3.artifacts.names import MODEL
from nano3.training import rank_main
from nano3.training.rank_main import SaveRecorder, report_outcome
from nano3.training.reports.final_report import write_final_report
from nano3.training.run import record
from nano3.training.run.checkpoints import MARKER, CheckpointInfo, write_checkpoint_info
from nano3.training.run.outcome import Outcome
from nano3.utils.errors import UserError
from nano3.utils.files import read_json, write_json, write_text
from nano3.utils.records import read_values


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder as `freeze` leaves it, and an artifact store of this test's own."""
    monkeypatch.setenv("NANO3_HOME", str(tmp_path / "home"))
    data = {"reference": "DataBlendsArtifact-pretrain:v1", "folder": "/data", "fingerprint": "f" * 64}
    write_json(tmp_path / "run/starts/0001/start.json", {"data": data, "code": {"commit": None}})
    return tmp_path / "run"


def save(recorder: SaveRecorder, iteration: int, elapsed_s: float = 1.0, sha256: str = "") -> Path:
    """A checkpoint as a backend leaves it: transformers with the sum of each file, Megatron without."""
    folder = recorder.run_dir / "checkpoints" / f"iter_{iteration:07d}"
    info = CheckpointInfo(
        iteration, 0, 0, elapsed_s, 1, {}, {}, {"state.pt": {"bytes": 1, "sha256": sha256}} if sha256 else {}
    )
    write_json(folder / MARKER, asdict(info))
    recorder(iteration, folder)
    return folder


def test_a_checkpoint_is_registered_under_the_runs_name(run_dir: Path) -> None:
    folder = save(SaveRecorder(tiny_config(), run_dir), 4)
    assert store.resolve(f"{MODEL}:tiny").path == str(folder)
    assert read_values(run_dir / "progress.json", "") == {"iteration": 4, "checkpoint": str(folder)}


@pytest.mark.parametrize(
    ("again", "versions"),
    [
        pytest.param({"sha256": "a"}, [1], id="the same"),
        pytest.param({"sha256": "a", "elapsed_s": 9.0}, [1], id="the same weights"),
        pytest.param({"sha256": "b"}, [1, 2], id="trained again"),
        pytest.param({"elapsed_s": 9.0}, [1, 2], id="trained again with Megatron"),
    ],
)
def test_other_weights_in_the_same_folder_are_a_new_version(run_dir: Path, again: dict, versions: list[int]) -> None:
    recorder = SaveRecorder(tiny_config(), run_dir)
    save(recorder, 4, **({"sha256": "a"} if "sha256" in again else {}))
    save(recorder, 4, **again)
    assert store.versions(MODEL) == versions
    assert store.resolve(f"{MODEL}:latest").version == store.resolve(f"{MODEL}:tiny").version


def finished_run(run_dir: Path, with_checkpoint: bool) -> Path:
    """Write the configuration of a run that has finished, and return its path."""
    folder = run_dir / "checkpoints" / "iter_0000012"
    if with_checkpoint:
        folder.mkdir(parents=True)
        write_checkpoint_info(folder, CheckpointInfo(12, 0, 0, 1.0, 1, {}, {}))
    write_json(run_dir / "finished.json", {"iteration": 12, "checkpoint": str(folder)})
    values = {
        "run.data": "/data",
        "run.output_dir": str(run_dir),
        "recipe.per_split_data_args_path": "/data/blend.json",
    }
    config = tiny_config(**values)
    write_text(run_dir / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(config)))
    return run_dir / "config.yaml"


@pytest.mark.parametrize("there", [True, False], ids=["checkpoint there", "checkpoint removed"])
def test_only_a_finished_run_never_trains(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], there: bool
) -> None:
    trained: list[Path] = []
    monkeypatch.setattr("nano3.training.rank_main.train", lambda config, run_dir: trained.append(run_dir) or 75)
    assert rank_main.main(str(finished_run(run_dir, there))) == (0 if there else 75)
    assert trained == ([] if there else [run_dir])
    assert ("already finished: iteration 12 is in" in capsys.readouterr().out) is there


def test_a_run_whose_last_checkpoint_is_gone_is_saved_again(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished_run(run_dir, with_checkpoint=False)
    data = record.DataReference(**read_json(run_dir / "starts/0001/start.json")["data"])
    config = record.load_run_config(run_dir / "config.yaml")
    record.save_run_config(run_dir, config, data, [])
    assert not (run_dir / "finished.json").exists()
    assert len(list((run_dir / "starts").iterdir())) == 2
    assert "iter_0000012, the last checkpoint of" in capsys.readouterr().out
    finished_run(run_dir, with_checkpoint=True)
    record.save_run_config(run_dir, config, data, [])
    assert len(list((run_dir / "starts").iterdir())) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run:\n  name: a\n bad: [", "damaged"),
        ("run:\n  nmae: a\n", "is not a configuration of this version of nano3"),
        ("train:\n  train_iters: many\n", "is not a configuration of this version of nano3"),
        (None, "there is no such file"),
    ],
    ids=["no YAML", "unknown key", "wrong type", "missing"],
)
def test_a_broken_configuration_is_reported_with_its_file(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        record.load_run_config(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name", ["my run", "lr=1e-3", "a/b", "latest", "v7", "日本"])
def test_no_name_ends_a_run_at_its_first_checkpoint(run_dir: Path, name: str) -> None:
    """Preflight refuses these; a run folder of an older version may still hold one."""
    folder = save(SaveRecorder(tiny_config(**{"run.name": name}), run_dir), 4)
    assert store.resolve(MODEL).path == str(folder)


def test_a_failing_registry_is_logged_once_and_training_continues(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NANO3_HOME", str(run_dir / "a file"))
    (run_dir / "a file").write_text("where the store should be")
    recorder = SaveRecorder(tiny_config(), run_dir)
    save(recorder, 4)
    save(recorder, 8)
    message = capsys.readouterr().err
    assert message.count("could not be registered") == 1
    assert "iter_0000004" in message and "Training continues" in " ".join(message.split())
    assert read_json(run_dir / "progress.json")["iteration"] == 8


def test_a_full_disk_under_the_progress_file_does_not_end_the_run(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, values: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(rank_main, "write_record", full)
        folder = save(SaveRecorder(tiny_config(), run_dir), 4)
    assert f"progress.json: no space left on the device. Training continues; {folder}" in capsys.readouterr().err
    assert store.resolve(f"{MODEL}:tiny").path == str(folder)


def test_a_progress_file_that_cannot_be_written_is_an_error(run_dir: Path) -> None:
    """Only registering may fail: what a launcher watches may not."""
    (run_dir / "progress.json").mkdir()
    with pytest.raises(OSError):
        save(SaveRecorder(tiny_config(), run_dir), 4)


def test_a_run_shorter_than_its_log_interval_is_finished(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No training line was written: there is no summary, and the run is finished all the same."""
    report_outcome(tiny_config(), run_dir, Outcome("finished", 3, run_dir / "checkpoints/iter_0000003"), complete=True)
    assert read_json(run_dir / "finished.json")["iteration"] == 3
    message = " ".join(capsys.readouterr().err.split())
    assert "no summary: " in message and "has no training lines yet" in message and "no loss.png: " in message


def test_without_matplotlib_the_table_is_shown(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The extra `megatron` does not bring it."""
    line = '{"iteration": 1, "loss": 2.0, "lr": 0.1, "consumed_tokens": 10, "tokens_per_s": 5.0}\n'
    (run_dir / "metrics.jsonl").write_text(line)
    for name in [name for name in sys.modules if name.startswith("matplotlib")] + ["matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    write_final_report(tiny_config(), run_dir)
    out, err = capsys.readouterr()
    assert "training loss" in out and "loss curve" not in out
    assert "no loss.png: matplotlib" in err


def test_a_broken_library_for_plots_does_not_end_a_finished_run(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after an update of the system's libraries."""
    line = '{"iteration": 1, "loss": 2.0, "lr": 0.1, "consumed_tokens": 10, "tokens_per_s": 5.0}\n'
    (run_dir / "metrics.jsonl").write_text(line)
    (tmp_path / "matplotlib.py").write_text("raise ImportError('libfreetype.so.6: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    write_final_report(tiny_config(), run_dir)
    message = " ".join(capsys.readouterr().err.split())
    assert "no loss.png: ImportError: libfreetype.so.6: cannot open shared object file." in message


@pytest.mark.parametrize(("code", "expected"), [(0, RuntimeError), (None, RuntimeError), (75, SystemExit)])
def test_a_library_that_exits_does_not_finish_a_run(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, code: int | None, expected: type[BaseException]
) -> None:
    def exits(*_: object, **__: object) -> None:
        raise SystemExit(code)

    monkeypatch.setattr("nano3.training.hf.backend.train", exits)
    with pytest.raises(expected):
        rank_main.train(tiny_config(**{"run.data": "/data", "run.output_dir": str(run_dir)}), run_dir)
    assert not (run_dir / "finished.json").exists()


def test_a_run_without_checkpoints_says_so(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As one that warms the kernel cache: checkpoint.save_interval=0."""
    report_outcome(tiny_config(), run_dir, Outcome("stopped", 2, None, "train.exit_iteration=2"), complete=True)
    assert read_values(run_dir / "finished.json", "") == {"iteration": 2, "checkpoint": None}
    assert "no checkpoint was saved" in capsys.readouterr().out


def test_a_summary_of_nothing_is_still_an_error_for_who_asks(run_dir: Path) -> None:
    from nano3.training.reports.summary import summarize

    with pytest.raises(UserError, match="no training lines yet"):
        summarize(run_dir)
