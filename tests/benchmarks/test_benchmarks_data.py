"""The tools of the data benchmark, without network and without the other programs."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

DATA = Path(__file__).parents[2] / "benchmarks" / "data"


@pytest.fixture(autouse=True)
def scripts_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DATA))


def write_pair(prefix: Path, documents: list[list[int]]) -> None:
    from nano3.data.dataset.indexed import write_index

    np.concatenate(documents).astype(np.int32).tofile(prefix.with_suffix(".bin"))
    lengths = np.array([len(d) for d in documents], np.int32)
    with prefix.with_suffix(".idx").open("wb") as f:
        write_index(f.write, lambda: iter([lengths]), len(documents), len(documents), "int32")


def test_ids_see_order_content_and_documents(tmp_path: Path) -> None:
    import ids

    for name, documents in {"a": [[1, 2], [3]], "b": [[3], [1, 2]], "c": [[1, 2], [4]]}.items():
        (tmp_path / name).mkdir()
        write_pair(tmp_path / name / "text", documents)
    a, b, c = (ids.read(tmp_path / name) for name in "abc")
    assert (a.tokens, a.documents) == (3, 2)
    assert a.counts == b.counts and a.stream != b.stream
    assert a.counts != c.counts


def test_measure_counts_children(tmp_path: Path) -> None:
    import measure

    burn = (
        "import subprocess,sys; subprocess.run([sys.executable,'-c','x=bytearray(80_000_000); sum(range(20_000_000))'])"
    )
    usage = measure.run([sys.executable, "-c", burn], tmp_path / "log", {}, tmp_path)
    assert usage.cpu_s > 0.2 and usage.wall_s >= 0.2
    assert usage.peak_mb >= usage.peak_process_mb > 80


def test_measure_raises_with_the_log(tmp_path: Path) -> None:
    import measure

    with pytest.raises(RuntimeError, match="no luck"):
        measure.run([sys.executable, "-c", "raise SystemExit('no luck')"], tmp_path / "log", {}, tmp_path)


@pytest.mark.parametrize(
    ("data", "name", "kept"),
    [
        (b"text\n", "a.txt", True),
        (b"caf\xe9", "latin1.txt", False),
        (b"a\0b", "nul.bin", False),
        (b" \n", "blank.txt", False),
        (b"x" * 1_000_001, "large.txt", False),
        (b"#define A 1\n", "asic_reg/a.h", False),
    ],
    ids=["text", "latin-1", "nul", "blank", "large", "register table"],
)
def test_what_is_a_document(tmp_path: Path, data: bytes, name: str, kept: bool) -> None:
    import corpus

    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    assert (corpus.document(path) == data) is kept


def test_report_says_who_agrees(tmp_path: Path) -> None:
    import report

    def run(contender: str, wall: float, stream: str, tokens: int = 9) -> dict[str, Any]:
        usage = {"wall_s": wall, "cpu_s": wall, "peak_mb": 1.0, "peak_process_mb": 1.0, "other_cpu_s": 0.0}
        ids = {"tokens": tokens, "documents": 2, "counts": "c", "stream": stream}
        return {"contender": contender, "size": "tiny", "round": 1, "command": contender, **usage, **ids}

    runs = [run("nano3", 2.0, "s"), run("megatron", 30.0, "s"), run("datatrove", 50.0, "t"), run("dolma", 40.0, "u", 7)]
    result = {
        "date": "2026-01-01",
        "machine": {"cpu": "cpu", "cores": 2, "memory_gb": 8, "system": "Linux"},
        "workers": 2,
        "code": "abc1234",
        "sample_s": 0.1,
        "versions": {"nano3": {"nano3": "0"}},
        "corpus": {"tiny": {"documents": 2, "text_bytes": 4_000_000, "sha256": ""}},
        "sources": {"package 1.0": {"documents": 2, "bytes": 4_000_000}},
        "runs": runs,
        "engine": [],
    }
    report.save(result, tmp_path)
    report.write(result, tmp_path)
    text = (tmp_path / "data.md").read_text()
    rows = {
        line.split(" | ")[0]: line.strip("| ").split(" | ")[1:] for line in text.splitlines() if line.startswith("| ")
    }
    found = [(float(row[2]), row[-1]) for name, row in rows.items() if len(row) == 10 and name != "| "]
    assert found == [(1.0, "same"), (15.0, "same"), (25.0, "same, other order"), (20.0, "-2 tokens")]
    assert "Provisional" not in text
    assert json.loads((tmp_path / "data.json").read_text()) == result
    assert (tmp_path / "data.png").stat().st_size > 1000


def test_packing_counts_cuts_and_padding() -> None:
    import packing

    lengths = np.array([3, 5, 8, 10, 4])
    found = packing.packed(lengths, 8)  # 8 | 8 of the 10 | 5 3 | 4 2 and two of padding
    assert found == {
        "cuts per document": 1 / 5,
        "needless cuts per short document": 0,
        "padding": pytest.approx(1 / 16),
    }
    one_after_the_other = packing.concatenated(np.full(8, 6), 8)  # a cut at 8 and 16, none at 24
    assert one_after_the_other["cuts per document"] == 4 / 8
    assert one_after_the_other["padding"] == 0
