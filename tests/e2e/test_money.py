"""Budgets and limits over three gateway processes: never a nanodollar too much, and never a call refused that could be paid."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg
import pytest
import redis.asyncio

from tests.e2e.house import HELLO, House, Json
from tests.kit import raw_http
from tests.kit.invoice import InvoiceLine, Price
from tests.kit.processes import GatewayProcess
from tests.kit.raw_http import RawResponse, SseStream, request_bytes
from tests.kit.scenario import Scenario
from tests.kit.stalls import stalled_s

pytestmark = pytest.mark.timeout(120)

TEN_CENTS_A_CALL: Final = {"input_usd_per_mtok": "0", "output_usd_per_mtok": "0", "request_usd": "0.10"}
PATIENCE_S: Final = 40.0


@dataclass(slots=True)
class Fleet:
    """Three processes on one database and one Redis, asked in turn."""

    house: House
    gateways: list[GatewayProcess]
    ledger: asyncpg.Pool = field(repr=False)
    counters: redis.asyncio.Redis = field(repr=False)
    _turn: Iterator[int] = field(default_factory=itertools.count)

    def next_port(self) -> int:
        return self.gateways[next(self._turn) % len(self.gateways)].port

    async def chat(self, key: str, model: str, **fields: object) -> RawResponse:
        return await raw_http.call(
            self.next_port(),
            "POST",
            "/v1/chat/completions",
            headers={"Authorization": f"Bearer {key}"},
            json_body={"model": model, "messages": HELLO, **fields},
            timeout_s=PATIENCE_S,
        )

    async def at_once(self, count: int, key: str, model: str, **fields: object) -> list[RawResponse]:
        return list(await asyncio.gather(*(self.chat(key, model, **fields) for _ in range(count))))

    async def key(self, user_oid: str | None = None, **fields: object) -> tuple[str, str]:
        """A new key's secret and id, once every process has the models that were made before it."""
        oid = user_oid or await self.house.user()
        made = await self.house.admin("POST", "keys", {"user_oid": oid, "limits": [], **fields}, expect=201)
        await self.house.known_to(self.gateways)
        return made["key"], made["id"]

    async def booked(self, column: str, value: str, *, records: int) -> int:
        """Nanodollars that the ledger has for a holder, once so many records of it are there (and no more are)."""
        query = f"SELECT count(*), coalesce(sum(cost_nanousd), 0)::bigint FROM usage_records WHERE {column}::text = $1"
        async with asyncio.timeout(15):
            while True:
                count, booked = await self.ledger.fetchrow(query, value)
                assert count <= records
                if count == records:
                    return int(booked)
                await asyncio.sleep(0.05)

    async def reserved(self, scope: str, holder: str) -> int:
        return int(await self.counters.hget(f"{{ag}}:b:{scope}:{holder}:total", "r") or 0)

    async def lines_of(self, model: str) -> list[InvoiceLine]:
        return [line for line in (await self.house.upstream.settled(timeout_s=PATIENCE_S)).lines if line.model == model]


@pytest.fixture(scope="module")
def gateways(house: House) -> Iterator[list[GatewayProcess]]:
    more = [GatewayProcess(house.env, name=f"money{number}") for number in range(2)]

    async def start() -> None:
        async with asyncio.TaskGroup() as group:
            for gateway in more:
                group.create_task(gateway.start())

    try:
        asyncio.run(start())
        yield [house.gateway, *more]
    finally:
        for gateway in more:
            gateway.destroy()


@pytest.fixture
async def fleet(house: House, gateways: list[GatewayProcess]) -> AsyncIterator[Fleet]:
    counters = redis.asyncio.Redis.from_url(house.redis_url, socket_timeout=5)
    async with asyncpg.create_pool(house.database_url, min_size=1, max_size=2) as ledger:
        yield Fleet(house, gateways, ledger, counters)
    await counters.aclose()


def statuses(answers: Sequence[RawResponse]) -> Counter[int]:
    return Counter(answer.status for answer in answers)


def require_paid(answers: Sequence[RawResponse], count: int) -> None:
    """So many were paid for, the others refused for money: for good, or for now where a stall holds up calls that have some reserved."""
    assert statuses(answers)[200] == count
    assert {answer.json()["error"]["type"] for answer in answers if answer.status == 429} <= {"budget_reserved"}  # type: ignore[index]
    assert set(statuses(answers)) <= {200, 402, 429}


def hard(usd: str) -> list[Json]:
    return [{"period": "total", "hard_limit_usd": usd}]


def most_at_once(lines: Sequence[InvoiceLine]) -> int:
    """How many calls an upstream had at the same moment."""
    moments = [(line.arrived_at, 1) for line in lines] + [(line.finished_at or line.arrived_at, -1) for line in lines]
    return max(itertools.accumulate(change for _, change in sorted(moments)), default=0)


# ── Budgets ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_of_200_parallel_calls_of_ten_cents_a_dollar_pays_for_exactly_ten(fleet: Fleet) -> None:
    """T107."""
    model = await fleet.house.model(price=TEN_CENTS_A_CALL)
    key, key_id = await fleet.key(budgets=hard("1.00"))

    answers = await fleet.at_once(200, key, model)

    require_paid(answers, 10)
    assert await fleet.booked("key_id", key_id, records=10) == 1_000_000_000
    assert len(await fleet.lines_of(model)) == 10
    assert await fleet.reserved("key", key_id) == 0
    assert statuses(await fleet.at_once(20, key, model)) == {402: 20}


async def test_a_budget_is_used_up_and_never_past_its_end_when_calls_cost_less_than_was_reserved(fleet: Fleet) -> None:
    """T108: ten cents are reserved and three are spent."""
    model = await fleet.house.model(
        Scenario(completion_tokens=3, prompt_tokens=10, obey_max_tokens=True),
        price={"input_usd_per_mtok": "0", "output_usd_per_mtok": "10000"},
    )
    key, key_id = await fleet.key(budgets=hard("1.00"))

    paid = 0
    for _ in range(12):
        answers = statuses(await fleet.at_once(12, key, model, max_tokens=10))
        paid += answers[200]
        assert set(answers) <= {200, 402, 429}
        booked = await fleet.booked("key_id", key_id, records=paid)
        assert booked <= 1_000_000_000
        if answers[402]:
            assert booked > 900_000_000, "ten more cents could still be paid"
            break
    else:
        pytest.fail("the budget was never used up")

    async with asyncio.timeout(10):
        while await fleet.reserved("key", key_id):
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("round_", range(3))
async def test_the_first_calls_of_a_user_never_seen_hold_its_budget_too(fleet: Fleet, round_: int) -> None:
    """T109: the counter does not exist yet, and eight calls seed it at once."""
    model = await fleet.house.model(price=TEN_CENTS_A_CALL)
    user = await fleet.house.user(budgets=hard("0.50"))
    key, _ = await fleet.key(user)

    answers = await fleet.at_once(8, key, model)

    require_paid(answers, 5)
    assert await fleet.booked("user_oid", user, records=5) == 500_000_000


@dataclass(slots=True)
class Paid:
    """What a hundred patient callers got."""

    within_s: list[float] = field(default_factory=list)
    """Without the time in which the machine stood still."""
    statuses: Counter[int] = field(default_factory=Counter)


async def callers_that_obey(fleet: Fleet, key: str, model: str, *, callers: int, for_s: float) -> Paid:
    """Each calls until it is answered, or told that the money is gone, or the time is over; it waits as Retry-After says."""
    paid, began = Paid(), time.monotonic()

    def since_s() -> float:
        return time.monotonic() - began - stalled_s(began)

    async def caller() -> None:
        while (left_s := for_s - since_s()) > 0:
            answer = await fleet.chat(key, model)
            paid.statuses[answer.status] += 1
            if answer.status == 200:
                paid.within_s.append(since_s())
            if answer.status != 429:
                return
            wait_s = int(answer.header("retry-after-ms") or "0") / 1000
            assert wait_s > 0, "a 429 says when to come back"
            await asyncio.sleep(min(wait_s, left_s))

    await asyncio.gather(*(caller() for _ in range(callers)))
    return paid


ANSWER = Scenario(delay_ms=3_000, prompt_tokens=10, completion_tokens=100, chunks=4, obey_max_tokens=True)
ANSWER_NANOUSD: Final = 10 * 2_500 + 100 * 10_000


async def test_a_budget_for_twenty_calls_is_shared_by_a_hundred_callers_and_paid_out_whole(fleet: Fleet) -> None:
    """No over-refusal: without max_tokens each call could reserve all of it."""
    model = await fleet.house.model(ANSWER, max_output_tokens=4_096)
    budget = 20 * ANSWER_NANOUSD
    key, key_id = await fleet.key(budgets=hard(f"{budget / 10**9:.9f}"))

    paid = await callers_that_obey(fleet, key, model, callers=100, for_s=20)

    in_time = sum(within_s <= 15 for within_s in paid.within_s)
    lines = await fleet.lines_of(model)
    booked = await fleet.booked("key_id", key_id, records=len(paid.within_s))
    price = Price.usd_per_mtok(0, 10)
    invoice = sum(price.cost_nanousd(line.usage_due) + line.usage_due.prompt_tokens * 2_500 for line in lines)
    assert booked <= budget
    assert invoice == booked
    assert most_at_once(lines) >= 8
    assert in_time >= 20, paid


async def test_a_token_limit_for_twenty_calls_is_shared_by_a_hundred_callers_and_given_out_whole(fleet: Fleet) -> None:
    model = await fleet.house.model(ANSWER, max_output_tokens=4_096)
    limit = 20 * 110
    key, _ = await fleet.key(limits=[{"kind": "tokens", "limit": limit, "window_seconds": 60}])

    paid = await callers_that_obey(fleet, key, model, callers=100, for_s=16)

    in_time = sum(within_s <= 15 for within_s in paid.within_s)
    lines = await fleet.lines_of(model)
    assert sum(line.usage_due.total_tokens for line in lines) <= limit
    assert most_at_once(lines) >= 8
    assert in_time >= 20, paid


# ── Limits ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_request_limit_lets_exactly_its_number_through_in_each_window(fleet: Fleet) -> None:
    """T112, with a window of ten seconds: two hundred calls are admitted or not in much less, also on a machine that stalls."""
    model = await fleet.house.model()
    key, _ = await fleet.key(limits=[{"kind": "requests", "limit": 50, "window_seconds": 10}])

    first = await fleet.at_once(200, key, model)
    refused = [answer for answer in first if answer.status == 429]
    # When the last of the first window has left it, all of the limit is free again.
    await asyncio.sleep(10.2)
    second = await fleet.at_once(200, key, model)

    assert statuses(first) == statuses(second) == {200: 50, 429: 150}
    waits_s = [int(answer.header("retry-after-ms") or "0") / 1000 for answer in refused]
    assert all(0 < wait_s <= 10.2 for wait_s in waits_s)


async def test_a_request_limit_holds_in_every_rolling_window_under_continuous_traffic(fleet: Fleet) -> None:
    """T112: callers that come back as they are told never get more, nor much less, than the limit."""
    model = await fleet.house.model()
    key, _ = await fleet.key(limits=[{"kind": "requests", "limit": 20, "window_seconds": 2}])
    began = time.monotonic()
    admitted: list[tuple[float, float]] = []
    """From when to when each call lasted that was let through: it was admitted at some moment of that time."""

    async def caller() -> None:
        while time.monotonic() - began - stalled_s(began) < 8:
            asked_at = time.monotonic()
            answer = await fleet.chat(key, model)
            if answer.status == 200:
                admitted.append((asked_at, time.monotonic()))
            wait_s = int(answer.header("retry-after-ms") or "0") / 1000
            assert answer.status == 200 or wait_s > 0
            await asyncio.sleep(wait_s)

    await asyncio.gather(*(caller() for _ in range(12)))

    # What lies whole within a window was admitted in it. The counter's clock has milliseconds.
    fullest = max(sum(start <= at and until < start + 1.99 for at, until in admitted) for start, _ in admitted)
    assert fullest <= 20
    assert len(admitted) == len(await fleet.lines_of(model))
    assert len(admitted) >= 4 * 20 * 0.8, "recovers on time"


async def test_a_token_limit_counts_what_was_used_once_it_is_known(fleet: Fleet) -> None:
    """T113: ten calls of ten thousand tokens at fifty thousand a minute; each then uses a hundred."""
    # An answer takes longer than the calls need to come in, also on a machine that stalls: none is settled before all have asked.
    model = await fleet.house.model(Scenario(delay_ms=3_000, prompt_tokens=10, completion_tokens=90))
    key, _ = await fleet.key(limits=[{"kind": "tokens", "limit": 50_000, "window_seconds": 60}])

    first = await fleet.at_once(10, key, model, max_tokens=9_950)
    second = await fleet.at_once(10, key, model, max_tokens=9_950)

    assert statuses(first) == {200: 5, 429: 5}
    assert statuses(second) == {200: 4, 429: 6}, "500 tokens are used: four more fit, five don't"
    small = await fleet.at_once(10, key, model, max_tokens=100)
    assert statuses(small) == {200: 10}


async def test_refused_calls_take_nothing_from_any_limit_or_budget(fleet: Fleet) -> None:
    """T114."""
    model, forbidden = await fleet.house.model(price=TEN_CENTS_A_CALL), await fleet.house.model()
    limits = [
        {"kind": "requests", "limit": 4, "window_seconds": 60},
        {"kind": "concurrency", "limit": 4, "window_seconds": 0},
    ]
    key, key_id = await fleet.key(allowed_models=[model], limits=limits, budgets=hard("0.30"))

    refused = [
        *await fleet.at_once(6, key, forbidden),  # access
        *await fleet.at_once(6, key, model, max_tokens=-1),  # validation
    ]
    paid = await fleet.at_once(3, key, model)
    without_money = await fleet.at_once(6, key, model)
    await fleet.house.admin("PATCH", f"keys/{key_id}", {"budgets": hard("9")}, expect=200)
    await fleet.house.known_to(fleet.gateways)
    last = await fleet.chat(key, model)
    beyond = await fleet.at_once(6, key, model)

    assert statuses(refused) == {403: 6, 400: 6}
    assert statuses(paid) == {200: 3}
    assert statuses(without_money) == {402: 6}
    assert last.status == 200, "the refusals had not used up the fourth request"
    assert statuses(beyond) == {429: 6}
    assert await fleet.booked("key_id", key_id, records=4) == 400_000_000


async def ends_somehow(fleet: Fleet, key: str, models: dict[str, str], number: int) -> None:
    """One call, ended in one of many ways."""
    ways = [*models, "left at once", "left in the stream", "invalid"]
    way = ways[number % len(ways)]
    if not way.startswith("left"):
        fields: dict[str, Any] = {"temperature": "hot"} if way == "invalid" else {}
        await fleet.chat(key, models.get(way, models["ok"]), **fields)
        return
    body = {"model": models["ok"], "messages": HELLO, "stream": True}
    request = request_bytes("POST", "/v1/chat/completions", headers={"Authorization": f"Bearer {key}"}, json_body=body)
    if way == "left at once":
        async with raw_http.RawConnection(fleet.next_port()) as connection:
            await connection.send(request)
        return
    async with SseStream.opened(fleet.next_port(), request) as stream:
        if stream.head.status == 200:
            await stream.take(1)


async def test_every_slot_comes_back_however_calls_end(fleet: Fleet) -> None:
    """T115."""
    scenarios = {
        "ok": Scenario(gap_ms=5),
        "400": Scenario(status=400),
        "500": Scenario(status=500),
        "reset": Scenario(accept_and_reset=True),
    }
    models = {way: await fleet.house.model() for way in scenarios}
    await fleet.house.upstream.script(by_model={models[way]: scenario for way, scenario in scenarios.items()})
    key, key_id = await fleet.key(limits=[{"kind": "concurrency", "limit": 5, "window_seconds": 0}])

    for start in range(0, 140, 20):
        await asyncio.gather(*(ends_somehow(fleet, key, models, start + number) for number in range(20)))

    async with asyncio.timeout(20):
        while await fleet.counters.zcard(f"{{ag}}:l:key:{key_id}:concurrency:0"):
            await asyncio.sleep(0.02)
    slow = await fleet.house.model(Scenario(delay_ms=3_000))
    await fleet.house.known_to(fleet.gateways)
    assert statuses(await fleet.at_once(9, key, slow)) == {200: 5, 429: 4}


async def test_the_explanation_of_a_refusal_for_money_says_what_to_do(fleet: Fleet) -> None:
    """Spent money is final (402, no retry); money that runs is not (429 with a true Retry-After)."""
    model = await fleet.house.model(Scenario(delay_ms=6_000), price=TEN_CENTS_A_CALL)
    key, _ = await fleet.key(budgets=hard("0.20"))

    answers = await fleet.at_once(3, key, model)
    (waiting,) = [answer for answer in answers if answer.status != 200]
    final = await fleet.chat(key, model)

    assert (waiting.status, json.loads(waiting.body)["error"]["type"]) == (429, "budget_reserved"), waiting.text
    assert int(waiting.header("retry-after-ms") or "0") > 0
    assert (final.status, json.loads(final.body)["error"]["code"]) == (402, "budget_exceeded")
    assert final.header("x-should-retry") == "false"
