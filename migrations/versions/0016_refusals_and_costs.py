"""Refused calls are counted by hour and reason, dear calls are found by what they cost, and changes among sign-ins.

Revision: 0016, after 0015. Only adds a table and two indexes. A process of the version before that still drains beside this one counts no
refusals: `verify-ledger` names those hours, and emptying the table and running this fill again mends them.

The indexes are built beside those who write, and first: what follows is one transaction, and a run that failed can be repeated.
"""

from __future__ import annotations

from alembic import op

from app.storage.concurrent_index import build_index

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

TABLE = """
CREATE TABLE refusal_rollups (
    hour TIMESTAMPTZ NOT NULL,
    error_code TEXT NOT NULL,
    http_status SMALLINT NOT NULL,
    requests BIGINT NOT NULL,
    CONSTRAINT pk_refusal_rollups PRIMARY KEY (hour, error_code, http_status)
)
"""
FILL = """
INSERT INTO refusal_rollups (hour, error_code, http_status, requests)
SELECT date_trunc('hour', created_at, 'UTC'), coalesce(error_code, ''), http_status, count(*)
FROM refused_calls GROUP BY 1, 2, 3
"""


def upgrade() -> None:
    with op.get_context().autocommit_block():
        build_index(
            op.get_bind(), "ix_usage_records_cost", "usage_records", "(cost_nanousd) WHERE cost_nanousd >= 10000000"
        )
        build_index(op.get_bind(), "ix_audit_log_changes", "audit_log", "(id) WHERE object_kind <> 'session'")
    op.execute(TABLE)
    op.execute("SET LOCAL statement_timeout = 0")  # a long log takes its time, once
    op.execute(FILL)
    op.execute("ANALYZE refusal_rollups")


def downgrade() -> None:
    """Forgets the counts; the refused calls stay."""
    op.execute("DROP INDEX ix_audit_log_changes")
    op.execute("DROP INDEX ix_usage_records_cost")
    op.execute("DROP TABLE refusal_rollups")
