"""Test nano3.data_prep from the command line: sweeps, checks, registration, Ctrl-C, and --then."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import Commands

from nano3.artifacts import store
from nano3.training.run.lineage import data_reference

SAMPLE = Path(__file__).parents[2] / "nano3/sample"
PREP = ["-m", "nano3.data_prep", f"tokenizer_model={SAMPLE}/tokenizer", "num_shards=3", "workers=1"]
DATA = "DataBlendsArtifact-pretrain"


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    commands = Commands(tmp_path)
    monkeypatch.setenv("NANO3_HOME", commands.env["NANO3_HOME"])
    (tmp_path / "text.jsonl").write_text("".join(f'{{"text": "document {n}, a few words"}}\n' for n in range(400)))
    return commands


def blend(cli: Commands, name: str, weight: float = 1) -> str:
    """Write a blend file and return the override that selects it."""
    sets = [{"name": n, "path": "text.jsonl", "weight": w} for n, w in (("a", 1), ("b", weight))]
    (cli.folder / name).write_text(json.dumps({"datasets": sets}))
    return f'blend_path="{name}"'


def test_every_sweep_point_runs(cli: Commands) -> None:
    (cli.folder / "multirun.yaml").write_text("mine")
    done = cli(*PREP, "-m", blend(cli, "b.json"), "add_bos=false", "max_doc_tokens=4,8", "output_dir=out")
    assert "2 of 2 points finished" in done.stdout
    for cut in (4, 8):
        made = json.loads((cli.folder / f"out/max_doc_tokens={cut}/manifest.json").read_text())
        assert made["options"]["max_doc_tokens"] == cut
    assert {"b-max_doc_tokens-4": 1, "b-max_doc_tokens-8": 2}.items() <= store.aliases(DATA).items()
    assert sorted(p.name for p in cli.folder.iterdir()) == ["b.json", "home", "multirun.yaml", "out", "text.jsonl"]
    assert (cli.folder / "multirun.yaml").read_text() == "mine"


def test_sweep_points_keep_their_own_folders_and_blends(cli: Commands) -> None:
    blend(cli, "a.json"), blend(cli, "b.json")
    cli(*PREP, "-m", "blend_path=a.json,b.json", "output_dir='out/${blend_path}'")
    assert (cli.folder / "out/a.json/manifest.json").exists()
    assert {"a", "b", "latest"} == set(store.aliases(DATA))


def test_a_failed_point_sets_the_exit_code_and_the_others_run(cli: Commands) -> None:
    for name in ("bad", "good"):
        sets = [{"name": "a", "path": f"{name}.jsonl"}]
        (cli.folder / f"{name}.json").write_text(json.dumps({"datasets": sets}))
    (cli.folder / "bad.jsonl").write_text('{"text": null}\n')
    (cli.folder / "text.jsonl").rename(cli.folder / "good.jsonl")
    done = cli(*PREP, "-m", "blend_path=bad.json,good.json", "output_dir=out", code=1)
    assert "1 of 2 points finished" in done.stdout
    assert (cli.folder / "out/blend_path=good.json/manifest.json").exists()


def test_a_mistake_in_any_point_is_reported_before_any_work(cli: Commands) -> None:
    done = cli(*PREP, "-m", blend(cli, "b.json"), "alias=fine,v7", "output_dir=out", code=2)
    assert "'v7' is reserved for version 7" in done.stderr
    assert not (cli.folder / "out").exists()
    done = cli(*PREP, "-m", "num_shards=3,4", "then=['+experiment=quickstart']", code=2)
    assert "sweep nano3.pretrain" in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["num_shards=12,0"], "num_shards=0"),
        (["engine=auto,fast"], "engine=fast"),
        (["cluster.tasks=1,2"], "cluster.tasks=2"),
        (["blend_path=b.json,none.json"], "none.json"),
        (["blend_path=b.json,gone.json"], "path=gone.jsonl"),
        (["tokenizer_model=/nope,{tokenizer}"], "tokenizer_model=/nope"),
    ],
    ids=["number", "choice", "cluster", "blend file", "text", "tokenizer"],
)
def test_every_point_is_validated_before_any_work(cli: Commands, words: list[str], expected: str) -> None:
    own = [blend(cli, "b.json"), *(word.format(tokenizer=SAMPLE / "tokenizer") for word in words)]
    (cli.folder / "gone.json").write_text(json.dumps({"datasets": [{"name": "a", "path": "gone.jsonl"}]}))
    done = cli(*PREP, "-m", *own, "output_dir=out", code=2)
    assert expected in done.stderr
    assert not (cli.folder / "out").exists() and not store.names()


def test_other_data_in_the_output_folder_is_reported_before_any_work(cli: Commands) -> None:
    cli(*PREP, blend(cli, "b.json"), 'output_dir="out/num_shards=4"', "alias=mine")
    done = cli(*PREP, "-m", blend(cli, "b.json"), "output_dir=out", "num_shards=2,4", code=2)
    assert "num_shards=4: holds other data" in done.stderr
    assert not (cli.folder / "out/num_shards=2").exists()


@pytest.mark.parametrize("home", ["/proc/nope", "/dev/null"])
def test_an_unwritable_store_is_reported_before_any_work(cli: Commands, home: str) -> None:
    done = cli(*PREP, blend(cli, "b.json"), "output_dir=out", code=2, NANO3_HOME=home)
    assert f"the artifact store {home} cannot be written" in done.stderr
    assert not (cli.folder / "out").exists()


@pytest.mark.parametrize(
    ("file", "aliases", "expected"),
    [
        ("my blend.json", {"my-blend", "latest"}, ""),
        ("latest.json", {"latest"}, "no alias: 'latest' is reserved for the newest version"),
        ("v7.json", {"latest"}, "no alias: 'v7' is reserved for version 7"),
    ],
)
def test_blend_files_whose_name_cannot_be_an_alias(cli: Commands, file: str, aliases: set[str], expected: str) -> None:
    done = cli(*PREP, blend(cli, file), "output_dir=out")
    assert set(store.aliases(DATA)) == aliases
    assert expected in done.stderr


def test_a_changed_weight_is_a_new_version_and_a_rerun_writes_nothing(cli: Commands) -> None:
    for weight, version in ((1, 1), (2, 2), (2, 2), (1, 3), (1, 3)):
        cli(*PREP, blend(cli, "b.json", weight), "output_dir=out")
        assert store.aliases(DATA) == {"b": version, "latest": version}
    before = {p: p.stat().st_mtime_ns for p in store.home().rglob("*")}
    cli(*PREP, blend(cli, "b.json", 1), "output_dir=out")
    assert {p: p.stat().st_mtime_ns for p in store.home().rglob("*")} == before


def test_a_run_in_megatrons_order_cannot_follow_a_blend_with_budgets(cli: Commands) -> None:
    sets = "data_blend.datasets=[{name: a, path: text.jsonl, epochs: 2}, {name: b, path: text.jsonl, weight: 1}]"
    words = [sets, "data_blend.name=mine", "output_dir=out", "--then", "+experiment=quickstart"]
    done = cli(*PREP, *words, code=2)
    assert (
        "then: the blend mine asks for a: epochs=2, and Megatron's order of samples knows weights only" in done.stderr
    )
    cli(*PREP, "dry_run=true", *words, "train.sample_order=nano3")
    done = cli(*PREP, *words, "train.sample_order=nano3", "train.mixture=[{blend: {aa: 1, b: 1}}]", code=2)
    assert "then: train.mixture: the data has no dataset 'aa' with a train split, only a, b. Did" in done.stderr


def test_the_followup_run_is_checked_before_any_work(cli: Commands) -> None:
    words = ["--then", "+experiment=quickstart", "train.global_batch_size=3", "run.name=latest"]
    done = cli(*PREP, blend(cli, "b.json"), "output_dir=out", *words, code=2)
    assert "then: train.global_batch_size=3 is not a multiple" in done.stderr
    assert "then: run.name" in done.stderr
    assert not (cli.folder / "out").exists()


def test_the_run_after_is_shown_with_the_size_of_the_tokenizer(cli: Commands) -> None:
    words = [*PREP, blend(cli, "b.json"), "output_dir=out"]
    done = cli(*words, "dry_run=true", "--then", "+experiment=quickstart")
    assert re.search(r"^parameters .*\(vocabulary 4,096\)$", done.stdout, re.MULTILINE), done.stdout
    bad = cli(*words, "--then", "+experiment=quickstart", "model.vocab_size=9", code=2)
    assert "then: model.vocab_size=9 is less than the data's vocabulary of 4096" in bad.stderr


@pytest.mark.parametrize("words", [["data_blend=sample", "dry_run=true"], ["data_blend=sample", "sample=20"]])
def test_a_preparation_without_then_imports_no_training(cli: Commands, words: list[str]) -> None:
    """`-X importtime` lists every imported module on stderr."""
    done = cli("-X", "importtime", *PREP, "output_dir=out", *words)
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "nano3.prep.validate" in imported
    assert (cli.folder / "out/manifest.json").exists() is ("dry_run=true" not in words)
    training = ("nano3.training", "nano3.pretrain", "nano3.prep.followup_run")
    assert not {name for name in imported if name.startswith(training)}


def test_the_data_of_a_run_is_found_by_its_folder(cli: Commands, tmp_path: Path) -> None:
    """The configuration of a follow-up run on Slurm is saved before its data is registered."""
    start = {"data": {"reference": str(tmp_path), "folder": str(tmp_path), "fingerprint": "content"}}
    assert data_reference(start) is None
    store.register(DATA, tmp_path, "content")
    assert data_reference(start) == f"{DATA}:v1"
    store.register(DATA, tmp_path, "other weights")
    assert data_reference(start) is None


def test_ctrl_c_is_one_line(cli: Commands) -> None:
    line = json.dumps({"text": "some words here " * 40}) + "\n"
    (cli.folder / "text.jsonl").write_text(line * 60000)
    words = [*PREP, blend(cli, "b.json"), "output_dir=out", "engine=tokenizers"]
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=cli.folder,
        env=cli.env,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background processes ignore it
    )
    while not list(cli.folder.glob("out/.prep/*/plan.json")):
        time.sleep(0.05)
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)  # to the workers too, as a terminal does
    _, err = process.communicate(timeout=200)
    assert process.returncode == 130
    assert err.strip().splitlines()[-1] == "stopped; run the same command again to resume"
    assert "Traceback" not in err
