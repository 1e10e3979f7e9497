"""The state of a job in plain words: why it waits, how long, when it may start, whether it ever can."""

import datetime
import re

from launch.progress import whole_duration
from launch.slurm import JobState

_NEVER = "it can never start: "
# Why a job waits: the beginning of Slurm's reason (a regular expression), and its meaning. The first that fits counts.
_REASONS = {
    "Resources": "the nodes it needs are busy",
    "Priority": "jobs of higher priority come first",
    "DependencyNeverSatisfied": _NEVER + "a job that it depends on failed",
    "Dependency": "another job must end first",
    "PartitionTimeLimit": _NEVER + "cluster.time exceeds the limit of the partition",
    "PartitionNodeLimit|PartitionConfig": _NEVER + "the partition does not allow this number of nodes",
    "BadConstraints": _NEVER + "no node has what it asks for",
    "(Invalid)?Account(NotAllowed)?$": _NEVER + "the account is not valid here",
    "InvalidQOS|QOSNotAllowed": _NEVER + "the QOS is not valid here",
    "ReservationDeleted": _NEVER + "its reservation was deleted",
    "AssociationTimeLimit|AssocMaxWallDurationPerJob": _NEVER + "cluster.time exceeds the limit of the account",
    "QOSTimeLimit|QOSMaxWallDurationPerJob": _NEVER + "cluster.time exceeds the limit of the QOS",
    r"Assoc\w+Per(Job|Node)": _NEVER + "it asks for more than the account allows for one job",
    r"QOS\w+Per(Job|Node)": _NEVER + "it asks for more than the QOS allows for one job",
    "QOSMin": _NEVER + "it asks for less than the QOS demands",
    r"AssocGrp\w+Minutes": "the budget of the account is used up or reserved by other jobs",
    r"QOSGrp\w+Minutes": "the budget of the QOS is used up or reserved by other jobs",
    "Assoc": "the limit of your account is reached",
    "QOS": "the limit of the QOS is reached",
    r"Max\w+PerAccount": "the limit of your account is reached",
    "MaxSubmit": "the limit of submitted jobs is reached",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is not active",
    "ReqNodeNotAvail|Nodes_required_for_job_are_DOWN": "nodes that it needs are drained, down or reserved",
    "Reservation": "its reservation has not begun",
    "BeginTime": "its begin time has not come",
    "JobHeldUser": "it is held: scontrol release JOB",
    "JobHeldAdmin": "an administrator holds it",
    "JobArrayTaskLimit": "cluster.array_parallelism is reached",
    "Licenses": "a license is in use",
    "launch_failed_requeued_held": "it failed to launch and is held: scontrol release JOB",
    "JobHoldMaxRequeue": "it was requeued too often and is held: scontrol release JOB",
}


def _meaning(reason: str) -> str:
    return next((text for begin, text in _REASONS.items() if re.match(begin, reason)), "")


def explain_reason(reason: str) -> str:
    """Return Slurm's reason for a pending job, with its meaning if known."""
    meaning = _meaning(reason)
    return f"{reason}: {meaning}" if meaning else reason


def never_starts(state: JobState) -> bool:
    """Return whether a pending job cannot start as it was submitted."""
    return state.state == "PENDING" and _meaning(state.reason).startswith(_NEVER)


def describe_state(state: JobState) -> str:
    """Return the state with its nodes, reason and restarts in a few words."""
    words = [state.state]
    if state.nodes and not state.ended:
        words.append(f"on {state.nodes}")
    if state.reason and state.state == "PENDING":
        words.append(f"({explain_reason(state.reason)})")
    if state.restarts:
        words.append(f"restart {state.restarts}")
    return " ".join(words)


def waited_s(state: JobState) -> float | None:
    """Return for how many seconds a job has been pending, None if it is not pending."""
    if state.state != "PENDING" or not state.eligible:
        return None
    waited = datetime.datetime.now() - datetime.datetime.fromisoformat(state.eligible)
    return max(waited.total_seconds(), 0)


def run_s(state: JobState) -> float | None:
    """Return for how many seconds an ended job ran, None if unknown."""
    if not (state.ended and state.start and state.end):
        return None
    ran = datetime.datetime.fromisoformat(state.end) - datetime.datetime.fromisoformat(state.start)
    return max(ran.total_seconds(), 0)


def starts_in_s(state: JobState) -> float | None:
    """Return in how many seconds Slurm expects a pending job to start (squeue --start), None if it does not know."""
    if state.state != "PENDING" or not state.start:
        return None
    return max((datetime.datetime.fromisoformat(state.start) - datetime.datetime.now()).total_seconds(), 0)


def waiting_text(state: JobState) -> str:
    """Return how long a pending job has waited and when it may start, "" if unknown or not pending."""
    words = []
    if (waited := waited_s(state)) is not None:
        words.append(f"waiting for {whole_duration(waited)}")
    if starts_in_s(state) is not None:
        words.append(f"Slurm expects it to start at {state.start.replace('T', ' ')}")
    return ", ".join(words)
