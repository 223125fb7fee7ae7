"""The audit trail's newest hash, told to a place that whoever can rewrite the trail cannot rewrite."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from app.clock import Clock
from app.storage.management_ports import Anchor, AuditStore
from app.telemetry import logger

EVERY_S = 60.0
"""So much of the trail's end could be rewritten unnoticed; each anchor is a line somewhere for ever."""

Keep = Callable[[bytes], Awaitable[bool]]
"""Keep one line; False when it could not be, and should be tried again."""


class AnchorLine(msgspec.Struct, frozen=True):
    at: str
    id: int
    hash: str


class AuditAnchors:
    def __init__(self, *, audit: AuditStore, clock: Clock, keep: Keep | None) -> None:
        """Without `keep` the log alone carries the anchors."""
        self._audit = audit
        self._clock = clock
        self._keep = keep
        self._told: Anchor | None = None

    async def tell(self) -> None:
        """Tell the newest hash, if it is not the one told last."""
        head = await self._audit.head()
        if head is None or head == self._told:
            return
        line = AnchorLine(self._clock.now().isoformat(timespec="seconds"), head.id, head.hash.hex())
        logger.info("audit_anchor", id=line.id, hash=line.hash)
        if self._keep is not None and not await self._keep(msgspec.json.encode(line)):
            logger.warning("audit_anchor_not_kept", id=line.id)
            return
        self._told = head


def read_anchors(text: str) -> list[Anchor]:
    """The anchors in a file of such lines. Raises: ValueError, naming the line."""
    anchors = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                read = msgspec.json.decode(line, type=AnchorLine)
                anchors.append(Anchor(read.id, bytes.fromhex(read.hash)))
            except (msgspec.MsgspecError, ValueError):
                raise ValueError(f"line {number} is no anchor of an audit trail") from None
    return anchors
