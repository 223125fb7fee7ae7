"""A user whose prompts and answers are not to be kept, by whichever key or app he calls.

Revision: 0012, after 0011. Only adds a column without a default, which is done at once, also on a large table.
"""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE users ADD COLUMN log_content TEXT")
    # Not checked for the rows there are: all of them are NULL.
    op.execute(
        "ALTER TABLE users ADD CONSTRAINT ck_users_log_content CHECK (log_content IN ('full', 'metadata')) NOT VALID"
    )
    op.execute("ALTER TABLE users VALIDATE CONSTRAINT ck_users_log_content")


def downgrade() -> None:
    """From then on what these users write is kept as their keys and apps say."""
    op.execute("ALTER TABLE users DROP COLUMN log_content")
