"""The real W&B client and a server on this machine that answers, hangs, goes away, or comes back.

Each run is a process of its own, since the client keeps its state in the process. docs/reliability.md has the counts.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from wandb_server import Run, WandbServer, wandb_server

ROOT = Path(__file__).parents[2]
LINES = 8
AT_MOST = 25  # seconds of the end with that of Python, on a busy machine
# Arguments: the folder, and the seconds that the training takes. The run waits for a line on stdin twice.
SCRIPT = """
import sys, time
from pathlib import Path
from nano3.artifacts.store import Artifact
from nano3.artifacts.wandb_mirror import WandbSettings
from nano3.artifacts import wandb_run
from nano3.artifacts.wandb_run import WandbRun

wandb_run.INIT_S = 3.0  # W&B takes up to twice as long to give up
folder = Path(sys.argv[1])
run = WandbRun(WandbSettings("online", "mine", None), folder=folder, key="k", id="abc", name="tiny", config={"lr": 1})
began = time.monotonic()  # the package is imported
run.define_axis("iteration")
for iteration in range(1, 9):
    run.log({"iteration": iteration, "loss": 1 / iteration})
    time.sleep(float(sys.argv[2]) / 8)
    if iteration == 4:
        print("middle", flush=True)
        sys.stdin.readline()
run.log_artifact(Artifact("ModelArtifact-pretrain", 1, str(folder), "f" * 64), "tiny")
print(f"trained {time.monotonic() - began:.1f}", flush=True)
sys.stdin.readline()
print(run.finish(0), "ended", flush=True)
"""


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with wandb_server() as running:
        yield running


class Client:
    """One run, which waits in the middle and before its end for a line on stdin."""

    def __init__(self, server: WandbServer, folder: Path, training_s: float = 0.0, script: str = SCRIPT) -> None:
        folder.mkdir(exist_ok=True)
        env = {**os.environ, **server.env, "PYTHONPATH": str(ROOT), "HOME": str(folder)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, str(folder), str(training_s)], cwd=folder, env=env, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.seen = ""

    def go_on_after(self, word: str) -> None:
        """Wait for a line that begins with a word, and let the run continue."""
        assert self.process.stdout and self.process.stdin
        line = self.process.stdout.readline()
        assert line.startswith(word), line + self.process.communicate()[1]
        self.seen += line
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> tuple[bool, str, float, float]:
        """Return whether all was taken, the messages, and the seconds of training and of the end, Python's included."""
        began = time.monotonic()
        out, messages = self.process.communicate(timeout=120)
        seconds = time.monotonic() - began
        assert self.process.returncode == 0, messages
        found = re.search(r"trained ([\d.]+)\n(?s:.*)(True|False) ended", self.seen + out)
        assert found, out
        return found[2] == "True", messages, float(found[1]), seconds


def received(server: WandbServer) -> list[int]:
    return [line["iteration"] for run in server.runs.values() for line in run.history if "loss" in line]


def wait_for_first_line(server: WandbServer) -> Run:
    deadline = time.monotonic() + 60
    while not received(server) and time.monotonic() < deadline:
        time.sleep(0.1)
    (run,) = server.runs.values()
    return run


@pytest.mark.slow
def test_a_server_that_answers_takes_everything(server: WandbServer, tmp_path: Path) -> None:
    client = Client(server, tmp_path)
    client.go_on_after("middle")
    client.go_on_after("trained")
    complete, messages, _, _ = client.end()
    (run,) = server.runs.values()
    assert complete and "warning" not in messages
    assert received(server) == [*range(1, LINES + 1)] and run.exit_code == 0 and run.display_name == "tiny"
    assert run.logged == ["ModelArtifact-pretrain"] and all(a.committed for a in server.artifacts.values())
    assert server.unknown == []


@pytest.mark.slow
def test_a_server_that_does_not_answer_never_holds_the_training(server: WandbServer, tmp_path: Path) -> None:
    server.hang = True
    client = Client(server, tmp_path)
    client.go_on_after("middle")
    client.go_on_after("trained")
    complete, messages, trained, ended = client.end()
    assert complete and trained < 4 and ended < AT_MOST  # the client alone waits 5 s for the server
    assert "cannot be reached" in messages and "This start is recorded offline" in messages
    (folder,) = re.findall(r"Send it later: wandb sync (\S+)", messages)
    assert "offline-run" in folder and any(Path(folder).glob("*.wandb"))


@pytest.mark.slow
@pytest.mark.parametrize("status", [403, 503, 0], ids=["403", "503", "no answer"])
def test_a_server_that_takes_no_run_leaves_an_offline_one(server: WandbServer, tmp_path: Path, status: int) -> None:
    """There is a page at its address, as with a proxy or with a wrong key. The offline run is whole."""
    server.refuse = status
    client = Client(server, tmp_path, training_s=1.0)
    client.go_on_after("middle")
    client.go_on_after("trained")
    complete, messages, trained, ended = client.end()
    assert complete, messages
    assert trained < 10 and ended < AT_MOST
    assert "This start is recorded offline" in messages
    ((run_id, folder),) = re.findall(r"Send it later: wandb sync --id (\w+) (\S+)", messages)
    server.refuse = None
    command = [sys.executable, "-m", "wandb", "sync", "--id", run_id, folder]
    done = subprocess.run(command, env={**os.environ, **server.env}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    sent = f"{messages}{done.stdout}{done.stderr}{server.runs}"
    assert received(server) == [*range(1, LINES + 1)] and list(server.runs) == ["abc"], sent


ORDER = """
import sys
from pathlib import Path
from nano3.artifacts import wandb_run
from nano3.artifacts.wandb_mirror import WandbSettings

lines, warn, init = [], wandb_run.warn, wandb_run.WandbRun._init

def log_while_it_opens(text):
    warn(text)
    run.log({"iteration": 2})

def recorded(self, mode):
    opened = init(self, mode)
    log = opened.log
    opened.log = lambda values: (lines.append(values["iteration"]), log(values))
    return opened

wandb_run.warn, wandb_run.WandbRun._init = log_while_it_opens, recorded
run = wandb_run.WandbRun(WandbSettings("online", "mine", None), folder=Path(sys.argv[1]), key="k", id="abc")
run.log({"iteration": 1})
print(run.finish(0), lines)
"""


@pytest.mark.slow
def test_lines_keep_their_order_while_an_offline_run_is_opened(tmp_path: Path) -> None:
    env = {**os.environ, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40, "PYTHONPATH": str(ROOT)}
    env |= {"HOME": str(tmp_path)}
    command = [sys.executable, "-c", ORDER, str(tmp_path)]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "This start is recorded offline" in done.stderr
    assert done.stdout.splitlines()[-1] == "True [1, 2]"


@pytest.mark.slow
def test_the_status_of_the_ended_service_is_not_that_of_the_run(server: WandbServer, tmp_path: Path) -> None:
    """W&B's teardown exits with the status of its service, if that has not been missed yet: here, always."""
    server.refuse = 403
    exits = "import wandb\nwandb.teardown = lambda: sys.exit(-9)\nprint(run.finish(0)"
    client = Client(server, tmp_path, script=SCRIPT.replace("print(run.finish(0)", exits))
    client.go_on_after("middle")
    client.go_on_after("trained")
    assert client.end()[0]


@pytest.mark.slow
def test_a_server_that_goes_away_is_named_with_the_command_that_sends_the_rest(
    server: WandbServer, tmp_path: Path
) -> None:
    """Once the server is back, the command works."""
    client = Client(server, tmp_path, training_s=1.0)
    wait_for_first_line(server)
    server.stop()
    client.go_on_after("middle")
    client.go_on_after("trained")
    complete, messages, trained, ended = client.end()
    assert not complete and trained < 60 and ended < AT_MOST
    (options, folder) = re.findall(r"wandb sync (--include-online )(\S+)", messages)[0]
    server.start()
    command = [sys.executable, "-m", "wandb", "sync", options.strip(), folder]
    done = subprocess.run(command, env={**os.environ, **server.env}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {*received(server)} == {*range(1, LINES + 1)}


@pytest.mark.slow
def test_a_server_that_hangs_at_the_end_holds_it_for_a_bounded_time(server: WandbServer, tmp_path: Path) -> None:
    client = Client(server, tmp_path, training_s=1.0)
    wait_for_first_line(server)
    client.go_on_after("middle")
    server.hang = True
    client.go_on_after("trained")
    complete, messages, _, ended = client.end()
    assert not complete and ended < AT_MOST
    assert messages.count("wandb sync --include-online") == 1 and "Traceback" not in messages
    assert "did not take everything within" in messages and messages.count("warning: ") == 1


@pytest.mark.slow
def test_a_server_that_comes_back_takes_everything(server: WandbServer, tmp_path: Path) -> None:
    client = Client(server, tmp_path, training_s=1.0)
    run = wait_for_first_line(server)
    server.stop()
    client.go_on_after("middle")
    time.sleep(2)
    server.start()
    deadline = time.monotonic() + 60
    while received(server) != [*range(1, LINES + 1)] and time.monotonic() < deadline:
        time.sleep(0.2)
    client.go_on_after("trained")
    complete, messages, _, _ = client.end()
    assert complete and "warning" not in messages
    assert received(server) == [*range(1, LINES + 1)] and run.exit_code == 0
