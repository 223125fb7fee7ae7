"""Calls refused before they are read, while there is more to do than this process can.

At three times its capacity two of three calls are refused, and what that costs is taken from the one that is served: refused like any
other error they would cost a third of it. So the request's bytes are looked at as they arrived, before anything is made of them: whole,
plainly a call of the data plane, on a connection that expects one. Then a few bytes go back and nothing else happens; the connection
stays, for another one would cost more than the refusal. Whatever is less than plain takes the ordinary way, which may refuse it too.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

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
IDS_AT_ONCE: Final = 256
"""For so many the system is asked for random bytes at once: asking costs more than all else that an id needs."""

_FRAMING: Final = re.compile(
    rb"\r\n(transfer-encoding|expect|upgrade|content-length|connection)[ \t]*:([^\r\n]*)", re.IGNORECASE
)
"""The headers of a request that say where it ends, or that more is expected of its answer than bytes."""
_OVERLOADED: Final = Overloaded()
"""To be counted; what it says of itself does not change."""


class Refusal(NamedTuple):
    answer: bytes
    closes: bool


Parts = list[bytes]
"""What a route says when it refuses, in parts between which the request's id goes."""


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
        self._bodies: dict[bytes, Parts] = dict(_by_path(routes))
        self._first = next(iter(self._bodies.values()))
        self._prefixes = tuple(
            (version + route.prefix.encode(), _parts(route.error_body))
            for route in prefixes
            for version in (b"", b"/v1")
            if "POST" in route.handlers
        )
        self._server_headers: Headers = []
        self._head = b""
        """Those of the server, as they are written."""
        self._random = b""
        self._drawn = 0

    @property
    def is_refusing(self) -> bool:
        return self._overload.is_refusing and not self._is_leaving()

    def call_in(self, data: bytes) -> Parts | None:
        """What refuses the call that these bytes begin; None where they begin none that may be refused."""
        if not data.startswith(b"POST /"):
            return None
        path = data[5 : data.find(b" ", 5)].partition(b"?")[0]
        body = self._bodies.get(path)
        if body is None:
            for prefix, of_prefix in self._prefixes:
                if path.startswith(prefix):
                    return of_prefix
        return body

    def refuses(self) -> bool:
        return self._overload.refuses()

    def of(self, data: bytes, body: Parts, server_headers: Headers) -> Refusal | None:
        """The refusal of this request, if it is a whole one and nothing else; None where it must be read to be answered."""
        closes = _closes_after(data)
        return None if closes is None else Refusal(self._answer(body, server_headers, closes=closes), closes)

    def room_beside(self, connections: int) -> int:
        """For how many more there is room; below zero: these are too many."""
        return self._overload.max_connections - connections

    def at_the_door(self, server_headers: Headers) -> bytes:
        """For a connection that there is no room for."""
        return self._answer(self._first, server_headers, closes=True)

    def _answer(self, body: Parts, server_headers: Headers, *, closes: bool) -> bytes:
        if server_headers is not self._server_headers:  # the server makes others every second, for the date in them
            self._server_headers = server_headers
            self._head = b"".join([b"%b: %b\r\n" % header for header in server_headers])
        error_answered(_OVERLOADED)
        request_id = self._request_id()
        ms = math.ceil(self._overload.retry_after_s() * 1000)
        content = request_id.join(body)
        return (
            b"HTTP/1.1 503 Service Unavailable\r\n%bx-request-id: %b\r\nrequest-id: %b\r\ncontent-type: application/json\r\n"
            b"retry-after: %d\r\nretry-after-ms: %d\r\n%bcontent-length: %d\r\n\r\n%b"
            % (
                *(self._head, request_id, request_id, -(-ms // 1000), ms),
                *(b"connection: close\r\n" if closes else b"", len(content), content),
            )
        )

    def _request_id(self) -> bytes:
        if self._drawn == len(self._random):
            self._random, self._drawn = os.urandom(RANDOM_BYTES * IDS_AT_ONCE), 0
        begin, self._drawn = self._drawn, self._drawn + RANDOM_BYTES
        return uuid7(time.time_ns() // 1_000_000, self._random[begin : self._drawn]).encode()


def _by_path(routes: Mapping[str, Route]) -> Iterator[tuple[bytes, Parts]]:
    for path, route in routes.items():
        if "POST" in route.handlers:
            body = _parts(route.error_body)
            yield path.encode(), body
            yield b"/v1" + path.encode(), body


def _parts(error_body: ErrorBody) -> Parts:
    return error_body(Overloaded(), _ID).split(b"\\u0000")


def _closes_after(data: bytes) -> bool | None:
    """Whether the client wants its connection closed; None unless this is exactly one whole request that says its length plainly."""
    line_end, head_end = data.find(b"\r\n"), data.find(b"\r\n\r\n")
    if head_end < 0 or not data.endswith(b" HTTP/1.1", 0, line_end):
        return None
    length, closes = -1, False
    for name, value in _FRAMING.findall(data, line_end, head_end):
        said = value.strip(b" \t")
        match name.lower():
            case b"content-length" if length < 0 and said.isdigit() and len(said) <= MAX_LENGTH_DIGITS:
                length = int(said)
            case b"connection" if (wish := said.lower()) in (b"close", b"keep-alive"):
                closes = closes or wish == b"close"
            case _:
                return None
    return closes if length >= 0 and head_end + 4 + length == len(data) else None
