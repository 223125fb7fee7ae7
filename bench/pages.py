"""How long the dashboard's pages take with a large ledger: `python -m bench.pages --rows 5000000`.

Starts a PostgreSQL, a Valkey and a gateway of its own, writes that many records (by SQL, spread over 30 days, 500 users, 2,000 keys, 12
endpoints), sums them as the drainer does, and asks for each page, one after the other, as a browser that is signed in. What is told
is the time until the whole page has arrived. The goal: p95 of each page below 150 ms at five million rows. With `--data FOLDER` the
filled database is kept there, and the next run begins with it: filling takes many times as long as asking.
"""

from __future__ import annotations

import argparse
import asyncio
import http.cookies
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from app.embedded import PostgresServer, ValkeyServer
from bench.large import fill, filled_with
from tests.e2e.conftest import environment
from tests.e2e.house import ADMIN_TOKEN, House
from tests.kit import raw_http
from tests.kit.processes import GatewayProcess, UpstreamProcess

GOAL_MS = 150.0


@dataclass(frozen=True, slots=True)
class Timed:
    name: str
    status: int
    p50_ms: float
    p95_ms: float
    bytes: int

    @property
    def line(self) -> str:
        return f"{self.name:24} {self.status}  p50 {self.p50_ms:7.1f} ms  p95 {self.p95_ms:7.1f} ms  {self.bytes:>8,} B"


KEY, ENDPOINT = "00000000-0000-0000-0000-000000000007", "00000000-0000-0000-0000-000000010003"
PAGES = {
    **{f"overview {span}": f"/admin/?range={span}" for span in ("6h", "24h", "7d", "30d", "90d")},
    "search": "/admin/search?q=user-19",
    "keys": "/admin/keys",
    **{f"keys by {order}": f"/admin/keys?sort={order}" for order in ("name", "-expires_at", "last_used_at")},
    "keys, searched": "/admin/keys?q=key+19",
    "keys of a status": "/admin/keys?status=expired",
    "key": f"/admin/keys/{KEY}",
    "new key": "/admin/keys/new",
    "delete key": f"/admin/keys/{KEY}/delete",
    "users": "/admin/users",
    **{f"users by {order}": f"/admin/users?sort={order}" for order in ("user_oid", "-payment_valid_until")},
    "user": "/admin/user?oid=user-8",
    "delete user": "/admin/user/delete?oid=user-8",
    "apps": "/admin/apps",
    "models": "/admin/models",
    "model": "/admin/model?name=model-2",
    "endpoint": f"/admin/endpoints/{ENDPOINT}",
    "usage": "/admin/usage",
    "usage by key": f"/admin/usage?key={KEY}",
    "usage by user": "/admin/usage?user=user-8",
    "usage by app": "/admin/usage?app=no-such-app",
    "usage by model": "/admin/usage?model=model-2",
    "usage by endpoint": f"/admin/usage?endpoint={ENDPOINT}",
    "usage by outcome": "/admin/usage?outcome=upstream_error",
    "usage, errors": "/admin/usage?outcome=errors",
    "usage, refused": "/admin/usage?outcome=refused",
    "usage by reason": "/admin/usage?outcome=refused&error_code=rate_limit_exceeded",
    "usage by status": "/admin/usage?http_status=502",
    "usage of no status": "/admin/usage?http_status=418",
    "usage by cost": "/admin/usage?min_cost=0.009",
    "usage of no cost": "/admin/usage?min_cost=0.5",
    "usage by low cost": "/admin/usage?min_cost=0.0001",
    "usage by some cost": "/admin/usage?min_cost=0.00509",
    "usage by duration": "/admin/usage?min_ms=4200",
    "usage, few found": "/admin/usage?min_ms=4299",
    "usage of no duration": "/admin/usage?min_ms=999999",
    "usage by many": f"/admin/usage?model=model-2&outcome=ok&min_ms=4200&min_cost=0.001&endpoint={ENDPOINT}",
    "usage of user and key": f"/admin/usage?user=user-9&key={KEY}",
    "usage of a period": "/admin/usage?period=7d",
    "usage of a day, none": "/admin/usage?period=24h&min_ms=999999",
    "usage, nothing found": "/admin/usage?model=no-such-model",
    "alerts": "/admin/alerts",
    "audit": "/admin/audit",
    "audit, all": "/admin/audit?kind=all",
    "audit by actor": "/admin/audit?actor=nobody",
    "playground": "/admin/playground",
    "administrators": "/admin/admins",
    "settings": "/admin/settings",
}


async def signed_in(port: int) -> str:
    """The cookie of a new session."""
    answer = await raw_http.call(
        port,
        "POST",
        "/admin/sign-in",
        headers={"content-type": "application/x-www-form-urlencoded"},
        body=urlencode({"token": ADMIN_TOKEN}).encode(),
    )
    assert answer.status == 303, answer.text
    jar = http.cookies.SimpleCookie(answer.header("set-cookie") or "")
    return "; ".join(f"{name}={morsel.value}" for name, morsel in jar.items())


async def timed(port: int, cookie: str, name: str, path: str, *, rounds: int) -> Timed:
    took, answer = [], None
    for _ in range(rounds + 2):  # the first two warm what every later reader finds warm
        began = time.perf_counter()
        try:
            answer = await raw_http.call(port, "GET", path, headers={"cookie": cookie, "accept": "text/html"})
        except TimeoutError:
            return Timed(name, 0, float("inf"), float("inf"), 0)
        took.append((time.perf_counter() - began) * 1000)
    assert answer is not None
    assert answer.status == 200, (name, answer.status)
    cuts = statistics.quantiles(took[2:], n=20, method="inclusive")
    return Timed(name, answer.status, statistics.median(took[2:]), cuts[-1], len(answer.body))


async def measure(database_url: str, redis_url: str, *, rows: int, rounds: int, only: str = "") -> list[Timed]:
    env = environment(database_url, redis_url)
    gateway, upstream = GatewayProcess(env), UpstreamProcess()
    try:
        await gateway.start()
        house = House(gateway, upstream, database_url, redis_url, env)
        began, kept = time.perf_counter(), await filled_with(database_url)
        if not kept:
            await fill(database_url, rows)
        took_s = time.perf_counter() - began
        print(f"{kept:,} records kept" if kept else f"{rows:,} records written in {took_s:.0f} s", flush=True)
        cookie = await signed_in(house.gateway.port)
        found = []
        for name, path in PAGES.items():
            if only not in name:
                continue
            found.append(await timed(house.gateway.port, cookie, name, path, rounds=rounds))
            print(found[-1].line, flush=True)
        return found
    finally:
        gateway.destroy()
        upstream.destroy()


@contextmanager
def _home(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
        return
    with tempfile.TemporaryDirectory(prefix="bench-pages-") as away:
        yield Path(away)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--data", type=Path, help="keep the database in this folder, and use what is in it")
    parser.add_argument("--only", default="", help="pages whose name has this in it")
    asked = parser.parse_args()
    with _home(asked.data) as home:
        postgres = PostgresServer(home / "postgres", durable=False, on_progress=lambda _: None)
        valkey = ValkeyServer(home / "valkey", durable=False, on_progress=lambda _: None)
        postgres.start()
        valkey.start()
        try:
            work = measure(postgres.url, valkey.url, rows=asked.rows, rounds=asked.rounds, only=asked.only)
            found = asyncio.run(work)
        finally:
            valkey.stop()
            postgres.stop()
    over = [each.name for each in found if each.p95_ms > GOAL_MS]
    print(f"over the goal of {GOAL_MS:.0f} ms: {', '.join(over) or 'none'}")


if __name__ == "__main__":
    main()
