"""Which `SECRET_KEY` the database belongs to, and digests that follow it to the next one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, or_, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.database import QUICK_S, transaction
from app.models.tables import admins, app_secrets, endpoints, former_credentials, keys, secret_key
from app.storage import management_ports as ports
from app.storage.sealing import CannotUnseal, Sealer, UnknownSealingKey, host_of

_sealed = select(endpoints.c.id, endpoints.c.api_base, endpoints.c.credential_sealed).where(
    endpoints.c.credential_sealed.is_not(None)
)
_DIGESTS = (keys.c.digest, former_credentials.c.digest, app_secrets.c.digest, admins.c.token_digest)


@dataclass(frozen=True, slots=True)
class SqlSecretKey:
    engine: AsyncEngine

    sealer: Sealer

    async def belongs_to(self) -> bytes | None:
        async with transaction(self.engine, within_s=QUICK_S) as connection:
            is_there = select(func.to_regclass("secret_key").is_not(None))
            if not (await connection.execute(is_there)).scalar_one():
                return None  # not migrated yet
            return await belongs_to(connection)

    async def claim(self, fingerprint: bytes) -> None:
        first = upsert(secret_key).values(id=1, fingerprint=fingerprint).on_conflict_do_nothing()
        async with transaction(self.engine) as connection:
            await connection.execute(first)

    async def opens_what_is_sealed(self) -> bool:
        async with transaction(self.engine) as connection:
            rows = (await connection.execute(_sealed)).all()
        unknown = 0
        for row in rows:
            try:
                self.sealer.open(row.credential_sealed, endpoint_id=row.id, host=host_of(row.api_base))
            except UnknownSealingKey:
                unknown += 1
            except CannotUnseal:
                continue
        return unknown == 0 or unknown < len(rows)

    async def redigest(self, old: bytes, new: bytes, *, fingerprint: bytes) -> None:
        """Store a credential's digest under the key that the database belongs to; nothing happens while that is another one:
        then there are still processes that know only the one before."""
        belongs = select(secret_key.c.id).where(secret_key.c.fingerprint == fingerprint).exists()
        async with transaction(self.engine, within_s=QUICK_S) as connection:
            for column in _DIGESTS:
                statement = update(column.table).where(column == old, belongs).values({column.name: new})
                if (await connection.execute(statement)).rowcount:
                    return


async def belongs_to(connection: AsyncConnection) -> bytes | None:
    found = (await connection.execute(select(secret_key.c.fingerprint))).scalar()
    return None if found is None else bytes(found)


async def reseal(
    connection: AsyncConnection, sealer: ports.Sealer, fingerprint: bytes, now: datetime
) -> ports.Resealed:
    """Seal every credential under the sealer's first key and let the database belong to it, in the caller's transaction."""
    done, left_out = 0, []
    for row in (await connection.execute(_sealed)).all():
        host = host_of(row.api_base)
        try:
            secret = sealer.open(row.credential_sealed, endpoint_id=row.id, host=host)
        except CannotUnseal:
            left_out.append(str(row.id))
            continue
        sealed = sealer.seal(secret, endpoint_id=row.id, host=host)
        await connection.execute(update(endpoints).where(endpoints.c.id == row.id).values(credential_sealed=sealed))
        done += 1
    is_new = secret_key.c.fingerprint != fingerprint
    changed = update(secret_key).where(is_new).values(fingerprint=fingerprint, set_at=now)
    first = upsert(secret_key).values(id=1, fingerprint=fingerprint, set_at=now).on_conflict_do_nothing()
    await connection.execute(first)
    await connection.execute(changed)
    return ports.Resealed(done, tuple(left_out), await _unused_keys(connection, now))


async def _unused_keys(connection: AsyncConnection, now: datetime) -> int:
    since = select(secret_key.c.set_at).scalar_subquery()
    is_active = (keys.c.status == "active") & or_(keys.c.expires_at.is_(None), keys.c.expires_at > now)
    is_older = (keys.c.created_at <= since) & or_(keys.c.last_used_at.is_(None), keys.c.last_used_at <= since)
    statement = select(func.count()).select_from(keys).where(is_active, is_older)
    return (await connection.execute(statement)).scalar_one()
