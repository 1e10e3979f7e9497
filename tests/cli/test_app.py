"""The command line as users see it: exit codes, messages, no tracebacks for typos, all problems at once."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from commands import ROOT
from omegaconf import OmegaConf

from nano3.artifacts import store
from nano3.cli.config_groups import SCHEMAS, app_groups, members, schema_keys
from nano3.cli.override_errors import explain_error
from nano3.utils.command_line import CommandLine
from nano3.utils.errors import UserError

PRETRAIN, PREP, TOOL = "nano3.pretrain", "nano3.data_prep", "nano3"
Run = subprocess.CompletedProcess[str]
Command = Callable[..., Run]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """The environment of a command: an empty artifact store."""
    found = {**os.environ, "NANO3_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    found.pop("HYDRA_FULL_ERROR", None)
    return found


@pytest.fixture(scope="module")
def forks() -> Iterator["subprocess.Popen[str]"]:
    """A process that runs commands in forks of itself."""
    words = [sys.executable, str(ROOT / "tests/forked_commands.py")]
    own = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process


@pytest.fixture
def run(forks: "subprocess.Popen[str]", tmp_path: Path, env: dict[str, str]) -> Command:
    """Run `python -m MODULE ARGS` in an empty folder, in a fork of a process that has imported nano3."""
    assert forks.stdin is not None and forks.stdout is not None
    to, back = forks.stdin, forks.stdout

    def call(module: str, *args: str, **more: str) -> Run:
        words = [module, *args]
        print(json.dumps({"words": words, "cwd": str(tmp_path), "env": {**env, **more}}), file=to, flush=True)
        return Run(words, *json.loads(back.readline()))

    return call


@pytest.fixture
def start(tmp_path: Path, env: dict[str, str]) -> Command:
    """Run `python -m MODULE ARGS` in an empty folder, in a process of its own."""

    def call(module: str, *args: str, **more: str) -> Run:
        words = [sys.executable, "-m", module, *args]
        return subprocess.run(words, cwd=tmp_path, env={**env, **more}, capture_output=True, text=True)

    return call


@pytest.mark.parametrize(
    ("module", "args", "expected"),
    [
        pytest.param(PRETRAIN, ["train.train_itres=3"], ["Did you mean 'train.train_iters'?", "--cfg job"], id="typo"),
        pytest.param(PRETRAIN, ["trian.x=1", "modle=a"], ["'trian.x'", "'modle'"], id="two-typos"),
        pytest.param(PRETRAIN, ["train.lr=3"], ["Did you mean 'optimizer.lr'?"], id="key-of-another-section"),
        pytest.param(PRETRAIN, ["+train.extra=3"], ["no key 'train.extra'"], id="appended-key"),
        pytest.param(
            PRETRAIN, ["train.train_iters=ten"], ["train.train_iters", "'ten'", "must be a whole number"], id="type"
        ),
        pytest.param(PRETRAIN, ["model=nano"], ["no model=nano", "quickstart"], id="group-member"),
        pytest.param(PRETRAIN, ["+experiment=tinny"], ["Did you mean 'tiny'?"], id="experiment"),
        pytest.param(PRETRAIN, ["experiment=tiny"], ["+experiment=tiny"], id="experiment-without-plus"),
        pytest.param(PRETRAIN, ["train.train_iters=1,2"], ["--multirun"], id="sweep-without-m"),
        pytest.param(PRETRAIN, ["train.train_iters"], ["key=value"], id="no-equals"),
        pytest.param(PRETRAIN, ["train.seed=[1"], ["a bracket or quote is left open", "key=value"], id="unbalanced"),
        pytest.param(PRETRAIN, ["cluster=slrum"], ["Did you mean 'slurm'?"], id="cluster"),
        pytest.param(PRETRAIN, ["megatron.model.x=1"], ["+megatron.model.x=1"], id="free-key-without-plus"),
        pytest.param(
            PRETRAIN,
            ["run.data=./nowhere", "optimizer.lr=-1"],
            ["no such folder", "optimizer.lr=-1"],
            id="no-data-folder",
        ),
        pytest.param(
            PRETRAIN,
            ["+experiment=nano3", "model.tensor_model_parallel_size=3"],
            ["python -m nano3.data_prep", "data_blend=nemotron", "model.num_attention_heads=32 must be a multiple"],
            id="no-data-artifact",
        ),
        pytest.param(PREP, ["num_shard=3"], ["Did you mean 'num_shards'?"], id="prep-typo"),
        pytest.param(PREP, ["--dry-run"], ["Did you mean dry_run=true?"], id="flag"),
        pytest.param(PREP, ["--num-shard=3"], ["Did you mean num_shards=3?"], id="flag-with-value"),
        pytest.param(PREP, ["--than", "+experiment=tiny"], ["Did you mean --then WORDS?"], id="misspelt-then"),
        pytest.param(PREP, ["--then"], ["--then must be followed by the overrides of a run"], id="empty-then"),
        pytest.param(PRETRAIN, ["--then", "+experiment=tiny"], ["--then: no such flag"], id="then-of-a-run"),
        pytest.param(PRETRAIN, ["run.name=2024_01_01"], ["20240101", "'run.name=\"2024_01_01\"'"], id="date-as-name"),
        pytest.param(PREP, ["output_dir=1e3"], ["1000.0", "'output_dir=\"1e3\"'"], id="number-as-folder"),
        pytest.param(PREP, ["alias=true"], ["'alias=\"true\"'"], id="truth-as-alias"),
        pytest.param(PREP, ["output_dir=süx"], ["'output_dir=\"süx\"'"], id="umlaut"),
        pytest.param(PREP, ["data_blend=maths"], ["Did you mean 'math'?"], id="no-such-blend"),
        pytest.param(PREP, ["blend_path=none.json"], ["no such file"], id="no-blend-file"),
        pytest.param(PREP, ["+experiment=tiny"], ["data_blend=NAME"], id="experiment-for-prep"),
        pytest.param(PRETRAIN, ["hydra.run.dir=x"], ["has no effect. Set run.output_dir"], id="hydra-run-dir"),
        pytest.param(PRETRAIN, ["-m", "hydra.sweep.subdir=x"], ["has no effect"], id="hydra-sweep-subdir"),
        pytest.param(PREP, ["-m", "hydra.sweep.dir=x"], ["has no effect. Set output_dir"], id="hydra-sweep-dir"),
        pytest.param(PRETRAIN, ["+cluster=slurm"], ["without the plus: cluster=slurm"], id="group-with-plus"),
        pytest.param(PRETRAIN, ["train.seed=a", "optimizer.lr=b"], ["train.seed", "optimizer.lr"], id="two-types"),
        pytest.param(
            PREP, ["num_shards=abc", "sample=xyz"], ["num_shards must be", "sample must be"], id="prep-two-types"
        ),
        pytest.param(PREP, ["-m", "num_shards=a,b"], ["'a'", "'b'"], id="types-in-a-sweep"),
        pytest.param(PREP, ["output_dir="], ["output_dir= is empty"], id="empty-folder"),
        pytest.param(PREP, ["model=quickstart"], ["no group 'model' in data_prep"], id="group-of-the-other"),
        pytest.param(PREP, ["artifact=a b", "wandb.mode=on"], ["'a b'", "wandb.mode=on"], id="registration"),
        pytest.param(PREP, ["alias=v7"], ["'v7' is reserved for version 7"], id="alias"),
        pytest.param(TOOL, ["artifacts", "show", "X"], ["no artifact 'X'"], id="tool"),
        pytest.param(PRETRAIN, ["train=null"], ["train=null", "train=NAME", "phase1"], id="train-null"),
        pytest.param(PRETRAIN, ["model=null"], ["model=NAME", "quickstart"], id="model-null"),
        pytest.param(PRETRAIN, ["data_blend="], ["data_blend=NAME", "math"], id="blend-empty"),
        pytest.param(PREP, ["data_blend=null"], ["data_blend=NAME", "sample"], id="prep-blend-null"),
        pytest.param(PREP, ["-m", "data_blend=null,sample"], ["data_blend=NAME"], id="null-in-a-sweep"),
        pytest.param(PRETRAIN, ["+experiment=null"], ["+experiment=NAME"], id="experiment-null"),
        pytest.param(PRETRAIN, ["++experiment=tiny"], ["plus: +experiment=tiny"], id="experiment-two-plus"),
        pytest.param(
            PRETRAIN, ["+model.foo=1"], ["no key 'model.foo'", "The keys of model are hybrid_layer"], id="no-such-leaf"
        ),
        pytest.param(PRETRAIN, ["model.hidden=1"], ["Did you mean 'model.hidden_size'?"], id="leaf-near"),
        pytest.param(PREP, ["train.x=1"], ["no key 'train.x'", "Allowed: "], id="section-of-the-other"),
        pytest.param(PRETRAIN, ["trian.x=1", "megatron.model.x=1"], ["'trian.x'", "+megatron.model.x=1"], id="both"),
        pytest.param(PRETRAIN, ["cluster.env={A: 1, B: x}"], ["+cluster.env.A=1", "+cluster.env.B=x"], id="env-dict"),
        pytest.param(PREP, ["cluster.srun_args=[[a], b]"], ["cluster.srun_args: ['a'] is not text"], id="prep-list"),
        pytest.param(PREP, ["then=[[a]]"], ["then: ['a'] is not text"], id="list-in-then"),
        pytest.param(PRETRAIN, ["data_blend.num_shards=3"], ["belongs to nano3.data_prep"], id="key-of-preparation"),
        pytest.param(
            PREP,
            ["data_blend=sample", "cluster.kind=slrm", "cluster.tasks=0", "num_shards=0", "tokenizer_model=/nope"],
            ["Did you mean 'slurm'?", "cluster.tasks=0", "num_shards=0", "tokenizer_model=/nope"],
            id="prep-all-at-once",
        ),
        pytest.param(
            PREP,
            ["data_blend=sample", "num_shards=0", "output_dir=", "alias=latest", "--then", "trian.x=1"],
            ["num_shards=0", "output_dir= is empty", "'latest' is reserved", "then: no key 'trian.x'"],
            id="prep-all-stages",
        ),
        pytest.param(PREP, ["data_blend=sample", "cluster.tasks=3"], ["workers=N", "cluster=slurm"], id="tasks-here"),
        pytest.param(
            PREP, ["blend_path=none.json", "num_shards=0"], ["no such file", "num_shards=0"], id="no-blend-and-shards"
        ),
    ],
)
def test_user_errors(run: Command, module: str, args: list[str], expected: list[str]) -> None:
    done = run(module, *args)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "Error executing job" not in done.stderr
    for text in expected:
        assert text in done.stderr, done.stderr


def test_a_secret_in_a_configuration_is_rejected_and_not_repeated(run: Command) -> None:
    words = ["+cluster.env.HF_TOKEN=hf_abc", "cluster.setup=['export WANDB_API_KEY=hf_abc']"]
    done = run(PREP, "data_blend=sample", *words)
    assert done.returncode == 2
    assert "cluster.env.HF_TOKEN: a secret" in done.stderr
    assert "cluster.setup (WANDB_API_KEY): a secret" in done.stderr
    assert "hf_abc" not in done.stdout + done.stderr
    assert "hf_abc" not in run(PREP, words[0][1:]).stderr  # advised to add a plus


@pytest.mark.parametrize("module", [PRETRAIN, PREP])
def test_help_names_every_group_and_key(run: Command, module: str) -> None:
    app = module.partition(".")[2]
    out = run(module, "--help").stdout
    for key in schema_keys(SCHEMAS[app]):
        assert f"\n  {key}" in out or f"\n{key}: " in out
    for group in app_groups(app):
        assert ", ".join(members(group)) in out


def test_hydra_full_error_shows_the_traceback(run: Command) -> None:
    assert "Traceback" in run(PRETRAIN, "model=nano", HYDRA_FULL_ERROR="1").stderr


@pytest.mark.parametrize("module", [PRETRAIN, PREP])
@pytest.mark.parametrize("args", [["--help"], ["--cfg", "job"], ["--info", "defaults-tree"]], ids=" ".join)
def test_hydra_flags(run: Command, module: str, args: list[str]) -> None:
    done = run(module, *args)
    assert (done.returncode, done.stderr) == (0, "")


def test_cfg_job_shows_the_composed_configuration(run: Command) -> None:
    out = run(PRETRAIN, "--cfg", "job", "+experiment=tiny", "train.train_iters=5000").stdout
    assert "train_iters: 5000" in out
    assert "qwen3_8b_pretrain_config" in out


def test_a_users_own_cluster_profile(run: Command, tmp_path: Path) -> None:
    profile = tmp_path / "mine" / "cluster" / "hopper.yaml"
    profile.parent.mkdir(parents=True)
    profile.write_text("kind: slurm\npartition: h100\n")
    out = run(PRETRAIN, "--cfg", "job", "cluster=hopper", NANO3_CONF=str(tmp_path / "mine")).stdout
    assert "partition: h100" in out


def test_a_typo_in_a_users_own_profile_names_file_and_key(run: Command, tmp_path: Path) -> None:
    profile = tmp_path / "mine" / "cluster" / "hopper.yaml"
    profile.parent.mkdir(parents=True)
    profile.write_text("kind: slurm\npartitoin: h100\n")
    done = run(PRETRAIN, "cluster=hopper", NANO3_CONF=str(tmp_path / "mine"))
    assert done.returncode == 2
    assert "cluster/hopper" in done.stderr
    assert "partitoin" in done.stderr


BAD_FILES = {
    "indentation": (
        "kind: slurm\n  nodes: 2\n",
        ["hopper.yaml, line 2", "not valid YAML", "indent keys of one level equally"],
    ),
    "no-keys": ("hopper\n", ["hopper.yaml: expected one key: value per line, found 'hopper'"]),
    "keys": (
        "noodes: 2\npartitoin: x\n",
        ["hopper.yaml: no key 'noodes' in cluster. Did you mean 'nodes'?", "'part"],
    ),
    "value": ("nodes: two\nmode: detached\n", ["hopper.yaml: cluster.nodes must be a whole number, not 'two'"]),
    "list": ("setup: module load x\n", ["hopper.yaml: cluster.setup"]),
}


@pytest.mark.parametrize(("text", "expected"), BAD_FILES.values(), ids=BAD_FILES)
@pytest.mark.parametrize("module", [PRETRAIN, PREP])
def test_problems_in_a_users_own_profile(
    run: Command, tmp_path: Path, module: str, text: str, expected: list[str]
) -> None:
    profile = tmp_path / "mine" / "cluster" / "hopper.yaml"
    profile.parent.mkdir(parents=True)
    profile.write_text(text)
    done = run(module, "cluster=hopper", NANO3_CONF=str(tmp_path / "mine"))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and "full_key" not in done.stderr
    for words in expected:
        assert words in done.stderr


@pytest.mark.parametrize(
    ("tag", "advised"), [("math", True), ("mth", False), ("v99", False)], ids=["blend", "typo", "version"]
)
def test_missing_data_of_a_known_blend_comes_with_the_command_to_prepare_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tag: str, advised: bool
) -> None:
    monkeypatch.setenv("NANO3_HOME", str(tmp_path))
    store.register("DataBlendsArtifact-pretrain", tmp_path, "content", alias="mine")
    with pytest.raises(UserError) as error:
        store.find_artifact(f"DataBlendsArtifact-pretrain:{tag}")
    message = str(explain_error(error.value, "pretrain", CommandLine()))
    assert f"no version or alias '{tag}'" in message
    assert (f"python -m nano3.data_prep data_blend={tag}" in message) == advised


def test_broken_yaml_in_a_run_folder(tmp_path: Path) -> None:
    (tmp_path / "starts").mkdir()
    (tmp_path / "config.yaml").write_text("a: [\n")
    with pytest.raises(yaml.YAMLError) as error:
        OmegaConf.load(tmp_path / "config.yaml")
    (message,) = explain_error(error.value, "pretrain", CommandLine()).problems
    assert message.startswith(f"{tmp_path}/config.yaml, line 2, column 1: not valid YAML: ")
    assert f"Copy the newest {tmp_path}/starts/*/config.yaml over it" in message


def test_missing_nano3_conf_folder(run: Command, tmp_path: Path) -> None:
    done = run(PREP, "data_blend=sample", NANO3_CONF=str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert f"NANO3_CONF={tmp_path}/nowhere: there is no such folder" in done.stderr


@pytest.mark.parametrize(
    ("args", "key", "value"),
    [
        (["train=one_hopper", "megatron.model.recompute_granularity=full"], "recompute_granularity", "full"),
        (["train=one_hopper", "+megatron.model.recompute_granularity=full"], "recompute_granularity", "full"),
        (["++megatron.model.x=1"], "x", "1"),
        (["+cluster.env={A: 1}"], "A", "'1'"),
    ],
    ids=["set by a member", "set by a member, with a plus", "two plus", "dictionary"],
)
def test_open_keys_that_hydra_accepts(run: Command, args: list[str], key: str, value: str) -> None:
    done = run(PRETRAIN, "--cfg", "job", *args)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{key}: {value}\n" in done.stdout


@pytest.mark.parametrize("module", [PRETRAIN, PREP, TOOL])
def test_version(start: Command, module: str) -> None:
    assert start(module, "--version").stdout.startswith("nano3 0.")


HEAVY = {"torch", "megatron", "transformers", "datasets", "wandb", "accelerate", "matplotlib"}


@pytest.mark.parametrize(
    ("module", "args"),
    [
        (PRETRAIN, ["--help"]),
        (PRETRAIN, ["--cfg", "job", "+experiment=tiny"]),
        (PRETRAIN, ["+experiment=quickstart", "dry_run=true"]),
        (PREP, ["--help"]),
        (PREP, ["data_blend=sample", "dry_run=true"]),
        (TOOL, ["--help"]),
        (TOOL, ["artifacts", "list"]),
        (TOOL, ["doctor"]),
    ],
    ids=lambda v: v if isinstance(v, str) else " ".join(v),
)
def test_light_start(start: Command, module: str, args: list[str]) -> None:
    """`-X importtime` lists every module imported, on stderr."""
    done = start(module, *args, PYTHONPROFILEIMPORTTIME="1")
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert ("hydra" in imported) == (module != TOOL or args == ["--help"]), "most tools compose no configuration"
    # Searching for a module in `megatron`, a namespace package, imports the empty namespace only.
    assert not {name for name in imported - {"megatron"} if name.split(".")[0] in HEAVY}


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["nano3.pretrain", "--cfg", "job", "+experiment=quickstart"], id="configuration"),
        pytest.param(["nano3.data_prep", "data_blend=sample", "dry_run=true"], id="plan"),
        pytest.param(["nano3", "inspect", "data", "--doc", "0", "--count", "60", "--chars", "0"], id="documents"),
        pytest.param(["nano3", "inspect", "data"], id="table"),
    ],
)
def test_closed_output_pipe(tmp_path: Path, words: list[str]) -> None:
    """As in `nano3 inspect … | head`: no traceback, wherever the output ends."""
    env = {**os.environ, "NANO3_HOME": str(tmp_path / "artifacts")}
    if "inspect" in words:
        made = [
            sys.executable,
            "-m",
            "nano3.data_prep",
            "data_blend=sample",
            "output_dir=data",
            "sample=60",
            "workers=1",
        ]
        subprocess.run(made, cwd=tmp_path, env=env, check=True, capture_output=True)
    command = subprocess.Popen(
        [sys.executable, "-m", *words], cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert command.stdout is not None and command.stderr is not None
    command.stdout.close()
    errors = command.stderr.read().decode()
    assert command.wait() == 1 and errors == ""
