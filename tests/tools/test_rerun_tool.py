"""nano3 rerun: a run from the record of another is the same run under another name."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from nano3.data.dataset.checksum import Checksum
from nano3.tools import rerun
from nano3.training.run.metrics import read_metrics
from nano3.training.run.skips import BY_USER, ROLLED_BACK, SkippedRange, SkipRecord
from nano3.utils.records import CHECKSUM, DamagedRecordError

ROOT = Path(__file__).parents[2]
SHORT = [
    "+experiment=quickstart", "train.train_iters=3", "train.seq_length=64", "train.eval_interval=0",
    "scheduler.lr_warmup_iters=1", "scheduler.lr_wsd_decay_iters=1", "logger.log_interval=1",
    "logger.sample_prompts=[]", "optimizer.lr=0.002",
]  # fmt: skip


def call(folder: Path, *words: str) -> tuple[int, str, str]:
    """Run a Python module in a folder; return exit code, output and errors."""
    env = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", *words], cwd=folder, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prepared data and a run `short` that has a saved configuration but no training."""
    folder = tmp_path_factory.mktemp("rerun")
    assert call(folder, "nano3.data_prep", "data_blend=sample", "output_dir=data", "sample=60", "workers=1")[0] == 0
    program = f"""
from nano3.cli.app import register_config, to_typed_config
from nano3.cli.config_groups import conf_dir
from hydra import compose, initialize_config_dir
from pathlib import Path
from nano3.pretrain import absolute_path, resolve_data, resolve_paths
from nano3.training.run.record import save_run_config
register_config()
words = {[*SHORT, "run.data=data", "run.name=short", "cluster.env.EXTRA=yes"]!r}
words[-1] = "+" + words[-1]
with initialize_config_dir(conf_dir(), version_base="1.3"):
    cfg = compose("pretrain", words)
run_dir, data = absolute_path(cfg.run.output_dir), resolve_data(cfg)
save_run_config(run_dir, resolve_paths(to_typed_config(cfg), data, run_dir), data, words)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def printed_config(output: str) -> dict[str, Any]:
    """Return the configuration that a dry run prints."""
    text = output[re.search(r"^run:", output, re.MULTILINE).start() :]  # type: ignore[union-attr]
    lines = [line for line in text.splitlines() if line.startswith(" ") or re.match(r"[a-z_]+:|- ", line)]
    return yaml.safe_load("\n".join(lines))


def record(project: Path) -> dict[str, Any]:
    """Return the recorded configuration of `short`."""
    return yaml.safe_load((project / "output/nano3/runs/short/config.yaml").read_text())


def test_a_dry_run_shows_the_same_configuration(project: Path) -> None:
    code, output, errors = call(project, "nano3", "rerun", "short", "dry_run=true")
    assert code == 0, errors
    config, recorded = printed_config(output), record(project)
    new = project / "output/nano3/runs/short-again"
    assert config["run"].pop("name") == "short-again" and recorded["run"].pop("name") == "short"
    assert config["run"].pop("output_dir") == str(new) and recorded["run"].pop("output_dir")
    assert config["checkpoint"].pop("save") == str(new / "checkpoints") and recorded["checkpoint"].pop("save")
    assert config["checkpoint"].pop("load") == str(new / "checkpoints") and recorded["checkpoint"].pop("load")
    assert config.pop("dry_run") is True and recorded.pop("dry_run") is False
    assert config == recorded
    assert not new.exists()


def test_overrides_and_a_name(project: Path) -> None:
    words = ["run.name=other", "optimizer.lr=0.5", "train.seq_length=32", "dry_run=true"]
    code, output, errors = call(project, "nano3", "rerun", "short", *words)
    assert code == 0, errors
    config = printed_config(output)
    assert (config["run"]["name"], config["optimizer"]["lr"], config["train"]["seq_length"]) == ("other", 0.5, 32)
    assert config["train"]["train_iters"] == 3


def test_a_chosen_group_replaces_the_recorded_one(project: Path) -> None:
    assert record(project)["cluster"]["env"] == {"EXTRA": "yes"}
    code, output, errors = call(project, "nano3", "rerun", "short", "cluster=local", "dry_run=true")
    assert code == 0, errors
    assert printed_config(output)["cluster"]["env"] == {}


CONFIG = {
    "run": {"name": "a", "output_dir": "/runs/a", "data": "/d", "env": {"container": None}},
    "checkpoint": {"save": "/runs/a/checkpoints", "load": "/runs/a/checkpoints", "save_interval": 5},
    "logger": {"tensorboard_dir": "/runs/a/board", "log_interval": 1},
    "train": {"seed": 3},
    "cluster": {"kind": "slurm"},
    "backend": "transformers",
    "dry_run": False,
}


def test_folders_of_the_old_run_are_dropped() -> None:
    inherited = rerun.inherited_config(CONFIG, Path("/runs/a"), [])
    assert inherited == {
        "run": {"data": "/d", "env": {"container": None}},
        "checkpoint": {"save_interval": 5},
        "logger": {"log_interval": 1},
        "train": {"seed": 3},
        "cluster": {"kind": "slurm"},
        "backend": "transformers",
    }
    assert CONFIG["run"]["name"] == "a"  # type: ignore[index]


def test_folders_elsewhere_are_inherited() -> None:
    config = {**CONFIG, "logger": {"tensorboard_dir": "/boards"}}
    config["checkpoint"] = {"save": "/runs/a/checkpoints", "load": "/runs/other/checkpoints"}
    inherited = rerun.inherited_config(config, Path("/runs/a"), [])
    assert inherited["checkpoint"] == {"load": "/runs/other/checkpoints"}
    assert inherited["logger"] == {"tensorboard_dir": "/boards"}


@pytest.mark.parametrize(
    ("changes", "gone"),
    [(["cluster=local"], "cluster"), (["train=phase1", "optimizer.lr=1"], None), (["train.seed=4"], None)],
)
def test_chosen_groups_are_dropped(changes: list[str], gone: str | None) -> None:
    inherited = rerun.inherited_config(CONFIG, Path("/runs/a"), changes)
    assert set(CONFIG) - set(inherited) == {"dry_run", gone} - {None}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["nowhere"], "There is no run 'nowhere'", id="no run"),
        pytest.param(["short", "optimizer.lr"], "optimizer.lr: expected KEY=VALUE", id="no value"),
        pytest.param(["short", "ladder.size=1m"], "To derive them again, add model=ladder train=ladder", id="ladder"),
        pytest.param(["short", "run.name=a/../b", "dry_run=true"], "run.name", id="name"),
        pytest.param(["short", "optimizer.lrr=1", "dry_run=true"], "optimizer.lr", id="typo"),
    ],
)
def test_wrong_arguments(project: Path, words: list[str], message: str) -> None:
    code, _, errors = call(project, "nano3", "rerun", *words)
    assert code == 2 and message in errors and "Traceback" not in errors


def accept_edit(path: Path, text: str) -> None:
    """Write an edited record without its checksum, as anybody can."""
    if path.suffix == ".json":
        text = json.dumps({key: value for key, value in json.loads(text).items() if key != CHECKSUM})
    else:
        text = text.partition("\n")[2]
    path.write_text(text)


def test_data_that_was_prepared_again(project: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    subprocess.run(["cp", "-r", str(project / "output/nano3/runs/short"), str(folder)], check=True)
    path = folder / "starts" / "0001" / "start.json"
    started = json.loads(path.read_text())
    started["data"]["fingerprint"] = "other"
    accept_edit(path, json.dumps(started))
    code, _, errors = call(project, "nano3", "rerun", str(folder), "dry_run=true")
    assert code == 1 and "It has been prepared again since." in errors


def test_other_code_is_reported_with_commands_to_restore_it(project: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    subprocess.run(["cp", "-r", str(project / "output/nano3/runs/short"), str(folder)], check=True)
    path = folder / "starts" / "0001" / "start.json"
    started = json.loads(path.read_text())
    started["code"]["commit"] = "abc123"
    started["code"]["diff_xxh128"] = Checksum(b"diff --git a b\n").hexdigest()
    accept_edit(path, json.dumps(started))
    (path.parent / "code.diff").write_text("diff --git a b\n")
    code, _, errors = call(project, "nano3", "rerun", str(folder), "dry_run=true")
    warning = " ".join(errors.split())
    assert code == 0 and "It was at abc123 with changes" in warning
    assert f"checkout abc123 && git -C {ROOT} apply {path.parent}/code.diff" in warning


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("Data:v3", "Data:v3"),
        ("data", "/abs/data"),
        ("/abs/data", "/abs/data"),
        ("../a:b/data", "/abs/data"),
        (None, "/abs/data"),
    ],
)
def test_data_keeps_its_artifact_version(reference: str | None, name: str) -> None:
    assert rerun.data_reference(reference, "/abs/data") == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "it is empty", id="empty"),
        pytest.param("a: [", "while parsing a flow node", id="truncated"),
        pytest.param("---\n- 1", "it holds no mapping", id="list"),
        pytest.param("{}", "it has no 'run'", id="no keys"),
        pytest.param("run: {}", "it has no 'data'", id="no data"),
    ],
)
def test_a_damaged_record_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(DamagedRecordError, match=rf"config\.yaml: damaged \({message}"):
        rerun.load_recorded_config(tmp_path / "config.yaml")


@pytest.mark.slow
def test_the_same_losses(project: Path) -> None:
    """A rerun reproduces the losses to the last bit."""
    words = [*SHORT, "run.data=data", "train.threads=1"]
    assert call(project, "nano3.pretrain", *words, "run.name=first")[0] == 0
    code, output, errors = call(project, "nano3", "rerun", "first")
    assert code == 0, errors
    assert "starting like output/nano3/runs/first (0001), with run.name='first-again'" in output
    runs = [read_metrics(project / "output/nano3/runs" / name) for name in ("first", "first-again")]
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in runs]
    assert len(losses[0]) == 3 and losses[0] == losses[1]
    code, output, _ = call(project, "nano3", "diff", "first", "first-again")
    assert code == 0 and "configuration: 1 different" in output and "the same: code, packages" in output


TAMPERED = {
    "environment": ("config.yaml", "name: short", "name: ${oc.env:WANDB_API_KEY}", "run.name would be resolved"),
    "in a list": (
        "config.yaml",
        "sample_prompts: []",
        "sample_prompts: ['a ${oc.env:WANDB_API_KEY}']",
        "sample_prompts",
    ),
    "escaped twice": ("config.yaml", "name: short", r"name: \\${oc.env:WANDB_API_KEY}", "run.name would be resolved"),
    "hydra": ("config.yaml", "run:\n", "hydra: {run: {dir: x}}\nrun:\n", "unknown sections: hydra"),
    "defaults": ("config.yaml", "run:\n", "defaults: [/cluster: slurm]\nrun:\n", "unknown sections: defaults"),
    "reference": ("start.json", '"reference": "data"', '"reference": "${oc.env:WANDB_API_KEY}"', "no artifact"),
}


@pytest.mark.parametrize(("file", "old", "new", "message"), TAMPERED.values(), ids=TAMPERED)
def test_a_record_of_somebody_else_resolves_nothing(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, old: str, new: str, message: str
) -> None:
    folder = tmp_path / "run"
    subprocess.run(["cp", "-r", str(project / "output/nano3/runs/short"), str(folder)], check=True)
    record = folder / "starts" / "0001" / file
    assert old in record.read_text()
    accept_edit(record, record.read_text().replace(old, new, 1))
    env = {"PATH": "/usr/bin:/bin", "HOME": str(project), "PYTHONPATH": str(ROOT), "WANDB_API_KEY": "s3cr3t"}
    words = [sys.executable, "-m", "nano3", "rerun", str(folder), "dry_run=true"]
    done = subprocess.run(words, cwd=project, env=env, capture_output=True, text=True)
    assert done.returncode in (1, 2) and message in done.stderr, done.stderr
    assert "s3cr3t" not in done.stdout + done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_nothing_stays_in_the_temporary_folder(project: Path, tmp_path: Path, number: signal.Signals) -> None:
    """A signal is left to the new run, which may have to save; the folder of its configuration is removed then."""
    words = [sys.executable, "-m", "nano3", "rerun", "short", "train.train_iters=100000", "run.name=endless"]
    env = {"PATH": "/usr/bin:/bin", "HOME": str(project), "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(words, cwd=project, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout and "starting like" in process.stdout.readline()
        assert "Preflight" in process.stdout.readline()
        assert any(tmp_path.glob("nano3-*"))
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
        process.communicate(timeout=100)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode in (75, 130, 143)
    assert list(tmp_path.glob("nano3-*")) == []


def test_a_sweep_leaves_nothing_in_the_temporary_folder(project: Path, tmp_path: Path) -> None:
    env = {"PATH": "/usr/bin:/bin", "HOME": str(project), "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    words = [sys.executable, "-m", "nano3.data_prep", "-m", "data_blend=sample", "seed=1,2", "dry_run=true"]
    subprocess.run(words, cwd=project, env=env, capture_output=True)
    assert list(tmp_path.glob("nano3-*")) == []


def test_a_rerun_leaves_out_what_the_run_has_left_out(tmp_path: Path) -> None:
    """By hand or by its guard; another data order has nothing to leave out."""
    SkipRecord((SkippedRange(5, 6, BY_USER), SkippedRange(9, 9, ROLLED_BACK))).write(tmp_path)
    for changes, expected in (([], [[5, 6], [9, 9]]), (["optimizer.lr=1"], [[5, 6], [9, 9]]), (["train.seed=2"], [])):
        config: dict[str, Any] = {"train": {"skip_iterations": []}}
        rerun.leave_out_the_same(config, tmp_path, changes)
        assert config["train"]["skip_iterations"] == expected
