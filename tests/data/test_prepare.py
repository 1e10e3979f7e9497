"""The whole way from text to shards: the right ids, whoever does it and however often it is killed."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import documents, options, pack, reference, run, source, texts, tree, write

from nano3.data.indexed import IndexedFile
from nano3.data.manifest import load_manifest
from nano3.data.run import finalize, prepare, run_part, write_plan
from nano3.data.verify import verify
from nano3.errors import Failure, UserError

NAMES = ["a.jsonl", "a.parquet", "a.jsonl.gz", "a.jsonl.zst", "a.arrow", "a.json"]


def healthy(folder: Path) -> bool:
    """Whether `nano3 verify` has nothing to say."""
    return not [problem for _, problems in verify(folder) for problem in problems]


# The right bytes


@pytest.mark.parametrize("name", NAMES)
def test_documents_are_the_references(tmp_path: Path, byte_bpe: Path, name: str) -> None:
    wanted = texts(400)
    manifest = run(write(tmp_path / name, wanted, row_group_size=90), tmp_path / "out", byte_bpe, valid_fraction=0.05)
    got = documents(tmp_path / "out")
    assert sorted(got) == sorted(reference(byte_bpe, wanted))
    assert healthy(tmp_path / "out")
    assert manifest.datasets[0]["documents"] == 400 == sum(s["documents"] for s in manifest.splits.values())
    assert manifest.datasets[0]["empty"] == sum(not t for t in wanted)
    assert all(s["tokens"] for s in manifest.splits.values())
    train = documents(tmp_path / "out", "train")
    order = reference(byte_bpe, wanted)
    places = [order.index(d) for d in train if d]
    assert places == sorted(places)  # the order of the source


def test_megatron_reads_every_shard_and_the_text_comes_back(tmp_path: Path, sentencepiece_bpe: Path) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from tokenizers import Tokenizer

    wanted = [t for t in texts(200) if t]
    run(write(tmp_path / "a.jsonl", wanted), tmp_path / "out", sentencepiece_bpe)
    tokenizer = Tokenizer.from_file(str(sentencepiece_bpe / "tokenizer.json"))
    back = []
    for entries in json.loads((tmp_path / "out" / "blend.json").read_text()).values():
        for prefix in entries[1::2]:
            data = IndexedDataset(prefix)
            back += [
                tokenizer.decode(data[i].tolist()[:-1], skip_special_tokens=False).removeprefix(" ")
                for i in range(len(data))
            ]
    assert sorted(back) == sorted(wanted)


@pytest.mark.parametrize("add_eos", [True, False])
def test_bytes_are_those_of_megatrons_tool(tmp_path: Path, byte_bpe: Path, add_eos: bool) -> None:
    """One shard: .bin and .idx as Megatron's builder makes them from the reference's ids."""
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    wanted = texts(300)
    keys = {"num_shards": 1, "valid_fraction": 0.0, "test_fraction": 0.0, "add_eos": add_eos}
    run(write(tmp_path / "a.parquet", wanted), tmp_path / "out", byte_bpe, **keys)
    rows = reference(byte_bpe, wanted)
    builder = IndexedDatasetBuilder(str(tmp_path / "m.bin"), dtype=DType.optimal_dtype(1500))
    for row in rows if add_eos else [row[:-1] for row in rows]:
        builder.add_document(row, [len(row)] if row else [])
    builder.finalize(str(tmp_path / "m.idx"))
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"m.{suffix}").read_bytes() == (
            tmp_path / "out" / "train" / f"data_00000.{suffix}"
        ).read_bytes()


def test_long_documents(tmp_path: Path, byte_bpe: Path) -> None:
    wanted = ["word " * 300_000, "short", "é" * 200_000]
    run(write(tmp_path / "a.jsonl", wanted), tmp_path / "out", byte_bpe, valid_fraction=0.0, test_fraction=0.0)
    assert documents(tmp_path / "out") == reference(byte_bpe, wanted)


def test_max_doc_tokens_keeps_the_end_token(tmp_path: Path, byte_bpe: Path) -> None:
    wanted = texts(100)
    manifest = run(write(tmp_path / "a.jsonl", wanted), tmp_path / "out", byte_bpe, max_doc_tokens=10, add_bos=True)
    rows = [[1, *row[:-1][:10], row[-1]] if row else [] for row in reference(byte_bpe, wanted)]
    assert sorted(documents(tmp_path / "out")) == sorted(rows)
    assert manifest.datasets[0]["truncated"] == sum(len(r) > 11 for r in reference(byte_bpe, wanted))
    assert healthy(tmp_path / "out")


def test_min_doc_chars_counts_what_it_leaves_out(tmp_path: Path, byte_bpe: Path) -> None:
    wanted = texts(100)
    manifest = run(write(tmp_path / "a.jsonl", wanted), tmp_path / "out", byte_bpe, min_doc_chars=40)
    kept = [t for t in wanted if len(t) >= 40]
    assert sorted(documents(tmp_path / "out")) == sorted(reference(byte_bpe, kept))
    assert manifest.datasets[0]["skipped"] == {"short": 100 - len(kept)}


def test_int32_for_a_large_vocabulary(tmp_path: Path, tekken: Path) -> None:
    wanted = texts(200)
    manifest = run(write(tmp_path / "a.jsonl", wanted), tmp_path / "out", tekken, workers=2)
    assert (manifest.dtype, manifest.versions["engine"], manifest.tokenizer["vocab_size"]) == (
        "int32",
        "fastokens",
        131072,
    )
    assert sorted(documents(tmp_path / "out")) == sorted(reference(tekken, wanted))


def test_special_tokens_in_the_text(tmp_path: Path, byte_bpe: Path) -> None:
    wanted = ["a </s> b <|tool|>", "plain", "c"]
    whole = run(write(tmp_path / "a.jsonl", wanted), tmp_path / "one", byte_bpe)
    assert whole.datasets[0]["special_tokens"] == 2
    assert sorted(documents(tmp_path / "one")) == sorted(reference(byte_bpe, wanted))
    split = run(tmp_path / "a.jsonl", tmp_path / "two", byte_bpe, split_special_tokens=True)
    assert split.datasets[0]["special_tokens"] == 0
    assert all(2 not in d[:-1] for d in documents(tmp_path / "two"))


# Splits and shards


def test_a_document_keeps_its_split(tmp_path: Path, byte_bpe: Path) -> None:
    path = write(tmp_path / "in" / "a.jsonl", texts(2000)).parent
    for out, keys in (("one", {"num_shards": 3}), ("two", {"num_shards": 50, "workers": 3})):
        run(path, tmp_path / out, byte_bpe, valid_fraction=0.02, test_fraction=0.02, **keys)
    for split in ("train", "valid", "test"):
        assert documents(tmp_path / "one", split) == documents(tmp_path / "two", split)


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.zst", "parquet"])
def test_shards_are_about_equal(tmp_path: Path, byte_bpe: Path, kind: str) -> None:
    """One file of 100 parts and two of one part, four shards."""
    for i, count in enumerate((3000, 30, 30)):
        write(tmp_path / "in" / f"{i}.{kind}", texts(count, seed=i), row_group_size=400)
    manifest = run(tmp_path / "in", tmp_path / "out", byte_bpe, num_shards=4, valid_fraction=0.0, test_fraction=0.0)
    tokens = [s["tokens"] for s in manifest.shards]
    assert len(tokens) == 4
    assert max(tokens) < 1.3 * min(tokens)


def test_more_shards_than_documents(tmp_path: Path, byte_bpe: Path) -> None:
    for i in range(3):
        write(tmp_path / "in" / f"{i}.jsonl", [f"short {i}"])
    manifest = run(tmp_path / "in", tmp_path / "out", byte_bpe, num_shards=128)
    assert len(manifest.shards) == 3
    blend = json.loads((tmp_path / "out" / "blend.json").read_text())
    for entries in blend.values():
        assert all(Path(f"{p}.bin").stat().st_size for p in entries[1::2])
    assert {s: len(e) for s, e in blend.items()} == {"train": 2, "valid": 2, "test": 2}
    assert len(list((tmp_path / "out").rglob("*.bin"))) == 3


def test_weights_are_shared_out_by_tokens(tmp_path: Path, byte_bpe: Path) -> None:
    sources = [
        source(write(tmp_path / f"{n}.jsonl", texts(300, seed=i)), n, weight=w)
        for i, (n, w) in enumerate((("a", 0.3), ("b", 2)))
    ]
    manifest = run(sources, tmp_path / "out", byte_bpe, num_shards=9)
    entries = json.loads((tmp_path / "out" / "blend.json").read_text())["train"]
    weights = dict(zip(entries[1::2], map(float, entries[::2]), strict=True))
    for name, weight in (("a", 0.3), ("b", 2.0)):
        shards = [s for s in manifest.shards if (s["dataset"], s["split"]) == (name, "train")]
        total = sum(s["tokens"] for s in shards)
        for s in shards:
            assert weights[str(tmp_path / "out" / s["prefix"])] == pytest.approx(weight * s["tokens"] / total)
    assert not any("e" in w for w in entries[::2])


@pytest.mark.parametrize("wanted", [1, 2, 3, 40, 10_000])
def test_sample(tmp_path: Path, byte_bpe: Path, wanted: int) -> None:
    every = []
    for i, count in enumerate((100, 1, 30, 5)):
        every.append(texts(count, seed=i))
        write(tmp_path / "in" / f"{i}.{('jsonl', 'parquet', 'jsonl.gz', 'json')[i]}", every[-1])
    manifest = run(tmp_path / "in", tmp_path / "out", byte_bpe, sample=wanted, valid_fraction=0.1)
    got = documents(tmp_path / "out")
    assert len(got) == manifest.datasets[0]["documents"] == min(wanted, 136)
    rows = [reference(byte_bpe, t) for t in every]
    heads = [[sum(d == row for d in got) for row in r] for r in rows]
    assert sum(1 for h in heads if any(h)) >= min(wanted, 4)  # spread over the files
    assert manifest.splits["train"]["documents"] >= 1
    assert (manifest.splits["valid"]["documents"] > 0) == (wanted > 1)
    blend = json.loads((tmp_path / "out" / "blend.json").read_text())
    assert list(blend) == ["train", "valid", "test"]


# The same bytes, however it is done


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Files of several formats with enough text for several units."""
    for i, kind in enumerate(("jsonl", "parquet", "jsonl.zst")):
        write(tmp_path / "in" / f"{i}.{kind}", texts(1500, seed=i, longest=900), row_group_size=200)
    return tmp_path / "in"


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many units from little text; the sizes are written into the plan, so workers see them too."""
    from nano3.data import plan

    monkeypatch.setattr(plan, "MIN_UNIT", 200_000)
    monkeypatch.setattr(plan, "MAX_UNIT", 200_000)


@pytest.mark.usefixtures("small_units")
def test_any_number_of_workers_and_an_array(tmp_path: Path, many: Path, byte_bpe: Path) -> None:
    run(many, tmp_path / "1", byte_bpe, workers=1)
    for workers in (2, 3):
        run(many, tmp_path / str(workers), byte_bpe, workers=workers)
    plan = write_plan([source(many)], options(tmp_path / "array", byte_bpe), "test")
    for part in (2, 0, 1, 1):
        run_part(plan, part, 3)
    again = finalize(plan)
    assert finalize(plan) == again == load_manifest(tmp_path / "array")
    one = tree(tmp_path / "1")
    assert len(one) > 8
    assert all(tree(tmp_path / other) == one for other in ("2", "3", "array"))
    assert healthy(tmp_path / "array")


@pytest.mark.usefixtures("small_units")
def test_finalize_names_what_is_missing(tmp_path: Path, many: Path, byte_bpe: Path) -> None:
    plan = write_plan([source(many)], options(tmp_path / "out", byte_bpe), "test")
    run_part(plan, 1, 3)
    with pytest.raises(Failure, match=r"units are not done \(the first is unit 0\)"):
        finalize(plan)
    assert not (tmp_path / "out" / "manifest.json").exists()


SCRIPT = """
import json, sys
from nano3.config import PrepOptions, SourceConfig
from nano3.data import plan
from nano3.data.run import prepare
plan.MIN_UNIT = plan.MAX_UNIT = 200_000
sources, options = json.loads(sys.argv[1])
prepare([SourceConfig(**s) for s in sources], PrepOptions(**options), "test")
"""


def start(folder: Path, output: Path, tokenizer: Path, **keys) -> subprocess.Popen:
    """Prepare in a process of its own."""
    request = [[vars(source(folder))], vars(options(output, tokenizer, workers=2, **keys))]
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(request)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def kill_and_rerun(many: Path, tmp_path: Path, tokenizer: Path, moments: list[float]) -> None:
    """Kill -9 at moments (shares of an undisturbed run's time), rerun, compare."""
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
def test_kill_and_rerun_fifty_times(tmp_path: Path, many: Path, byte_bpe: Path) -> None:
    import random

    rng = random.Random(3)
    kill_and_rerun(many, tmp_path, byte_bpe, [rng.uniform(0.2, 1.05) for _ in range(50)])


@pytest.mark.usefixtures("small_units")
@pytest.mark.parametrize("damage", ["empty", "cut", "zeros", "gone"])
def test_a_part_spoiled_by_a_power_cut_is_made_again(tmp_path: Path, many: Path, byte_bpe: Path, damage: str) -> None:
    run(many, tmp_path / "whole", byte_bpe)
    plan = write_plan([source(many)], options(tmp_path / "out", byte_bpe), "test")
    run_part(plan, 0, 2)
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
def test_a_disproved_engine_is_replaced_and_its_work_redone(tmp_path: Path, many: Path, byte_bpe: Path, capfd) -> None:
    from nano3.data.plan import load_plan
    from nano3.data.state import DISPROVED, State

    run(many, tmp_path / "whole", byte_bpe)
    plan = write_plan([source(many)], options(tmp_path / "out", byte_bpe), "test")
    run_part(plan, 0, 2)
    State(load_plan(plan), plan.parent).disprove("seen in a test")
    assert (plan.parent / DISPROVED).read_text() == "seen in a test\n"
    manifest = run(many, tmp_path / "out", byte_bpe)
    assert manifest.versions["engine"] == "tokenizers"
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_an_engine_that_cannot_read_the_tokenizer(tmp_path: Path, unigram: Path, capfd) -> None:
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


# Again


def changes(folder: Path) -> dict[str, int]:
    """When each file was last written."""
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*")} | {".": folder.stat().st_mtime_ns}


def test_a_complete_run_is_left_alone(tmp_path: Path, byte_bpe: Path, capfd) -> None:
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
    assert manifest.datasets[0]["weight"] == 5.0 == load_manifest(tmp_path / "out").datasets[0]["weight"]
    entries = json.loads((tmp_path / "out" / "blend.json").read_text())["train"]
    assert sum(map(float, entries[::2])) == pytest.approx(5)


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


def test_the_old_stays_until_the_new_is_whole(tmp_path: Path, byte_bpe: Path) -> None:
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
    """Stop after each rename in turn; the next run finishes it."""
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


def test_lost_shards_are_told(tmp_path: Path, byte_bpe: Path) -> None:
    path = write(tmp_path / "a.jsonl", texts(100))
    run(path, tmp_path / "out", byte_bpe)
    next((tmp_path / "out" / "train").glob("*.idx")).unlink()
    with pytest.raises(Failure, match="force=true"):
        run(path, tmp_path / "out", byte_bpe)


def test_two_at_once(tmp_path: Path, many: Path, byte_bpe: Path) -> None:
    from nano3.data.folder import locked

    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(tmp_path / "out"):
            held.set()
            release.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    try:
        with pytest.raises(UserError, match="another run is preparing data there"):
            run(many, tmp_path / "out", byte_bpe)
    finally:
        release.set()
        thread.join()


# Bad input


def bad_files(folder: Path) -> dict[str, tuple[bytes, str]]:
    good = b'{"text": "one"}\n{"text": "two"}\n'
    return {
        "null.jsonl": (good + b'{"text": null}\n', r"null\.jsonl: row 3 .*null"),
        "field.jsonl": (good + b'{"body": "x"}\n', r"field\.jsonl: row 3 .*no field 'text'; its fields: body"),
        "utf8.jsonl": (good + b'{"text": "\xff"}\n', r"utf8\.jsonl: row 3 .*not UTF-8"),
        "utf8.txt": (b"abc\xffdef", r"utf8\.txt: row 1 .*not UTF-8 at byte 3"),
        "cut.jsonl": (good + b'{"text": "thr', r"cut\.jsonl: row 3 .*not valid JSON"),
        "cut.jsonl.gz": (pack(good * 99, ".gz")[:-9], r"cut\.jsonl\.gz: gz stream damaged or cut short"),
        "cut.jsonl.zst": (pack(good * 99, ".zst")[:-9], r"cut\.jsonl\.zst: zst stream damaged or cut short"),
        "junk.jsonl": (b"\x01\x02\x03", r"junk\.jsonl: row 1 .*not valid JSON"),
        "junk.parquet": (b"PAR1 but not really", r"junk\.parquet: "),
        "inside.jsonl.gz": (pack(b"PAR1PAR1", ".gz"), r"inside\.jsonl\.gz: gz of parquet"),
    }


@pytest.mark.parametrize("name", bad_files(Path()))
def test_bad_files_are_told_with_file_and_row(tmp_path: Path, byte_bpe: Path, name: str) -> None:
    data, message = bad_files(tmp_path)[name]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(data)
    for keys in ({}, {"valid_fraction": 0.0, "test_fraction": 0.0}):  # told by the plan, and by a worker
        with pytest.raises((Failure, UserError), match=message):
            run(tmp_path / "in", tmp_path / "out", byte_bpe, force=True, **keys)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_bad_rows_can_be_skipped_and_are_counted(tmp_path: Path, byte_bpe: Path) -> None:
    lines = [json.dumps({"text": t}).encode() for t in texts(300)]
    lines[7:7] = [b'{"text": null}', b"{}", b'{"text": "\xff"}', b"broken", b'{"text": 1}']
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(Failure, match=r"row 8 .*bad_rows=skip"):
        run(path, tmp_path / "out", byte_bpe)
    manifest = run(path, tmp_path / "out", byte_bpe, bad_rows="skip")
    assert manifest.datasets[0]["skipped"] == {"not_json": 1, "not_utf8": 1, "no_text": 2, "null": 1}
    assert sorted(documents(tmp_path / "out")) == sorted(reference(byte_bpe, texts(300)))


MISSING = {
    "nothing": ("no_such/file.jsonl", "no such file or folder"),
    "glob": ("in/*.parquet", "no file matches"),
    "empty_folder": ("empty", "no file with text in it"),
    "url": ("memory://nothing/there", "nothing there|memory"),
    "protocol": ("nosuch://x/y", "nosuch"),
}


@pytest.mark.parametrize(("path", "message"), MISSING.values(), ids=MISSING.keys())
def test_no_such_input(tmp_path: Path, byte_bpe: Path, path: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "in").mkdir()
    where = path if "://" in path else str(tmp_path / path)
    with pytest.raises(UserError, match=message):
        run([source(where)], tmp_path / "out", byte_bpe)


EMPTY = {
    "zero_bytes.jsonl": b"",
    "blank.jsonl": b"\n\n",
    "only_empty.jsonl": b'{"text": ""}\n' * 5,
    "array.json": b"[]",
}


@pytest.mark.parametrize("name", EMPTY)
def test_no_documents(tmp_path: Path, byte_bpe: Path, name: str) -> None:
    (tmp_path / name).write_bytes(EMPTY[name])
    with pytest.raises(UserError, match=r"no tokens for training|no file with text|no documents"):
        run(tmp_path / name, tmp_path / "out", byte_bpe)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_an_empty_parquet(tmp_path: Path, byte_bpe: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no tokens for training"):
        run(tmp_path / "a.parquet", tmp_path / "out", byte_bpe)


def test_unknown_files_in_a_folder_are_left_out_loudly(tmp_path: Path, byte_bpe: Path, capfd) -> None:
    write(tmp_path / "in" / "a.jsonl", texts(10))
    (tmp_path / "in" / "README.md").write_text("not data")
    (tmp_path / "in" / "_SUCCESS").write_text("not data")
    manifest = run(tmp_path / "in", tmp_path / "out", byte_bpe)
    assert manifest.datasets[0]["files"] == 1
    assert "1 file(s) of no known format left out: README.md" in capfd.readouterr().err
    with pytest.raises(UserError, match=r"README\.md is not of a known format"):
        run(tmp_path / "in" / "README.md", tmp_path / "out2", byte_bpe)


def test_globs_and_folders(tmp_path: Path, byte_bpe: Path) -> None:
    for name in ("x/1.jsonl", "x/y/2.jsonl", "x/y/3.parquet", "z/4.jsonl"):
        write(tmp_path / "in" / name, [name])
    found = {
        "in": 4,
        "in/x": 3,
        "in/x/*.jsonl": 1,
        "in/**/*.jsonl": 3,
        "in/[xz]/*.jsonl": 2,
    }
    for path, count in found.items():
        manifest = run([source(tmp_path / path)], tmp_path / path.replace("/", "_").replace("*", "S"), byte_bpe)
        assert manifest.datasets[0]["files"] == count, path


def test_unwritable_output(tmp_path: Path, byte_bpe: Path) -> None:
    path = write(tmp_path / "a.jsonl", texts(10))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        run(path, tmp_path / "file" / "out", byte_bpe)


def test_a_folder_that_is_not_ours_is_not_touched(tmp_path: Path, byte_bpe: Path) -> None:
    path = write(tmp_path / "a.jsonl", texts(10))
    (tmp_path / "out" / "train").mkdir(parents=True)
    for force in (False, True):
        with pytest.raises(UserError, match="nano3 did not make it"):
            run(path, tmp_path / "out", byte_bpe, force=force)


@pytest.fixture
def tiny_disk(tmp_path: Path):
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True
        ).returncode
    ):
        pytest.skip("may not mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(tmp_path: Path, byte_bpe: Path, tiny_disk: Path) -> None:
    path = write(tmp_path / "a.jsonl", texts(4000, longest=300))
    with pytest.raises(Failure, match="no space left on the device"):
        run(path, tiny_disk / "out", byte_bpe)
    assert not (tiny_disk / "out" / "manifest.json").exists()
    assert not (tiny_disk / "out" / "train").exists()
    subprocess.run(["mount", "-o", "remount,size=40m", str(tiny_disk)], check=True)
    run(path, tiny_disk / "out", byte_bpe)
    run(path, tmp_path / "out", byte_bpe)
    assert tree(tiny_disk / "out") == tree(tmp_path / "out")


@pytest.mark.slow
def test_a_hundred_thousand_tiny_files(tmp_path: Path, byte_bpe: Path) -> None:
    for i in range(100_000):
        if i % 1000 == 0:
            (tmp_path / "in" / f"{i // 1000:03d}").mkdir(parents=True)
        (tmp_path / "in" / f"{i // 1000:03d}" / f"{i:06d}.txt").write_text(f"document {i}")
    manifest = run(tmp_path / "in", tmp_path / "out", byte_bpe, num_shards=200, workers=2)
    assert manifest.datasets[0]["documents"] == 100_000 == sum(s["documents"] for s in manifest.splits.values())
    shutil.rmtree(tmp_path / "in")


HEAVY = ("torch", "transformers", "megatron", "datasets", "tokenizers", "pyarrow", "huggingface_hub")


def test_the_import_is_light() -> None:
    code = f"import sys, nano3.data.run; print([m for m in {HEAVY} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_prepared_data_knows_where_documents_came_from(tmp_path: Path, byte_bpe: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", ["first", "second"])
    write(tmp_path / "in" / "b.parquet", ["third"])
    manifest = run(tmp_path / "in", tmp_path / "out", byte_bpe, num_shards=1, valid_fraction=0.0, test_fraction=0.0)
    assert manifest.shards[0]["source"] == [["a.jsonl", 0], ["b.parquet", 0]]
    assert len(IndexedFile(tmp_path / "out" / "train" / "data_00000")) == 3
    assert (
        prepare(
            [source(tmp_path / "in")],
            options(tmp_path / "out", byte_bpe, num_shards=1, valid_fraction=0.0, test_fraction=0.0),
            "renamed",
        ).blend
        == "renamed"
    )


@pytest.mark.usefixtures("small_units")
def test_a_plan_of_another_layout_starts_over(tmp_path: Path, many: Path, byte_bpe: Path, monkeypatch) -> None:
    """Another version of nano3 may cut the work elsewhere; its unfinished units must not be mixed in."""
    from nano3.data import plan as layout

    run(many, tmp_path / "whole", byte_bpe)
    plan = write_plan([source(many)], options(tmp_path / "out", byte_bpe), "test")
    run_part(plan, 0, 2)
    monkeypatch.setattr(layout, "MIN_UNIT", 90_000)
    monkeypatch.setattr(layout, "MAX_UNIT", 90_000)
    run(many, tmp_path / "out", byte_bpe)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
