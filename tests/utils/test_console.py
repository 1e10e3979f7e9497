"""Text and tables are printed verbatim on terminals and in pipes, on rank 0 only."""

import contextlib
import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT
from faults import small_disk
from hypothesis import given
from hypothesis import strategies as st

from nano3.utils.console import duration_text, group_by_dataset, is_rank_zero, table

SAY = "from nano3.utils.console import say, table, warn; import sys\n"


def written(program: str, terminal: bool, **env: str) -> str:
    """Return stdout and stderr of a program, run on a terminal of 200 columns or in a pipe."""
    own = {"TERM": "dumb", "COLUMNS": "200", "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    words = [sys.executable, "-c", SAY + program]
    if not terminal:
        done = subprocess.run(words, capture_output=True, env={**os.environ, **own, **env}, check=True)
        return (done.stdout + done.stderr).decode(errors="surrogateescape")
    mine, theirs = pty.openpty()
    process = subprocess.Popen(words, stdout=theirs, stderr=theirs, env={**os.environ, **own, **env})
    os.close(theirs)
    read = bytearray()
    while True:
        try:
            read += (new := os.read(mine, 1 << 16))
        except OSError:  # EIO: the other end has closed
            new = b""
        if not new:
            break
    os.close(mine)
    assert process.wait() == 0, read.decode()
    return read.decode()


# Rich would interpret each of these: a tag, an end tag (which raises), an escape, an emoji, a link.
NAMES = ["run[bold]", "x[/]y", "a[/b]", "[a1-a4]", "\\[x]", "conf.yaml:100:5", ":key:", "[link=/x]", "[#ff0000]"]


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
def test_names_are_printed_verbatim(terminal: bool) -> None:
    program = f"for n in {NAMES!r}: say('said ' + n); warn('warned ' + n)\n"
    program += f"table('titled [/x]', ['run', 'n'], [(n, 1) for n in {NAMES!r}], right=['n'])"
    out = written(program, terminal)
    for name in NAMES:
        assert f"said {name}" in out and f"warning: warned {name}" in out
        assert sum(name in line for line in out.splitlines()) >= 3, "in the table as well"
    assert "titled [/x]" in out


@pytest.mark.parametrize(
    ("env", "prints"),
    [
        pytest.param({}, True, id="no ranks"),
        pytest.param({"RANK": "0"}, True, id="rank 0"),
        pytest.param({"RANK": "3"}, False, id="rank 3"),
        pytest.param({"SLURM_PROCID": "2"}, False, id="task 2 of Slurm"),
        pytest.param({"RANK": "0", "SLURM_PROCID": "2"}, True, id="torchrun in a task of Slurm"),
        pytest.param({"RANK": "1", "SLURM_PROCID": "0"}, False, id="its other rank"),
    ],
)
def test_only_rank_zero_prints(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], env: dict[str, str], prints: bool
) -> None:
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    table("title", ["a"], [["cell"]])
    assert is_rank_zero() is prints and ("cell" in capfd.readouterr().out) is prints


CELLS = st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=12)


@given(st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=6))
def test_columns_of_a_plain_table_are_aligned(rows: list[tuple[str, str, str]]) -> None:
    """Every column begins (or, on the right, ends) at the same character in each line."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        table("title", ["one", "two", "three"], rows, right=["two"])
    title, *lines = out.getvalue().split("\n")[:-1]
    widths = [max(map(len, column)) for column in zip(("one", "two", "three"), *rows, strict=True)]
    assert title == "title" and len(lines) == 1 + len(rows)
    for line, row in zip(lines, [("one", "two", "three"), *rows], strict=True):
        starts = (0, widths[0] + 2, sum(widths[:2]) + 4)
        cut = tuple(line.ljust(sum(widths) + 4)[at : at + w] for at, w in zip(starts, widths, strict=True))
        assert (cut[0].rstrip(), cut[1].lstrip(), cut[2].rstrip()) == row


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
def test_long_lines_are_not_broken(terminal: bool) -> None:
    """The terminal itself wraps them, so that a command or a path can be copied from it."""
    line = "word " * 200 + "/a/path/of/some/length" * 30
    out = written(f"say({line!r}); warn({line!r})", terminal).replace("\r\n", "\n")
    assert out == f"{line}\nwarning: {line}\n"


@pytest.mark.parametrize("columns", [30, 60, 80, 140])
def test_a_table_never_breaks_a_number(columns: int) -> None:
    """With frames where the terminal is wide enough, else as in a pipe."""
    row = ["a/long/path/of/a/file.parquet", "1,234,567 / 89,012,345", "446,152", "12.5"]
    program = f"table('title', ['file', 'train (documents / tokens)', 'GPU-hours', 's/step'], [{row!r}] * 2, "
    program += "right=['train (documents / tokens)', 'GPU-hours', 's/step'])"
    out = written(program, terminal=True, TERM="xterm", COLUMNS=str(columns))
    assert [out.count(number) for number in ("1,234,567", "89,012,345", "446,152", "12.5")] == [2] * 4
    assert ("┃" in out) == (columns >= 60)
    assert all(len(line) <= columns for line in out.splitlines() if line.startswith(("┏", "│", "└")))


def test_a_table_far_wider_than_the_terminal_is_shown_cell_by_cell() -> None:
    program = (
        f"table('title', ['point', 'rate', 'none'], [('{'a' * 30}', '{'b' * 490}', ''), ('c', 'd', '')], ['rate'])"
    )
    out = written(program, terminal=True, TERM="xterm", COLUMNS="80").replace("\r\n", "\n")
    assert out == f"title\npoint  {'a' * 30}\nrate   {'b' * 490}\n\npoint  c\nrate   d\n\n"
    lines = written(program, terminal=False).splitlines()
    assert len(lines) == 4 and lines[1].split() == ["point", "rate", "none"]


def test_a_column_may_have_neither_a_name_nor_text() -> None:
    """As that of the states in `nano3 trace RUN --dataset NAME` when the run has finished."""
    out = written("table('title', ['tokens', ''], [('1,234', '')])", terminal=True)
    assert "┃ tokens ┃   ┃" in out and "│ 1,234  │   │" in out


@pytest.mark.parametrize(("length", "framed"), [(90, True), (190, False)])
def test_a_row_is_not_folded_into_more_lines_than_it_has_cells(length: int, framed: bool) -> None:
    rows = [("a " * length, "b " * length, "1")]
    out = written(f"table('title', ['left', 'more', 'n'], {rows}, ['n'])", terminal=True, TERM="xterm", COLUMNS="120")
    assert ("┃" in out) == framed


def test_a_tool_shows_folders_of_any_encoding(tmp_path: Path) -> None:
    """A folder name in Latin-1 must not break the list."""
    for name in (b"caf\xe9", b"plain"):
        folder = tmp_path / os.fsdecode(name)
        folder.mkdir()
        (folder / "config.yaml").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "nano3", "jobs", str(tmp_path)],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert os.fsencode(tmp_path) + rb"/caf\xe9" in done.stdout and b"/plain" in done.stdout


def test_a_problem_shared_by_several_datasets_is_printed_once() -> None:
    problems = [f"dataset '{n}': path=hf://org/{n}: the hub cannot be reached." for n in "abc"]
    merged = group_by_dataset(["tokenizer: no", *problems, "dataset 'd': path=x: is empty."])
    assert merged == [
        "tokenizer: no",
        "3 datasets (a, b, c); the first: path=hf://org/a: the hub cannot be reached.",
        "dataset 'd': path=x: is empty.",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (4.31, "4.3 s"),
        (5, "5 s"),
        (9.96, "10 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (3569, "59 min"),
        (3571, "1 h 00 min"),
        (11100, "3 h 05 min"),
        (187200, "2 d 04 h"),
    ],
)
def test_duration_text(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_goes_on_when_the_disk_has_space_again(tmp_path: Path, stream: str) -> None:
    """Whatever wrote last before; nothing is left to write at exit, and the exit code is that of the work."""
    program = SAY + (
        "from pathlib import Path; from faults import fill; from nano3.utils.console import write, write_log\n"
        "disk, own = Path(sys.argv[1]), sys.argv[2] == 'stderr'\n"
        "acts = [lambda text: say(text, own), lambda text: write(text + '\\n', own)]\n"
        "acts += [warn] if own else [lambda text: write_log(text.encode() + b'\\n')]\n"
        "for act in acts:\n"
        "    act('early')\n"
        "    fill(disk / 'filler', disk / 'out')\n"
        "    act('lost'); act('lost')\n"
        "    (disk / 'filler').unlink()\n"
        "    act('later')\n"
        "fill(disk / 'filler', disk / 'out'); acts[0]('lost')\n"
        "sys.exit(7)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with small_disk(tmp_path, "1m"):
        with (tmp_path / "out").open("ab") as out:
            words = [sys.executable, "-c", program, str(tmp_path), stream]
            done = subprocess.run(words, check=False, env=env, **{stream: out})
        lines = (tmp_path / "out").read_text().replace("." * 100, "").splitlines()
    assert done.returncode == 7
    shown = [line.strip(".").removeprefix("warning: ") for line in lines if line.strip(".")]
    shown = [re.sub(r"^\[text of \d+ s is missing here: No space left on device\]$", "gap", line) for line in shown]
    assert shown == ["early", "gap", "later"] * 3


MANY_THREADS = """
import os, random, sys, threading, time
from nano3.utils.console import discard_buffered, write

def slow(call):
    def wait_and_call(*args):
        time.sleep(random.random() / 500)  # another thread goes on here
        return call(*args)
    return wait_and_call

def print_much():
    for _ in range(20):
        write("x")
        discard_buffered(sys.stdout)  # after an error that several threads have at the same time

os.dup, os.dup2 = slow(os.dup), slow(os.dup2)
threads = [threading.Thread(target=print_much) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
sys.stderr.write(os.readlink("/proc/self/fd/1"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_threads_that_print_to_a_full_disk_do_not_lose_the_stream() -> None:
    """Each discards what is buffered, for which the descriptor leads elsewhere for a moment."""
    with Path("/dev/full").open("wb") as full:
        words = [sys.executable, "-c", MANY_THREADS]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "/dev/full")
