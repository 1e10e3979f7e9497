"""Test that reruns, kills, and any number of workers or tasks give the same bytes."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from data_helpers import documents, healthy, options, plan_build, reference, run, source, texts, tree, write

from nano3.data.build.run import finalize, run_task
from nano3.data.dataset.manifest import load_manifest
from nano3.utils.errors import Failure, UserError

# The same bytes


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Write files of several formats with enough text for several units."""
    for i, kind in enumerate(("jsonl", "parquet", "jsonl.zst")):
        write(tmp_path / "in" / f"{i}.{kind}", texts(1500, seed=i, longest=900), row_group_size=200)
    return tmp_path / "in"


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make many units from little text; the plan has their bounds, so workers use them too."""
    from nano3.data.planning import plan

    monkeypatch.setattr(plan, "MIN_UNIT", 200_000)
    monkeypatch.setattr(plan, "MAX_UNIT", 200_000)


@pytest.mark.usefixtures("small_units")
def test_any_number_of_workers_and_an_array(tmp_path: Path, many: Path, byte_bpe: Path) -> None:
    run(many, tmp_path / "1", byte_bpe, workers=1)
    for workers in (2, 3):
        run(many, tmp_path / str(workers), byte_bpe, workers=workers)
    plan = plan_build([source(many)], options(tmp_path / "array", byte_bpe), "test")
    for task in (2, 0, 1, 1):
        run_task(plan, task, 3)
    again = finalize(plan)
    assert finalize(plan) == again == load_manifest(tmp_path / "array")
    one = tree(tmp_path / "1")
    assert len(one) > 8
    assert all(tree(tmp_path / other) == one for other in ("2", "3", "array"))
    assert healthy(tmp_path / "array")


@pytest.mark.usefixtures("small_units")
def test_finalize_names_the_first_missing_unit(tmp_path: Path, many: Path, byte_bpe: Path) -> None:
    plan = plan_build([source(many)], options(tmp_path / "out", byte_bpe), "test")
    run_task(plan, 1, 3)
    with pytest.raises(Failure, match=r"units are not done \(the first is unit 0\)"):
        finalize(plan)
    assert not (tmp_path / "out" / "manifest.json").exists()


SCRIPT = """
import json, sys
from nano3.config import PrepOptions, SourceConfig
from nano3.data.planning import plan
from nano3.data.build.run import prepare
plan.MIN_UNIT = plan.MAX_UNIT = 200_000
sources, options = json.loads(sys.argv[1])
prepare([SourceConfig(**s) for s in sources], PrepOptions(**options), "test")
"""


def start(folder: Path, output: Path, tokenizer: Path, **keys: object) -> subprocess.Popen:
    """Prepare in another process."""
    request = [[vars(source(folder))], vars(options(output, tokenizer, workers=2, **keys))]
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(request)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def kill_and_rerun(many: Path, tmp_path: Path, tokenizer: Path, moments: list[float]) -> None:
    """Kill -9 at moments, as fractions of an undisturbed run's time, rerun, and compare."""
    begun = time.monotonic()
    assert start(many, tmp_path / "whole", tokenizer).wait() == 0
    full = time.monotonic() - begun
    wanted = tree(tmp_path / "whole")
    for n, moment in enumerate(moments):
        out = tmp_path / f"killed{n}"
        process = start(many, out, tokenizer)
        time.sleep(full * moment)
        process.kill()
        process.wait()
        assert start(many, out, tokenizer).wait() == 0
        assert tree(out) == wanted, f"killed at {moment:.2f} of the run"
        assert healthy(out)
        assert [p.name for p in (out / ".prep").rglob("*.tmp")] == []


def test_kill_and_rerun(tmp_path: Path, many: Path, byte_bpe: Path) -> None:
    kill_and_rerun(many, tmp_path, byte_bpe, [0.5, 0.7, 0.9])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kill_and_rerun_fifty_times(tmp_path: Path, many: Path, byte_bpe: Path) -> None:
    import random

    rng = random.Random(3)
    kill_and_rerun(many, tmp_path, byte_bpe, [rng.uniform(0.2, 1.05) for _ in range(50)])


@pytest.mark.usefixtures("small_units")
@pytest.mark.parametrize("damage", ["empty", "cut", "zeros", "gone"])
def test_files_damaged_by_a_power_failure_are_rebuilt(tmp_path: Path, many: Path, byte_bpe: Path, damage: str) -> None:
    run(many, tmp_path / "whole", byte_bpe)
    plan = plan_build([source(many)], options(tmp_path / "out", byte_bpe), "test")
    run_task(plan, 0, 2)
    victims = sorted((plan.parent / "units").glob("*.valid.*.bin")) + sorted((plan.parent / "units").glob("*.json"))[:1]
    assert len(victims) > 1
    for path in victims:
        size = path.stat().st_size
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes({"empty": b"", "cut": path.read_bytes()[: size // 2], "zeros": bytes(size)}[damage])
    run(many, tmp_path / "out", byte_bpe)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.usefixtures("small_units")
def test_units_are_rebuilt_after_a_mismatch(
    tmp_path: Path, many: Path, byte_bpe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from nano3.data.build.build_state import MISMATCH_MARKER, BuildState
    from nano3.data.planning.plan import load_plan

    run(many, tmp_path / "whole", byte_bpe)
    plan = plan_build([source(many)], options(tmp_path / "out", byte_bpe), "test")
    run_task(plan, 0, 2)
    BuildState(load_plan(plan), plan.parent).mark_mismatch("seen in a test")
    assert (plan.parent / MISMATCH_MARKER).read_text() == "seen in a test\n"
    manifest = run(many, tmp_path / "out", byte_bpe)
    assert manifest.versions["engine"] == "tokenizers"
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_tokenizer_that_the_fast_engine_cannot_read(
    tmp_path: Path, unigram: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = texts(60)
    path = write(tmp_path / "a.jsonl", wanted)
    manifest = run(path, tmp_path / "out", unigram)
    assert manifest.versions["engine"] == "tokenizers"
    assert "reference engine" in capfd.readouterr().err
    assert sorted(documents(tmp_path / "out")) == sorted(reference(unigram, wanted))
    with pytest.raises(Failure, match="engine=strict: fastokens cannot read"):
        run(path, tmp_path / "strict", unigram, engine="strict")
    run(path, tmp_path / "asked", unigram, engine="tokenizers")
    assert tree(tmp_path / "asked") == tree(tmp_path / "out")


# Reruns


def changes(folder: Path) -> dict[str, int]:
    """Return when each file was last written."""
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*")} | {".": folder.stat().st_mtime_ns}


def test_complete_data_is_left_untouched(tmp_path: Path, byte_bpe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.jsonl", texts(100))
    first = run(path, tmp_path / "out", byte_bpe)
    before = changes(tmp_path / "out")
    capfd.readouterr()
    assert run(path, tmp_path / "out", byte_bpe, workers=2, engine="tokenizers") == first
    assert changes(tmp_path / "out") == before
    assert "nothing to do" in capfd.readouterr().out


def test_a_new_weight_rewrites_the_blend_only(tmp_path: Path, byte_bpe: Path) -> None:
    path = write(tmp_path / "a.jsonl", texts(100))
    run(path, tmp_path / "out", byte_bpe)
    before = changes(tmp_path / "out")
    manifest = run([source(path, weight=5.0)], tmp_path / "out", byte_bpe)
    after = changes(tmp_path / "out")
    changed = {Path(p).name for p in before if before[p] != after.get(p)}
    assert changed == {"blend.json", "manifest.json", ""}
    assert manifest.datasets[0].weight == 5.0 == load_manifest(tmp_path / "out").datasets[0].weight
    entries = json.loads((tmp_path / "out" / "blend.json").read_text())["train"]
    assert sum(map(float, entries[::2])) == pytest.approx(5)


def test_a_new_budget_rewrites_the_manifest_only(tmp_path: Path, byte_bpe: Path) -> None:
    path = write(tmp_path / "a.jsonl", texts(100))
    first = run(path, tmp_path / "out", byte_bpe)
    blend, contents = (tmp_path / "out" / "blend.json").read_bytes(), [first.content]
    for budget in ({"epochs": 2.5, "max_epochs": 4.0}, {"tokens": 3e11}, {}):
        manifest = run([source(path, **budget)], tmp_path / "out", byte_bpe)
        assert manifest.datasets[0].budget == budget == load_manifest(tmp_path / "out").datasets[0].budget
        assert (manifest.plan_hash, manifest.shards) == (first.plan_hash, first.shards)
        contents.append(manifest.content)
    assert contents[0] == contents[-1] and len(set(contents)) == 3
    assert (tmp_path / "out" / "blend.json").read_bytes() == blend
    assert healthy(tmp_path / "out")
    fresh = run([source(path, epochs=2.0)], tmp_path / "fresh", byte_bpe)
    assert fresh.datasets[0].budget == {"epochs": 2.0} and fresh.shards == first.shards


def test_a_moved_folder_gets_new_prefixes(tmp_path: Path, byte_bpe: Path) -> None:
    path = write(tmp_path / "a.jsonl", texts(100))
    run(path, tmp_path / "out", byte_bpe)
    (tmp_path / "out").rename(tmp_path / "new")
    assert not healthy(tmp_path / "new")
    run(path, tmp_path / "new", byte_bpe)
    assert healthy(tmp_path / "new")


def test_other_data_needs_force(tmp_path: Path, byte_bpe: Path) -> None:
    path = write(tmp_path / "a.jsonl", texts(100))
    run(path, tmp_path / "out", byte_bpe)
    before = changes(tmp_path / "out")
    with pytest.raises(UserError, match=r"Choose another output_dir, or set force=true"):
        run(path, tmp_path / "out", byte_bpe, num_shards=3)
    assert changes(tmp_path / "out") == before
    (tmp_path / "out" / "notes.txt").write_text("mine")
    run(path, tmp_path / "out", byte_bpe, num_shards=3, test_fraction=0.0, force=True)
    run(path, tmp_path / "fresh", byte_bpe, num_shards=3, test_fraction=0.0)
    assert not (tmp_path / "out" / "test").exists()
    (tmp_path / "fresh" / "notes.txt").write_text("mine")
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")
    assert healthy(tmp_path / "out")
    run(path, tmp_path / "out", byte_bpe, num_shards=3, test_fraction=0.0, force=True)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_old_data_stays_until_the_new_data_is_complete(tmp_path: Path, byte_bpe: Path) -> None:
    path = write(tmp_path / "a.jsonl", texts(100))
    run(path, tmp_path / "out", byte_bpe)
    old = tree(tmp_path / "out")
    path.write_bytes(path.read_bytes() + b"broken\n")
    with pytest.raises(Failure, match=r"a\.jsonl: row 101 "):
        run(path, tmp_path / "out", byte_bpe, force=True)
    assert tree(tmp_path / "out") == old
    assert healthy(tmp_path / "out")


@pytest.mark.parametrize("step", [0, 2, 5, 8])
def test_killed_while_publishing(tmp_path: Path, byte_bpe: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop before a rename; the next run completes the publishing."""
    path = write(tmp_path / "a.jsonl", texts(100))
    run(path, tmp_path / "out", byte_bpe)
    rename, count = Path.rename, [0]

    def stop_after(self: Path, target: Path) -> Path:
        if count[0] == step:
            raise KeyboardInterrupt
        count[0] += 1
        return rename(self, target)

    keys = {"num_shards": 3, "force": True}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", stop_after)
        run(path, tmp_path / "out", byte_bpe, **keys)
    run(path, tmp_path / "out", byte_bpe, num_shards=3)
    run(path, tmp_path / "fresh", byte_bpe, num_shards=3)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")
    assert healthy(tmp_path / "out")


@pytest.mark.parametrize("step", [0, 2, 5])
def test_publishing_is_finished_without_the_source(
    tmp_path: Path, byte_bpe: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text is needed no more once the build is finished."""
    path = write(tmp_path / "a.jsonl", texts(100))
    run(path, tmp_path / "fresh", byte_bpe, num_shards=3)
    rename, count = Path.rename, [0]

    def stop_after(self: Path, target: Path) -> Path:
        if count[0] == step:
            raise KeyboardInterrupt
        count[0] += 1
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", stop_after)
        run(path, tmp_path / "out", byte_bpe, num_shards=3)
    path.unlink()
    with pytest.raises(UserError, match="no such file"):
        run(path, tmp_path / "out", byte_bpe, num_shards=3)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")
    assert healthy(tmp_path / "out")


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".json"])
def test_a_shard_that_is_damaged_before_publishing_is_rebuilt(
    tmp_path: Path, byte_bpe: Path, suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "a.jsonl", texts(300))
    plan = plan_build([source(path)], options(tmp_path / "out", byte_bpe, num_shards=3), "test")
    run_task(plan, 0, 1)
    file = min((plan.parent / ("shards" if suffix == ".json" else "train")).glob(f"*0000*{suffix}"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 8
    file.write_bytes(data)
    with pytest.raises(Failure, match="Run the same command again"):
        finalize(plan)
    assert ("this shard was damaged on the disk" in capfd.readouterr().err) == (suffix != ".json")
    run(path, tmp_path / "out", byte_bpe, num_shards=3)
    run(path, tmp_path / "fresh", byte_bpe, num_shards=3)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")
    assert healthy(tmp_path / "out")


def test_a_missing_shard_is_reported(tmp_path: Path, byte_bpe: Path) -> None:
    path = write(tmp_path / "a.jsonl", texts(100))
    run(path, tmp_path / "out", byte_bpe)
    next((tmp_path / "out" / "train").glob("*.idx")).unlink()
    with pytest.raises(Failure, match="force=true"):
        run(path, tmp_path / "out", byte_bpe)


def test_a_second_preparation_is_locked_out(tmp_path: Path, many: Path, byte_bpe: Path) -> None:
    from nano3.data.dataset.output_dir import hold_output_lock

    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with hold_output_lock(tmp_path / "out"):
            held.set()
            release.wait(250)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(100)
    try:
        with pytest.raises(UserError, match="another run is preparing data there"):
            run(many, tmp_path / "out", byte_bpe)
    finally:
        release.set()
        thread.join()


@pytest.mark.usefixtures("small_units")
def test_a_plan_of_another_layout_starts_over(
    tmp_path: Path, many: Path, byte_bpe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version of nano3 may have other unit bounds; its units must not be mixed in."""
    from nano3.data.planning import plan as layout

    run(many, tmp_path / "whole", byte_bpe)
    plan = plan_build([source(many)], options(tmp_path / "out", byte_bpe), "test")
    run_task(plan, 0, 2)
    monkeypatch.setattr(layout, "MIN_UNIT", 90_000)
    monkeypatch.setattr(layout, "MAX_UNIT", 90_000)
    run(many, tmp_path / "out", byte_bpe)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
