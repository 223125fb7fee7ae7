"""T149: a gateway reaches its stores and the endpoints it was given, and nothing else, whatever lies around where it starts."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.e2e.house import HELLO, House, Json, request_id_of
from tests.kit import raw_http
from tests.kit.clients import REPO_ROOT
from tests.kit.processes import GatewayProcess
from tests.kit.watched import SENDS, events_in

CALLS = 100
NOBODY = "http://127.0.0.1:9"
"""Where planted addresses lead: a port that is not among those the gateway may reach."""
PLANTED_KEY = "sk-planted-0123456789"
PROVIDERS = ("OPENAI", "ANTHROPIC", "GEMINI", "GOOGLE", "COHERE", "MISTRAL", "AZURE", "HF", "LITELLM")
PLANTED = {
    **{f"{name}_API_KEY": PLANTED_KEY for name in PROVIDERS},
    **{f"{name}_{what}": NOBODY for name in PROVIDERS for what in ("API_BASE", "BASE_URL")},
    **dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "LANGFUSE_SECRET_KEY"), PLANTED_KEY),
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"), NOBODY),
}
UPSTREAM_MODELS = {"openai": "gpt-4o-mini-2024-07-18", "litellm": "anthropic/claude-haiku-4-5-20251001"}
"""Models with a list price, so that there is one to compare; no other test calls them by these names."""


class WatchedGateway(GatewayProcess):
    """A gateway on asyncio's own loop, under watch, with planted values in its environment and in a `.env` beside it."""

    def __init__(self, env: Mapping[str, str], reachable: int | None) -> None:
        super().__init__(PLANTED | dict(env), extra_args=("--loop", "asyncio"), name="watched")
        self.events_path = self.folder / "events"
        (self._cwd / ".env").write_text("".join(f"{name}={value}\n" for name, value in PLANTED.items()))
        at = self._command.index("uvicorn")
        self._command[at - 1 : at] = ["-m", "tests.kit.watched", str(self.events_path), str(reachable)]


async def chat(gateway: GatewayProcess, key: str, model: str, *, stream: bool = False) -> raw_http.RawResponse:
    headers = {"Authorization": f"Bearer {key}"}
    body = {"model": model, "messages": HELLO, "stream": stream}
    # The first call through LiteLLM waits until that is imported.
    return await raw_http.call(
        gateway.port, "POST", "/v1/chat/completions", headers=headers, json_body=body, timeout_s=90
    )


async def served(gateway: GatewayProcess, key: str, model: str) -> str:
    """So many calls, ten at once, every other one a stream. Returns the last one's id."""
    answers: list[raw_http.RawResponse] = []
    for _ in range(CALLS // 10):
        answers += await asyncio.gather(*(chat(gateway, key, model, stream=bool(n % 2)) for n in range(10)))
    assert {answer.status for answer in answers} == {200}, answers[-1].text
    return request_id_of(answers[-2])


def price_in(record: Json) -> tuple[object, object]:
    return record["cost_usd"], record["price"]


@pytest.mark.parametrize("provider", ["openai", "litellm"])
async def test_t149_a_gateway_reaches_its_stores_and_its_endpoint_and_nothing_else(house: House, provider: str) -> None:
    key, model = await house.key(), await house.model(endpoints=0, price=None)
    upstream_model = UPSTREAM_MODELS[provider]
    base = house.upstream.base_url if provider == "openai" else house.upstream.base_url.removesuffix("/v1")
    await house.endpoint(model, provider=provider, upstream_model=upstream_model, api_base=base, api_key=None)
    reachable = urlsplit(house.upstream.base_url).port  # the stores are reached by their sockets' files
    async with WatchedGateway(house.env, reachable) as gateway:
        start_s = gateway.cpu_seconds()
        watched = await house.record(await served(gateway, key, model))
        ordinary = await house.record(request_id_of(await chat(house.gateway, key, model)))
        events = events_in(gateway.events_path)

    called = upstream_model.rpartition("/")[2]
    lines = [line for line in (await house.upstream.invoice()).lines if line.model == called]
    assert len(lines) == CALLS + 1
    assert PLANTED_KEY not in str([(line.credential, line.headers, line.query) for line in lines])
    assert f"127.0.0.1:{reachable}" in {event.about for event in events if event.name in SENDS}, "nothing was watched"
    assert [event for event in events if event.was_refused] == []
    assert [event for event in events if event.name.startswith(("subprocess", "os."))] == []
    assert "litellm.proxy.proxy_server" not in {event.about for event in events}
    assert price_in(watched) == price_in(ordinary)
    assert watched["price"] is not None
    # What it computes: ten seconds are the promise, and a busy machine adds to them what is not the gateway's.
    assert start_s < 10


def test_what_is_watched_cannot_reach_outside_and_it_is_seen(tmp_path: Path) -> None:
    """The proof that the test above can fail."""
    path = tmp_path / "events"
    said = (
        "import socket\n"
        "for ask in (lambda: socket.getaddrinfo('telemetry.example', 443), lambda: socket.create_connection(('127.0.0.1', 9))):\n"
        "    try: ask()\n"
        "    except OSError as error: print('refused', error.errno)"
    )
    command = [sys.executable, "-m", "tests.kit.watched", str(path), "1", "timeit", "-n", "1", "-r", "1", said]
    ran = subprocess.run(command, cwd=REPO_ROOT, capture_output=True, text=True, timeout=60, check=True)

    assert ran.stdout.count("refused 101") == 2
    assert [event.about for event in events_in(path) if event.was_refused] == ["telemetry.example", "127.0.0.1:9"]
