"""A planted canary is found wherever and however it hides; where there is none, nothing is found."""

from __future__ import annotations

import base64
import gzip
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
import redis.asyncio

from app.embedded import Servers
from tests.kit.canaries import Canary, assert_absent, search

KEY = Canary.fresh("provider-key")
OTHER = Canary.fresh("prompt")


@pytest.fixture
async def database(servers: Servers) -> AsyncIterator[str]:
    """A fresh database; yields its URL."""
    admin = await asyncpg.connect(servers.database_url)
    await admin.execute("create database canaries")
    parts = urlsplit(servers.database_url)
    try:
        yield urlunsplit(parts._replace(path="/canaries"))
    finally:
        await admin.execute("drop database canaries with (force)")
        await admin.close()


@pytest.fixture
async def valkey(servers: Servers) -> AsyncIterator[redis.asyncio.Redis]:
    client = redis.asyncio.Redis.from_url(servers.redis_url)
    await client.flushall()
    yield client
    await client.flushall()
    await client.aclose()


def hidden_forms() -> dict[str, bytes]:
    value = KEY.value.encode()
    return {
        "plain": b"key=" + value,
        "without its prefix": KEY.secret.encode(),
        "hex": b"\\x" + value.hex().encode(),
        **{f"base64 at {shift}": base64.b64encode(b"x" * shift + value + b"tail") for shift in range(4)},
        **{f"base64url at {shift}": base64.urlsafe_b64encode(b"?" * shift + value) for shift in range(4)},
        "percent": "".join(f"%{byte:02X}" for byte in value).encode(),
        "json escapes": "".join(f"\\u{ord(c):04x}" for c in KEY.value).encode(),
        "utf-16": KEY.value.encode("utf-16-le"),
        "gzip": gzip.compress(b"log line " + value),
        "zlib": zlib.compress(b"log line " + value),
    }


@pytest.mark.parametrize("name", list(hidden_forms()))
async def test_every_encoding_is_found(name: str) -> None:
    with pytest.raises(AssertionError, match="provider-key") as caught:
        await assert_absent([KEY, OTHER], texts={"the log": hidden_forms()[name]})
    assert "the log" in str(caught.value)
    assert KEY.secret not in str(caught.value), "the report must not leak what it reports"


async def test_innocent_texts_pass() -> None:
    masked = KEY.value.removesuffix(KEY.secret) + "…" + KEY.value[-4:]
    other_key = Canary.fresh("provider-key").value
    await assert_absent(
        [KEY, OTHER], texts=[masked, other_key, base64.b64encode(other_key.encode()), b"\x1f\x8bnot gzip", b""]
    )


def test_fresh_canaries_differ_and_look_real() -> None:
    assert Canary.fresh("provider-key").value != Canary.fresh("provider-key").value
    assert KEY.value.startswith("sk-canary-")


def test_an_existing_secret_is_sought_without_what_may_be_shown() -> None:
    canary = Canary.of("api-key", "sk-gw-shown" + "S" * 30, prefix_characters=11)
    assert canary.secret == "S" * 30
    with pytest.raises(ValueError, match="too short"):
        Canary.of("api-key", "sk-short", prefix_characters=3)


async def test_a_search_for_nothing_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="cannot fail"):
        await assert_absent([], texts=["x"])


async def test_files_and_folders_are_searched(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "access.log").write_text("nothing here")
    await assert_absent([KEY], files=[tmp_path])
    (tmp_path / "deep" / "old.log.gz").write_bytes(gzip.compress(KEY.value.encode()))
    [finding] = await search([KEY], files=[tmp_path])
    assert finding.where.endswith("old.log.gz (gzip)")


# Names as parameters, not values: every xdist worker makes its own canaries, and must collect the same tests.
CELLS: dict[str, tuple[str, object]] = {
    "text": ("text", KEY.value),
    "varchar": ("varchar(200)", KEY.value),
    "jsonb": ("jsonb", f'{{"a": ["{KEY.value}"]}}'),
    "array": ("text[]", [KEY.value]),
    "bytes": ("bytea", KEY.value.encode()),
    "packed bytes": ("bytea", zlib.compress(KEY.value.encode())),
    "composite": ("other.pair", (1, KEY.value)),
}


@pytest.mark.parametrize("kind", list(CELLS))
async def test_every_kind_of_column_is_searched(database: str, kind: str) -> None:
    column_type, value = CELLS[kind]
    connection = await asyncpg.connect(database)
    try:
        await connection.execute("create schema other")
        await connection.execute("create type other.pair as (a int, b text)")
        await connection.execute(f'create table other."Odd Table" (id int, "Odd Column" {column_type})')
        await assert_absent([KEY], database_url=database)
        await connection.execute('insert into other."Odd Table" values (1, $1)', value)
    finally:
        await connection.close()
    with pytest.raises(AssertionError, match=r"table other\.Odd Table, column Odd Column"):
        await assert_absent([KEY], database_url=database)


async def test_partitions_are_searched(database: str) -> None:
    connection = await asyncpg.connect(database.replace("postgresql://", "postgres://"))
    try:
        await connection.execute("create table log (at int, note text) partition by range (at)")
        await connection.execute("create table log_1 partition of log for values from (0) to (10)")
        await connection.execute("insert into log select g % 10, 'fine' from generate_series(1, 1000) g")
        await assert_absent([KEY], database_url=database)
        await connection.execute("insert into log values (3, $1)", f"x{KEY.secret}x")
    finally:
        await connection.close()
    [finding] = await search([KEY], database_url=database)
    assert finding.where == "table public.log_1, column note"


@pytest.mark.parametrize("kind", ["string", "hash name", "hash value", "list", "set", "zset", "stream", "group", "key"])
async def test_every_kind_of_redis_value_is_searched(servers: Servers, valkey: redis.asyncio.Redis, kind: str) -> None:
    await valkey.set("innocent", "value")
    await valkey.xadd("s0", {"a": "b"})
    await assert_absent([KEY], redis_url=servers.redis_url)
    match kind:
        case "string":
            await valkey.set("k", KEY.value)
        case "hash name":
            await valkey.hset("k", KEY.value, "x")
        case "hash value":
            await valkey.hset("k", "x", KEY.value)
        case "list":
            await valkey.rpush("k", "x", KEY.value)
        case "set":
            await valkey.sadd("k", KEY.value)
        case "zset":
            await valkey.zadd("k", {KEY.value: 1})
        case "stream":
            await valkey.xadd("k", {"field": f"a{KEY.value}b"})
        case "group":
            await valkey.xgroup_create("s0", KEY.value)
        case "key":
            await valkey.set(f"k:{KEY.value}", "1")
    with pytest.raises(AssertionError, match="redis db0"):
        await assert_absent([KEY], redis_url=servers.redis_url)


@pytest.mark.usefixtures("valkey")
async def test_other_logical_databases_are_searched(servers: Servers) -> None:
    other = redis.asyncio.Redis.from_url(servers.redis_url)
    other.connection_pool.connection_kwargs["db"] = 3
    await other.set("k", KEY.value)
    await other.aclose()
    [finding] = await search([KEY], redis_url=servers.redis_url)
    assert "redis db3" in finding.where
