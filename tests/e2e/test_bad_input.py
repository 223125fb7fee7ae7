"""Bodies, headers and credentials that are wrong: the contract's errors, quickly, the process unharmed, nothing charged."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from urllib.parse import quote

import pytest

from tests.e2e.house import HELLO, House, error_of, unique
from tests.kit import raw_http
from tests.kit.raw_http import RawResponse
from tests.kit.scenario import Scenario
from tests.kit.stalls import stalled_s

CHAT = "/v1/chat/completions"
FREE = {"input_usd_per_mtok": "0", "output_usd_per_mtok": "0"}
JSON_TYPE = ("Content-Type", "application/json")


async def post(
    house: House, body: bytes, *, key: str, headers: Sequence[tuple[str, str]] = (JSON_TYPE,)
) -> RawResponse:
    return await raw_http.call(
        house.gateway.port, "POST", CHAT, headers=[("Authorization", f"Bearer {key}"), *headers], body=body
    )


def chat_body(**fields: object) -> bytes:
    return json.dumps({"model": "any", "messages": HELLO, **fields}).encode()


MESSAGES = b'"messages":[{"role":"user","content":"hi"}]'
NOT_JSON = {
    "empty": b"",
    "truncated": chat_body()[:-5],
    "text": b"hello",
    "array": b"[1,2]",
    "string": b'"x"',
    "number": b"1e999",
    "null": b"null",
    "nan": b'{"model":"m","temperature":NaN,' + MESSAGES + b"}",
    "huge-number": b'{"model":"m","temperature":1e999,' + MESSAGES + b"}",
    "long-integer": b'{"model":"m","seed":' + b"5" * 5000 + b"," + MESSAGES + b"}",
    "deep": b'{"model":"m","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "duplicate": b'{"model":"a","model":"b",' + MESSAGES + b"}",
    "bom": b"\xef\xbb\xbf" + chat_body(),
    "utf-16": chat_body().decode().encode("utf-16"),
    "bad-utf-8": b'{"model":"\xff\xfe",' + MESSAGES + b"}",
    "lone-surrogate": b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}',
    "trailing": chat_body() + b"}",
}


@pytest.mark.parametrize("name", NOT_JSON)
async def test_a_body_that_is_not_one_json_object_is_refused_quickly(house: House, name: str) -> None:
    """T044."""
    key = await house.key()
    began = time.monotonic()
    answer = await post(house, NOT_JSON[name], key=key)

    assert answer.status == 400
    names_a_field = name in ("huge-number", "long-integer")
    assert error_of(answer)["code"] == ("invalid_request" if names_a_field else "invalid_json")
    assert time.monotonic() - began < 2 + stalled_s(began)
    assert answer.header("x-should-retry") == "false"


WRONG = {
    "no-model": (b"{" + MESSAGES + b"}", "missing_required_parameter", "model"),
    "no-messages": (b'{"model":"m"}', "missing_required_parameter", "messages"),
    "model-number": (b'{"model":7,' + MESSAGES + b"}", "invalid_request", "model"),
    "messages-text": (b'{"model":"m","messages":"hi"}', "invalid_request", "messages"),
    "messages-empty": (b'{"model":"m","messages":[]}', "invalid_request", "messages"),
    "stream-text": (chat_body(stream="yes"), "invalid_request", "stream"),
    "tokens-negative": (chat_body(max_tokens=-1), "invalid_request", "max_tokens"),
    "tokens-text": (chat_body(max_tokens="10"), "invalid_request", "max_tokens"),
    "tokens-fraction": (chat_body(max_tokens=1.5), "invalid_request", "max_tokens"),
    "tokens-absurd": (chat_body(max_tokens=10**9), "invalid_request", "max_tokens"),
    "n-absurd": (chat_body(n=1000), "invalid_request", "n"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_wrong_field_is_named(house: House, name: str) -> None:
    """T045."""
    body, code, param = WRONG[name]
    answer = await post(house, body, key=await house.key())

    error = error_of(answer)
    assert (answer.status, error["code"], error["param"]) == (400, code, param)


@pytest.mark.parametrize(
    "name", ["api_base", "base_url", "api_key", "mock_response", "input_cost_per_token", "callbacks"]
)
async def test_fields_that_steer_the_gateway_are_refused(house: House, name: str) -> None:
    """T036."""
    answer = await post(house, chat_body(**{name: "x"}), key=await house.key())
    error = error_of(answer)
    assert (answer.status, error["code"], error["param"]) == (400, "param_not_allowed", name)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 415),
        ([("Content-Type", "text/plain")], 415),
        ([("Content-Type", "multipart/form-data; boundary=x")], 415),
        ([("Content-Type", "application/json; charset=utf-16")], 415),
        ([JSON_TYPE, ("Content-Encoding", "gzip")], 415),
        ([("Content-Type", "application/json; charset=utf-8")], 404),
    ],
)
async def test_a_body_must_call_itself_json(house: House, headers: list[tuple[str, str]], status: int) -> None:
    """T051; the last one is fine and only its model is unknown."""
    answer = await post(house, chat_body(), key=await house.key(), headers=headers)
    assert answer.status == status
    error_of(answer)


async def test_a_body_over_the_limit_is_refused_before_it_is_read(house: House) -> None:
    key = await house.key()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
    async with raw_http.RawConnection(house.gateway.port) as connection:
        await connection.send(f"{head}Content-Length: {100 * 1024 * 1024}\r\n\r\n".encode())
        answer = await connection.response()
    assert (answer.status, error_of(answer)["code"]) == (413, "payload_too_large")


async def test_a_chunked_body_over_the_limit_is_refused(house: House) -> None:
    key = await house.key()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
    piece = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    async with raw_http.RawConnection(house.gateway.port) as connection:
        await connection.send(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())

        async def pour() -> None:
            try:
                for _ in range(24):
                    await connection.send(piece)
            except ConnectionError:
                pass

        async with asyncio.TaskGroup() as group:
            group.create_task(pour())
            answer = await connection.response()
    assert (answer.status, error_of(answer)["code"]) == (413, "payload_too_large")


BAD_KEYS = {
    "none": [],
    "unknown": [("Authorization", "Bearer sk-ag-" + "a" * 49)],
    "other-vendors": [("Authorization", "Bearer sk-ant-api03-abcdef")],
    "leading-space": [("Authorization", "Bearer  sk-ag-x")],
    "basic": [("Authorization", "Basic dTpw")],
    "injection": [("Authorization", "Bearer ' OR 1=1--")],
    "long": [("x-api-key", "k" * 10_000)],
    "non-ascii": [("api-key", "schlüssel")],
}


@pytest.mark.parametrize("name", BAD_KEYS)
async def test_every_bad_credential_gets_the_same_answer(house: House, name: str) -> None:
    """T001, T002, T003."""
    answer = await raw_http.call(
        house.gateway.port, "POST", CHAT, headers=[*BAD_KEYS[name], JSON_TYPE], body=b"{not read"
    )

    error = error_of(answer)
    assert (answer.status, error["code"]) == (401, "invalid_api_key")
    assert error["message"] == "The credential is missing, unknown, expired or revoked."
    assert answer.header("www-authenticate") == "Bearer"
    assert answer.header("x-should-retry") == "false"


async def test_a_key_with_one_character_flipped_is_refused(house: House) -> None:
    key, model = await house.key(), await house.model()
    flipped = key[:-8] + ("A" if key[-8] != "A" else "B") + key[-7:]
    assert (await house.chat(flipped, model)).status == 401
    assert (await house.chat(key, model)).status == 200


@pytest.mark.parametrize("carrier", ["authorization", "x-api-key", "api-key"])
async def test_a_key_is_taken_from_each_of_its_carriers(house: House, carrier: str) -> None:
    """T015."""
    key, model = await house.key(), await house.model()
    value = f"Bearer {key}" if carrier == "authorization" else key
    answer = await raw_http.call(
        house.gateway.port, "POST", CHAT, headers={carrier: value}, json_body={"model": model, "messages": HELLO}
    )
    assert answer.status == 200
    in_query = await raw_http.call(
        house.gateway.port, "POST", f"{CHAT}?api-key={key}", json_body={"model": model, "messages": HELLO}
    )
    assert in_query.status == 401
    assert key not in house.gateway.log_text()


async def test_two_credentials_are_refused_not_chosen_from(house: House) -> None:
    """T014."""
    one, two = await house.key(), await house.key()
    for headers in (
        [("Authorization", f"Bearer {one}"), ("Authorization", f"Bearer {one}")],
        [("Authorization", f"Bearer {one}"), ("x-api-key", two)],
        [("Authorization", f"Bearer {one}"), ("X-Gateway-Secret", "s"), ("X-App-Id", "a"), ("X-User-Oid", "u")],
    ):
        answer = await raw_http.call(house.gateway.port, "POST", CHAT, headers=[*headers, JSON_TYPE], body=chat_body())
        assert (answer.status, error_of(answer)["code"]) == (400, "ambiguous_credentials")


@pytest.mark.parametrize(("given", "kept"), [("abc-1.2_3", True), ("x" * 65, False), ("a b", False), ("ü", False)])
async def test_a_callers_request_id_is_kept_beside_ours_if_it_is_well_formed(
    house: House, given: str, kept: bool
) -> None:
    """T049."""
    key, model = await house.key(), await house.model()
    answer = await raw_http.call(
        house.gateway.port,
        "POST",
        CHAT,
        headers=[("Authorization", f"Bearer {key}"), ("X-Request-Id", given)],
        json_body={"model": model, "messages": HELLO},
    )
    assert answer.status == 200
    request_id = answer.header("x-request-id") or ""
    assert request_id != given
    record = await house.record(request_id)
    assert record["client_request_id"] == (given if kept else None)


async def test_nul_characters_in_a_prompt_are_served_and_every_row_of_the_batch_is_stored(house: House) -> None:
    """T046."""
    key, model = await house.key(), await house.model()
    messages = [{"role": "user", "content": "a\x00b"}]
    answers = [await house.chat(key, model, messages=messages, user="\x00"), await house.chat(key, model)]
    for answer in answers:
        assert answer.status == 200
        assert (await house.record(answer.header("x-request-id") or ""))["outcome"] == "ok"


async def test_wrong_methods_and_paths_answer_in_the_same_shape(house: House) -> None:
    key = await house.key()
    headers = {"Authorization": f"Bearer {key}"}
    wrong_method = await raw_http.call(house.gateway.port, "GET", CHAT, headers=headers)
    assert (wrong_method.status, error_of(wrong_method)["code"]) == (405, "method_not_allowed")
    assert wrong_method.header("allow") == "POST"
    for path in (
        "/v1/no-such-path",
        "/admin/api/nothing",
        "/v1/../admin/api/users",
        "//admin/api/users",
        "/ADMIN/api/users",
    ):
        nowhere = await raw_http.call(house.gateway.port, "GET", path, headers=headers)
        assert nowhere.status in (401, 404), path
        error_of(nowhere)


@pytest.mark.parametrize("name", ["org/model", "with space", "модель", "50%", "a%2Fb", "a%41", "a?b#c", "a:free@x"])
async def test_a_model_is_found_by_its_name_in_a_path_whatever_is_in_it(house: House, name: str) -> None:
    name = f"{unique('m')}-{name}"
    await house.admin("POST", "models", {"name": name, "price": FREE}, expect=201)
    await house.admin("POST", "endpoints", {"model": name, "provider": "demo"}, expect=201)
    key = await house.key()
    headers = {"Authorization": f"Bearer {key}"}
    quoted = quote(name, safe="")

    for path in (f"/v1/models/{quoted}", f"/v1/models/{quote(name)}"):
        shown = await raw_http.call(house.gateway.port, "GET", path, headers=headers)
        assert (shown.status, json.loads(shown.body).get("id")) == (200, name), path
    azure = f"/openai/deployments/{quoted}/chat/completions"
    assert (await house.chat(key, "another", path=azure)).status == 200
    assert (await house.admin("GET", f"models/{quoted}", expect=200))["name"] == name
    assert (await house.chat(key, name)).status == 200
    await house.admin("DELETE", f"models/{quoted}?force=true")


@pytest.mark.parametrize("id", ["6ba7b810-9dad-41d1-80b4-00c04fd430c8", "no-uuid", "%00", "x" * 500])
async def test_a_record_that_never_was_is_not_found_whatever_its_id_looks_like(house: House, id: str) -> None:
    headers = {"Authorization": f"Bearer {await house.key()}"}
    answer = await raw_http.call(house.gateway.port, "GET", f"/v1/usage/{id}", headers=headers)
    assert (answer.status, error_of(answer)["code"]) == (404, "not_found")
    seen = await house.ask_admin("GET", f"usage/logs/{id}")
    assert (seen.status, error_of(seen)["code"]) == (404, "not_found")


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/", "/health", "/health/live", "/health/ready"])
async def test_head_answers_200_where_clients_and_load_balancers_probe(house: House, path: str) -> None:
    answer = await raw_http.call(house.gateway.port, "HEAD", path)
    assert (answer.status, answer.body) == (200, b"")


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions/", "//v1/chat/completions", "/v1//chat/completions", "/v1/v1/chat/completions"]
)
async def test_a_slash_too_many_or_the_prefix_twice_is_forgiven(house: House, path: str) -> None:
    key, model = await house.key(), await house.model()
    assert (await house.chat(key, model, path=path)).status == 200
    assert (await raw_http.call(house.gateway.port, "POST", path, json_body={})).status == 401


async def test_a_request_names_its_host_once(house: House) -> None:
    """T151: two readers could otherwise take it for requests to different places."""
    key = await house.key()
    lines = f"GET /v1/models HTTP/1.1\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n"
    for hosts, status in (("", 400), ("Host: a\r\nHost: b\r\n", 400), ("Host: a\r\n", 200)):
        async with raw_http.RawConnection(house.gateway.port) as connection:
            await connection.send(f"{lines}{hosts}\r\n".encode())
            answer = await connection.response()
        assert answer.status == status
        if status == 400:
            assert error_of(answer)["code"] == "invalid_request"


async def test_what_an_answer_says_is_left_is_what_is_left(house: House) -> None:
    limits = [{"kind": "tokens", "limit": 10**6, "window_seconds": 60}]
    key = await house.key(limits=limits, budgets=[{"period": "total", "hard_limit_usd": "1"}])
    model = await house.model(max_output_tokens=4000)

    answer = await house.chat(key, model)
    stands = await raw_http.call(house.gateway.port, "GET", "/v1/me", headers={"Authorization": f"Bearer {key}"})

    me, usage = json.loads(stands.body), json.loads(answer.body)["usage"]
    left = answer.header("x-ratelimit-remaining-tokens")
    assert left == str(10**6 - usage["total_tokens"]) == str(me["limits"][0]["remaining"])
    assert answer.header("x-gateway-budget-remaining-usd") == me["budgets"][0]["remaining_usd"]


async def test_a_call_that_fails_says_as_much_of_itself_in_its_headers_as_one_that_succeeds(house: House) -> None:
    limits = [
        {"kind": "requests", "limit": 2, "window_seconds": 60},
        {"kind": "tokens", "limit": 10**6, "window_seconds": 60},
    ]
    key = await house.key(limits=limits, budgets=[{"period": "total", "hard_limit_usd": "1"}])
    model = await house.model(Scenario(status=500))

    failed = await house.chat(key, model)
    stands = await raw_http.call(house.gateway.port, "GET", "/v1/me", headers={"Authorization": f"Bearer {key}"})
    unknown = await house.chat(key, unique("absent"))
    await house.chat(key, model)
    limited = await house.chat(key, model)

    assert failed.status == 502
    assert (failed.header("x-gateway-attempts"), failed.header("x-gateway-model")) == ("1", model)
    assert failed.header("x-gateway-endpoint")
    assert failed.header("x-ratelimit-remaining-requests") == "1"
    assert failed.header("x-ratelimit-limit-tokens") == "1000000"
    me = json.loads(stands.body)
    assert failed.header("x-gateway-budget-remaining-usd") == me["budgets"][0]["remaining_usd"]
    (left,) = [limit["remaining"] for limit in me["limits"] if limit["kind"] == "tokens"]
    assert failed.header("x-ratelimit-remaining-tokens") == str(left)
    assert failed.header("x-litellm-call-id") == failed.header("x-request-id")
    assert (unknown.status, unknown.header("x-gateway-attempts")) == (404, "0")
    assert (limited.status, limited.all("x-ratelimit-remaining-requests")) == (429, ["0"])
    assert limited.header("x-gateway-attempts") == "0"


async def test_nothing_of_all_this_reaches_an_upstream_or_the_ledger(house: House) -> None:
    user, model = await house.user(), await house.model()
    key, absent = await house.key(user), unique("absent")
    await post(house, b'{"model":"' + model.encode(), key=key)
    await post(house, chat_body(model=model, max_tokens=-1), key=key)
    await post(house, chat_body(model=absent), key=key)

    seen = await house.upstream.invoice()  # of other tests' calls and checks, too
    assert [line for line in seen.lines if model.encode() in line.body or absent.encode() in line.body] == []
    page = await house.admin("GET", f"usage/logs?user_oid={user}", expect=200)
    assert [item for item in page["items"] if item["outcome"] != "refused"] == []
