"""Calls refused before they are read, while there is more to do than this process can.

At three times its capacity two of three calls are refused, and what that costs is taken from the one that is served: refused like any
other error they would cost a third of it. So the request's bytes are looked at as they arrived, before anything is made of them: whole,
plainly a call of the data plane, on a connection that expects one. Then a few bytes go back and nothing else happens; the connection
stays, for another one would cost more than the refusal. Whatever is less than plain takes the ordinary way, which may refuse it too.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from app.domain.ids import RANDOM_BYTES, uuid7
from app.exceptions import Overloaded
from app.middleware.rate_headers import Headers
from app.middleware.route import ErrorBody, Route
from app.services.overload import Overload
from app.telemetry import error_answered

STATE: Final = "early_refusals"
"""Under this name the server hands them to its connections."""
IS_REFUSED: Final = "is_refused"
"""In a request's state, where its connection has decided: the ordinary way does not decide again."""

_ID: Final = "\x00"
"""Stands where the request's id goes; no message holds it."""
MAX_LENGTH_DIGITS: Final = 10


@dataclass(frozen=True, slots=True)
class Refusal:
    answer: bytes
    closes: bool


class EarlyRefusals:
    def __init__(
        self,
        overload: Overload,
        *,
        routes: Mapping[str, Route],
        prefixes: tuple[Route, ...],
        is_leaving: Callable[[], bool],
    ) -> None:
        self._overload = overload
        self._is_leaving = is_leaving
        self._bodies = dict(_by_path(routes))
        self._first = next(iter(self._bodies.values()))
        self._prefixes = tuple(
            (version + route.prefix.encode(), _parts(route.error_body))
            for route in prefixes
            for version in (b"", b"/v1")
            if "POST" in route.handlers
        )

    @property
    def is_refusing(self) -> bool:
        return self._overload.is_refusing and not self._is_leaving()

    def is_call(self, data: bytes) -> bool:
        """Whether these bytes begin a call that may be refused."""
        return self._body_for(data) is not None

    def refuses(self) -> bool:
        return self._overload.refuses()

    def of(self, data: bytes, server_headers: Headers) -> Refusal | None:
        """The refusal of this request, if it is a whole one and nothing else; None where it must be read to be answered."""
        body, closes = self._body_for(data), _closes_after(data)
        if body is None or closes is None:
            return None
        return Refusal(self._answer(body, server_headers, closes=closes), closes)

    def room_beside(self, connections: int) -> int:
        """For how many more there is room; below zero: these are too many."""
        return self._overload.max_connections - connections

    def at_the_door(self, server_headers: Headers) -> bytes:
        """For a connection that there is no room for."""
        return self._answer(self._first, server_headers, closes=True)

    def _answer(self, body: list[bytes], server_headers: Headers, *, closes: bool) -> bytes:
        request_id = uuid7(time.time_ns() // 1_000_000, os.urandom(RANDOM_BYTES)).encode()
        error = Overloaded(retry_after_s=self._overload.retry_after_s())
        error_answered(error)
        ms = math.ceil((error.retry_after_s or 0) * 1000)
        own = b"".join([b"%b: %b\r\n" % header for header in server_headers])
        content = request_id.join(body)
        return (
            b"HTTP/1.1 503 Service Unavailable\r\n%bx-request-id: %b\r\nrequest-id: %b\r\ncontent-type: application/json\r\n"
            b"retry-after: %d\r\nretry-after-ms: %d\r\n%bcontent-length: %d\r\n\r\n%b"
            % (
                *(own, request_id, request_id, -(-ms // 1000), ms),
                *(b"connection: close\r\n" if closes else b"", len(content), content),
            )
        )

    def _body_for(self, data: bytes) -> list[bytes] | None:
        """What its route says when it refuses, in parts between which the request's id goes."""
        if not data.startswith(b"POST /"):
            return None
        path = data[5 : data.find(b" ", 5)].partition(b"?")[0]
        body = self._bodies.get(path)
        if body is None:
            for prefix, of_prefix in self._prefixes:
                if path.startswith(prefix):
                    return of_prefix
        return body


def _by_path(routes: Mapping[str, Route]) -> Iterator[tuple[bytes, list[bytes]]]:
    for path, route in routes.items():
        if "POST" in route.handlers:
            body = _parts(route.error_body)
            yield path.encode(), body
            yield b"/v1" + path.encode(), body


def _parts(error_body: ErrorBody) -> list[bytes]:
    return error_body(Overloaded(), _ID).split(b"\\u0000")


def _closes_after(data: bytes) -> bool | None:
    """Whether the client wants its connection closed; None unless this is exactly one whole request that says its length plainly."""
    line_end, head_end = data.find(b"\r\n"), data.find(b"\r\n\r\n")
    if head_end < 0 or not data.endswith(b" HTTP/1.1", 0, line_end):
        return None
    head = data[line_end : head_end + 2].lower()
    if b"\r\ntransfer-encoding" in head or b"\r\nexpect" in head or b"\r\nupgrade" in head:
        return None
    at = head.find(b"\r\ncontent-length:")
    if at < 0 or head.find(b"\r\ncontent-length", at + 1) >= 0:
        return None
    length = head[at + 17 : head.find(b"\r\n", at + 2)].strip(b" \t")
    if not length.isdigit() or len(length) > MAX_LENGTH_DIGITS or head_end + 4 + int(length) != len(data):
        return None
    at = head.find(b"\r\nconnection:")
    if at < 0:
        return False
    wish = head[at + 13 : head.find(b"\r\n", at + 2)].strip(b" \t")
    return {b"close": True, b"keep-alive": False}.get(wish)
