"""Calls that took their time until they were admitted: what was revoked or changed meanwhile holds for them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import msgspec
import pytest

from app.domain.call import Call, Meter
from app.domain.catalog import Catalog, Model
from app.domain.identity import Identity, Overflow, OverflowMode
from app.domain.limits import ClaimState, Limit, LimitKind, Scope
from app.exceptions import GatewayError, InvalidApiKey, ModelNotAllowed, ModelNotFound, RateLimited, UserSuspended
from app.services.admission import FRESH_S
from app.storage.ports import LimitRefused
from tests.calls import PRICE, a_key, a_meter, a_model, an_estimate, an_identity
from tests.services.test_admission import MODEL, House, limits

QUEUEING = Overflow(OverflowMode.QUEUE, max_wait_s=60)


class Door:
    """Who the credential is by now, or why nobody; and how often that was asked."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.refusal: GatewayError | None = None
        self.asked = 0

    async def identify(self) -> Identity:
        self.asked += 1
        await asyncio.sleep(0)
        if self.refusal is not None:
            raise self.refusal
        return self.identity


class Caller:
    def __init__(self, identity: Identity | None = None) -> None:
        self.house = House()
        self.door = Door(identity or an_identity(key=a_key(overflow=QUEUEING)))
        self.meter = a_meter(self.door.identity, estimate=an_estimate(), identify=self.door.identify)
        self.catalog = self.house.catalog

    async def call(self, model: Model = MODEL) -> Meter:
        async with self.house.admission.admitted(model, self.meter, self.catalog):
            self.meter.endpoint = model.endpoints[0]
        return self.meter

    def refused_once(self) -> None:
        """By a limit that has room again in a second."""
        claim = self.house.admission._reservation(MODEL, self.meter).claims[0]
        self.house.counters.refusals.append(LimitRefused(ClaimState(claim, 0, 1_000), 1_000))

    async def queued(self) -> asyncio.Task[Meter]:
        self.refused_once()
        task = asyncio.create_task(self.call())
        await self.house.clock.until_asleep(1)
        return task


async def test_a_call_admitted_at_once_is_not_identified_again() -> None:
    caller = Caller()
    await caller.call()
    assert caller.door.asked == 0


@pytest.mark.parametrize("refusal", [InvalidApiKey(), UserSuspended()], ids=lambda error: error.code)
async def test_a_queued_call_whose_caller_may_not_call_any_more_is_refused_as_at_the_door(
    refusal: GatewayError,
) -> None:
    caller = Caller()
    task = await caller.queued()
    caller.door.refusal = refusal

    await caller.house.clock.advance(1.0)

    with pytest.raises(type(refusal)):
        await task
    assert len(caller.house.counters.asked) == 1, "nothing more was claimed for it"
    assert not caller.meter.is_admitted


async def test_a_queued_call_is_admitted_on_what_its_key_has_by_then() -> None:
    caller = Caller()
    task = await caller.queued()
    key = a_key(overflow=QUEUEING, limits=limits(7))
    caller.door.identity = an_identity(key=key)

    await caller.house.clock.advance(1.0)

    assert (await task).identity.key == key
    claims = caller.house.reservation.claims
    assert [claim.limit.limit for claim in claims if claim.scope is Scope.KEY] == [7]


async def test_a_queued_call_is_made_of_the_model_as_it_is_by_then() -> None:
    caller = Caller()
    task = await caller.queued()
    caller.house.catalog = Catalog.of(2, [a_model("gpt-4", price=PRICE, limits=limits(9))])

    await caller.house.clock.advance(1.0)

    assert (await task).model is caller.house.catalog.models["gpt-4"]
    assert [each.limit.limit for each in caller.house.reservation.claims if each.scope is Scope.MODEL] == [9]


async def test_a_queued_call_of_an_alias_follows_it() -> None:
    caller = Caller()
    aliased = replace(MODEL, aliases=("smart",))
    caller.catalog = caller.house.catalog = Catalog.of(1, [aliased])
    caller.meter.call = _asking_for(caller.meter, "smart")
    caller.refused_once()
    task = asyncio.create_task(caller.call(aliased))
    await caller.house.clock.until_asleep(1)
    caller.house.catalog = Catalog.of(2, [MODEL, a_model("gpt-5", price=PRICE, aliases=("smart",))])

    await caller.house.clock.advance(1.0)

    model = (await task).model
    assert model is not None
    assert model.name == "gpt-5"


def _asking_for(meter: Meter, model: str) -> Call:

    return msgspec.structs.replace(meter.call, model=model)


@pytest.mark.parametrize(
    ("identity", "catalog", "error"),
    [
        (an_identity(key=a_key(allowed_models=frozenset({"other"}))), Catalog.of(1, [MODEL]), ModelNotAllowed),
        (an_identity(), Catalog.of(2, []), ModelNotFound),
    ],
    ids=["the key may not use it", "it is gone"],
)
async def test_a_queued_call_whose_model_it_may_not_have_is_refused(
    identity: Identity, catalog: Catalog, error: type[GatewayError]
) -> None:
    caller = Caller()
    task = await caller.queued()
    caller.door.identity, caller.house.catalog = identity, catalog

    await caller.house.clock.advance(1.0)

    with pytest.raises(error):
        await task
    assert len(caller.house.counters.asked) == 1


class Slow(Caller):
    """A call that comes in late: its body took longer than what is known of a caller is good for."""

    def __init__(self) -> None:
        super().__init__(an_identity())
        self.meter.started_s -= 2 * FRESH_S


async def test_a_call_that_came_in_slowly_and_was_revoked_gives_back_what_it_was_admitted_with() -> None:
    caller = Slow()
    caller.door.refusal = InvalidApiKey()

    with pytest.raises(InvalidApiKey):
        await caller.call()

    assert not caller.meter.is_admitted
    assert caller.house.admission.running_calls == 0
    await caller.house.admission.settle_again()
    assert caller.house.counters.released == [caller.meter.request_id]
    assert caller.house.counters.settled == []


async def test_a_call_that_came_in_slowly_is_admitted_once_where_nothing_changed() -> None:
    caller = Slow()
    await caller.call()
    assert (caller.door.asked, len(caller.house.counters.asked)) == (1, 1)


async def test_a_call_that_came_in_slowly_exchanges_its_claims_for_those_of_the_changed_key() -> None:
    caller = Slow()
    caller.door.identity = an_identity(key=a_key(limits=limits(5)))
    await caller.call()
    first, second = caller.house.counters.asked
    assert first.call_id == second.call_id
    assert [claim.limit.limit for claim in second.claims] == [5]


async def test_a_changed_key_that_has_no_room_refuses_the_call_that_came_in_slowly() -> None:
    caller = Slow()
    caller.door.identity = an_identity(key=a_key(limits=(Limit(LimitKind.CONCURRENCY, 0, 0),)))
    counters = caller.house.counters
    admit = counters.admit

    async def second_refused(reservation: object) -> object:
        answer = await admit(reservation)  # type: ignore[arg-type]
        if len(counters.asked) == 1:
            return answer
        claim = counters.asked[-1].claims[0]
        return LimitRefused(ClaimState(claim, 0, 500), 500)

    counters.admit = second_refused  # type: ignore[method-assign, assignment]
    with pytest.raises(RateLimited):
        await caller.call()
    await caller.house.admission.settle_again()
    assert counters.released == [caller.meter.request_id]


async def test_a_call_of_the_gateways_own_is_nobodys_to_identify() -> None:
    caller = Slow()
    caller.meter.identify = None
    await caller.call()
    assert len(caller.house.counters.asked) == 1
