"""Forms with files (RFC 7578), read where they lie: names and places of the parts, nothing copied and nothing written anywhere.

Linear in the bytes whatever they hold, and strict: what two readers could understand differently is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from app.exceptions import InvalidRequest

MAX_PARTS = 64
MAX_HEAD_BYTES = 4 << 10
MAX_NAME_CHARS = 128

_BOUNDARY = re.compile(
    rb'boundary=(?:"([^"\r\n]{1,70})"|([!#$%&\'*+.^_`|~0-9A-Za-z-]{1,70}))\s*(?:;|\Z)', re.IGNORECASE
)
_DISPOSITION = re.compile(
    rb"content-disposition:[ \t]*form-data((?:[ \t]*;[ \t]*[\w*-]+=(?:\"[^\"\r\n]*\"|[^\s;\"]*))*)[ \t]*\Z",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_PARAMETER = re.compile(rb';[ \t]*([\w*-]+)=(?:"([^"\r\n]*)"|([^\s;"]*))')


@dataclass(frozen=True, slots=True)
class Part:
    """One field: where its content begins and ends in the body."""

    name: str
    start: int
    end: int
    is_file: bool

    @property
    def size(self) -> int:
        return self.end - self.start


def boundary_in(content_type: bytes) -> bytes:
    """Raises: InvalidRequest."""
    found = _BOUNDARY.search(content_type)
    if found is None or not (found[1] or found[2]).isascii():
        raise InvalidRequest("The Content-Type header names no boundary of the form.")
    return bytes(found[1] or found[2])


def form_type(boundary: bytes) -> str:
    """The media type of a form, in words of ours."""
    text = boundary.decode("ascii")
    return (
        f"multipart/form-data; boundary={text}" if _TOKEN.fullmatch(text) else f'multipart/form-data; boundary="{text}"'
    )


def read_form(body: bytes, boundary: bytes) -> list[Part]:
    """The parts of a form, in order. Raises: InvalidRequest."""
    delimiter = b"--" + boundary
    if not body.startswith(delimiter):
        raise InvalidRequest("The form does not begin with its boundary.")
    parts: list[Part] = []
    position = len(delimiter)
    delimiter = b"\r\n" + delimiter
    while True:
        mark = body[position : position + 2]
        if mark == b"--":
            return parts
        if mark != b"\r\n" or len(parts) >= MAX_PARTS:
            raise InvalidRequest("The form is malformed, or has too many parts.")
        head_end = body.find(b"\r\n\r\n", position, position + MAX_HEAD_BYTES)
        start = head_end + 4
        end = body.find(delimiter, head_end) if head_end >= 0 else -1
        if end < start:
            raise InvalidRequest("A part of the form has no end, or no head.")
        parts.append(_part(body[position + 2 : head_end], start, end))
        position = end + len(delimiter)


def replaced(body: bytes, part: Part, content: bytes) -> bytes:
    """The form with another content in one part."""
    return b"".join((body[: part.start], content, body[part.end :]))


def _part(head: bytes, start: int, end: int) -> Part:
    given: dict[bytes, bytes] = {}
    lines = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-disposition:")]
    match = _DISPOSITION.fullmatch(lines[0]) if len(lines) == 1 else None
    if match is None:
        raise InvalidRequest("A part of the form does not say its name.")
    for name, quoted, plain in _PARAMETER.findall(match[1]):
        if name.lower() in given:
            raise InvalidRequest("A part of the form says its name twice.")
        given[name.lower()] = quoted or plain
    try:
        name = given.get(b"name", b"").decode("ascii")
    except UnicodeDecodeError:
        name = ""
    if not name or len(name) > MAX_NAME_CHARS or not name.isprintable():
        raise InvalidRequest("A part of the form does not say its name.")
    return Part(name, start, end, b"filename" in given or b"filename*" in given)
