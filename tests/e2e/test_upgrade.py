"""T154: the version before beside this one, on one database and one Redis, while calls go on.

The version before is the newest commit whose schema is an older one, taken from the history of this checkout. `UPGRADE_ROWS=5000000`
gives the database as many records beforehand (ten minutes), and `-s` tells what was measured.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import pytest

from app.models.tables import SCHEMA_REVISION
from bench.large import fill
from tests.e2e.house import ADMIN_TOKEN, HELLO, House, request_id_of
from tests.e2e.test_restore import a_database
from tests.kit import raw_http
from tests.kit.clients import REPO_ROOT
from tests.kit.load import percentile
from tests.kit.locks import Waits, watched_locks
from tests.kit.pace import paced
from tests.kit.processes import GatewayProcess
from tests.kit.scenario import Scenario
from tests.kit.stalls import stalled_s

RATE_PER_S = 50
ROWS = int(os.environ.get("UPGRADE_ROWS", "2000"))
PATIENCE_S = 60 + ROWS / 5_000
"""For the filling, and for a migration that reads all of it."""
LOCK_WAIT_S = 2.0
LATE_S = 1.0
"""What a stalling machine may add to it."""
TABLES = "app/models/tables.py"


def git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=REPO_ROOT, capture_output=True, check=True).stdout


def commit_before() -> str | None:
    """None where the checkout has no history that goes so far back."""
    try:
        commits = git("log", "--format=%H", "--", TABLES).decode().split()
        for commit in commits:
            found = re.search(rb'^SCHEMA_REVISION = "(\d+)"', git("show", f"{commit}:{TABLES}"), re.MULTILINE)
            if found and found[1].decode() < SCHEMA_REVISION:
                return commit
    except (OSError, subprocess.CalledProcessError):
        return None
    return None


@dataclass(slots=True)
class Load:
    """So many calls a second, in turn to each of `ports`, a third of them streams, until told to end."""

    key: str
    model: str
    ports: list[int]
    statuses: list[int] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    request_ids: set[str] = field(default_factory=set)
    under_way: Counter[int] = field(default_factory=Counter)
    """By port."""
    is_over: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        await paced(self._one, per_second=RATE_PER_S, until=self.is_over)

    async def _one(self, number: int) -> None:
        began_s = time.monotonic()
        port = self.ports[number % len(self.ports)]
        self.under_way[port] += 1
        answer = await raw_http.call(
            port,
            "POST",
            "/v1/chat/completions",
            headers={"Authorization": f"Bearer {self.key}"},
            json_body={"model": self.model, "messages": HELLO, "stream": number % 3 == 0},
            timeout_s=30,
        )
        self.under_way[port] -= 1
        self.took_s.append(time.monotonic() - began_s)
        self.statuses.append(answer.status)
        if answer.status != 200 or (number % 3 == 0 and b"[DONE]" not in answer.body):
            self.faults.append(answer.text[-400:])
        else:
            self.request_ids.add(request_id_of(answer))

    async def calls_made(self, more: int) -> None:
        """Until so many more were answered."""
        wanted = len(self.statuses) + more
        async with asyncio.timeout(60):
            while len(self.statuses) < wanted:
                await asyncio.sleep(0.05)


@asynccontextmanager
async def loading(load: Load) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run())
        try:
            yield
        finally:
            load.is_over.set()


async def admin(gateway: GatewayProcess, path: str, body: object) -> dict[str, str]:
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    answer = await raw_http.call(gateway.port, "POST", f"/admin/api/{path}", headers=headers, json_body=body)
    assert answer.status == 201, answer.text
    return json.loads(answer.body)  # type: ignore[no-any-return]


async def a_key_and_a_model(house: House, gateway: GatewayProcess) -> tuple[str, str]:
    model = "upgraded"
    price = {"input_usd_per_mtok": "2.50", "output_usd_per_mtok": "10"}
    await admin(gateway, "models", {"name": model, "price": price})
    endpoint = {"model": model, "provider": "openai", "upstream_model": model, "api_key": "sk-upstream"}
    await admin(gateway, "endpoints", {**endpoint, "api_base": house.upstream.base_url})
    await admin(gateway, "users", {"user_oid": "ada"})
    budgets = [{"period": "monthly", "hard_limit_usd": "1000"}]
    made = await admin(gateway, "keys", {"user_oid": "ada", "limits": [], "budgets": budgets})
    await house.upstream.script(by_model={model: Scenario(delay_ms=20, chunks=5)})
    return made["key"], model


async def migrated(env: dict[str, str], cwd: Path) -> str:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app", "migrate"),
        cwd=cwd,
        env={**env, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPO_ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return said.decode()


@pytest.mark.timeout(180 + 2 * PATIENCE_S)
async def test_no_call_fails_while_the_version_before_is_replaced_by_this_one(house: House, tmp_path: Path) -> None:
    """T154: 50 calls a second at the version before, at both while the schema changes under it, and at this one after it has left."""
    commit = commit_before()
    if commit is None:
        pytest.skip("this checkout has no history: there is no version before to run")
    before_tree = tmp_path / "before"
    with tarfile.open(fileobj=io.BytesIO(git("archive", commit, "app", "migrations"))) as archive:
        archive.extractall(before_tree)  # our own history; `filter` is not in every 3.11
    (tmp_path / "cwd").mkdir()
    async with a_database(house) as url:
        env = house.env | {
            "DATABASE_URL": url,
            "REDIS_URL": house.redis_url.replace("?db=0", "?db=3"),
            "SHUTDOWN_GRACE_SECONDS": "10",
        }
        older = GatewayProcess(env | {"PYTHONPATH": str(before_tree)}, name="before")
        async with older:
            key, model = await a_key_and_a_model(house, older)
            await fill(url, ROWS, has_more=True)
            load = Load(key, model, [older.port])
            async with loading(load):
                await load.calls_made(60)
                before, began_s = len(load.took_s), time.monotonic()
                async with watched_locks(url) as waits:
                    said = await migrated(env, tmp_path / "cwd")
                assert f"to {SCHEMA_REVISION}" in said
                told(load, before, time.monotonic() - began_s, waits)
                await load.calls_made(60)
                async with GatewayProcess(env, name="after") as newer:
                    load.ports = [older.port, newer.port]
                    await load.calls_made(120)
                    load.ports = [newer.port]
                    async with asyncio.timeout(30):  # until nothing is on its way to the older one
                        while load.under_way[older.port]:
                            await asyncio.sleep(0.02)
                    older.terminate()
                    assert await older.wait(timeout_s=20) in (0, -15), older.log_text()[-2000:]
                    await load.calls_made(60)
                    load.is_over.set()
                    records, rolled_up = await booked(url, load.request_ids)

    assert waits.longest_s < LOCK_WAIT_S + LATE_S + stalled_s(began_s)
    assert load.faults == []
    assert set(load.statuses) == {200}
    assert records == len(load.request_ids) == len(load.statuses)
    assert rolled_up == records
    for gateway in (older, newer):
        assert '"level":"error"' not in gateway.log_text(), gateway.log_text()[-3000:]


def told(load: Load, before: int, seconds: float, waits: Waits) -> None:
    """For whoever runs the long form."""
    quiet, meanwhile = load.took_s[:before], load.took_s[before:]
    p99s_ms = ", ".join(f"{percentile(each, 99) * 1000:.0f}" for each in (quiet, meanwhile) if each)
    print(
        f"{ROWS:,} rows: migrated in {seconds:.1f} s with {len(meanwhile)} calls meanwhile; p99 before and then {p99s_ms} ms; "
        f"longest wait for a table's lock {waits.longest_s * 1000:.0f} ms"
    )


async def booked(url: str, request_ids: set[str]) -> tuple[int, int]:
    """How many of these calls have their record, and how many the hourly sums know, once all have one."""
    connection = await asyncpg.connect(url)
    try:
        async with asyncio.timeout(20):
            while True:
                records = await connection.fetchval(
                    "SELECT count(*) FROM usage_records WHERE request_id = ANY($1::uuid[])", list(request_ids)
                )
                sums = await connection.fetchval(
                    "SELECT coalesce(sum(requests), 0) FROM usage_rollups WHERE user_oid = 'ada'"
                )
                if records == len(request_ids) and sums >= records:
                    return records, int(sums)
                await asyncio.sleep(0.1)
    finally:
        await connection.close()
