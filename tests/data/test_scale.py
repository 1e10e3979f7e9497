"""Work grows in proportion to shards, datasets and files. Executed lines are counted, as times would be unreliable."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from data_helpers import options, source, write

import nano3
from nano3.config import PrepOptions, SourceConfig
from nano3.data.build.run import prepare
from nano3.training.dataset import open_data

PACKAGE = str(Path(nano3.__file__).parent)
# Functions that wait for other processes: how many lines they execute depends on time.
WAITING = ("dispatch_units", "results", "idle", "busy", "start", "collect", "add")
FEW, MANY = 12, 48


def executed_lines(call: Callable[[], object]) -> int:
    """Return how many lines of nano3 a call executes in this process, in all threads."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE) or code.co_name in WAITING:
            return None
        count += event == "line"
        return trace

    threading.settrace(trace)
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
    return count


def request(kind: str, folder: Path, number: int, tokenizer: Path) -> tuple[list[SourceConfig], PrepOptions]:
    """Return a blend with so many shards, datasets or files."""
    folder.mkdir()
    datasets, files = (number if kind == "datasets" else 1), (number if kind == "files" else 1)
    documents = 2 * number if kind == "shards" else 3
    sources = []
    for d in range(datasets):
        (folder / f"d{d}").mkdir()
        for f in range(files):
            write(
                folder / f"d{d}" / f"{f}.jsonl", [f"document {i} of file {f} of dataset {d}" for i in range(documents)]
            )
        sources.append(source(folder / f"d{d}", name=f"d{d}"))
    return sources, options(
        folder / "out", tokenizer, num_shards=number if kind == "shards" else 1, valid_fraction=0.0,
        test_fraction=0.0, workers=1,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["shards", "datasets", "files"])
def test_work_grows_in_proportion(tmp_path: Path, byte_bpe: Path, kind: str) -> None:
    counts: dict[str, list[int]] = {"prepare": [], "prepare again": [], "open": []}
    for number in (FEW, MANY):
        sources, opts = request(kind, tmp_path / str(number), number, byte_bpe)
        for step in ("prepare", "prepare again"):
            counts[step].append(executed_lines(lambda s=sources, o=opts: prepare(s, o, "test")))  # type: ignore[misc]
        counts["open"].append(executed_lines(lambda o=opts: open_data(Path(o.output_dir))))  # type: ignore[misc]
    for step, (few, many) in counts.items():
        assert many < 1.1 * MANY / FEW * few, f"{step}: {few} lines for {FEW} {kind}, {many} for {MANY}"


def test_a_quadratic_step_would_be_noticed() -> None:
    from nano3.utils.errors import nearest

    def pairs(number: int) -> None:
        for _ in range(number * number):
            nearest("a", [])

    few, many = (executed_lines(lambda n=n: pairs(n)) for n in (FEW, MANY))  # type: ignore[misc]
    assert many > 4 * MANY / FEW * few * 0.9
