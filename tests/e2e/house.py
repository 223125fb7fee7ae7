"""A whole gateway for a test: real stores, the scripted upstream, gateway processes, and hands to use them by the public API."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from tests.kit import raw_http
from tests.kit.processes import GatewayProcess, UpstreamProcess
from tests.kit.raw_http import RawResponse
from tests.kit.scenario import Scenario

ADMIN_TOKEN = "owner-token-for-tests-0123456789abcdefghij"
SECRET_KEY = "secret-key-for-tests-0123456789abcdefghijklm"
SHARED_SECRET = "shared-secret-for-tests-0123456789abcdefghi"
PATIENCE_S = 60.0
"""Of whoever calls: the first call of LiteLLM's waits for it to be imported, seconds of CPU that a busy machine makes many."""
HELLO = [{"role": "user", "content": "Say hello."}]

Json = dict[str, Any]


def unique(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(6)}"


@dataclass(frozen=True, slots=True)
class App:
    id: str
    secret: str = field(repr=False)

    def headers(self, oid: str) -> dict[str, str]:
        return {"X-Gateway-Secret": self.secret, "X-App-Id": self.id, "X-User-Oid": oid}


@dataclass(slots=True)
class House:
    """Ask for what a test needs; names are unique, so that tests share the processes and nothing else."""

    gateway: GatewayProcess
    upstream: UpstreamProcess
    database_url: str
    redis_url: str
    env: dict[str, str] = field(repr=False)

    async def admin(self, method: str, path: str, body: object = None, *, expect: int | None = None) -> Json:
        answer = await raw_http.call(
            self.gateway.port,
            method,
            f"/admin/api/{path}",
            headers={"Authorization": f"Bearer {ADMIN_TOKEN}"},
            json_body=body,
        )
        if expect is not None:
            assert answer.status == expect, answer.text
        return cast(Json, answer.json()) if answer.body else {}

    async def ask_admin(self, method: str, path: str, body: object = None) -> RawResponse:
        """As `admin`, for whoever expects to be refused."""
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        return await raw_http.call(self.gateway.port, method, f"/admin/api/{path}", headers=headers, json_body=body)

    async def user(self, **fields: object) -> str:
        oid = unique("user")
        await self.admin("POST", "users", {"user_oid": oid, **fields}, expect=201)
        return oid

    async def key(self, user_oid: str | None = None, **fields: object) -> str:
        """The secret of a new key without limits (unless `fields` sets some)."""
        oid = user_oid or await self.user()
        made = await self.admin("POST", "keys", {"user_oid": oid, "limits": [], **fields}, expect=201)
        return cast(str, made["key"])

    async def model(self, scenario: Scenario | None = None, *, endpoints: int = 1, **fields: object) -> str:
        """A new model whose endpoints all lead to the scripted upstream, which plays `scenario` for it."""
        name = unique("model")
        price = {"input_usd_per_mtok": "2.50", "output_usd_per_mtok": "10"}
        await self.admin("POST", "models", {"name": name, "price": price, **fields}, expect=201)
        for _ in range(endpoints):
            await self.endpoint(name)
        if scenario is not None:
            await self.upstream.script(by_model={name: scenario})
        return name

    async def endpoint(self, model: str, **fields: object) -> str:
        body = {
            "model": model,
            "provider": "openai",
            "upstream_model": model,
            "api_base": self.upstream.base_url,
            "api_key": "sk-upstream-key-of-the-tests",
            **fields,
        }
        made = await self.admin("POST", "endpoints", body, expect=201)
        return cast(str, made["id"])

    async def chat(self, key: str, model: str, *, path: str = "/v1/chat/completions", **fields: object) -> RawResponse:
        return await raw_http.call(
            self.gateway.port,
            "POST",
            path,
            headers={"Authorization": f"Bearer {key}"},
            json_body={"model": model, "messages": HELLO, **fields},
            timeout_s=PATIENCE_S,
        )

    async def known_to(self, gateways: Iterable[GatewayProcess]) -> None:
        """Until these have all that was made before: a change holds at others within a second, not at once, and of two changes the first
        may hold before the second. What is made last is known with the others."""
        path = f"/v1/models/{await self.model()}"
        headers = {"Authorization": f"Bearer {await self.key()}"}
        async with asyncio.timeout(30):
            for gateway in gateways:
                while (await raw_http.call(gateway.port, "GET", path, headers=headers)).status != 200:
                    await asyncio.sleep(0.02)

    async def app(self, **fields: object) -> App:
        """A new app, and the secret of its own."""
        app_id = unique("app")
        made = await self.admin("POST", "apps", {"app_id": app_id, **fields}, expect=201)
        return App(app_id, cast(str, made["secret"]))

    async def app_chat(self, app: App, oid: str, model: str, **fields: object) -> RawResponse:
        return await raw_http.call(
            self.gateway.port,
            "POST",
            "/v1/chat/completions",
            headers=app.headers(oid),
            json_body={"model": model, "messages": HELLO, **fields},
        )

    async def health(self) -> Json:
        return cast(Json, (await raw_http.call(self.gateway.port, "GET", "/health")).json())

    async def record(self, request_id: str, *, within_s: float = 10.0) -> Json:
        """The full record of a call, once it is in the ledger."""
        async with asyncio.timeout(within_s):
            while True:
                answer = await raw_http.call(
                    self.gateway.port,
                    "GET",
                    f"/admin/api/usage/logs/{request_id}",
                    headers={"Authorization": f"Bearer {ADMIN_TOKEN}"},
                )
                if answer.status == 200:
                    return cast(Json, answer.json())
                assert answer.status == 404, answer.text
                await asyncio.sleep(0.05)


def error_of(answer: RawResponse) -> Json:
    """The error, which is in OpenAI's shape, or on the paths of Anthropic's protocol in Anthropic's."""
    body = cast(Json, answer.json())
    error = cast(Json, body["error"])
    if body.get("type") == "error":
        assert set(body) == {"type", "error", "request_id"}, body
        error = {**error, "request_id": body["request_id"]}
    else:
        assert set(body) == {"error"}, body
    assert set(error) == {"message", "type", "param", "code", "request_id"}
    assert error["request_id"] == answer.header("x-request-id") == answer.header("request-id")
    return error


def request_id_of(answer: RawResponse) -> str:
    request_id = answer.header("x-request-id")
    assert request_id
    return request_id
