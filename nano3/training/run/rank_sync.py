"""Decisions that all ranks must share: where the run starts, decided on rank 0, and when it stops."""

import json
import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from nano3.utils.errors import Failure, UserError

_KEY, _RECEIVED = "nano3/resume_point", "nano3/received"
# Kept until the process ends: rank 0's store serves the others, and torch.distributed later joins the same store.
_stores: list[Any] = []


def agree_on_rank0(decide: Callable[[], dict[str, Any]], timeout: timedelta = timedelta(minutes=10)) -> dict[str, Any]:
    """Call `decide` on rank 0 and return its result on every rank.

    Ranks that each list a shared folder may see different checkpoints, since a file server's answer can be stale. This
    works before there is a process group, through the store that torch.distributed uses for its rendezvous.

    Args:
        decide: Returns values that JSON can hold.
        timeout: How long ranks wait for one another.

    Raises:
        UserError: Raised by `decide`; on every rank.
        Failure: Raised by `decide`, or rank 0 did not answer in time.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return decide()
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    store, rank, world = next(iter(rendezvous("env://", timeout=timeout)))
    _stores.append(store)
    if rank != 0:
        try:
            message: dict[str, Any] = json.loads(store.get(_KEY))
            store.add(_RECEIVED, 1)
        except dist.DistError as error:
            raise Failure(
                f"Rank {rank} received no resume point from rank 0 within {timeout}. See rank 0's log."
            ) from error
        _raise_error(message)
        decided: dict[str, Any] = message["value"]
        return decided
    try:
        value = decide()
    except (UserError, Failure) as error:
        _publish(store, world, {"exit_code": error.exit_code, "problems": error.problems}, timedelta(minutes=1))
        raise
    _publish(store, world, {"value": value}, timeout)
    return value


def _publish(store: Any, world: int, message: dict[str, Any], timeout: timedelta) -> None:
    """Send a message to the other ranks and wait until they have it, since the store ends with rank 0."""
    store.set(_KEY, json.dumps(message))
    deadline = time.monotonic() + timeout.total_seconds()
    while store.add(_RECEIVED, 0) < world - 1 and time.monotonic() < deadline:
        time.sleep(0.02)


def _raise_error(message: dict[str, Any]) -> None:
    if "problems" in message:
        raise (UserError if message["exit_code"] == UserError.exit_code else Failure)(message["problems"])


class StopPoller:
    """Decides at which iterations the ranks exchange whether one of them wants to stop.

    An exchange makes the host wait for the GPU, so it takes place about every `seconds`. Every rank computes the next
    iteration from the numbers of the same exchange, so all ranks agree on it.
    """

    def __init__(
        self,
        exchange: Callable[[list[float]], list[float]],
        exit_iteration: int | None = None,
        seconds: float = 5.0,
        most: int = 100,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create a poller.

        Args:
            exchange: Returns the element-wise maximum over all ranks.
            exit_iteration: train.exit_iteration; from there on every iteration is polled.
            seconds: Time between exchanges; 0 for every iteration.
            most: The largest number of iterations between exchanges.
            now: Returns the time in seconds.
        """
        self._exchange, self._exit, self._seconds, self._most, self._now = exchange, exit_iteration, seconds, most, now
        self._last: int | None = None
        self._next = 0
        self._polled_at = now()

    def due(self, iteration: int) -> bool:
        """Return whether the ranks exchange after this iteration; the same on every rank."""
        return iteration >= self._next or (self._exit is not None and iteration >= self._exit)

    def any_rank(self, iteration: int, flag: bool) -> bool:
        """Return the logical or of `flag` over all ranks. Every rank calls it at an iteration that is `due`."""
        steps = 1 if self._last is None else max(1, iteration - self._last)
        any_flag, slowest = self._exchange([float(flag), (self._now() - self._polled_at) / steps])
        self._last, self._polled_at = iteration, self._now()
        self._next = iteration + max(1, min(self._most, int(self._seconds / max(slowest, 1e-9))))
        return any_flag > 0
