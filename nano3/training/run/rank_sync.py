"""What all ranks share before there is a process group: decisions of rank 0, and work; and when the run stops."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from importlib import import_module
from typing import Any

from nano3.utils.errors import Failure, UserError

_MESSAGE, _RESULT, _RECEIVED, _ALIVE, _PORT = "message", "result", "received", "alive", "port"
# A rank that works gives a sign of life so often within the timeout of those that wait.
_BEATS = 10
# And so often while the ranks meet.
_JOIN_BEAT_S = 0.1
# Waiting ranks look for an answer after the first of these seconds, then ever more rarely, up to the second.
_POLL_S = (0.01, 0.5)


def agree_on_rank0(decide: Callable[[], dict[str, Any]], timeout: timedelta = timedelta(minutes=10)) -> dict[str, Any]:
    """Call `decide` on rank 0 and return its result on every rank.

    Ranks that each list a shared folder may see different checkpoints, since a file server's answer can be stale. This
    works before there is a process group, through the store that torch.distributed uses for its rendezvous.

    Args:
        decide: Returns values that JSON can hold. It may share work by `map_over_ranks`.
        timeout: How long ranks wait for one that gives no sign of life. It may take as long as it wants.

    Raises:
        UserError: Raised by `decide`; on every rank.
        Failure: Raised by `decide`, or a rank did not answer in time.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return decide()
    import torch.distributed as dist

    ranks = _Ranks(timeout)
    _kept.append(ranks)
    try:
        return ranks.follow() if ranks.rank else ranks.lead(decide)
    except dist.DistError as error:
        raise Failure(ranks.no_answer(0, f"({error})")) from error


def map_over_ranks[Item, Result](function: Callable[[list[Item]], list[Result]], items: list[Item]) -> list[Result]:
    """Return the results of a function for all items, of which each rank computes a part.

    Only within a `decide` of `agree_on_rank0` are there ranks to share the work with. Anywhere else it is one call.

    Args:
        function: A function of a module; it returns a result for each item.
        items: What JSON can hold, as the results. Every `world size`-th one goes to the same rank.
    """
    return _leader.map(function, items) if _leader else function(items)


class _Ranks:
    """The ranks of a job: rank 0 sends messages, which all others receive in order."""

    def __init__(self, timeout: timedelta) -> None:
        import torch.distributed as dist

        self._timeout, self._messages = timeout, 0
        self.rank, self.world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        try:
            self.store = self._join()
            if _torchrun_restarts():
                self.store = self._leave_agent_store()
        except dist.DistError as error:
            raise Failure(f"Rank {self.rank} did not reach rank 0 within {timeout}: {error}") from error

    def _join(self) -> Any:
        """Return the store of MASTER_PORT, with the keys of this agreement: a process may have several."""
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        store = next(iter(rendezvous("env://", timeout=self._timeout)))[0]
        return PrefixStore(f"nano3/{len(_kept)}", store)

    def _leave_agent_store(self) -> Any:
        """Return a store in the process of rank 0, which process groups use from now on, too.

        The store of torchrun lasts for all its attempts (PyTorch 2.11), so it holds messages and addresses of earlier
        ones. Their rank 0 has ended: a sign of life after another rank has joined comes from this attempt, and follows
        its port. The number of the attempt would not do, because torchrun counts restarts on each node by itself.
        """
        import torch.distributed as dist

        if self.rank:
            before = self.store.add(f"{_ALIVE}/0", 0)
            self._wait(lambda: self.store.add(f"{_ALIVE}/0", 0) != before, 0)
            port = int(self.store.get(_PORT))
        else:
            host, own = os.environ["MASTER_ADDR"], {"multi_tenant": True, "wait_for_workers": False}
            server = dist.TCPStore(host, 0, is_master=True, timeout=self._timeout, **own)  # type: ignore[attr-defined]
            port = server.port
            self.store.set(_PORT, str(port))
        os.environ |= {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False"}
        with nullcontext() if self.rank else self._alive(_JOIN_BEAT_S):
            return self._join()

    def lead(self, decide: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Decide on rank 0, and send the result or what is wrong to all."""
        global _leader
        with self._alive(self._beat_s):
            _leader = self
            try:
                value = decide()
            except (UserError, Failure) as error:
                self._send({"exit_code": error.exit_code, "problems": error.problems})
                self._wait_until_received(timedelta(minutes=1))
                raise
            finally:
                _leader = None
            self._send({"value": value})
            self._wait_until_received(self._timeout)
        return value

    def map(self, function: Callable[[list[Any]], list[Any]], items: list[Any]) -> list[Any]:
        """Share work, on rank 0."""
        self._send({"function": f"{function.__module__}:{function.__qualname__}", "items": items})
        number, results = self._messages, list(items)
        results[:: self.world] = function(items[:: self.world])
        for rank in range(1, self.world):
            results[rank :: self.world] = self._receive(f"{_RESULT}/{number}/{rank}", rank)
        return results

    def follow(self) -> dict[str, Any]:
        """Do what rank 0 asks for until it has decided, and return that."""
        while True:
            self._messages += 1
            message = self._receive(f"{_MESSAGE}/{self._messages}", 0)
            if "function" not in message:
                break
            module, _, name = message["function"].partition(":")
            with self._alive(self._beat_s):
                results = getattr(import_module(module), name)(message["items"][self.rank :: self.world])
            self.store.set(f"{_RESULT}/{self._messages}/{self.rank}", json.dumps(results))
        self.store.add(_RECEIVED, 1)
        if "problems" in message:
            raise (UserError if message["exit_code"] == UserError.exit_code else Failure)(message["problems"])
        value: dict[str, Any] = message["value"]
        return value

    def _send(self, message: dict[str, Any]) -> None:
        self._messages += 1
        self.store.set(f"{_MESSAGE}/{self._messages}", json.dumps(message))

    def _wait_until_received(self, timeout: timedelta) -> None:
        """Wait until the other ranks have the last message, since the store ends with rank 0."""
        deadline = time.monotonic() + timeout.total_seconds()
        while self.store.add(_RECEIVED, 0) < self.world - 1 and time.monotonic() < deadline:
            time.sleep(0.02)

    def _receive(self, key: str, sender: int) -> Any:
        """Return what another rank sets, as long as it is alive."""
        self._wait(lambda: self.store.check([key]), sender)
        return json.loads(self.store.get(key))

    def _wait(self, answered: Callable[[], bool], sender: int) -> None:
        pause, beats, since = _POLL_S[0], -1, time.monotonic()
        while not answered():
            if (latest := self.store.add(f"{_ALIVE}/{sender}", 0)) != beats:
                beats, since = latest, time.monotonic()
            elif time.monotonic() - since > self._timeout.total_seconds():
                raise Failure(self.no_answer(sender, f"for {self._timeout}"))
            time.sleep(pause)
            pause = min(pause * 1.5, _POLL_S[1])

    def no_answer(self, sender: int, why: str) -> str:
        """Return the sentence for a rank that has ended or is silent."""
        return f"Rank {self.rank} has no answer from rank {sender} {why}, at the start. See the log of rank {sender}."

    @property
    def _beat_s(self) -> float:
        return self._timeout.total_seconds() / _BEATS

    @contextmanager
    def _alive(self, every_s: float) -> Iterator[None]:
        """Show the other ranks that this one works."""
        import torch.distributed as dist

        ended, store = threading.Event(), self.store

        def beat() -> None:
            with suppress(dist.DistError):  # rank 0 has ended, which the main thread notices, too
                while not ended.wait(every_s):
                    store.add(f"{_ALIVE}/{self.rank}", 1)

        thread = threading.Thread(target=beat, name="alive", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _torchrun_restarts() -> bool:
    """Return whether torchrun serves the store and may start the ranks again with it."""
    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return served and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


# Kept until the process ends: rank 0's store serves the others, and torch.distributed later joins the same store.
_kept: list[_Ranks] = []
_leader: _Ranks | None = None


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
