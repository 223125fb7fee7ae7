"""A bug of ours: the only 500 there is, in our shape, with nothing of the bug in it, and nothing held that it had taken."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis.asyncio

from tests.e2e.house import House, error_of, request_id_of, unique
from tests.kit import raw_http
from tests.kit.processes import GatewayProcess
from tests.kit.raw_http import RawResponse

pytestmark = pytest.mark.timeout(90)


class FaultyGateway(GatewayProcess):
    """The gateway with the bugs of `tests.kit.faulty_app`."""

    def __init__(self, env: dict[str, str], **options: str) -> None:
        super().__init__(env, name="faulty", **options)  # type: ignore[arg-type]
        self._command[self._command.index("app.main:app")] = "tests.kit.faulty_app:app"


@pytest.fixture(scope="module")
def faulty(house: House) -> Iterator[House]:
    gateway = FaultyGateway(house.env)
    try:
        asyncio.run(gateway.start())
        yield replace(house, gateway=gateway)
    finally:
        gateway.destroy()


@pytest.fixture
async def counters(house: House) -> AsyncIterator[redis.asyncio.Redis]:
    client = redis.asyncio.Redis.from_url(house.redis_url, socket_timeout=5)
    yield client
    await client.aclose()


async def a_model_with(house: House, bug: str) -> str:
    name = unique(bug)
    price = {"input_usd_per_mtok": "2.50", "output_usd_per_mtok": "10"}
    await house.admin("POST", "models", {"name": name, "price": price}, expect=201)
    await house.endpoint(name)
    return name


def assert_tells_nothing(answer: RawResponse) -> None:
    assert answer.header("x-request-id")
    for word in ("canary", "Traceback", "Error(", "app/", ".py", "ZeroDivision"):
        assert word not in answer.text


@pytest.mark.parametrize("bug", ["bug-early", "bug-call"])
async def test_a_bug_in_a_handler_is_a_500_and_holds_no_slot_and_no_money(
    faulty: House, counters: redis.asyncio.Redis, bug: str
) -> None:
    """T134."""
    user = await faulty.user(budgets=[{"period": "total", "hard_limit_usd": "1"}])
    key = await faulty.key(user, limits=[{"kind": "concurrency", "limit": 1, "window_seconds": 0}])
    model, good = await a_model_with(faulty, bug), await faulty.model()

    for _ in range(3):
        answer = await faulty.chat(key, model)
        error = error_of(answer)
        assert (answer.status, error["code"], error["type"]) == (500, "internal_error", "server_error")
        assert_tells_nothing(answer)
        record = await faulty.record(request_id_of(answer))
        assert (record["outcome"], record["error_code"]) == ("interrupted", "internal_error")
        async with asyncio.timeout(10):  # lines are written behind the calls' back
            while request_id_of(answer) not in faulty.gateway.log_text():
                await asyncio.sleep(0.02)

    served = await faulty.chat(key, good)
    assert served.status == 200, "the slot is free, and the process lives"
    spent = (await faulty.record(request_id_of(served)))["cost_usd"].replace(".", "").lstrip("0")
    assert await counters.hmget(f"{{ag}}:b:user:{user}:total", "s", "r") == [spent.encode(), b"0"]


async def test_a_bug_in_the_middle_of_a_stream_ends_it_with_an_error(
    faulty: House, counters: redis.asyncio.Redis
) -> None:
    """T134."""
    user = await faulty.user(budgets=[{"period": "total", "hard_limit_usd": "1"}])
    key = await faulty.key(user, limits=[{"kind": "concurrency", "limit": 1, "window_seconds": 0}])

    answer = await faulty.chat(key, await a_model_with(faulty, "bug-stream"), stream=True)

    assert answer.status == 200
    assert_tells_nothing(answer)
    assert '"internal_error"' in answer.text
    assert "[DONE]" not in answer.text
    record = await faulty.record(request_id_of(answer))
    assert (record["outcome"], record["cost_usd"] > "0.000000000") == ("interrupted", True)
    assert (await counters.hget(f"{{ag}}:b:user:{user}:total", "r")) == b"0"
    assert (await faulty.chat(key, await faulty.model())).status == 200


@pytest.mark.parametrize("path", ["/health?bug", "/admin/api/users/bug-1"])
async def test_a_bug_in_a_middleware_or_an_admin_route_has_the_same_shape(faulty: House, path: str) -> None:
    """T134."""
    headers = {"Authorization": f"Bearer {faulty.env['ADMIN_TOKEN']}"}
    answer = await raw_http.call(faulty.gateway.port, "GET", path, headers=headers)

    assert (answer.status, error_of(answer)["code"]) == (500, "internal_error")
    assert_tells_nothing(answer)
    assert (await raw_http.call(faulty.gateway.port, "GET", "/health")).status == 200


async def test_a_loop_that_stands_still_is_told_and_ends_no_process(faulty: House) -> None:
    """T135: meanwhile the other worker serves; the one that stood still goes on, and its metric says what was."""
    key, model, good = await faulty.key(), await a_model_with(faulty, "bug-blocks"), await faulty.model()
    async with FaultyGateway(faulty.env) as other:
        elsewhere = replace(faulty, gateway=other)
        assert (await elsewhere.chat(key, good)).status == 200
        blocked = asyncio.create_task(faulty.chat(key, model))
        async with asyncio.timeout(10):
            while '"event_loop_blocked"' not in faulty.gateway.log_text():
                assert (await elsewhere.chat(key, good)).status == 200
                await asyncio.sleep(0.05)
        assert not blocked.done()
        probed = time.monotonic()
        live = await raw_http.call(faulty.gateway.port, "GET", "/health/live", timeout_s=15)
        answer = await blocked

    assert (live.status, answer.status) == (200, 200), (
        "late, but answered: three probes of ten seconds are missed by nobody"
    )
    assert time.monotonic() - probed < 10
    text = (await raw_http.call(faulty.gateway.port, "GET", "/metrics")).text
    lags = [line for line in text.splitlines() if line.startswith("gateway_event_loop_lag_seconds_")]
    seen = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lags}
    assert seen["gateway_event_loop_lag_seconds_sum"] > 3
    assert faulty.gateway.returncode is None


class Unheard(GatewayProcess):
    """Its log goes to a disk that is full."""

    def __init__(self, env: dict[str, str]) -> None:
        super().__init__(env, name="unheard")
        self.log_path = Path("/dev/full")

    def log_text(self) -> str:
        return ""


async def test_a_log_that_takes_nothing_costs_lines_and_no_calls(house: House) -> None:
    """T103: every line is dropped and counted, every call is served and recorded."""
    key, model = await house.key(), await house.model()
    async with Unheard(house.env) as gateway:
        unheard = replace(house, gateway=gateway)
        answers = [await unheard.chat(key, model) for _ in range(20)]
        async with asyncio.timeout(20):  # lines are written behind the calls' back, and one may wait for the next
            while await dropped_lines(gateway) < 20 - 1:
                await asyncio.sleep(0.02)

    assert {answer.status for answer in answers} == {200}
    for answer in answers:
        assert (await house.record(request_id_of(answer)))["outcome"] == "ok"


async def dropped_lines(gateway: GatewayProcess) -> float:
    text = (await raw_http.call(gateway.port, "GET", "/metrics")).text
    (line,) = [line for line in text.splitlines() if line.startswith("gateway_log_lines_dropped_total ")]
    return float(line.rpartition(" ")[2])


class Unread(GatewayProcess):
    """Its log goes into a pipe that nobody reads."""

    def __init__(self, env: dict[str, str], pipe: Path) -> None:
        super().__init__(env, name="unread")
        self.log_path = pipe

    def log_text(self) -> str:
        return ""


async def test_a_log_that_nobody_reads_holds_up_no_call_and_no_end(house: House, tmp_path: Path) -> None:
    """T103: a pipe takes 64 KiB, the lines of some 150 calls. Whoever wrote into it when it is full would wait for ever."""
    pipe = tmp_path / "log"
    os.mkfifo(pipe)
    unread = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        key, model = await house.key(limits=[]), await house.model()
        async with Unread(house.env, pipe) as gateway:
            unheard = replace(house, gateway=gateway)
            for _ in range(15):
                answers = await asyncio.gather(*(unheard.chat(key, model) for _ in range(20)))
                assert {answer.status for answer in answers} == {200}
            async with asyncio.timeout(20):
                while select.select([], [unread], [], 0)[
                    1
                ]:  # until it is full: lines are written behind the calls' back
                    await asyncio.sleep(0.02)
            answers = await asyncio.gather(*(unheard.chat(key, model) for _ in range(20)))
            assert {answer.status for answer in answers} == {200}
            gateway.terminate()
            assert await gateway.wait(timeout_s=30) in (0, -signal.SIGTERM)
    finally:
        os.close(unread)
