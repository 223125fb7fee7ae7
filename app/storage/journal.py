"""A local, durable list of byte strings: where records wait while the counter store is away.

The file is a row of frames: length (4 bytes), CRC-32 of the payload (4 bytes), payload. A process that dies while it writes leaves a torn
tail, which is cut off when the file is opened again: what stands before it is whole, and what was torn was never acknowledged.

1. `append` returns when its frame is on the disk. Frames that arrive while others are being synced leave with the next `fsync`, in a
   thread: the loop never waits for a disk.
2. One process writes one file, and holds a lock on it for as long as it lives. A file without a living owner is adopted by whoever
   finds it first.
3. The list is bounded. Whoever admits calls asks `is_full` first: what cannot be written down is not begun.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import threading
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
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


@dataclass(slots=True)
class _Frame:
    content: bytes
    is_written: bool = False
    error: BaseException | None = None


class Journal:
    """The journal of this process: one file in `folder`, made when the first frame comes."""

    def __init__(self, folder: Path, *, max_bytes: int = MAX_BYTES, name: str | None = None) -> None:
        self._path = folder / (name or f"{os.getpid()}-{os.urandom(6).hex()}.journal")
        self._max_bytes = max_bytes
        self._file: int | None = None
        self._size = 0
        self._has_failed = False
        self._gathered: list[_Frame] = []
        self._turn = asyncio.Lock()
        self._writing = threading.Lock()

    @property
    def is_full(self) -> bool:
        """Whether calls should not be begun any more because nothing more could be written down about them."""
        return self._has_failed or self._size + RESERVE_BYTES > self._max_bytes

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
        mine = _Frame(frame(payload))
        self._gathered.append(mine)
        async with self._turn:
            if not mine.is_written and mine.error is None:
                batch, self._gathered = self._gathered, []
                await self._write_all(batch)
        if mine.error is not None:
            raise JournalFull from mine.error

    async def batches(self, size: int) -> AsyncIterator[list[bytes]]:
        """What it holds, in order, so many payloads at a time."""
        frames = read_frames(self._path)
        while batch := await asyncio.to_thread(lambda: list(islice(frames, size))):
            yield batch

    async def clear(self, *, if_holds: int) -> bool:
        """Forget everything, unless it holds more frames than these by now. Returns whether it did."""
        async with self._turn:
            return not self._gathered and await asyncio.to_thread(self._clear, if_holds)

    async def _write_all(self, batch: Sequence[_Frame]) -> None:
        """Whoever has the turn writes for all. When he is cancelled the others' frames are written all the same."""
        loop = asyncio.get_running_loop()
        writing = loop.run_in_executor(None, self._write, b"".join([each.content for each in batch]))
        try:
            await asyncio.wait([writing])
        finally:
            if not writing.done():
                await asyncio.wait([writing])
            error = writing.exception()
            for each in batch:
                each.is_written, each.error = error is None, error
            self._has_failed = error is not None

    def close(self) -> None:
        """Give the file up. An empty one is removed; another waits to be adopted."""
        with self._writing:
            if self._file is None:
                return
            if self._size == 0:
                self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None

    def _write(self, frames: bytes) -> None:
        with self._writing:
            if self._file is None:
                self._file = _open_locked(self._path)
                self._size = cut_torn_tail(self._path)
            try:
                _write(self._file, frames)
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, self._size)  # half a frame must not stand before later ones
                raise
            self._size += len(frames)

    def _clear(self, if_holds: int) -> bool:
        with self._writing:
            if self._file is None or sum(1 for _ in read_frames(self._path)) != if_holds:
                return False
            os.ftruncate(self._file, 0)
            os.fsync(self._file)
            self._size = 0
            self._has_failed = False
            return True


def adopt_orphans(folder: Path) -> Iterator[tuple[Path, list[bytes]]]:
    """Journals whose process is gone, with what they hold. The caller removes each file once that is safe elsewhere.

    While the caller works on one it is locked, so that no other process adopts it too.
    """
    for path in sorted(folder.glob("*.journal")):
        try:
            file = os.open(path, os.O_RDWR)
        except OSError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield path, list(read_frames(path))
        except BlockingIOError:
            continue
        finally:
            os.close(file)


def frame(payload: bytes) -> bytes:
    return HEADER.pack(len(payload), zlib.crc32(payload)) + payload


def read_frames(path: Path) -> Iterator[bytes]:
    """The payloads up to the first frame that is not whole."""
    if not path.exists():
        return
    with path.open("rb") as file:
        while len(header := file.read(HEADER.size)) == HEADER.size:
            length, checksum = HEADER.unpack(header)
            if length > MAX_FRAME_BYTES:
                return
            payload = file.read(length)
            if len(payload) < length or zlib.crc32(payload) != checksum:
                return
            yield payload


def cut_torn_tail(path: Path) -> int:
    """Cut off what is no whole frame. Returns the size that is left, in bytes."""
    whole = sum(HEADER.size + len(payload) for payload in read_frames(path))
    if path.exists() and path.stat().st_size > whole:
        os.truncate(path, whole)
    return whole


def _open_locked(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name of a new file is durable only then
        finally:
            os.close(folder)
    except OSError:
        os.close(file)
        raise
    return file


def _write(file: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]
