"""Sums by day, user, key and app, filled from the hourly ones: what a month's lists are made of.

Revision: 0014, after 0013. Only adds a table. A process of the version before that still drains beside this one writes the hours alone:
what it wrote is missing in these days' rows, `verify-ledger` names them, and emptying the table and running this fill again mends them.
No budget is read from them.
"""

from __future__ import annotations

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

SUMS = (
    *("requests", "errors", "prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens"),
    "cost_nanousd",
)
TABLE = f"""
CREATE TABLE day_rollups (
    day TIMESTAMPTZ NOT NULL,
    user_oid TEXT NOT NULL,
    key_id TEXT NOT NULL,
    app_id TEXT NOT NULL,
    {", ".join(f"{name} BIGINT NOT NULL" for name in SUMS)},
    CONSTRAINT pk_day_rollups PRIMARY KEY (day, user_oid, key_id, app_id)
)
"""
FILL = f"""
INSERT INTO day_rollups (day, user_oid, key_id, app_id, {", ".join(SUMS)})
SELECT date_trunc('day', hour, 'UTC'), user_oid, key_id, app_id, {", ".join(f"sum({name})::bigint" for name in SUMS)}
FROM usage_rollups GROUP BY 1, 2, 3, 4
"""  # noqa: S608 - our own names


def upgrade() -> None:
    op.execute(TABLE)
    op.execute("SET LOCAL statement_timeout = 0")  # minutes for millions of hourly rows, once
    op.execute(FILL)
    for name, column in (("user", "user_oid"), ("key", "key_id"), ("app", "app_id")):
        op.execute(f"CREATE INDEX ix_day_rollups_{name} ON day_rollups ({column}, day)")
    op.execute("ANALYZE day_rollups")  # or the first readers' plans are for a table that nobody knows


def downgrade() -> None:
    """Forgets the sums; the hourly ones they were made of stay."""
    op.execute("DROP TABLE day_rollups")
