"""The thread that writes the log: whatever reads it (a pipe that nobody empties, a disk that is slow), the event loop never waits for it.

1. Lines gather for a moment and are written together. What is written to a pipe at once is no longer than it takes in one piece, so that
   the lines of several processes on it do not run into each other; a file takes each piece whole, whatever its length.
2. So many lines may wait. Those beyond are dropped and counted: calls matter more, and their records are elsewhere.
3. What is said seldom is written at once where that takes no time: the last words of a process that is ended by a signal are heard.
4. A process that ends waits briefly for what is left to be written.
"""

from __future__ import annotations

import atexit
import os
import select
import stat
import threading
import time
from collections import deque
from collections.abc import Callable

GATHERED_S = 0.02
"""A thread that woke up for every line took more time than the writing."""
MAX_LINES = 10_000
"""Some 5 MB of calls' lines: ten seconds at a thousand calls a second."""
FILE_PIECE_BYTES = 64 << 10
"""Written at once where that is no pipe: each writing lets go of the interpreter's lock, which a busy event loop then has to give back."""
LAST_WAIT_S = 1.0


class LogLines:
    """Lines on their way to a file descriptor. `on_dropped` is told how many could not be written, from any thread."""

    def __init__(self, file: int, *, on_dropped: Callable[[int], None], max_lines: int = MAX_LINES) -> None:
        self._file = file
        self._on_dropped = on_dropped
        self._max_lines = max_lines
        self._lines: deque[bytes] = deque()
        self._came = threading.Event()
        self._is_busy = False
        self._piece_bytes = FILE_PIECE_BYTES if stat.S_ISREG(os.fstat(file).st_mode) else select.PIPE_BUF
        self._room = select.poll()
        self._room.register(file, select.POLLOUT)
        threading.Thread(target=self._write_all, name="log", daemon=True).start()
        atexit.register(self.flush)

    def write(self, line: bytes) -> None:
        """Take a line, or drop it. Never waits."""
        if len(self._lines) >= self._max_lines:
            self._on_dropped(1)
            return
        self._lines.append(line)
        if not self._came.is_set():
            self._came.set()

    def write_now(self, line: bytes) -> None:
        """As `write`, and written when this returns, unless it would have to wait for others or for a reader."""
        if self._lines or self._is_busy or len(line) > select.PIPE_BUF or not self._room.poll(0):
            self.write(line)
        else:
            self._write(line, 1)

    def flush(self, at_most_s: float = LAST_WAIT_S) -> bool:
        """Wait until everything is written, or so long. Returns whether it is."""
        until_s = time.monotonic() + at_most_s
        while self._lines or self._is_busy:
            if time.monotonic() > until_s:
                return False
            time.sleep(GATHERED_S / 4)
        return True

    def _write_all(self) -> None:
        while True:
            self._came.wait()
            time.sleep(GATHERED_S)
            self._came.clear()  # before the lines are taken: whoever comes later says so again
            while self._lines:
                self._is_busy = True
                self._write(*self._next_piece())
            self._is_busy = False

    def _next_piece(self) -> tuple[bytes, int]:
        """Whole lines that go in one piece, and how many; a longer one alone."""
        lines = [self._lines.popleft()]
        left = self._piece_bytes - len(lines[0])
        while self._lines and len(self._lines[0]) <= left:
            lines.append(self._lines.popleft())
            left -= len(lines[-1])
        return b"".join(lines), len(lines)

    def _write(self, piece: bytes, lines: int) -> None:
        try:
            while piece:
                piece = piece[os.write(self._file, piece) :]
        except OSError:  # a full disk, a closed pipe
            self._on_dropped(lines)
