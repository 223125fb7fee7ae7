"""An audit trail that refuses to be rewritten, remembers how long it is, and can be searched by action and time.

Revision: 0007, after 0006. The version before goes on working beside this one: what is new is done by triggers, for its rows too.

The trigger lets a superuser who is not the gateway through: he could drop it as well, so refusing him would protect nothing. What he
rewrites, the chain of hashes shows.
"""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

HEAD = """
CREATE TABLE audit_head (
    id SMALLINT NOT NULL,
    last_id BIGINT NOT NULL,
    hash BYTEA NOT NULL,
    CONSTRAINT pk_audit_head PRIMARY KEY (id),
    CONSTRAINT ck_audit_head_single_row CHECK (id = 1)
)
"""
FOLLOW = """
CREATE FUNCTION audit_log_follow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO audit_head (id, last_id, hash) VALUES (1, NEW.id, NEW.hash)
    ON CONFLICT (id) DO UPDATE SET last_id = EXCLUDED.last_id, hash = EXCLUDED.hash;
    RETURN NULL;
END $$
"""
REFUSE = """
CREATE FUNCTION audit_log_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('is_superuser') = 'on' AND current_setting('application_name') NOT LIKE 'antigravity%' THEN
        IF TG_OP = 'UPDATE' THEN
            RETURN NEW;
        END IF;
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'audit_log is append-only: % is refused', TG_OP USING ERRCODE = 'insufficient_privilege';
END $$
"""
TRIGGERS = (
    "CREATE TRIGGER audit_log_follow AFTER INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION audit_log_follow()",
    "CREATE TRIGGER audit_log_refuse BEFORE UPDATE OR DELETE ON audit_log"
    " FOR EACH ROW EXECUTE FUNCTION audit_log_refuse()",
    "CREATE TRIGGER audit_log_refuse_truncate BEFORE TRUNCATE ON audit_log"
    " FOR EACH STATEMENT EXECUTE FUNCTION audit_log_refuse()",
)


def upgrade() -> None:
    op.execute("LOCK TABLE audit_log IN SHARE ROW EXCLUSIVE MODE")  # no row between the copy and the trigger
    op.execute(HEAD)
    op.execute("INSERT INTO audit_head SELECT 1, id, hash FROM audit_log ORDER BY id DESC LIMIT 1")
    op.execute(FOLLOW)
    op.execute(REFUSE)
    for trigger in TRIGGERS:
        op.execute(trigger)
    op.execute("CREATE INDEX ix_audit_log_action ON audit_log (action, id)")
    op.execute("CREATE INDEX ix_audit_log_at ON audit_log (at)")


def downgrade() -> None:
    for name in ("audit_log_follow", "audit_log_refuse", "audit_log_refuse_truncate"):
        op.execute(f"DROP TRIGGER {name} ON audit_log")
    op.execute("DROP FUNCTION audit_log_follow()")
    op.execute("DROP FUNCTION audit_log_refuse()")
    op.execute("DROP TABLE audit_head")
    op.execute("DROP INDEX ix_audit_log_action")
    op.execute("DROP INDEX ix_audit_log_at")
