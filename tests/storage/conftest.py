"""A PostgreSQL per test process, a database per test.

The server comes from the wheel; `TEST_POSTGRES_URL` (a superuser's `postgresql://…`) names another one to run against.
Databases are copies of one that was migrated once, which takes 30 ms.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database import open_engine
from app.embedded import PostgresServer
from app.storage.migrate import migrate

for suite in ("conform_usage", "conform_lost", "conform_identity", "conform_catalog"):
    pytest.register_assert_rewrite(f"tests.storage.{suite}")  # before anybody imports them

TEMPLATE = "gateway_template"
PATIENCE_S = 20.0
"""For one of the five connections of a test's engine. The product gives up after two seconds, for which a machine may well stand still."""
_numbers = count(1)


def quiet(_line: str) -> None:
    """For progress that no test looks at."""


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """`postgresql://…` of a superuser, to the maintenance database."""
    given = os.environ.get("TEST_POSTGRES_URL")
    if given:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="gateway-postgres-") as home:
        server = PostgresServer(Path(home) / "postgres", durable=False, on_progress=quiet)
        yield server.start()
        server.stop()


@pytest.fixture(scope="session")
def template(postgres_url: str) -> str:
    """The name of a migrated database that tests copy."""
    name = f"{TEMPLATE}_{os.getpid()}"
    asyncio.run(_admin(postgres_url, f"DROP DATABASE IF EXISTS {name}", f"CREATE DATABASE {name}"))
    assert asyncio.run(migrate(url_of(postgres_url, name), quiet))
    return name


@pytest.fixture
async def empty_database(postgres_url: str) -> AsyncIterator[str]:
    """The URL of a database without any table."""
    name = _next_name()
    await _admin(postgres_url, f"CREATE DATABASE {name}")
    yield url_of(postgres_url, name)
    await _admin(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def database(postgres_url: str, template: str) -> AsyncIterator[str]:
    """The URL of a migrated database of this test's own."""
    name = _next_name()
    await _create_copy(postgres_url, name, template)
    yield url_of(postgres_url, name)
    await _admin(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def engine(database: str) -> AsyncIterator[AsyncEngine]:
    with pytest.MonkeyPatch.context() as patience:
        patience.setattr("app.database.POOL_WAIT_S", PATIENCE_S)
        patience.setattr("app.database.CONNECT_TIMEOUT_S", PATIENCE_S)
        opened = open_engine(database)
    yield opened
    await opened.dispose()


def url_of(postgres_url: str, database: str) -> str:
    """The same server, another database, in SQLAlchemy's form."""
    url = make_url(postgres_url).set(drivername="postgresql+asyncpg", database=database)
    return url.render_as_string(hide_password=False)


def _next_name() -> str:
    return f"gateway_test_{os.getpid()}_{next(_numbers)}"


async def _create_copy(postgres_url: str, name: str, template: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    try:
        # Copying files beats copying through the log, but before PostgreSQL 15 it is the only way and has no name.
        how = " STRATEGY file_copy" if connection.get_server_version().major >= 15 else ""
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}{how}")
    finally:
        await connection.close()


async def _admin(postgres_url: str, *statements: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()
