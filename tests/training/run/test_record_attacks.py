"""Attacks on the small files of a run, a store and prepared data: flipped bits, truncation, values of other types.

Every damage must be an error of nano3 that names the file, or change nothing that is read. The counts are in
docs/reliability.md.
"""

import argparse
import contextlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from training_processes import tiny_config

from launch import job_records, local_job
from launch.job_records import JobRecord
from nano3.__main__ import tool_modules
from nano3.artifacts import store
from nano3.config import PretrainConfig
from nano3.data.dataset import verify
from nano3.data.dataset.manifest import encode_json, load_manifest, make_blend
from nano3.training.dataset import open_data
from nano3.training.hf import backend
from nano3.training.megatron import checkpoints as megatron_checkpoints
from nano3.training.run import checkpoint_owner, parent_checkpoint, record
from nano3.training.run.checkpoints import CheckpointInfo, read_checkpoint_info, write_checkpoint_info
from nano3.training.run.config_file import load_config_file
from nano3.training.run.resume import preview_resume_point
from nano3.training.run.sound_checkpoints import checkpoint_problems, describe_files
from nano3.utils.errors import Nano3Error
from nano3.utils.records import CHECKSUM, read_record, with_checksum, write_record

MODEL, DATA = "ModelArtifact-pretrain", "DataBlendsArtifact-pretrain"
# Read at every length up to this many bytes, then at evenly spaced ones.
ALL_LENGTHS = 1500


@dataclass
class Scene:
    """A stopped run with its store and its data, all of whose small files exist."""

    run: Path
    data: Path
    checkpoint: Path
    config: PretrainConfig
    readers: dict[Path, Callable[[], Any]] = field(default_factory=dict)


@pytest.fixture
def scene(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """Return a run folder as a stopped run leaves it, with a reader of each file."""
    monkeypatch.setenv("NANO3_HOME", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    own_data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(data, own_data)
    changes = {"run.data": str(own_data), "run.output_dir": str(run), "train.exit_iteration": 6}
    config = tiny_config(
        **changes,
        **{"checkpoint.save": f"{run}/checkpoints", "recipe.per_split_data_args_path": f"{own_data}/blend.json"},
    )
    manifest = load_manifest(own_data)
    (own_data / "blend.json").write_text(encode_json(make_blend(manifest, own_data)))
    monkeypatch.setattr(record, "code_version", lambda: ("c" * 40, b"+ a changed line\n" * 8))
    record.save_run_config(run, config, record.DataReference(f"{DATA}:v1", str(own_data), manifest.content), ["a=1"])
    folder = run / "checkpoints" / "iter_0000006"
    folder.mkdir(parents=True)
    (folder / "state.pt").write_bytes(random.Random(0).randbytes(3000))
    opened = open_data(own_data)
    info = CheckpointInfo(
        6,
        24,
        768,
        1.5,
        10,
        backend.run_identity(config, opened),
        backend.mutable_settings(config),
        describe_files(folder),
    )
    write_checkpoint_info(folder, info)
    write_record(run / "finished.json", {"iteration": 6, "checkpoint": str(folder)})
    write_record(run / "progress.json", {"iteration": 6, "checkpoint": str(folder)})
    parent_checkpoint.record_parent(run, tmp_path / "other/checkpoints/iter_0000003", True)
    checkpoint_owner.claim_dir(folder.parent, run)
    megatron_checkpoints.record_begun(folder.parent, 6)
    time = "2026-01-02T03:04:05+01:00"
    job_records.add_record(
        run, JobRecord("12", "a", time, str(run / "l_0_log.out"), "s.sh", state="COMPLETED", exit_code=0)
    )
    with local_job.record_local_job(run):
        pass
    store.register(DATA, own_data, "f" * 64, alias="sample")
    store.register(MODEL, folder, "a" * 64, metadata={"run": "a", "n": [1, 2.5]}, inputs=[f"{DATA}:v1"], alias="a")
    found = Scene(run, own_data, folder, config)
    found.readers = readers(found)
    assert all(path.is_file() for path in found.readers)
    return found


def readers(scene: Scene) -> dict[Path, Callable[[], Any]]:
    """Return how each file is read when something relies on it."""
    run, folder, own = scene.run, scene.checkpoint, store.home()
    manifest = load_manifest(scene.data)
    start = run / "starts/0001"

    def sound(problems: list[str]) -> None:
        if problems:
            raise Nano3Error(problems)

    found: dict[Path, Callable[[], Any]] = {
        folder / "checkpoint.json": lambda: read_checkpoint_info(folder),
        folder / "state.pt": lambda: sound(checkpoint_problems(folder)),
        start / "start.json": lambda: record.read_latest_start(run),
        start / "config.yaml": lambda: load_config_file(start / "config.yaml"),
        start / "code.diff": lambda: record.read_latest_start(run) and (start / "code.diff").read_bytes(),
        run / "config.yaml": lambda: record.load_run_config(run / "config.yaml"),
        run / "finished.json": lambda: record.read_finish_record(run),
        run / "progress.json": lambda: read_record(run / "progress.json", record.FinishRecord, ""),
        run / "began.json": lambda: parent_checkpoint.read_parent(run),
        run / "jobs.json": lambda: job_records.read_records(run),
        run / "local.json": lambda: local_job.newest_local_job(run),
        folder.parent / "run.json": lambda: checkpoint_owner.owner_of(folder.parent),
        folder.parent / "begun.json": lambda: megatron_checkpoints.begun_iterations(folder.parent),
        own / MODEL / "v1.json": lambda: store.load(MODEL, 1),
        own / MODEL / "a.alias": lambda: store.find_artifact(f"{MODEL}:a"),
        next((own / MODEL / "places").iterdir()): lambda: store.find_by_path(MODEL, str(folder)),
        scene.data / "manifest.json": lambda: load_manifest(scene.data),
        scene.data / "blend.json": lambda: sound(verify.check_blend(scene.data, manifest)),
    }
    for path in sorted((scene.data / "tokenizer").iterdir()):
        found[path] = lambda: sound(verify.check_tokenizer(scene.data, manifest))
    return found


def outcome(path: Path, read: Callable[[], Any], before: Any) -> str:
    """Return what reading a damaged file leads to: "" if it is noticed or changes nothing."""
    try:
        value = read()
    except Nano3Error as error:
        return "" if path.name in str(error) else f"not named: {error}"
    except Exception as error:  # what the user would see as a traceback
        return f"traceback: {type(error).__name__}: {error}"
    return "" if value == before else f"silent: {value!r}"


def attack(scene: Scene, damages: Callable[[bytes], Iterator[tuple[str, bytes]]]) -> tuple[int, list[str]]:
    """Apply damages to each file in turn; return their number and what went wrong."""
    count, wrong = 0, []
    for path, read in scene.readers.items():
        content, before = path.read_bytes(), read()
        for what, damaged in damages(content):
            path.write_bytes(damaged)
            count += 1
            if problem := outcome(path, read, before):
                wrong.append(f"{path.name}: {what}: {problem[:300]}")
        path.write_bytes(content)
    return count, wrong


def flips(number: int, seed: int) -> Callable[[bytes], Iterator[tuple[str, bytes]]]:
    """Return `number` random flips of one bit for each file."""
    rng = random.Random(seed)

    def damages(content: bytes) -> Iterator[tuple[str, bytes]]:
        for _ in range(number if content else 0):
            at, bit = rng.randrange(len(content)), rng.randrange(8)
            damaged = bytearray(content)
            damaged[at] ^= 1 << bit
            yield f"bit {bit} of byte {at}", bytes(damaged)

    return damages


def lengths(number: int | None) -> Callable[[bytes], Iterator[tuple[str, bytes]]]:
    """Return truncations to `number` lengths for each file; None for all lengths of small files."""

    def damages(content: bytes) -> Iterator[tuple[str, bytes]]:
        wanted = number or (len(content) if len(content) <= ALL_LENGTHS else 150)
        for length in sorted({len(content) * i // wanted for i in range(wanted)}) if content else []:
            # Nothing but white space at the end is lost: the values are complete.
            yield f"truncated to {length}", content[:length]

    return damages


# What is no record at all.
OTHER_FILES = (
    b"", b"null", b"[]", b"1", b'"x"', b"[[]]", b"\x00\xff\xfe", b"[" * 100_000, b"{" * 9, b"\xef\xbb\xbf{}",
)  # fmt: skip
# Keys of an object that are changed: the first ones, since a vocabulary has thousands that are all alike.
MOST_KEYS = 24
VALUES = (None, [], {}, "x", "", -1, 1e99, True, ["a"], {"a": 1}, [{}], "../..", 10**30)


def mutations(value: Any) -> Iterator[Any]:
    """Yield copies of a JSON value in which one value, down to the third level, is another one, lost or renamed."""
    if isinstance(value, dict):
        for key, inner in islice(value.items(), MOST_KEYS):
            yield {k: v for k, v in value.items() if k != key}
            yield {(f"{k}x" if k == key else k): v for k, v in value.items()}
            for new in [*VALUES, *mutations(inner)]:
                yield value | {key: new}
    elif isinstance(value, list) and value:
        for new in [*VALUES, *mutations(value[0])]:
            yield [new, *value[1:]]


def other_types(path: Path, most: int | None = None, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yield a JSON file with other values, as a file of an earlier version and with a valid checksum.

    Args:
        path: The file; nothing is yielded for a file of another kind.
        most: Number of files; None for all.
        seed: Of the choice.
    """
    if path.suffix not in (".json", ".alias"):
        return
    found: list[Any] = [*OTHER_FILES]
    with contextlib.suppress(ValueError):
        value = json.loads(path.read_bytes())
        if isinstance(value, dict):
            value.pop(CHECKSUM, None)
            found += [(new, sealed) for new in mutations(value) for sealed in (False, True)]
    for one in found if most is None else random.Random(seed).sample(found, min(most, len(found))):
        if isinstance(one, bytes):
            yield repr(one[:20]), one
        else:
            new, sealed = one
            text = json.dumps(with_checksum(new) if sealed else new)
            yield f"{'with a checksum' if sealed else 'of an earlier version'}: {text[:200]}", text.encode()


def test_damage_of_small_files_is_noticed(scene: Scene) -> None:
    """A sample of the slow test below."""
    for damages in (flips(6, 1), lengths(6)):
        count, wrong = attack(scene, damages)
        assert not wrong and count >= 6 * len(scene.readers) - 12


@pytest.mark.slow  # 10,000 damages
def test_no_damage_of_a_small_file_is_silent(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    flipped, wrong = attack(scene, flips(100, 2))
    truncated, more = attack(scene, lengths(None))
    with capsys.disabled():
        print(f"\n{len(scene.readers)} files: {flipped:,} flips, {truncated:,} truncations, {len(wrong + more)} wrong")
    assert not wrong + more
    assert flipped >= 2000


def relying_commands(scene: Scene) -> list[Callable[[], Any]]:
    """Return a start of the run and the tools, called in this process, and what makes each of them read records."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="tool")
    modules = tool_modules()
    for name, module in modules.items():
        module.add_arguments(commands.add_parser(name))

    def tool(*words: str) -> Callable[[], Any]:
        args = parser.parse_args(list(words))
        return lambda: modules[args.tool].run(args)

    def start() -> None:
        record.abandoned_checkpoint_problems(scene.run, scene.config)
        record.late_settings_warning(scene.run, scene.config)
        open_data(scene.data)
        preview_resume_point(scene.config, None, backend.find_resume_point)
        record.run_changed(scene.run, scene.config, record.DataReference("a", "b", "c"))
        record.valid_finish_record(scene.run)

    run = str(scene.run)
    return [
        start,
        tool("jobs", run),
        tool("tail", run, "--no-follow"),
        tool("diff", run, run),
        tool("cancel", run),
        tool("trace", run, "--iteration", "2", "--no-sources"),
        tool("report", run, "--output", f"{run}/report.html"),
        tool("rerun", run),
        tool("export", run, "--output", f"{run}/hf"),
        tool("verify", str(scene.data), "--threads", "1"),
        tool("inspect", str(scene.data)),
        tool("inspect", str(scene.data), "--doc", "0"),
        tool("artifacts", "list"),
        tool("artifacts", "show", f"{MODEL}:a"),
        tool("artifacts", "lineage", f"{MODEL}:latest"),
    ]


def tracebacks(scene: Scene, per_file: int, seed: int, per_damage: int = 15) -> tuple[int, list[str]]:
    """Call what relies on the records with damaged ones; return the number of calls and the tracebacks."""
    rng, calls, wrong = random.Random(seed), 0, []
    commands = relying_commands(scene)
    for path in scene.readers:
        content = path.read_bytes()
        found = list(other_types(path, per_file, seed)) or [
            ("binary", b"\x00\xff\xfe"),
            ("list", b"- 1\n"),
            ("", b""),
        ]
        for what, damaged in found:
            path.write_bytes(damaged)
            for command in rng.sample(commands, per_damage):
                calls += 1
                try:
                    command()
                except (Nano3Error, SystemExit):
                    pass
                except Exception as error:
                    wrong.append(f"{path.name}: {what}: {type(error).__name__}: {error}"[:400])
        path.write_bytes(content)
    return calls, wrong


@pytest.fixture
def no_new_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """`nano3 rerun` would start a process for each undamaged record."""
    monkeypatch.setattr("nano3.tools.rerun.subprocess.run", lambda *_, **__: argparse.Namespace(returncode=0))


def test_records_of_other_types_give_no_traceback(scene: Scene, no_new_run: None) -> None:
    """A sample of the slow test below."""
    calls, wrong = tracebacks(scene, 1, 1, per_damage=2)
    assert not wrong and calls >= 2 * len(scene.readers)


@pytest.mark.slow  # 1,000 calls
def test_no_record_of_other_types_gives_a_traceback(
    scene: Scene, no_new_run: None, capsys: pytest.CaptureFixture[str]
) -> None:
    read = 0
    for path, reader in scene.readers.items():
        content = path.read_bytes()
        for _, damaged in other_types(path, None if len(content) < 20_000 else 100):
            path.write_bytes(damaged)
            read += 1
            with contextlib.suppress(Nano3Error):
                reader()
        path.write_bytes(content)
    calls, wrong = tracebacks(scene, 4, 2)
    with capsys.disabled():
        print(f"\n{read:,} records of other types read; {calls:,} calls of tools and starts, {len(wrong)} tracebacks")
    assert not wrong
