"""Weights & Biases as a mirror: what an offline run's file holds, and references that only W&B knows."""

import json
import re
import socket
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import SMALL, Commands
from omegaconf import OmegaConf
from wandb_file import records

from nano3.artifacts import store, wandb_mirror
from nano3.artifacts.resolver import register_resolver, resolve_reference
from nano3.config import PretrainConfig
from nano3.training.run.lineage import model_alias
from nano3.training.run.metrics import Metrics
from nano3.utils.errors import UserError
from nano3.utils.files import write_json
from nano3.utils.provenance import install_command

DATA, MODEL = "DataBlendsArtifact-pretrain", "ModelArtifact-pretrain"


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    return Commands(tmp_path_factory.mktemp("wandb"))


@pytest.fixture(scope="module")
def data(cli: Commands) -> Path:
    words = ["data_blend=sample", "output_dir=data", "workers=1", "wandb.mode=offline", "job_dir=jobs"]
    for _ in range(2):  # the second has nothing to do, and leaves no second W&B run
        cli("-m", "nano3.data_prep", *words)
    return cli.folder / "data"


@pytest.fixture(scope="module")
def run(cli: Commands, data: Path) -> Path:
    cli("-m", "nano3.pretrain", *SMALL, "run.name=one", "run.wandb.mode=offline", "+cluster.env.NCCL_DEBUG=INFO")
    return cli.run_dir("one")


def found(folder: Path, kind: str) -> list:
    return [getattr(r, kind) for r in records(folder) if r.WhichOneof("record_type") == kind]


def test_prepared_data_is_an_artifact_by_reference(cli: Commands, data: Path) -> None:
    (artifact,) = found(cli.folder / "jobs/prep-sample", "artifact")
    assert (artifact.name, artifact.type, set(artifact.aliases)) == (DATA, "dataset", {"sample", "latest"})
    assert json.loads(artifact.metadata)["local"] == f"{DATA}:v1"
    entries = {entry.path: entry for entry in artifact.manifest.contents}
    assert entries["train/data_00000.bin"].ref == f"file://{data}/train/data_00000.bin"
    assert not any(entry.local_path for entry in entries.values())  # nothing to upload
    assert not any(path.startswith(".prep") for path in entries)


@pytest.mark.slow
def test_a_run_has_metrics_its_data_and_its_checkpoints(cli: Commands, run: Path) -> None:
    history = [{i.key or i.nested_key[0]: json.loads(i.value_json) for i in h.item} for h in found(run, "history")]
    assert [h["iteration"] for h in history if "loss" in h] == [1, 2, 3, 4, 5, 6]
    assert any("valid_loss/math" in h for h in history)
    used, *saved = found(run, "artifact")
    assert (used.name, used.use_after_commit) == (DATA, True)
    assert [(a.name, a.type, set(a.aliases)) for a in saved] == [(MODEL, "model", {"latest", "one"})] * 2
    assert [json.loads(a.metadata)["iteration"] for a in saved] == [3, 6]
    assert json.loads(saved[0].metadata)["inputs"] == [f"{DATA}:v1"]
    # The mirror's data is the very artifact that data_prep recorded.
    (prepared,) = found(cli.folder / "jobs/prep-sample", "artifact")
    assert used.digest == prepared.digest


def test_a_point_of_a_sweep_is_named_and_secrets_stay_here(tmp_path: Path) -> None:
    start = {"label": "optimizer.lr=0.001", "data": {"reference": "d", "folder": "d", "fingerprint": "p"}, "code": {}}
    write_json(tmp_path / "starts/0001/start.json", start)
    config = PretrainConfig()
    config.run.name, config.run.wandb.mode = "sweep", "offline"
    config.cluster.env = {"HF_TOKEN": "hf_abc", "NCCL_DEBUG": "INFO"}
    metrics = object.__new__(Metrics)
    metrics.run_dir = tmp_path
    metrics._open_wandb(config).finish()
    (run,) = found(tmp_path, "run")
    assert (run.display_name, run.run_group) == ("sweep optimizer.lr=0.001", "sweep")
    assert "NCCL_DEBUG" in str(run.config)
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"hf_abc" not in file.read_bytes()
    assert model_alias(config, start) == "sweep-optimizer.lr-0.001"


def test_new_weights_are_a_new_artifact_there_too(tmp_path: Path) -> None:
    (tmp_path / "blend.json").write_text("1")
    artifact = store.Artifact(DATA, 1, str(tmp_path), "a")
    before = wandb_mirror._mirror(artifact).digest
    assert wandb_mirror._mirror(artifact).digest == before
    (tmp_path / "blend.json").write_text("2")
    assert wandb_mirror._mirror(artifact).digest != before


@pytest.mark.parametrize("error", [RuntimeError("the service is down"), SystemExit(-9)], ids=["error", "exit"])
def test_a_failure_of_wandb_is_a_warning(error: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    with wandb_mirror.log_failures("recording a"):
        raise error
    assert f"warning: W&B: recording a failed; continuing without it: {error}" in capsys.readouterr().err


def test_a_server_of_another_protocol_is_out_of_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
                connection.recv(1000)

        thread = threading.Thread(target=greet)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert wandb_mirror.connection_problem(url) == f"{url} answers, but not as a web server does (BadStatusLine)"
        thread.join()


@pytest.mark.slow
def test_training_goes_on_offline_when_the_server_is_out_of_reach(cli: Commands, data: Path) -> None:
    done = cli(
        "-m", "nano3.pretrain", *SMALL, "run.name=alone", "run.wandb.mode=online", WANDB_API_KEY="x",
        WANDB_BASE_URL="http://127.0.0.1:9",
    )  # fmt: skip
    assert "warning: W&B: http://127.0.0.1:9 cannot be reached" in done.stderr
    assert f"wandb sync {cli.run_dir('alone')}/wandb/offline-run-" in done.stderr
    assert (cli.run_dir("alone") / "finished.json").exists()
    lines = found(cli.run_dir("alone"), "history")
    history = [{i.key or i.nested_key[0]: json.loads(i.value_json) for i in line.item} for line in lines]
    assert [h["iteration"] for h in history if "loss" in h] == [1, 2, 3, 4, 5, 6]
    assert len(found(cli.run_dir("alone"), "artifact")) == 3


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """W&B knows one artifact, at a folder; gives the references it was asked for."""
    asked: list[str] = []

    def artifact(reference: str) -> SimpleNamespace:
        asked.append(reference)
        if "math" not in reference:
            raise ValueError("artifact not found")
        return SimpleNamespace(metadata={"path": str(tmp_path / "there")}, qualified_name=f"me/mine/{DATA}:v4")

    monkeypatch.setenv("NANO3_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(wandb_mirror, "connection_problem", lambda url: None)
    monkeypatch.setattr("wandb.Api", lambda: SimpleNamespace(artifact=artifact))
    wandb_mirror.find_remote.cache_clear()
    return asked


ONLINE = wandb_mirror.WandbSettings("online", "mine", "me")


def test_the_local_store_comes_first(service: list[str], tmp_path: Path) -> None:
    store.register(DATA, tmp_path, "a", alias="math")
    assert resolve_reference(f"{DATA}:math", ONLINE).reference == f"{DATA}:v1"
    assert service == []


def test_a_server_out_of_reach_is_named_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NANO3_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    wandb_mirror.find_remote.cache_clear()
    with pytest.raises(UserError, match=r"W&B is out of reach: http://127.0.0.1:9 cannot be reached"):
        resolve_reference(f"{DATA}:math", ONLINE)


def test_then_wandb(service: list[str], tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    register_resolver()
    run = {"data": f"{DATA}:math", "wandb": vars(ONLINE)}
    cfg = OmegaConf.create({"run": run, "path": "${art:data,path}", "version": "${art:data,version}"})
    assert (cfg.path, cfg.version) == (str(tmp_path / "there"), 4)
    assert service == [f"me/mine/{DATA}:math"]


@pytest.mark.parametrize(
    ("tag", "mode", "told"),
    [
        ("math", "online", "does not exist on this machine.*run.data=DIR"),
        ("mth", "online", "W&B did not return it from me/mine: artifact not found"),
        ("math", "offline", "run.wandb.mode=offline cannot look it up in W&B"),
        ("math", "disabled", "The store is empty"),
    ],
)
def test_references_that_nobody_has(service: list[str], tag: str, mode: str, told: str) -> None:
    with pytest.raises(UserError, match=f"(?s){told}"):
        resolve_reference(f"{DATA}:{tag}", wandb_mirror.WandbSettings(mode, "mine", "me"))


def test_not_logged_in(service: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb as package

    def api() -> None:
        raise package.errors.UsageError("No API key configured.")

    monkeypatch.setattr(package, "Api", api)
    with pytest.raises(UserError, match="log in with `wandb login`"):
        resolve_reference(f"{DATA}:math", ONLINE)


def test_without_the_package(service: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=re.escape(install_command("wandb"))):
        resolve_reference(f"{DATA}:math", ONLINE)


def test_modes_are_checked_before() -> None:
    assert wandb_mirror.settings_problems(wandb_mirror.WandbSettings("on"), "wandb.mode")
    assert wandb_mirror.settings_problems(wandb_mirror.WandbSettings("offline"), "wandb.mode") == []
