"""What a person sees of a rank, and what is in its log."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from faults import fill, small_disk
from training_processes import start_ranks, tiny_config

from nano3.config import PretrainConfig
from nano3.training.hf import loop as hf_loop
from nano3.training.hf.backend import train
from nano3.training.run.outcome import Outcome
from nano3.training.run.rank_log import TAIL_LINES, log_path, rank_log
from nano3.utils.console import say
from nano3.utils.errors import Failure

NOISY = """
import ctypes, logging, os, subprocess, sys, warnings
from pathlib import Path
from nano3.training.run.rank_log import rank_log
from nano3.utils.console import prepare_output, say, table, warn
from nano3.utils.errors import Failure, UserError

prepare_output()
logging.basicConfig(level=logging.INFO)
say("before")
try:
    with rank_log(Path(sys.argv[1]), int(os.environ.get("RANK", "0"))):
        print("noise of Python")
        print("noise on stderr", file=sys.stderr)
        os.write(1, b"noise of a descriptor\\n")
        ctypes.CDLL(None).printf(b"noise of C\\n")
        subprocess.run(["echo", "noise of a child"])
        logging.getLogger("library").info("noise of a logger")
        warnings.warn("noise of a warning")
        say("own line")
        warn("own warning")
        table("Own table", ["what"], [["cell"]])
        exec(sys.argv[2])
except (Failure, UserError) as error:
    print(f"error: {error}", file=sys.stderr)
say("after")
"""
KINDS = ("Python", "stderr", "a descriptor", "C", "a child", "a logger", "a warning")


def noisy(folder: Path, ending: str = "pass", **env: str) -> "subprocess.CompletedProcess[str]":
    """Run the program above in `folder`, which ends as `ending` says."""
    words = [sys.executable, "-c", NOISY, str(folder), ending]
    return subprocess.run(words, capture_output=True, text=True, env={**os.environ, **env}, check=False)


def test_only_own_lines_are_shown_and_the_log_is_whole(tmp_path: Path) -> None:
    done = noisy(tmp_path)
    assert done.stdout.splitlines() == ["before", "own line", "Own table", "what", "cell", "after"]
    assert done.stderr == "warning: own warning\n"
    log = log_path(tmp_path, 0).read_text()
    for kind in KINDS:
        assert log.count(f"noise {'on' if kind == 'stderr' else 'of'} {kind}") == 1 or kind == "a warning", kind
    assert "noise of a warning" in log and "own line\n" in log and "warning: own warning\n" in log
    assert "before" not in log and "after" not in log
    noisy(tmp_path)
    assert log_path(tmp_path, 0).read_text().count("==== rank 0, ") == 2


def test_a_failure_shows_the_last_lines_and_names_the_rank(tmp_path: Path) -> None:
    ending = "for i in range(40): print('line', i)\nraise Failure('the disk is full')"
    done = noisy(tmp_path, ending, RANK="3")
    lines = done.stderr.splitlines()
    start = lines.index(f"rank 3 failed; the last lines of {log_path(tmp_path, 3)}:")
    assert lines[start + 1 :] == [*(f"  | line {i}" for i in range(40 - TAIL_LINES, 40)), "error: the disk is full"]
    assert "last lines" not in log_path(tmp_path, 3).read_text()


def test_a_failure_shows_an_earlier_error_of_another_process(tmp_path: Path) -> None:
    """The rank notices later that the process that writes checkpoints has ended."""
    child = 'import sys; sys.exit("torch.AcceleratorError: CUDA error: no device\\nFor debugging, pass a variable")'
    ending = f"subprocess.run([sys.executable, '-c', {child!r}])\n"
    ending += "for i in range(40): print('line', i, flush=True)\nraise Failure('the writer has ended')"
    lines = noisy(tmp_path, ending).stderr.splitlines()
    shown = lines[lines.index(f"rank 0 failed; the last lines of {log_path(tmp_path, 0)}:") + 1 : -1]
    assert shown[:3] == [
        "  | torch.AcceleratorError: CUDA error: no device",
        "  | For debugging, pass a variable",
        "  | line 0",
    ]
    assert shown[4:6] == ["  | ...", f"  | line {40 - TAIL_LINES + 5}"]
    assert shown[-1] == "  | line 39"


def test_an_unforeseen_error_has_its_traceback_in_the_log_too(tmp_path: Path) -> None:
    done = noisy(tmp_path, "1 / 0")
    assert done.returncode == 1 and "rank 0 failed" in done.stderr
    assert done.stderr.rstrip().endswith("ZeroDivisionError: division by zero")
    assert "ZeroDivisionError: division by zero" in log_path(tmp_path, 0).read_text()


def test_a_mistake_of_the_user_needs_no_log(tmp_path: Path) -> None:
    done = noisy(tmp_path, "raise UserError('no such key')")
    assert done.stderr.splitlines() == ["warning: own warning", "error: no such key"]


def test_if_stdout_is_the_log_nothing_is_there_twice(tmp_path: Path) -> None:
    """The launcher sends the output of the other ranks, and of a sweep's points, to the log."""
    log = log_path(tmp_path, 0)
    log.parent.mkdir()
    with log.open("ab") as f:
        words = [sys.executable, "-c", NOISY, str(tmp_path), "raise Failure('full')"]
        subprocess.run(words, stdout=f, stderr=f, check=True)
    text = log.read_text()
    assert [text.count(line) for line in ("own line", "noise of C", "error: full", "last lines")] == [1, 1, 1, 0]


def test_a_closed_pipe_ends_nothing(tmp_path: Path) -> None:
    script = f'"$0" -c "$1" {tmp_path} "for i in range(9999): say(str(i))" | head -1'
    done = subprocess.run(["bash", "-c", script, sys.executable, NOISY], capture_output=True, text=True, check=False)
    assert done.stdout == "before\n" and "Traceback" not in done.stderr
    assert log_path(tmp_path, 0).read_text().endswith("9998\n")


def test_a_closed_pipe_hides_no_error(tmp_path: Path) -> None:
    """Here the end of the log is the first that goes to stderr."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom nano3.training.run.rank_log import rank_log\n"
        "from nano3.utils.errors import Failure\n"
        "try:\n    with rank_log(Path(sys.argv[1]), 0):\n        raise Failure('x')\n"
        "except Failure:\n    print('the failure')\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=writer, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stdout) == (0, "the failure\n")


FULL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200)); say('x' * 200); say('last')\n"


@pytest.mark.parametrize(
    ("ending", "code", "last"),
    [("pass", 0, "after"), ("sys.exit(75)", 75, "last"), ("raise Failure('boom')", 0, "after"), ("1 / 0", 1, "last")],
    ids=["finished", "stopped", "failure", "unforeseen"],
)
def test_a_full_disk_under_the_log_does_not_change_the_end(tmp_path: Path, ending: str, code: int, last: str) -> None:
    """The console still has every line, and says that the log does not."""
    done = noisy(tmp_path, FULL + ending)
    assert done.returncode == code
    assert done.stdout.splitlines()[-1] == last and "last" in done.stdout.splitlines()
    assert done.stderr.count(f"warning: {log_path(tmp_path, 0)} lacks lines of this rank: File too large") == 1
    assert ("boom" in done.stderr) == ("boom" in ending) and ("ZeroDivisionError" in done.stderr) == (code == 1)


FULL_FOR_A_WHILE = """
from faults import fill
handler, disk = logging.StreamHandler(sys.stdout), Path(sys.argv[1])
for phase in ("early", "full", "later"):
    if phase == "full":
        sys.stdout.flush()
        fill(disk / "filler", disk / "job.log")
    if phase == "later":
        sys.stdout.flush()
        (disk / "filler").unlink()
    for i in range(3000):
        print(phase, i)
        print(phase, i, file=sys.stderr)
    handler.emit(logging.LogRecord("library", logging.INFO, "", 0, phase + " logger", None, None))
    subprocess.run(["echo", phase, "child"])
    say(phase + " own"); warn(phase + " own")
"""


@pytest.mark.parametrize("buffered", [False, True], ids=["python -u", "python"])
def test_a_disk_full_for_a_while_under_log_and_console_loses_only_lines(tmp_path: Path, buffered: bool) -> None:
    """The job's log is on the same disk. Both go on, and say that lines are missing; no text of the log leaves it."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, *([] if buffered else ["-u"]), "-c", NOISY, str(tmp_path), FULL_FOR_A_WHILE]
    with small_disk(tmp_path, "1m"):
        with (tmp_path / "job.log").open("ab") as job:
            done = subprocess.run(words, stdout=job, stderr=job, env=env, check=False)
        console, log = (tmp_path / "job.log").read_text(), log_path(tmp_path, 0).read_text()
    assert done.returncode == 0, console
    for text in (console, log):
        assert " s is missing here: No space left on device]\n" in text and "later own" in text
        assert text.count("full own") < 2 and "Traceback" not in text
        assert "early own\n" in text and "\nwarning: later own\n" in text
    assert console.endswith("after\n") and "early 1" not in console and "later 1" not in console
    for kind in ("0", "2999", "logger", "child"):
        assert f"early {kind}\n" in log and f"later {kind}\n" in log and f"full {kind}\n" not in log[-9999:]
    assert log.count("later 1500\n") == 2


FULL_TO_THE_END = """
from faults import fill
disk = Path(sys.argv[1])
fill(disk / "filler", disk / "job.log", disk / "logs" / "rank_0.log")
say("own")
"""


@pytest.mark.parametrize(("ending", "code"), [("pass", 0), ("sys.exit(76)", 76)])
def test_a_disk_that_stays_full_does_not_change_the_end(tmp_path: Path, ending: str, code: int) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", NOISY, str(tmp_path), FULL_TO_THE_END + ending]
    with small_disk(tmp_path, "1m"), (tmp_path / "job.log").open("ab") as job:
        done = subprocess.run(words, stdout=job, stderr=job, env=env, check=False)
    assert done.returncode == code


def test_the_streams_of_the_process_are_what_they_were_after_the_block(tmp_path: Path) -> None:
    """Another library may replace their methods meanwhile."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom nano3.training.run.rank_log import rank_log\n"
        "out, write, flush = sys.stdout, sys.stdout.write, sys.stdout.flush\n"
        "with rank_log(Path(sys.argv[1]), 0):\n"
        "    assert sys.stdout is out and out.write != write\n"
        "    inner, seen = sys.stderr.write, []\n"
        "    sys.stderr.write = lambda text: seen.append(text) or inner(text)\n"
        "assert (sys.stdout, out.write, out.flush) == (out, write, flush)\n"
        "print('after', file=sys.stderr)\nassert seen == ['after', '\\n']"
    )
    words = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "after\n")


def test_captured_output_stays_captured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Failure), rank_log(tmp_path, 0):
        say("seen")
        os.write(1, b"noise\n")
        raise Failure("x")
    assert "seen\n" in capsys.readouterr().out
    assert "noise\n" in log_path(tmp_path, 0).read_text() and "seen\n" in log_path(tmp_path, 0).read_text()


def noisy_train(config: PretrainConfig, data: Path, run_dir: Path) -> Outcome:
    with rank_log(run_dir, int(os.environ["RANK"])):
        os.system("echo noise of a library")
        return train(config, data, run_dir)


def train_with_prints(config: PretrainConfig, data: Path, run_dir: Path) -> Outcome:
    """Train with a library that prints in each step; the disk is full from the third iteration to the fifth."""
    step, library = hf_loop.Loop.step, logging.StreamHandler()

    def printing(self: hf_loop.Loop) -> hf_loop.Step:
        number = self.iteration + 1
        if number == 3:
            fill(run_dir / "filler", run_dir / "log_0.txt", log_path(run_dir, 0))
        if number == 6:
            (run_dir / "filler").unlink()
        print(f"library in iteration {number}", flush=True)
        library.emit(logging.LogRecord("library", logging.INFO, "", 0, f"logger in iteration {number}", None, None))
        return step(self)

    hf_loop.Loop.step = printing  # type: ignore[method-assign]
    with rank_log(run_dir, int(os.environ["RANK"])):
        return train(config, data, run_dir)


def test_training_goes_on_while_the_disk_is_full_for_a_while(data: Path, tmp_path: Path) -> None:
    """A save is due meanwhile. The console, on the same disk, speaks again afterwards."""
    config = tiny_config(**{"train.eval_interval": 0})
    with small_disk(tmp_path, "32m"):
        (child,) = start_ranks(config, data, tmp_path, 1, job=train_with_prints)
        assert child.result().status == "finished"
        console, log = (tmp_path / "log_0.txt").read_text(), log_path(tmp_path, 0).read_text()
    for number in (1, 2, 6, 12):
        assert f"library in iteration {number}\n" in log and f"logger in iteration {number}\n" in log
        assert re.search(rf"^iteration +{number}/12 ", console, re.MULTILINE)
    for text in (console, log):
        assert "s is missing here: No space left on device]" in text


@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_in_training(data: Path, tmp_path: Path, ranks: int) -> None:
    config = tiny_config(**{"train.train_iters": 5, "scheduler.lr_wsd_decay_iters": 2, "train.eval_interval": 0})
    for child in start_ranks(config, data, tmp_path, ranks, job=noisy_train):
        assert child.result().status == "finished"
    shown = [(tmp_path / f"log_{rank}.txt").read_text() for rank in range(ranks)]
    assert shown[0].splitlines()[0] == "fresh start" and "iteration 5/5" in shown[0]
    assert all("noise" not in text for text in shown) and all(not text for text in shown[1:])
    for rank in range(ranks):
        assert "noise of a library" in log_path(tmp_path, rank).read_text()
