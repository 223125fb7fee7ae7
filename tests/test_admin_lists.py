"""Long lists: what they are searched, filtered and sorted by, and that every page of them is right."""

# ruff: noqa: F811 - fixtures are imported by name and asked for by name

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.admin_fixtures import (
    Gateway,
    api,  # noqa: F401
    database,  # noqa: F401
    engine,  # noqa: F401
    gateway,  # noqa: F401
    postgres_url,  # noqa: F401
    template,  # noqa: F401
)

Client = httpx2.AsyncClient


async def ok(call: Any, status: int = 200) -> Any:
    response = await call
    assert response.status_code == status, response.text
    return response.json() if response.content else None


async def all_pages(api: Client, path: str, ident: str, **params: Any) -> list[str]:
    found: list[str] = []
    cursor: str | None = None
    while True:
        wanted = {"limit": 2, **params, "cursor": cursor}
        page = await ok(api.get(path, params={name: value for name, value in wanted.items() if value is not None}))
        found += [item[ident] for item in page["items"]]
        assert len(found) < 100
        cursor = page["next_cursor"]
        if cursor is None:
            return found


@pytest.fixture
async def users(api: Client, gateway: Gateway) -> None:
    for oid, until, status in (
        ("a", None, "active"),
        ("b", "2026-03-01", "trial"),
        ("c", "2026-02-01", "active"),
        ("d", "2026-02-01", "suspended"),
        ("e", None, "expired"),
    ):
        await gateway.clock.advance(1)
        body = {"user_oid": oid, "payment_valid_until": until, "payment_status": status}
        await ok(api.post("/users", json=body), 201)


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        (None, "edcba"),
        ("created_at", "abcde"),
        ("-created_at", "edcba"),
        ("user_oid", "abcde"),
        ("-user_oid", "edcba"),
        ("payment_valid_until", "cdbae"),
        ("-payment_valid_until", "eabdc"),
    ],
)
@pytest.mark.usefixtures("users")
async def test_users_come_in_the_order_asked_for_page_by_page(api: Client, sort: str | None, expected: str) -> None:
    assert await all_pages(api, "/users", "user_oid", sort=sort) == list(expected)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"status": "active"}, "ac"),
        ({"payment_status": "trial"}, "b"),
        ({"expires_before": "2026-03-01"}, "cd"),
        ({"expires_before": "2026-03-01", "status": "active"}, "c"),
        ({"user_oid": "d"}, "d"),
    ],
)
@pytest.mark.usefixtures("users")
async def test_users_are_filtered(api: Client, filters: dict[str, Any], expected: str) -> None:
    assert sorted(await all_pages(api, "/users", "user_oid", **filters)) == list(expected)


@pytest.fixture
async def keys(api: Client, gateway: Gateway) -> dict[str, str]:
    """Ids by name."""
    await ok(api.post("/users", json={"user_oid": "o'hara_1"}), 201)
    await ok(api.post("/users", json={"user_oid": "late", "payment_status": "expired"}), 201)
    ids = {}
    for name, fields in (
        ("alpha", {"labels": {"team": "search", "env": "prod"}}),
        ("Beta", {"labels": {"team": "search"}, "expires_at": "2026-02-01T00:00:00Z"}),
        ("100%", {"labels": {"team": "ops"}, "expires_at": "2026-01-20T00:00:00Z", "allowed_models": ["gpt-4"]}),
        ("1000", {"user_oid": "late"}),
    ):
        await gateway.clock.advance(1)
        ids[name] = (await ok(api.post("/keys", json={"user_oid": "o'hara_1", "name": name, **fields}), 201))["id"]
    return ids


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"search": "ALPHA"}, ["alpha"]),
        ({"search": "100%"}, ["100%"]),
        ({"search": "%"}, ["100%"]),
        ({"search": "O'HARA_"}, ["100%", "Beta", "alpha"]),
        ({"search": "_"}, ["100%", "Beta", "alpha"]),
        ({"search": "\\"}, []),
        ({"search": "ops"}, ["100%"]),
        ({"search": "%%%%"}, []),
        ({"label": "team=search"}, ["Beta", "alpha"]),
        ({"label": ["team=search", "env"]}, ["alpha"]),
        ({"label": "team=' OR 1=1--"}, []),
        ({"label": ""}, []),
        ({"expires_before": "2026-02-01T00:00:00Z"}, ["100%"]),
        ({"model": "gpt-4"}, ["100%"]),
        ({"payment_status": "expired"}, ["1000"]),
        ({"user_oid": "late", "status": "active"}, ["1000"]),
    ],
)
async def test_keys_are_found_by_what_is_asked_for(
    api: Client, keys: dict[str, str], filters: dict[str, Any], expected: list[str]
) -> None:
    """T060: words are words, whatever they mean in SQL."""
    assert sorted(await all_pages(api, "/keys", "name", **filters)) == expected


async def test_a_key_is_found_by_its_id(api: Client, keys: dict[str, str]) -> None:
    assert await all_pages(api, "/keys", "name", search=keys["Beta"]) == ["Beta"]


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("name", ["100%", "1000", "Beta", "alpha"]),
        ("-created_at", ["1000", "100%", "Beta", "alpha"]),
        ("last_used_at", None),
    ],
)
async def test_keys_come_in_the_order_asked_for(
    api: Client, keys: dict[str, str], sort: str, expected: list[str] | None
) -> None:
    found = await all_pages(api, "/keys", "name", sort=sort)
    assert sorted(found) == sorted(keys)
    assert expected is None or sorted(found[:2]) == sorted(expected[:2])


async def test_a_label_is_set_changed_and_removed(api: Client, keys: dict[str, str]) -> None:
    path = f"/keys/{keys['alpha']}"

    assert (await ok(api.get(path)))["labels"] == {"team": "search", "env": "prod"}
    assert (await ok(api.patch(path, json={"labels": {"team": "x"}})))["labels"] == {"team": "x"}
    assert (await ok(api.patch(path, json={"name": "renamed"})))["labels"] == {"team": "x"}
    assert (await ok(api.patch(path, json={"labels": {}})))["labels"] == {}


@pytest.mark.parametrize(
    "labels",
    [
        {"a\u0000": "x"},
        {"a": "x\u0000"},
        {"": "x"},
        {"a b": "x"},
        {"a": 1},
        {"a": {"b": "c"}},
        {"a": "x" * 201},
        {"a": "line\nbreak"},
        {f"l{number}": "" for number in range(21)},
        ["a"],
        None,
    ],
)
async def test_a_label_that_is_none_is_refused(api: Client, keys: dict[str, str], labels: Any) -> None:
    """T046, T047."""
    response = await api.patch(f"/keys/{keys['alpha']}", json={"labels": labels})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_request"), response.text


@pytest.mark.parametrize(
    "params",
    [
        {"cursor": "nonsense"},
        {"cursor": "' OR 1=1--"},
        {"cursor": "WyIyMDI2LTAxLTE1VDEyOjAwOjAwWiIsIm5vIHV1aWQiXQ"},
        {"sort": "digest"},
        {"sort": "created_at; DROP TABLE keys"},
        {"limit": 1_000_000},
        {"limit": 0},
        {"search": "x" * 10_000},
        {"status": "nope"},
        {"expires_before": "soon"},
        {"expires_before": "9999-12-31T23:59:59-14:00"},
        {"expires_before": "0001-01-01T00:00:00+14:00"},
    ],
)
async def test_a_question_that_makes_no_sense_is_refused_by_name(api: Client, params: dict[str, Any]) -> None:
    """T060."""
    response = await api.get("/keys", params=params)
    assert (response.status_code, response.json()["error"]["param"]) == (400, next(iter(params))), response.text


@pytest.mark.parametrize("moment", ["9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00"])
async def test_a_time_beyond_the_calendar_is_refused_by_name(api: Client, keys: dict[str, str], moment: str) -> None:
    for asked in (
        api.patch(f"/keys/{keys['alpha']}", json={"expires_at": moment}),
        api.get("/usage/logs", params={"from": moment}),
    ):
        response = await asked
        assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_request"), response.text


async def test_a_cursor_belongs_to_its_order(api: Client, keys: dict[str, str]) -> None:
    cursor = (await ok(api.get("/keys", params={"limit": 1, "sort": "name"})))["next_cursor"]

    for params in ({"sort": "-name"}, {"sort": "created_at"}, {}):
        response = await api.get("/keys", params={"cursor": cursor, **params})
        assert response.status_code == 400, params


async def test_searches_work_without_trigrams_too(api: Client, gateway: Gateway, keys: dict[str, str]) -> None:
    """A database whose owner may not create the extension answers the same."""
    await gateway.execute("DROP EXTENSION IF EXISTS pg_trgm CASCADE")

    assert await all_pages(api, "/keys", "name", search="alph") == ["alpha"]
