"""T137, the short form: mixed calls for a while, and nothing that has grown afterwards. SOAK_CALLS=20000 makes it the long one.

Either prints what it found: `SOAK_CALLS=20000 pytest tests/e2e/test_soak.py -s --timeout 1800`.
"""

from __future__ import annotations

import asyncio
import os

from tests.e2e.house import HELLO, House
from tests.e2e.test_metrics import scraped, total
from tests.kit import raw_http
from tests.kit.processes import GatewayProcess
from tests.kit.raw_http import RawConnection, request_bytes
from tests.kit.scenario import Scenario

CALLS = int(os.environ.get("SOAK_CALLS", "2000"))
IS_LONG = CALLS >= 20_000
WARM_UP = 15_000 if IS_LONG else 1_500
"""Measured after 5,000 calls and every 8,000 from there: 136.1, 138.0, 138.5, 138.5, 138.6 MB. What is bounded is full by then."""
AT_ONCE = 16
BIG = "x" * 200_000


async def burst(gateway: GatewayProcess, key: str, models: dict[str, str], calls: int) -> None:
    """Whole answers, streams, bad requests, upstream failures, big bodies, and callers who hang up; so many at once."""
    numbers = iter(range(calls))

    async def caller() -> None:
        for number in numbers:
            kind = number % 8
            fields: dict[str, object] = {"model": models["good"], "messages": HELLO}
            if kind in (1, 2):
                fields["stream"] = True
            elif kind == 3:
                fields["model"] = "no-such-model"
            elif kind == 4:
                fields["model"] = models["bad"]
            elif kind == 5:
                fields["messages"] = [{"role": "user", "content": BIG if number % 64 == 5 else "Hi."}]
            elif kind == 6:
                fields["model"], fields["stream"] = models["slow"], True
            raw = request_bytes(
                "POST",
                "/v1/chat/completions",
                headers={"Authorization": f"Bearer {key}", "Connection": "close"},
                json_body=fields,
            )
            if kind == 6:
                async with RawConnection(gateway.port, timeout_s=20) as connection:
                    await connection.send(raw)
                    await connection.receive()  # the head, and gone
            else:
                await raw_http.exchange(gateway.port, raw, timeout_s=20)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(caller())


async def at_rest(gateway: GatewayProcess) -> dict[str, float]:
    """What it holds once nothing runs and nothing waits to be written."""
    async with asyncio.timeout(60):
        while True:
            _, series = await scraped(gateway)
            busy = sum(
                total(series, name)
                for name in ("gateway_inflight_requests", "gateway_log_queue_depth", "gateway_content_queue_bytes")
            )
            if not busy:
                break
            await asyncio.sleep(0.5)
    await asyncio.sleep(1)
    _, series = await scraped(gateway)
    return {
        name: total(series, f"gateway_{name}")
        for name in ("tasks", "open_fds", "resident_memory_bytes", "inflight_requests")
    }


async def test_nothing_grows_with_the_number_of_calls(house: House) -> None:
    """T137."""
    key = await house.key()
    models = {name: await house.model() for name in ("good", "bad", "slow")}
    failing, slow = Scenario(status=400, error_message="no"), Scenario(chunks=40, gap_ms=10)
    await house.upstream.script(by_model={models["bad"]: failing, models["slow"]: slow})
    async with GatewayProcess(house.env, name="soaked") as gateway:
        await burst(gateway, key, models, WARM_UP)
        before = await at_rest(gateway)
        await burst(gateway, key, models, CALLS)
        after = await at_rest(gateway)
        log = gateway.log_text()

    assert abs(after["tasks"] - before["tasks"]) <= 5, (before, after)
    assert abs(after["open_fds"] - before["open_fds"]) <= 10, (before, after)
    assert after["inflight_requests"] == 0
    grown = after["resident_memory_bytes"] - before["resident_memory_bytes"]
    slope_mb = grown / 1e6 / (CALLS / 10_000)
    print(
        f"{CALLS} calls after {WARM_UP}: memory {grown / 1e6:+.2f} MB, {slope_mb:+.2f} MB for 10,000; {before} → {after}"
    )
    # 1 MB per 10,000 calls is what the long form allows; in the short one the allocator's own steps are larger than that.
    assert grown < (0 if IS_LONG else 8_000_000) + CALLS / 10_000 * 1_000_000, (before, after)
    assert '"unexpected_error"' not in log
