"""How long the admin API's lists take with 100,000 keys and 50,000 users, and how long it takes to expire all of these users.

    .venv/bin/python -m bench.admin_lists [--users 50000] [--keys 100000] [--rounds 30]

Starts a PostgreSQL of its own in a temporary folder, fills it by SQL, and asks through the commands that the routes use. Prints one line
per question: median, p95 and the slowest, in milliseconds; then the bulk expiry, and whether trigrams served the searches.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from statistics import quantiles

import asyncpg

from app.clock import SystemClock
from app.database import open_engine
from app.domain.access import Actor, Role
from app.embedded import PostgresServer
from app.services.command import Commands
from app.services.manage_access import KeyCommands
from app.services.manage_users import UserCommands
from app.storage.management_ports import ListQuery
from app.storage.migrate import migrate
from app.storage.sql_management import SqlManagement

OWNER = Actor("bench", Role.OWNER)
PAGES = 5
"""Deep pages cost what the first does: keyset."""

FILL = (
    """
    INSERT INTO users (oid, email, name, payment_status, payment_valid_until, created_at)
    SELECT 'user-' || n, 'user' || n || '@example.com', 'Person ' || md5(n::text), 'active', DATE '2020-01-01',
           now() - n * interval '1 second'
    FROM generate_series(1, :users) AS n
    """,
    """
    INSERT INTO keys (id, user_oid, name, digest, key_prefix, last4, labels, expires_at, created_at)
    SELECT gen_random_uuid(), 'user-' || (1 + n % :users), 'key ' || md5('k' || n), decode(md5('d' || n), 'hex'),
           'sk-ag-' || substr(md5('p' || n), 1, 4), substr(md5('l' || n), 1, 4),
           jsonb_build_object('team', 'team-' || n % 500), now() + n * interval '1 minute',
           now() - n * interval '1 second'
    FROM generate_series(1, :keys) AS n
    """,
    "INSERT INTO limits (key_id, kind, \"limit\", window_seconds) SELECT id, 'requests', 60, 60 FROM keys",
    "INSERT INTO budgets (user_oid, period, hard_limit_nanousd) SELECT oid, 'monthly', 10000000000 FROM users",
)


@dataclass(frozen=True, slots=True)
class Measured:
    question: str
    ms: list[float]

    @property
    def p95_ms(self) -> float:
        return quantiles(self.ms, n=20)[18] if len(self.ms) > 1 else self.ms[0]

    def __str__(self) -> str:
        ordered = sorted(self.ms)
        return f"{self.question:<44}{ordered[len(ordered) // 2]:>9.1f}{self.p95_ms:>9.1f}{ordered[-1]:>9.1f}"


async def fill(url: str, users: int, keys: int) -> None:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        for statement in FILL:
            await connection.execute(statement.replace(":users", str(users)).replace(":keys", str(keys)))
        await connection.execute("VACUUM ANALYZE")
    finally:
        await connection.close()


def questions(users: int) -> dict[str, ListQuery]:
    soon = datetime.now(UTC).replace(microsecond=0)
    return {
        "users": ListQuery(),
        "users, 200 a page": ListQuery(limit=200),
        "users by payment_valid_until": ListQuery(sort="payment_valid_until"),
        "users by user_oid": ListQuery(sort="user_oid"),
        "users, search of one": ListQuery(search=f"user-{users // 2}@"),
        "users, search of a name": ListQuery(search="5d2"),
        "users, search of two letters": ListQuery(search="zq"),
        "users, search of nothing there": ListQuery(search="no such words"),
        "users, search of all": ListQuery(search="example.com"),
        "users, suspended": ListQuery(payment_status="suspended"),
        "keys": ListQuery(),
        "keys, 200 a page": ListQuery(limit=200),
        "keys by name": ListQuery(sort="name"),
        "keys by expires_at": ListQuery(sort="expires_at"),
        "keys by last_used_at": ListQuery(sort="-last_used_at"),
        "keys, search of one": ListQuery(search="user-4242"),
        "keys, search of nothing there": ListQuery(search="no such words"),
        "keys, search of all": ListQuery(search="key"),
        "keys, a label": ListQuery(labels=(("team", "team-77"),)),
        "keys, of a user": ListQuery(user_oid="user-4242"),
        "keys, revoked": ListQuery(status="revoked"),
        "keys, of a model": ListQuery(model="gpt-4"),
        "keys, expiring": ListQuery(ends_before=soon),
        "keys, of expired users": ListQuery(payment_status="expired"),
    }


async def measured(question: str, query: ListQuery, commands: UserCommands | KeyCommands, rounds: int) -> Measured:
    ask: Callable[[ListQuery], Awaitable[object]] = commands.page
    ms: list[float] = []
    await ask(query)
    while len(ms) < rounds:
        cursor: str | None = None
        for _ in range(PAGES):
            began_s = time.perf_counter()
            page = await ask(_at(query, cursor))
            ms.append((time.perf_counter() - began_s) * 1000)
            cursor = getattr(page, "next_cursor", None)
            if cursor is None:
                break
    return Measured(question, ms)


def _at(query: ListQuery, cursor: str | None) -> ListQuery:
    fields = {name: getattr(query, name) for name in ListQuery.__slots__}
    return ListQuery(**{**fields, "cursor": cursor})


async def _announce(_revision: int, _kind: str, _ref: str) -> None:
    """Nobody listens."""


async def run(users: int, keys: int, rounds: int) -> list[Measured]:
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as home:
        server = PostgresServer(Path(home) / "postgres", durable=True, on_progress=lambda _line: None)
        url = server.start().replace("postgresql://", "postgresql+asyncpg://", 1)
        try:
            return await _run_on(url, users, keys, rounds)
        finally:
            server.stop()


async def _run_on(url: str, users: int, keys_count: int, rounds: int) -> list[Measured]:
    await migrate(url, lambda _line: None)
    await fill(url, users, keys_count)
    engine = open_engine(url)
    try:
        commands = Commands(SqlManagement(engine), SystemClock(), _announce)
        people, keys = UserCommands(commands), KeyCommands(commands, b"")
        found = [
            await measured(question, query, people if question.startswith("users") else keys, rounds)
            for question, query in questions(users).items()
        ]
        began_s = time.perf_counter()
        expiry = await people.sync_all_expiries(OWNER, date(2026, 1, 1))
        found.append(Measured(f"expire {len(expiry.expired)} users", [(time.perf_counter() - began_s) * 1000]))
        return found
    finally:
        await engine.dispose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=50_000)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args()
    print(f"{'ms':<44}{'median':>9}{'p95':>9}{'slowest':>9}")
    for each in asyncio.run(run(given.users, given.keys, given.rounds)):
        print(each)


if __name__ == "__main__":
    main()
