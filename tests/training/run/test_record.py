"""What a run folder remembers: every start, whether it is another run now, and whether its end is still true."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from training_processes import tiny_config

from nano3.config import PretrainConfig
from nano3.training.run.checkpoints import CheckpointInfo, write_checkpoint_info
from nano3.training.run.literal_config import literal
from nano3.training.run.record import (
    ROOT,
    DataReference,
    code_version,
    late_settings_warning,
    latest_start_dir,
    load_run_config,
    missing_final_checkpoint,
    read_latest_start,
    run_changed,
    run_config_text,
    save_run_config,
    valid_finish_record,
)
from nano3.utils.errors import UserError
from nano3.utils.files import write_json
from nano3.utils.records import DamagedRecordError
from nano3.utils.redaction import without_secrets

DATA = DataReference("DataBlendsArtifact-pretrain:v1", "/data", "f" * 64)


def whole(**changes: Any) -> PretrainConfig:
    """`tiny_config` as a run folder has it: every reference is resolved. Keys of the first level may be changed too."""
    places = {
        "run.data": "/data", "run.output_dir": "/run", "recipe.per_split_data_args_path": "/data/blend.json",
    }  # fmt: skip
    config = tiny_config(**places, **{key: value for key, value in changes.items() if "." in key})
    return replace(config, **{key: value for key, value in changes.items() if "." not in key})


def start(run_dir: Path, config: PretrainConfig | None = None, data: DataReference = DATA, **more: Any) -> Path:
    return save_run_config(run_dir, config or whole(), data, more.get("words", ["train.seed=1"]), more.get("label", ""))


def end(run_dir: Path, checkpoint: Path | None) -> None:
    """What a run leaves at its end."""
    write_json(run_dir / "finished.json", {"iteration": 12, "checkpoint": str(checkpoint) if checkpoint else None})


def saved(root: Path) -> None:
    """The last checkpoint of the run."""
    (root / "iter_0000012").mkdir()
    write_checkpoint_info(root / "iter_0000012", CheckpointInfo(12, 48, 1536, 1.0, 1, {}, {}))


def test_a_start_is_recorded_with_what_it_was(tmp_path: Path) -> None:
    frozen = start(tmp_path, words=["train.seed=1", "run.name='a b'"], label="seed=1")
    assert frozen == tmp_path / "config.yaml"
    assert (latest_start_dir(tmp_path) or tmp_path) / "config.yaml" == tmp_path / "starts/0001/config.yaml"
    assert frozen.read_text() == (tmp_path / "starts/0001/config.yaml").read_text()
    message = read_latest_start(tmp_path)
    assert message["overrides"] == ["train.seed=1", "run.name='a b'"]
    assert message["data"] == vars(DATA) and message["label"] == "seed=1"
    assert message["packages"].keys() >= {"nano3", "omegaconf", "torch"}
    assert message["time"].endswith("+00:00"), "starts on machines of different time zones can be put in order"


def test_the_code_that_ran_can_be_had_again(tmp_path: Path) -> None:
    start(tmp_path)
    commit, diff = code_version()
    code = read_latest_start(tmp_path)["code"]
    assert (code["commit"], code["uncommitted"]) == (commit, bool(diff))
    assert (tmp_path / "starts/0001/code.diff").read_bytes() == diff
    assert commit is not None and (ROOT / "nano3").is_dir()


def test_starts_are_numbered_and_none_is_overwritten(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        start(tmp_path, whole(**{"train.seed": seed}))
    shutil.rmtree(tmp_path / "starts/0002")
    (tmp_path / "starts/notes").mkdir()
    start(tmp_path, whole(**{"train.seed": 4}))
    seeds = {p.parent.name: OmegaConf.load(p).train.seed for p in (tmp_path / "starts").glob("*/config.yaml")}
    assert seeds == {"0001": 1, "0003": 3, "0004": 4}
    assert latest_start_dir(tmp_path) == tmp_path / "starts/0004"
    assert load_run_config(tmp_path / "config.yaml").train.seed == 4


CHANGES = {
    "nothing": ({}, DATA, False),
    "another-machine": ({"cluster.kind": "slurm", "cluster.nodes": 4}, DATA, False),
    "dry-run": ({"dry_run": True}, DATA, False),
    "wandb": ({"run.wandb.mode": "offline"}, DATA, False),
    "image": ({"run.env.container": "x.sif"}, DATA, False),
    "how-it-was-prepared": ({"data_blend.num_shards": 3}, DATA, False),
    "data-by-another-name": ({}, replace(DATA, reference="/data", folder="/moved"), False),
    "other-data": ({}, replace(DATA, fingerprint="0" * 64), True),
    "seed": ({"train.seed": 2}, DATA, True),
    "length": ({"train.train_iters": 13}, DATA, True),
    "logging": ({"logger.log_interval": 3}, DATA, True),
    "free-key": ({"megatron": {"model": {"a": 1}}}, DATA, True),
    "name": ({"run.name": "other"}, DATA, True),
}


@pytest.mark.parametrize(("changes", "data", "other"), CHANGES.values(), ids=CHANGES)
def test_what_makes_another_run(tmp_path: Path, changes: dict[str, Any], data: DataReference, other: bool) -> None:
    start(tmp_path)
    assert run_changed(tmp_path, whole(**changes), data) is other


@pytest.mark.parametrize("lost", ["everything", "starts", "start.json", "config.yaml", "half of start.json"])
def test_without_a_record_nothing_has_changed(tmp_path: Path, lost: str) -> None:
    """Somebody tidied up, or copied config.yaml alone: the next start begins a record, it does not break."""
    run = tmp_path / "run"
    start(run)
    match lost:
        case "everything":
            shutil.rmtree(run)
        case "starts":
            shutil.rmtree(run / "starts")
        case "start.json":
            (run / "starts/0001/start.json").unlink()
        case "config.yaml":
            (run / "config.yaml").unlink()
        case _:
            (run / "starts/0001/start.json").write_text('{"data": {')
    assert run_changed(run, whole(**{"train.seed": 2}), DATA) is False
    if run.is_dir():  # stopped early: without its record, only a checkpoint proves that nothing is left to train
        end(run, None)
        assert run_changed(run, whole(), DATA) is True
    start(run)
    assert read_latest_start(run)["data"] == vars(DATA)


def test_nothing_recorded_is_an_empty_start(tmp_path: Path) -> None:
    assert (latest_start_dir(tmp_path), read_latest_start(tmp_path), valid_finish_record(tmp_path)) == (None, {}, None)
    assert missing_final_checkpoint(tmp_path) is None


def test_a_finished_run_that_is_started_again_stays_as_it_is(tmp_path: Path) -> None:
    start(tmp_path)
    saved(tmp_path)
    end(tmp_path, tmp_path / "iter_0000012")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    start(tmp_path, whole(**{"cluster.kind": "slurm"}), words=["cluster=slurm"])
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert valid_finish_record(tmp_path) == {"iteration": 12, "checkpoint": str(tmp_path / "iter_0000012")}


def test_a_finished_run_continues_when_its_settings_change(tmp_path: Path) -> None:
    start(tmp_path)
    end(tmp_path, None)
    assert valid_finish_record(tmp_path) is not None, "a run that was to save nothing has lost nothing"
    start(tmp_path, whole(**{"train.train_iters": 24}))
    assert valid_finish_record(tmp_path) is None
    assert load_run_config(tmp_path / "config.yaml").train.train_iters == 24


@pytest.mark.parametrize(
    ("change", "continues"),
    [
        pytest.param({"train.train_iters": 24}, True, id="more iterations"),
        pytest.param({"train.train_iters": 6}, False, id="fewer iterations"),
        pytest.param({"optimizer.lr": 0.5}, False, id="another rate"),
        pytest.param({"optimizer.lr": 0.5, "train.exit_iteration": 9}, False, id="an end that lies behind"),
        pytest.param({"train.train_iters": 24, "train.exit_iteration": 12}, False, id="an end that is reached"),
    ],
)
def test_the_record_of_a_finished_run_stays_that_of_its_training(
    tmp_path: Path, change: dict[str, Any], continues: bool
) -> None:
    """Otherwise trace, diff and rerun would show settings that were never trained with."""
    saved(tmp_path)
    start(tmp_path)
    end(tmp_path, tmp_path / "iter_0000012")
    before = (tmp_path / "config.yaml").read_text()
    message = late_settings_warning(tmp_path, whole(**change))
    start(tmp_path, whole(**change))
    assert ((tmp_path / "config.yaml").read_text() != before) is continues
    assert len(list((tmp_path / "starts").iterdir())) == 1 + continues
    assert (valid_finish_record(tmp_path) is None) is continues
    assert (message is None) is continues
    assert continues or all(key in str(message) for key in change)


def test_unchanged_settings_give_no_warning(tmp_path: Path) -> None:
    saved(tmp_path)
    assert late_settings_warning(tmp_path, whole()) is None, "nothing was ever started"
    start(tmp_path)
    assert late_settings_warning(tmp_path, whole(**{"optimizer.lr": 0.5})) is None, "it has not finished"
    end(tmp_path, tmp_path / "iter_0000012")
    assert late_settings_warning(tmp_path, whole(**{"cluster.env": {"A": "1"}})) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", '{"iteration'])
@pytest.mark.parametrize("read", [valid_finish_record, missing_final_checkpoint])
def test_a_damaged_end_is_named_with_what_to_do(tmp_path: Path, content: str, read: Any) -> None:
    (tmp_path / "finished.json").write_text(content)
    with pytest.raises(DamagedRecordError, match=r"finished\.json: damaged \(.*\)\. Remove it: the run then resumes"):
        read(tmp_path)


def test_a_finished_run_whose_checkpoint_is_gone_trains_again(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    start(tmp_path)
    end(tmp_path, tmp_path / "iter_0000012")
    assert valid_finish_record(tmp_path) is None and missing_final_checkpoint(tmp_path) == tmp_path / "iter_0000012"
    start(tmp_path)
    assert "no longer finished" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "finished.json").exists()
    assert latest_start_dir(tmp_path) == tmp_path / "starts/0002"


plain = (
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats(allow_nan=False)
    | st.text("ab: #'\"{}[]$\\\n\té", max_size=8)
)
trees = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("abc_", min_size=1), inner, max_size=2),
    max_leaves=6,
)


@settings(max_examples=25)
@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=3), trees, max_size=3),
    st.floats(1e-12, 1e3),
    st.text("a${}\\ ", max_size=6),
)
def test_a_saved_configuration_reads_back_unchanged(
    tmp_path_factory: pytest.TempPathFactory, free: dict[str, Any], rate: float, prompt: str
) -> None:
    """Whatever the text in it: ranks read this file and nothing else."""
    config = whole(**{"optimizer.lr": rate, "logger.sample_prompts": [prompt]})
    config.megatron = free
    config.cluster.setup = [prompt]
    path = tmp_path_factory.getbasetemp() / "frozen.yaml"
    path.write_text(run_config_text(config))
    assert load_run_config(path) == config
    values = asdict(config) | {"data_blend": without_secrets(asdict(config)["data_blend"])}
    assert path.read_text() == OmegaConf.to_yaml(OmegaConf.create(literal(values))), "the form of earlier versions"


LINES = ["export A=${HOME}/x", "export A=$HOME/x", "${", "\\${A}", "echo \\\\${A} '${B:-c}'", "${oc.env:HOME}", "a\\"]


@pytest.mark.parametrize("line", LINES)
def test_a_shell_line_is_text_to_the_ranks(tmp_path: Path, line: str) -> None:
    """Typed as \\${HOME}: what is still ${HOME} when the run starts is the shell's to look up."""
    config = whole(**{"cluster.setup": [line], "megatron": {"env_vars": {"A": line}}})
    start(tmp_path, config)
    assert load_run_config(tmp_path / "config.yaml") == config
    assert not run_changed(tmp_path, config, DATA)
    assert run_changed(tmp_path, replace(config, megatron={"env_vars": {"A": f"{line} "}}), DATA)


BAD = {
    "none": (None, "there is no such file; it is written when the run starts"),
    "key": ("trian: {seed: 1}\n", "is not a configuration of this version of nano3: Key 'trian' not in"),
    "type": ("train: {seed: one}\n", "is not a configuration of this version of nano3: Value 'one'"),
    "yaml": ("train: [\n", "damaged (while parsing"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_an_invalid_configuration_is_reported_with_its_file(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as error:
        load_run_config(path)
    assert str(error.value).startswith(str(path)) and message in str(error.value)
    assert "\n" not in str(error.value)


def test_start_json_is_plain_for_other_tools(tmp_path: Path) -> None:
    start(tmp_path, words=["logger.sample_prompts=['日本']"])
    text = (tmp_path / "starts/0001/start.json").read_text()
    assert "日本" in text and json.loads(text).items() > read_latest_start(tmp_path).items()


def test_the_text_of_a_configuration_is_that_of_omegaconf() -> None:
    """Sections are written one at a time, and those that are equal only once."""
    for lr in (1e-3, 2.0, 1e-3):
        config = whole(**{"optimizer.lr": lr})
        assert run_config_text(config) == OmegaConf.to_yaml(OmegaConf.structured(config))
