"""Gateway processes: started as an operator starts them, killed, paused and drained as fate does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp

from app.torture.keeper import ROOT, Keeper

READY_WITHIN_S: Final = 60.0
DRAINED_WITHIN_S: Final = 20.0
POLL_S: Final = 0.05
ANSWER_TRIES: Final = 10


class TortureError(Exception):
    """The proof itself cannot go on; the message says why."""


@dataclass(slots=True)
class Gateway:
    """One replica: a port and a data folder that stay, and a process that comes and goes."""

    number: int
    home: Path
    env: Mapping[str, str] = field(repr=False)
    keeper: Keeper = field(repr=False)
    port: int = 0
    spans_down: list[tuple[float, float]] = field(default_factory=list)
    """From when to when (Unix seconds) it was dead or stopped."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One fault at a time."""
    is_up: bool = False
    _popen: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log_path(self) -> Path:
        return self.home / "gateway.log"

    def launch(self) -> None:
        """Start a process; see `ready`."""
        self.port = self.port or _free_port()
        (self.home / "cwd").mkdir(parents=True, exist_ok=True)
        settings = {
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "DATA_DIR": str(self.home / "data"),
            "PYTHONPATH": str(ROOT),
            "PATH": "/usr/bin:/bin",
            "LC_ALL": "C.UTF-8",
        }
        with self.log_path.open("ab") as log:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "app", "serve"],
                env={**settings, **self.env},  # nothing of ours, which may hold an operator's secrets
                cwd=self.home / "cwd",  # empty, so that no .env is read
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.keeper.watch(self._popen.pid)

    async def ready(self, session: aiohttp.ClientSession) -> None:
        """Wait until it says that it can serve. Raises: TortureError."""
        deadline_s = time.monotonic() + READY_WITHIN_S
        while not await self.answers(session):
            if self._running().poll() is not None:
                raise TortureError(f"gateway {self.number} ended while starting:\n{self.last_words()}")
            if time.monotonic() > deadline_s:
                raise TortureError(
                    f"gateway {self.number} is not ready after {READY_WITHIN_S:.0f} s:\n{self.last_words()}"
                )
            await asyncio.sleep(POLL_S)
        self.is_up = True

    async def kill(self) -> None:
        """kill -9: what a crash looks like."""
        self.is_up = False
        popen = self._running()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        await asyncio.to_thread(popen.wait)

    async def drain(self) -> bool:
        """SIGTERM, and the time it takes. False when it does not end."""
        self.is_up = False
        popen = self._running()
        popen.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(popen.wait, DRAINED_WITHIN_S)
        except subprocess.TimeoutExpired:
            return False
        return True

    def pause(self) -> None:
        """SIGSTOP: alive, and silent."""
        self.is_up = False
        os.killpg(self._running().pid, signal.SIGSTOP)

    def resume(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._running().pid, signal.SIGCONT)
        self.is_up = True

    def destroy(self) -> None:
        """The end, whatever state it is in. Harmless when nothing runs."""
        self.is_up = False
        if self._popen is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait()

    def errors(self) -> list[str]:
        """The lines of its log that are no ordinary events."""
        if not self.log_path.exists():
            return []
        lines = self.log_path.read_text("utf-8", "replace").splitlines()
        return [line for line in lines if '"level":"error"' in line or line.startswith("Traceback")]

    def last_words(self) -> str:
        if not self.log_path.exists():
            return ""
        return self.log_path.read_text("utf-8", "replace")[-3000:]

    def _running(self) -> subprocess.Popen[bytes]:
        if self._popen is None:
            raise TortureError(f"gateway {self.number} was not started")
        return self._popen

    async def answers(self, session: aiohttp.ClientSession) -> bool:
        """Whether it says that it can serve."""
        return await self._readiness(session) == "200"

    async def missing(self, session: aiohttp.ClientSession) -> str:
        """Why it still cannot serve, after some patience; empty when it can."""
        said = ""
        for _ in range(ANSWER_TRIES):
            said = await self._readiness(session)
            if said == "200":
                return ""
            await asyncio.sleep(1.0)
        state = "runs" if self._running().poll() is None else "has ended"
        return f"its process {state}, /health/ready says {said}; its log ends: {self.last_words()[-500:]}"

    async def _readiness(self, session: aiohttp.ClientSession) -> str:
        try:
            async with session.get(f"{self.url}/health/ready", timeout=aiohttp.ClientTimeout(total=2)) as answer:
                return "200" if answer.status == 200 else f"{answer.status} {(await answer.text())[:200]}"
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return repr(error)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
