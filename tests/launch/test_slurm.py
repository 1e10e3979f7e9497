"""launch.slurm: parsing the output of Slurm's clients, and their failures."""

import os
import re
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch import slurm
from launch.slurm import (
    UNKNOWN,
    JobState,
    _array_indices,
    parse_sacct,
    parse_scontrol,
    parse_squeue,
    parse_time_limit,
)  # fmt: skip
from nano3.utils.errors import Failure

INDICES = st.lists(st.integers(0, 4000), min_size=1, max_size=30, unique=True).map(sorted)


def expression(indices: list[int]) -> str:
    """Write a set of tasks as Slurm's client does: a step if they are evenly spaced, otherwise ranges (src/api)."""
    steps = {b - a for a, b in pairwise(indices)}
    if len(indices) > 5 and len(steps) == 1 and steps != {1}:
        return f"{indices[0]}-{indices[-1]}:{steps.pop()}"
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


@given(INDICES | st.builds(lambda first, step, n: list(range(first, first + step * n, step)), st.integers(0, 99),
                           st.integers(1, 7), st.integers(6, 40)), st.none() | st.integers(1, 99))  # fmt: skip
def test_every_waiting_task_of_an_array_is_found(indices: list[int], at_a_time: int | None) -> None:
    text = expression(indices) + (f"%{at_a_time}" if at_a_time else "")
    assert list(_array_indices(text)) == indices
    line = f"JobId=9 ArrayJobId=9 ArrayTaskId={text} JobName=x JobState=PENDING Reason=Priority "
    assert dict(parse_scontrol(line)) == {f"9_{i}": JobState("PENDING", 0, "Priority") for i in indices}
    assert dict(parse_sacct(f"9_[{text}]|PENDING|0:0|None assigned")) == {
        f"9_{i}": JobState("PENDING") for i in indices
    }


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param("0-12:3", [0, 3, 6, 9, 12], id="a step"),
        pytest.param("1,4-5,8-14:2%3", [1, 4, 5, 8, 10, 12, 14], id="all at once"),
        pytest.param("1-3,7-9...", [1, 2, 3], id="cut off in a range"),
        pytest.param("1-3,12...", [1, 2, 3], id="cut off in a number"),
        pytest.param("1-3,...", [1, 2, 3], id="cut off between"),
        pytest.param("N/A", [], id="none"),
    ],
)
def test_lists_of_tasks(text: str, found: list[int]) -> None:
    assert list(_array_indices(text)) == found


STATES = sorted(slurm._END_CODES)


@given(st.sampled_from(STATES), st.integers(0, 255), st.integers(0, 64))
def test_the_code_of_a_job_is_zero_only_if_it_completed(state: str, code: int, signum: int) -> None:
    """A command that follows a job exits with this code, so no failure may look like a success."""
    exit_code = f"{code}:{signum}"
    ((_, parsed),) = parse_scontrol(f"JobId=7 JobState={state} Reason=None ExitCode={exit_code} NodeList=n1 Restarts=0")
    ((_, later),) = parse_sacct(f"7|{state}|{exit_code}|n1")
    assert parsed.ended and (parsed.code == 0) == (state == "COMPLETED")
    assert parsed == later, "accounting and controller agree"
    if code and state != "COMPLETED":
        assert parsed.code == code


@given(st.text(st.characters(exclude_characters="\n="), max_size=60))
def test_other_text_is_no_job(text: str) -> None:
    assert list(parse_scontrol(text)) == []


def test_text_of_the_user_is_no_state() -> None:
    """A comment or a path may contain anything; the fields of the job come first."""
    line = (
        "JobId=7 JobName=a UserId=me(0) JobState=RUNNING Reason=None Restarts=0 ExitCode=0:0 NodeList=n1 "
        "Command=/x/ JobState=COMPLETED/y WorkDir=/w NodeList=n9 Comment=ExitCode=3:0 JobState=FAILED"
    )
    assert dict(parse_scontrol(line)) == {"7": JobState("RUNNING", 0, "", "n1")}


def client(folder: Path, name: str, program: str) -> None:
    """Write a fake client of Slurm."""
    file = folder / name
    file.write_text(f"#!{sys.executable}\nimport os, sys\n{program}\n")
    file.chmod(0o755)


@pytest.fixture
def bin_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_a_job_in_a_folder_of_any_encoding_has_a_state(bin_dir: Path) -> None:
    client(bin_dir, "scontrol", "os.write(1, b'JobId=7 JobState=RUNNING NodeList=n1 WorkDir=/caf\\xe9 \\n')")
    assert slurm.states(["7"]) == {"7": JobState("RUNNING", 0, "", "n1")}


def test_lists_of_tasks_are_requested_in_full(bin_dir: Path) -> None:
    """Slurm's clients cut lists at 64 characters, and tasks beyond that would seem forgotten."""
    client(
        bin_dir, "scontrol",
        "tasks = ','.join(map(str, range(0, 400, 3))) + ',399'\n"
        "most = int(os.environ.get('SLURM_BITSTR_LEN', '64'))\n"
        "tasks = tasks[:most] + '...' if most else tasks\n"
        "print(f'JobId=7 ArrayJobId=7 ArrayTaskId={tasks} JobState=PENDING')",
    )  # fmt: skip
    assert slurm.states(["7_399"])["7_399"].state == "PENDING"


@pytest.mark.parametrize(
    ("controller", "accounting", "state"),
    [
        pytest.param("print('JobId=7 JobState=RUNNING')", "sys.exit('not asked')", "RUNNING", id="known"),
        pytest.param("sys.exit('slurm_load_jobs error: Invalid job id specified')", "print('7|FAILED|3:0|n1')",
                     "FAILED", id="forgotten, in the accounting"),
        pytest.param("sys.exit('Invalid job id specified')", "sys.exit('Slurm accounting storage is disabled')",
                     "UNKNOWN", id="forgotten, no accounting"),
    ],
)  # fmt: skip
def test_source_of_a_job_state(bin_dir: Path, controller: str, accounting: str, state: str) -> None:
    client(bin_dir, "scontrol", controller)
    client(bin_dir, "sacct", accounting)
    assert slurm.states(["7"])["7"].state == state
    assert slurm.states([]) == {}, "no ids, no query"


def test_canceled_pending_tasks_have_the_state_of_the_array(bin_dir: Path) -> None:
    client(bin_dir, "scontrol", "print('JobId=7 ArrayJobId=7 ArrayTaskId=4294967294 JobState=CANCELLED')")
    assert {job: state.state for job, state in slurm.states(["7_0", "7_5"]).items()} == {
        "7_0": "CANCELLED", "7_5": "CANCELLED",
    }  # fmt: skip


def test_a_silent_controller_is_no_forgotten_job(bin_dir: Path) -> None:
    client(bin_dir, "scontrol", "sys.exit('slurm_load_jobs error: Unable to contact slurm controller')")
    with pytest.raises(Failure, match=r"Slurm does not answer: .*Unable to contact"):
        slurm.states(["7"])


@pytest.mark.parametrize("call", [slurm.partitions, lambda: slurm.cancel(["7"]), lambda: slurm.states(["7"])])
def test_a_missing_client_is_named(bin_dir: Path, call: Callable[[], object]) -> None:
    with pytest.raises(Failure, match=r"This machine has no (sinfo|scancel|scontrol): .* not installed here"):
        call()


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        pytest.param("pass", None, id="done"),
        pytest.param("sys.exit('scancel: error: Kill job error on job id 7: Invalid job id specified')", None,
                     id="it has ended"),
        pytest.param("sys.exit('Access/permission denied')", "scancel: Access/permission denied", id="another user's"),
    ],
)  # fmt: skip
def test_cancelling(bin_dir: Path, program: str, expected: str | None) -> None:
    client(bin_dir, "scancel", f"open({str(bin_dir / 'asked')!r}, 'w').write(' '.join(sys.argv[1:]))\n{program}")
    if expected:
        with pytest.raises(Failure, match=re.escape(expected)):
            slurm.cancel(["7", "8_1"])
    else:
        slurm.cancel(["7", "8_1"])
    assert (bin_dir / "asked").read_text() == "7 8_1"


@pytest.mark.parametrize(
    ("program", "most"),
    [
        pytest.param("print('MaxArraySize            = 1001')", 1001, id="known"),
        pytest.param("print('MaxArraySizeOfOthers = 7')", sys.maxsize, id="not printed"),
        pytest.param("sys.exit(1)", sys.maxsize, id="no answer"),
    ],
)
def test_max_array_size(bin_dir: Path, program: str, most: int) -> None:
    client(bin_dir, "scontrol", program)
    assert slurm.max_array_size() == most


def test_a_submission_keeps_only_the_variables_of_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    outer = {"SLURM_CONF": "/c", "SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SBATCH_QOS": "high", "SBATCH_WAIT": "1"}
    for name, value in outer.items():
        monkeypatch.setenv(name, value)
    with slurm.submit_environment(keep=["SBATCH_QOS", "SBATCH_NOT_SET"]):
        seen = {name: value for name, value in os.environ.items() if name.startswith(("SLURM_", "SBATCH_"))}
    assert seen == {"SLURM_CONF": "/c", "SBATCH_QOS": "high"}
    assert {name: os.environ[name] for name in outer} == outer, "and leaves everything as it was"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 1800),
        ("0", 0),
        ("90:30", 5430),
        ("04:00:00", 14400),
        ("1-0", 86400),
        ("1-12", 129600),
        ("2-03:04", 183840),
        ("7-00:00:00", 604800),
        ("1-02:03:04", 93784),
        ("UNLIMITED", None),
        ("infinite", None),
    ],
)
def test_time_limit(text: str, seconds: int | None) -> None:
    assert parse_time_limit(text) == seconds


@pytest.mark.parametrize("text", ["", "4h", "1:2:3:4", "-5", "1-", "1-2-3", "01:00:00; rm -rf x", "1:00\n", " 5"])
def test_not_a_time_limit(text: str) -> None:
    with pytest.raises(ValueError):
        parse_time_limit(text)


@given(st.integers(0, 60), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_spellings_of_a_time_limit(days: int, hours: int, minutes: int, seconds: int) -> None:
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert parse_time_limit(f"{days}-{hours:02}:{minutes:02}:{seconds:02}") == total
    assert parse_time_limit(f"{days * 24 + hours}:{minutes}:{seconds:02}") == total
    assert parse_time_limit(f"{total // 60}:{seconds}") == total
    assert parse_time_limit(f"{days}-{hours}") == (days * 24 + hours) * 3600
    assert parse_time_limit(str(total // 60)) == total // 60 * 60


def test_an_unknown_task_beside_known_ones(bin_dir: Path) -> None:
    client(bin_dir, "scontrol", "print('JobId=7 ArrayJobId=7 ArrayTaskId=0-1 JobState=PENDING')")
    assert slurm.states(["7_1", "7_2"]) == {"7_1": JobState("PENDING"), "7_2": UNKNOWN}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (
            "JobId=7 JobName=a JobState=RUNNING Reason=None Dependency=(null) Restarts=2 NodeList=node[1-2] ",
            {"7": JobState("RUNNING", 0, "", "node[1-2]", 2)},
        ),
        (
            "JobId=7 JobName=a JobState=PENDING Reason=Resources Restarts=0 ExitCode=0:0 ReqNodeList=n9 NodeList= ",
            {"7": JobState("PENDING", 0, "Resources")},
        ),
        ("JobId=7 JobState=FAILED Reason=NonZero ExitCode=3:0", {"7": JobState("FAILED", 3, "NonZero")}),
        ("JobId=7 JobState=FAILED Reason=X ExitCode=0:9", {"7": JobState("FAILED", 137, "X")}),
        ("JobId=7 JobState=CANCELLED Reason=None ExitCode=0:15", {"7": JobState("CANCELLED", 143)}),
        ("JobId=7 JobState=TIMEOUT Reason=TimeLimit ExitCode=0:15", {"7": JobState("TIMEOUT", 124, "TimeLimit")}),
        ("JobId=7 JobState=OUT_OF_MEMORY ExitCode=0:125", {"7": JobState("OUT_OF_MEMORY", 137)}),
        ("JobId=7 JobState=NODE_FAIL ExitCode=0:0", {"7": JobState("NODE_FAIL", 1)}),
        ("JobId=9 ArrayJobId=7 ArrayTaskId=3 JobState=COMPLETED ExitCode=0:0", {"7_3": JobState("COMPLETED")}),
        (
            "JobId=7 ArrayJobId=7 ArrayTaskId=1-2,5%2 JobState=PENDING Reason=Priority",
            {f"7_{i}": JobState("PENDING", 0, "Priority") for i in (1, 2, 5)},
        ),
        ("JobId=7 ArrayJobId=7 ArrayTaskId=4294967294 JobState=CANCELLED", {"7": JobState("CANCELLED", 143)}),
        ("", {}),
        ("No jobs in the system", {}),
    ],
)  # fmt: skip
def test_scontrol(line: str, found: dict[str, JobState]) -> None:
    assert dict(parse_scontrol(line)) == found


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("7|COMPLETED|0:0|node1", {"7": JobState("COMPLETED", 0, "", "node1")}),
        ("7|CANCELLED by 1000|0:0|node1", {"7": JobState("CANCELLED", 143, "", "node1")}),
        ("7_3|FAILED|42:0|node2", {"7_3": JobState("FAILED", 42, "", "node2")}),
        ("7_[0-1%4]|PENDING|0:0|None assigned", {"7_0": JobState("PENDING"), "7_1": JobState("PENDING")}),
        ("", {}),
        ("Slurm accounting storage is disabled", {}),
    ],
)
def test_sacct(line: str, found: dict[str, JobState]) -> None:
    assert dict(parse_sacct(line)) == found


# Output of squeue 22.05 with the columns that `states` asks for, a line in the form of newer clients, and a stray line.
SQUEUE = (Path(__file__).parent / "recorded" / "squeue.txt").read_text()


def test_squeue() -> None:
    found = dict(pair for line in SQUEUE.splitlines() for pair in parse_squeue(line))
    assert found == {
        "1": JobState("COMPLETED", 0, "", "node[1-2]"),
        "3_1": JobState("FAILED", 1, "NonZeroExitCode", "node1"),
        "3_2": JobState("FAILED", 137, "RaisedSignal:9(Killed)", "node1", 2),
        "3_6": JobState("PENDING", 0, "JobArrayTaskLimit"),
        "4": JobState("PENDING", 0, "Resources"),
        "2": JobState("RUNNING", 0, "", "node[1-2]", 1),
        "16_0": JobState("CANCELLED", 143, "JobHeldUser"),
        "16_1": JobState("CANCELLED", 143, "JobHeldUser"),
    }
    times = {job: (state.start[-8:], state.eligible[-8:], state.end[-8:]) for job, state in found.items()}
    assert times["3_6"] == ("", "20:16:08", "") and times["4"] == ("20:21:12", "20:16:08", "")
    assert times["2"] == ("20:16:08", "20:16:08", ""), "the end of a running job is a forecast"
    assert times["3_1"] == ("20:16:08", "20:16:08", "20:16:11")


COUNTED = "open({log!r}, 'a').write('x')\n{program}"


def test_several_jobs_are_one_query(bin_dir: Path) -> None:
    log = str(bin_dir / "asked")
    client(bin_dir, "squeue", COUNTED.format(log=log, program=f"print({SQUEUE!r})"))
    client(bin_dir, "sacct", COUNTED.format(log=log, program="print('7|FAILED|3:0|n1\\n8|COMPLETED|0:0|n1')"))
    jobs = ["1", "2", "3_1", "3_9", "7", "8", "9"]
    states = [state.state for state in slurm.states(jobs).values()]
    assert states == ["COMPLETED", "RUNNING", "FAILED", "UNKNOWN", "FAILED", "COMPLETED", "UNKNOWN"]
    assert Path(log).read_text() == "xx", "one of the controller, one of the accounting"
    client(bin_dir, "squeue", "sys.exit('slurm_load_jobs error: Unable to contact slurm controller')")
    with pytest.raises(Failure, match="Slurm does not answer"):
        slurm.states(jobs)


def test_tasks_that_the_controller_forgot_beside_known_ones(bin_dir: Path) -> None:
    client(bin_dir, "scontrol", "print('JobId=7 ArrayJobId=7 ArrayTaskId=1 JobState=RUNNING')")
    client(bin_dir, "sacct", "print('7_0|COMPLETED|0:0|n1\\n7_1|PENDING|0:0|n1')")
    assert {job: s.state for job, s in slurm.states(["7_0", "7_1"]).items()} == {"7_0": "COMPLETED", "7_1": "RUNNING"}


def test_filters_and_formats_of_the_user_do_not_reach_the_clients(
    bin_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SQUEUE_USERS", "SQUEUE_FORMAT", "SACCT_FORMAT", "SINFO_FORMAT"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    own = "own = [k for k in os.environ if k.startswith(('SQUEUE_', 'SACCT_', 'SINFO_'))]"
    own += "; own.append(os.environ['SLURM_TIME_FORMAT'])"
    client(bin_dir, "scontrol", f"{own}\nprint('JobId=7 JobState=RUNNING Reason=' + ','.join(own))")
    assert slurm.states(["7"])["7"].reason == "standard"
