"""What Alembic runs. The gateway migrates through `app.storage.migrate`, which hands its own connection over.

To write a new migration, with a database at the newest one:
    alembic -c migrations/alembic.ini -x database_url=postgresql+asyncpg://… revision --autogenerate -m "what it does"
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Literal

from alembic import context
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from app.models.tables import PARTITIONED, metadata

Kind = Literal["schema", "table", "column", "index", "unique_constraint", "foreign_key_constraint", "check_constraint"]
Parents = MutableMapping[Literal["schema_name", "table_name", "schema_qualified_table_name"], str | None]


def is_ours(name: str | None, kind: Kind, parents: Parents) -> bool:
    """Whether to compare an object: partitions are made by the ledger, indexes over expressions by them alone."""
    if kind == "index" and name in ("ix_users_words", "ix_keys_words", "ix_users_paid_until", "ix_keys_end"):
        return False
    table = parents.get("table_name") or (name if kind == "table" else None)
    return table is None or not any(table.startswith(f"{parent.name}_p") for parent in PARTITIONED)


def run_on(connection: Connection) -> None:
    """One transaction per migration: one that fails leaves nothing behind and can be run again."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        transaction_per_migration=True,
        include_name=is_ours,
    )
    with context.begin_transaction():
        context.run_migrations()


async def run_with_own_connection() -> None:
    url = context.get_x_argument(as_dictionary=True).get("database_url")
    if not isinstance(url, str):
        raise SystemExit("Give -x database_url=postgresql+asyncpg://…")
    engine = create_async_engine(url, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(run_on)
    finally:
        await engine.dispose()


given = context.config.attributes.get("connection")
if isinstance(given, Connection):
    run_on(given)
else:
    asyncio.run(run_with_own_connection())
