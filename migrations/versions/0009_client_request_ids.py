"""Calls are found by the id that their caller gave them.

Revision: 0009, after 0008. Only adds indexes, of the few rows that have such an id.
"""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

TABLES = ("usage_records", "refused_calls")


def upgrade() -> None:
    for table in TABLES:
        op.execute(
            f"CREATE INDEX ix_{table}_client_request_id ON {table} (client_request_id, created_at, request_id) "
            "WHERE client_request_id IS NOT NULL"
        )


def downgrade() -> None:
    for table in TABLES:
        op.execute(f"DROP INDEX ix_{table}_client_request_id")
