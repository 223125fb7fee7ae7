"""Alerts of budgets, and the outbox of their webhook.

Revision: 0002, after 0001. Only adds tables, which the version before does not know: it goes on working beside this one.
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ALERTS = """
CREATE TABLE budget_alerts (
    id UUID NOT NULL,
    created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    scope TEXT NOT NULL,
    scope_id TEXT NOT NULL,
    period_kind TEXT NOT NULL,
    period TEXT NOT NULL,
    side TEXT NOT NULL,
    percent SMALLINT NOT NULL,
    limit_nanousd BIGINT NOT NULL,
    spent_nanousd BIGINT NOT NULL,
    CONSTRAINT pk_budget_alerts PRIMARY KEY (id),
    CONSTRAINT uq_budget_alerts_threshold UNIQUE (scope, scope_id, period, side, percent),
    CONSTRAINT ck_budget_alerts_scope CHECK (scope IN ('key', 'user', 'app', 'model')),
    CONSTRAINT ck_budget_alerts_side CHECK (side IN ('hard', 'soft'))
);
CREATE INDEX ix_budget_alerts_newest ON budget_alerts (created_at, id);
CREATE TABLE webhook_deliveries (
    alert_id UUID NOT NULL,
    created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    state TEXT DEFAULT 'pending' NOT NULL,
    attempts INTEGER DEFAULT '0' NOT NULL,
    next_attempt_at TIMESTAMPTZ NOT NULL,
    last_attempt_at TIMESTAMPTZ,
    last_status SMALLINT,
    last_error TEXT,
    CONSTRAINT pk_webhook_deliveries PRIMARY KEY (alert_id),
    CONSTRAINT fk_webhook_deliveries_alert_id FOREIGN KEY (alert_id) REFERENCES budget_alerts (id) ON DELETE CASCADE,
    CONSTRAINT ck_webhook_deliveries_state CHECK (state IN ('pending', 'delivered', 'failed'))
);
CREATE INDEX ix_webhook_deliveries_due ON webhook_deliveries (next_attempt_at) WHERE state = 'pending';
"""


def upgrade() -> None:
    for statement in ALERTS.split(";\n"):
        if statement.strip():
            op.execute(statement)


def downgrade() -> None:
    """Forgets the alerts. A later upgrade makes those of the present periods again, at the next call of their holders."""
    op.execute("DROP TABLE webhook_deliveries")
    op.execute("DROP TABLE budget_alerts")
