"""Credentials that are none: every route refuses them alike, before it reads anything, and tells nothing of them."""

from __future__ import annotations

import asyncio
import json
import re
import time
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from tests.e2e.house import HELLO, House, error_of, unique
from tests.kit import raw_http
from tests.kit.raw_http import RawResponse
from tests.kit.stalls import stalled_s

MODEL = unique("nobodys-model")
BROKEN = f'{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "'.encode() + b"x" * 100_000
"""A body that nobody who reads it would call JSON."""


async def _operations(house: House) -> list[tuple[str, str]]:
    """Every operation of the data plane that the documentation names, with and without its prefix."""
    document = json.loads((await raw_http.call(house.gateway.port, "GET", "/openapi.json")).body)
    found = [
        (method.upper(), re.sub(r"\{[^}]+\}", MODEL, path))
        for path, item in document["paths"].items()
        if path.startswith(("/v1/", "/openai/"))
        for method in item
        if method in ("get", "post")
    ]
    return found + [(method, path.removeprefix("/v1")) for method, path in found if path.startswith("/v1/")]


async def _rows_of_the_ledger(house: House) -> int:
    connection = await asyncpg.connect(house.database_url.replace("+asyncpg", ""))
    try:
        return int(
            await connection.fetchval(
                "SELECT (SELECT count(*) FROM usage_records WHERE requested_model = $1)"
                " + (SELECT count(*) FROM refused_calls WHERE requested_model = $1)",
                MODEL,
            )
        )
    finally:
        await connection.close()


async def _asked_for_the_model(house: House) -> int:
    """What reached the upstream and names the model; the checks of other tests' endpoints go on meanwhile."""
    seen = await house.upstream.invoice()
    return len(seen.where(lambda line: MODEL.encode() in line.body or MODEL in line.path).lines)


async def test_every_route_without_a_credential_refuses_before_it_reads_and_leaves_nothing(house: House) -> None:
    """T001."""
    operations = await _operations(house)
    assert len(operations) > 25

    for method, path in operations:
        body = BROKEN if method == "POST" else None
        headers = {"Content-Type": "application/json"} if body else {}
        answer = await raw_http.call(house.gateway.port, method, path, headers=headers, body=body)
        assert (answer.status, error_of(answer)["code"]) == (401, "invalid_api_key"), (method, path)

    assert await _asked_for_the_model(house) == 0
    await asyncio.sleep(0.5)  # what would be written is written a tenth of a second later
    assert await _rows_of_the_ledger(house) == 0


def _told(answer: RawResponse) -> tuple[int, bytes, list[str]]:
    """All that an answer says but its ids and the time."""
    without_ids = re.sub(rb"[0-9a-f]{8}-[0-9a-f-]{27}", b"", answer.body)
    return answer.status, without_ids, sorted(name for name, _ in answer.headers)


async def test_credentials_that_are_bad_in_different_ways_are_told_apart_by_nothing(house: House) -> None:
    """T003."""
    user, good = await house.user(), await house.key()
    revoked = await house.admin("POST", "keys", {"user_oid": user}, expect=201)
    await house.admin("POST", f"keys/{revoked['id']}/revoke", expect=200)
    yesterday = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    expired = await house.admin("POST", "keys", {"user_oid": user, "expires_at": yesterday}, expect=201)
    deleted = await house.admin("POST", "keys", {"user_oid": user}, expect=201)
    await house.admin("DELETE", f"keys/{deleted['id']}")
    rotated = await house.admin("POST", "keys", {"user_oid": user}, expect=201)
    await house.admin("POST", f"keys/{rotated['id']}/rotate", expect=200)
    bad = {
        "revoked": revoked["key"],
        "expired": expired["key"],
        "deleted": deleted["key"],
        "rotated away": rotated["key"],
        "unknown": good[:-6] + "".join(reversed(good[-6:])),
        "truncated": good[:-1],
        "longer": good + "x",
        "with a space before": f" {good}",
        "another vendor's": "sk-ant-api03-" + "a" * 95,
    }

    told = {
        name: _told(
            await raw_http.call(
                house.gateway.port,
                "POST",
                "/v1/chat/completions",
                headers={"Authorization": f"Bearer {key}"},
                json_body={"model": "gpt-4", "messages": HELLO},
            )
        )
        for name, key in bad.items()
    }

    assert {status for status, _, _ in told.values()} == {401}
    assert len({(body, tuple(headers)) for _, body, headers in told.values()}) == 1, told
    log = house.gateway.log_text()
    for name, key in bad.items():
        assert key.strip() not in log, name
        assert key.strip()[:12] not in log, name


WORDS = ["'/**/OR/**/1=1--", "';SELECT/**/pg_sleep(5)--", "$1", "\\", "%%%%", "x" * 200, "{{7*7}}"]


@pytest.mark.parametrize("words", WORDS)
async def test_words_of_sql_in_the_headers_of_an_app_are_words(house: House, words: str) -> None:
    """T002: an app that creates users makes one of that very name; another one has never heard of him."""
    model, maker, app = await house.model(), await house.app(auto_create_users=True), await house.app()
    oid = f"{unique('u')}{words}"[:200]

    began_s = time.monotonic()
    unknown = await house.app_chat(app, oid, model)
    made = await house.app_chat(maker, oid, model)
    wrong = await raw_http.call(
        house.gateway.port,
        "GET",
        "/v1/models",
        headers={"X-Gateway-Secret": app.secret, "X-App-Id": words, "X-User-Oid": oid},
    )
    took_s = time.monotonic() - began_s - stalled_s(began_s)

    assert (unknown.status, error_of(unknown)["code"]) == (403, "user_unknown")
    assert made.status == 200, made.text
    assert (wrong.status, error_of(wrong)["code"]) == (401, "invalid_api_key")
    assert took_s < 4.5  # a pg_sleep(5) would be longer, a busy machine is not
    listed = await house.admin("GET", f"audit?object_id={_quoted(oid)}", expect=200)
    assert [item["object_id"] for item in listed["items"]] == [oid]


def _quoted(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())
