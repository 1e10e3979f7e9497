"""What nano3 0.1.0 left on disk is read by the present code: data, half-done preparations, runs, jobs, the store.

Everything goes through the command line, so that these tests say the same whatever the modules are called.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import old_text
import pytest
from old_work import (
    TOOL,
    Work,
    baseline,
    ended,
    facts,
    lines,
    remember_anew,
    same_lines,
    sha256,
    shards,
    table_rows,
    typed,
    unpack,
    versions,
)

BASE = baseline()
COMMANDS: dict[str, str] = BASE["commands"]
DATA, MODEL = "DataBlendsArtifact-pretrain", "ModelArtifact-pretrain"


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """The old working folder; read-only."""
    return unpack(tmp_path_factory.mktemp("old") / "work")


@pytest.fixture
def own(tmp_path: Path) -> Work:
    """The old working folder, for one test alone."""
    return unpack(tmp_path / "work")


@pytest.fixture
def prepared(tmp_path: Path) -> Work:
    """The same without the runs."""
    return unpack(tmp_path / "work", runs=False)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """An empty folder in which the bundled corpus is prepared, with the splits that 0.1.0 gave it."""
    work = Work(tmp_path_factory.mktemp("fresh"))
    work(*typed(COMMANDS["sample"]), "split_by=position")
    return work


# The quickstart's initial weights and balancing of experts in 0.1.0.
OLD_BALANCE = ("model.init_method_std=0.02", "model.moe_router_bias_update_rate=1e-3")


@pytest.fixture(scope="module", autouse=True)
def begun(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Two trainings that take longer than all else; begun at once, when they are wanted, and waited for at the end."""
    wanted = {item.originalname for item in request.session.items if isinstance(item, pytest.Function)}
    started: dict[str, Any] = {}
    if "test_a_stopped_run_goes_on_to_the_same_losses" in wanted:
        work = unpack(tmp_path_factory.mktemp("stopped") / "work")
        started["stopped"] = work, half_way(work, "stopped"), work.start(*typed(COMMANDS["stopped"]))
    if "test_the_quickstart_has_the_same_losses" in wanted:
        work = request.getfixturevalue("fresh")
        started["quickstart"] = work, {}, work.start(*typed(COMMANDS["quickstart"]), *OLD_BALANCE)
    yield started
    for *_, process in started.values():
        if process.poll() is None:
            process.kill()
            process.communicate()


def files(folder: Path) -> dict[str, tuple[str, int]]:
    """Checksum and time of every file below a folder but locks."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and "lock" not in path.name]
    return {str(path.relative_to(folder)): (sha256(path), path.stat().st_mtime_ns) for path in found}


# Prepared data


def test_the_bundled_corpus_gives_the_same_bytes(fresh: Work) -> None:
    assert facts(fresh.folder / "sample", fresh.folder / "home", "sample") == BASE["sample"]


def test_a_vocabulary_of_more_than_16_bits_gives_the_same_bytes(tmp_path: Path) -> None:
    old_text.write_wide(tmp_path)
    work = Work(tmp_path)
    work(*typed(COMMANDS["wide"]), "split_by=position")
    found = facts(tmp_path / "wide-data", tmp_path / "home", "wide")
    assert found["dtype"] == "int32"
    assert found == BASE["wide"]


@pytest.mark.parametrize("name", ["data", "on-slurm"])
def test_old_data_is_whole_and_nothing_is_left_to_do(prepared: Work, name: str) -> None:
    """Neither the data nor the store is changed by the same command."""
    prepared(*TOOL, "verify", name)
    before = files(prepared.folder / name), files(prepared.folder / "home")
    prepared(*typed(COMMANDS[name]))
    assert (files(prepared.folder / name), files(prepared.folder / "home")) == before
    assert shards(prepared.folder / name) == BASE["data"]["sha256"]


@pytest.mark.parametrize(("change", "code"), [("", 0), ("notes.parquet", 2)], ids=["as they are", "another one"])
def test_what_was_seen_in_files_is_still_known(prepared: Work, change: str, code: int) -> None:
    """Had the file been looked at instead of remembered, its content would be found to be the old one."""
    remember_anew(prepared.folder / "data/.prep/looked.1.msgpack", prepared.folder, change)
    prepared(*typed(COMMANDS["data"]), code=code)


@pytest.mark.parametrize("name", ["broken", "publishing"])
def test_a_preparation_that_was_broken_off_ends_with_the_same_bytes(prepared: Work, name: str) -> None:
    """One was killed while it worked, the other while it moved its files into place."""
    folder = prepared.folder / name
    joined = times(folder)
    assert not (folder / "manifest.json").exists() and 3 < len(joined) <= 17
    prepared(*typed(COMMANDS[name]))
    assert facts(folder, prepared.folder / "home", name) == BASE["data"]
    assert joined.items() <= times(folder).items()


def times(folder: Path) -> dict[str, int]:
    """When the shards in a folder were made, wherever in it they are."""
    return {f"{path.parent.name}/{path.name}": path.stat().st_mtime_ns for path in folder.rglob("data_*.idx")}


def test_units_that_were_done_are_not_done_again(prepared: Work) -> None:
    """The text of one is spoiled, and remembered as unchanged: from a second reading, other bytes would come."""
    text = prepared.folder / "text/code.jsonl.zst"
    seen = text.stat()
    text.write_bytes(bytes(seen.st_size))
    os.utime(text, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    remember_anew(prepared.folder / "broken/.prep/looked.1.msgpack", prepared.folder)
    prepared(*typed(COMMANDS["broken"]))
    assert shards(prepared.folder / "broken") == BASE["data"]["sha256"]


def test_documents_are_shown(old: Work) -> None:
    told = old(*TOOL, "inspect", f"{DATA}:tiny", "--doc", "0", "--dataset", "stories", "--chars", "0")
    texts = [json.loads(line)["text"] for line in (old.folder / "text/stories.jsonl").read_text().splitlines()]
    assert any(text and f"{text}</s>" in told for text in texts)


# Runs


def with_slurm(folder: Path, state: str) -> dict[str, str]:
    """A PATH on which `scontrol` says that every job is in this state, and `scancel` notes what it is to end."""
    tools = folder / f"slurm-{state}"
    tools.mkdir(exist_ok=True)
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "JobId=$4 JobState={state} ExitCode=0:0 NodeList=node1"\n')
    (tools / "scancel").write_text(f'#!/bin/sh\necho "$@" >>{folder}/cancelled\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    return {"PATH": f"{tools}:{os.environ['PATH']}"}


def test_all_runs_are_listed_as_before(old: Work) -> None:
    """Slurm is asked only about the one job whose end nobody has noted.

    Names are those below output/nano3/runs, iterations have their total, and there are more columns behind the loss.
    """
    told = old(*TOOL, "jobs", **with_slurm(old.folder, "COMPLETED"))
    head, *rows = table_rows(told, old.folder)
    assert head[:6] == BASE["jobs"][0][:6]
    cells = {name: [cell.partition("/")[0] for cell in row] for name, *row in rows}
    before = {name.removeprefix("output/nano3/runs/"): row for name, *row, _started in BASE["jobs"][1:]}
    assert {name: row[: len(before[name])] for name, row in cells.items()} == before


def test_a_job_that_runs_is_found(own: Work) -> None:
    """Its run is not started beside it, and it can be cancelled."""
    running = with_slurm(own.folder, "RUNNING")
    words = ["run.name=job-unnoted", "logger.sample_prompts=[]", "train.train_iters=9"]
    job = json.loads((own.run_dir("job-unnoted") / "jobs.json").read_text())["jobs"][-1]["id"]
    told = own(*typed("train +experiment=tiny"), *words, code=2, **running)
    assert f"job {job}" in told and "RUNNING" in told
    own(*TOOL, "cancel", "job-unnoted", **running)
    assert (own.folder / "cancelled").read_text().split() == [job]


@pytest.mark.parametrize(
    ("run", "text"),
    [
        ("job-failed", "loss is nan"),
        ("job-requeued", "200/200"),
        ("two", '"iteration": 4'),
        ("killed", '"iteration": 7'),
    ],
)
def test_logs_are_shown(old: Work, run: str, text: str) -> None:
    assert text in old(*TOOL, "tail", run, "--no-follow", "-n", "30")


def test_runs_are_reported(old: Work, tmp_path: Path) -> None:
    """One that finished, one that was killed, and the points of a sweep."""
    old(*TOOL, "report", "finished", "killed", "sweep", "--output", str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    assert "<svg" in page
    assert all(run in page for run in ("finished", "killed", "optimizer.lr=0.001", "optimizer.lr=0.003"))
    assert "7 of 60" in page


def test_what_differs_between_two_runs(old: Work) -> None:
    told = old(*TOOL, "diff", "finished", "phase")
    rows = {row[0]: row[1:] for row in table_rows(told, old.folder)}
    assert rows["run.name"] == ["finished", "phase"]
    assert rows["checkpoint.load"][1] == "output/nano3/runs/finished/checkpoints"


def test_documents_of_a_batch_are_traced(old: Work) -> None:
    """To the files and rows, by the order of samples that is kept in the run folder."""
    before = files(old.run_dir("finished"))
    columns, *rows = table_rows(old(*TOOL, "trace", "finished", "--iteration", "3"), old.folder)
    old_columns, *old_rows = BASE["trace"]
    assert columns == ["position" if name == "place" else name for name in old_columns]  # renamed since 0.1.0
    assert rows == old_rows
    assert files(old.run_dir("finished")) == before


@pytest.mark.parametrize("run", ["phase", "job-finished"])
def test_a_run_can_be_started_again_from_its_record(old: Work, run: str) -> None:
    began = json.loads((old.run_dir(run) / "began.json").read_text())["checkpoint"]
    told = old(*TOOL, "rerun", run, "dry_run=true", "cluster=local")
    assert f"{run}-again" in told and (began is None or began in told)


def test_the_store_is_read(old: Work) -> None:
    told = table_rows(old(*TOOL, "artifacts", "list"), old.folder)
    assert {row[0] for row in told if len(row) > 3} >= {DATA, MODEL}
    assert not any("no longer exists" in cell for row in told for cell in row if "finished" in cell)
    lineage = old(*TOOL, "artifacts", "lineage", f"{MODEL}:phase")
    for place in ("phase/checkpoints/iter_0000003", "finished/checkpoints/iter_0000008"):
        assert str(old.run_dir(place)) in lineage
    assert f"{old.folder}/data" in lineage
    shown = json.loads(old(*TOOL, "artifacts", "show", f"{DATA}:tiny"))
    assert (shown["path"], shown["fingerprint"]) == (str(old.folder / "data"), BASE["data"]["content"])


def test_a_finished_run_is_left_as_it_is(own: Work) -> None:
    before = files(own.folder / "output"), files(own.folder / "home")
    own(*typed(COMMANDS["finished"]))
    assert (files(own.folder / "output"), files(own.folder / "home")) == before


def went_on(work: Work, name: str, before: dict[str, str]) -> None:
    """Fails unless a run has gone on from its checkpoint to the losses and the model that the old code came to."""
    run = work.run_dir(name)
    now = (run / "metrics.jsonl").read_text().splitlines()
    saved = json.loads(before["checkpoint"])["iteration"]
    done = [line for line in before["metrics"].splitlines() if json.loads(line)["iteration"] <= saved]
    assert saved and now[: len(done)] == done  # with their timings, so they were not done anew
    same_lines(lines(run), BASE["runs"][name]["lines"], BASE["versions"])
    model = Path(json.loads((run / "finished.json").read_text())["checkpoint"]) / "hf/model.safetensors"
    assert versions() != BASE["versions"] or sha256(model) == BASE["runs"][name]["model"]
    now_known = {path.name for path in run.glob("index_cache/*/*.npy")}
    assert now_known == set(before["index"].split())


def half_way(work: Work, name: str) -> dict[str, str]:
    """Of a run that is to go on: its metrics, its newest checkpoint, the files of its order of samples."""
    run = work.run_dir(name)
    saved = json.loads((run / "progress.json").read_text())["checkpoint"]
    return {
        "metrics": (run / "metrics.jsonl").read_text(),
        "checkpoint": (Path(saved) / "checkpoint.json").read_text(),
        "index": " ".join(path.name for path in run.glob("index_cache/*/*.npy")),
    }


@pytest.mark.timeout(600)
def test_a_stopped_run_goes_on_to_the_same_losses(begun: dict[str, Any]) -> None:
    work, before, process = begun["stopped"]
    ended(process)
    went_on(work, "stopped", before)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["killed", "phase", "rest", "two", "job-again"])
def test_runs_go_on_to_the_same_losses(own: Work, name: str) -> None:
    """One that was killed, one that began with weights of another run, one that does the rest of another's schedule and
    saves elsewhere, one of two ranks, and one that Slurm had."""
    before = half_way(own, name)
    own(*typed(COMMANDS[name]))
    went_on(own, name, before)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_started_again_from_its_record_has_the_same_losses(own: Work) -> None:
    own(*TOOL, "rerun", "finished")
    same_lines(lines(own.run_dir("finished-again")), BASE["runs"]["finished"]["lines"], BASE["versions"])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_old_checkpoint_is_exported(own: Work) -> None:
    own(*TOOL, "export", "job-again", "--output", "exported")
    assert (own.folder / "exported/model.safetensors").stat().st_size > 10_000


@pytest.mark.timeout(600)
def test_the_quickstart_has_the_same_losses(begun: dict[str, Any]) -> None:
    work, _, process = begun["quickstart"]
    ended(process)
    run = work.run_dir("quickstart")
    same_lines(lines(run), BASE["quickstart"]["lines"], BASE["versions"])
