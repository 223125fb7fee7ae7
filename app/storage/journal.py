"""A local, durable list of byte strings: where records wait while the counter store is away.

The file is a row of frames: length (4 bytes), CRC-32 of the payload (4 bytes), payload. A process that dies while it writes leaves a torn
tail, which is cut off when the file is opened again: what stands before it is whole, and what was torn was never acknowledged.

1. `append` returns when its frame is on the disk. Frames that arrive while others are being synced leave with the next `fsync`, in a
   thread: the loop never waits for a disk. Who is cancelled while he waits leaves his frame to be written all the same.
2. One process writes one file, and holds a lock on it for as long as it lives. A file gets the name by which adopters look for it only
   when it is locked. One without a living owner is adopted by whoever finds it first.
3. The list is bounded. Whoever admits calls asks `is_full` first: what cannot be written down is not begun.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import threading
import zlib
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

HEADER = struct.Struct(">II")
MAX_FRAME_BYTES = 16 * 1024 * 1024
"""A length beyond this is no length but damage."""
MAX_BYTES = 256 * 1024 * 1024
"""A quarter of a million records: an hour without the store at 70 calls a second."""
RESERVE_BYTES = 4 * 1024 * 1024
"""Kept for the calls that are already under way when the journal is said to be full."""


class JournalFull(Exception):
    """The disk, or the journal's own bound, takes no more."""


@dataclass(frozen=True, slots=True)
class _Frame:
    content: bytes
    written: asyncio.Future[None]


class Journal:
    """The journal of this process: one file in `folder`, made when the first frame comes."""

    def __init__(self, folder: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self._folder = folder
        self._path: Path | None = None
        self._max_bytes = max_bytes
        self._file: int | None = None
        self._size = 0
        self._has_failed = False
        self._gathered: list[_Frame] = []
        self._is_busy = False
        """A thread writes, or clears. There is one at a time."""
        self._writing = threading.Lock()

    @property
    def is_full(self) -> bool:
        """Whether calls should not be begun any more because nothing more could be written down about them."""
        return self._has_failed or self._size + RESERVE_BYTES > self._max_bytes

    @property
    def is_half_full(self) -> bool:
        """Whether it should be left to those whose records carry money: a caller who is refused a thousand times a second fills it too."""
        return self._size * 2 > self._max_bytes

    @property
    def size_bytes(self) -> int:
        return self._size

    @property
    def is_empty(self) -> bool:
        return self._size == 0 and not self._gathered

    async def append(self, payload: bytes) -> None:
        """Returns when it is durable. Raises: JournalFull; it is then not in the journal."""
        if self._size + len(payload) + HEADER.size > self._max_bytes:
            raise JournalFull
        mine = _Frame(frame(payload), asyncio.get_running_loop().create_future())
        self._gathered.append(mine)
        self._write_gathered()
        await mine.written

    async def batches(self, size: int) -> AsyncIterator[list[bytes]]:
        """What it holds, in order, so many payloads at a time."""
        if self._path is None:
            return
        frames = read_frames(self._path)
        while batch := await asyncio.to_thread(lambda: list(islice(frames, size))):
            yield batch

    async def clear(self, *, if_holds: int) -> bool:
        """Forget everything, unless it holds more frames than these by now. Returns whether it did."""
        if self._is_busy or self._gathered:
            return False
        self._is_busy = True
        try:
            return await asyncio.to_thread(self._clear, if_holds)
        finally:
            self._is_busy = False
            self._write_gathered()

    def _write_gathered(self) -> None:
        """Write what has gathered, unless a thread is at it: then when that is done."""
        if self._is_busy or not self._gathered:
            return
        self._is_busy = True
        batch, self._gathered = self._gathered, []
        content = b"".join([each.content for each in batch])
        writing = asyncio.get_running_loop().run_in_executor(None, self._write, content)
        writing.add_done_callback(lambda writing: self._note_written(batch, writing))

    def _note_written(self, batch: Sequence[_Frame], writing: asyncio.Future[None]) -> None:
        error = asyncio.CancelledError() if writing.cancelled() else writing.exception()
        self._has_failed, self._is_busy = error is not None, False
        for each in batch:
            if each.written.done():  # nobody waits for it any more
                continue
            if error is None:
                each.written.set_result(None)
            else:
                failure = JournalFull()
                failure.__cause__ = error
                each.written.set_exception(failure)
        self._write_gathered()

    def close(self) -> None:
        """Give the file up. An empty one is removed; another waits to be adopted."""
        with self._writing:
            if self._file is None:
                return
            if self._size == 0 and self._path is not None:
                self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None

    def _write(self, frames: bytes) -> None:
        with self._writing:
            if self._file is not None and os.fstat(self._file).st_nlink == 0:  # somebody has removed it
                os.close(self._file)
                self._file = None
            if self._file is None:
                self._path = self._folder / f"{os.getpid()}-{os.urandom(6).hex()}.journal"
                self._file, self._size = _made_locked(self._path), 0
            try:
                _write(self._file, frames)
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, self._size)  # half a frame must not stand before later ones
                raise
            self._size += len(frames)

    def _clear(self, if_holds: int) -> bool:
        with self._writing:
            if self._file is None or self._path is None or sum(1 for _ in read_frames(self._path)) != if_holds:
                return False
            os.ftruncate(self._file, 0)
            os.fsync(self._file)
            self._size = 0
            self._has_failed = False
            return True


def adopt_orphans(folder: Path) -> Generator[Path]:
    """Journals whose process is gone. The caller removes each file once what it holds is safe elsewhere.

    While the caller works on one it is locked, so that no other process adopts it too; closing the iterator gives it up.
    """
    for path in sorted(folder.glob("*.journal")):
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_named(path, file):  # or else another has adopted and removed it meanwhile
                yield path
        except BlockingIOError:
            continue
        finally:
            os.close(file)


def frame(payload: bytes) -> bytes:
    return HEADER.pack(len(payload), zlib.crc32(payload)) + payload


def read_frames(path: Path) -> Iterator[bytes]:
    """The payloads up to the first frame that is not whole."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        while len(header := file.read(HEADER.size)) == HEADER.size:
            length, checksum = HEADER.unpack(header)
            if length > MAX_FRAME_BYTES:
                return
            payload = file.read(length)
            if len(payload) < length or zlib.crc32(payload) != checksum:
                return
            yield payload


def _made_locked(path: Path) -> int:
    """A new file that is locked before it has its name: an adopter would take it for an orphan's, find it empty and remove it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    unnamed = path.with_suffix(".new")
    file = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unnamed.rename(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name of a new file is durable only then
        finally:
            os.close(folder)
    except OSError:
        unnamed.unlink(missing_ok=True)
        os.close(file)
        raise
    return file


def _is_named(path: Path, file: int) -> bool:
    """Whether the file that is open is still the one of that name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _write(file: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]
