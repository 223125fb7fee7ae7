"""Which SECRET_KEY this database was set up with: a fingerprint that tells nothing about it.

Revision: 0010, after 0009. Only adds a table, which the version before does not know: it goes on working beside this one.
"""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE secret_key (
            id SMALLINT NOT NULL,
            fingerprint BYTEA NOT NULL,
            set_at TIMESTAMPTZ DEFAULT now() NOT NULL,
            CONSTRAINT pk_secret_key PRIMARY KEY (id),
            CONSTRAINT ck_secret_key_single_row CHECK (id = 1)
        )
        """
    )


def downgrade() -> None:
    op.execute("DROP TABLE secret_key")
