"""launch.state_text: why a job waits, and whether it ever can start."""

from datetime import datetime, timedelta

import pytest

from launch.slurm import JobState
from launch.state_text import describe_state, explain_reason, never_starts, starts_in_s, waited_s

NEVER = [
    "DependencyNeverSatisfied", "PartitionTimeLimit", "PartitionNodeLimit", "PartitionConfig", "BadConstraints",
    "InvalidAccount", "AccountNotAllowed", "InvalidQOS", "QOSNotAllowed", "ReservationDeleted", "AssociationTimeLimit",
    "QOSTimeLimit", "AssocMaxWallDurationPerJobLimit", "AssocMaxCpuPerJobLimit", "AssocMaxGRESPerNode",
    "AssocMaxNodePerJobLimit", "QOSMaxWallDurationPerJobLimit", "QOSMaxGRESPerJob", "QOSMaxMemoryPerNode",
    "QOSMinGRES", "QOSMinCpuNotSatisfied",
]  # fmt: skip
LATER = [
    "Resources", "Priority", "Dependency", "PartitionDown", "PartitionInactive", "ReqNodeNotAvail,", "Reservation",
    "BeginTime", "JobHeldUser", "JobHeldAdmin", "JobArrayTaskLimit", "Licenses", "AssocGrpGRES", "AssocGrpCpuLimit",
    "AssocGrpCPUMinutesLimit", "AssocMaxJobsLimit", "QOSGrpNodeLimit", "QOSMaxJobsPerUserLimit", "QOSMaxGRESPerUser",
    "MaxGRESPerAccount", "QOSGrpGRESMinutes", "Nodes_required_for_job_are_DOWN,_DRAINED_or_reserved",
    "JobHoldMaxRequeue",
]  # fmt: skip


@pytest.mark.parametrize("reason", NEVER)
def test_a_job_that_can_never_start_says_so(reason: str) -> None:
    state = JobState("PENDING", reason=reason)
    assert never_starts(state) and f"PENDING ({reason}: it can never start: " in describe_state(state)
    assert not never_starts(JobState("CANCELLED", reason=reason))


@pytest.mark.parametrize("reason", LATER)
def test_a_job_that_only_waits_says_for_what(reason: str) -> None:
    assert not never_starts(JobState("PENDING", reason=reason))
    assert explain_reason(reason).startswith(f"{reason}: ")


@pytest.mark.parametrize("reason", ["Cleaning", "None", "AccountingPolicy", "SomethingNew"])
def test_an_unknown_reason_is_shown_as_it_is(reason: str) -> None:
    assert explain_reason(reason) == reason and not never_starts(JobState("PENDING", reason=reason))


def test_times_of_a_waiting_job() -> None:
    submitted = f"{datetime.now() - timedelta(minutes=5):%Y-%m-%dT%H:%M:%S}"
    start = f"{datetime.now() + timedelta(minutes=5):%Y-%m-%dT%H:%M:%S}"
    waits = JobState("PENDING", start=start, eligible=submitted)
    assert 300 <= (waited_s(waits) or 0) < 310 and 290 < (starts_in_s(waits) or 0) <= 300
    runs = JobState("RUNNING", start=start, eligible=submitted)
    assert waited_s(runs) is None and starts_in_s(runs) is None
    assert starts_in_s(JobState("PENDING", start=submitted)) == 0, "an estimate that has passed"
