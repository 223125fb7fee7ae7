"""Values that people and programs write by mistake or on purpose: refused by name, and never taken for something else."""

# ruff: noqa: F811 - fixtures are imported by name and asked for by name

from __future__ import annotations

import json

import httpx2
import pytest

from tests.admin_fixtures import (
    api,  # noqa: F401
    database,  # noqa: F401
    engine,  # noqa: F401
    gateway,  # noqa: F401
    postgres_url,  # noqa: F401
    template,  # noqa: F401
)

Client = httpx2.AsyncClient
JSON = {"content-type": "application/json"}
USER, MODEL = "/users/u", "/models/m"


async def put(api: Client, path: str, body: str) -> httpx2.Response:
    return await api.patch(path, content=body.encode("utf-8", "surrogatepass"), headers=JSON)


async def planted(api: Client) -> str:
    """A user, a model and a key. Returns the key's path."""
    assert (await api.post("/users", json={"user_oid": "u"})).status_code == 201
    assert (await api.post("/models", json={"name": "m"})).status_code == 201
    made = await api.post("/keys", json={"user_oid": "u"})
    assert made.status_code == 201
    return f"/keys/{made.json()['id']}"


async def assert_refused(api: Client, path: str, field: str, values: list[str], body: str, *, at: str = "") -> None:
    """`body` holds the place of the value."""
    before = (await api.get(path)).json()
    for value in values:
        answer = await put(api, path, body.replace("VALUE", value))
        assert answer.status_code == 400, (field, value[:80], answer.text)
        error = answer.json()["error"]
        if error["code"] == "invalid_request":
            assert error["param"].startswith(at or field), (field, value[:80], error)
    assert (await api.get(path)).json() == before


async def test_times_that_are_numbers_are_not_taken_for_seconds_since_1970(api: Client) -> None:
    key = await planted(api)
    wrong = ["1", "-1", "0", "1e12", "1e400", "86400", "true", '"20260101"', '"1"', '""', '"now"', '"2026-13-01"']
    wrong += ['"2026-02-30"', '"2026-W01-1"', '"0000-01-01"', '"2026-01-01T23:59:60Z"', '"2026-01-01T00:00:00+99:00"']
    wrong += ['"\u0662\u0660\u0662\u0666-01-01"', "[]", "{}"]
    await assert_refused(api, key, "expires_at", wrong, '{"expires_at": VALUE}')
    await assert_refused(api, USER, "payment_valid_until", wrong, '{"payment_valid_until": VALUE}')


async def test_times_that_people_write_are_taken(api: Client) -> None:
    key = await planted(api)
    for written, told in {
        "2026-12-31": "2026-12-31T00:00:00.000000Z",
        "2026-12-31T23:00:00": "2026-12-31T23:00:00.000000Z",
        "2026-12-31T23:00:00+02:00": "2026-12-31T21:00:00.000000Z",
        "2026-12-31 23:00:00Z": "2026-12-31T23:00:00.000000Z",
        "9999-12-31T23:59:59Z": "9999-12-31T23:59:59.000000Z",
    }.items():
        answer = await api.patch(key, json={"expires_at": written})
        assert (answer.status_code, answer.json()["expires_at"]) == (200, told), written


@pytest.mark.parametrize("path", ["/usage/logs", "/usage/summary", "/usage/export", "/audit"])
async def test_ranges_are_read_alike_everywhere(api: Client, path: str) -> None:
    for given, status in {
        "from=2026-01-01": 200,
        "from=2026-01-01T00:00:00%2B02:00": 200,
        "from=2026-01-01T00:00:00+02:00": 200,
        "from=2026-02-01&to=2026-01-01": 200,
        "from=1": 400,
        "from=-1": 400,
        "to=1e400": 400,
        "from=2026-13-01": 400,
        "from=": 400,
    }.items():
        answer = await api.get(f"{path}?{given}")
        assert answer.status_code == status, (given, answer.text)


async def test_amounts_and_counts_that_are_none_are_refused(api: Client) -> None:
    key = await planted(api)
    amounts = [
        '"-1"',
        '"NaN"',
        '"Infinity"',
        '" 1"',
        '"1_0"',
        '"1,0"',
        '""',
        '"0x1"',
        '"\u0661"',
        '"9000000.000000001"',
    ]
    amounts += ["1e999", "true", "[]", '"0.0000000001"', f'"1{"0" * 400}"', '"1e999999999"']
    budget = '{"budgets": [{"period": "daily", "hard_limit_usd": VALUE}]}'
    await assert_refused(api, USER, "budgets[0].hard_limit_usd", amounts, budget)
    counts = ["-1", "1.0", "1.5", "1e3", "1e400", "99999999999999999999", "true", "null", '"5"', "[]", "{}"]
    limit = '{"limits": [{"kind": "requests", "limit": VALUE, "window_seconds": 60}]}'
    await assert_refused(api, USER, "limits[0].limit", counts, limit)
    window = '{"limits": [{"kind": "requests", "limit": 1, "window_seconds": VALUE}]}'
    await assert_refused(api, USER, "limits[0].window_seconds", [*counts, "0"], window)
    patience = '{"overflow": {"mode": "queue", "max_wait_seconds": VALUE}}'
    await assert_refused(api, key, "overflow.max_wait_seconds", ["-1", "1e400", '"5"', "true", "1e9"], patience)


async def test_names_of_models_hold_nothing_that_breaks_a_line_and_no_blanks_at_their_ends(api: Client) -> None:
    for name in ("a\nb", "a\u2028b", "a\x00b", " m", "m ", "*", ""):
        for body in ({"name": name}, {"name": "other", "aliases": [name]}):
            answer = await api.post("/models", json=body)
            assert answer.status_code == 400, (body, answer.text)


async def test_bodies_of_the_wrong_shape_are_refused(api: Client) -> None:
    key = await planted(api)
    twice = '{"limits": [{"kind": "requests", "kind": "tokens", "limit": 1, "window_seconds": 1}]}'
    for body in (
        *("null", "[null]", "1", '"x"', "", '{"name": "x"} x', '{"name": NaN}', '{"name": "\ud800"}'),
        *('{"limits": [null]}', '{"limits": [[[[null]]]]}', twice, '{"limits": [], "limits": []}'),
        *("[" * 100_000, '{"a":' * 50_000, '{"limits": ' + "[" * 500 + "]" * 500 + "}"),
        json.dumps({"limits": [{"kind": "requests", "limit": 1, "window_seconds": each} for each in range(1, 500)]}),
    ):
        for path in (USER, key, MODEL):
            answer = await put(api, path, body)
            assert answer.status_code == 400, (path, body[:60], answer.text)
            assert set(answer.json()) == {"error"}
