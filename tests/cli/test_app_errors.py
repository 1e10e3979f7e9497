"""Regression tests: mistakes that once ended in a traceback or wrong advice; exit code 2 and a fix."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, Commands

TOKENIZER = Path(__file__).parents[2] / "nano3/sample/tokenizer"


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """A folder with prepared data in `out` and group members in `mine`."""
    commands = Commands(tmp_path_factory.mktemp("mistakes"))
    commands.env.pop("NANO3_CONF", None)
    commands.env.pop("HYDRA_FULL_ERROR", None)
    (commands.folder / "t.jsonl").write_text(
        "".join(f'{{"text": "document {n} of a few words"}}\n' for n in range(300))
    )
    (commands.folder / "b.json").write_text(json.dumps({"datasets": [{"name": "a", "path": "t.jsonl"}]}))
    for name, text in (
        ("cluster/hopper", "defaults: [slurm, _self_]\npartition: h100\n"),
        ("cluster/nested", "nodes: {min: 2}\n"),
        ("experiment/bare", "train: {train_iters: 3}\n"),
    ):
        (commands.folder / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (commands.folder / f"mine/{name}.yaml").write_text(text)
    words = ["blend_path=b.json", f"tokenizer_model={TOKENIZER}", "num_shards=3", "valid_fraction=0.2", "workers=1"]
    commands("-m", "nano3.data_prep", *words, "output_dir=out")
    return commands


RUN = ["-m", "nano3.pretrain", "+experiment=tiny", "run.data=./out", "dry_run=true"]
MISTAKES = {
    "free-sections": (
        [*RUN, "+megatron.model=x", "+megatron.checkpoint=y"],
        ["megatron.model=x: 'x' is a str; expected section", "megatron.checkpoint=y: 'y' is a str; expected section"],
    ),
    "free-size": ([*RUN, "+megatron.model.num_layers=many"], ["megatron.model.num_layers=many: 'many' is a str"]),
    "pattern": ([*RUN, "model.hybrid_layer_pattern=mem"], ["model.hybrid_layer_pattern=mem has e m; allowed: M Mamba"]),
    "member-of-a-given-folder": (
        ["-m", "nano3.pretrain", "--config-dir=mine", "cluster=hopper", "train.seed=ten"],
        ["train.seed must be a whole number, not 'ten'"],
    ),
    "keys-for-a-number": (
        ["-m", "nano3.pretrain", "--config-dir", "mine", "cluster=nested"],
        ["cluster/nested.yaml: cluster.nodes must be a whole number, not {'min': 2}"],
    ),
    "experiment-without-its-first-line": (
        ["-m", "nano3.pretrain", "--config-dir", "mine", "+experiment=bare"],
        ["experiment/bare.yaml: an experiment must begin with the line '# @package _global_'"],
    ),
    "blend-named-twice": (
        ["-m", "nano3.data_prep", "blend_path=b.json", "data_blend=math", "data_blend.num_shards=4"],
        ["data_blend=math data_blend.num_shards=4: has no effect beside blend_path=b.json; leave one of the two out"],
    ),
    "blend-inside-a-file": (
        ["-m", "nano3.data_prep", "blend_path=b.json/c.json"],
        ["blend_path=b.json/c.json: cannot be read: Not a directory"],
    ),
    "search-path": (
        ["-m", "nano3.pretrain", "hydra.searchpath=[pkg://os,pkg://no.such,/no/such,s3://x,pkg://nano3,file:///tmp]"],
        [
            "hydra.searchpath: pkg://os: a module, not a package. Write file:///folder, or pkg://package.folder",
            "pkg://no.such: the package cannot be imported (No module named 'no')",
            "hydra.searchpath: /no/such: there is no such folder",
            "hydra.searchpath: s3://x: s3:// is not supported",
        ],
    ),
    "search-path-of-a-preparation": (
        ["-m", "nano3.data_prep", "hydra.searchpath=[pkg://no_such]", "--cfg", "job"],
        ["hydra.searchpath: pkg://no_such: there is no such package"],
    ),
    "long-names": (["-m", "nano3.data_prep", f"blend_path={'b' * 300}"], ["bbb", "name", "too long"]),
}


@pytest.mark.parametrize(("words", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_only_the_actual_problem_is_reported(cli: Commands, words: list[str], expected: list[str]) -> None:
    done = cli(*words, code=2)
    assert "Traceback" not in done.stderr
    for text in expected:
        assert text in done.stderr, done.stderr
    assert done.stderr.count("no cluster=") == 0, "an existing member is not reported as missing"


def test_defaults_of_a_member_in_a_config_dir(cli: Commands) -> None:
    done = cli("-m", "nano3.pretrain", "--cfg", "job", "--config-dir=mine", "cluster=hopper", "train.seed=3")
    assert "partition: h100" in done.stdout and "gpus_per_node: 8" in done.stdout


def test_a_run_folder_with_only_config_yaml_is_a_new_run(cli: Commands) -> None:
    """As when config.yaml was copied to another folder, or starts/ was deleted."""
    (cli.folder / "alone").mkdir()
    (cli.folder / "alone/config.yaml").write_text("run: {}\ntrain: {seed: 1}\ncheckpoint: {}\n")
    words = ["run.output_dir=alone", "run.data=./out", "train.seq_length=32", "dry_run=true"]
    assert "error" not in cli("-m", "nano3.pretrain", "+experiment=quickstart", *words).stderr
    assert [path.name for path in (cli.folder / "alone").iterdir()] == ["config.yaml"], "a dry run writes nothing"


ANYWHERE = [
    "nano3.data_prep data_blend=sample",
    f"nano3.data_prep blend_path=/no tokenizer_model={TOKENIZER} output_dir=out",
    "nano3.pretrain +experiment=quickstart",
    "nano3.pretrain --cfg job",
    "nano3.pretrain -m train.seed=1,2",
    *(f"nano3 {tool}" for tool in ("artifacts list", "cancel a", "diff a b", "doctor", "export a --output b")),
    *(
        f"nano3 {tool}"
        for tool in ("inspect a", "jobs", "report a", "rerun a", "tail a", "trace a --iteration 1", "verify a")
    ),
]


def test_a_working_folder_that_was_deleted(cli: Commands) -> None:
    (cli.folder / "gone").mkdir()
    words = [sys.executable, str(ROOT / "tests/forked_commands.py"), *ANYWHERE, "nano3 --help", "nano3.pretrain --help"]
    script = f"cd gone && rmdir ../gone && {shlex.join(words)}"
    done = subprocess.run(["bash", "-c", script], cwd=cli.folder, env=cli.env, capture_output=True, text=True)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(ANYWHERE) + 2, done.stderr
    for command, code, shown in results[:-2]:
        assert (code, shown.splitlines()[-1]) == (
            2,
            "error: The current folder has been deleted. Change to another one (cd FOLDER).",
        ), command
    assert [code for _, code, _ in results[-2:]] == [0, 0]


def test_empty_variables_are_not_set(cli: Commands) -> None:
    """Not the current folder, nor an address without a name."""
    empty = dict.fromkeys(["NANO3_HOME", "NANO3_CACHE", "NANO3_CONF", "HF_ENDPOINT", "NANO3_URL_CREDENTIALS"], "")
    words = [
        "blend_path=b.json",
        f"tokenizer_model={TOKENIZER}",
        "num_shards=3",
        "valid_fraction=0.2",
        "output_dir=out",
    ]
    assert f"is {cli.folder}/out" in cli("-m", "nano3.data_prep", *words, **empty).stdout
    assert (cli.folder / "artifacts/DataBlendsArtifact-pretrain/v1.json").is_file()
    assert not list(cli.folder.glob("v*.json"))
