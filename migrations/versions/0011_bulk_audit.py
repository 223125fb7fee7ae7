"""The trail's head follows whole statements, and lists are sorted by when keys and payments end without sorting them.

Revision: 0011, after 0010. The version before goes on working beside this one: it inserts one row a statement.

A trigger for each row wrote the head once for each of thousands of rows, each time past all versions before: 50,000 expired users took
17 seconds, most of it for that.
"""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

FOLLOW_ROWS = """
CREATE OR REPLACE FUNCTION audit_log_follow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO audit_head (id, last_id, hash) VALUES (1, NEW.id, NEW.hash)
    ON CONFLICT (id) DO UPDATE SET last_id = EXCLUDED.last_id, hash = EXCLUDED.hash;
    RETURN NULL;
END $$
"""
FOLLOW_STATEMENTS = """
CREATE OR REPLACE FUNCTION audit_log_follow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO audit_head (id, last_id, hash)
    SELECT 1, written.id, written.hash FROM written ORDER BY written.id DESC LIMIT 1
    ON CONFLICT (id) DO UPDATE SET last_id = EXCLUDED.last_id, hash = EXCLUDED.hash;
    RETURN NULL;
END $$
"""


def upgrade() -> None:
    op.execute("LOCK TABLE audit_log IN SHARE ROW EXCLUSIVE MODE")  # no row between the two triggers
    op.execute("DROP TRIGGER audit_log_follow ON audit_log")
    op.execute(FOLLOW_STATEMENTS)
    op.execute(
        "CREATE TRIGGER audit_log_follow AFTER INSERT ON audit_log REFERENCING NEW TABLE AS written"
        " FOR EACH STATEMENT EXECUTE FUNCTION audit_log_follow()"
    )
    op.execute("CREATE INDEX ix_keys_end ON keys ((coalesce(expires_at, TIMESTAMPTZ '9999-12-31 00:00:00+00')), id)")
    op.execute("CREATE INDEX ix_users_paid_until ON users ((coalesce(payment_valid_until, DATE 'infinity')), oid)")


def downgrade() -> None:
    op.execute("DROP INDEX ix_users_paid_until")
    op.execute("DROP INDEX ix_keys_end")
    op.execute("LOCK TABLE audit_log IN SHARE ROW EXCLUSIVE MODE")
    op.execute("DROP TRIGGER audit_log_follow ON audit_log")
    op.execute(FOLLOW_ROWS)
    op.execute(
        "CREATE TRIGGER audit_log_follow AFTER INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION audit_log_follow()"
    )
