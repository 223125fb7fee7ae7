"""The calls that run in this process, by id, so that one can be ended from outside: its lease is gone and others may have its money,
or this process must stop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from app.domain.call import Meter
from app.exceptions import GatewayError


class RunningCalls:
    """A set of call ids that knows the task of each. Adding and discarding cost well under a microsecond."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[object] | None] = {}
        self._meters: dict[str, Meter] = {}
        self._waiting: dict[str, asyncio.Task[object] | None] = {}
        self._ended: dict[str, GatewayError] = {}
        self._closed: GatewayError | None = None

    def add(self, call_id: str, meter: Meter | None = None) -> None:
        """The current task makes this call."""
        self._tasks[call_id] = asyncio.current_task()
        if meter is not None:
            self._meters[call_id] = meter
        if self._closed is not None:
            self.end([call_id], self._closed)

    def discard(self, call_id: str) -> None:
        self._tasks.pop(call_id, None)
        self._meters.pop(call_id, None)

    @contextmanager
    def waiting(self, call_id: str) -> Iterator[None]:
        """Inside the context the current task waits, perhaps for long, to be let run. It is none of the calls that run."""
        self._waiting[call_id] = asyncio.current_task()
        try:
            yield
        finally:
            del self._waiting[call_id]

    def close(self, why: GatewayError) -> int:
        """End all that run, all that wait, and from now on each that is added. Returns how many."""
        self._closed = why
        return self.end([*self._tasks, *self._waiting], why)

    def end(self, call_ids: Iterable[str], why: GatewayError) -> int:
        """Cancel these calls, where they still run; each is billed and recorded as what it came to. Returns how many.

        `why` is what their callers are told.
        """
        ended = 0
        for call_id in call_ids:
            task = self._tasks.get(call_id) or self._waiting.get(call_id)
            if task is not None and call_id not in self._ended:
                self._ended[call_id] = why
                task.cancel()
                ended += 1
        return ended

    def why_ended(self, call_id: str) -> GatewayError | None:
        """Why it was cancelled here, if it was. Ask once, when the call was left: then it is forgotten."""
        return self._ended.pop(call_id, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __contains__(self, call_id: str) -> bool:
        return call_id in self._tasks

    @property
    def meters(self) -> list[Meter]:
        """As they are now; some may have ended by the time the next await is over."""
        return list(self._meters.values())

    def __len__(self) -> int:
        return len(self._tasks)
