"""nano3 report: one self-contained page about runs."""

import argparse
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from commands import run_tool

from nano3.config import PretrainConfig
from nano3.tools import report
from nano3.training.reports.curves import CURVES, Curve, draw_curve
from nano3.training.reports.plot import plot_losses
from nano3.training.run.record import DataReference, save_run_config
from nano3.training.run.skips import ROLLED_BACK, SkippedRange, SkipRecord
from nano3.utils.errors import Failure, UserError
from nano3.utils.records import CHECKSUM, DamagedRecordError, write_record


def make_run(folder: Path, lr: float = 1e-3, end: float = 5.0, iterations: int = 40, **keys: Any) -> Path:
    """Write a run folder with a record, metrics and a finish record; the loss falls from 9 to `end`."""
    config = PretrainConfig()
    config.run.name, config.run.output_dir, config.run.data = folder.name, str(folder), "/data"
    config.optimizer.lr, config.train.train_iters = lr, 40
    config.checkpoint.save = str(folder / "checkpoints")
    save_run_config(folder, config, DataReference("Data:v1", "/data", "content"), [f"optimizer.lr={lr}"])
    lines: list[dict[str, Any]] = []
    for i in range(1, iterations + 1):
        loss = 9 + (end - 9) * i / 40
        lines.append(
            {
                "iteration": i, "consumed_samples": 4 * i, "consumed_tokens": 128 * i, "loss": loss, "lr": lr,
                "grad_norm": 1 / i, "tokens_per_s": 1000.0 + i, "elapsed_s": 36.0 * i, **keys,
            }
        )  # fmt: skip
        if i % 10 == 0:
            lines.append({"iteration": i, "valid_loss": loss + 0.5, "valid_loss/math": loss + 0.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if iterations == 40:
        (folder / "finished.json").write_text(json.dumps({"iteration": 40, "checkpoint": None}))
    return folder


def make_report(tmp_path: Path, *runs: Path, output: str | None = None) -> str:
    """Run the tool and return the page."""
    target = Path(output) if output else tmp_path / "page.html"
    assert report.run(argparse.Namespace(runs=[str(run) for run in runs], output=str(target))) == 0
    return target.read_text()


class Tables(HTMLParser):
    """The page's tables as lists of rows, and all its tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.tags: list[str] = []
        self._cell: list[str] | None = None
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            self.tables[-1][-1].append("".join(self._cell))
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)


def pictures(page: str) -> list[ElementTree.Element]:
    """Return the page's pictures, parsed as XML."""
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def words(picture: ElementTree.Element) -> str:
    """Return the text in a picture."""
    return " ".join(text.strip() for text in picture.itertext() if text.strip())


def test_one_run(tmp_path: Path) -> None:
    page = make_report(tmp_path, make_run(tmp_path / "tiny"))
    assert page.startswith("<!DOCTYPE html>") and page.endswith("</html>\n")
    results, datasets, configuration, *_ = Tables(page).tables
    assert datasets == [["run", "dataset", "validation loss"], ["tiny", "math", "5.5000"]]
    columns = ["run", "state", "tokens", "training loss", "validation loss", "tokens/s", "hours", "data", "code"]
    assert results[0] == columns, "bits per byte, MFU and goodput have no value"
    assert results[1][:8] == ["tiny", "finished", "5,120", "5.2000", "5.5000", "1,031", "0.40", "Data:v1"]
    assert ["optimizer.lr", "0.001"] in configuration
    titles = [words(picture) for picture in pictures(page)]
    assert len(titles) == 5
    wanted = ["validation loss", "training loss", "tokens per second", "learning rate", "gradient norm"]
    assert all(title in words for title, words in zip(wanted, titles, strict=True))


def test_several_runs_are_compared(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"lr-{lr}", lr, end) for lr, end in ((0.1, 6.0), (0.01, 5.0), (0.001, 7.0))]
    page = make_report(tmp_path, *runs)
    results, datasets, configuration = Tables(page).tables
    assert [row[:2] for row in datasets[1:]] == [[run.name, "math"] for run in runs]
    assert [row[0] for row in results[1:]] == ["lr-0.1", "lr-0.01", "lr-0.001"]
    best = re.findall(r"<tr class='best'><td>(.*?)</td>", page)
    assert best == ["lr-0.01"]
    assert configuration[0] == ["", "lr-0.1", "lr-0.01", "lr-0.001"]
    assert ["optimizer.lr", "0.1", "0.01", "0.001"] in configuration
    assert all(len(set(row[1:])) > 1 for row in configuration[1:])
    assert "lr-0.01" in words(pictures(page)[0])


def test_the_best_run_is_marked_only_if_losses_are_comparable(tmp_path: Path) -> None:
    """Losses of the untrained model or of different data are not comparable."""

    def best(*runs: Path) -> list[str]:
        return re.findall(r"<tr class='best'><td>(.*?)</td>", make_report(tmp_path, *runs))

    runs = [make_run(tmp_path / name, end=end) for name, end in (("a", 6.0), ("b", 5.0))]
    assert best(*runs) == ["b"]
    start = json.loads((runs[1] / "starts/0001/start.json").read_text())
    start["data"]["fingerprint"] = "other"
    del start[CHECKSUM]
    write_record(runs[1] / "starts/0001/start.json", start)
    assert best(*runs) == []
    short = [make_run(tmp_path / name, iterations=5) for name in ("c", "d")]
    for run in short:
        path = run / "metrics.jsonl"
        path.write_text('{"iteration": 0, "valid_loss": 8.3}\n' + path.read_text())
    assert best(*short) == []
    assert best(runs[0], *short) == []


def test_a_stopped_run_is_not_finished(tmp_path: Path) -> None:
    """A validation loss of an earlier iteration is labeled with it."""
    run = make_run(tmp_path / "a", iterations=25)
    (run / "finished.json").write_text(json.dumps({"iteration": 25, "checkpoint": None}))
    row = Tables(make_report(tmp_path, run)).tables[0][1]
    assert row[1] == "at 25 of 40"
    assert row[4] == "7.5000 (at 20)"


def test_the_folder_of_a_sweep(tmp_path: Path) -> None:
    for lr in (0.1, 0.01):
        make_run(tmp_path / "sweep" / f"lr-{lr}", lr)
    (tmp_path / "sweep" / "jobs.json").write_text("[]")
    page = make_report(tmp_path, tmp_path / "sweep")
    assert [row[0] for row in Tables(page).tables[0][1:]] == ["lr-0.01", "lr-0.1"]


def test_equal_names_are_prefixed_with_their_folder(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name / "tiny") for name in "ab"]
    assert [row[0] for row in Tables(make_report(tmp_path, *runs)).tables[0][1:]] == ["a/tiny", "b/tiny"]


def test_a_repeated_run_is_shown_once(tmp_path: Path) -> None:
    run = make_run(tmp_path / "tiny")
    assert len(Tables(make_report(tmp_path, run, run)).tables[0]) == 2


def test_equal_runs(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "one"), make_run(tmp_path / "two")]
    table = Tables(make_report(tmp_path, *runs)).tables[2]
    assert table[1:] == [["run.name", "one", "two"]]


@pytest.mark.parametrize(("iterations", "state"), [(0, "not started"), (10, "at 10 of 40"), (40, "finished")])
def test_state(tmp_path: Path, iterations: int, state: str) -> None:
    page = make_report(tmp_path, make_run(tmp_path / "tiny", iterations=iterations))
    assert Tables(page).tables[0][1][1] == state
    assert ("There are no metrics yet." in page) == (iterations == 0)


def test_gpu_metrics(tmp_path: Path) -> None:
    page = make_report(tmp_path, make_run(tmp_path / "tiny", mfu=0.415, memory_gb=61.0))
    assert Tables(page).tables[0][1][6] == "41.5%"
    titles = " ".join(words(picture) for picture in pictures(page))
    assert "model FLOPs utilization" in titles and "peak memory" in titles


def test_bits_per_byte(tmp_path: Path) -> None:
    run = make_run(tmp_path / "tiny")
    last = {"iteration": 40, "valid_loss": 5.0, "valid_loss/math": 5.0}
    bits = {"valid_bits_per_byte": 1.5, "valid_bits_per_byte/math": 1.5}
    with (run / "metrics.jsonl").open("a") as f:
        f.write(json.dumps(last | bits) + "\n")
    results, datasets, *_ = Tables(make_report(tmp_path, run)).tables
    assert results[1][5] == "1.5000"
    assert datasets == [["run", "dataset", "validation loss", "bits per byte"], ["tiny", "math", "5.0000", "1.5000"]]


def test_where_the_time_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "tiny", **{"seconds/step": 1.0})
    starts = [
        {"iteration": 0, "start": 1, "time": 1.0},
        {"iteration": 40, "start": 2, "time": 2.0, "lost_iterations": 3, "lost_s": 10.0, "interrupted_s": 50.0},
    ]
    path = run / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (starts[0], starts[1])) + path.read_text())
    page = make_report(tmp_path, run)
    results, _, restarts, *_ = Tables(page).tables
    assert results[1][6:8] == ["40.0%", "0.03"]
    assert restarts[2][:6] == ["2", "40", "50 s", "killed", "3", "10 s"]
    assert "<div class='bar'>" in page and "interruptions 50.0%" in page
    assert "] goodput 40.0% of 2 min" in capsys.readouterr().out


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    page = make_report(tmp_path, make_run(tmp_path / "tiny"))
    assert not {"script", "link", "img", "iframe"} & set(Tables(page).tags)
    assert not re.search(r"(src|href)=[\"'](?!#)", re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL))


def test_names_are_escaped(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name) for name in ("a<b>&c", "d")]
    page = make_report(tmp_path, *runs)
    assert "<b>" not in page and html.escape("a<b>&c") in page
    assert pictures(page)


@pytest.mark.parametrize(
    ("given", "written"),
    [
        pytest.param(["sweep/a"], "sweep/a/report.html", id="a run"),
        pytest.param(["sweep"], "sweep/report.html", id="a sweep"),
        pytest.param(["named"], "output/nano3/runs/named/report.html", id="a sweep by its name"),
        pytest.param(["one"], "one/report.html", id="a folder of one run"),
        pytest.param(["sweep/a", "sweep/b"], "report.html", id="several runs"),
        pytest.param(["sweep", "one"], "report.html", id="several folders"),
        pytest.param(["sweep/a", "sweep/a"], "sweep/a/report.html", id="a run twice"),
    ],
)
def test_default_output_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], written: str) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("sweep/a", "sweep/b", "one/c", "output/nano3/runs/named/d", "output/nano3/runs/named/e"):
        make_run(tmp_path / name)
    assert report.run(argparse.Namespace(runs=given, output=None)) == 0
    assert [str(page.relative_to(tmp_path)) for page in tmp_path.rglob("report.html")] == [written]


def test_the_output_folder_is_created(tmp_path: Path) -> None:
    assert make_report(tmp_path, make_run(tmp_path / "a"), output=str(tmp_path / "x" / "y" / "page.html"))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        pytest.param(("metrics.jsonl", "{\n"), Failure, "metrics.jsonl, line 1: damaged", id="metrics"),
        pytest.param(("finished.json", "{"), DamagedRecordError, "finished.json: damaged", id="marker"),
        pytest.param(("starts/0001/start.json", "{"), DamagedRecordError, "0001/start.json: damaged", id="start"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, damage: tuple[str, str], error: type[Exception], message: str) -> None:
    run = make_run(tmp_path / "a")
    (run / damage[0]).write_text(damage[1])
    with pytest.raises(error, match=message):
        make_report(tmp_path, run)
    assert not (tmp_path / "page.html").exists()


def test_an_output_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--output .*/file/page\.html: cannot be written: "):
        make_report(tmp_path, make_run(tmp_path / "a"), output=str(tmp_path / "file" / "page.html"))


def test_wrong_arguments(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no start is recorded there"):
        make_report(tmp_path, tmp_path / "empty")
    with pytest.raises(UserError, match="There is no run 'nowhere'"):
        make_report(tmp_path, Path("nowhere"))
    with pytest.raises(UserError, match=r"--output .*empty is a folder. Name a file"):
        make_report(tmp_path, make_run(tmp_path / "a"), output=str(tmp_path / "empty"))


def test_the_command(tmp_path: Path) -> None:
    run = make_run(tmp_path / "tiny")
    assert run_tool("report", run)[:2] == (0, f"report of 1 run: {run}/report.html\n")


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.key)
def test_every_curve_is_drawn(curve: Curve) -> None:
    lines = [{"iteration": i, curve.key: 1 / i} for i in range(1, 50)]
    picture = draw_curve(curve, {"a": lines, "b": lines[:3], "c": []})
    assert picture is not None
    assert curve.title in words(ElementTree.fromstring(picture))
    assert draw_curve(curve, {"a": [{"iteration": 1}], "b": []}) is None


def test_a_curve_with_zeros_uses_a_linear_axis() -> None:
    curve = Curve("grad_norm", "norm", log=True)
    assert draw_curve(curve, {"a": [{"iteration": i, "grad_norm": float(i)} for i in range(3)]})


@pytest.mark.parametrize("name", ["$x^$", "$", "a$b$c", r"$\frac$", "_hidden", "x\x1b[31m", "é\n"])
def test_names_are_no_formulas(tmp_path: Path, name: str) -> None:
    """Matplotlib reads $…$ as a formula, and hides labels that begin with an underscore."""
    run, other = make_run(tmp_path / name), make_run(tmp_path / "other")
    page = make_report(tmp_path, run, other)
    legend = name.translate({27: r"\x1b", 10: r"\n"})
    assert all(legend in words(picture).replace("\u200b", "") for picture in pictures(page)[:2])
    assert plot_losses(run).stat().st_size > 1000


def test_what_the_guard_found_and_what_was_left_out_is_on_the_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    event = {"time": "2026-01-01T00:00:00+00:00", "iteration": 17, "statistic": "loss", "value": "nan", "median": 5.0,
             "threshold": 6.25, "action": "rollback", "samples": [64, 67],
             "documents": [{"dataset": "<web>"}]}  # fmt: skip
    (run / "guard.jsonl").write_text(json.dumps(event) + "\n")
    SkipRecord((SkippedRange(17, 18, ROLLED_BACK),)).write(run)
    page = make_report(tmp_path, run)
    tables = Tables(page).tables
    assert ["a", "17", "loss", "nan", "6.25", "rollback", "<web>", event["time"]] in [row for t in tables for row in t]
    assert ["a", "17 to 18 (guard rollback)"] in [row for t in tables for row in t]
    plain = make_report(tmp_path, make_run(tmp_path / "b"))
    assert "<h2>Guard</h2>" not in plain and "<h2>Guard</h2>" in page
