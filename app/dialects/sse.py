"""Server-sent events, incrementally: bytes as they come in, whole events out, however they were cut on the way.

The rules are WHATWG HTML, section 9.2.6: lines end with LF, CRLF or CR, a blank line ends an event, `data` lines are joined by a
newline, a line that begins with a colon is a comment, a byte order mark may begin the stream.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from app.dialects.base import BadAnswer

MAX_EVENT_BYTES = 1 << 20
"""Far above any provider's largest chunk; what is longer is an attack on memory or a broken upstream."""

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"
_FIELD_NAME_BYTES = 64
"""How much longer than its event's data a line may be."""

Event = tuple[bytes, bytes]
"""(name, data); the name is empty where the event has none."""


class Framer:
    """Cuts one stream into events.

    `plain` is the fast path for what nearly every segment is: whole events, each one line `data: …`. Everything else goes through
    `events`, which is linear in the bytes whatever their cuts: a line is searched once, and nothing is kept beyond the cap.
    """

    __slots__ = ("_data", "_data_bytes", "_is_between", "_is_first", "_line", "_max_bytes", "_name", "_skips_lf")

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_bytes = max_event_bytes
        self._line = bytearray()
        """The line that has not ended yet."""
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._name = b""
        self._skips_lf = False
        """A CR ended the last line; an LF that follows belongs to it."""
        self._is_first = True
        self._is_between = True
        """Nothing is pending: the next byte begins a line of a new event."""

    def plain(self, segment: bytes) -> list[bytes] | None:
        """The data of each event when the segment is nothing but whole one-line events; None when it needs `events`."""
        if not self._is_between or segment[:6] != b"data: " or segment[-2:] != b"\n\n" or b"\r" in segment:
            return None
        if segment.find(b"\n") == len(segment) - 2:
            payloads = [segment[6:-2]]
        else:
            blocks = segment[:-2].split(b"\n\n")
            if any(block[:6] != b"data: " or b"\n" in block for block in blocks):
                return None
            payloads = [block[6:] for block in blocks]
        if len(segment) > self._max_bytes and any(len(payload) > self._max_bytes for payload in payloads):
            return None
        self._is_first = False
        return payloads

    def events(self, segment: bytes) -> Iterator[Event]:
        """Every event that this segment completes. Raises: BadAnswer("event_too_large"), after the events before it."""
        for line in self._lines(segment):
            if not line:
                event = self._dispatched()
                if event is not None:
                    yield event
            else:
                self._take(line)
        self._is_between = not (self._line or self._data or self._name or self._skips_lf or self._is_first)

    def rest(self) -> Event | None:
        """The stream has ended: what an event without its blank line held. Whether that is whole only its reader can tell."""
        if self._line:
            self._take(bytes(self._line))
            self._line.clear()
        return self._dispatched()

    def _lines(self, segment: bytes) -> Iterator[bytes]:
        """The lines that end in this segment, without their ends; a CR ends a line at once, so no event waits for an LF."""
        if self._skips_lf and segment:
            self._skips_lf = False
            segment = segment.removeprefix(b"\n")
        line = self._line
        if self._is_first:
            line += segment
            if len(line) < len(_BOM) and _BOM.startswith(line):
                return
            self._is_first = False
            segment = bytes(line).removeprefix(_BOM)
            line.clear()
        position = 0
        for end in _LINE_END.finditer(segment):
            yield self._whole(segment[position : end.start()])
            position = end.end()
        self._skips_lf = segment.endswith(b"\r")
        line += segment[position:]
        self._require_room(len(line) - _FIELD_NAME_BYTES)

    def _whole(self, tail: bytes) -> bytes:
        self._require_room(len(self._line) + len(tail) - _FIELD_NAME_BYTES)
        if not self._line:
            return tail
        line = bytes(self._line) + tail
        self._line.clear()
        return line

    def _take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            value = value.removeprefix(b" ")
            self._data_bytes += len(value)
            self._require_room(self._data_bytes + len(self._data))
            self._data.append(value)
        elif name == b"event":
            self._name = value.removeprefix(b" ")
        # Comments, `id`, `retry` and unknown fields mean nothing here; they are not handed on.

    def _dispatched(self) -> Event | None:
        data, name = self._data, self._name
        self._name = b""
        if not data:
            return None
        self._data, self._data_bytes = [], 0
        return name, data[0] if len(data) == 1 else b"\n".join(data)

    def _require_room(self, size: int) -> None:
        if size > self._max_bytes:
            raise BadAnswer("event_too_large")
