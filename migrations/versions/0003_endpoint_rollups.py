"""Sums by hour, model and endpoint with latencies by bucket, filled from the ledger as far as it is kept.

Revision: 0003, after 0002. Only adds a table. A process of the version before that still drains beside this one writes the ledger and
the sums it knows, not these: what it wrote is missing here, `verify-ledger` names those hours, and running this fill again mends them.
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

BOUNDS_MS = (
    *(10, 20, 35, 50, 75, 100, 150, 200, 300, 500, 750, 1_000, 1_500, 2_000, 3_000, 5_000, 7_500),
    *(10_000, 15_000, 20_000, 30_000, 60_000, 120_000),
)
"""As they were when this was written."""
SUMS = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "cost_nanousd")
BUCKETS = range(len(BOUNDS_MS) + 1)
COUNTS = [f"{kind}_{bucket}" for kind in ("duration", "first_token") for bucket in BUCKETS]
COLUMNS = ("requests", "errors", *SUMS, *COUNTS)


def _count(column: str, where: str, bucket: int) -> str:
    above = f" AND {column} > {BOUNDS_MS[bucket - 1]}" if bucket else ""
    upto = f" AND {column} <= {BOUNDS_MS[bucket]}" if bucket < len(BOUNDS_MS) else ""
    return f"count(*) FILTER (WHERE outcome = 'ok'{where}{above}{upto})"


TABLE = f"""
CREATE TABLE endpoint_rollups (
    hour TIMESTAMPTZ NOT NULL,
    model TEXT NOT NULL,
    endpoint_id TEXT NOT NULL,
    {", ".join(f"{name} BIGINT NOT NULL" for name in COLUMNS)},
    CONSTRAINT pk_endpoint_rollups PRIMARY KEY (hour, model, endpoint_id)
)
"""
FILL = f"""
INSERT INTO endpoint_rollups (hour, model, endpoint_id, {", ".join(COLUMNS)})
SELECT date_trunc('hour', created_at), served_model, coalesce(endpoint_id::text, ''), count(*),
       count(*) FILTER (WHERE outcome NOT IN ('ok', 'client_cancelled')),
       {", ".join(f"sum({name})::bigint" for name in SUMS)},
       {", ".join(_count("duration_ms", "", bucket) for bucket in BUCKETS)},
       {", ".join(_count("first_token_ms", " AND is_stream", bucket) for bucket in BUCKETS)}
FROM usage_records GROUP BY 1, 2, 3
"""  # noqa: S608 - our own names


def upgrade() -> None:
    op.execute(TABLE)
    op.execute("CREATE INDEX ix_endpoint_rollups_endpoint ON endpoint_rollups (endpoint_id, hour)")
    # The ledger's hours are UTC; date_trunc on a timestamptz counts in the session's zone.
    op.execute("SET LOCAL timezone = 'UTC'")
    # A long ledger takes its time, once: seconds to minutes per million records, by the machine.
    op.execute("SET LOCAL statement_timeout = 0")
    op.execute(FILL)


def downgrade() -> None:
    """Forgets the sums; the ledger they were made of stays."""
    op.execute("DROP TABLE endpoint_rollups")
