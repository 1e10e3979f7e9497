"""Test the validation of a preparation and the functions that its Slurm jobs call."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from data_helpers import plan_build
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from launch.hydra_launcher import Point
from launch.names import sweep_labels
from nano3.artifacts import store, wandb_mirror
from nano3.artifacts.names import slugify
from nano3.cli.app import register_config
from nano3.cli.config_groups import conf_dir
from nano3.config import DataPrepConfig, PrepOptions, SourceConfig
from nano3.config.blend import parse_datasets, read_blend_file
from nano3.prep import slurm_entries
from nano3.prep.followup_run import check_followup
from nano3.prep.registration import Registration
from nano3.prep.run import data_prep
from nano3.prep.sweep import separate, separate_points
from nano3.prep.validate import (
    blend_name,
    compose_followup_if_any,
    container_folders,
    make_registration,
    output_problems,
    read_blend,
    submit_problems,
    validate,
)
from nano3.utils.errors import UserError

TOKENIZER = Path(__file__).parents[2] / "nano3/sample/tokenizer"
DATA = "DataBlendsArtifact-pretrain"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder with a text and a blend; set the home folder and the artifact store."""
    for name in ("NANO3_CONF", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NANO3_HOME", str(tmp_path / "store"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.jsonl").write_text("".join(f'{{"text": "document {n}, a few words"}}\n' for n in range(40)))
    (tmp_path / "b.json").write_text(json.dumps({"datasets": [{"name": "a", "path": str(tmp_path / "text.jsonl")}]}))
    register_config()
    return tmp_path


def composed(*words: str, app: str = "data_prep") -> DictConfig:
    own = [f"tokenizer_model={TOKENIZER}", "num_shards=3", "workers=1"] if app == "data_prep" else []
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return compose(app, [*own, *words])


def problems_of(*words: str) -> list[str]:
    """Return the problems of an invalid preparation."""
    with pytest.raises(UserError) as error:
        validate(composed(*words))
    assert error.value.exit_code == 2
    return error.value.problems


def test_checking_writes_nothing(here: Path) -> None:
    before = sorted(here.rglob("*"))
    prep = validate(composed("blend_path=b.json", "output_dir=out"))
    assert (prep.request.blend, prep.followup, prep.registration.alias) == ("b", None, "b")
    assert sorted(here.rglob("*")) == before


def test_a_tilde_is_expanded_in_every_path(here: Path) -> None:
    """A folder named ~ is dangerous for the next `rm -r`."""
    (here / "home").mkdir()
    (here / "b.json").rename(here / "home" / "b.json")
    prep = validate(composed("blend_path='~/b.json'", "output_dir='~/out'", "job_dir='~/jobs'"))
    assert prep.config.output_dir == prep.request.options.output_dir == str(here / "home/out")
    assert prep.config.job_dir == str(here / "home/jobs")
    assert prep.request.blend == "b"


INVALID = {
    "numbers": (["num_shards=0", "valid_fraction=2"], ["num_shards=0", "valid_fraction=2"]),
    "fractions-that-leave-no-training": (["valid_fraction=0.6", "test_fraction=0.6"], ["valid_fraction"]),
    "choices": (["dtype=int16", "engine=strickt", "hf_files=x"], ["dtype=int16", "'strict'", "hf_files=x"]),
    "tasks-here": (["cluster.tasks=4"], ["cluster.tasks=4 spreads", "workers=N", "cluster=slurm"]),
    "slurm-time": (["cluster=slurm", "cluster.time=soon"], ["cluster.time='soon'", "HH:MM:SS"]),
    "slurm-memory": (["cluster=slurm", "cluster.mem=lots"], ["cluster.mem='lots' is not a size. Write it as 64G"]),
    "no-text-there": (["blend_path=none.json"], ["blend_path=none.json: there is no such file"]),
    "blend-in-a-file": (["blend_path=text.jsonl/b.json"], ["text.jsonl/b.json: cannot be read: Not a directory"]),
    "blend-is-a-folder": (["blend_path=."], ["blend_path=.: this is a folder"]),
    "blend-is-text": (["blend_path=text.jsonl"], ["blend_path=text.jsonl: not valid JSON: Extra data"]),
    "alias": (["alias=a b", "artifact=x/y"], ["'a b' cannot be an artifact's alias", "'x/y' cannot be the name"]),
    "artifact-of-models": (["artifact=ModelArtifact-pretrain"], ["checkpoints are registered under this name"]),
    "more-shards-than-megatron-takes": (
        ["num_shards=32767"],
        ["num_shards=32767: Megatron's blends have at most 32,766"],
    ),
    "output-in-a-file": (["output_dir=text.jsonl/x"], ["output_dir=text.jsonl/x: cannot be written: "]),
    "output-in-a-file-dry": (["output_dir=text.jsonl", "dry_run=true"], ["output_dir=text.jsonl: cannot be written"]),
    "empty": (["output_dir=", "job_dir="], ["output_dir= is empty", "job_dir= is empty"]),
    "then-data": (["then=['run.data=x']"], ["then: run.data: leave it out"]),
    "then-dry-run": (["then=['dry_run=true']"], ["then: dry_run: put it before --then"]),
    "then-data-forced": (["then=['++run.data=x']"], ["then: run.data: leave it out"]),
    "then-typo": (["then=['train.sed=1','model=nano']"], ["then: no key 'train.sed'", "then: no model=nano"]),
    "then-experiment": (["then=['experiment=tiny']"], ["then: add an experiment with a plus: +experiment=tiny"]),
    "everything": (
        ["num_shards=0", "tokenizer_model=/nope", "alias=latest", "cluster.tasks=2", "then=['run.data=x']"],
        ["num_shards=0", "tokenizer_model=/nope", "'latest' is reserved", "cluster.tasks=2", "then: run.data"],
    ),
}


@pytest.mark.parametrize(("words", "expected"), INVALID.values(), ids=INVALID)
def test_all_problems_are_reported_once(here: Path, words: list[str], expected: list[str]) -> None:
    problems = problems_of("blend_path=b.json", "output_dir=out", *words)
    for text in expected:
        assert sum(text in problem for problem in problems) == 1, problems
    assert not (here / "out").exists() and not (here / "store").exists()


@pytest.mark.parametrize("key", ["split", "text_field", "name", "path"])
def test_a_null_in_place_of_text_is_rejected(key: str) -> None:
    """It is not replaced by the default."""
    with pytest.raises(UserError) as error:
        parse_datasets([{"name": "a", "path": "x", key: None}], "b")
    (problem,) = error.value.problems
    assert problem.startswith("b, dataset 1") and key in problem


@pytest.mark.parametrize("key", ["subset", "revision"])
def test_a_null_that_is_the_default_is_accepted(key: str) -> None:
    assert parse_datasets([{"name": "a", "path": "x", key: None}], "b") == [SourceConfig(name="a", path="x")]


@settings(max_examples=40)
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=3), st.lists, max_leaves=4))
def test_any_json_is_read_or_rejected_with_its_path(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    for content in (value, {"datasets": value}, {"datasets": [{"name": value, "path": "x"}]}):
        path.write_text(json.dumps(content))
        try:
            assert all(isinstance(source.name, str) and source.name for source in read_blend_file(path))
        except UserError as error:
            assert all(str(path) in problem for problem in error.problems)


@pytest.mark.parametrize(
    ("path", "chosen", "name"), [(None, "math", "math"), ("a/my.json", "math", "my"), ("x.tar.json", "m", "x.tar")]
)
def test_blend_name(path: str | None, chosen: str, name: str) -> None:
    assert blend_name(path, chosen) == name


def test_the_group_is_read_without_blend_path() -> None:
    config: Any = OmegaConf.to_object(composed("data_blend=sample"))
    name, sources = read_blend(config)
    assert name == "sample" and {source.name for source in sources} == {"docs", "code", "math"}


@pytest.mark.parametrize(
    ("given_alias", "blend", "alias", "warning"),
    [
        (None, "math", "math", None),
        (None, "my blend", "my-blend", None),
        (None, "v3", None, "to give it one: alias=NAME"),
        (None, "日本", None, "none of the letters and digits"),
        ("mine", "v3", "mine", None),
        (None, "", None, None),
    ],
    ids=["name", "slug", "reserved", "nothing left", "given", "no blend"],
)
def test_the_alias_of_the_data(given_alias: str | None, blend: str, alias: str | None, warning: str | None) -> None:
    how = make_registration(DataPrepConfig(alias=given_alias, job_dir="jobs"), blend)
    assert how.alias == alias
    assert (how.alias_warning is None) if warning is None else warning.lower() in (how.alias_warning or "").lower()
    assert Path(how.folder).is_absolute() and Path(how.folder).parent == Path("jobs").absolute()


def test_one_local_task_is_no_problem() -> None:
    config = DataPrepConfig()
    assert submit_problems(config, "b", []) == []
    config.cluster.tasks = 2
    assert len(submit_problems(config, "b", [])) == 1


def test_a_container_mounts_a_tokenizer_in_the_home_folder(here: Path) -> None:
    (here / "home/tokenizer").mkdir(parents=True)
    options = PrepOptions(output_dir="~/out", tokenizer_model="~/tokenizer")
    assert container_folders(options, []) == tuple(str(here / name) for name in ("home/tokenizer", "home/out", "store"))


def test_an_image_that_is_not_used_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    validate(composed("blend_path=b.json", "output_dir=out", "dry_run=true"))
    assert capsys.readouterr().out == ""
    validate(composed("blend_path=b.json", "output_dir=out", "dry_run=true", "container=some/image"))
    assert "container=some/image not used on this machine" in capsys.readouterr().out


def sweep_points(words: list[list[str]]) -> list[Point]:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        hydra = compose("data_prep", return_hydra_config=True)
    labels = sweep_labels(words)
    return [Point(composed(*w), w, label, Path(label), hydra) for w, label in zip(words, labels, strict=True)]


def test_colliding_sweep_points_get_their_own_folder_and_alias(here: Path) -> None:
    words = [["blend_path=b.json", "output_dir=out", f"num_shards={n}"] for n in (3, 4)]
    points = sweep_points(words)
    separate_points(points)
    assert [point.config.output_dir for point in points] == ["out/num_shards=3", "out/num_shards=4"]
    assert [point.config.alias for point in points] == ["b-num_shards-3", "b-num_shards-4"]
    assert len({point.config.job_dir for point in points}) == 2


def test_mistakes_of_all_points_are_reported_together() -> None:
    words = [["blend_path=b.json", "output_dir=out", f"num_shards={n}"] for n in (0, -1)]
    with pytest.raises(UserError) as error:
        separate_points(sweep_points(words))
    found = [re.match(r"point (num_shards=.*): num_shards=(.*?):", problem) for problem in error.value.problems]
    assert [match and match.groups() for match in found] == [("num_shards=0", "0"), ("num_shards=-1", "-1")]


def test_a_point_of_another_launcher_is_separate_unless_the_sweep_separates_it(here: Path) -> None:
    (point,) = sweep_points([["blend_path=b.json", "output_dir=out", "num_shards=3"]])
    separate(point, own_folder=True, own_name=False)
    assert (point.config.output_dir, point.config.alias) == ("out", f"b-{slugify(point.label)}")


def test_no_followup_without_then() -> None:
    assert compose_followup_if_any(DataPrepConfig()) is None


def test_the_followup_is_checked_on_data_that_does_not_exist_yet(here: Path) -> None:
    cfg = check_followup(composed("+experiment=quickstart", app="pretrain"), here / "out")
    assert cfg.run.data == str(here / "out")
    assert cfg.recipe.per_split_data_args_path == str(here / "out/blend.json")
    with pytest.raises(UserError, match=r"train\.global_batch_size=3 is not a multiple"):
        check_followup(composed("+experiment=quickstart", "train.global_batch_size=3", app="pretrain"), here / "out")


texts = st.text(max_size=12)
mirrors = st.builds(wandb_mirror.WandbSettings, st.sampled_from(wandb_mirror.MODES), texts, st.none() | texts)


@given(st.builds(Registration, texts, st.none() | texts, mirrors, st.none() | texts, texts))
def test_a_registration_round_trips_through_a_command_line(how: Registration) -> None:
    """It is one word of a job script, so it has no line end."""
    text = how.to_text()
    assert Registration.from_text(text) == how
    assert text.isascii() and "\n" not in text


def test_finished_data_may_be_read_only(here: Path) -> None:
    """It is only read."""
    (here / "out").mkdir()
    (here / "out/manifest.json").write_text("{}")
    assert output_problems(here / "out") == []
    assert output_problems(here / "out/manifest.json") != []


def test_a_dry_run_shows_the_plan_and_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(here.rglob("*"))
    assert data_prep(composed("blend_path=b.json", "output_dir=out", "dry_run=true")) == 0
    assert "text.jsonl" in capsys.readouterr().out
    assert sorted(here.rglob("*")) == before


def test_array_tasks_make_and_register_the_data(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second finalizer changes nothing."""
    source = SourceConfig(name="a", path=str(here / "text.jsonl"))
    options = PrepOptions(str(here / "out"), str(TOKENIZER), num_shards=3, valid_fraction=0.2, workers=1)
    plan = str(plan_build([source], options, "b"))
    how = Registration(DATA, "b", alias_warning="no alias").to_text()
    for index in (1, 0):
        assert slurm_entries.run_array_task(plan, str(here / "out"), how, index, 2) == 0
    assert slurm_entries.run_finalizer(plan, str(here / "out"), how) == 0
    printed = capsys.readouterr()
    assert f"{DATA}:v1 (also {DATA}:b) is {here / 'out'}" in " ".join(printed.out.split())
    assert "no alias" in printed.err
    made = store.resolve(f"{DATA}:b")
    manifest = json.loads((here / "out/manifest.json").read_text())
    assert made.path == str(here / "out")
    assert made.metadata["tokens"] == sum(split["tokens"] for split in manifest["splits"].values())
    assert made.metadata["weights"] == {"a": 1.0}
    assert slurm_entries.run_finalizer(plan, str(here / "out"), how) == 0
    assert store.versions(DATA) == [1]


def test_an_alias_that_moves_names_what_it_was(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("blend_path=b.json", "num_shards=2")
    assert data_prep(composed(*words, "output_dir=out")) == 0
    assert data_prep(composed(*words, "output_dir=out")) == 0
    assert " was v1" not in capsys.readouterr().out
    assert data_prep(composed(*words, "output_dir=few", "sample=5")) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{DATA}:b was v1, {here / 'out'}; alias=NAME registers under another name" in printed
