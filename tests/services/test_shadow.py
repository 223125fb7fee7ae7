"""Shadow traffic: who has a shadow, what is left out, and that nothing that befalls one ends the others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from app.dialects.base import Dialect
from app.dialects.openai_chat import OpenAIChat
from app.domain.call import Meter
from app.domain.catalog import Catalog, Shadow
from app.exceptions import UpstreamError
from app.providers.base import Answer
from app.services import house_accounts
from app.services.shadow import MAX_BODY_BYTES, MAX_QUEUED, WORKERS, Shadows
from tests.calls import a_call, a_meter, a_model
from tests.kit.clock import ManualClock

CHAT = OpenAIChat()
BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
MODEL = a_model("m", shadow=Shadow("s", 25))
CATALOG = Catalog.of(1, [MODEL, a_model("s")])


class House:
    """Shadows with a chance that a test sets; what is called is noted, and fails as scripted."""

    def __init__(self) -> None:
        self.chance = 0.0
        self.shadows = Shadows(clock=ManualClock(), chance=lambda: self.chance)
        self.called: list[Meter] = []
        self.fails: list[BaseException] = []

    def offer(self, meter: Meter | None = None) -> None:
        self.shadows.offer(MODEL, meter or a_meter(call=CHAT.read(BODY)), CHAT, CATALOG)

    async def answered(
        self, meter: Meter, dialect: Dialect, catalog: Catalog, take: Callable[[Answer], Awaitable[None]]
    ) -> None:
        self.called.append(meter)
        if self.fails:
            raise self.fails.pop(0)
        await take(Answer("application/json", b"{}"))

    async def until_called(self, times: int) -> None:
        running = asyncio.create_task(self.shadows.run(self.answered))
        async with asyncio.timeout(5):
            while len(self.called) < times:
                await asyncio.sleep(0.001)
        running.cancel()


async def test_a_shadow_is_the_same_call_of_another_model_on_the_houses_account() -> None:
    house = House()
    meter = a_meter(call=CHAT.read(BODY))
    house.offer(meter)
    await house.until_called(1)

    (made,) = house.called
    assert made.identity is house_accounts.SHADOWS
    assert (made.call.model, made.client_request_id) == ("s", meter.request_id)
    assert b'"model":"s"' in made.call.body
    assert b'"content":"hi"' in made.call.body
    assert made.request_id != meter.request_id


async def test_chance_decides_and_a_shadow_has_no_shadow() -> None:
    house = House()
    house.chance = 0.25
    house.offer()
    house.chance = 0.0
    house.offer(a_meter(house_accounts.SHADOWS, call=CHAT.read(BODY)))
    house.offer(a_meter(house_accounts.CHECKS, call=CHAT.read(BODY)))
    house.chance = 0.2499
    house.offer()
    await house.until_called(1)
    await asyncio.sleep(0)

    assert len(house.called) == 1


def test_what_does_not_fit_is_left_out_and_counted() -> None:
    house = House()
    for _ in range(MAX_QUEUED + 3):
        house.offer()
    house.offer(a_meter(call=a_call(body=b"x" * (MAX_BODY_BYTES + 1))))

    assert house.shadows.dropped == 4


@pytest.mark.parametrize("fault", [UpstreamError(), asyncio.CancelledError(), ValueError("a bug")])
async def test_nothing_that_befalls_a_shadow_ends_the_others(fault: BaseException) -> None:
    house = House()
    house.fails = [fault] * 2
    running = asyncio.create_task(house.shadows.run(house.answered))
    async with asyncio.timeout(5):
        while len(house.called) < WORKERS + 4:
            house.offer()
            await asyncio.sleep(0.001)

    assert not running.done()
    running.cancel()
