"""The record of every call: written once, whatever happened, and carried to the ledger.

How a record reaches SQL:
1. `admitted` hands it over together with the settlement, in one atomic step (see `app.services.admission`). A call that was
   refused before that is appended here, by `logged`.
2. Either way it lies in the sink, durable. One elected process drains: the oldest batch is written to the ledger and its rollups in
   one transaction, then confirmed. A drainer that dies in between writes the batch again, and the ledger ignores what it has.
3. Bodies are no part of that: they wait in this process, bounded, and are written in the background. A crash may lose a body,
   never a record.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType

import msgspec

from app.clock import Clock
from app.domain.call import Meter, Outcome
from app.domain.identity import LogContent
from app.domain.record import CallContent, CallRecord, decode_record, encode_record
from app.exceptions import (
    AttemptFailed,
    DependencyUnavailable,
    FailureKind,
    GatewayError,
    InternalError,
    UpstreamTimeout,
)
from app.services.recording import record_of
from app.storage.ports import PendingRecord, UsageSink, UsageStore
from app.storage.rejected import RecordsRejected
from app.telemetry import DROPPED_CONTENTS, LOG_LAG_SECONDS, call_ended, logger

UNSENT_MAX = 10_000
"""Refusals that wait in this process when neither the counter store nor the journal takes them: some 10 MB. Beyond it the oldest are
dropped and counted; no money hangs on them, and a process that refuses for want of a disk must not die for want of memory."""
BATCH = 250
"""Records per transaction: large enough that the transaction's own cost disappears, small enough that calls do not notice: decoding a batch
and binding it is one turn of their loop."""
CONTENT_QUEUE_BYTES = 32 * 1024 * 1024
"""Bodies that wait in this process at most; beyond it they are dropped and counted, for the calls go on. With all else that is kept
while both stores are away a process grows by less than 50 MB."""
CONTENT_BATCH = 50


async def nobody(_: Sequence[CallRecord]) -> None:
    """Is told of what was written, and does nothing."""


class Logged:
    """`UsageLog.logged`. A class, like the other contexts of a call: as a generator each cost it 1 µs more."""

    __slots__ = ("_log", "_meter")

    def __init__(self, log: UsageLog, meter: Meter) -> None:
        self._log = log
        self._meter = meter

    async def __aenter__(self) -> None:
        self._log.begin(self._meter)

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Awaitable[None]:
        return self._log.end(self._meter, error)


class UsageLog:
    def __init__(
        self,
        *,
        sink: UsageSink,
        store: UsageStore,
        clock: Clock,
        log_content: LogContent,
        content_max_bytes: int,
        on_written: Callable[[Sequence[CallRecord]], Awaitable[None]] = nobody,
    ) -> None:
        """`on_written` is told of every batch after it was written, before it is confirmed; also of empty ones."""
        self._sink = sink
        self._store = store
        self._clock = clock
        self._log_content = log_content
        self._content_max_bytes = content_max_bytes
        self._on_written = on_written
        self._contents: deque[CallContent] = deque()
        self._contents_bytes = 0
        self._content_arrived = asyncio.Event()
        self._writing_contents = asyncio.Lock()
        self._unsent: deque[tuple[str, bytes]] = deque()
        self.dropped_contents = 0
        self.dropped_refusals = 0

    def logged(self, meter: Meter) -> Logged:
        """A context that leaves one record of the call inside, however it ends."""
        return Logged(self, meter)

    def begin(self, meter: Meter) -> None:
        if self._keeps_content(meter):
            meter.answer_body = bytearray()

    async def end(self, meter: Meter, error: BaseException | None) -> None:
        try:
            self.conclude(meter, error)
        finally:
            if not meter.is_settled:
                await self.append(record_of(meter))
            self._keep_content(meter)
            call_ended(meter)

    def conclude(self, meter: Meter, error: BaseException | None) -> None:
        """Name how the call ended. The first conclusion stands: the innermost context knows best."""
        if meter.outcome is not None:
            return
        meter.duration_ms = round((self._clock.monotonic() - meter.started_s) * 1000)
        match error:
            case None:
                meter.outcome, meter.http_status = Outcome.OK, 200
            case GatewayError():
                reached_upstream = bool(meter.attempts)
                meter.outcome = _outcome_of(error) if reached_upstream else Outcome.REFUSED
                meter.http_status, meter.error_code = error.status, error.code
            case AttemptFailed():
                meter.outcome = _outcome_of(error.error, begun=error.kind is FailureKind.ANSWER_BEGUN)
                meter.http_status, meter.error_code, meter.error_reason = 200, error.error.code, error.reason
            case asyncio.CancelledError() | GeneratorExit():
                meter.outcome = Outcome.CLIENT_CANCELLED if meter.has_client_left else Outcome.INTERRUPTED
                if not meter.is_admitted:
                    meter.outcome = Outcome.REFUSED  # nothing was reserved, nothing was sent
                meter.http_status = 499 if meter.has_client_left else 503
                meter.error_code = str(Outcome.CLIENT_CANCELLED if meter.has_client_left else Outcome.INTERRUPTED)
            case _:
                meter.outcome, meter.http_status = Outcome.INTERRUPTED, InternalError.status
                meter.error_code = InternalError.code

    async def append(self, record: CallRecord) -> None:
        """Hand over a record that no settlement carries. While the sink is away it waits here."""
        packed = encode_record(record)
        try:
            await self._sink.append(record.request_id, packed)
        except DependencyUnavailable:
            if len(self._unsent) >= UNSENT_MAX:
                self._unsent.popleft()
                self.dropped_refusals += 1
            self._unsent.append((record.request_id, packed))

    # ── Chores ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def drain(self, gathered_s: float) -> None:
        """Move a batch, and unless it was full, leave the next one time to grow.

        Without the pause every record of a quiet hour was a transaction of its own: at 100 calls a second the drainer took four
        times the CPU of the calls, and they waited for it.
        """
        if await self.drain_once() < BATCH:
            await self._clock.sleep(gathered_s)

    async def drain_once(self, *, wait_s: float = 1.0) -> int:
        """Move one batch from the sink to the ledger. Returns how many records it held."""
        batch = await self._sink.pending(limit=BATCH, wait_s=wait_s)
        records = _readable(batch)
        if batch:
            try:
                await self._store.write(records)
            except RecordsRejected as error:
                _park(batch, error)
        if records:
            oldest = records[0]
            LOG_LAG_SECONDS.set(self._clock.now().timestamp() - (oldest.created_at_ms + oldest.duration_ms) / 1000)
        await self._on_written(records)
        if batch:
            await self._sink.confirm(batch)
        return len(batch)

    async def depth(self) -> int:
        """Records on their way to the ledger. Raises: DependencyUnavailable."""
        return await self._sink.depth()

    @property
    def waiting_content_bytes(self) -> int:
        return self._contents_bytes

    @property
    def has_contents(self) -> bool:
        return bool(self._contents)

    async def write_contents(self) -> None:
        """Write what bodies wait, for ever."""
        while True:
            await self._content_arrived.wait()
            await self.write_contents_once()

    async def write_contents_once(self) -> None:
        # The stop of this process writes what is left, and the chore may be in the middle of it.
        async with self._writing_contents:
            await self._write_contents()

    async def _write_contents(self) -> None:
        batch = [self._contents[i] for i in range(min(CONTENT_BATCH, len(self._contents)))]
        if batch:
            try:
                await self._store.write_content(batch)
            except RecordsRejected as error:
                logger.error("bodies_rejected", reasons=dict(error.reasons))
        for content in batch:
            self._contents.popleft()
            self._contents_bytes -= len(content.request_body) + len(content.response_body)
        if not self._contents:
            self._content_arrived.clear()

    async def send_unsent(self) -> None:
        """Hand over what the sink could not take before. Every process does it for itself. Raises: DependencyUnavailable."""
        while self._unsent:
            unsent = self._unsent.popleft()  # taken out first: the stop of this process may send at the same moment
            try:
                await self._sink.append(*unsent)
            except BaseException:
                self._unsent.appendleft(unsent)
                raise

    # ── Bodies ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _keeps_content(self, meter: Meter) -> bool:
        identity = meter.identity
        said = (
            identity.user.log_content,
            identity.key.log_content if identity.key else None,
            identity.app.log_content if identity.app else None,
        )
        if LogContent.METADATA in said:  # whoever wants his words not to be kept is not overruled
            return False
        return self._log_content is LogContent.FULL or LogContent.FULL in said

    def _keep_content(self, meter: Meter) -> None:
        if meter.answer_body is None:
            return
        request, response, cap = meter.call.body, bytes(meter.answer_body), self._content_max_bytes
        size = min(len(request), cap) + min(len(response), cap)
        if self._contents_bytes + size > CONTENT_QUEUE_BYTES:
            self.dropped_contents += 1
            DROPPED_CONTENTS.add()
            return
        self._contents.append(
            CallContent(
                request_id=meter.request_id,
                created_at_ms=meter.created_at_ms,
                user_oid=meter.identity.user.oid,
                request_body=request[:cap],
                response_body=response[:cap],
                is_truncated=len(request) > cap or len(response) > cap,
            )
        )
        self._contents_bytes += size
        self._content_arrived.set()


def _outcome_of(error: GatewayError, *, begun: bool = False) -> Outcome:
    if isinstance(error, UpstreamTimeout):
        return Outcome.TIMEOUT
    return Outcome.TRUNCATED if begun else Outcome.UPSTREAM_ERROR


def _park(batch: Sequence[PendingRecord], error: RecordsRejected) -> None:
    """Records that the database will never take are written to the log, whole: the last place where they can be kept."""
    for pending in batch:
        try:
            request_id = decode_record(pending.packed).request_id
        except msgspec.MsgspecError:
            continue
        if request_id in error.reasons:
            logger.error(
                "record_rejected", request_id=request_id, why=error.reasons[request_id], packed=pending.packed.hex()
            )


def readable_record(pending: PendingRecord) -> CallRecord:
    """Raises msgspec.ValidationError or DecodeError on bytes that are no record."""
    record = decode_record(pending.packed)
    charged = pending.cost_nanousd
    return record if charged is None else msgspec.structs.replace(record, cost_nanousd=charged)


def _readable(batch: Sequence[PendingRecord]) -> list[CallRecord]:
    """Decode a batch. Bytes that are no record are named in the log and passed over: they must not hold up the others."""
    records = []
    for pending in batch:
        try:
            records.append(readable_record(pending))
        except msgspec.MsgspecError:
            logger.error("unreadable_record", position=pending.position, packed=pending.packed.hex()[:2000])
    return records
