"""Who sees which page and may send which form: default deny, one table, and nothing without a session or its token (T019, T029)."""

from __future__ import annotations

import http.cookies
import re
from urllib.parse import urlencode

from app.admin.rights import PAGE_RIGHTS, PREFIX
from app.domain.access import Actor, Role
from app.services.admin_sessions import csrf_token_of
from tests.admin.conftest import Site
from tests.e2e.house import ADMIN_TOKEN, House, unique
from tests.kit import raw_http
from tests.kit.raw_http import RawResponse

FORM = "application/x-www-form-urlencoded"


async def session_of(house: House, token: str) -> str:
    """The session's cookie, as a header."""
    answer = await raw_http.call(
        house.gateway.port,
        "POST",
        "/admin/sign-in",
        headers={"content-type": FORM},
        body=urlencode({"token": token}).encode(),
    )
    assert answer.status == 303, answer.text
    jar = http.cookies.SimpleCookie(answer.header("set-cookie") or "")
    return "; ".join(f"{name}={morsel.value}" for name, morsel in jar.items())


def filled(route: str) -> tuple[str, str]:
    """A method and a path that leads to nothing that is there."""
    method, _, path = route.partition(" ")
    return method, PREFIX + re.sub(r"\{[^}]*\}", "00000000-0000-0000-0000-000000000000", path)


async def asked(house: House, route: str, cookie: str | None, **fields: str) -> RawResponse:
    method, path = filled(route)
    headers = {"accept": "text/html"} | ({"cookie": cookie} if cookie else {})
    if method == "GET":
        return await raw_http.call(house.gateway.port, method, path, headers=headers)
    body = urlencode(fields).encode()
    return await raw_http.call(house.gateway.port, method, path, headers=headers | {"content-type": FORM}, body=body)


def test_every_page_answers_each_role_as_the_table_says_t019(site: Site) -> None:
    async def tried() -> list[str]:
        wrong = []
        for role in Role:
            made = await site.house.admin("POST", "admins", {"name": unique(str(role)), "role": role}, expect=201)
            cookie = await session_of(site.house, made["token"])
            csrf = csrf_token_of(cookie.partition("=")[2])
            for route, right in PAGE_RIGHTS.items():
                if route == "GET /overview/events":
                    continue  # an endless answer; its right is READ, which every role has
                answer = await asked(site.house, route, cookie, csrf_token=csrf, theme="dark", action="none")
                may = Actor("", role).may(right)
                if (answer.status == 403) is may or answer.status >= 500:
                    wrong.append(f"{role}: {route} answered {answer.status}")
        return wrong

    assert site.run(tried()) == []


def test_without_a_session_every_page_leads_to_the_sign_in_and_no_form_is_heard(site: Site) -> None:
    async def tried() -> list[str]:
        wrong = []
        for route in PAGE_RIGHTS:
            answer = await asked(site.house, route, None)
            location = answer.header("location") or ""
            is_led = answer.status == 303 and location.startswith("/admin/sign-in")
            if not (is_led if route.startswith("GET") else answer.status in (401, 403)):
                wrong.append(f"{route} answered {answer.status} {location}")
        return wrong

    assert site.run(tried()) == []


def test_a_form_without_the_sessions_token_changes_nothing_t029(site: Site) -> None:
    async def tried() -> None:
        cookie = await session_of(site.house, ADMIN_TOKEN)
        oid = await site.house.user()
        path = f"/admin/user/status?oid={oid}"
        base = {"cookie": cookie, "content-type": FORM}
        csrf = csrf_token_of(cookie.partition("=")[2])
        forged = (
            (base, {"status": "suspended"}),
            (base, {"status": "suspended", "csrf_token": "x" * 43}),
            (base | {"origin": "https://evil.example"}, {"status": "suspended", "csrf_token": csrf}),
            (base | {"sec-fetch-site": "cross-site"}, {"status": "suspended", "csrf_token": csrf}),
            (base | {"content-type": "text/plain"}, {"status": "suspended", "csrf_token": csrf}),
        )
        for headers, fields in forged:
            answer = await raw_http.call(
                site.house.gateway.port, "POST", path, headers=headers, body=urlencode(fields).encode()
            )
            assert answer.status == 403, (headers, answer.status)
        override = await raw_http.call(
            site.house.gateway.port, "GET", f"{path}&_method=POST&status=suspended", headers={"cookie": cookie}
        )
        assert override.status in (404, 405)
        assert (await site.house.admin("GET", f"users/{oid}"))["payment_status"] == "active"

    site.run(tried())


def test_pages_are_kept_by_no_cache_and_let_no_foreign_script_in_t030(site: Site) -> None:
    async def tried() -> RawResponse:
        cookie = await session_of(site.house, ADMIN_TOKEN)
        return await asked(site.house, "GET /settings", cookie)

    answer = site.run(tried())
    policy = answer.header("content-security-policy") or ""
    assert "unsafe" not in policy
    assert all(word in policy for word in ("object-src 'none'", "base-uri 'none'", "frame-ancestors 'none'"))
    assert answer.header("cache-control") == "no-store"
    assert "style=" not in answer.text
    assert not re.search(r"<script(?![^>]*(src=|application/json))|\son\w+=", answer.text)
