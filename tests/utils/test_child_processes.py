"""Children that end with their parent, however that ends."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nano3.utils.child_processes import exit_with_parent, kill_children

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
# A rank with two children like those of a background save: a spawned one that serves a queue, and a forked manager.
RANK = """
import multiprocessing, os, sys, time
from nano3.utils.child_processes import end_forked_children_with_this_process, exit_with_parent

def serve(queue, folder):
    function, args = queue.get()
    function(*args)
    open(f"{folder}/tied", "w").close()
    for number in range(10_000):
        with open(f"{folder}/written", "a") as f:
            f.write(f"{number}\\n")
        time.sleep(0.01)

if __name__ == "__main__":
    folder, tied = sys.argv[1], sys.argv[2] == "tied"
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    writer = context.Process(target=serve, args=(queue, folder), daemon=True)
    writer.start()
    queue.put((exit_with_parent, (os.getpid(),)) if tied else (id, (0,)))
    if tied:
        end_forked_children_with_this_process()
    manager = multiprocessing.get_context("fork").Manager()
    while not os.path.exists(f"{folder}/tied"):
        time.sleep(0.01)
    print(writer.pid, manager._process.pid, flush=True)
    time.sleep(60)
"""


def alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended may wait for its new parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("tied", ["tied", "free"])
def test_the_children_of_a_killed_rank(tmp_path: Path, tied: str) -> None:
    """Killed alone, it leaves nobody behind who writes; without the request it does."""
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    rank = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path), tied], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert rank.stdout
        children = [int(pid) for pid in rank.stdout.readline().split()]
        assert len(children) == 2 and all(alive(pid) for pid in children)
        rank.kill()
        rank.wait()
        deadline = time.monotonic() + 5
        while any(alive(pid) for pid in children) and tied == "tied" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [alive(pid) for pid in children] == [tied == "free"] * 2
        before = (tmp_path / "written").read_text()
        deadline = time.monotonic() + (0.1 if tied == "tied" else 30)
        while (same := (tmp_path / "written").read_text() == before) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert same is (tied == "tied")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(rank.pid, signal.SIGKILL)


def test_the_child_of_a_thread_is_not_tied_to_it(tmp_path: Path) -> None:
    """Linux sends the signal when the thread that forked ends; only the main thread lasts as long as the process."""
    script = (
        "import os, threading, time\n"
        "from nano3.utils.child_processes import end_forked_children_with_this_process\n"
        "end_forked_children_with_this_process()\n"
        "children = []\n"
        "thread = threading.Thread(target=lambda: children.append(os.fork() or time.sleep(60)))\n"
        "thread.start()\n"
        "thread.join()\n"
        "time.sleep(0.2)\n"
        "print(os.waitpid(children[0], os.WNOHANG) == (0, 0))\n"
        "os.kill(children[0], 9)\n"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "True\n"


def test_a_child_whose_parent_has_ended_already_ends_at_once() -> None:
    child = multiprocessing.get_context("fork").Process(target=exit_with_parent, args=(1 << 22,))
    child.start()
    child.join(10)
    assert child.exitcode == -signal.SIGKILL


def test_children_are_killed_by_the_name_of_their_program(tmp_path: Path) -> None:
    """Not those of other processes, nor other programs."""
    program = tmp_path / "a-long) program-name"
    program.symlink_to("/bin/sleep")
    other = "import subprocess, sys; subprocess.run([sys.argv[1], '60'])"
    with (
        subprocess.Popen([program, "60"]) as own,
        subprocess.Popen(["sleep", "60"]) as sleep,
        subprocess.Popen([sys.executable, "-c", other, program]) as parent,
    ):
        time.sleep(0.5)
        kill_children(program.name)
        assert own.wait(10) == -signal.SIGKILL
        assert sleep.poll() is None and parent.poll() is None
        sleep.kill()
        parent.kill()
