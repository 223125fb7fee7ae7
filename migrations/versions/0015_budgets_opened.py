"""Budgets say since when they have been in force without a break: one that was taken away and made again is counted anew.

Revision: 0015, after 0014. Budgets that are there already count as in force since ever.
"""

from __future__ import annotations

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE budgets ADD COLUMN opened_ms bigint NOT NULL DEFAULT 0")


def downgrade() -> None:
    op.execute("ALTER TABLE budgets DROP COLUMN opened_ms")
