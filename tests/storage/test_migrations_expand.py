"""T154: each migration only adds what the version before can live with, and holds nobody up while it does.

Every migration is run by itself, on the schema of the one before it; what it did is read from PostgreSQL, not from its text.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from sqlalchemy import Connection, event

from app.storage import migrate as module
from app.storage.migrate import LOCK_TIMEOUT_MS, MIGRATIONS
from tests.storage.conftest import quiet

REVISIONS = sorted(path.name[:4] for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))
BEFORE_THE_FIRST_RELEASE = {
    "0008": "builds indexes of keys under the lock of its new column: no database of its age is large",
}
"""What newer migrations may not do. No name is ever added here."""

COLUMNS = """
SELECT table_name, column_name, data_type, is_nullable = 'YES' AS may_be_null, column_default IS NOT NULL AS has_default
FROM information_schema.columns WHERE table_schema = 'public'
"""
CONSTRAINTS = """
SELECT conrelid::regclass::text, conname, ARRAY(SELECT attname::text FROM pg_attribute
    WHERE attrelid = conrelid AND attnum = ANY(conkey) ORDER BY attname)
FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND conrelid <> 0
UNION ALL
SELECT indrelid::regclass::text, indexrelid::regclass::text, ARRAY(SELECT attname::text FROM pg_attribute
    WHERE attrelid = indrelid AND attnum = ANY(indkey) ORDER BY attname)
FROM pg_index JOIN pg_class ON pg_class.oid = indrelid
WHERE indisunique AND relnamespace = 'public'::regnamespace AND indrelid::regclass::text <> 'alembic_version'
"""
LOCKS = """
SELECT relation::regclass::text FROM pg_locks
WHERE pid = pg_backend_pid() AND granted AND mode = 'AccessExclusiveLock' AND locktype = 'relation'
"""
WORK = re.compile(r"^\s*(INSERT|UPDATE|DELETE|CREATE (UNIQUE )?INDEX)\b|CREATE INDEX", re.IGNORECASE)

Column = tuple[str, str]


@dataclass(slots=True)
class Schema:
    columns: dict[Column, tuple[str, bool, bool]] = field(default_factory=dict)
    """Type, whether it may be null, whether it has a default."""
    constraints: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    """The columns of each, by table and name; unique indexes among them."""

    @property
    def tables(self) -> set[str]:
        return {table for table, _ in self.columns}


@dataclass(slots=True)
class Migration:
    revision: str
    before: Schema
    after: Schema
    closed: set[str]
    """Tables of the version before that nobody could read while it ran."""
    statements: list[str]
    lock_timeout: str


def schema_of(connection: Connection) -> Schema:
    schema = Schema()
    for table, column, kind, may_be_null, has_default in connection.exec_driver_sql(COLUMNS):
        schema.columns[table, column] = (kind, may_be_null, has_default)
    for table, name, columns in connection.exec_driver_sql(CONSTRAINTS):
        schema.constraints[table, name] = set(columns)
    return schema


def stepped(connection: Connection) -> list[Migration]:
    """Run them all, one after the other, and note what each does."""
    done = []
    statements: list[str] = []
    locked: set[str] = set()
    timeouts: list[str] = []
    is_looking = False

    def note(_: object, __: object, statement: str, *___: object) -> None:
        if not is_looking:
            statements.append(statement)

    def look(committing: Connection) -> None:
        nonlocal is_looking
        is_looking = True
        locked.update(committing.exec_driver_sql(LOCKS).scalars())
        timeouts.append(str(committing.exec_driver_sql("SHOW lock_timeout").scalar_one()))
        is_looking = False

    event.listen(connection.engine, "before_cursor_execute", note)
    for revision in REVISIONS:
        before = schema_of(connection)
        connection.commit()
        event.listen(connection.engine, "commit", look)
        statements.clear()
        locked.clear()
        module._run_alembic(connection, "upgrade", revision)
        connection.commit()
        event.remove(connection.engine, "commit", look)
        ran, closed = list(statements), locked & before.tables
        done.append(Migration(revision, before, schema_of(connection), closed, ran, timeouts[-1]))
        connection.commit()
    return done


@pytest.fixture
async def migrations(empty_database: str) -> AsyncIterator[list[Migration]]:
    engine = module._open(empty_database)
    async with module._locked(engine, quiet) as connection:
        yield await connection.run_sync(stepped)
    await engine.dispose()


async def test_every_migration_only_adds_and_closes_no_table_while_it_works(migrations: list[Migration]) -> None:
    """T154."""
    assert [each.revision for each in migrations] == REVISIONS
    for each in migrations:
        before, after = each.before, each.after
        for column, (kind, may_be_null, has_default) in before.columns.items():
            assert column in after.columns, f"{each.revision} takes {column} away"
            now_kind, now_may_be_null, now_has_default = after.columns[column]
            assert now_kind == kind, f"{each.revision} changes the type of {column}"
            assert now_may_be_null or not may_be_null, f"{each.revision} demands {column}"
            assert now_has_default or not has_default, f"{each.revision} takes the default of {column} away"
        added = after.columns.keys() - before.columns.keys()
        for column in added:
            _, may_be_null, has_default = after.columns[column]
            assert column[0] not in before.tables or may_be_null or has_default, f"{each.revision} demands {column}"
        for table, name in after.constraints.keys() - before.constraints.keys():
            columns = {(table, column) for column in after.constraints[table, name]}
            assert table not in before.tables or columns <= added, f"{each.revision} restricts {table} by {name}"


async def test_no_migration_works_while_nobody_may_read_a_table(migrations: list[Migration]) -> None:
    """T154: ACCESS EXCLUSIVE is for what is done at once. Waiting for it is bounded, too: 2 s, and then it begins anew."""
    for each in migrations:
        assert each.lock_timeout == f"{LOCK_TIMEOUT_MS // 1000}s", each.revision
        work = [statement for statement in each.statements if WORK.search(statement)]
        on_closed = [statement for statement in work for table in each.closed if re.search(rf"\b{table}\b", statement)]
        if each.revision in BEFORE_THE_FIRST_RELEASE:
            assert on_closed, f"{each.revision} is no exception any more"
        else:
            assert on_closed == [], each.revision
