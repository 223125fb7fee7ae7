"""Secrets that a key had before it was rotated, for as long as their grace lasts.

Revision: 0004, after 0003. Only adds a table, which the version before does not know: it goes on working beside this one.
"""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE former_credentials (
            digest BYTEA NOT NULL,
            key_id UUID NOT NULL,
            key_prefix TEXT NOT NULL,
            last4 TEXT NOT NULL,
            expires_at TIMESTAMPTZ NOT NULL,
            CONSTRAINT pk_former_credentials PRIMARY KEY (digest),
            CONSTRAINT fk_former_credentials_key_id FOREIGN KEY (key_id) REFERENCES keys (id) ON DELETE CASCADE
        )
        """
    )
    op.execute("CREATE INDEX ix_former_credentials_key_id ON former_credentials (key_id)")


def downgrade() -> None:
    """Ends every grace at once: who still uses a secret of before has to take the new one."""
    op.execute("DROP TABLE former_credentials")
