"""What a person sees of a rank, and what is in its log."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from training_processes import start_ranks, tiny_config

from nano3.config import PretrainConfig
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
