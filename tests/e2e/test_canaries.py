"""T141, T104: secrets and prompts are planted everywhere, everything goes wrong, and then all that is left behind is searched."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from app.embedded import PostgresServer, ValkeyServer
from tests.e2e.house import House, Json, request_id_of, unique
from tests.kit import raw_http
from tests.kit.canaries import Canary, assert_absent, search
from tests.kit.processes import GatewayProcess, UpstreamProcess
from tests.kit.raw_http import RawResponse
from tests.kit.scenario import Scenario

pytestmark = pytest.mark.timeout(90)

CHAT = "/v1/chat/completions"
KEY_PREFIX = len("sk-ag-") + 4
"""What the API shows of a key on purpose, its beginning; its last four characters are shown, too."""


GATEWAY_SECRET = Canary.fresh("gateway-secret")
"""The same for every test here: the database belongs to the SECRET_KEY that it was set up with."""


@dataclass(slots=True)
class Nest:
    """A gateway whose every secret is a canary, and all that it ever answered."""

    postgres: PostgresServer
    valkey: ValkeyServer
    gateway: GatewayProcess
    upstream: UpstreamProcess
    canaries: dict[str, Canary] = field(repr=False)
    answers: dict[str, bytes] = field(default_factory=dict, repr=False)

    async def call(
        self, method: str, path: str, *, token: str | None = None, body: object = None, raw: bytes | None = None
    ) -> RawResponse:
        """One request, whatever becomes of it; its answer is kept for the search, headers included."""
        headers = [] if token is None else [("Authorization", f"Bearer {token}")]
        headers += [("Content-Type", "application/json")] if raw is not None else []
        answer = await raw_http.call(
            self.gateway.port, method, path, headers=headers, json_body=body, body=raw, timeout_s=15
        )
        head = "".join(f"{name}: {value}\r\n" for name, value in answer.headers).encode()
        self.answers[f"answer {len(self.answers)}, {method} {path}"] = head + answer.body
        return answer

    async def admin(self, method: str, path: str, body: object = None) -> Json:
        """An administrator's command that succeeds. What it answers is shown on purpose and is not searched."""
        headers = {"Authorization": f"Bearer {self.canaries['admin-token'].value}"}
        answer = await raw_http.call(self.gateway.port, method, f"/admin/api/{path}", headers=headers, json_body=body)
        assert answer.status in (200, 201), answer.text
        made: Json = json.loads(answer.body)
        return made

    def chat_body(self, model: str, **fields: object) -> Json:
        return {"model": model, "messages": [{"role": "user", "content": self.canaries["prompt"].value}], **fields}

    async def models(self, scenarios: dict[str, Scenario]) -> dict[str, str]:
        """A model for each scenario, by the scenario's name, all with the canary as their upstream's key."""
        names = {name: unique(f"canary-{name}") for name in scenarios}
        price = {"input_usd_per_mtok": "1", "output_usd_per_mtok": "1"}
        for model in names.values():
            await self.admin("POST", "models", {"name": model, "price": price})
            await self.admin("POST", "endpoints", self.endpoint_body(model))
        await self.upstream.script(by_model={names[name]: scenario for name, scenario in scenarios.items()})
        return names

    def endpoint_body(self, model: str, **fields: object) -> Json:
        key = self.canaries["provider-key"].value
        body = {"model": model, "provider": "openai", "upstream_model": model, "api_base": self.upstream.base_url}
        return body | {"api_key": key} | fields

    async def key(self, **fields: object) -> str:
        """A new key, whose secret is one more canary."""
        user = unique("canary-user")
        await self.admin("POST", "users", {"user_oid": user})
        made = await self.admin("POST", "keys", {"user_oid": user, "limits": [], **fields})
        secret = str(made["key"])
        self.canaries[f"key-{user}"] = Canary.of("api-key", secret[:-4], prefix_characters=KEY_PREFIX)
        return secret

    async def drained(self) -> None:
        """Until what the calls left behind lies where it stays."""
        request_id = request_id_of(await self.call("POST", CHAT, token=await self.key(), body=self.chat_body("none")))
        house = House(self.gateway, self.upstream, self.postgres.url, self.valkey.url, {})
        headers = {"Authorization": f"Bearer {self.canaries['admin-token'].value}"}
        async with asyncio.timeout(15):
            path = f"/admin/api/usage/logs/{request_id}"
            while (await raw_http.call(house.gateway.port, "GET", path, headers=headers)).status != 200:
                await asyncio.sleep(0.05)


def password_in(url: str) -> str:
    password = urlsplit(url).password
    assert password
    return unquote(password)


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[PostgresServer, ValkeyServer, UpstreamProcess]]:
    with tempfile.TemporaryDirectory(prefix="gw-canary-") as home:
        postgres = PostgresServer(Path(home) / "postgres", durable=False, on_progress=lambda _: None)
        valkey = ValkeyServer(Path(home) / "valkey", durable=False, on_progress=lambda _: None)
        upstream = UpstreamProcess()
        try:
            postgres.start()
            valkey.start()
            asyncio.run(upstream.start())
            yield postgres, valkey, upstream
        finally:
            upstream.destroy()
            postgres.stop()
            valkey.stop()


@pytest.fixture
def nest(servers: tuple[PostgresServer, ValkeyServer, UpstreamProcess]) -> Iterator[Nest]:
    """At LOG_LEVEL=DEBUG, and without content unless a test says otherwise."""
    postgres, valkey, upstream = servers
    kinds = ("provider-key", "gateway-secret", "admin-token", "prompt", "reply")
    canaries = {kind: Canary.fresh(kind) for kind in kinds}  # type: ignore[arg-type]
    canaries["gateway-secret"] = GATEWAY_SECRET
    canaries["first-key"] = Canary.fresh("provider-key")
    canaries["database"] = Canary.of("password", password_in(postgres.url))
    canaries["redis"] = Canary.of("password", password_in(valkey.url))
    env = {
        "DATABASE_URL": postgres.url,
        "REDIS_URL": valkey.url,
        "SECRET_KEY": canaries["gateway-secret"].value,
        "ADMIN_TOKEN": canaries["admin-token"].value,
        "LLM_API_KEY": canaries["first-key"].value,
        "LLM_API_BASE": upstream.base_url,
        "UPSTREAM_PRIVATE_HOSTS": "loopback",
        "LOG_CONTENT": "metadata",
        "LOG_LEVEL": "DEBUG",
        "REDIS_TIMEOUT_MS": "3000",
    }
    gateway = GatewayProcess(env, name="canaries")
    try:
        asyncio.run(gateway.start())
        yield Nest(postgres, valkey, gateway, upstream, canaries)
    finally:
        gateway.destroy()


LOUD = Scenario(echo_credentials=True, echo_prompt=True)
SCENARIOS = {
    "ok": Scenario(),
    **{f"status-{status}": replace(LOUD, status=status) for status in (400, 401, 403, 404, 422, 429, 500, 503)},
    "html": Scenario(raw_body="<html>", content_type="text/html"),
    "cut": Scenario(chunks=6, close_after_chunks=3, half_event=True),
    "reset": Scenario(chunks=6, reset_after_chunks=2),
    "garbage": Scenario(chunks=6, garbage_after_chunks=(2,)),
    "error-event": replace(LOUD, error_event_after_chunks=2),
    "first-error-event": replace(LOUD, error_event_after_chunks=0),
    "closed": Scenario(accept_and_close=True),
}


async def calls_that_go_wrong_upstream(nest: Nest, key: str) -> None:
    names = await nest.models(SCENARIOS | {"reply": Scenario(text=nest.canaries["reply"].value)})
    models = [model for name, model in names.items() if name != "reply"]
    for model in models:
        await nest.call("POST", CHAT, token=key, body=nest.chat_body(model))
        await nest.call("POST", CHAT, token=key, body=nest.chat_body(model, stream=True))
    # Its caller is shown what the model said; nobody else ever is.
    headers = {"Authorization": f"Bearer {key}"}
    told = await raw_http.call(
        nest.gateway.port, "POST", CHAT, headers=headers, json_body=nest.chat_body(names["reply"])
    )
    assert nest.canaries["reply"].secret in told.text
    (line,) = (await nest.upstream.invoice()).of_model(names["ok"]).where(lambda line: not line.is_stream).lines
    assert nest.canaries["prompt"].secret in line.text, "the prompt did go out"
    assert line.credential == nest.canaries["provider-key"].value


async def requests_that_are_wrong_themselves(nest: Nest, key: str) -> None:
    canaries, prompt = nest.canaries, nest.canaries["prompt"].value
    stranger, no_admin = Canary.fresh("api-key"), Canary.fresh("admin-token")
    canaries |= {"stranger": stranger, "no-admin": no_admin}
    await nest.call("POST", CHAT, token=stranger.value, body=nest.chat_body("m"))
    await nest.call("POST", f"{CHAT}?key={stranger.value}", body=nest.chat_body("m"))
    await nest.call("GET", "/admin/api/keys", token=no_admin.value)
    await nest.call("GET", "/admin/api/keys", token=key)
    await nest.call("POST", CHAT, token=canaries["admin-token"].value, body=nest.chat_body("m"))
    for raw in (
        f'{{"model": "m", "messages": "{prompt}"}}',
        f'{{"model": "m", "messages": [{{"role": 7, "content": "{prompt}"}}]}}',
        f'{{"model": "m", "messages": [{{"role": "user", "content": "{prompt}"',
        f'{{"model": ["{prompt}"], "messages": []}}',
        f'{{"model": "m", "max_tokens": "{prompt}", "messages": [{{"role": "user", "content": "x"}}]}}',
        json.dumps(nest.chat_body("m", api_key=canaries["provider-key"].value)),
        json.dumps(nest.chat_body("m", api_base=f"http://x/?k={canaries['provider-key'].value}")),
        f'"{prompt}"',
    ):
        await nest.call("POST", CHAT, token=key, raw=raw.encode())
    secret = canaries["provider-key"].value
    for path, body in (
        ("endpoints", nest.endpoint_body("no-such-model")),
        ("endpoints", nest.endpoint_body("demo", provider="nobody")),
        ("endpoints", nest.endpoint_body("demo", api_key=[secret])),
        ("endpoints", nest.endpoint_body("demo", api_base=f"http://user:{secret}@127.0.0.1/v1")),
        ("endpoints", nest.endpoint_body("demo", weight=secret)),
        ("users", {"user_oid": "x", "limits": [{"kind": secret}]}),
        ("keys", {"user_oid": "x", "key": secret}),
    ):
        answer = await nest.call("POST", f"/admin/api/{path}", token=canaries["admin-token"].value, body=body)
        assert 400 <= answer.status < 500, answer.text


async def calls_without_a_database(nest: Nest, known: str, unknown: str) -> None:
    """Refused, and served from memory; SQL that fails on its way says so in the log."""
    admin_token = nest.canaries["admin-token"].value
    model = (await nest.models({"offline": Scenario()}))["offline"]
    assert (await nest.call("POST", CHAT, token=known, body=nest.chat_body(model))).status == 200
    nest.postgres.stop()
    try:
        statuses = [
            (await nest.call("POST", CHAT, token=known, body=nest.chat_body(model))).status,
            (await nest.call("POST", CHAT, token=unknown, body=nest.chat_body(model))).status,
            (await nest.call("POST", "/admin/api/endpoints", token=admin_token, body=nest.endpoint_body(model))).status,
            (await nest.call("GET", "/health")).status,
        ]
    finally:
        nest.postgres.start()
    assert statuses == [200, 503, 503, 200]


async def test_no_secret_and_no_prompt_is_left_behind_whatever_goes_wrong(nest: Nest) -> None:
    key = await nest.key()
    await calls_that_go_wrong_upstream(nest, key)
    await requests_that_are_wrong_themselves(nest, key)
    await calls_without_a_database(nest, key, await nest.key())
    await nest.drained()

    nest.gateway.terminate()
    await nest.gateway.wait(timeout_s=30)

    assert len(nest.answers) > 50
    await assert_absent(
        nest.canaries.values(),
        texts={**nest.answers, "the gateway's log": nest.gateway.log_text()},
        files=[nest.postgres.home / "server.log", nest.valkey.home / "server.log"],
        database_url=nest.postgres.url,
        redis_url=nest.valkey.url,
    )


async def test_the_search_would_have_found_them(nest: Nest) -> None:
    """The test above can fail: what is stored on purpose is found by the same search."""
    marker = Canary.fresh("prompt")
    user = unique("canary-user")
    await nest.admin("POST", "users", {"user_oid": user, "name": marker.value})
    findings = await search([marker], database_url=nest.postgres.url)
    assert any("public.users" in finding.where for finding in findings)


# ── With content ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def kept_at(house: House, *canaries: Canary) -> set[str]:
    """Where the canaries are found, in all of the database, all of Redis and the log: the table and the packing."""
    findings = await search(
        canaries,
        texts={"the log": house.gateway.log_text()},
        database_url=house.database_url,
        redis_url=house.redis_url,
    )
    return {finding.where for finding in findings}


async def content_of(house: House, request_id: str) -> Json | None:
    """The content as an administrator sees it, once it was written; None where the record says there is none."""
    record = await house.record(request_id)
    content: Json | None = record["content"]
    return content


async def told(house: House, key: str, prompt: Canary, reply: Canary, *, stream: bool = False) -> str:
    model = await house.model(Scenario(text=reply.value, chunks=1))
    messages = [{"role": "user", "content": prompt.value}]
    answer = await house.chat(key, model, messages=messages, stream=stream)
    assert answer.status == 200
    assert reply.secret in answer.text
    return request_id_of(answer)


@pytest.mark.parametrize("stream", [False, True])
async def test_kept_content_is_readable_by_administrators_and_its_caller_and_lies_compressed(
    house: House, stream: bool
) -> None:
    """T142: the default, LOG_CONTENT=full."""
    prompt, reply = Canary.fresh("prompt"), Canary.fresh("reply")
    owner, other = await house.key(), await house.key()

    request_id = await told(house, owner, prompt, reply, stream=stream)

    async with asyncio.timeout(10):
        while (content := await content_of(house, request_id)) is None:
            await asyncio.sleep(0.05)
    assert prompt.value in content["request"]
    assert reply.value in content["response"]
    assert content["is_truncated"] is False
    headers = {"Authorization": f"Bearer {owner}"}
    own = await raw_http.call(house.gateway.port, "GET", f"/v1/usage/{request_id}", headers=headers)
    assert json.loads(own.body)["content"] == content
    for token in (other, None):
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        for path in (f"/v1/usage/{request_id}", f"/admin/api/usage/logs/{request_id}"):
            refused = await raw_http.call(house.gateway.port, "GET", path, headers=headers)
            assert refused.status in (401, 403, 404)
            await assert_absent([prompt, reply], texts=[refused.body])
    listed = await house.admin("GET", "usage/logs?limit=200", expect=200)
    await assert_absent([prompt, reply], texts=[json.dumps(listed)])
    places = await kept_at(house, prompt, reply)
    assert len(places) == 2, places
    assert all("public.usage_content" in place and place.endswith("(zlib)") for place in places), places


@pytest.mark.parametrize("by", ["key", "user"])
async def test_a_key_or_a_user_may_have_its_content_left_out_t141(house: House, by: str) -> None:
    prompt, reply = Canary.fresh("prompt"), Canary.fresh("reply")
    open_ = await house.key(log_content="full")
    if by == "key":
        discreet = await house.key(log_content="metadata")
    else:
        discreet = await house.key(await house.user(log_content="metadata"), log_content="full")

    request_id = await told(house, discreet, prompt, reply)

    seen = await told(house, open_, Canary.fresh("prompt"), Canary.fresh("reply"))
    async with asyncio.timeout(10):  # contents are written in order, so this one would have been before
        while await content_of(house, seen) is None:
            await asyncio.sleep(0.05)
    assert await content_of(house, request_id) is None
    assert await kept_at(house, prompt, reply) == set()


async def test_a_key_may_have_its_content_kept_where_the_others_are_not(nest: Nest) -> None:
    prompt, reply = nest.canaries["prompt"], nest.canaries["reply"]
    kept, default = await nest.key(log_content="full"), await nest.key()
    model = (await nest.models({"ok": Scenario(text=reply.value)}))["ok"]
    ids = []
    for key in (default, kept):
        headers = {"Authorization": f"Bearer {key}"}
        answer = await raw_http.call(nest.gateway.port, "POST", CHAT, headers=headers, json_body=nest.chat_body(model))
        ids.append(request_id_of(answer))
    await nest.drained()

    async with asyncio.timeout(10):
        while (content := (await nest.admin("GET", f"usage/logs/{ids[1]}"))["content"]) is None:
            await asyncio.sleep(0.05)
    assert prompt.value in content["request"]
    assert reply.value in content["response"]
    assert (await nest.admin("GET", f"usage/logs/{ids[0]}"))["content"] is None
