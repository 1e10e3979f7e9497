"""A run before its first rank: checked as a whole, with its data resolved, and written only when it starts."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

import launch
from nano3.cli.app import register_config
from nano3.cli.config_groups import conf_dir
from nano3.data.dataset.manifest import load_manifest
from nano3.pretrain import absolute_path, find_data, make_job, pretrain, resolve_data, run_preflight, validate
from nano3.training.run.config_file import with_header
from nano3.training.run.record import load_run_config, read_latest_start
from nano3.utils.errors import UserError

Compose = Callable[..., DictConfig]


@pytest.fixture
def composed(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compose:
    """The quickstart on a slice of the bundled corpus, in a folder of this test's own, with what a test adds."""
    monkeypatch.setenv("NANO3_HOME", str(tmp_path / "store"))
    monkeypatch.delenv("NANO3_CONF", raising=False)
    monkeypatch.chdir(tmp_path)
    register_config()
    own = ["+experiment=quickstart", f"run.data={data}", "run.output_dir=run", "train.seq_length=32"]

    def call(*words: str) -> DictConfig:
        with initialize_config_dir(conf_dir(), version_base="1.3"):
            return compose("pretrain", [*own, *words])

    return call


def job(cfg: DictConfig, label: str = "") -> launch.Job:
    return make_job(cfg, absolute_path(cfg.run.output_dir) / label, label, overrides=["train.seq_length=32"])


def start(of: launch.Job) -> None:
    """What launch does before the first rank."""
    assert of.save_config is not None
    of.save_config()


def test_the_data_is_known_by_its_content(composed: Compose, data: Path) -> None:
    found = resolve_data(composed())
    assert (found.reference, found.folder) == (str(data), str(data))
    assert found.fingerprint == load_manifest(data).content
    with pytest.raises(UserError, match=r"run\.data=/nowhere: no such folder"):
        resolve_data(composed("run.data=/nowhere"))


def test_missing_data_hides_no_other_problem(composed: Compose, tmp_path: Path) -> None:
    """Also in the ranks of the user's torchrun, which make no job."""
    with pytest.raises(UserError, match=r"run\.data=/nowhere: no such folder") as error:
        find_data(composed("run.data=/nowhere", "optimizer.lr=-1"), tmp_path / "run", "")
    assert any("optimizer.lr=-1" in problem for problem in error.value.problems)


def test_making_a_job_writes_nothing(composed: Compose, tmp_path: Path) -> None:
    made = job(composed())
    assert sorted(tmp_path.iterdir()) == []
    assert made.args == (str(tmp_path / "run/config.yaml"),)
    assert made.folders[0] == composed().run.data and not made.changed


def test_what_is_shown_is_what_the_ranks_read(composed: Compose, tmp_path: Path) -> None:
    cfg, shown = composed("+cluster.env.A=7"), composed("+cluster.env.A=7", "dry_run=true")
    config, nothing = validate(cfg, resolve_data(cfg), tmp_path / "run")
    text = validate(shown, resolve_data(shown), tmp_path / "run")[1].replace("dry_run: true", "dry_run: false")
    assert nothing == "", "the text is made for a dry run only"
    start(job(cfg))
    assert (tmp_path / "run/config.yaml").read_text() == with_header(text)
    assert load_run_config(tmp_path / "run/config.yaml") == config
    assert "${" not in text, "nothing is left to be looked up on another machine"


def test_a_dollar_that_was_typed_as_text_reaches_the_ranks(composed: Compose, tmp_path: Path) -> None:
    start(job(composed("cluster=slurm", "cluster.ntasks_per_node=1", r"cluster.setup=['export A=\${HOME}/x']")))
    assert load_run_config(tmp_path / "run/config.yaml").cluster.setup == ["export A=${HOME}/x"]


def test_another_run_in_the_same_folder_is_noticed(composed: Compose, tmp_path: Path) -> None:
    start(job(composed()))
    assert not job(composed("+cluster.env.A=7")).changed
    assert job(composed("train.seed=7")).changed
    assert read_latest_start(tmp_path / "run")["overrides"] == ["train.seq_length=32"]


def test_a_point_of_a_sweep_has_its_own_folders(composed: Compose, tmp_path: Path) -> None:
    words = ["checkpoint.save=save", "logger.tensorboard_dir=board"]
    for label in ("seed=1", "seed=2"):
        start(job(composed(*words), label))
        config = load_run_config(tmp_path / "run" / label / "config.yaml")
        assert config.checkpoint.save == config.checkpoint.load == str(tmp_path / "save" / label)
        assert config.logger.tensorboard_dir == str(tmp_path / "board" / label)
        assert read_latest_start(tmp_path / "run" / label)["label"] == label


@pytest.mark.parametrize("runtime", ["none", "pyxis"])
def test_what_a_container_mounts_is_made_before_it_starts(composed: Compose, tmp_path: Path, runtime: str) -> None:
    """A mount of a folder that is not there ends the job; without a container the ranks make what they need."""
    words = [
        "cluster=slurm",
        f"cluster.container_runtime={runtime}",
        "run.env.container=image",
        "cluster.ntasks_per_node=1",
    ]
    start(job(composed(*words, "checkpoint.save=save")))
    assert (tmp_path / "save").is_dir() is (runtime == "pyxis")


def test_an_unknown_backend_is_the_only_problem(composed: Compose) -> None:
    """Which of the other keys are wrong depends on it."""
    with pytest.raises(UserError) as error:
        job(composed("backend=transfomers", "train.train_iters=0"))
    assert error.value.problems == ["backend=transfomers: no such backend. Did you mean 'transformers'?"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.train_iters=0", "optimizer.lr=-1", "run.name=v7"], ["train_iters=0 must", "optimizer.lr=-1", "v7"]),
        (["train.seq_length=10000000"], ["The train split of", "The valid split of"]),
        (["model.vocab_size=100"], ["model.vocab_size=100 is less than the data's vocabulary of 4096"]),
        (["run.output_dir=/dev/null/x"], ["run.output_dir=/dev/null/x: cannot be written: /dev/null is a file"]),
        (["checkpoint.load=/nowhere"], ["checkpoint.load=/nowhere"]),
        (["train.exit_iteration=99999"], ["train.exit_iteration=99999 is greater than train.train_iters="]),
        (["+megatron.model=x"], ["megatron: is used by backend=megatron only"]),
        (["+cluster.env.HF_TOKEN=abc"], ["cluster.env.HF_TOKEN: a secret"]),
        (["run.name="], ["run.name= is empty"]),
    ],
    ids=["values", "length", "vocabulary", "folder", "load", "exit", "megatron", "secret", "empty"],
)
def test_a_user_mistake_is_reported_before_anything_is_written(
    composed: Compose, tmp_path: Path, words: list[str], message: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        job(composed(*words))
    assert error.value.exit_code == 2
    for text in message:
        assert sum(text in problem for problem in error.value.problems) == 1, error.value.problems
    assert sorted(tmp_path.iterdir()) == []


LACKING = "needs nobody_has_this, not installed"


@pytest.mark.parametrize(
    ("words", "problem", "warning"),
    [
        (["cluster.kind=local"], f"{LACKING} in this Python: the remedy", ""),
        (["cluster.kind=local", "dry_run=true"], "", LACKING),
        (["cluster.kind=slurm"], f"{LACKING} where the ranks will run:\\n  this Python, ", ""),
        (["cluster.kind=slurm", "dry_run=true"], "", LACKING),
        (["cluster.kind=slurm", "cluster.setup=[module load torch]"], "", LACKING),
        (["cluster.kind=slurm", "cluster.container_runtime=pyxis", "run.env.container=i"], "", ""),
        (["cluster.kind=slurm", "cluster.python=/on/compute/nodes/only"], "", ""),
        (["cluster.kind=slurm", "run.env.container=i"], "run.env.container=i not used .*\n.*To use the image: ", ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_package_is_missed_where_the_ranks_will_run(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], problem: str, warning: str
) -> None:
    monkeypatch.setattr("nano3.training.hf.backend.PACKAGES", ("nobody_has_this",))
    monkeypatch.setattr("nano3.training.hf.backend.INSTALL", "the remedy")
    cfg = composed(*words)
    if problem:
        with pytest.raises(UserError, match=problem):
            validate(cfg, resolve_data(cfg), tmp_path / "run")
        return
    config, _ = validate(cfg, resolve_data(cfg), tmp_path / "run")
    rows = run_preflight(config).rows
    assert rows[0][0] == "ranks run in"
    assert [LACKING in text for name, text in rows if name == "warning" and "nobody" in text] == (
        [True] if warning else []
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["cluster.kind=slurm"], "this cluster profile submits to Slurm"),
        (["cluster.nproc_per_node=4"], "cluster.nproc_per_node=4 has no effect: torchrun has started 2 ranks"),
    ],
)
def test_torchrun_and_a_key_that_it_would_ignore(
    composed: Compose, monkeypatch: pytest.MonkeyPatch, words: list[str], says: str
) -> None:
    for key, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UserError, match=says):
        pretrain(composed(*words))


def test_the_vocabulary_of_data_that_is_being_prepared(composed: Compose, tmp_path: Path) -> None:
    cfg = composed()
    config, _ = validate(cfg, resolve_data(cfg), tmp_path / "run")
    rows = dict(run_preflight(config, vocab_size=777).rows)
    assert "(vocabulary 896)" in rows["parameters"] and "data" not in rows
    with pytest.raises(UserError, match="less than the data's vocabulary of 777"):
        run_preflight(replace(config, model=replace(config.model, vocab_size=9)), vocab_size=777)
