"""Refused calls are counted by hour and reason, dear calls are found by what they cost, and changes among sign-ins.

Revision: 0016, after 0015. Only adds a table and two indexes. A process of the version before that still drains beside this one counts no
refusals: `verify-ledger` names those hours, and emptying the table and running this fill again mends them.

The index of the ledger is built while nobody writes records: those of calls wait in Redis's stream, or in the journal, for as long
as that takes.
"""

from __future__ import annotations

from alembic import op

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
    op.execute(TABLE)
    op.execute("SET LOCAL statement_timeout = 0")  # a long log takes its time, once
    op.execute(FILL)
    op.execute("CREATE INDEX ix_usage_records_cost ON usage_records (cost_nanousd) WHERE cost_nanousd >= 10000000")
    op.execute("CREATE INDEX ix_audit_log_changes ON audit_log (id) WHERE object_kind <> 'session'")
    op.execute("ANALYZE refusal_rollups")


def downgrade() -> None:
    """Forgets the counts; the refused calls stay."""
    op.execute("DROP INDEX ix_audit_log_changes")
    op.execute("DROP INDEX ix_usage_records_cost")
    op.execute("DROP TABLE refusal_rollups")
