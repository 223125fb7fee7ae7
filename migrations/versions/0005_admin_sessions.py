"""Sessions of the dashboard, and the failed sign-ins that slow the next ones down.

Revision: 0005, after 0004. Only adds tables, which the version before does not know: it goes on working beside this one.
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

SESSIONS = """
CREATE TABLE admin_sessions (
    id UUID NOT NULL,
    digest BYTEA NOT NULL,
    kind TEXT NOT NULL,
    admin_id UUID,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    origin BYTEA,
    address TEXT,
    user_agent TEXT DEFAULT '' NOT NULL,
    opened_at TIMESTAMPTZ NOT NULL,
    last_seen_at TIMESTAMPTZ NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT pk_admin_sessions PRIMARY KEY (id),
    CONSTRAINT uq_admin_sessions_digest UNIQUE (digest),
    CONSTRAINT fk_admin_sessions_admin_id_admins FOREIGN KEY (admin_id) REFERENCES admins (id) ON DELETE CASCADE,
    CONSTRAINT ck_admin_sessions_kind CHECK (kind IN ('token', 'setting', 'sso')),
    CONSTRAINT ck_admin_sessions_role CHECK (role IN ('owner', 'admin', 'billing', 'viewer'))
);
CREATE INDEX ix_admin_sessions_admin_id ON admin_sessions (admin_id);
CREATE INDEX ix_admin_sessions_expires_at ON admin_sessions (expires_at);
CREATE TABLE sign_in_failures (
    id BIGSERIAL NOT NULL,
    network TEXT NOT NULL,
    account TEXT NOT NULL,
    at TIMESTAMPTZ NOT NULL,
    CONSTRAINT pk_sign_in_failures PRIMARY KEY (id)
);
CREATE INDEX ix_sign_in_failures_bucket ON sign_in_failures (network, account, at);
CREATE INDEX ix_sign_in_failures_at ON sign_in_failures (at);
"""


def upgrade() -> None:
    for statement in SESSIONS.split(";\n"):
        if statement.strip():
            op.execute(statement)


def downgrade() -> None:
    """Signs everybody out of the dashboard."""
    op.execute("DROP TABLE sign_in_failures")
    op.execute("DROP TABLE admin_sessions")
