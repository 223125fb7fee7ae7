"""What the scripted upstream knows of a call: the request as read, its record, and the bytes planned for it."""

from __future__ import annotations

import functools
import re
import zlib
from dataclasses import dataclass
from typing import Final

import msgspec

from tests.kit import wire, wire_families
from tests.kit.invoice import InvoiceLine, Outcome, Usage
from tests.kit.scenario import Scenario
from tests.kit.wire import Protocol, Shape

STREAMED: Final = ("chat", "completions", "messages", "responses", "cohere", "cohere_v1")
"""Protocols whose requests say in the body that they want a stream."""
SHAPES_PER_PLAN_CAP: Final = 1_024
REASONS: Final = {200: b"OK", 400: b"Bad Request", 401: b"Unauthorized", 404: b"Not Found", 429: b"Too Many Requests"}
_MULTIPART_MODEL = re.compile(rb'name="model"\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]*)')
KEY_HEADERS: Final = re.compile(
    rb"\r\n(?:authorization:[ \t]*bearer |x-api-key:|api-key:)[ \t]*([^\r\n]*)", re.IGNORECASE
)


# ------------------------------------------------------------------ requests


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Envelope(msgspec.Struct):
    """What the answer depends on. Types are strict: a gateway that splices bodies wrongly shall be told with a 400."""

    model: str = ""
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    encoding_format: str | None = None
    input: msgspec.Raw = msgspec.Raw()


_decode_envelope = msgspec.json.Decoder(_Envelope).decode


@dataclass(slots=True)
class Request:
    method: str
    path: str
    query: str
    raw_head: bytes
    body: bytes
    is_keep_alive: bool


@dataclass(slots=True)
class Record:
    """A line of the invoice being written."""

    number: int
    connection: int
    arrived_at: float
    request: Request
    kept_body: bytes
    body_bytes: int
    model: str = ""
    is_stream: bool = False
    status: int = 0
    outcome: Outcome = "in_flight"
    usage_reported: Usage | None = None
    usage_reported_raw: str = ""
    usage_due: Usage = Usage()
    chunks_delivered: int = 0
    bytes_written: int = 0
    bytes_unsent: int = 0
    first_byte_at: float | None = None
    finished_at: float | None = None
    hung_up_at: float | None = None
    has_line: bool = True

    def line(self) -> InvoiceLine:
        request = self.request
        return InvoiceLine(
            number=self.number,
            connection=self.connection,
            arrived_at=self.arrived_at,
            method=request.method,
            path=request.path,
            query=request.query,
            model=self.model,
            is_stream=self.is_stream,
            headers=_parse_headers(request.raw_head),
            body=self.kept_body,
            body_bytes=self.body_bytes,
            status=self.status,
            outcome=self.outcome,
            usage_reported=self.usage_reported,
            usage_reported_raw=self.usage_reported_raw,
            usage_due=self.usage_due,
            chunks_delivered=self.chunks_delivered,
            bytes_delivered=self.bytes_written - self.bytes_unsent,
            first_byte_at=self.first_byte_at,
            finished_at=self.finished_at,
            hung_up_at=self.hung_up_at,
        )


def _parse_headers(raw_head: bytes) -> tuple[tuple[str, str], ...]:
    pairs = (line.partition(b":") for line in raw_head.split(b"\r\n")[1:] if line)
    return tuple((name.decode("latin-1").lower(), value.strip().decode("latin-1")) for name, _, value in pairs)


def read_shape(request: Request, protocol: Protocol, scenario: Scenario) -> Shape:
    """Raises `msgspec.DecodeError` for a body that is not what the protocol wants."""
    if protocol == "models":
        _, _, model = request.path.partition("/models/")
        return Shape(protocol, model=model)
    if protocol == "transcription":
        found = _MULTIPART_MODEL.search(request.body)
        return Shape(protocol, model=found.group(1).decode("utf-8", "replace") if found else "")
    envelope = _decode_envelope(request.body)
    max_tokens: int | None = None
    if scenario.obey_max_tokens:
        asked = (envelope.max_completion_tokens, envelope.max_output_tokens, envelope.max_tokens)
        max_tokens = next((tokens for tokens in asked if tokens is not None), None)
    inputs = 1
    if bytes(envelope.input).lstrip().startswith(b"["):
        items: list[object] = msgspec.json.decode(envelope.input)
        # A list of integers is one tokenised input.
        inputs = 1 if items and isinstance(items[0], int) else len(items)
    return Shape(
        protocol,
        model=envelope.model or _deployment_of(request.path) or wire_families.model_of(request.path),
        is_stream=wire_families.is_stream_path(request.path) or (bool(envelope.stream) and protocol in STREAMED),
        wants_usage=bool(envelope.stream_options and envelope.stream_options.include_usage),
        n=max(1, envelope.n or 1),
        inputs=inputs,
        wants_base64=envelope.encoding_format == "base64",
        max_tokens=max_tokens,
    )


def _deployment_of(path: str) -> str:
    """The model in an Azure path; empty elsewhere."""
    _, found, rest = path.partition("/deployments/")
    return rest.partition("/")[0] if found else ""


# ------------------------------------------------------------------ plans


@dataclass(frozen=True, slots=True)
class Blob:
    """A complete unary answer: `head` + the serial number + `rest`."""

    head: bytes
    rest: bytes
    status: int
    usage: Usage | None
    usage_raw: str
    usage_due: Usage


class Plan:
    """A scenario with the bytes already made from it."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.is_immediate = scenario.is_immediate
        self._blobs: dict[Shape, Blob] = {}
        self._streams: dict[Shape, wire.Stream] = {}

    def blob(self, shape: Shape) -> Blob:
        found = self._blobs.get(shape)
        if found is None:
            _forget_when_full(self._blobs)
            found = self._blobs[shape] = _make_blob(shape, self.scenario)
        return found

    def stream(self, shape: Shape) -> wire.Stream:
        found = self._streams.get(shape)
        if found is None:
            _forget_when_full(self._streams)
            found = self._streams[shape] = wire.stream(shape, self.scenario)
        return found


def _forget_when_full(made: dict[Shape, Blob] | dict[Shape, wire.Stream]) -> None:
    # Names of models may be endless (a cardinality test): the cache is a convenience, not a memory.
    if len(made) >= SHAPES_PER_PLAN_CAP:
        made.clear()


def status_of(scenario: Scenario) -> int:
    if scenario.redirect_location is not None and scenario.status == 200:
        return 307
    return scenario.status


def response_head(scenario: Scenario, *, status: int, content_type: str, framing: bytes) -> bytes:
    """Up to and including the name of the request id header: the serial number, CRLF CRLF and the body follow."""
    lines = [
        b"HTTP/1.1 %d %b" % (status, REASONS.get(status, b"Status")),
        b"content-type: " + (scenario.content_type or content_type).encode("latin-1"),
    ]
    if framing:
        lines.append(framing)
    if scenario.retry_after is not None:
        lines.append(b"retry-after: " + scenario.retry_after.encode("latin-1"))
    if scenario.redirect_location is not None:
        lines.append(b"location: " + scenario.redirect_location.encode("latin-1"))
    lines += [f"{name}: {value}".encode("latin-1") for name, value in scenario.headers]
    return b"\r\n".join([*lines, b"x-request-id: req-stub-"])


def _make_blob(shape: Shape, scenario: Scenario) -> Blob:
    """An answer that does not depend on what the request carried; errors that echo are made per request instead."""
    status = status_of(scenario)
    usage: Usage | None = None
    usage_raw, due = "", Usage()
    content_type = "application/json"
    if scenario.raw_body is not None:
        body = scenario.raw_body.encode("utf-8", "surrogatepass")
    elif not 200 <= status < 300:
        body = error_body(shape.protocol, scenario, scenario.error_message)
    else:
        body, usage_raw = wire.unary_body(shape, scenario)
        due = wire.full_usage(shape, scenario)
        usage = due if usage_raw and wire.is_believable(scenario.usage) else None
        if shape.protocol == "speech":
            content_type = "audio/mpeg"
    length = b"content-length: %d" % len(body)
    head = response_head(scenario, status=status, content_type=content_type, framing=length)
    return Blob(head, b"\r\n\r\n" + body, status, usage, usage_raw, due)


def error_body(protocol: Protocol, scenario: Scenario, message: str) -> bytes:
    if scenario.error_body is not None:
        return scenario.error_body.encode("utf-8", "surrogatepass")
    return wire.compact(wire.error_json(protocol, scenario, message)).encode()


def error_message(scenario: Scenario, request: Request) -> str:
    """The scripted message, with what the scenario wants to leak of the request."""
    parts = [scenario.error_message]
    if scenario.echo_credentials:
        for found in KEY_HEADERS.findall(b"\r\n" + request.raw_head):
            key = found.decode("latin-1").strip()
            parts.append(f"Incorrect API key provided: {key}. GET https://internal.upstream.test/v1?key={key} failed:")
        parts.append('Traceback (most recent call last):\n  File "/srv/upstream/app.py", line 7, in handle')
    if scenario.echo_prompt:
        parts.append(request.body.decode("utf-8", "replace"))
    return " ".join(parts)


@functools.lru_cache(maxsize=8)
def gzip_bomb(decoded_bytes: int, opening: bytes) -> bytes:
    """Spaces, a thousand to one, after the opening."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [packer.compress(opening)]
    block = b" " * (1 << 20)
    for start in range(0, decoded_bytes, len(block)):
        parts.append(packer.compress(block[: decoded_bytes - start]))
    parts.append(packer.flush())
    return b"".join(parts)
