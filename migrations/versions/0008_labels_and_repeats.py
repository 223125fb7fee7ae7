"""Labels of keys, when users were deleted, answers kept for repeats, and indexes that long lists are searched by.

Revision: 0008, after 0007. Only adds: a column with a default, tables, indexes. The version before goes on working beside this one.
"""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

ADDED = """
ALTER TABLE keys ADD COLUMN labels JSONB DEFAULT '{}' NOT NULL;
CREATE INDEX ix_keys_labels ON keys USING gin (labels);
CREATE INDEX ix_keys_name_id ON keys (name, id);
CREATE TABLE deleted_users (
    oid TEXT NOT NULL,
    deleted_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT pk_deleted_users PRIMARY KEY (oid)
);
CREATE TABLE repeatable_requests (
    actor TEXT NOT NULL,
    key TEXT NOT NULL,
    request_digest BYTEA NOT NULL,
    begun_at TIMESTAMPTZ NOT NULL,
    status SMALLINT,
    answer_sealed BYTEA,
    CONSTRAINT pk_repeatable_requests PRIMARY KEY (actor, key)
);
CREATE INDEX ix_repeatable_requests_begun_at ON repeatable_requests (begun_at);
"""

# Words anywhere in a text are found by index only with trigrams. Where the extension is not installed, or may not be created by this
# role, searches read the table within the statement's time-out, and everything else is the same.
TRIGRAMS = r"""
DO $$
BEGIN
    CREATE EXTENSION IF NOT EXISTS pg_trgm;
    CREATE INDEX IF NOT EXISTS ix_users_words ON users USING gin (
        (lower(oid || E'\n' || coalesce(email, '') || E'\n' || coalesce(name, ''))) gin_trgm_ops);
    CREATE INDEX IF NOT EXISTS ix_keys_words ON keys USING gin (
        (lower(name || E'\n' || user_oid || E'\n' || key_prefix || E'\n' || last4 || E'\n' || labels::text)) gin_trgm_ops);
EXCEPTION WHEN insufficient_privilege OR undefined_file OR feature_not_supported THEN
    RAISE NOTICE 'pg_trgm is not available: searches in long lists read the whole table';
END
$$
"""


def upgrade() -> None:
    for statement in ADDED.split(";\n"):
        if statement.strip():
            op.execute(statement)
    op.execute(TRIGRAMS)


def downgrade() -> None:
    """Labels are lost, and which users were deleted. The extension stays: others may use it."""
    op.execute("DROP INDEX IF EXISTS ix_keys_words")
    op.execute("DROP INDEX IF EXISTS ix_users_words")
    op.execute("DROP TABLE repeatable_requests")
    op.execute("DROP TABLE deleted_users")
    op.execute("DROP INDEX ix_keys_name_id")
    op.execute("ALTER TABLE keys DROP COLUMN labels")
