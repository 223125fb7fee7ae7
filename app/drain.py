"""How a process leaves without a call noticing.

A proxy in front of several replicas keeps connections to each of them open and may send a call over one at any moment, also at the very
moment at which this process closes it; such a call fails, for nobody may send a POST a second time. So, on SIGTERM:

1. Readiness says no, at once, and every answer asks for its connection to be closed. Calls are still served. Connections that the proxy
   keeps are used up in this way, or let go by the proxy itself once they are idle (the shipped nginx: after a second).
2. When that has had its time (`SHUTDOWN_DELAY_SECONDS`), or nothing has come for long enough, new connections are no longer taken in:
   the kernel is told to drop them unanswered, those already in its queue are taken, and only then the socket is closed. Whoever was
   dropped tries again some milliseconds later, is refused, and goes to another replica.
3. The server waits for what runs. After `SHUTDOWN_GRACE_SECONDS` what still runs is ended with the error `draining`, billed and recorded.

A second SIGTERM cuts the first step short. Ctrl-C has no first step.
"""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from app.doorway import Doorway, listening_sockets
from app.services.health_check import HealthCheck
from app.telemetry import logger

QUIET_S = 1.05
"""As long as the shipped nginx keeps an idle connection, and a little: whoever has not called for so long holds none."""
POLL_S = 0.02
LAST_IN_S = 0.05
"""For what lies in the kernel's queue to be taken in: some turns of the event loop."""
SO_ATTACH_FILTER = 26
BPF_RETURN = 0x06
"""Linux's numbers, the same on every architecture that matters."""


class Departure:
    """This process's way out. `is_leaving` and `last_request_ms` are read and written with every request, so they are plain."""

    def __init__(
        self,
        *,
        health: HealthCheck,
        end_calls: Callable[[], int],
        doorway: Doorway,
        now_ms: Callable[[], int],
        delay_s: float,
        grace_s: float,
    ) -> None:
        """`now_ms`: the clock that `last_request_ms` is of."""
        self.is_leaving = False
        self._now_ms = now_ms
        self.last_request_ms = 0
        self._health = health
        self._end_calls = end_calls
        self._doorway = doorway
        self._delay_s, self._grace_s = delay_s, grace_s
        self._asked = asyncio.Event()
        self._go: Callable[[], None] = lambda: None

    def listen(self) -> None:
        """From now on SIGTERM comes here first. Whoever handled it before is told when it is time to stop."""
        before = signal.getsignal(signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread() or not callable(before):
            return
        loop = asyncio.get_running_loop()
        self._go = lambda: before(signal.SIGTERM, None)

        def on_signal(number: int, frame: FrameType | None) -> None:
            if self.is_leaving:  # the second time: no more patience with those who might still come
                self._delay_s = 0.0
                return
            self.is_leaving = self._health.is_leaving = True
            loop.call_soon_threadsafe(self._asked.set)

        signal.signal(signal.SIGTERM, on_signal)

    async def run(self) -> None:
        """Wait for SIGTERM, then leave."""
        await self._asked.wait()
        logger.info("leaving")
        await self._until_quiet()
        if multiprocessing.parent_process() is None:  # otherwise others take connections from the same socket
            refuse_new_connections()
            await asyncio.sleep(LAST_IN_S)
        self._doorway.close()
        self._go()
        await asyncio.sleep(self._grace_s)
        ended = self._end_calls()
        if ended:
            logger.warning("calls_ended_by_shutdown", calls=ended)

    async def _until_quiet(self) -> None:
        began_s = time.monotonic()
        while time.monotonic() - began_s < self._delay_s:
            if self._now_ms() - self.last_request_ms > QUIET_S * 1000:
                return
            await asyncio.sleep(POLL_S)


def refuse_new_connections() -> None:
    """Have the kernel drop what asks for a connection to this process's listening sockets. Where it cannot, nothing happens."""
    if sys.platform != "linux":
        return
    # A program of one instruction, "keep 0 bytes of the packet", in the kernel's struct sock_fprog.
    instruction = ctypes.create_string_buffer(struct.pack("HBBI", BPF_RETURN, 0, 0, 0))
    program = struct.pack("HP", 1, ctypes.addressof(instruction))
    for listening in listening_sockets():
        with suppress(OSError):
            listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        listening.close()
