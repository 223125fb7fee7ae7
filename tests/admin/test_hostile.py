"""T031: whatever people write into names, prompts and labels is shown as what it is, and runs nowhere."""

from __future__ import annotations

from urllib.parse import quote

from playwright.sync_api import expect

from tests.admin.conftest import Site, Visitor
from tests.e2e.house import unique
from tests.kit import raw_http

HOSTILE = (
    "<img src=x onerror=window.ran=1>",
    "</script><script>window.ran=1</script>",
    "javascript:window.ran=1",
    "\"'><svg/onload=window.ran=1>",
    "=cmd|'/C calc'!A0",
    "{{ 7*7 }}${7*7}",
    "\u202egnirts",
)
ANSI = "\x1b[31mred"


def test_hostile_texts_are_inert_on_every_page_t031(site: Site, visit: Visitor) -> None:
    house = site.house
    paths: list[str] = []
    calls: list[str] = []

    async def plant() -> None:
        for text in HOSTILE:
            oid = unique("=1+1;<b>").replace(" ", "")
            await house.admin("POST", "users", {"user_oid": oid, "name": text, "email": None}, expect=201)
            key = await house.admin(
                "POST",
                "keys",
                {"user_oid": oid, "name": text, "limits": [], "log_content": "full", "labels": {"team": text[:60]}},
            )
            assert "id" in key, key
            name = f"{text} {unique('m')}"
            await house.admin("POST", "models", {"name": name, "aliases": [f"{text} {unique('a')}"]}, expect=201)
            app_id = unique("app")
            await house.admin("POST", "apps", {"app_id": app_id, "name": text}, expect=201)
            endpoint = await house.admin(
                "POST",
                "endpoints",
                {"model": name, "provider": "openai", "upstream_model": text, "api_base": house.upstream.base_url},
                expect=201,
            )
            answer = await raw_http.call(
                house.gateway.port,
                "POST",
                "/v1/chat/completions",
                headers={
                    "Authorization": f"Bearer {key['key']}",
                    "User-Agent": text.encode("ascii", "replace").decode(),
                },
                json_body={"model": "demo", "messages": [{"role": "user", "content": text + ANSI}]},
            )
            calls.append(answer.header("x-request-id") or "")
            refused = await raw_http.call(
                house.gateway.port,
                "POST",
                "/v1/chat/completions",
                headers={"Authorization": f"Bearer {key['key']}"},
                json_body={"model": text, "messages": [{"role": "user", "content": text}]},
            )
            assert refused.status == 404
            quoted = {"oid": oid, "name": name}
            paths.extend(
                (
                    f"/admin/user?oid={_q(quoted['oid'])}",
                    f"/admin/user/edit?oid={_q(oid)}",
                    f"/admin/user/delete?oid={_q(oid)}",
                    f"/admin/keys/{key['id']}",
                    f"/admin/keys/{key['id']}/edit",
                    f"/admin/model?name={_q(name)}",
                    f"/admin/model/edit?name={_q(name)}",
                    f"/admin/apps/{app_id}",
                    f"/admin/endpoints/{endpoint['id']}",
                    f"/admin/usage?user={_q(oid)}",
                    f"/admin/search?q={_q(text)}",
                    f"/admin/usage?model={_q(text)}",
                )
            )
        for request_id in calls:
            await house.record(request_id)

    site.run(plant())
    everywhere = ["/admin/", "/admin/keys", "/admin/users", "/admin/apps", "/admin/models", "/admin/usage"]
    everywhere += ["/admin/audit", "/admin/playground", "/admin/alerts", *(f"/admin/usage/{each}" for each in calls)]
    for path in (*everywhere, *paths):
        visit.page.goto(
            f"{site.origin}{path}", wait_until="domcontentloaded"
        )  # scripts have run, those of the page too
        assert visit.page.evaluate("window.ran") is None, path
        assert visit.page.evaluate("document.querySelectorAll('a[href^=\"javascript\" i], img, iframe').length") == 0, (
            path
        )
    for request_id, text in zip(calls, HOSTILE, strict=True):
        visit.page.goto(f"{site.origin}/admin/usage/{request_id}")
        visit.page.get_by_role("button", name="Show what was sent").click()
        expect(visit.page.locator(".code pre").first).to_contain_text(text.replace('"', '\\"')[:6])
        assert visit.page.evaluate("window.ran") is None
    assert visit.elsewhere == []
    assert visit.complaints == []


def test_cells_of_an_export_are_no_formulas_t031(site: Site, visit: Visitor) -> None:
    cookie = "; ".join(f"{each['name']}={each['value']}" for each in visit.context.cookies())
    oid = unique("=cmd()")

    async def exported() -> str:
        await site.house.admin("POST", "users", {"user_oid": oid}, expect=201)
        key = await site.house.key(oid)
        answer = await site.house.chat(key, "demo")
        await site.house.record(answer.header("x-request-id") or "")
        port = site.house.gateway.port
        told = await raw_http.call(port, "GET", f"/admin/usage/export?user={_q(oid)}", headers={"cookie": cookie})
        assert told.status == 200
        assert (told.header("content-disposition") or "").startswith("attachment")
        return told.text

    header, row = site.run(exported()).splitlines()
    assert "user_oid" in header
    assert f"'{oid}" in row


def _q(text: str) -> str:
    return quote(text, safe="")
