"""The folders that a run and a preparation read and write, for container mounts."""

from pathlib import Path

import pytest

from nano3.config import PrepOptions, PretrainConfig, SourceConfig
from nano3.prep.validate import container_folders
from nano3.training.checks import run_folders


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("NANO3_CACHE", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "HF_HOME", "HF_HUB_CACHE", "NANO3_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")


def test_what_a_run_reads_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = PretrainConfig(megatron={"checkpoint": {"pretrained_checkpoint": "weights"}})
    config.run.data, config.checkpoint.save, config.checkpoint.load = "/lustre/data", "/lustre/save", "/old/run"
    assert run_folders.folders_read(config) == ["/lustre/data", "/old/run", f"{tmp_path}/weights"]
    assert run_folders.folders_written(config) == ["/lustre/save", f"{tmp_path}/artifacts", "/home/me/.cache/nano3"]
    monkeypatch.setenv("NANO3_CACHE", "/lustre/cache")
    monkeypatch.setenv("NANO3_HOME", "/lustre/artifacts")
    monkeypatch.setenv("HF_HOME", "~/hub")
    assert run_folders.folders_written(config)[1:] == ["/lustre/artifacts", "/lustre/cache", "/home/me/hub"]
    config.backend, config.checkpoint.save = "transformers", None
    monkeypatch.delenv("NANO3_CACHE")
    assert run_folders.folders_written(config) == ["/lustre/artifacts", "/home/me/hub"]


def test_what_a_preparation_reads_and_writes(tmp_path: Path) -> None:
    for name in ("raw", "one", "tokenizer"):
        (tmp_path / name).mkdir()
    paths = [
        f"{tmp_path}/raw/*/[ab].jsonl",
        f"{tmp_path}/one/file.txt",
        f"{tmp_path}/tokenizer",
        "hf://o/n",
        "s3://b/x",
    ]
    sources = [SourceConfig(name=str(i), path=path, weight=1) for i, path in enumerate(paths)]
    options = PrepOptions(output_dir="out", tokenizer_model="tokenizer")
    assert container_folders(options, sources) == tuple(
        f"{tmp_path}/{name}" for name in ("raw", "one", "tokenizer", "out", "artifacts")
    )
    assert f"{tmp_path}/nvidia" not in container_folders(PrepOptions(), sources), "a hub id is no folder"


def test_a_cache_that_is_filled_is_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streams, downloads = PrepOptions(), PrepOptions(hf_files="download")
    assert "/home/me/.cache/huggingface" in container_folders(downloads, [])
    assert "/home/me/.cache/huggingface" not in container_folders(streams, [])
    monkeypatch.setenv("HF_HUB_CACHE", "/lustre/hub")
    for options in (streams, downloads):
        assert "/lustre/hub" in container_folders(options, [])
        assert "/home/me/.cache/huggingface" not in container_folders(options, [])


@pytest.mark.parametrize(
    ("kind", "runtime", "expected"),
    [
        pytest.param("local", "none", ["checkpoint.save", "logger.tensorboard_dir"], id="here"),
        pytest.param("slurm", "none", [], id="the nodes may have it"),
        pytest.param("slurm", "pyxis", ["checkpoint.save", "logger.tensorboard_dir"], id="to be mounted"),
    ],
)
def test_folders_in_which_a_run_could_write_nothing(
    tmp_path: Path, kind: str, runtime: str, expected: list[str]
) -> None:
    config = PretrainConfig()
    config.run.output_dir = str(tmp_path / "run")
    config.checkpoint.save = config.logger.tensorboard_dir = "/proc/nope"
    config.cluster.kind, config.cluster.container_runtime = kind, runtime
    problems = run_folders.unwritable_problems(config)
    assert [p.partition("=")[0] for p in problems] == expected
    assert all("=/proc/nope: cannot be written: " in p and "Choose another " in p for p in problems)
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_is_a_file_is_reported_once(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    config = PretrainConfig()
    config.run.output_dir, config.checkpoint.save = str(tmp_path / "run"), str(tmp_path / "run/checkpoints")
    (problem,) = run_folders.unwritable_problems(config)
    assert problem.startswith(f"run.output_dir={tmp_path}/run: cannot be written: ") and "is a file" in problem
