"""Ends what the proof started, should the proof itself be killed: a child that outlives its parent by one moment.

Run as `python -m app.torture.keeper FOLDER`. It reads lines `PID START` (the start time from /proc tells a process from a later
one with the same number). When its standard input ends, the parent is gone or done: what is still listed is killed
with its process group, and the folder is removed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""Where `app` is found."""
GONE_WITHIN_S = 5.0


def started_at(pid: int) -> int | None:
    """When the kernel started this process, in ticks since boot; None when it is gone (or the system has no /proc)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] == "Z" else int(fields[19])


class Keeper:
    """The parent's end of it."""

    def __init__(self, folder: Path) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "app.torture.keeper", str(folder)],
            stdin=subprocess.PIPE,
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )

    def watch(self, pid: int) -> None:
        """End this process, and its group if it leads one, when the parent goes away."""
        begun = started_at(pid)
        if self._popen.stdin is not None and begun is not None:
            self._popen.stdin.write(f"{pid} {begun}\n".encode())
            self._popen.stdin.flush()

    def close(self) -> None:
        """The parent is done: end what is left, and remove the folder."""
        if self._popen.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._popen.stdin.close()
        self._popen.wait(GONE_WITHIN_S * 4)


def keep(folder: Path) -> None:
    """The child: listen until the parent is gone, then clean up."""
    watched: set[tuple[int, int]] = set()
    for line in sys.stdin:
        pid, begun = line.split()
        watched.add((int(pid), int(begun)))
    deadline = time.monotonic() + GONE_WITHIN_S
    while left := [pid for pid, begun in watched if started_at(pid) == begun]:
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL) if os.getpgid(pid) != pid else os.killpg(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # only the end of its standard input counts
    keep(Path(sys.argv[1]))
