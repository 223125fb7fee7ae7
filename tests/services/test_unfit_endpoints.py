"""Endpoints that cannot carry a call: left out without a trace, until nobody is left who could."""

from __future__ import annotations

import asyncio
import json

import pytest

from app.dialects.messages import Messages
from app.domain.breaker import BreakerRules, Fault
from app.domain.call import Meter
from app.domain.catalog import Catalog, Model, ProviderKind
from app.domain.retry_budget import FLOOR
from app.exceptions import (
    EndpointUnfit,
    GatewayError,
    InvalidRequest,
    NoHealthyEndpoint,
    Overloaded,
    UpstreamError,
    UpstreamRejected,
)
from app.providers.base import Answer
from tests.calls import a_meter, a_model, an_endpoint
from tests.services.test_failover import ANSWER, CHAT, House, failed

MESSAGES = Messages()
SEARCH = {
    "model": "m",
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "What is new?"}],
    "tools": [{"type": "web_search_20250305", "name": "web_search"}],
}
CHAT_1, CHAT_2, CHAT_3 = (an_endpoint(f"chat-{number}") for number in (1, 2, 3))
NATIVE = an_endpoint("native", provider=ProviderKind.ANTHROPIC)


def unfit(message: str = "Not this parameter.") -> EndpointUnfit:
    return EndpointUnfit(InvalidRequest(message, param="logit_bias"))


class Searching(House):
    """A house whose calls only Anthropic's own endpoints can carry."""

    def __init__(self, *script: BaseException | float | None) -> None:
        super().__init__(*script)
        self.failover._providers = dict.fromkeys(ProviderKind, self.provider)
        self.meter = self.a_search()

    def a_search(self) -> Meter:
        return a_meter(call=MESSAGES.read(json.dumps(SEARCH).encode()))

    async def search(self, model: Model, *others: Model) -> Answer:
        catalog = Catalog.of(1, [model, *others])
        async with self.failover.opened(MESSAGES, model, self.meter, catalog) as answer:
            return answer

    @property
    def verdicts(self) -> list[tuple[str, str]]:
        return [(each.endpoint_id, each.verdict.partition(":")[0]) for each in self.meter.candidates]


async def test_a_call_goes_past_all_that_cannot_carry_it_to_the_one_that_can() -> None:
    house = Searching()

    assert await house.search(a_model("m", CHAT_1, CHAT_2, CHAT_3, NATIVE)) is ANSWER

    assert house.provider.tried == ["native"]
    assert [(each.endpoint_id, each.outcome) for each in house.meter.attempts] == [("native", "ok")]
    assert house.verdicts == [("chat-1", "unfit"), ("chat-2", "unfit"), ("chat-3", "unfit"), ("native", "tried")]
    assert "web_search" in house.meter.candidates[0].verdict


async def test_being_unfit_costs_no_retry() -> None:
    house = Searching(failed(), None)
    model = a_model(
        "m", CHAT_1, NATIVE, CHAT_2, an_endpoint("native-2", provider=ProviderKind.ANTHROPIC), max_retries=1
    )

    assert await house.search(model) is ANSWER

    assert house.provider.tried == ["native", "native-2"]
    assert len(house.meter.attempts) == 2


async def test_whom_nobody_could_ask_is_not_to_blame_however_often() -> None:
    house = Searching()
    model = a_model("m", CHAT_1, NATIVE)

    for _ in range(3 * BreakerRules().faults_in_row):
        house.meter = house.a_search()
        await house.search(model)

    live = house.balancer.live(CHAT_1)
    assert house.balancer.state_of("chat-1") == "closed"
    assert live.breaker.counted(house.clock.monotonic()) == (0, 0)
    assert (live.in_flight, live.mishap) == (0, None)


async def test_only_when_all_are_unfit_the_caller_is_told_why() -> None:
    house = Searching()

    with pytest.raises(InvalidRequest, match="web_search") as told:
        await house.search(a_model("m", CHAT_1, CHAT_2))

    assert told.value.param == "tools[0]"
    assert house.provider.tried == []
    assert house.meter.attempts == []
    assert (house.meter.endpoint, house.meter.error_reason) == (None, "not_translatable")


async def test_who_could_but_is_down_makes_it_a_503_and_no_400() -> None:
    house = Searching()
    house.balancer.live(NATIVE)
    house.balancer.told_open("native", Fault.ERROR, 30.0)

    with pytest.raises(NoHealthyEndpoint) as told:
        await house.search(a_model("m", CHAT_1, NATIVE))

    assert 20.0 < (told.value.retry_after_s or 0) <= 30.0, "when the fit one may be asked, not the unfit one"


async def test_who_could_but_failed_is_what_the_caller_hears_of() -> None:
    house = Searching(failed())

    with pytest.raises(UpstreamError):
        await house.search(a_model("m", NATIVE, CHAT_1))

    assert house.verdicts == [("native", "tried"), ("chat-1", "unfit")]


async def test_who_could_and_says_no_is_what_the_caller_hears_of() -> None:
    fault = failed("status_400", status=400, is_caller_fault=True, is_endpoint_fault=False, message="no such tool")
    house = Searching(fault)

    with pytest.raises(UpstreamRejected, match="no such tool"):
        await house.search(a_model("m", CHAT_1, NATIVE, CHAT_2))


async def test_a_call_waits_for_room_at_the_only_endpoint_that_can_carry_it() -> None:
    house = Searching(None, None)
    small = an_endpoint("native", model="m", provider=ProviderKind.ANTHROPIC, max_concurrency=1)
    model = a_model("m", an_endpoint("chat-1", model="m"), small)
    async with house.failover.opened(MESSAGES, model, house.a_search(), Catalog.of(1, [model])):
        waiting = asyncio.create_task(house.search(model))
        await house.clock.turns()
        assert not waiting.done()

    assert await waiting is ANSWER


async def test_room_is_not_waited_for_where_none_would_help() -> None:
    house = Searching()
    for _ in range(512):
        house.balancer.begin(house.balancer.live(NATIVE))

    with pytest.raises(Overloaded):
        await house.search(a_model("m", CHAT_1, NATIVE))


async def test_what_an_unfit_endpoint_allows_a_minute_is_left_to_those_it_can_serve() -> None:
    house = Searching()
    limited = an_endpoint("chat-1", requests_per_minute=1)

    await house.search(a_model("m", limited, NATIVE))

    assert (house.claims.there, house.claims.freed) == ([], [])


async def test_a_fallback_may_carry_what_its_model_cannot() -> None:
    house = Searching()
    first = a_model("m", CHAT_1, fallbacks=("other",))
    other = a_model("other", an_endpoint("o", model="other", provider=ProviderKind.ANTHROPIC))

    assert await house.search(first, other) is ANSWER
    assert house.provider.tried == ["o"]


# ── Where the provider finds it out, before it sends anything ─────────────────────────────────────────────────────────


async def test_what_a_provider_cannot_express_goes_to_the_next_endpoint() -> None:
    house = House(unfit(), unfit(), unfit(), None)

    assert await house.call(a_model("m", CHAT_1, CHAT_2, CHAT_3, an_endpoint("last"), max_retries=0)) is ANSWER

    assert [each.endpoint_id for each in house.meter.attempts] == ["last"]
    assert [each.verdict for each in house.meter.candidates][:3] == ["unfit: Not this parameter."] * 3
    assert house.balancer.live(CHAT_1).in_flight == 0


async def test_the_retry_that_an_unfit_provider_did_not_use_is_there_for_the_next() -> None:
    house = House(failed(), unfit(), None)
    for _ in range(FLOOR - 1):
        assert house.retries.may_retry(house.clock.monotonic())

    assert await house.call(a_model("m", CHAT_1, CHAT_2, CHAT_3)) is ANSWER

    assert house.retries.counted(house.clock.monotonic())[1] == FLOOR


async def test_an_unfit_provider_holds_nothing_of_its_endpoints_limits() -> None:
    house = House(unfit(), None)

    await house.call(a_model("m", an_endpoint("a", max_concurrency=1), an_endpoint("b")))

    assert house.claims.there == []
    assert house.balancer.live(an_endpoint("a")).in_flight == 0


async def test_when_no_provider_can_express_it_the_caller_is_told_why() -> None:
    house = House(unfit("Not here."), unfit("Nor here."))

    with pytest.raises(GatewayError) as told:
        async with house.failover.opened(CHAT, a_model("m", CHAT_1, CHAT_2), house.meter, Catalog.of(1, [])):
            pass

    assert (told.value.status, told.value.message, told.value.param) == (400, "Nor here.", "logit_bias")
    assert house.meter.attempts == []
