"""T111: budgets whose thresholds are crossed by many calls at once on several processes, and the webhook that tells of it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.embedded import PostgresServer, ValkeyServer
from tests.e2e.conftest import environment
from tests.e2e.house import HELLO, House, Json
from tests.kit import raw_http
from tests.kit.processes import GatewayFleet, UpstreamProcess
from tests.kit.raw_http import RawResponse
from tests.kit.webhook_receiver import Posted, WebhookReceiver

pytestmark = pytest.mark.timeout(120)

SECRET = "webhook-secret-for-tests-0123456789abcdefghij"
REFUSED_FIRST = 2


@dataclass(slots=True)
class Street:
    """Three gateways on stores of their own (any other would raise the alerts too), and where they post them."""

    house: House
    fleet: GatewayFleet
    receiver: WebhookReceiver

    async def chat(self, number: int, key: str, model: str) -> RawResponse:
        return await raw_http.call(
            self.fleet[number % len(self.fleet)].port,
            "POST",
            "/v1/chat/completions",
            headers={"Authorization": f"Bearer {key}"},
            json_body={"model": model, "messages": HELLO, "max_tokens": 8},
            timeout_s=60,
        )

    async def model_of_ten_cents(self) -> str:
        price = {"input_usd_per_mtok": "0", "output_usd_per_mtok": "0", "request_usd": "0.10"}
        name = await self.house.model(price=price)
        await self.house.known_to(self.fleet.gateways)
        return name

    async def alerts(self) -> list[Json]:
        items: list[Json] = (await self.house.admin("GET", "alerts?limit=200", expect=200))["items"]
        return items

    async def delivered(self, count: int, *, within_s: float = 40) -> list[Json]:
        """The alerts, once so many have arrived at the receiver."""
        async with asyncio.timeout(within_s):
            while True:
                items = await self.alerts()
                if sum(item["delivery"]["state"] == "delivered" for item in items) >= count:
                    return items
                await asyncio.sleep(0.1)


@pytest.fixture
async def street() -> AsyncIterator[Street]:
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gw-alerts-")))
        postgres = PostgresServer(home / "postgres", durable=False, on_progress=lambda _: None)
        valkey = ValkeyServer(home / "valkey", durable=False, on_progress=lambda _: None)
        for server in (postgres, valkey):
            stack.callback(server.stop)
            await asyncio.to_thread(server.start)
        receiver = await stack.enter_async_context(WebhookReceiver(_refuse_first))
        env = environment(postgres.url, valkey.url)
        env |= {"ALERT_WEBHOOK_URL": receiver.url, "ALERT_WEBHOOK_SECRET": SECRET}
        upstream = await stack.enter_async_context(UpstreamProcess())
        fleet = await stack.enter_async_context(GatewayFleet(3, env))
        house = House(fleet[0], upstream, postgres.url, valkey.url, env)
        yield Street(house, fleet, receiver)


def _refuse_first(posted: Posted, before: int) -> int:
    is_test = json.loads(posted.body)["type"] == "test"
    return 200 if is_test or before >= REFUSED_FIRST else 500


async def test_each_threshold_crossed_by_a_hundred_calls_on_three_processes_is_told_exactly_once(
    street: Street,
) -> None:
    """T111."""
    house = street.house
    model = await street.model_of_ten_cents()
    user = await house.user(budgets=[{"period": "daily", "soft_limit_usd": "5"}])
    budget = {"period": "monthly", "soft_limit_usd": "7.5", "hard_limit_usd": "10"}
    made = await house.admin("POST", "keys", {"user_oid": user, "limits": [], "budgets": [budget]}, expect=201)

    answers = await asyncio.gather(*(street.chat(i, made["key"], model) for i in range(100)))

    assert Counter(answer.status for answer in answers) == {200: 100}
    alerts = await street.delivered(5)
    assert _named(alerts) == {
        ("key", made["id"], "monthly", "hard", 50): 1,
        ("key", made["id"], "monthly", "hard", 80): 1,
        ("key", made["id"], "monthly", "hard", 100): 1,
        ("key", made["id"], "monthly", "soft", 100): 1,
        ("user", user, "daily", "soft", 100): 1,
    }
    full = next(each for each in alerts if (each["limit"], each["threshold"]) == ("hard", 100))
    assert (full["limit_usd"], full["spent_usd"]) == ("10.000000000", "10.000000000")

    # More of the same, past every threshold: nothing more is told.
    other_key = await house.key(user)
    later = [await street.chat(i, other_key, model) for i in range(3)]
    for answer in later:
        await house.record(answer.header("x-request-id") or "")
    assert len(await street.alerts()) == 5
    lines = [line for line in street.fleet.log_text().splitlines() if '"event":"budget_threshold"' in line]
    assert len(lines) == 5
    _require_well_told(street.receiver.received, alerts)


def _named(alerts: list[Json]) -> Counter[tuple[object, ...]]:
    return Counter((each["scope"], each["holder"], each["period"], each["limit"], each["threshold"]) for each in alerts)


def _require_well_told(received: list[Posted], alerts: list[Json]) -> None:
    """Each alert arrived three times (two were refused), the same bytes under the same id, signed each time anew."""
    by_id = {each["id"]: each for each in alerts}
    assert Counter(posted.headers["x-antigravity-event-id"] for posted in received) == dict.fromkeys(
        by_id, REFUSED_FIRST + 1
    )
    assert len({posted.body for posted in received}) == len(alerts)
    for posted in received:
        _require_signed(posted)
        event, alert = json.loads(posted.body), by_id[posted.headers["x-antigravity-event-id"]]
        assert event["type"] == "budget_threshold"
        assert event == {name: alert[name] for name in event}
        assert set(event) == set(alert) - {"delivery"}
    assert all(
        (each["delivery"]["attempts"], each["delivery"]["last_status"]) == (REFUSED_FIRST + 1, 200) for each in alerts
    )


def _require_signed(posted: Posted) -> None:
    at, _, given = posted.headers["x-antigravity-signature"].removeprefix("t=").partition(",v1=")
    assert abs(int(at) - time.time()) < 60
    expected = hmac.new(SECRET.encode(), f"{at}.".encode() + posted.body, hashlib.sha256).hexdigest()
    assert hmac.compare_digest(given, expected)


async def test_the_test_button_tells_how_the_receiver_answered_and_never_its_words(street: Street) -> None:
    button = street.house.admin
    answer = await button("POST", "alerts/test", expect=200)

    (posted,) = street.receiver.received
    _require_signed(posted)
    assert json.loads(posted.body)["type"] == "test"
    assert answer == {"id": posted.headers["x-antigravity-event-id"], "delivered": True, "status": 200, "error": None}

    await street.receiver.close()
    answer = await button("POST", "alerts/test", expect=200)
    assert (answer["delivered"], answer["status"], answer["error"]) == (False, None, "connect_failed")
    assert await street.alerts() == [], "a test is no alert"
    assert SECRET not in street.fleet.log_text()
