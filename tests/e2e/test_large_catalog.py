"""Three gateways with a thousand models: a change of one of them holds everywhere within a second all the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import pytest

from bench.catalog import fill
from tests.e2e.house import HELLO, unique
from tests.e2e.test_revocation import BUSY_S, WITHIN_S, WITHOUT_REDIS_S, Trio, bearer, started_trio
from tests.kit import raw_http
from tests.kit.processes import GatewayProcess
from tests.kit.raw_http import RawResponse
from tests.kit.stalls import stalled_s

pytestmark = pytest.mark.timeout(180)

MODELS, ENDPOINTS = 1000, 2
CHEAP, DEAR = (
    {"input_usd_per_mtok": amount, "output_usd_per_mtok": amount, "request_usd": amount} for amount in ("0.001", "0.5")
)


@pytest.fixture(scope="module")
def crowd() -> Iterator[Trio]:
    for trio in started_trio():
        asyncio.run(_crowded(trio))
        yield trio


async def _crowded(trio: Trio) -> None:
    names, secret = await fill(trio.house.database_url, MODELS, ENDPOINTS), await trio.house.key()
    await _held_by_all(trio, lambda gateway: _sees(gateway, secret, names[-1]), gives_up_s=30)


Holds = Callable[[GatewayProcess], Awaitable[bool]]
Step = Callable[[], Awaitable[object]]


async def _held_by_all(trio: Trio, holds: Holds, *, gives_up_s: float = 15) -> float:
    """How long it took until it held on every gateway."""
    began_s = time.monotonic()

    async def until(gateway: GatewayProcess) -> None:
        while not await holds(gateway):
            assert time.monotonic() - began_s < gives_up_s, "it still does not hold everywhere"
            await asyncio.sleep(0.005)

    await asyncio.gather(*map(until, trio.fleet.gateways))
    return time.monotonic() - began_s - stalled_s(began_s)


async def _sees(gateway: GatewayProcess, secret: str, model: str) -> bool:
    return (await raw_http.call(gateway.port, "GET", f"/v1/models/{model}", headers=bearer(secret))).status == 200


async def _call(gateway: GatewayProcess, secret: str, model: str) -> RawResponse:
    body = {"model": model, "messages": HELLO, "max_tokens": 10}
    return await raw_http.call(
        gateway.port, "POST", "/v1/chat/completions", headers=bearer(secret), json_body=body, timeout_s=20
    )


async def _answers(gateway: GatewayProcess, secret: str, model: str) -> bool:
    return (await _call(gateway, secret, model)).status == 200


async def _costs_half_a_dollar(gateway: GatewayProcess, secret: str, model: str) -> bool:
    return ((await _call(gateway, secret, model)).header("x-gateway-cost-usd") or "").startswith("0.5")


def _not(holds: Holds) -> Holds:
    async def held(gateway: GatewayProcess) -> bool:
        return not await holds(gateway)

    return held


async def _model(trio: Trio) -> tuple[Step, Holds, Step, Holds]:
    """It is created, then deleted."""
    name, secret, house = unique("model"), await trio.house.key(), trio.house
    return (
        lambda: house.admin("POST", "models", {"name": name}, expect=201),
        lambda gateway: _sees(gateway, secret, name),
        lambda: house.admin("DELETE", f"models/{name}"),
        _not(lambda gateway: _sees(gateway, secret, name)),
    )


async def _alias(trio: Trio) -> tuple[Step, Holds, Step, Holds]:
    name, alias, secret, house = await trio.house.model(), unique("alias"), await trio.house.key(), trio.house
    return (
        lambda: house.admin("PATCH", f"models/{name}", {"aliases": [alias]}, expect=200),
        lambda gateway: _sees(gateway, secret, alias),
        lambda: house.admin("PATCH", f"models/{name}", {"aliases": []}, expect=200),
        _not(lambda gateway: _sees(gateway, secret, alias)),
    )


async def _endpoint(trio: Trio) -> tuple[Step, Holds, Step, Holds]:
    """It is added, then deleted."""
    name, secret, house = await trio.house.model(endpoints=0), await trio.house.key(), trio.house
    made: list[str] = []

    async def add() -> None:
        made.append(await house.endpoint(name))

    return (
        add,
        lambda gateway: _answers(gateway, secret, name),
        lambda: house.admin("DELETE", f"endpoints/{made[0]}?force=true"),
        _not(lambda gateway: _answers(gateway, secret, name)),
    )


async def _draining(trio: Trio) -> tuple[Step, Holds, Step, Holds]:
    name, secret, house = await trio.house.model(endpoints=0), await trio.house.key(), trio.house
    endpoint = await house.endpoint(name)
    return (
        lambda: house.admin("POST", f"endpoints/{endpoint}/drain", expect=200),
        _not(lambda gateway: _answers(gateway, secret, name)),
        lambda: house.admin("POST", f"endpoints/{endpoint}/undrain", expect=200),
        lambda gateway: _answers(gateway, secret, name),
    )


async def _price(trio: Trio) -> tuple[Step, Holds, Step, Holds]:
    name, secret, house = await trio.house.model(price=CHEAP), await trio.house.key(), trio.house
    return (
        lambda: house.admin("PATCH", f"models/{name}", {"price": DEAR}, expect=200),
        lambda gateway: _costs_half_a_dollar(gateway, secret, name),
        lambda: house.admin("PATCH", f"models/{name}", {"price": CHEAP}, expect=200),
        _not(lambda gateway: _costs_half_a_dollar(gateway, secret, name)),
    )


async def _access(trio: Trio) -> tuple[Step, Holds, Step, Holds]:
    """A key is given the right to a model, and it is taken away again."""
    name, user, house = await trio.house.model(), await trio.house.user(), trio.house
    made = await house.admin("POST", "keys", {"user_oid": user, "limits": [], "allowed_models": ["x"]}, expect=201)
    await trio.known(bearer(made["key"]))
    return (
        lambda: house.admin("PATCH", f"keys/{made['id']}", {"allowed_models": [name]}, expect=200),
        lambda gateway: _sees(gateway, made["key"], name),
        lambda: house.admin("PATCH", f"keys/{made['id']}", {"allowed_models": ["x"]}, expect=200),
        _not(lambda gateway: _sees(gateway, made["key"], name)),
    )


async def _app_access(trio: Trio) -> tuple[Step, Holds, Step, Holds]:
    name, user, house = await trio.house.model(), await trio.house.user(), trio.house
    app = await house.app(allowed_models=["x"])
    await trio.known(app.headers(user))

    async def sees(gateway: GatewayProcess) -> bool:
        answer = await raw_http.call(gateway.port, "GET", f"/v1/models/{name}", headers=app.headers(user))
        return answer.status == 200

    return (
        lambda: house.admin("PATCH", f"apps/{app.id}", {"allowed_models": [name]}, expect=200),
        sees,
        lambda: house.admin("PATCH", f"apps/{app.id}", {"allowed_models": ["x"]}, expect=200),
        _not(sees),
    )


KINDS = [_model, _alias, _endpoint, _draining, _price, _access, _app_access]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__.strip("_"))
async def test_a_change_among_a_thousand_models_holds_everywhere_within_a_second(
    crowd: Trio, kind: Callable[[Trio], Awaitable[tuple[Step, Holds, Step, Holds]]]
) -> None:
    """T007: and what undoes it, too."""
    change, holds, undo, is_undone = await kind(crowd)

    await change()
    changed_s = await _held_by_all(crowd, holds)
    await undo()
    undone_s = await _held_by_all(crowd, is_undone)

    # Three processes take up a thousand models each, on as many cores as there are: one of the two may be in another's way.
    assert min(changed_s, undone_s) < WITHIN_S + BUSY_S
    assert max(changed_s, undone_s) < WITHIN_S + 4 * BUSY_S


async def test_a_hundred_changes_at_once_hold_everywhere_a_second_after_the_last(crowd: Trio) -> None:
    secret = await crowd.house.key()
    aliases = {f"many-{number:05}": unique("alias") for number in range(100)}

    async with asyncio.TaskGroup() as group:
        for name, alias in aliases.items():
            group.create_task(_renamed(crowd, name, alias))

    first_s, again_s = [await _seen_by_all_s(crowd, secret, list(aliases.values())) for _ in range(2)]
    assert first_s - again_s < WITHIN_S + 2 * BUSY_S, "beyond what the 300 questions take"


async def _seen_by_all_s(crowd: Trio, secret: str, models: list[str]) -> float:
    """How long it took until every gateway had said of each that it is there."""
    began_s = time.monotonic()
    for model in models:
        await _held_by_all(crowd, partial(_sees, secret=secret, model=model))
    return time.monotonic() - began_s - stalled_s(began_s)


async def _renamed(crowd: Trio, model: str, alias: str) -> None:
    """Changes are made one after the other: on a slow machine the last of a hundred are told to come again."""
    async with asyncio.timeout(60):
        while True:
            answer = await crowd.house.ask_admin("PATCH", f"models/{model}", {"aliases": [alias]})
            if answer.status != 503:
                break
            await asyncio.sleep(0.2)
    assert answer.status == 200, answer.text


async def test_with_redis_away_a_change_among_a_thousand_models_holds_within_two_seconds(crowd: Trio) -> None:
    """T007: nobody hears the message, everybody asks. The last of these tests: it takes Redis away."""
    secret, alias = await crowd.house.key(), unique("alias")
    await crowd.known(bearer(secret))
    await asyncio.to_thread(crowd.valkey.kill)
    try:
        await crowd.house.admin("PATCH", "models/many-00500", {"aliases": [alias]}, expect=200)
        held_s = await _held_by_all(crowd, lambda gateway: _sees(gateway, secret, alias))
    finally:
        await asyncio.to_thread(crowd.valkey.start)

    assert held_s < WITHOUT_REDIS_S + 3 * BUSY_S
