"""What ranks must decide alike: where the run starts (rank 0 looks, the others are told), and when it stops."""

import json
import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from nano3.utils.errors import Failure, UserError

_KEY, _HEARD = "nano3/start", "nano3/heard"
# Kept until the process ends: rank 0's store serves the others, and torch.distributed's own start joins it.
_stores: list[Any] = []


def agree_on_rank0(decide: Callable[[], dict[str, Any]], timeout: timedelta = timedelta(minutes=10)) -> dict[str, Any]:
    """What `decide` (values that JSON can hold) returns on rank 0, on every rank; its `UserError` or `Failure` too.

    Ranks that each list a shared folder may see different checkpoints, since a file server's answer can be stale. This
    runs before there is a process group, through the same store by which torch.distributed will meet.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return decide()
    import torch.distributed as dist

    store, rank, world = next(iter(dist.rendezvous("env://", timeout=timeout)))
    _stores.append(store)
    if rank != 0:
        try:
            told = json.loads(store.get(_KEY))
            store.add(_HEARD, 1)
        except dist.DistError as error:
            raise Failure(
                f"Rank {rank} was not told by rank 0 where the run starts within {timeout}: see rank 0's log."
            ) from error
        _raise_told(told)
        return told["value"]
    try:
        value = decide()
    except (UserError, Failure) as error:
        _tell(store, world, {"exit_code": error.exit_code, "problems": error.problems}, timedelta(minutes=1))
        raise
    _tell(store, world, {"value": value}, timeout)
    return value


def _tell(store: Any, world: int, message: dict[str, Any], timeout: timedelta) -> None:
    """Give the others their answer and wait until they have it: the store ends with rank 0, which may end at once."""
    store.set(_KEY, json.dumps(message))
    deadline = time.monotonic() + timeout.total_seconds()
    while store.add(_HEARD, 0) < world - 1 and time.monotonic() < deadline:
        time.sleep(0.02)


def _raise_told(told: dict[str, Any]) -> None:
    if "problems" in told:
        raise (UserError if told["exit_code"] == UserError.exit_code else Failure)(told["problems"])


class StopPoller:
    """How often ranks ask each other whether one of them wants to stop: about every `seconds` (0: every step).

    Asking makes the host wait for the GPU. Every rank computes the next iteration to ask at from numbers that all of
    them got in the same exchange, so all ask at the same iterations.
    """

    def __init__(
        self,
        exchange: Callable[[list[float]], list[float]],
        exit_iteration: int | None = None,
        seconds: float = 5.0,
        most: int = 100,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`exchange` returns the element-wise maximum over all ranks."""
        self._exchange, self._exit, self._seconds, self._most, self._now = exchange, exit_iteration, seconds, most, now
        self._last: int | None = None
        self._next = 0
        self._asked_at = now()

    def due(self, iteration: int) -> bool:
        """Whether to ask after this iteration; the same on every rank."""
        return iteration >= self._next or (self._exit is not None and iteration >= self._exit)

    def any_rank(self, iteration: int, flag: bool) -> bool:
        """Logical or over all ranks; called by every rank at an iteration that is `due`."""
        steps = 1 if self._last is None else max(1, iteration - self._last)
        told, slowest = self._exchange([float(flag), (self._now() - self._asked_at) / steps])
        self._last, self._asked_at = iteration, self._now()
        self._next = iteration + max(1, min(self._most, int(self._seconds / max(slowest, 1e-9))))
        return told > 0
