"""An index of a large table, built while everybody writes to it: for migrations.

1. The parent's index is made on nothing but the parent, which holds no rows: its lock is gone at once. Partitions that are made from
   now on bring theirs with them.
2. Each partition's own index is built `CONCURRENTLY`, and tied to the parent's.
3. What an attempt that failed left behind (an index that is not valid) goes first: the same call again finishes the work.

`CONCURRENTLY` waits for transactions that are older than itself (a backup, a long report), and nobody waits for it: that wait needs no
bound. All other waits for locks keep theirs.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

MAX_NAME_BYTES = 63
"""PostgreSQL cuts longer names off, without a word."""

_PARTITIONS = text("""
SELECT child.relname FROM pg_inherits JOIN pg_class child ON child.oid = inhrelid
WHERE inhparent = to_regclass(:name) ORDER BY child.relname
""")
_IS_PARTITIONED = text("SELECT relkind = 'p' FROM pg_class WHERE oid = to_regclass(:name)")
_IS_VALID = text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")
_TIED = text("""
SELECT 1 FROM pg_inherits JOIN pg_index ON indexrelid = inhrelid
WHERE inhparent = to_regclass(:index) AND indrelid = to_regclass(:partition)
""")


def build_index(connection: Connection, name: str, table: str, what: str) -> None:
    """`what` is all that stands behind the table's name: columns, and a condition. The connection commits each statement by itself.

    A table without partitions gets its index in one step.
    """
    if not connection.execute(_IS_PARTITIONED, {"name": table}).scalar():
        _build(connection, name, table, what)
        return
    connection.execute(text(f"CREATE INDEX IF NOT EXISTS {name} ON ONLY {table} {what}"))
    partitions = list(connection.execute(_PARTITIONS, {"name": table}).scalars())
    for partition in partitions:
        if connection.execute(_TIED, {"index": name, "partition": partition}).scalar() is None:
            own = f"{partition}_{name}"[:MAX_NAME_BYTES]
            _build(connection, own, partition, what)
            connection.execute(text(f"ALTER INDEX {name} ATTACH PARTITION {own}"))


def _build(connection: Connection, name: str, table: str, what: str) -> None:
    if connection.execute(_IS_VALID, {"name": name}).scalar() is False:
        connection.execute(text(f"DROP INDEX CONCURRENTLY {name}"))
    bound = connection.execute(text("SHOW lock_timeout")).scalar_one()
    connection.execute(text("SET lock_timeout = 0"))
    try:
        connection.execute(text(f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} ON {table} {what}"))
    finally:
        connection.execute(text(f"SET lock_timeout = '{bound}'"))
