"""How calls find an endpoint: stickiness, retries and shadows of models, breakers of endpoints, and what happened to them.

Revision: 0006, after 0005. Only adds columns with defaults and a table: the version before goes on working beside this one.
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

ADDED = """
ALTER TABLE models ADD COLUMN sticky TEXT;
ALTER TABLE models ADD COLUMN max_retries SMALLINT;
ALTER TABLE models ADD COLUMN shadow JSONB;
ALTER TABLE models ADD CONSTRAINT ck_models_sticky CHECK (sticky IN ('user', 'prompt'));
ALTER TABLE models ADD CONSTRAINT ck_models_max_retries CHECK (max_retries >= 0);
ALTER TABLE endpoints ADD COLUMN breaker JSONB DEFAULT '{}' NOT NULL;
CREATE TABLE endpoint_events (
    id UUID NOT NULL,
    at TIMESTAMPTZ NOT NULL,
    endpoint_id UUID NOT NULL,
    model TEXT NOT NULL,
    kind TEXT NOT NULL,
    reason TEXT,
    message TEXT,
    upstream_status SMALLINT,
    open_ms BIGINT,
    process TEXT DEFAULT '' NOT NULL,
    once TEXT,
    CONSTRAINT pk_endpoint_events PRIMARY KEY (id),
    CONSTRAINT uq_endpoint_events_once UNIQUE (once)
);
CREATE INDEX ix_endpoint_events_newest ON endpoint_events (endpoint_id, at, id);
CREATE INDEX ix_endpoint_events_at ON endpoint_events (at);
"""


def upgrade() -> None:
    for statement in ADDED.split(";\n"):
        if statement.strip():
            op.execute(statement)


def downgrade() -> None:
    """Forgets what happened to endpoints, and these settings."""
    op.execute("DROP TABLE endpoint_events")
    op.execute("ALTER TABLE endpoints DROP COLUMN breaker")
    for column in ("shadow", "max_retries", "sticky"):
        op.execute(f"ALTER TABLE models DROP COLUMN {column}")
