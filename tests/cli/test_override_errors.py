"""Each wrong override is reported once, with the nearest valid key; valid overrides are never reported."""

import shlex
from dataclasses import fields
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, OverrideParseException
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError

from nano3.cli import config_groups
from nano3.cli.app import register_config
from nano3.cli.config_groups import SCHEMAS, schema_keys
from nano3.cli.open_keys import is_open_key, is_set, open_key_problems, override_leaves
from nano3.cli.override_errors import (
    clean_hydra_message,
    explain_error,
    nested_text_problems,
    override_problems,
    override_values,
    parse_overrides,
    problems_before_composing,
    type_problems,
)
from nano3.config.blend import SourceConfig
from nano3.utils.command_line import CommandLine
from nano3.utils.errors import Failure, UserError

parse = CommandLine.parse
HYDRA_ERROR = ConfigCompositionException("refused")
KEYS = {app: sorted(schema_keys(schema)) for app, schema in SCHEMAS.items()}


@pytest.fixture(autouse=True)
def _set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NANO3_CONF", raising=False)
    register_config()


SUGGESTIONS = {
    "leaf-alone": ("pretrain", "lr=1", "Did you mean 'optimizer.lr'?"),
    "short-leaf": ("pretrain", "seed=3", "Did you mean 'train.seed'?"),
    "wrong-section": ("pretrain", "model.seq_length=4", "Did you mean 'train.seq_length'?"),
    "letters-swapped": ("pretrain", "cluster.partiton=a", "Did you mean 'cluster.partition'?"),
    "section-misspelt": ("pretrain", "clutser.nodes=2", "Did you mean 'cluster.nodes'?"),
    "deep": ("pretrain", "run.wandb.projct=a", "Did you mean 'run.wandb.project'?"),
    "below-a-value": (
        "pretrain",
        "run.data.path=a",
        "run.data has no keys of its own; set it as a whole: run.data=...",
    ),
    "nothing-near": ("pretrain", "zzzz=1", "Allowed: backend, checkpoint, cluster"),
    "preparation": ("data_prep", "worker=3", "Did you mean 'workers'?"),
    "preparation-tokenizer": ("data_prep", "tokenizer=x", "Did you mean 'tokenizer_model'?"),
    "removed": ("pretrain", "~train.sed=1", "Did you mean 'train.seed'?"),
    "added": ("pretrain", "++train.sed=1", "Did you mean 'train.seed'?"),
}


@pytest.mark.parametrize(("app", "word", "expected"), SUGGESTIONS.values(), ids=SUGGESTIONS)
def test_suggestions_for_unknown_keys(app: str, word: str, expected: str) -> None:
    (problem,) = override_problems(app, parse([word]), check_members=True)
    assert expected in problem, problem
    assert f"python -m nano3.{app} --cfg job" in problem


@given(st.sampled_from([(app, key) for app, keys in KEYS.items() for key in keys]))
def test_valid_keys_are_accepted(case: tuple[str, str]) -> None:
    app, key = case
    if key in config_groups.GROUPS or (
        app == "pretrain" and key.partition("data_blend.")[2] in config_groups.DATA_PREP_BLEND_KEYS
    ):
        return
    assert override_problems(app, parse([f"{key}=1"]), check_members=True) == []


@given(st.sampled_from(KEYS["pretrain"]), st.integers(0, 30), st.sampled_from("qxz"))
def test_one_wrong_letter_gets_a_valid_suggestion(key: str, place: int, letter: str) -> None:
    """The suggestion is a key of the application."""
    parent, _, leaf = key.rpartition(".")
    wrong = leaf[: place % len(leaf)] + letter + leaf[place % len(leaf) + 1 :]
    word = f"{parent}.{wrong}".lstrip(".")
    if word in (*KEYS["pretrain"], *config_groups.GROUPS) or is_open_key(word):
        return
    (problem,) = override_problems("pretrain", parse([f"{word}=1"]), check_members=False)
    assert problem.startswith(f"no key {word!r} in pretrain.")
    if "Did you mean" in problem:
        meant = problem.partition("Did you mean '")[2].partition("'")[0]
        assert meant in (*KEYS["pretrain"], *config_groups.GROUPS)


GROUP_CHOICES = {
    "two-at-once": (
        "pretrain",
        ["model=nano", "cluster=slrum"],
        ["no model=nano", "no cluster=slrum. Did you mean 'slurm'"],
    ),
    "sweep": ("pretrain", ["cluster=local,hopper"], ["no cluster=hopper. Allowed: local, slurm."]),
    "one-of-several": (
        "pretrain",
        ["train=[phase1,perf_h10]"],
        ["no train=perf_h10. Did you mean 'perf_h100'"],
    ),
    "number": ("pretrain", ["train=3"], ["no train=3. Allowed: default"]),
    "keys": ("pretrain", ["train={a: 1}"], ["no train={'a': 1}. Allowed: default"]),
    "group-and-key": ("pretrain", ["cluster=slrum", "train.sed=1"], ["no cluster=slrum", "no key 'train.sed'"]),
    "good": ("pretrain", ["cluster=slurm", "+experiment=tiny", "~data_blend"], []),
    "deleted": ("pretrain", ["~train=nothing"], []),
}


@pytest.mark.parametrize(("app", "argv", "expected"), GROUP_CHOICES.values(), ids=GROUP_CHOICES)
def test_unknown_group_members(app: str, argv: list[str], expected: list[str]) -> None:
    problems = override_problems(app, parse(argv), check_members=True)
    assert [p.startswith(t) for p, t in zip(problems, expected, strict=True)] == [True] * len(expected), problems


@pytest.fixture
def given_folder(tmp_path: Path) -> Path:
    """A folder for --config-dir with a member of cluster, and one of train that sets an open key."""
    for name, text in (
        ("cluster/hopper", "kind: slurm\n"),
        ("train/own", "# @package _global_\nmegatron:\n  model:\n    there: 1\n"),
    ):
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


@pytest.mark.parametrize("flag", [["--config-dir", "{}"], ["--config-dir={}"]], ids=["two words", "one word"])
def test_members_in_a_config_dir_are_known(given_folder: Path, flag: list[str]) -> None:
    """Only the actual mistake, elsewhere on the line, is reported."""
    argv = [word.format(given_folder) for word in flag]
    argv += ["cluster=hopper", "train=own", "megatron.model.there=2", "train.seed=ten"]
    (problem,) = explain_error(HYDRA_ERROR, "pretrain", parse(argv)).problems
    assert problem == "train.seed must be a whole number, not 'ten'"
    problems = explain_error(HYDRA_ERROR, "pretrain", parse([*argv, "megatron.model.other=2"])).problems
    assert "+megatron.model.other=2" in problems[1] and len(problems) == 2


def test_a_folder_with_an_equals_sign_is_not_an_override() -> None:
    argv = ["--config-dir", "runs/lr=1", "train.seed=1", "-m"]
    assert [o.key_or_group for o in parse_overrides(parse(argv))] == ["train.seed"]
    assert problems_before_composing("pretrain", parse(parse(argv).flags_first())) == []


def test_unreadable_words_are_reported_with_all_other_problems() -> None:
    argv = ["train.seed=[1", "trian.x=1", "train.train_iters", "5", "--cfg", "job"]
    assert [o.key_or_group for o in parse_overrides(parse(argv))] == ["trian.x"]
    problems = problems_before_composing("pretrain", parse(argv))
    assert [p.split(":")[0] for p in problems[:-1]] == ["train.train_iters", "5", "train.seed=[1"], problems
    assert problems[0].endswith("such as train.train_iters=VALUE.")
    assert "'key=[a, b]'" in problems[2] and problems[3].startswith("no key 'trian.x' in pretrain.")


UNREADABLE = ["/x/für", "~/x", "a(b", "a(b)", "a=b", "日本", "a;b", "a b&c", "a#b", "x<y"]


@pytest.mark.parametrize("value", UNREADABLE)
def test_text_that_needs_quotes_is_shown_with_quotes_that_work(value: str) -> None:
    """The word to paste, as a shell reads it, has the typed text as its value."""
    word = f"run.output_dir={value}"
    (problem,) = override_problems("pretrain", parse([word]), check_members=False)
    (pasted,) = shlex.split(problem.partition("for the shell, too: ")[2])
    (override,) = OverridesParser.create().parse_overrides([pasted])
    assert (override.key_or_group, override.value()) == ("run.output_dir", value)
    assert override_problems("pretrain", parse([pasted]), check_members=False) == []


@pytest.mark.parametrize("flag", ["-m", "--multirun"])
def test_the_values_of_a_sweep_are_quoted_one_by_one(flag: str) -> None:
    argv = [flag, "run.data=~/a,plain,~/b c"]
    (problem,) = override_problems("pretrain", parse(argv), check_members=False)
    (pasted,) = shlex.split(problem.partition("for the shell, too: ")[2])
    assert pasted == 'run.data="~/a",plain,"~/b c"'
    (override,) = OverridesParser.create().parse_overrides([pasted])
    assert list(override_values(override)) == ["~/a", "plain", "~/b c"]
    (problem,) = override_problems("pretrain", parse(argv[1:]), check_members=False)
    assert problem.endswith("""'run.data="~/a,plain,~/b c"'"""), "without a sweep it is one text"


def test_quoted_members_of_a_sweep_are_named_without_quotes() -> None:
    (problem,) = override_problems("pretrain", parse(["-m", 'model="quickstart","lader"']), check_members=True)
    assert problem == "no model=lader. Did you mean 'ladder'?"


@pytest.mark.parametrize("word", ["train=[null]", "train=[phase1,1]", "train=[[phase1]]", "+experiment=[{tiny: 1}]"])
def test_a_list_of_members_holds_names(word: str) -> None:
    """Hydra ends with a TypeError."""
    (problem,) = override_problems("pretrain", parse([word]), check_members=False)
    assert problem.startswith(f"{word}: choose a member of ")


@pytest.mark.parametrize("key", [field.name for field in fields(SourceConfig)])
def test_a_key_of_a_dataset_is_no_option_of_a_preparation(key: str) -> None:
    if key == "max_epochs":  # of the blend, too
        return
    for word in (f"{key}=x", f"+data_blend.{key}=x"):
        if word.lstrip("+").partition("=")[0] in KEYS["data_prep"]:
            continue
        (problem,) = override_problems("data_prep", parse([word]), check_members=True)
        assert "belongs to a dataset" in problem and "blend_path" in problem


@pytest.mark.parametrize("word", ["für=3", "run.name =a", "train.=5", "tag(a)=3", "~für"])
def test_a_key_that_cannot_be_one_is_not_shown_with_quotes(word: str) -> None:
    with pytest.raises(OverrideParseException) as error:
        OverridesParser.create().parse_overrides([word])
    (problem,) = explain_error(error.value, "pretrain", parse([word])).problems
    assert "cannot be a key" in problem and "Lexer" not in problem


def test_an_unreadable_secret_is_not_shown() -> None:
    (problem,) = override_problems("pretrain", parse(["cluster.env.HF_TOKEN=hf_a!b"]), check_members=False)
    assert "HF_TOKEN=..." in problem and "hf_a" not in problem


DASHES = {
    "-dry_run=true": "Did you mean dry_run=true?",
    "--dry-run": "Did you mean dry_run=true?",
    "--train.seed=1": "Did you mean train.seed=1?",
    "--train.train-iters": "Did you mean train.train_iters=VALUE?",
    "-cluster=slurm": "Did you mean cluster=slurm?",
}


@pytest.mark.parametrize(("word", "expected"), DASHES.items())
def test_a_key_with_dashes_is_no_flag(word: str, expected: str) -> None:
    (problem,) = problems_before_composing("pretrain", parse([word]))
    assert problem.endswith(f"no such flag. {expected}"), problem


@pytest.mark.parametrize("word", ["-m", "-h", "-c", "-cjob", "-sc", "-cd", "-p", "-iall", "-r", "--cfg", "--info"])
def test_flags_of_hydra_are_no_keys(word: str) -> None:
    assert problems_before_composing("pretrain", parse([word])) == []


TYPES = {
    "float-for-int": ("train.seed=1e3", "train.seed must be a whole number, not 1000.0"),
    "text-for-float": ("optimizer.lr=fast", "optimizer.lr must be a number, not 'fast'"),
    "number-for-bool": ("dry_run=maybe", "dry_run must be true or false, not 'maybe'"),
    "list-for-text": ("run.name=[1]", "run.name must be text, not [1]"),
    "keys-for-number": ("cluster.nodes={a: 1}", "cluster.nodes must be a whole number, not {'a': 1}"),
    "text-for-keys": ("megatron=x", "megatron must be keys with values, such as {a: 1}, not 'x'"),
    "numbers-for-pairs": (
        "train.skip_iterations=[3]",
        "train.skip_iterations must be a list of lists, such as [[1, 2]], not [3]",
    ),
    "text-for-list": ("train.mixture=docs", "train.mixture must be a list, such as [a, b], not 'docs'"),
    "number-for-section": (
        "train.loss_mask=5",
        "train.loss_mask is a section: set its keys, such as train.loss_mask.eod=VALUE",
    ),
    "null-for-required": ("train.seed=null", "train.seed must be a whole number, not null"),
}


@pytest.mark.parametrize(("word", "expected"), TYPES.values(), ids=TYPES)
def test_a_value_of_the_wrong_type(word: str, expected: str) -> None:
    (problem,) = type_problems("pretrain", parse([word]))
    assert problem == expected


@pytest.mark.parametrize(
    "word",
    ["train.seed=3", "train.threads=null", "~train.seed", "optimizer.lr=1", "cluster.setup=[]", "+megatron.a.b=[1]"],
)
def test_a_value_of_the_right_type(word: str) -> None:
    assert type_problems("pretrain", parse([word])) == []


TEXT_KEYS = [
    "cluster.mounts", "cluster.setup", "cluster.teardown", "cluster.sbatch_args", "cluster.srun_args",
    "logger.sample_prompts",
]  # fmt: skip


@pytest.mark.parametrize("key", TEXT_KEYS)
def test_what_a_list_of_texts_must_not_hold(key: str) -> None:
    """OmegaConf accepts lists and keys with values in it, which an unquoted colon in YAML makes of a text."""
    cfg = OmegaConf.structured(SCHEMAS["pretrain"])
    OmegaConf.update(cfg, key, ["a: b", {"module load": "cuda"}, 3, ["HF_TOKEN=hf_abc"]])
    problems = nested_text_problems(cfg)
    assert [problem.partition(" is not")[0] for problem in problems] == [
        f"{key}: {{'module load': 'cuda'}}",
        f"{key}: ['HF_TOKEN=***']",
    ]


def test_a_secret_of_the_wrong_type_is_not_repeated() -> None:
    (problem,) = type_problems("pretrain", parse(["+cluster.env.HF_TOKEN=[hf_abc]"]))
    assert problem.startswith("cluster.env.HF_TOKEN: ") and "hf_abc" not in problem


@pytest.mark.parametrize(
    ("key", "free"),
    [
        ("megatron", True), ("megatron.model.x", True), ("cluster.env", True), ("cluster.env.A", True),
        ("megatrons.x", False), ("cluster", False), ("cluster.environment", False), ("model.megatron.x", False),
    ],
)  # fmt: skip
def test_open_keys(key: str, free: bool) -> None:
    assert is_open_key(key) is free


def test_suggested_open_keys_parse_to_the_same_value() -> None:
    """Hydra parses each suggested override to the same value."""
    word = "megatron.model={a: [1, 2], b: null, c: 'x y', d: {e: true, f: 1e-3}}"
    problems = open_key_problems("pretrain", parse_overrides(parse([word])))
    advice = [problem.rpartition(" plus: ")[2] for problem in problems]
    read = OverridesParser.create().parse_overrides(advice)
    assert {o.key_or_group.removeprefix("megatron.model."): o.value() for o in read} == {
        "a": [1, 2], "b": None, "c": "x y", "d.e": True, "d.f": 1e-3,
    }  # fmt: skip
    assert all(o.is_add() for o in read)


def test_no_plus_is_suggested_for_keys_that_have_one_or_are_set() -> None:
    for words in (["+megatron.model.x=1"], ["++megatron.model.x=1"], ["~megatron.model.x"], ["train.seed=1"]):
        assert open_key_problems("pretrain", parse_overrides(parse(words))) == []
    words = ["+megatron.model.x=1", "megatron.model.x=2", "megatron.model.y=3"]
    (problem,) = open_key_problems("pretrain", parse_overrides(parse(words)))
    assert problem.startswith("megatron.model.y is not set yet")


def test_nested_dictionaries_are_flattened() -> None:
    (override,) = parse_overrides(parse(["megatron={a: {b: {c: 1}}, d: 2}"]))
    assert dict(override_leaves(override)) == {"megatron.a.b.c": "1", "megatron.d": "2"}


@pytest.mark.parametrize(
    ("key", "there"), [("a", True), ("a.b", True), ("a.b.c", False), ("a.x", False), ("n", True), ("n.x", False)]
)
def test_a_null_counts_as_set(key: str, there: bool) -> None:
    assert is_set(OmegaConf.create({"a": {"b": 1}, "n": None}), key) is there


def test_a_wrapped_nano3_error_is_returned_unchanged() -> None:
    """OmegaConf wraps the errors of resolvers."""
    own = UserError("run.data=x: there is no such folder")
    outer = ValueError("wrapped")
    outer.__cause__ = own
    assert explain_error(outer, "pretrain", parse([])) is own
    assert explain_error(Failure("disk full"), "pretrain", parse([])).exit_code == 1


def test_an_unknown_interpolation_is_one_line() -> None:
    with pytest.raises(InterpolationKeyError) as error:
        _ = OmegaConf.create({"a": "${nothing.here}"}).a
    explained = explain_error(error.value, "pretrain", parse(["train.sed=1"]))
    assert explained.exit_code == 2
    assert explained.problems == ["Interpolation key 'nothing.here' not found"]


def test_misleading_advice_of_hydra_is_removed() -> None:
    text = "Key 'x' is not in struct\nTo append to your config use +x=1\n    full_key: x\n    object_type=dict\nmore"
    assert clean_hydra_message(text) == "Key 'x' is not in struct\n  more"
