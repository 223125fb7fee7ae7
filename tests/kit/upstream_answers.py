"""Plays one answer: paced, faulty, streamed. What is said is in `wire`, how it breaks is here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Final, Literal, NoReturn
from typing import Protocol as TypingProtocol

from tests.kit import wire
from tests.kit.invoice import Outcome, Usage
from tests.kit.scenario import Scenario
from tests.kit.upstream_calls import (
    Blob,
    Plan,
    Record,
    Request,
    error_body,
    error_message,
    gzip_bomb,
    response_head,
    status_of,
)
from tests.kit.wire import Event, Shape
from tests.kit.wire_families import STREAM_TYPES

Ending = Literal["keep", "close", "reset"]
SLICE: Final = b"x" * 65_536


# ------------------------------------------------------------------ one answer


class _ScriptedEnd(Exception):
    """The scenario ends the answer here. The connection goes with it when `how` says so."""

    def __init__(self, outcome: Outcome, how: Ending) -> None:
        self.outcome: Outcome = outcome
        self.how: Ending = how


class Peer(TypingProtocol):
    """The connection as an answer sees it."""

    async def send(self, data: bytes) -> None:
        """Hands bytes to the kernel, waiting while the other side does not read."""
        ...

    async def end(self, how: Ending) -> None:
        """Ends the connection, or keeps it."""
        ...


class Performance:
    """One paced or faulty answer, played to the end, to the scripted cut, or until the peer hangs up (cancelled)."""

    def __init__(self, peer: Peer, record: Record, plan: Plan, shape: Shape) -> None:
        self._peer = peer
        self._record = record
        self._plan = plan
        self._scenario = plan.scenario
        self._shape = shape
        self._is_chunked = self._scenario.framing == "chunked"

    async def play(self) -> tuple[Outcome, bool]:
        """The outcome, and whether the connection may be kept; if not, it has been ended as scripted."""
        try:
            await self._answer()
        except _ScriptedEnd as end:
            await self._peer.end(end.how)
            return end.outcome, end.how == "keep"
        if self._scenario.close_after_answer:
            await self._peer.end("close")
        is_good = 200 <= self._record.status < 300
        return "ok" if is_good else "error", not self._scenario.close_after_answer

    async def _answer(self) -> None:
        scenario = self._scenario
        await _pause(scenario.delay_ms)
        if scenario.hang_before_headers:
            await _hang()
        if scenario.accept_and_close:
            raise _ScriptedEnd("cut", "close")
        if scenario.accept_and_reset:
            raise _ScriptedEnd("cut", "reset")
        if scenario.raw_stream:
            await self._raw_stream()
        elif scenario.gzip_bomb_bytes is not None:
            await self._bomb(scenario.gzip_bomb_bytes)
        elif self._streams():
            await self._stream()
        else:
            await self._unary()

    def _streams(self) -> bool:
        return streams(self._shape, self._scenario)

    # --- unary

    async def _unary(self) -> None:
        scenario, record = self._scenario, self._record
        blob = self._plan.blob(self._shape)
        if scenario.echo_credentials or scenario.echo_prompt:
            blob = _echoing_blob(blob, self._shape, scenario, record.request)
        record.status = blob.status
        head, body = blob.head, blob.rest[4:]
        if scenario.giant_body_bytes is not None:
            await self._giant_body(scenario.giant_body_bytes)
            return
        if scenario.lying_content_length is not None:
            true_length = b"content-length: %d" % len(body)
            head = head.replace(true_length, b"content-length: %d" % (len(body) + scenario.lying_content_length))
        await self._send(head + b"%d\r\n\r\n" % record.number)
        if scenario.hang_after_headers:
            await _hang()
        await _pause(scenario.first_token_delay_ms)
        for segment in _segments(body, scenario):
            await self._send(segment)
            await asyncio.sleep(0)
        record.usage_reported, record.usage_reported_raw = blob.usage, blob.usage_raw
        record.usage_due = blob.usage_due
        if scenario.lying_content_length is not None and scenario.lying_content_length > 0:
            raise _ScriptedEnd("cut", "close")

    async def _giant_body(self, size: int) -> None:
        """The unary body with `size` bytes of text, sent in slices: it never exists in memory as a whole."""
        scenario = self._scenario
        told, usage_raw = wire.unary_body(self._shape, _with_text(scenario, wire.GIANT_MARK))
        before, after = told.split(wire.GIANT_MARK.encode())
        length = b"content-length: %d" % (len(before) + size + len(after))
        head = response_head(scenario, status=self._record.status, content_type="application/json", framing=length)
        await self._send(head + b"%d\r\n\r\n" % self._record.number + before)
        for part in _slices(size):
            await self._send(part)
        await self._send(after)
        self._record.usage_due = wire.full_usage(self._shape, scenario)
        if usage_raw and wire.is_believable(scenario.usage):
            self._record.usage_reported = self._record.usage_due
        self._record.usage_reported_raw = usage_raw

    async def _bomb(self, decoded_bytes: int) -> None:
        is_stream = self._streams()
        packed = gzip_bomb(decoded_bytes, b'data: {"id":"' if is_stream else b'{"id":"')
        framing = b"content-encoding: gzip\r\ncontent-length: %d" % len(packed)
        content_type = "text/event-stream" if is_stream else "application/json"
        status = self._record.status = status_of(self._scenario)
        head = response_head(self._scenario, status=status, content_type=content_type, framing=framing)
        await self._send(head + b"%d\r\n\r\n" % self._record.number)
        for start in range(0, len(packed), len(SLICE)):
            await self._send(packed[start : start + len(SLICE)])
        self._record.usage_due = wire.full_usage(self._shape, self._scenario)

    # --- streams

    async def _open_stream(self) -> None:
        scenario, record = self._scenario, self._record
        record.status = status_of(scenario)
        framing = b"transfer-encoding: chunked" if self._is_chunked else b"connection: close"
        framing = b"cache-control: no-cache\r\n" + framing
        content_type = STREAM_TYPES.get(self._shape.protocol, "text/event-stream; charset=utf-8")
        head = response_head(scenario, status=record.status, content_type=content_type, framing=framing)
        record.usage_due = wire.usage_after(self._shape, scenario, 0)
        await self._send(head + b"%d\r\n\r\n" % record.number)
        if scenario.hang_after_headers:
            await _hang()
        await _pause(scenario.first_token_delay_ms)

    async def _stream(self) -> None:
        """The preamble goes with the first chunk; pauses and faults stand between chunks, never inside a segment."""
        scenario = self._scenario
        stream = self._plan.stream(self._shape)
        await self._open_stream()
        if scenario.bom:
            await self._body(b"\xef\xbb\xbf")
        if scenario.comments_every_ms is not None:
            await self._comments(scenario.comments_every_ms)
        is_plain = not (_has_chunk_faults(scenario) or scenario.gap_ms or scenario.endless)
        if is_plain:
            await self._content_in_segments(stream)
        else:
            await self._content_with_faults(stream)
        await self._tail(stream)

    async def _content_in_segments(self, stream: wire.Stream) -> None:
        """Back to back; `events_per_segment` chunks share a write."""
        scenario, content = self._scenario, stream.content
        size = scenario.events_per_segment
        lead = b"".join(event.data for event in stream.preamble)
        for start in range(0, len(content), size):
            await self._events(content[start : start + size], lead=lead)
            lead = b""
            await asyncio.sleep(0)
        if lead:
            await self._body(lead)

    async def _content_with_faults(self, stream: wire.Stream) -> None:
        scenario, content = self._scenario, stream.content
        size = scenario.events_per_segment
        sent = 0
        lead = b"".join(event.data for event in stream.preamble)
        while True:
            await self._faults(sent, stream, lead)
            if not content or (sent >= len(content) and not scenario.endless):
                break
            if sent:
                await _pause(scenario.gap_ms)
            # A cut must fall between segments, so a segment ends at the next fault.
            upto = min([sent + size, *(fault for fault in _fault_places(scenario) if fault > sent)])
            if not scenario.endless:
                upto = min(upto, len(content))
            batch = [content[i % len(content)] for i in range(sent, upto)]
            await self._events(batch, lead=lead)
            lead = b""
            sent += len(batch)
            await asyncio.sleep(0)
        if lead:
            await self._body(lead)

    async def _faults(self, sent: int, stream: wire.Stream, lead: bytes) -> None:
        """What the scenario does after so many chunks. `lead` is the preamble if it is still unsent."""
        scenario = self._scenario
        if sent in scenario.garbage_after_chunks:
            await self._body(wire.garbage_event(scenario))
        if sent == scenario.unknown_event_after_chunks:
            await self._body(wire.unknown_event(scenario))
        if sent == scenario.error_event_after_chunks:
            message = error_message(scenario, self._record.request)
            await self._body(wire.error_event(self._shape.protocol, scenario, message=message))
            await self._finish_body()
            raise _ScriptedEnd("failed_midstream", "keep" if self._is_chunked else "close")
        cuts = (scenario.close_after_chunks, scenario.reset_after_chunks, scenario.stall_after_chunks)
        if sent not in cuts:
            return
        if scenario.half_event:
            unsent = lead + (*stream.content[sent:], *stream.tail)[0].data
            await self._body(unsent[: len(unsent) // 2])
        if sent == scenario.stall_after_chunks:
            await _hang()
        raise _ScriptedEnd("cut", "close" if sent == scenario.close_after_chunks else "reset")

    async def _events(self, batch: Sequence[Event], *, lead: bytes) -> None:
        scenario, record = self._scenario, self._record
        giant = scenario.giant_line_bytes
        if giant is not None and record.chunks_delivered == 0:
            await self._giant_line(lead + batch[0].data, giant)
            self._count(batch[:1])
            batch, lead = batch[1:], b""
            if not batch:
                return
        await self._body(lead + (batch[0].data if len(batch) == 1 else b"".join(event.data for event in batch)))
        self._count(batch)

    def _count(self, batch: Sequence[Event]) -> None:
        record = self._record
        record.chunks_delivered += len(batch)
        dues = self._plan.stream(self._shape).usage_after
        sent = record.chunks_delivered
        record.usage_due = dues[sent] if sent < len(dues) else wire.usage_after(self._shape, self._scenario, sent)
        for event in batch:
            self._note_usage(event)

    def _note_usage(self, event: Event) -> None:
        if not event.usage_raw:
            return
        record, scenario = self._record, self._scenario
        record.usage_reported_raw = event.usage_raw
        record.usage_reported = record.usage_due if wire.is_believable(scenario.usage) else None

    async def _tail(self, stream: wire.Stream) -> None:
        if stream.tail:
            await _pause(self._scenario.gap_ms)
        for event in stream.tail:
            await self._body(event.data)
            self._note_usage(event)
            if self._scenario.events_per_segment == 1:
                await asyncio.sleep(0)
        await self._finish_body()
        if not self._is_chunked:
            raise _ScriptedEnd("ok", "close")

    async def _comments(self, every_ms: float) -> NoReturn:
        count = self._scenario.comments_count
        sent = 0
        while count is None or sent < count:
            await self._body(b": ping\n\n")
            sent += 1
            await _pause(every_ms)
        await self._finish_body()
        raise _ScriptedEnd("ok", "keep" if self._is_chunked else "close")

    async def _giant_line(self, event: bytes, size: int) -> None:
        before, after = event.split(wire.GIANT_MARK.encode())
        await self._body(before)
        for part in _slices(size):
            await self._body(part)
        await self._body(after)

    async def _raw_stream(self) -> None:
        """Recorded bytes. Billed in full once all of it is out; a vector says itself what usage it reports."""
        scenario, record = self._scenario, self._record
        if scenario.raw_whole:
            record.status = scenario.status
            for piece in scenario.raw_stream:
                await _pause(piece.pause_ms)
                await self._send(piece.data)
            record.usage_due = wire.full_usage(self._shape, scenario)
            raise _ScriptedEnd("ok", "close")
        await self._open_stream()
        for piece in scenario.raw_stream:
            await _pause(piece.pause_ms)
            await self._body(piece.data)
            await asyncio.sleep(0)
        record.usage_due = wire.full_usage(self._shape, scenario)
        await self._finish_body()
        if not self._is_chunked:
            raise _ScriptedEnd("ok", "close")

    # --- bytes

    async def _body(self, data: bytes) -> None:
        """Body bytes in the stream's framing. Split segments are HTTP chunks of their own, so no parser joins them."""
        scenario = self._scenario
        if not (scenario.one_byte_segments or scenario.utf8_split):
            await self._send(b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data)
            return
        for segment in _segments(data, scenario):
            await self._send(b"%x\r\n%b\r\n" % (len(segment), segment) if self._is_chunked else segment)
            await asyncio.sleep(0)

    async def _finish_body(self) -> None:
        if self._is_chunked:
            await self._send(b"0\r\n\r\n")

    async def _send(self, data: bytes) -> None:
        record = self._record
        if record.first_byte_at is None:
            record.first_byte_at = time.time()
        record.bytes_written += len(data)
        await self._peer.send(data)


def streams(shape: Shape, scenario: Scenario) -> bool:
    """Whether the answer is a stream: asked for, and the scenario neither refuses nor overrides it."""
    return (
        shape.is_stream
        and scenario.raw_body is None
        and not scenario.unary_despite_stream
        and 200 <= status_of(scenario) < 300
    )


def _echoing_blob(blob: Blob, shape: Shape, scenario: Scenario, request: Request) -> Blob:
    if 200 <= blob.status < 300 or scenario.raw_body is not None:
        return blob
    body = error_body(shape.protocol, scenario, error_message(scenario, request))
    length = b"content-length: %d" % len(body)
    head = response_head(scenario, status=blob.status, content_type="application/json", framing=length)
    return Blob(head, b"\r\n\r\n" + body, blob.status, None, "", Usage())


def _has_chunk_faults(scenario: Scenario) -> bool:
    return bool(_fault_places(scenario))


def _fault_places(scenario: Scenario) -> list[int]:
    """The numbers of chunks after which something happens."""
    single = (
        scenario.close_after_chunks,
        scenario.reset_after_chunks,
        scenario.stall_after_chunks,
        scenario.error_event_after_chunks,
        scenario.unknown_event_after_chunks,
    )
    return [place for place in single if place is not None] + list(scenario.garbage_after_chunks)


def _with_text(scenario: Scenario, text: str) -> Scenario:
    return Scenario.from_json({**scenario.to_json(), "text": text})


def _segments(data: bytes, scenario: Scenario) -> Iterator[bytes]:
    if scenario.one_byte_segments:
        yield from (data[i : i + 1] for i in range(len(data)))
    elif scenario.utf8_split:
        # After each lead byte (0b11xxxxxx) of a multi-byte character.
        start = 0
        for end in (i + 1 for i, byte in enumerate(data) if byte >= 0xC0):
            yield data[start:end]
            start = end
        yield data[start:]
    else:
        yield data


def _slices(size: int) -> Iterator[bytes]:
    for start in range(0, size, len(SLICE)):
        yield SLICE[: size - start]


async def _pause(milliseconds: float) -> None:
    if milliseconds > 0:
        await asyncio.sleep(milliseconds / 1000)


async def _hang() -> NoReturn:
    """Until the peer hangs up or the server stops: both cancel."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError("nobody resolves this future")
