"""Requests that were sent with an `Idempotency-Key`, and how they were answered."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database import transaction
from app.models.tables import repeatable_requests as requests
from app.storage.management_ports import Repeatable


@dataclass(frozen=True, slots=True)
class SqlRepeats:
    """`RepeatStore` on PostgreSQL."""

    engine: AsyncEngine

    async def begin(
        self, actor: str, key: str, request_digest: bytes, at: datetime, *, forgotten_before: datetime
    ) -> Repeatable | None:
        this = (requests.c.actor == actor, requests.c.key == key)
        claim = (
            insert(requests)
            .values(actor=actor, key=key, request_digest=request_digest, begun_at=at)
            .on_conflict_do_nothing()
            .returning(requests.c.key)
        )
        async with transaction(self.engine) as connection:
            await connection.execute(delete(requests).where(*this, requests.c.begun_at < forgotten_before))
            if (await connection.execute(claim)).one_or_none() is not None:
                return None
            row = (await connection.execute(select(requests).where(*this))).one()
        return Repeatable(row.request_digest, row.status, row.answer_sealed)

    async def finish(self, actor: str, key: str, status: int, answer_sealed: bytes) -> None:
        this = (requests.c.actor == actor, requests.c.key == key)
        async with transaction(self.engine) as connection:
            await connection.execute(update(requests).where(*this).values(status=status, answer_sealed=answer_sealed))

    async def forget(self, actor: str, key: str) -> None:
        async with transaction(self.engine) as connection:
            await connection.execute(delete(requests).where(requests.c.actor == actor, requests.c.key == key))

    async def forget_before(self, at: datetime) -> None:
        async with transaction(self.engine) as connection:
            await connection.execute(delete(requests).where(requests.c.begun_at < at))
