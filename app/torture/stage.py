"""The stage: stores, upstream and gateways, all temporary; models and keys made by the public admin API.

Keys under a hard budget are replaced by fresh ones once they are spent, so that many budgets pass their limit in every run: that is
where overspending would happen.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp

from app.embedded import PostgresServer, ValkeyServer
from app.torture.invoice import Price
from app.torture.keeper import Keeper
from app.torture.plan import LEASE_S, Options
from app.torture.processes import Gateway, TortureError
from app.torture.upstream import LONGEST_TOKENS, Upstream

MODELS: Final[Mapping[str, Price]] = {
    "plain": Price(input_picousd=2_370_000, output_picousd=9_910_000),
    "dear": Price(input_picousd=14_000_001, output_picousd=73_000_007),
    "failover": Price(input_picousd=310_003, output_picousd=1_190_011, request_nanousd=1_500),
}
"""Odd prices: sums of rounded costs must come out to the nanodollar all the same."""
ENDPOINTS: Final = {"plain": 1, "dear": 1, "failover": 2}
MAX_OUTPUT_TOKENS: Final = 4 * LONGEST_TOKENS
BUDGETED_KEYS: Final = 10
BUDGET_NANOUSD: Final = (1_500_000, 12_000_000)
"""From a handful of calls to some dozens."""
SPENT_AFTER_REFUSALS: Final = 6
"""402s in a row after which a key makes room for a fresh one."""
REPLACE_EVERY_S: Final = 0.5
ADMIN_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class LimitRule:
    """A limit of one holder: `kind` is requests, tokens or concurrency."""

    scope: str
    holder: str
    kind: str
    limit: int
    window_s: int


@dataclass(frozen=True, slots=True)
class BudgetRule:
    """A hard budget for all time."""

    scope: str
    holder: str
    hard_nanousd: int


@dataclass(slots=True)
class Key:
    """A key that clients use. `key_id` is what the ledger calls it."""

    secret: str = field(repr=False)
    key_id: str
    user_oid: str
    models: tuple[str, ...] = tuple(MODELS)
    has_budget: bool = False
    refusals_in_row: int = 0


@dataclass(slots=True)
class Rules:
    """Everything that may not be exceeded."""

    limits: list[LimitRule] = field(default_factory=list)
    budgets: list[BudgetRule] = field(default_factory=list)


@dataclass(slots=True)
class Stage:
    """What a run plays on."""

    postgres: PostgresServer
    valkey: ValkeyServer
    upstream: Upstream
    gateways: list[Gateway]
    session: aiohttp.ClientSession
    keeper: Keeper
    admin_token: str = field(repr=False)
    keys: list[Key] = field(default_factory=list)
    rules: Rules = field(default_factory=Rules)
    made_keys: int = 0

    async def admin(self, path: str, body: Mapping[str, object]) -> dict[str, object]:
        """POST to the admin API of any gateway that is up. Raises: TortureError when none took it."""
        problem = "no gateway is up"
        for gateway in random.sample(self.gateways, len(self.gateways)):
            if not gateway.is_up:
                continue
            try:
                async with self.session.post(
                    f"{gateway.url}/admin/api/{path}",
                    json=body,
                    headers={"Authorization": f"Bearer {self.admin_token}"},
                    timeout=aiohttp.ClientTimeout(total=ADMIN_TIMEOUT_S),
                ) as answer:
                    if answer.status == 201:
                        made: dict[str, object] = await answer.json()
                        return made
                    problem = f"{path}: {answer.status} {(await answer.text())[:300]}"
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                problem = f"{path}: {error!r}"
        raise TortureError(problem)

    async def make_models(self) -> None:
        for name, price in MODELS.items():
            await self.admin("models", {"name": name, "max_output_tokens": MAX_OUTPUT_TOKENS, "price": _shape(price)})
            for address in range(ENDPOINTS[name]):
                endpoint = {"model": name, "provider": "openai", "upstream_model": name, "api_key": "sk-torture"}
                await self.admin("endpoints", {**endpoint, "api_base": self.upstream.api_base(address)})

    async def make_keys(self, rng: random.Random) -> None:
        """The keys of a run's beginning: free ones, limited ones, and budgets of every size."""
        await self._user("free")
        for _ in range(3):
            self.keys.append(await self._key("free"))
        for kind, limit, window_s in (
            *(("requests", 12, 4), ("requests", 40, 10)),
            *(("tokens", 2_500, 5), ("tokens", 12_000, 15)),
            *(("concurrency", 2, 0), ("concurrency", 5, 0)),
        ):
            self.keys.append(await self._key("free", limits=[LimitRule("key", "", kind, limit, window_s)]))
        # One account with a budget of its own, shared by three keys, one of which has another.
        account = BudgetRule("user", "account", 25 * BUDGET_NANOUSD[1])
        await self._user("account", account)
        self.rules.budgets.append(account)
        for _ in range(2):
            self.keys.append(await self._key("account"))
        for _ in range(BUDGETED_KEYS):
            await self.add_budgeted_key(rng)

    async def add_budgeted_key(self, rng: random.Random) -> None:
        hard = rng.randint(*BUDGET_NANOUSD)
        models = tuple(rng.sample(list(MODELS), rng.randint(1, len(MODELS))))
        self.keys.append(await self._key("account" if rng.random() < 0.2 else "free", hard_nanousd=hard, models=models))

    async def replace_spent_keys(self, rng: random.Random) -> None:
        """A chore: for ever put a fresh key in the place of one that is spent. What fails now is tried again later."""
        while True:
            await asyncio.sleep(REPLACE_EVERY_S)
            for key in [key for key in self.keys if key.has_budget and key.refusals_in_row >= SPENT_AFTER_REFUSALS]:
                try:
                    await self.add_budgeted_key(rng)
                except TortureError:
                    break
                self.keys.remove(key)

    async def _user(self, oid: str, budget: BudgetRule | None = None) -> None:
        budgets = [] if budget is None else [_budget_shape(budget.hard_nanousd)]
        await self.admin("users", {"user_oid": oid, "limits": [], "budgets": budgets})

    async def _key(
        self,
        user_oid: str,
        *,
        limits: list[LimitRule] | None = None,
        hard_nanousd: int | None = None,
        models: tuple[str, ...] = tuple(MODELS),
    ) -> Key:
        self.made_keys += 1
        rules = limits or []
        shapes = [{"kind": r.kind, "limit": r.limit, "window_seconds": r.window_s} for r in rules]
        budgets = [] if hard_nanousd is None else [_budget_shape(hard_nanousd)]
        made = await self.admin(
            "keys", {"user_oid": user_oid, "name": f"torture {self.made_keys}", "limits": shapes, "budgets": budgets}
        )
        key_id = str(made["id"])
        self.rules.limits += [LimitRule("key", key_id, r.kind, r.limit, r.window_s) for r in rules]
        if hard_nanousd is not None:
            self.rules.budgets.append(BudgetRule("key", key_id, hard_nanousd))
        return Key(str(made["key"]), key_id, user_oid, models, has_budget=hard_nanousd is not None)


@asynccontextmanager
async def staged(options: Options) -> AsyncIterator[Stage]:
    """Everything started and ready; everything ended on the way out, whatever happens, and its folder removed."""
    home = Path(tempfile.mkdtemp(prefix="gateway-torture-"))
    with ExitStack() as ending:
        keeper = Keeper(home)
        ending.callback(keeper.close)
        # Durable as in production: what a store has acknowledged must survive its kill.
        postgres = PostgresServer(home / "postgres", on_progress=lambda _: None)
        valkey = ValkeyServer(home / "valkey", on_progress=lambda _: None)
        for server in (postgres, valkey):
            ending.callback(server.kill)
            await asyncio.to_thread(server.start)
            keeper.watch(server.pid)
        admin_token = secrets.token_urlsafe(32)
        env = _environment(postgres.url, valkey.url, admin_token)
        gateways = [Gateway(n, home / f"gateway{n}", env, keeper) for n in range(options.processes)]
        for gateway in gateways:
            ending.callback(gateway.destroy)
        connector = aiohttp.TCPConnector(limit=0)
        async with Upstream() as upstream, aiohttp.ClientSession(connector=connector, trust_env=False) as session:
            stage = Stage(postgres, valkey, upstream, gateways, session, keeper, admin_token)
            gateways[0].launch()  # alone: it makes the tables and registers what a first start needs
            await gateways[0].ready(session)
            for gateway in gateways[1:]:
                gateway.launch()
            await asyncio.gather(*(gateway.ready(session) for gateway in gateways))
            await stage.make_models()
            await stage.make_keys(random.Random(options.seed))  # noqa: S311 - sizes of budgets, not secrets
            await asyncio.sleep(1.0)  # by contract every process knows them by then
            yield stage


def now_s() -> float:
    """Unix seconds: one clock for notes, invoice and ledger."""
    return time.time()


def _environment(database_url: str, redis_url: str, admin_token: str) -> dict[str, str]:
    return {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "SECRET_KEY": secrets.token_urlsafe(48),
        "ADMIN_TOKEN": admin_token,
        "UPSTREAM_PRIVATE_HOSTS": "loopback",
        "RESERVATION_LEASE_SECONDS": str(LEASE_S),
        "SHUTDOWN_GRACE_SECONDS": "5",
        "LOG_CONTENT": "metadata",
        "LOG_LEVEL": "WARNING",
        "REDIS_TIMEOUT_MS": "1000",
    }


def _budget_shape(hard_nanousd: int) -> dict[str, str]:
    return {"period": "total", "hard_limit_usd": _usd(hard_nanousd)}


def _usd(nanousd: int) -> str:
    return f"{nanousd // 10**9}.{nanousd % 10**9:09d}"


def _shape(price: Price) -> dict[str, str]:
    def per_mtok(picousd: int) -> str:
        return f"{picousd // 10**6}.{picousd % 10**6:06d}"

    return {
        "input_usd_per_mtok": per_mtok(price.input_picousd),
        "output_usd_per_mtok": per_mtok(price.output_picousd),
        "request_usd": _usd(price.request_nanousd),
    }
