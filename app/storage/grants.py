"""What a role that serves may do in a database that another one owns: use the tables, and change none of them.

The trail of administrators and the ledger can only grow: not even the gateway itself, taken over, rewrites what was done.
"""

from __future__ import annotations

import re

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database import transaction
from app.models.tables import audit_log

ROLE = re.compile(r"[a-z_][a-z0-9_]{0,62}")
ONLY_GROWING = (audit_log,)


async def grant_use(engine: AsyncEngine, role: str) -> None:
    """Give an existing role what a gateway needs, and nothing more. Raises: ValueError for a name that is none."""
    if not ROLE.fullmatch(role):
        raise ValueError(f"{role!r} is not the name of a role (lower-case letters, digits, underscores).")
    async with transaction(engine) as connection:
        schema = (await connection.execute(text("SELECT current_schema()"))).scalar_one()
        for statement in (
            f'GRANT USAGE ON SCHEMA "{schema}" TO "{role}"',
            f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "{schema}" TO "{role}"',
            f'GRANT USAGE, SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA "{schema}" TO "{role}"',
            f'REVOKE INSERT, UPDATE, DELETE ON alembic_version FROM "{role}"',
            *(f'REVOKE UPDATE, DELETE, TRUNCATE ON {table.name} FROM "{role}"' for table in ONLY_GROWING),
        ):
            await connection.execute(text(statement))
