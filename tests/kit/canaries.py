"""Secrets that look real and must never be seen again, and the search for them in everything a gateway leaves behind.

A canary is looked for as it is, in hexadecimal, in base64 (at all three alignments, both alphabets) and percent-encoded; in
the texts and files given, in every column of every table of a database, in every key and value of a Redis; and inside
whatever of that is compressed with gzip or zlib. What is searched for is the part after the recognisable prefix, so
that a masked prefix (`sk-canary-…`) is no finding and a secret without its prefix is one.
"""

from __future__ import annotations

import base64
import gzip
import secrets
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast
from urllib.parse import quote

import asyncpg
import redis.asyncio

Kind = Literal[
    "provider-key", "anthropic-key", "google-key", "gateway-secret", "admin-token", "api-key", "session-id", "password",
    "prompt", "reply",
]  # fmt: skip

_PREFIXES: Mapping[Kind, str] = {
    "provider-key": "sk-canary-",
    "anthropic-key": "sk-ant-api03-canary-",
    "google-key": "AIzaSyCanary",
    "gateway-secret": "gws-canary-",
    "admin-token": "adm-canary-",
    "api-key": "sk-canary-user-",
    "session-id": "ses-canary-",
    "password": "pw-canary-",
    "prompt": "please repeat the word canary",
    "reply": "the word is canary",
}
SECRET_CHARACTERS: Final = 32
MINIMUM_SECRET_CHARACTERS: Final = 12
"""Shorter ones would be found by chance."""
FETCH_ROWS: Final = 200
FILE_CAP_BYTES: Final = 512 * 1024 * 1024
UNPACKED_CAP_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Canary:
    """A value to plant, and what of it must not turn up."""

    kind: Kind
    value: str
    secret: str
    """The part that is searched for."""

    @classmethod
    def fresh(cls, kind: Kind) -> Canary:
        """A new one; a real format where there is one, letters and digits in its secret part."""
        alphabet = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghjkmnpqrstuvwxyz23456789"
        secret = "".join(secrets.choice(alphabet) for _ in range(SECRET_CHARACTERS))
        separator = " " if kind in ("prompt", "reply") else ""
        return cls(kind, f"{_PREFIXES[kind]}{separator}{secret}", secret)

    @classmethod
    def of(cls, kind: Kind, value: str, *, prefix_characters: int = 0) -> Canary:
        """An existing secret (an API key the gateway made). `prefix_characters` at its start may be shown.

        Raises:
            ValueError: what remains is too short to be searched for.
        """
        secret = value[prefix_characters:]
        if len(secret) < MINIMUM_SECRET_CHARACTERS:
            raise ValueError("the secret part is too short: it would be found by chance")
        return cls(kind, value, secret)

    def forms(self) -> dict[str, bytes]:
        """The byte strings that betray it, by the name of the encoding."""
        plain = self.secret.encode()
        forms = {"plain": plain, "hex": plain.hex().encode(), "HEX": plain.hex().upper().encode()}
        for shift in range(3):
            for name, encode in (("base64", base64.b64encode), ("base64url", base64.urlsafe_b64encode)):
                forms[f"{name}+{shift}"] = _inner_base64(encode(b"\0" * shift + plain), shift, len(plain))
        percent = quote(self.secret, safe="").encode()
        fully = "".join(f"%{byte:02X}" for byte in plain).encode()
        json_escaped = "".join(f"\\u{ord(character):04x}" for character in self.secret).encode()
        forms |= {
            "percent": percent,
            "percent-all": fully,
            "json-escaped": json_escaped,
            "utf-16": self.secret.encode("utf-16-le"),
        }
        return {name: form for name, form in forms.items() if name == "plain" or form != plain}


def _inner_base64(encoded: bytes, shift: int, size: int) -> bytes:
    """The characters that depend on the secret alone: those touched by bytes before or after it are left out."""
    first = -(-shift * 8 // 6)
    last = (shift + size) * 8 // 6
    return encoded[first:last]


@dataclass(frozen=True, slots=True)
class Finding:
    where: str
    kind: Kind
    form: str

    def __str__(self) -> str:
        return f"{self.kind} ({self.form}) in {self.where}"


async def assert_absent(
    canaries: Iterable[Canary],
    *,
    texts: Mapping[str, str | bytes] | Sequence[str | bytes] = (),
    files: Iterable[Path | str] = (),
    database_url: str | None = None,
    redis_url: str | None = None,
) -> None:
    """Searches everything named for every canary. A folder among `files` is searched with all below it.

    Raises:
        AssertionError: naming each place, kind and encoding, never the secret itself.
    """
    findings = await search(canaries, texts=texts, files=files, database_url=database_url, redis_url=redis_url)
    if findings:
        raise AssertionError("canaries were found:\n" + "\n".join(f"  {finding}" for finding in findings))


async def search(
    canaries: Iterable[Canary],
    *,
    texts: Mapping[str, str | bytes] | Sequence[str | bytes] = (),
    files: Iterable[Path | str] = (),
    database_url: str | None = None,
    redis_url: str | None = None,
) -> list[Finding]:
    """All findings, each place once per canary and encoding."""
    sought = _Sought(canaries)
    named = texts if isinstance(texts, Mapping) else {f"text {i}": text for i, text in enumerate(texts)}
    findings: dict[Finding, None] = {}

    def look(where: str, data: str | bytes) -> None:
        findings.update(dict.fromkeys(sought.found_in(where, data)))

    for where, text in named.items():
        look(where, text)
    for path in _files_below(files):
        look(f"file {path}", path.read_bytes()[:FILE_CAP_BYTES])
    if database_url is not None:
        async for where, cell in _cells(database_url):
            look(where, cell)
    if redis_url is not None:
        async for where, value in _redis_values(redis_url):
            look(where, value)
    return list(findings)


class _Sought:
    def __init__(self, canaries: Iterable[Canary]) -> None:
        self._forms = [(canary, name, form) for canary in canaries for name, form in canary.forms().items()]
        if not self._forms:
            raise ValueError("nothing to search for: a search without canaries cannot fail")

    def found_in(self, where: str, data: str | bytes) -> Iterator[Finding]:
        raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
        for packing, view in _views(raw):
            for canary, name, form in self._forms:
                if form in view:
                    yield Finding(where + packing, canary.kind, name)


def _views(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The bytes, and what they unpack to when they are gzip or zlib."""
    yield "", data
    if data[:2] == b"\x1f\x8b":
        yield from _unpacked(" (gzip)", data, 31)
    elif data[:1] == b"\x78":
        yield from _unpacked(" (zlib)", data, 15)


def _unpacked(packing: str, data: bytes, window_bits: int) -> Iterator[tuple[str, bytes]]:
    try:
        yield packing, zlib.decompressobj(window_bits).decompress(data, UNPACKED_CAP_BYTES)
    except (zlib.error, gzip.BadGzipFile):
        return  # it only looked packed


def _files_below(files: Iterable[Path | str]) -> Iterator[Path]:
    for file in map(Path, files):
        if file.is_dir():
            yield from (path for path in sorted(file.rglob("*")) if path.is_file())
        else:
            yield file


# ------------------------------------------------------------------ PostgreSQL


_TABLES: Final = """
    select n.nspname, c.relname
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where c.relkind in ('r', 'm') and n.nspname not like 'pg\\_%' and n.nspname <> 'information_schema'
     order by 1, 2
"""
_COLUMNS: Final = """
    select attname, atttypid = 'bytea'::regtype as is_bytea
      from pg_attribute
     where attrelid = $1::regclass and attnum > 0 and not attisdropped
     order by attnum
"""


async def _cells(database_url: str) -> AsyncIterator[tuple[str, str | bytes]]:
    """Every cell of every user table (partitions by themselves), as text; `bytea` as bytes."""
    connection = await asyncpg.connect(database_url.replace("postgresql+asyncpg://", "postgresql://"), timeout=10)
    try:
        for schema, table in await connection.fetch(_TABLES):
            name = f'"{schema}"."{table}"'
            columns = await connection.fetch(_COLUMNS, name)
            async for where, cell in _table_cells(connection, name, [(c["attname"], c["is_bytea"]) for c in columns]):
                yield f"table {schema}.{table}, {where}", cell
    finally:
        await connection.close(timeout=5)


async def _table_cells(
    connection: Any, table: str, columns: Sequence[tuple[str, bool]]
) -> AsyncIterator[tuple[str, str | bytes]]:
    if not columns:
        return
    selected = ", ".join(f'"{name}"' if is_bytea else f'"{name}"::text' for name, is_bytea in columns)
    async with connection.transaction(readonly=True, isolation="repeatable_read"):
        async for row in connection.cursor(f"select {selected} from {table}", prefetch=FETCH_ROWS):
            for (name, _), cell in zip(columns, row, strict=True):
                if cell is not None:
                    yield f"column {name}", cell


# ------------------------------------------------------------------ Redis


async def _redis_values(redis_url: str) -> AsyncIterator[tuple[str, bytes]]:
    """Every key and value of every logical database, whatever its type."""
    probe = redis.asyncio.Redis.from_url(redis_url, socket_timeout=10)
    try:
        keyspace = cast("dict[str, object]", await probe.info("keyspace"))
    finally:
        await probe.aclose()
    for number in sorted(int(name.removeprefix("db")) for name in keyspace):
        client = redis.asyncio.Redis.from_url(redis_url, socket_timeout=10)
        # An argument would lose against the database number in the URL.
        client.connection_pool.connection_kwargs["db"] = number
        try:
            async for key in client.scan_iter(count=500):
                label = f"redis db{number} key {key[:60]!r}"
                yield f"name of {label}", key
                async for value in _values_of(client, key):
                    yield label, value
        finally:
            await client.aclose()


async def _values_of(client: Any, key: bytes) -> AsyncIterator[bytes]:
    kind = (await client.type(key)).decode()
    match kind:
        case "string":
            yield await client.get(key) or b""
        case "hash":
            for name, value in (await client.hgetall(key)).items():
                yield name
                yield value
        case "list":
            for value in await client.lrange(key, 0, -1):
                yield value
        case "set":
            for value in await client.smembers(key):
                yield value
        case "zset":
            for value in await client.zrange(key, 0, -1):
                yield value
        case "stream":
            async for value in _stream_values(client, key):
                yield value
        case _:  # gone meanwhile, or of a module
            yield await client.dump(key) or b""


async def _stream_values(client: Any, key: bytes) -> AsyncIterator[bytes]:
    for _, fields in await client.xrange(key):
        for name, value in fields.items():
            yield name
            yield value
    for group in await client.xinfo_groups(key):
        yield group["name"]
        for consumer in await client.xinfo_consumers(key, group["name"]):
            yield consumer["name"]
