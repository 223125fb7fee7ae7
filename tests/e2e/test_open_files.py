"""T138: a process that may open few files. It serves as many as it can, refuses the others, and blames no endpoint for it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.e2e.house import ADMIN_TOKEN, HELLO, House, Json, error_of
from tests.kit import raw_http
from tests.kit.front import Front
from tests.kit.processes import GatewayProcess
from tests.kit.raw_http import RawResponse
from tests.kit.scenario import Scenario

FILES = 256
CALLERS = 300


@pytest.mark.parametrize("entry", ["serve", "uvicorn"])
async def test_a_process_with_few_files_refuses_and_goes_on(house: House, tmp_path: Path, entry: str) -> None:
    """T138: `ulimit -n 256`, and three hundred callers at once, through nginx and past it."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nulimit -n {FILES}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    key, model = await house.key(), await house.model(Scenario(delay_ms=300))
    narrow = GatewayProcess(house.env, entry=entry, name="narrow", python=str(python))  # type: ignore[arg-type]
    async with narrow as gateway, Front([gateway.port]) as front:

        async def call(port: int) -> RawResponse | None:
            try:
                return await raw_http.call(
                    port,
                    "POST",
                    "/v1/chat/completions",
                    headers={"Authorization": f"Bearer {key}"},
                    json_body={"model": model, "messages": HELLO},
                    timeout_s=60,
                )
            except (ConnectionError, EOFError):  # cut at the door, in the middle of sending
                return None

        async def has_room() -> None:
            """Until connections of callers, and of nginx for them, have been let go: they have the room of half the callers."""
            async with asyncio.timeout(30):
                while gateway.open_fds() > FILES // 2:
                    await asyncio.sleep(0.1)

        through = await asyncio.gather(*(call(front.port) for _ in range(CALLERS)))
        await has_room()
        direct = await asyncio.gather(*(call(gateway.port) for _ in range(CALLERS)))
        await has_room()
        after = [await call(front.port) for _ in range(5)]
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        path = f"/admin/api/endpoints?model={model}"
        listed: Json = (await raw_http.call(gateway.port, "GET", path, headers=headers)).json()  # type: ignore[assignment]

    for answers in (through, direct):
        statuses = [answer.status for answer in answers if answer is not None]
        assert set(statuses) <= {200, 503}
        assert statuses.count(200) > 20
    assert None not in through, "nginx answers for whoever was cut"
    for answer in (*through, *direct):
        if answer is not None and answer.status == 503:
            assert error_of(answer)["code"] == "overloaded"
    assert [answer.status for answer in after if answer] == [200] * 5
    assert [endpoint["state"] for endpoint in listed["items"]] == ["closed"]
    assert '"level":"error"' not in gateway.log_text()
