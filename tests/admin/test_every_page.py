"""Every page of the dashboard: it is there, asks nobody else for anything, breaks no policy, and is readable for everybody."""

from __future__ import annotations

from statistics import median

import pytest

from tests.admin.conftest import READY, Site, Visitor, faults_of

PARTS = 4
"""Of the pages, each a test of its own: all of them in one would be long."""


def pages_of(site: Site) -> dict[str, str]:
    company = site.company
    key, _ = company.keys[0]
    endpoint = company.endpoints["gpt-4o"][0]
    return {
        "overview": "/admin/?range=24h",
        "overview of a month": "/admin/?range=30d",
        "search": "/admin/search?q=liskov",
        "keys": "/admin/keys",
        "no keys": "/admin/keys?q=nothing-is-called-so",
        "new key": "/admin/keys/new",
        "key": f"/admin/keys/{key}",
        "edit key": f"/admin/keys/{key}/edit",
        "delete key": f"/admin/keys/{key}/delete",
        "users": "/admin/users",
        "new user": "/admin/users/new",
        "user": "/admin/user?oid=grace.hopper",
        "edit user": "/admin/user/edit?oid=grace.hopper",
        "delete user": "/admin/user/delete?oid=grace.hopper",
        "apps": "/admin/apps",
        "new app": "/admin/app/new",
        "app": "/admin/apps/crm",
        "edit app": "/admin/apps/crm/edit",
        "delete app": "/admin/apps/crm/delete",
        "models": "/admin/models",
        "new model": "/admin/models/new",
        "model": "/admin/model?name=gpt-4o",
        "edit model": "/admin/model/edit?name=gpt-4o",
        "delete model": "/admin/model/delete?name=gpt-4o",
        "new endpoint": "/admin/endpoints/new?model=gpt-4o",
        "endpoint": f"/admin/endpoints/{endpoint}",
        "edit endpoint": f"/admin/endpoints/{endpoint}/edit",
        "delete endpoint": f"/admin/endpoints/{endpoint}/delete",
        "usage": "/admin/usage",
        "usage filtered": "/admin/usage?outcome=timeout&period=30d",
        "call": f"/admin/usage/{company.calls[0]}",
        "alerts": "/admin/alerts",
        "audit": "/admin/audit",
        "playground": "/admin/playground",
        "settings": "/admin/settings",
        "administrators": "/admin/admins",
        "new administrator": "/admin/admins/new",
    }


@pytest.mark.parametrize("part", range(PARTS))
def test_every_page_in_both_themes_and_on_a_phone(site: Site, visit: Visitor, part: int) -> None:
    """Each is there and says what it is, axe finds nothing serious, nothing comes from elsewhere, no policy is broken."""
    faults: dict[str, object] = {}
    for name, path in list(pages_of(site).items())[part::PARTS]:
        answer = visit.page.goto(f"{site.origin}{path}", wait_until="domcontentloaded")
        assert answer is not None
        assert answer.status == 200, (name, path)
        visit.page.wait_for_selector(READY, state="attached")
        assert visit.page.locator("h1").count() == 1, name
        # Without motion: a colour on its way from one theme to the other has the contrast of neither.
        visit.page.emulate_media(color_scheme="light", reduced_motion="reduce")
        if found := faults_of(visit):
            faults[name] = found
        visit.page.emulate_media(color_scheme="dark")
        if found := faults_of(visit, rules=["color-contrast", "link-in-text-block"]):
            faults[f"{name}, dark"] = found
        visit.page.set_viewport_size({"width": 390, "height": 844})
        if (width := visit.page.evaluate("document.documentElement.scrollWidth")) > 390:
            faults[f"{name}, on a phone"] = width
        visit.page.set_viewport_size({"width": 1280, "height": 800})
    assert faults == {}
    assert visit.elsewhere == []
    assert visit.complaints == []


def test_what_is_not_there_is_told_in_the_frame_with_a_way_back(site: Site, visit: Visitor) -> None:
    for path in (
        "/admin/nowhere",
        "/admin/keys/no-such-key",
        "/admin/user?oid=nobody",
        "/admin/model",
        "/admin/usage/x",
    ):
        answer = visit.page.goto(f"{site.origin}{path}")
        assert answer is not None
        assert answer.status == 404, path
        assert visit.page.get_by_role("heading", name="There is nothing here").is_visible()
        assert visit.page.get_by_role("link", name="Go to the overview").is_visible()
    assert faults_of(visit) == []


MAIN_PAGES = ("overview", "keys", "usage", "call", "model", "playground")
FIRST_PAINT = """new Promise(done => new PerformanceObserver(seen => {
  const paint = seen.getEntriesByName('first-contentful-paint')[0];
  if (paint) done(paint.startTime);
}).observe({type: 'paint', buffered: true}))"""
PAINTED_MS = 2_000
"""Far above the goal of 500 ms: tests share the machine. Measured at a load of 3: 72 to 104 ms."""


def test_the_main_pages_are_painted_soon(site: Site, visit: Visitor) -> None:
    """The median first contentful paint of a warm gateway's pages, files in the browser's cache."""
    medians = {name: median(paint_ms(visit, pages_of(site)[name]) for _ in range(3)) for name in MAIN_PAGES}
    assert {name: paint for name, paint in medians.items() if paint > PAINTED_MS} == {}


def paint_ms(visit: Visitor, path: str) -> float:
    visit.page.goto(f"{visit.origin}{path}")
    return float(visit.page.evaluate(FIRST_PAINT))


def test_a_page_weighs_little(site: Site, visit: Visitor) -> None:
    """≤ 150 kB of assets compressed, of the page that has the most of them."""
    sizes: dict[str, int] = {}
    session = visit.context.new_cdp_session(visit.page)
    session.send("Network.enable")
    session.send("Network.setCacheDisabled", {"cacheDisabled": True})
    urls: dict[str, str] = {}
    session.on("Network.responseReceived", lambda told: urls.update({told["requestId"]: told["response"]["url"]}))
    session.on(
        "Network.loadingFinished",
        lambda told: sizes.update({urls.get(told["requestId"], "?"): int(told["encodedDataLength"])}),
    )
    visit.open("/admin/?range=24h")
    visit.page.wait_for_selector(".u-legend")

    def loaded() -> dict[str, int]:
        return {url: size for url, size in sizes.items() if "/static/" in url}

    for _ in range(200):  # the browser tells of a file a moment after the page has it
        if any("uPlot" in url for url in loaded()):
            break
        visit.page.wait_for_timeout(50)
    assets = loaded()
    assert any("uPlot" in url for url in assets)
    assert sum(assets.values()) <= 150_000, assets
