"""The native relay: an OpenAI-compatible upstream, bytes in, bytes out.

One attempt, in order:
1. The dialect makes the upstream's body; the headers are ours alone, nothing of the caller's goes along.
2. A status other than 2xx is a failure, told apart by `failures`. So is a 200 that is no answer: the dialect judges it.
3. A stream is read until its reader says that it has begun. Until then nothing is handed on, comments are no progress, and one
   deadline (`first_token_s`, from the moment the request went out) covers all of it; so any failure can still be cured elsewhere.
4. Then chunks are handed on as they come. What the reader learns goes into the meter, at the latest when the context is left,
   however it is left.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from time import monotonic
from types import TracebackType
from typing import Protocol, runtime_checkable

import msgspec

from app.dialects.base import BadAnswer, Dialect, StreamReader, UpstreamSaidError
from app.dialects.forwarded import Forwarded
from app.dialects.openai_errors import BOM
from app.dialects.openai_request import is_refusal_to_be_asked, without_asking
from app.domain.call import Call, Meter, Quality
from app.domain.catalog import Endpoint
from app.domain.pricing import Usage
from app.providers import failures
from app.providers.addresses import address_of
from app.providers.base import Answer
from app.providers.transport import Deadlines, Exchange, ExchangeFailed, Outgoing, Transport

MAX_LOGGED_ANSWER_BYTES = 1 << 20
_MAX_ERROR_BYTES = 64 << 10
"""Of an error's body; its message is cut far below that."""
ERROR_S = 5.0
"""How long an error's body may take: its status is known, and another endpoint may be there for the call."""
_MAX_HELD_BYTES = 256 << 10
"""What may come before a stream has begun: role-only events and the like. More of it is no answer."""
_BYTES_PER_TOKEN = 4
_GOODBYE_S = 1.0
"""How long a finished stream may take to close its body, which lets the connection be used again."""
_USAGE_S = 5.0
"""How long after the last finish reason the usage may take. It comes at once or never; the caller waits for the end meanwhile."""

_UNASKED_S = 3600.0
"""How long an endpoint that refused to be asked for the usage is not asked: servers learn it with their next version."""
_MAX_UNASKED = 4096
_DATA = b"data:"
"""What every event has in it, and no comment needs."""
_JSON = "application/json"
_SSE = "text/event-stream"
_BLANK = b" \t\r\n" + BOM
_JSON_BEGINS = (b"{", b"[")
_NEVER_A_STREAM = ("text/html", "application/xhtml+xml", "text/xml", "application/xml")
_VISIBLE_HEADERS = ("openai-processing-ms", "openai-version")
"""Of the upstream's headers those that a caller may see: they name nobody."""
_MAX_HEADER_CHARS = 64


@runtime_checkable
class MakesStreams(Protocol):
    """A dialect that can show a complete answer as the stream it would have been."""

    def as_stream(self, body: bytes) -> bytes: ...


@runtime_checkable
class KnowsItsPrompt(Protocol):
    """A reader whose upstream says at the beginning of a stream what the prompt was."""

    def usage_so_far(self) -> Usage | None: ...


class OpenAIRelay:
    """`Provider` for every upstream that speaks the caller's dialect itself."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._unasked: dict[tuple[str, str], float] = {}
        """Endpoints that refuse to be asked for a stream's usage, and until when they are not asked again."""

    def opened(
        self,
        call: Call,
        endpoint: Endpoint,
        dialect: Dialect,
        meter: Meter,
        *,
        max_tokens: int | None,
        deadline_s: float,
    ) -> RelayAttempt:
        address = address_of(endpoint, dialect.upstream_path)
        headers = address.credential(endpoint.credential)
        if isinstance(dialect, Forwarded):
            headers = {**dialect.headers_of(call), **headers}
        if meter.trace is not None:
            headers = {**headers, "traceparent": meter.trace.traceparent}
        outgoing = outgoing_to(address.url, headers, call, endpoint, dialect, max_tokens, deadline_s)
        plainer: Plainer | None = None
        if call.is_stream and (not call.wants_usage or "stream_options" not in call.fields):
            plainer = Plainer(self._transport, outgoing, call, self._unasked, (endpoint.id, address.url))
            if plainer.is_known:
                return RelayAttempt(plainer.opened(), call, dialect, meter, outgoing.deadlines)
        return RelayAttempt(self._transport.opened(outgoing), call, dialect, meter, outgoing.deadlines, plainer)

    async def close(self) -> None:
        """The transport is shared; who made it closes it."""


class Plainer:
    """The same request without asking for the usage: for servers that do not know `stream_options` and refuse whoever sends it.

    The caller has not sent it; without this such an endpoint could serve no stream at all.
    """

    __slots__ = ("_call", "_outgoing", "_place", "_transport", "_unasked")

    def __init__(
        self,
        transport: Transport,
        outgoing: Outgoing,
        call: Call,
        unasked: dict[tuple[str, str], float],
        place: tuple[str, str],
    ) -> None:
        self._transport = transport
        self._outgoing = outgoing
        self._call = call
        self._unasked = unasked
        self._place = place

    @property
    def is_known(self) -> bool:
        """Whether the endpoint was found to be one of these lately."""
        unasked = self._unasked
        return bool(unasked) and unasked.get(self._place, 0.0) > monotonic()

    def opened(self) -> Exchange:
        body = without_asking(self._outgoing.body, self._call)
        return self._transport.opened(msgspec.structs.replace(self._outgoing, body=body))

    def learn(self) -> None:
        if len(self._unasked) >= _MAX_UNASKED:
            self._unasked.clear()
        self._unasked[self._place] = monotonic() + _UNASKED_S


def outgoing_to(
    url: str,
    headers: Mapping[str, str],
    call: Call,
    endpoint: Endpoint,
    dialect: Dialect,
    max_tokens: int | None,
    deadline_s: float,
) -> Outgoing:
    """The request of one attempt: the dialect's body, the endpoint's deadlines, and no headers but ours."""
    timeouts = endpoint.timeouts
    return Outgoing(
        method="POST",
        url=url,
        deadlines=Deadlines(
            connect_s=timeouts.connect_s,
            first_byte_s=timeouts.first_byte_s(is_stream=call.is_stream),
            between_bytes_s=timeouts.between_tokens_s,
            total_at_s=min(deadline_s, monotonic() + timeouts.total_s),
        ),
        headers={"Content-Type": _JSON, "Accept": _SSE if call.is_stream else _JSON, **headers},
        body=dialect.upstream_body(call, upstream_model=endpoint.upstream_model, max_tokens=max_tokens),
    )


class RelayAttempt:
    """One attempt at one endpoint; see `app.providers.base.Provider.opened`."""

    def __init__(
        self,
        exchange: Exchange,
        call: Call,
        dialect: Dialect,
        meter: Meter,
        deadlines: Deadlines,
        plainer: Plainer | None = None,
    ) -> None:
        self._plainer = plainer
        """How to ask once more, should the upstream refuse what the gateway itself put into the request."""
        self._exchange = exchange
        self._call = call
        self._dialect = dialect
        self._meter = meter
        self._deadlines = deadlines
        self._reader: StreamReader | None = None

    async def __aenter__(self) -> Answer:
        try:
            await self._exchange.__aenter__()
        except ExchangeFailed as fault:
            raise failures.of_exchange(fault) from fault
        try:
            return await self._begun()
        except BaseException as fault:  # left again without having been entered: nobody else would close it
            await self._exchange.__aexit__(type(fault), fault, None)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._reader is not None:
                _note(self._reader, self._meter)
        finally:
            await self._exchange.__aexit__(kind, error, trace)

    async def _begun(self) -> Answer:
        """The answer, once it has begun; every way in which it has not is an AttemptFailed."""
        exchange = self._exchange
        try:
            if not 200 <= exchange.status < 300:  # some servers say 201 where they make something, if only an answer
                return await self._refused()
            if not self._call.is_stream:
                return self._whole(await exchange.read_all())
            if exchange.content_type in _NEVER_A_STREAM:
                raise BadAnswer("not_a_stream")
            return await self._streaming()
        except UpstreamSaidError as fault:
            raise failures.of_error_object(fault.problem, headers=exchange.headers) from fault
        except BadAnswer as fault:
            raise failures.of_bad_answer(fault, status=exchange.status) from fault
        except ExchangeFailed as fault:
            raise failures.of_exchange(fault, status=exchange.status) from fault

    async def _refused(self) -> Answer:
        """What a status other than 2xx means. Its body only adds words: a broken one changes nothing. Raises: AttemptFailed."""
        try:
            body = await self._exchange.read_all(_MAX_ERROR_BYTES, within_s=ERROR_S)
        except ExchangeFailed:
            body = b""
        plainer, self._plainer = self._plainer, None
        if plainer is not None and is_refusal_to_be_asked(self._exchange.status, body):
            return await self._asked_plainly(plainer)
        problem = self._dialect.read_problem(body)
        raise failures.of_status(self._exchange.status, problem, headers=self._exchange.headers)

    async def _asked_plainly(self, plainer: Plainer) -> Answer:
        """A request that was refused for what the gateway put into it costs nothing and is no failure of anybody's."""
        await self._exchange.__aexit__(None, None, None)
        self._exchange = plainer.opened()
        try:
            await self._exchange.__aenter__()
        except ExchangeFailed as fault:
            raise failures.of_exchange(fault) from fault
        if 200 <= self._exchange.status < 300:
            plainer.learn()
        return await self._begun()

    def _whole(self, body: bytes) -> Answer:
        facts = self._dialect.read_answer(body)
        meter = self._meter
        meter.first_token_ms = since_ms(meter.started_s)
        meter.usage = facts.usage
        meter.quality = Quality.EXACT if facts.usage is not None else Quality.ESTIMATED
        meter.finish_reason = facts.finish_reason
        meter.delivered_tokens = -(-facts.output_bytes // _BYTES_PER_TOKEN)
        body = facts.mended or body
        content_type = self._type_of_answer()
        if content_type == _JSON or content_type.startswith("text/"):
            keep_answer(meter, body)  # sound is no text, and nobody could read it in a log
        return Answer(content_type=content_type, body=body, headers=self._visible_headers())

    def _type_of_answer(self) -> str:
        """JSON, unless the dialect has answers of the type that the upstream names."""
        if not isinstance(self._dialect, Forwarded):
            return _JSON
        theirs = self._exchange.content_type
        is_known = theirs.startswith(self._dialect.answer_types) if self._dialect.answer_types else False
        return (
            theirs
            if is_known and theirs.isascii() and theirs.isprintable() and len(theirs) <= _MAX_HEADER_CHARS
            else _JSON
        )

    def _converted(self, body: bytes) -> Answer:
        """A complete answer where a stream was asked for: shown as a stream, judged like one."""
        dialect = self._dialect
        if not isinstance(dialect, MakesStreams):
            raise BadAnswer("not_a_stream")
        reader = dialect.stream_reader(self._call)
        data = reader.feed(dialect.as_stream(body)) + reader.end()
        return self._stream_of(reader, data, is_over=True)

    async def _streaming(self) -> Answer:
        """Read until the stream has begun. Raises what the reader says; a stream that ends before is no answer.

        Whether it is a stream is told by its first byte: no event begins as JSON does, while servers name either by the other's type.
        """
        reader = self._dialect.stream_reader(self._call)
        due_s = self._exchange.asked_s + self._deadlines.first_byte_s
        held: list[bytes] = []
        held_bytes = 0
        has_shown = False
        pieces: deque[bytes] = deque()
        while not reader.has_begun:
            if not pieces:
                data = await self._exchange.read_some(due_s - monotonic(), "first_token_timeout")
                if not data:
                    return self._stream_of(reader, b"".join([*held, reader.end()]), is_over=True)
                if not has_shown and (shown := data.lstrip(_BLANK)):
                    if shown.startswith(_JSON_BEGINS):
                        return self._converted(data + await self._exchange.read_all())
                    has_shown = True
                pieces.extend(pieces_near(self._meter.granted_tokens, reader, data))
            ready = reader.feed(pieces.popleft())
            held.append(ready)
            held_bytes += len(ready)
            if held_bytes > _MAX_HELD_BYTES and not reader.has_begun:
                raise BadAnswer("no_answer_in_sight")
        return self._stream_of(reader, b"".join(held), is_over=False, pieces=pieces)

    def _stream_of(
        self, reader: StreamReader, data: bytes, *, is_over: bool, pieces: deque[bytes] | None = None
    ) -> Answer:
        self._reader = reader
        meter = self._meter
        meter.first_token_ms = since_ms(meter.started_s)
        meter.delivered_tokens = reader.delivered_tokens
        keep_answer(meter, data)
        chunks = RelayedChunks(
            self._exchange, reader, meter, self._deadlines, is_over=is_over, pieces=pieces or deque()
        )
        return Answer(content_type=_SSE, body=data, chunks=chunks, headers=self._visible_headers(), reader=reader)

    def _visible_headers(self) -> tuple[tuple[bytes, bytes], ...]:
        theirs = self._exchange.headers
        return tuple(
            (name.encode(), value.encode())
            for name in _VISIBLE_HEADERS
            if (value := theirs.get(name))
            and len(value) <= _MAX_HEADER_CHARS
            and value.isascii()
            and value.isprintable()
        )


class RelayedChunks:
    """The rest of a stream, as `Answer.chunks`. Raises: AttemptFailed(kind=ANSWER_BEGUN) when the upstream breaks off."""

    __slots__ = ("_between_s", "_exchange", "_first_token_s", "_is_over", "_meter", "_pieces", "_reader")

    def __init__(
        self,
        exchange: Exchange,
        reader: StreamReader,
        meter: Meter,
        deadlines: Deadlines,
        *,
        is_over: bool,
        pieces: deque[bytes],
    ) -> None:
        self._exchange = exchange
        self._reader = reader
        self._meter = meter
        self._between_s = deadlines.between_bytes_s
        self._first_token_s = deadlines.first_byte_s
        self._is_over = is_over
        self._pieces = pieces
        """What has come and was not looked at yet."""

    def __aiter__(self) -> RelayedChunks:
        return self

    async def __anext__(self) -> bytes:
        reader, meter = self._reader, self._meter
        try:
            reader.feed(b"")  # a failure behind good events of the last segment comes now, when they are delivered
            ready = await self._next()
        except UpstreamSaidError as fault:
            raise failures.of_error_object(fault.problem, has_begun=True) from fault
        except BadAnswer as fault:
            raise failures.of_bad_answer(fault, has_begun=True) from fault
        except ExchangeFailed as fault:
            raise failures.of_exchange(fault, has_begun=True, status=200) from fault
        if not ready:
            _note(reader, meter)
            raise StopAsyncIteration
        meter.delivered_tokens = reader.delivered_tokens
        if meter.answer_body is not None:
            keep_answer(meter, ready)
        return ready

    async def _next(self) -> bytes:
        """What is to be handed on next; empty at the end. Events that are not handed on are progress all the same.

        Comments, and bytes that never make an event, are no tokens but a sign that somebody is at work, as routers of other
        providers give it for as long as these think: they are given as long as a first token may take.
        """
        reader, due_s = self._reader, math.inf
        while not self._is_over:
            if self._pieces:
                if ready := self._fed():
                    return ready
                continue
            try:
                wait_s = self._patience_s()
                if due_s < math.inf:
                    wait_s = min(wait_s, due_s - monotonic())
                data = await self._exchange.read_some(wait_s, "between_tokens_timeout")
            except ExchangeFailed:
                if not reader.is_complete:
                    raise
                data = b""  # all of the answer is here; how the connection ended is nobody's business
            if not data:
                self._is_over = True
                return reader.end()
            if self._meter.granted_tokens is not None:
                self._pieces.extend(pieces_near(self._meter.granted_tokens, reader, data))
            elif ready := reader.feed(data):
                return ready
            if reader.is_complete:
                due_s = min(due_s, monotonic() + self._patience_s())
            elif _DATA in data:
                due_s = math.inf
            elif due_s == math.inf:
                due_s = monotonic() + max(self._between_s, self._first_token_s)
        return b""

    def _fed(self) -> bytes:
        """The next piece, and those behind it as long as none of them can reach the grant: what came together goes on together."""
        reader, pieces, granted = self._reader, self._pieces, self._meter.granted_tokens
        ready = reader.feed(pieces.popleft())
        if granted is None:
            return ready
        more = [ready]
        while pieces and ready and reader.delivered_tokens + len(pieces[0]) // _LEAST_BYTES_PER_TOKEN <= granted:
            try:
                more.append(reader.feed(pieces[0]))
            except (UpstreamSaidError, BadAnswer):
                break  # its reader raises it again, once what was before it is delivered
            pieces.popleft()
        return b"".join(more)

    def _patience_s(self) -> float:
        if not self._reader.is_complete:
            return self._between_s
        return min(self._between_s, _USAGE_S if self._reader.usage is None else _GOODBYE_S)


_LEAST_BYTES_PER_TOKEN = 5
"""Of an event: fewer bytes are never counted as a token."""


def pieces_near(granted_tokens: int | None, reader: StreamReader, data: bytes) -> list[bytes]:
    """A segment as it came, or one piece per event where what it holds may be more than what was granted."""
    if granted_tokens is None or reader.delivered_tokens + len(data) // _LEAST_BYTES_PER_TOKEN <= granted_tokens:
        return [data]
    blank = b"\n\n" if b"\r" not in data else b"\n"
    pieces = [piece + blank for piece in data.split(blank)]
    pieces[-1] = pieces[-1].removesuffix(
        blank
    )  # what followed the last blank line: the beginning of an event, or nothing
    return pieces if pieces[-1] else pieces[:-1]


def _note(reader: StreamReader, meter: Meter) -> None:
    """What the reader knows at the end: exact figures only of a complete stream, partial ones of a broken one."""
    meter.delivered_tokens = reader.delivered_tokens
    meter.finish_reason = reader.finish_reason
    meter.usage = reader.usage
    if not reader.is_complete:
        meter.quality = Quality.PARTIAL
        if reader.usage is None and isinstance(reader, KnowsItsPrompt):
            meter.usage = reader.usage_so_far()
    else:
        meter.quality = Quality.EXACT if reader.usage is not None else Quality.ESTIMATED


def keep_answer(meter: Meter, data: bytes) -> None:
    kept = meter.answer_body
    if kept is not None and len(kept) < MAX_LOGGED_ANSWER_BYTES:
        kept += data[: MAX_LOGGED_ANSWER_BYTES - len(kept)]


def since_ms(started_s: float) -> int:
    return int((monotonic() - started_s) * 1000)
