"""Lines in which callers stand, one for each name that somebody stands for: first come, first served."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Name = TypeVar("Name")
Note = TypeVar("Note")


class Place(Generic[Note]):
    """One caller's. It is his turn while nobody stands before him; whoever leaves gives the turn to the next."""

    __slots__ = ("_line", "note", "turn")

    def __init__(self, line: deque[Place[Note]], note: Note) -> None:
        self._line = line
        self.note = note
        """What he knows of that which all in this line wait for."""
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def ahead(self) -> int:
        return self._line.index(self)

    @property
    def first(self) -> Place[Note]:
        return self._line[0]


class Lines(Generic[Name, Note]):
    def __init__(self) -> None:
        self._lines: dict[Name, deque[Place[Note]]] = {}

    def __bool__(self) -> bool:
        return bool(self._lines)

    def length(self, name: Name) -> int:
        return len(self._lines.get(name, ()))

    def first(self, name: Name) -> Place[Note] | None:
        line = self._lines.get(name)
        return line[0] if line else None

    @contextmanager
    def joined(self, name: Name, note: Note) -> Iterator[Place[Note]]:
        """Stand in line. Nothing is left of a place that was left, nor of a line that nobody stands in."""
        line = self._lines.setdefault(name, deque())
        mine = Place(line, note)
        line.append(mine)
        if line[0] is mine:
            mine.turn.set_result(None)
        try:
            yield mine
        finally:
            line.remove(mine)
            if not line:
                del self._lines[name]
            elif not line[0].turn.done():
                line[0].turn.set_result(None)
