"""Mistakes in the file of a group member are reported with file and key; valid files are not."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nano3.cli import config_groups
from nano3.cli.app import register_config
from nano3.cli.config_file_errors import (
    conf_dir_problems,
    experiment_override_warning,
    file_problems,
    lost_schedule_warning,
    member_file,
    problems_in_file,
    yaml_problem,
)
from nano3.cli.override_errors import parse_overrides
from nano3.utils.command_line import CommandLine


@pytest.fixture(autouse=True)
def _set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NANO3_CONF", raising=False)
    register_config()


def problems(folder: Path, group: str, text: str, app: str = "pretrain") -> list[str]:
    """Return the problems of a member of `group` with this text, without the file's name."""
    path = folder / "mine.yaml"
    path.write_text(text)
    found = problems_in_file(path, group, app)
    assert all(problem.startswith(f"{path}") for problem in found)
    return [problem.removeprefix(f"{path}: ") for problem in found]


VALID = {
    "plain": ("cluster", "kind: slurm\nnodes: 2\n"),
    "empty": ("cluster", "# nothing yet\n"),
    "interpolation": ("cluster", "ntasks_per_node: ${cluster.gpus_per_node}\n"),
    "still-missing": ("cluster", "partition: ???\n"),
    "other-member-first": ("cluster", "defaults: [slurm, _self_]\npartition: h100\n"),
    "environment": ("cluster", "env: {NCCL_DEBUG: INFO, OMP_NUM_THREADS: 4}\n"),
    "rate": ("train", "# @package _global_\noptimizer: {lr: 1e-3}\n"),
    "hydras-own": ("experiment", "# @package _global_\nhydra: {verbose: true}\ndefaults: [override /train: phase1]\n"),
    "free": ("experiment", "# @package _global_\nmegatron: {model: {anything: [1]}}\n"),
    "package-elsewhere": ("experiment", "# @package train\ntrain_iters: 3\nwhatever: 4\n"),
    "blend": ("data_blend", "name: b\ndatasets: [{name: a, path: x}]\nnum_shards: 3\n"),
}


@pytest.mark.parametrize(("group", "text"), VALID.values(), ids=VALID)
def test_a_valid_file_has_no_problems(tmp_path: Path, group: str, text: str) -> None:
    assert problems(tmp_path, group, text) == []


INVALID = {
    "typo": ("cluster", "partitoin: h100\n", "no key 'partitoin' in cluster. Did you mean 'partition'?"),
    "number-key": ("cluster", "1: x\n", "no key 1 in cluster. Allowed: account, "),
    "text": ("cluster", "nodes: two\n", "cluster.nodes must be a whole number, not 'two'"),
    "keys-for-a-number": ("cluster", "nodes: {min: 1}\n", "cluster.nodes must be a whole number, not {'min': 1}"),
    "keys-for-a-list": ("cluster", "setup: {module: cuda}\n", "cluster.setup must be a list, such as [a, b], not {"),
    "list-in-environment": (
        "cluster",
        "env: {A: [1]}\n",
        "cluster.env must be keys with values, ",
    ),
    "text-for-environment": (
        "cluster",
        "env: A=1\n",
        "cluster.env must be keys with values, ",
    ),
    "null": ("cluster", "mounts: null\n", "cluster.mounts must be a list, such as [a, b], not null"),
    "defaults-and-typo": ("cluster", "defaults: [slurm]\nnoodes: 2\n", "no key 'noodes' in cluster. Did you mean"),
    "section-of-one-value": (
        "train",
        "# @package _global_\ntrain: 3\n",
        "train is a section: set its keys, such as ",
    ),
    "nested-typo": ("train", "# @package _global_\nrun: {wandb: {mod: x}}\n", "no key 'mod' in run.wandb. Did you"),
    "section": (
        "train",
        "# @package _global_\ntrian: {x: 1}\n",
        "no key 'trian' at the top level. Did you mean 'train'?",
    ),
    "list-for-megatron": ("train", "# @package _global_\nmegatron: [a]\n", "megatron must be keys with values"),
    "no-package": ("experiment", "train: {train_iters: 3}\n", "must begin with the line '# @package _global_'"),
    "only-a-word": ("cluster", "slurm\n", "expected one key: value per line, found 'slurm'."),
    "a-list": ("cluster", "- kind: slurm\n", "expected one key: value per line, found [{'kind': 'slurm'}]"),
}


@pytest.mark.parametrize(("group", "text", "expected"), INVALID.values(), ids=INVALID)
def test_each_mistake_is_reported_once(tmp_path: Path, group: str, text: str, expected: str) -> None:
    (problem,) = problems(tmp_path, group, text)
    assert expected in problem, problem
    assert "Allowed: ." not in problem, "an empty list of allowed keys is no help"


@pytest.mark.parametrize(
    "member", sorted(Path(config_groups.conf_dir()).glob("*/*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_members_in_conf_are_valid(member: Path) -> None:
    assert problems_in_file(member, member.parent.name, "pretrain") == []


def test_all_mistakes_of_a_file_are_reported_at_once(tmp_path: Path) -> None:
    found = problems(tmp_path, "cluster", "noodes: 2\nmax_crashes: many\nenv: 3\nkind: slurm\n")
    assert len(found) == 3


@given(
    st.sampled_from(sorted(config_groups.schema_keys(config_groups.SCHEMAS["pretrain"]))),
    st.text("abcdefgh_", min_size=1, max_size=6),
)
def test_a_key_with_extra_letters_is_always_found(
    tmp_path_factory: pytest.TempPathFactory, key: str, extra: str
) -> None:
    """On any level."""
    parent, _, leaf = key.rpartition(".")
    wrong = f"{leaf}{extra}"
    if f"{parent}.{wrong}".lstrip(".") in config_groups.schema_keys(config_groups.SCHEMAS["pretrain"]):
        return
    content: dict[str, object] = {wrong: 1}
    for name in reversed(parent.split(".") if parent else []):
        content = {name: content}
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(f"# @package _global_\n{yaml.safe_dump(content)}")
    (problem,) = problems_in_file(path, "experiment", "pretrain")
    assert f"no key {wrong!r} {f'in {parent}' if parent else 'at the top level'}." in problem


BROKEN = {
    "tab": ("a: 1\n\tb: 2\n", "line 2, column 1"),
    "colon": ("a: b: c\n", "line 1, column 5"),
    "quote": ('a: "b\n', "line 2, column 1"),
    "bracket": ("a: [1\n", "line 2, column 1"),
}


@pytest.mark.parametrize(("text", "where"), BROKEN.values(), ids=BROKEN)
def test_broken_yaml_is_reported_with_its_position_in_one_line(tmp_path: Path, text: str, where: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    (problem,) = problems_in_file(path, "cluster", "pretrain")
    assert problem.startswith(f"{path}, {where}: not valid YAML: ")
    assert "\n" not in problem and "Correct the file" in problem


def test_a_binary_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"kind: \xff\xfe\n")
    (problem,) = problems_in_file(path, "cluster", "pretrain")
    assert problem.startswith(f"{path}: cannot be read: ")


def test_a_yaml_error_without_a_position() -> None:
    assert yaml_problem(yaml.YAMLError("odd\nmore")).startswith("a configuration file: not valid YAML: odd. Correct")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A folder for --config-dir and one for $NANO3_CONF; both have cluster/slurm, each has another member."""
    for name, members in (("given", ("slurm", "one")), ("user", ("slurm", "two"))):
        for member in members:
            path = tmp_path / name / "cluster" / f"{member}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("noodes: 1\n")
    monkeypatch.setenv("NANO3_CONF", str(tmp_path / "user"))
    return {"given": tmp_path / "given", "user": tmp_path / "user", "own": Path(config_groups.conf_dir())}


FLAGS = {"two-words": ["--config-dir", "{given}"], "short": ["-cd", "{given}"], "one-word": ["--config-dir={given}"]}


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
@pytest.mark.parametrize(
    ("member", "where"), [("slurm", "given"), ("one", "given"), ("two", "user"), ("local", "own"), ("none", None)]
)
def test_members_are_searched_in_hydras_order(
    folders: dict[str, Path], flags: list[str], member: str, where: str | None
) -> None:
    line = CommandLine.parse([*(word.format(**folders) for word in flags), f"cluster={member}"])
    expected = folders[where] / "cluster" / f"{member}.yaml" if where else None
    assert member_file(f"cluster/{member}", line.config_dirs) == expected
    assert (member in config_groups.members("cluster", line.config_dirs)) is (where is not None)


def test_members_in_hydras_message_are_checked_too(folders: dict[str, Path]) -> None:
    """A member that another file chooses is not on the command line."""
    found = file_problems(
        "pretrain",
        parse_overrides(CommandLine.parse(["cluster=two", "train.seed=1"])),
        "In 'cluster/one': Key 'noodes' not in 'ClusterConfig'",
        [str(folders["given"])],
    )
    assert [problem.partition(": ")[0] for problem in found] == [
        str(folders["user"] / "cluster/two.yaml"),
        str(folders["given"] / "cluster/one.yaml"),
    ]


def test_nano3_conf_is_reported_only_if_set_and_missing(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert conf_dir_problems() == []
    monkeypatch.setenv("NANO3_CONF", "/no/such")
    (problem,) = conf_dir_problems()
    assert problem.startswith("NANO3_CONF=/no/such: ") and "unset NANO3_CONF" in problem
    monkeypatch.setenv("NANO3_CONF", "")
    assert conf_dir_problems() == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["+experiment=tiny", "train=one_hopper"],
            ["experiment=tiny overrides train=one_hopper", "train.train_iters="],
        ),
        (["+experiment=tiny", "train=one_hopper", "train.train_iters=5"], ["scheduler.lr_warmup_iters=32"]),
        (["+experiment=tiny", "train=[phase1,perf_h100]"], ["experiment=tiny overrides train=[phase1,perf_h100]"]),
        (["+experiment=lightning", "train=[nemotron_3_5_lightning,perf_gb200]"], []),
        (["+experiment=tiny"], []),
        (["train=one_hopper"], []),
        (["+experiment=tiny", "train=default"], []),
        (["+experiment=nowhere", "train=nowhere"], []),
    ],
    ids=["both", "one typed", "several", "lightning", "experiment", "train", "nothing set", "neither there"],
)
def test_warning_about_an_experiment_that_overrides_train(words: list[str], expected: list[str]) -> None:
    found = experiment_override_warning(words) or ""
    assert bool(found) == bool(expected)
    assert all(part in found for part in expected)
    assert "train.train_iters=" not in found or "train.train_iters=5" not in words


@pytest.mark.parametrize(
    ("words", "both"),
    [
        (["+experiment=nano3", "train=perf_h100"], "'train=[phase1,perf_h100]'"),
        (["+experiment=lightning", "train=[perf_gb200]"], "'train=[nemotron_3_5_lightning,perf_gb200]'"),
        (["+experiment=scaling", "train=perf_b200", "ladder.size=1b"], "'train=[ladder,perf_b200]'"),
        (["+experiment=nano3", "train=[phase1,perf_h100]"], None),
        (["+experiment=nano3", "train=[phase2,perf_h100]"], None),
        (["+experiment=nano3", "train=perf_h100", "train.train_iters=50"], None),
        (["+experiment=nano3", "train=default"], None),
        (["+experiment=nano3", "train=long_context"], None),
        (["+experiment=tiny", "train=perf_h100"], None),
        (["train=perf_h100"], None),
        (["+experiment=nowhere", "train=perf_h100"], None),
        (["+experiment=nano3"], None),
    ],
)
def test_warning_about_a_schedule_that_is_lost(words: list[str], both: str | None) -> None:
    found = lost_schedule_warning(words)
    assert found is None if both is None else found is not None and found.endswith(f"For both: {both}")
