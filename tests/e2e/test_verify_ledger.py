"""T126: what the gateway itself has written is proved, whatever the tests before this one did to it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

from tests.e2e.house import House, Json, request_id_of
from tests.kit.scenario import Scenario

ROOT = Path(__file__).parents[2]


async def proof_of(house: House, folder: Path) -> tuple[int, Json]:
    """`python -m app verify-ledger --json` against the house's stores."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "app", "verify-ledger", "--json"],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(ROOT), **house.env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout, done.stderr
    found: Json = json.loads(done.stdout)
    return done.returncode, found


async def test_the_books_of_calls_that_went_well_and_badly_agree(house: House, tmp_path: Path) -> None:
    budgets = [{"period": period, "hard_limit_usd": "5"} for period in ("daily", "weekly", "monthly", "total")]
    key = await house.key(await house.user(budgets=budgets), budgets=budgets)
    models = [
        await house.model(Scenario(prompt_tokens=50, completion_tokens=9), budgets=budgets),
        await house.model(Scenario(status=500)),
        await house.model(Scenario(close_after_chunks=2, chunks=6)),
    ]
    calls = [
        house.chat(key, model, max_tokens=20, stream=is_stream)
        for model in models
        for is_stream in (False, True)
        for _ in range(5)
    ]
    answers = await asyncio.gather(*calls)
    for answer in answers:
        await house.record(request_id_of(answer))

    status, found = await proof_of(house, tmp_path)

    assert found["drifts"] == []
    assert (status, found["ok"]) == (0, True)
    assert found["checked"]["records"] >= len(answers)
    assert found["checked"]["budget_counters"] >= 12
