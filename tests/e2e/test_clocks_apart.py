"""Gateways whose machines disagree about the time: the counter store's clock is everybody's."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from pathlib import Path

import pytest

from app.domain.ids import time_of
from tests.e2e.house import HELLO, House, request_id_of
from tests.kit import raw_http
from tests.kit.processes import GatewayProcess

pytestmark = pytest.mark.timeout(180)

DAY_S = 24 * 3600
ANOTHER_CLOCK = """
import os, time
_time, _time_ns, _ahead_s = time.time, time.time_ns, int(os.environ["CLOCK_AHEAD_S"])
time.time = lambda: _time() + _ahead_s
time.time_ns = lambda: _time_ns() + _ahead_s * 10**9
"""
"""Python looks for this when it starts."""


def age_s(request_id: str) -> float:
    return time.time() - time_of(request_id).timestamp()


@pytest.mark.parametrize("days", [40, -40])
async def test_a_month_and_what_is_spent_in_it_are_the_same_for_all(house: House, tmp_path: Path, days: int) -> None:
    """T125: a process whose machine is in another month books to the same period, and finds what is spent there."""
    (tmp_path / "sitecustomize.py").write_text(ANOTHER_CLOCK)
    env = house.env | {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}", "CLOCK_AHEAD_S": str(days * DAY_S)}
    price = {"input_usd_per_mtok": "0", "output_usd_per_mtok": "0", "request_usd": "2"}
    key = await house.key(budgets=[{"period": "monthly", "hard_limit_usd": "5"}])
    model = await house.model(price=price)
    async with GatewayProcess(env, name="apart") as apart:
        assert (await house.chat(key, model)).status == 200

        async def call_apart() -> raw_http.RawResponse:
            headers, body = {"Authorization": f"Bearer {key}"}, {"model": model, "messages": HELLO}
            return await raw_http.call(apart.port, "POST", "/v1/chat/completions", headers=headers, json_body=body)

        async with asyncio.timeout(30):
            while abs(age_s(request_id_of(await raw_http.call(apart.port, "GET", "/v1/models")))) > DAY_S:
                await asyncio.sleep(0.05)
        answers = [await call_apart(), await call_apart()]

        assert [answer.status for answer in answers] == [200, 402]
        record = await house.record(request_id_of(answers[0]))
        assert abs(time.time() - datetime.fromisoformat(record["created_at"]).timestamp()) < DAY_S
        (budget,) = record["budgets"]
        assert budget["spent_before_usd"] == "2.000000000"
        assert "clock_put_right" in apart.log_text()
