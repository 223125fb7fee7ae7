"""Users are changed in place: each page of the table keeps room for a second version of its rows.

Revision: 0013, after 0012. Holds for rows written from now on; a table that is there already follows with `VACUUM FULL users`.

In a full page a changed row moves to another one, and each index gets an entry for it, the trigrams of the search a hundred: that was
most of the time it took to expire 50,000 users.
"""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE users SET (fillfactor = 50)")


def downgrade() -> None:
    op.execute("ALTER TABLE users RESET (fillfactor)")
