"""Sessions over real sockets and several replicas: T023, T024, T026, T028."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import urlencode

import asyncpg
import pytest

from tests.e2e.house import House, unique
from tests.kit import raw_http
from tests.kit.processes import GatewayProcess
from tests.kit.raw_http import RawResponse, request_bytes

FORM = "application/x-www-form-urlencoded"


@pytest.fixture
async def second(house: House) -> AsyncIterator[GatewayProcess]:
    async with GatewayProcess(house.env, name="second") as gateway:
        yield gateway
    await forgiven(house)


@pytest.fixture
async def third(house: House) -> AsyncIterator[GatewayProcess]:
    async with GatewayProcess(house.env, name="third") as gateway:
        yield gateway


async def forgiven(house: House) -> None:
    """What this address did wrong here is no business of the tests that come after."""
    connection = await asyncpg.connect(house.database_url)
    try:
        await connection.execute("DELETE FROM sign_in_failures")
    finally:
        await connection.close()


async def post_form(port: int, path: str, fields: dict[str, str], cookie: str | None = None) -> RawResponse:
    headers = {"Content-Type": FORM} | ({} if cookie is None else {"Cookie": cookie})
    return await raw_http.call(port, "POST", path, headers=headers, body=urlencode(fields).encode())


async def signed_in(port: int, token: str) -> str:
    answer = await post_form(port, "/admin/sign-in", {"token": token})
    assert answer.status == 303, answer.text
    cookie = answer.header("set-cookie")
    assert cookie is not None
    return cookie.partition(";")[0]


async def status_with(port: int, cookie: str, path: str = "/admin/api/users") -> int:
    return (await raw_http.call(port, "GET", path, headers={"Cookie": cookie})).status


async def an_admin(house: House, role: str = "admin") -> tuple[str, str]:
    made = await house.admin("POST", "admins", {"name": unique("admin"), "role": role}, expect=201)
    return str(made["id"]), str(made["token"])


async def test_a_session_holds_at_every_replica_and_ends_at_all_of_them_at_once_t028(
    house: House, second: GatewayProcess
) -> None:
    first_port, other_port = house.gateway.port, second.port
    for ending in ("revoke", "rotate", "role"):
        admin_id, token = await an_admin(house)
        cookie = await signed_in(first_port, token)
        assert await status_with(other_port, cookie) == 200

        if ending == "role":
            await house.admin("PATCH", f"admins/{admin_id}", {"role": "viewer"}, expect=200)
        else:
            await house.admin("POST", f"admins/{admin_id}/{ending}", expect=200)

        assert await status_with(other_port, cookie) == 401, ending
        assert await status_with(first_port, cookie) == 401, ending


async def test_many_replicas_count_wrong_tokens_together_t026(
    house: House, second: GatewayProcess, third: GatewayProcess
) -> None:
    await forgiven(house)
    ports = (second.port, third.port)
    statuses = [
        (await post_form(ports[number % 2], "/admin/sign-in", {"token": "wrong"})).status for number in range(12)
    ]

    assert statuses == [401] * 10 + [429] * 2
    _, token = await an_admin(house)
    answers = await asyncio.gather(
        *(post_form(ports[number % 2], "/admin/sign-in", {"token": token}) for number in range(20))
    )
    assert {answer.status for answer in answers} == {303}, "the right token is heard, also one made a moment ago"


PATHS = (
    "/%61dmin/api%2fkeys",
    "/%61dmin/api/keys",
    "/v1/../admin/api/keys",
    "/v1/%2e%2e/admin/api/keys",
    "//admin/api/keys",
    "/ADMIN/api/keys",
    "/admin;x/api/keys",
    "/admin/api/keys/",
    "/admin/api/keys%00",
    "/admin/./api/keys",
    "/admin/%2e%2e/admin/api/keys",
    "http://evil.example/admin/api/keys",
)


@pytest.mark.parametrize("path", PATHS)
async def test_no_spelling_of_a_path_gets_past_the_sign_in_t024(house: House, path: str) -> None:
    await house.key()
    raw = await raw_http.exchange(
        house.gateway.port, request_bytes("GET", path, headers={"Connection": "close", "Accept": "text/html"})
    )

    head, _, body = raw.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    assert status in (303, 400, 401, 404), raw
    assert b"key_prefix" not in body
    if status == 303:
        assert b"\r\nlocation: /admin/sign-in" in head.lower()


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "a/v1/health?x="},
        {"Host": "a#"},
        {"Host": "evil.example"},
        {"X-Original-URL": "/health"},
        {"X-Rewrite-URL": "/health"},
        {"X-Forwarded-Prefix": "/health", "X-Forwarded-Host": "evil.example"},
        {"X-HTTP-Method-Override": "GET"},
    ],
)
async def test_no_header_about_the_address_gets_past_the_sign_in_t023(house: House, headers: dict[str, str]) -> None:
    for path in ("/admin/api/keys", "/admin/", "/admin/api/settings"):
        answer = await raw_http.call(house.gateway.port, "GET", path, headers={"Accept": "text/html", **headers})

        assert answer.status in (303, 400, 401), (path, answer.text)
        assert "evil.example" not in (answer.header("location") or "")


async def test_a_forged_form_over_a_real_socket_changes_nothing_t029(house: House) -> None:
    _, token = await an_admin(house)
    cookie = await signed_in(house.gateway.port, token)
    oid = unique("forged")
    for headers in ({}, {"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        answer = await raw_http.call(
            house.gateway.port,
            "POST",
            "/admin/api/users",
            headers={"Cookie": cookie, **headers},
            json_body={"user_oid": oid},
        )
        assert answer.status == 403
    assert (await house.admin("GET", f"users?search={oid}"))["items"] == []
