"""Used by everybody: by keyboard, on a phone, in the theme and the time zone that the reader has."""

from __future__ import annotations

import hashlib

from playwright.sync_api import Browser, expect

from tests.admin.conftest import VENDOR, Site, Visitor, faults_of, visitor


def test_axe_would_notice(site: Site, visit: Visitor) -> None:
    visit.open("/admin/keys")
    visit.page.evaluate("document.querySelector('main').append(document.createElement('button'))")
    assert any("button-name" in fault for fault in faults_of(visit))


def test_on_a_phone_the_menu_opens_and_leads_on(site: Site, browser: Browser) -> None:
    visit = visitor(browser, site, viewport={"width": 390, "height": 844}, has_touch=True)
    visit.open("/admin/")
    visit.page.locator("[data-menu]").click()
    visit.page.get_by_role("link", name="Keys", exact=True).click()
    visit.page.wait_for_url("**/admin/keys")
    visit.context.close()


def test_rows_are_walked_and_opened_by_keyboard(site: Site, visit: Visitor) -> None:
    page = visit.page
    visit.open("/admin/keys")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    first = page.locator('tr[aria-selected="true"] [data-open]')
    wanted = first.get_attribute("href")
    page.keyboard.press("x")
    expect(page.get_by_text("1 selected")).to_be_visible()
    title = page.locator("h1").inner_text()
    first.focus()
    page.keyboard.press("Enter")
    page.wait_for_url(f"**{wanted}")
    expect(page.locator("h1")).not_to_have_text(title)  # the address changes first, and then the page with its field
    page.keyboard.press("/")
    expect(page.locator("#find")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#find")).not_to_be_focused()
    page.keyboard.type("gu")  # in one go: the second key is waited for as long as a person takes
    page.wait_for_url("**/admin/usage")
    assert visit.complaints == []


def test_the_chosen_theme_stays_and_is_not_the_systems(site: Site, browser: Browser) -> None:
    visit = visitor(browser, site, color_scheme="light")
    visit.open("/admin/keys")
    dark = "getComputedStyle(document.body).backgroundColor"
    before = visit.page.evaluate(dark)
    visit.page.get_by_label("Switch between light and dark").click()
    after = visit.page.evaluate(dark)
    visit.open("/admin/users")
    assert before != after == visit.page.evaluate(dark)
    visit.context.close()


def test_times_are_the_readers_own(site: Site, browser: Browser) -> None:
    visit = visitor(browser, site, timezone_id="Asia/Tokyo", locale="en-GB")
    visit.open(f"/admin/usage/{site.company.calls[0]}")
    shown = visit.page.locator("time[data-exact]").first
    told = visit.page.evaluate(
        "el => new Date(el.dateTime).toLocaleString('en-GB', {timeZone: 'Asia/Tokyo', hour: '2-digit', minute: '2-digit'})",
        shown.element_handle(),
    )
    assert told.split(", ")[-1] in (shown.text_content() or "")
    visit.context.close()


def test_axe_is_the_one_that_was_published() -> None:
    lines = (VENDOR / "vendor.lock").read_text().splitlines()
    locked = {name: digest for digest, name in (line.split("  ", 1) for line in lines if not line.startswith("#"))}
    assert locked == {
        path.relative_to(VENDOR).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(VENDOR.rglob("*"))
        if path.is_file() and path.name != "vendor.lock"
    }
