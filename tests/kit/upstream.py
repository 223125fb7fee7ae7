"""A scripted upstream: a small HTTP/1.1 server that answers as a provider would, or breaks exactly as told.

In a test: `async with ScriptedUpstream() as up: …`, then `up.script(...)`, `up.base_url`, `up.invoice()`.
As a process: `python -m tests.kit.upstream --port 0` prints one JSON line with its port; see `UpstreamProcess`.

How a request is answered:
1. `_Connection` collects bytes until a request is whole (content-length or chunked), then opens its record.
2. The scenario is picked: the queue first (one per call, GETs do not consume it), then `by_model` (a model name, or a
   path beginning with `/`), then the default.
3. An answer without pauses or faults is one write, from bytes that were made once per scenario and shape of request.
   All others are a task (`Performance`), which the end of the connection cancels.
4. The record is what the invoice shows: it is written while the call goes on, so a snapshot is true at any moment.

The server is written by hand on `asyncio.Protocol`: the faults are below HTTP (resets, half events, lying lengths).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import re
import socket
import ssl
import struct
import sys
import termios
import time
import traceback
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Final, Literal, cast

import msgspec

from tests.kit import wire
from tests.kit.invoice import Invoice, Outcome, Usage
from tests.kit.scenario import Scenario
from tests.kit.upstream_answers import Ending, Performance, streams
from tests.kit.upstream_calls import KEY_HEADERS, REASONS, Blob, Plan, Record, Request, read_shape
from tests.kit.wire import Protocol, Shape

OnConnect = Literal["serve", "close", "reset", "ignore"]
"""`ignore` accepts and never reads or writes: what a TLS client sees as a hanging handshake."""

BODY_CAP_BYTES: Final = 64 * 1024
"""Of each request body, kept in the invoice."""
KEPT_BODIES_BYTES: Final = 64 * 1024 * 1024
"""All kept bodies together; later ones are not kept, so that a long soak does not fill memory."""
LINE_CAP: Final = 200_000
"""A line takes about 1 KB. Later requests are counted and summed, but have no line."""
PIPELINED_BYTES_CAP: Final = 1024 * 1024
"""What may arrive while an answer is under way before we stop reading."""
WRITE_HIGH_WATER_BYTES: Final = 64 * 1024
ACKNOWLEDGE_S: Final = 10.0
"""How long a reset waits for a peer that does not read: longer than the machine stalls."""

_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)")


# ------------------------------------------------------------------ connections


class _Connection(asyncio.Protocol):
    """Collects requests, one answer at a time, in order."""

    def __init__(self, server: ScriptedUpstream) -> None:
        self.server = server
        self.number = 0
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._needed_bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._record: Record | None = None
        self._writable: asyncio.Event | None = None
        self._is_ending = False

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the methods and not the class.
        self._transport = transport = cast("asyncio.Transport", transport)
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATER_BYTES)
        self.number = self.server.connection_opened(self)
        match self.server.on_connect:
            case "serve":
                pass
            case "close":
                transport.close()
            case "reset":
                self._reset()
            case "ignore":
                transport.pause_reading()

    def connection_lost(self, _: Exception | None) -> None:
        record = self._record
        if record is not None and record.outcome == "in_flight" and not self._is_ending:
            record.hung_up_at = time.time()
            self.server.close_record(record, "client_hung_up")
        self._record = None
        if self._task is not None:
            self._task.cancel()
        if self._writable is not None:
            self._writable.set()
        self.server.connection_closed(self)

    def pause_writing(self) -> None:
        self._writable = asyncio.Event()

    def resume_writing(self) -> None:
        if self._writable is not None:
            self._writable.set()
            self._writable = None

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._task is None:
            try:
                self._serve()
            except Exception as fault:  # noqa: BLE001 - asyncio would log it and go on; the test must fail
                self.server.failed(fault)
        elif len(self._buffer) > PIPELINED_BYTES_CAP and self._transport is not None:
            self._transport.pause_reading()

    # --- requests

    def _serve(self) -> None:
        """Answers all whole requests in the buffer, until one of them needs a task."""
        while self._task is None and len(self._buffer) > self._needed_bytes:
            try:
                request = self._take_request()
            except ValueError as fault:
                self._write(_plain_answer(400, str(fault)))
                self.close()
                return
            if request is None:
                return
            self._needed_bytes = 0
            self._dispatch(request)

    def _take_request(self) -> Request | None:
        """The next whole request, or `None`; sets how many bytes are needed before it is worth looking again.

        Raises:
            ValueError: the bytes are not HTTP/1.1.
        """
        buffer = self._buffer
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            return None
        raw_head = bytes(buffer[:end])
        lowered = raw_head.lower()
        start = end + 4
        if b"\r\ntransfer-encoding:" in lowered:
            taken = _take_chunked(buffer, start)
            if taken is None:
                # Doubling keeps the repeated scans linear in all.
                self._needed_bytes = len(buffer) + len(buffer) // 2 if len(buffer) > 1 << 20 else 0
                self._continue_if_expected(lowered)
                return None
            body, stop = taken
        else:
            found = _CONTENT_LENGTH.search(lowered)
            stop = start + (int(found.group(1)) if found else 0)
            if len(buffer) < stop:
                self._needed_bytes = stop - 1
                self._continue_if_expected(lowered)
                return None
            body = bytes(buffer[start:stop])
        del buffer[:stop]
        return _parse_request_line(raw_head, lowered, body)

    def _continue_if_expected(self, lowered_head: bytes) -> None:
        if b"\r\nexpect: 100-continue" in lowered_head and self._needed_bytes:
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _dispatch(self, request: Request) -> None:
        if request.path.startswith("/_control/"):
            self._write(self.server.control(request))
            self._keep_or_close(request)
            return
        server = self.server
        record = server.open_record(request, self.number)
        protocol = wire.protocol_of(request.path)
        if protocol is None:
            self._refuse(record, 404, "not_found", f"no such path: {request.path}")
            return
        if server.required_keys and not server.is_authorized(request):
            self._refuse(record, 401, "unauthorized", "Incorrect API key provided")
            return
        try:
            plan, shape = server.pick(request, protocol)
        except (msgspec.DecodeError, UnicodeDecodeError) as fault:
            self._refuse(record, 400, "bad_request", f"the body cannot be read: {fault}")
            return
        server.name_record(record, shape)
        self._record = record
        if plan.is_immediate and not streams(shape, plan.scenario):
            self._answer_at_once(record, plan.blob(shape))
        else:
            self._task = server.spawn(self._perform(record, plan, shape))

    def _answer_at_once(self, record: Record, blob: Blob) -> None:
        rest = b"\r\n\r\n" if record.request.method == "HEAD" else blob.rest
        answer = b"%b%d%b" % (blob.head, record.number, rest)
        record.status = blob.status
        record.first_byte_at = record.arrived_at
        record.bytes_written = len(answer)
        record.usage_reported, record.usage_reported_raw, record.usage_due = blob.usage, blob.usage_raw, blob.usage_due
        self._write(answer)
        self._note_unsent(record)
        self.server.close_record(record, "ok" if 200 <= blob.status < 300 else "error")
        self._record = None
        self._keep_or_close(record.request)

    async def _perform(self, record: Record, plan: Plan, shape: Shape) -> None:
        outcome, is_kept = await Performance(self, record, plan, shape).play()
        self.server.close_record(record, outcome)
        self._task = self._record = None
        if not is_kept:
            return
        self._keep_or_close(record.request)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
            self._serve()

    def _refuse(self, record: Record, status: int, outcome: Outcome, message: str) -> None:
        record.status = status
        answer = _plain_answer(status, message)
        record.bytes_written = len(answer)
        self._write(answer)
        self.server.close_record(record, outcome)
        self._keep_or_close(record.request)

    def _keep_or_close(self, request: Request) -> None:
        if not request.is_keep_alive:
            self.close()

    # --- bytes

    async def send(self, data: bytes) -> None:
        """Hands data to the kernel, waiting while the peer does not read."""
        self._write(data)
        if self._writable is not None:
            await self._writable.wait()
        if self._record is not None:
            self._note_unsent(self._record)

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _note_unsent(self, record: Record) -> None:
        if self._transport is not None:
            record.bytes_unsent = self._transport.get_write_buffer_size()

    async def end(self, how: Ending) -> None:
        """Ends the connection as told; a reset waits until the peer's kernel has all that was sent."""
        if how == "keep":
            return
        self._is_ending = True
        if how == "reset":
            await self._until_acknowledged()
            self._reset()
        else:
            self.close()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _reset(self) -> None:
        """RST instead of FIN: linger time 0."""
        assert self._transport is not None
        sock = self._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    async def _until_acknowledged(self) -> None:
        assert self._transport is not None
        fileno = self._transport.get_extra_info("socket").fileno()
        deadline = time.monotonic() + ACKNOWLEDGE_S
        while time.monotonic() < deadline:
            if self._transport.get_write_buffer_size() == 0 and unacknowledged_bytes(fileno) == 0:
                return
            await asyncio.sleep(0.001)


def unacknowledged_bytes(fileno: int) -> int:
    """Bytes of a TCP socket that the peer's kernel has not acknowledged yet."""
    answer: bytes = fcntl.ioctl(fileno, termios.TIOCOUTQ, b"\0\0\0\0")
    return int(struct.unpack("i", answer)[0])


def _parse_request_line(raw_head: bytes, lowered: bytes, body: bytes) -> Request:
    line = raw_head.partition(b"\r\n")[0].decode("latin-1").split(" ")
    if len(line) != 3 or not line[2].startswith("HTTP/1."):
        raise ValueError("not an HTTP/1.1 request line")
    path, _, query = line[1].partition("?")
    is_keep_alive = line[2] != "HTTP/1.0" and b"\r\nconnection: close" not in lowered
    return Request(line[0], path, query, raw_head, body, is_keep_alive)


def _take_chunked(buffer: bytearray, start: int) -> tuple[bytes, int] | None:
    """A chunked body that begins at `start`, and where it ends; `None` while it is incomplete."""
    parts: list[bytes] = []
    while True:
        line_end = buffer.find(b"\r\n", start)
        if line_end < 0:
            return None
        size = int(bytes(buffer[start:line_end]).partition(b";")[0], 16)
        start = line_end + 2
        if size == 0:
            # Trailers, if any, end with an empty line.
            end = line_end if buffer[start : start + 2] == b"\r\n" else buffer.find(b"\r\n\r\n", start)
            if end < 0 or len(buffer) < start + 2:
                return None
            return b"".join(parts), end + 4
        if len(buffer) < start + size + 2:
            return None
        parts.append(bytes(buffer[start : start + size]))
        start += size + 2


def _plain_answer(status: int, message: str) -> bytes:
    body = wire.compact({"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}})
    return _json_answer(status, body.encode())


def _json_answer(status: int, body: bytes) -> bytes:
    start_line = b"HTTP/1.1 %d %b\r\n" % (status, REASONS.get(status, b"Status"))
    return start_line + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


# ------------------------------------------------------------------ the server


class ScriptedUpstream:
    """The server, its script and its invoice. An async context manager; stopping it cancels what is still running."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        body_cap_bytes: int = BODY_CAP_BYTES,
    ) -> None:
        self._host = host
        self.port = port
        self._tls = tls
        self._body_cap_bytes = body_cap_bytes
        self._listener: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._watchers: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self.on_connect: OnConnect = "serve"
        self.required_keys: frozenset[str] = frozenset()
        self._connections_accepted = 0
        self._faults: list[Exception] = []
        self._default = _HEALTHY
        self._by_model: dict[str, Plan] = {}
        self._by_path: dict[str, Plan] = {}
        self._queue: deque[Plan] = deque()
        self._records: list[Record] = []
        self._dropped_lines = 0
        self._kept_bytes = 0
        self._unlisted: dict[str, Usage] = {}
        self._requests_by_model: Counter[str] = Counter()

    async def __aenter__(self) -> ScriptedUpstream:
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            lambda: _Connection(self), self._host, self.port, ssl=self._tls, backlog=4096
        )
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._listener is not None
        self._listener.close()
        for record in self._records:
            if record.outcome == "in_flight":
                self.close_record(record, "stopped")
        for connection in list(self._connections):
            connection.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # One turn for connection_lost, so that no socket outlives the context.
        await asyncio.sleep(0)
        if self._faults and error is None:
            raise ExceptionGroup("the upstream itself failed", self._faults)

    # --- where it is

    @property
    def origin(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self._host}:{self.port}"

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes as its base URL; Anthropic clients take `origin`."""
        return f"{self.origin}/v1"

    # --- script

    def script(
        self,
        default: Scenario | None = None,
        *,
        by_model: Mapping[str, Scenario] | None = None,
        queue: Sequence[Scenario] | None = None,
        required_keys: Sequence[str] | None = None,
        on_connect: OnConnect | None = None,
    ) -> None:
        """Sets what is named and leaves the rest: `by_model` replaces the whole map, `queue` is appended.

        A key of `by_model` that begins with `/` is a path (its beginning or its end): it also reaches GET /models.
        """
        if default is not None:
            self._default = Plan(default)
        if by_model is not None:
            self._by_model = {name: Plan(scenario) for name, scenario in by_model.items()}
            self._by_path = {name: plan for name, plan in self._by_model.items() if name.startswith("/")}
        if queue is not None:
            self._queue.extend(Plan(scenario) for scenario in queue)
        if required_keys is not None:
            self.required_keys = frozenset(required_keys)
        if on_connect is not None:
            self.on_connect = on_connect

    def reset(self) -> None:
        """Forgets the script and the invoice. Connections and calls in flight go on; their lines are gone."""
        self._default = _HEALTHY
        self._by_model = {}
        self._by_path = {}
        self._queue = deque()
        self.on_connect = "serve"
        self.required_keys = frozenset()
        self._records = []
        self._dropped_lines = 0
        self._kept_bytes = 0
        self._unlisted = {}
        self._requests_by_model = Counter()

    def drop_connections(self) -> None:
        """Closes every connection at once, as a restarting provider does."""
        for connection in list(self._connections):
            connection.abort()

    # --- invoice

    def invoice(self) -> Invoice:
        return Invoice(
            lines=tuple(record.line() for record in self._records),
            dropped_lines=self._dropped_lines,
            connections_accepted=self._connections_accepted,
            connections_open=len(self._connections),
            requests_by_model=dict(self._requests_by_model),
            unlisted_usage=dict(self._unlisted),
        )

    def totals(self) -> Invoice:
        """The invoice without its lines: all sums, and cheap to hand over after a load."""
        invoice = self.invoice()
        return replace(
            invoice,
            lines=(),
            dropped_lines=len(self._records) + self._dropped_lines,
            unlisted_usage=invoice.usage_by_model(),
        )

    async def requests_seen(self, count: int, *, timeout_s: float = 10) -> Invoice:
        """Waits until that many requests have arrived. Raises `TimeoutError`."""
        await self._until(lambda: len(self._records) + self._dropped_lines >= count, timeout_s)
        return self.invoice()

    async def settled(self, *, timeout_s: float = 10) -> Invoice:
        """Waits until no request is in flight. Raises `TimeoutError`."""
        await self._until(lambda: all(record.outcome != "in_flight" for record in self._records), timeout_s)
        return self.invoice()

    async def chunks_sent(self, count: int, *, timeout_s: float = 10) -> Invoice:
        """Waits until the last request has got that many content chunks. Raises `TimeoutError`.

        Chunks are counted without waking watchers, for speed, so this looks every few milliseconds.
        """
        async with asyncio.timeout(timeout_s):
            while not self._records or self._records[-1].chunks_delivered < count:
                await asyncio.sleep(0.002)
        return self.invoice()

    async def _until(self, holds: Callable[[], bool], timeout_s: float) -> None:
        if holds():
            return
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watchers.append((holds, reached))
        try:
            await asyncio.wait_for(reached, timeout_s)
        finally:
            self._watchers = [watcher for watcher in self._watchers if watcher[1] is not reached]

    def _changed(self) -> None:
        for holds, reached in self._watchers:
            if not reached.done() and holds():
                reached.set_result(None)

    # --- for connections

    def connection_opened(self, connection: _Connection) -> int:
        self._connections.add(connection)
        self._connections_accepted += 1
        return self._connections_accepted

    def connection_closed(self, connection: _Connection) -> None:
        self._connections.discard(connection)

    def spawn(self, performance: Awaitable[None]) -> asyncio.Task[None]:
        async def run() -> None:
            # The end of a connection cancels its performance: that is no failure of the server.
            try:
                await performance
            except asyncio.CancelledError:
                pass
            except Exception as fault:  # noqa: BLE001 - nobody awaits a performance; leaving the context raises it
                self.failed(fault)

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def failed(self, fault: Exception) -> None:
        """A defect of the upstream itself: no caller may be left waiting, and leaving the context will raise it."""
        self._faults.append(fault)
        traceback.print_exception(fault)
        self.drop_connections()

    def is_authorized(self, request: Request) -> bool:
        found = KEY_HEADERS.findall(b"\r\n" + request.raw_head)
        return any(key.decode("latin-1").strip() in self.required_keys for key in found)

    def pick(self, request: Request, protocol: Protocol) -> tuple[Plan, Shape]:
        """The plan for a request and the shape of its answer."""
        shape = read_shape(request, protocol, _NEUTRAL)
        plan = self._plan_for(request, shape.model)
        if plan.scenario.obey_max_tokens:
            shape = read_shape(request, protocol, plan.scenario)
        return plan, shape

    def _plan_for(self, request: Request, model: str) -> Plan:
        if self._queue and request.method == "POST":
            return self._queue.popleft()
        for part, plan in self._by_path.items():
            if request.path.startswith(part) or request.path.endswith(part):
                return plan
        is_probe = request.method != "POST"
        # A broken default breaks calls; probes of the models list break only when a path says so.
        return _HEALTHY if is_probe else self._by_model.get(model, self._default)

    def open_record(self, request: Request, connection: int) -> Record:
        body = request.body
        number = len(self._records) + self._dropped_lines + 1
        kept = body if len(body) <= self._body_cap_bytes else body[: self._body_cap_bytes]
        self._kept_bytes += len(kept)
        if self._kept_bytes > KEPT_BODIES_BYTES:
            kept = b""
        record = Record(number, connection, time.time(), request, kept, len(body))
        if len(self._records) < LINE_CAP:
            self._records.append(record)
        else:
            self._dropped_lines += 1
            record.has_line = False
        return record

    def name_record(self, record: Record, shape: Shape) -> None:
        record.model = shape.model
        record.is_stream = shape.is_stream
        self._requests_by_model[shape.model] += 1
        if self._watchers:
            self._changed()

    def close_record(self, record: Record, outcome: Outcome) -> None:
        """The first word stands: what the connection's end says later is not the outcome."""
        if record.outcome == "in_flight":
            record.outcome = outcome
            record.finished_at = time.time()
            # The invoice keeps the capped body only.
            record.request.body = b""
            if not record.has_line:
                unlisted = self._unlisted.get(record.model, Usage())
                self._unlisted[record.model] = unlisted + record.usage_due
        if self._watchers:
            self._changed()

    # --- control over HTTP

    def control(self, request: Request) -> bytes:
        """`POST script|reset|drop_connections`, `GET invoice|totals|counts` under /_control/."""
        match request.method, request.path.removeprefix("/_control/"):
            case "POST", "script":
                try:
                    self._script_from_json(msgspec.json.decode(request.body))
                except (ValueError, TypeError) as fault:
                    return _plain_answer(400, str(fault))
                return _json_answer(200, b"{}")
            case "POST", "reset":
                self.reset()
                return _json_answer(200, b"{}")
            case "POST", "drop_connections":
                self.drop_connections()
                return _json_answer(200, b"{}")
            case "GET", "invoice":
                return _json_answer(200, msgspec.json.encode(self.invoice()))
            case "GET", "totals":
                return _json_answer(200, msgspec.json.encode(self.totals()))
            case "GET", "counts":
                return _json_answer(200, msgspec.json.encode(self._counts()))
            case _:
                return _plain_answer(404, "no such control")

    def _counts(self) -> dict[str, int]:
        """Cheap, for polling while a load runs."""
        return {
            "requests": len(self._records) + self._dropped_lines,
            "in_flight": sum(record.outcome == "in_flight" for record in self._records),
            "connections_open": len(self._connections),
        }

    def _script_from_json(self, encoded: object) -> None:
        script = msgspec.convert(encoded, _ScriptMessage)
        self.script(
            None if script.default is None else Scenario.from_json(script.default),
            by_model=None
            if script.by_model is None
            else {name: Scenario.from_json(scenario) for name, scenario in script.by_model.items()},
            queue=None if script.queue is None else [Scenario.from_json(scenario) for scenario in script.queue],
            required_keys=script.required_keys,
            on_connect=script.on_connect,
        )


_NEUTRAL: Final = Scenario()
_HEALTHY: Final = Plan(_NEUTRAL)


class _ScriptMessage(msgspec.Struct, forbid_unknown_fields=True):
    default: dict[str, object] | None = None
    by_model: dict[str, dict[str, object]] | None = None
    queue: list[dict[str, object]] | None = None
    required_keys: list[str] | None = None
    on_connect: OnConnect | None = None


# ------------------------------------------------------------------ as a process


async def _serve_until_stopped(host: str, port: int, body_cap_bytes: int) -> None:
    async with ScriptedUpstream(host=host, port=port, body_cap_bytes=body_cap_bytes) as upstream:
        sys.stdout.write(wire.compact({"port": upstream.port}) + "\n")
        sys.stdout.flush()
        await asyncio.get_running_loop().create_future()


def main() -> None:
    """`python -m tests.kit.upstream`: serves until it is terminated."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--body-cap-bytes", type=int, default=BODY_CAP_BYTES)
    options = parser.parse_args()
    served = _serve_until_stopped(options.host, options.port, options.body_cap_bytes)
    with contextlib.suppress(KeyboardInterrupt):
        try:
            import uvloop
        except ImportError:  # slower, otherwise the same
            asyncio.run(served)
        else:
            uvloop.run(served)


if __name__ == "__main__":
    main()
