"""Every form, as people fill them in: with JavaScript nothing is loaded whole, without it everything works all the same."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.admin.conftest import Site, Visitor, visitor
from tests.e2e.house import House, Json, unique
from tests.kit import raw_http


@pytest.fixture(params=[True, False], ids=["with JavaScript", "without JavaScript"])
def hand(request: pytest.FixtureRequest, browser: Browser, site: Site) -> Iterator[Visitor]:
    made = visitor(browser, site, java_script_enabled=request.param)
    made.page.on("dialog", lambda dialog: dialog.accept())
    yield made
    assert made.complaints == []
    made.context.close()


def told(site: Site, path: str) -> Json:
    return site.run(site.house.admin("GET", path, expect=200))


def test_a_user_is_made_changed_renewed_suspended_and_deleted_with_its_keys(site: Site, hand: Visitor) -> None:
    page, oid = hand.page, unique("form/user")
    page.goto(f"{site.origin}/admin/users/new")
    page.get_by_label("Oid").fill("no spaces")
    page.get_by_label("E-mail").fill("not an address")
    page.get_by_role("button", name="Add the user").click()
    expect(page.locator("#d-user_oid")).to_contain_text("visible ASCII")
    assert page.get_by_label("Oid").get_attribute("aria-invalid") == "true"
    page.get_by_label("Oid").fill(oid)
    page.get_by_role("button", name="Add the user").click()
    expect(page.locator("#d-email")).to_contain_text("not an e-mail address")
    page.get_by_label("E-mail").fill("form@example.com")
    page.locator('[name="budgets.0.hard_limit_usd"]').fill("12.50")
    page.locator('[name="limits.0.limit"]').fill("100")
    page.locator('[name="limits.0.window_seconds"]').fill("5m")
    page.get_by_role("button", name="Add the user").click()
    expect(page.get_by_role("status")).to_contain_text("Created")
    made = told(site, f"users/{oid}")
    assert made["budgets"][0]["hard_limit_usd"] == "12.5"
    assert made["limits"][0] == {"kind": "requests", "limit": 100, "window_seconds": 300}

    page.get_by_role("button", name="Suspend").click()
    expect(page.get_by_text("every call is refused")).to_be_visible()
    page.get_by_role("button", name="+30 days").click()
    expect(page.get_by_role("status")).to_contain_text("Renewed")
    assert told(site, f"users/{oid}")["payment_status"] == "active"

    page.get_by_role("link", name="New key").first.click()
    expect(page.get_by_role("heading", name="New key")).to_be_visible()
    page.locator("#f-name").fill("of the form")
    page.get_by_role("button", name="Make the key").click()
    expect(page.locator("#secret")).to_have_value(re.compile("^sk-"))
    page.goto(f"{site.origin}/admin/user?oid={oid.replace('/', '%2F')}")
    page.get_by_role("link", name="Delete…").click()
    expect(page.get_by_text("of the form")).to_be_visible()
    page.get_by_role("button", name="Delete the user and 1 key").click()
    expect(page.get_by_role("status")).to_contain_text("Deleted")
    assert site.run(site.house.admin("GET", f"users/{oid}"))["error"]["code"] == "not_found"


def test_a_key_is_edited_rotated_and_revoked(site: Site, hand: Visitor) -> None:
    page = hand.page
    oid = site.run(site.house.user())
    made = site.run(site.house.admin("POST", "keys", {"user_oid": oid, "name": "k"}, expect=201))
    path = f"{site.origin}/admin/keys/{made['id']}"
    page.goto(f"{path}/edit")
    page.locator("#f-name").fill("renamed")
    page.locator("#f-labels").fill("team=search\nenv=prod")
    page.get_by_label("Expires").fill("not a date")
    page.locator('[name="budgets.0.soft_limit_usd"]').fill("20")
    page.locator('[name="budgets.0.hard_limit_usd"]').fill("1o")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#d-expires_at")).to_contain_text("neither a day")
    expect(page.locator(".error").filter(has_text="decimal")).to_be_visible()
    page.get_by_label("Expires").fill("2027-12-31")
    page.locator('[name="budgets.0.hard_limit_usd"]').fill("10")
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".error").filter(has_text="hard limit")).to_be_visible()
    assert page.locator("#f-name").input_value() == "renamed"
    page.locator('[name="budgets.0.soft_limit_usd"]').fill("8")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status")).to_contain_text("Saved")
    key = told(site, f"keys/{made['id']}")
    assert key["name"] == "renamed"
    assert key["labels"] == {"team": "search", "env": "prod"}
    assert key["budgets"][0]["soft_limit_usd"] == "8"
    assert key["expires_at"].startswith("2027-12-31T23:59:59")

    page.get_by_role("button", name="Rotate").click()
    expect(page.locator("#secret")).to_have_value(re.compile("^sk-"))
    assert page.locator("#secret").input_value() != made["key"]
    page.goto(path)
    assert made["key"] not in page.content()
    page.get_by_role("button", name="Revoke for good").click()
    expect(page.get_by_role("status")).to_contain_text("Revoked")
    assert told(site, f"keys/{made['id']}")["status"] == "revoked"


def test_what_somebody_else_has_changed_meanwhile_is_not_overwritten(site: Site, visit: Visitor) -> None:
    made = site.run(site.house.admin("POST", "keys", {"user_oid": site.company.users[0], "name": "k"}, expect=201))
    visit.open(f"/admin/keys/{made['id']}/edit")
    site.run(site.house.admin("PATCH", f"keys/{made['id']}", {"name": "theirs"}, expect=200))
    visit.page.locator("#f-name").fill("mine")
    visit.page.get_by_role("button", name="Save").click()
    expect(visit.page.get_by_role("alert")).to_contain_text("Somebody else has changed this")
    assert visit.page.locator("#f-name").input_value() == "mine"
    assert told(site, f"keys/{made['id']}")["name"] == "theirs"


def test_a_model_an_endpoint_and_their_prices(site: Site, hand: Visitor) -> None:
    page, name = hand.page, unique("vendor/model")
    page.goto(f"{site.origin}/admin/models/new")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Fallbacks").fill("no-such-model")
    page.locator("#f-price_policy").select_option("own")
    page.get_by_label("Input", exact=True).fill("2.50")
    page.get_by_role("button", name="Register the model").click()
    expect(page.locator('[id="d-price.output_usd_per_mtok"]')).to_contain_text("needed")
    page.get_by_label("Output", exact=True).fill("10")
    page.get_by_role("button", name="Register the model").click()
    expect(page.locator("#d-fallbacks")).to_contain_text("no other model")
    page.get_by_label("Fallbacks").fill("gpt-4o")
    page.get_by_text("Advanced").click()
    page.get_by_label("Keep together").select_option("user")
    page.get_by_label("Further endpoints").fill("99")
    page.get_by_label("Shadow").fill("gpt-4o-mini")
    page.get_by_role("button", name="Register the model").click()
    expect(page.locator("#d-max_retries")).to_be_visible()
    expect(page.locator('[id="d-shadow.percent"]')).to_contain_text("needed")
    page.get_by_label("Further endpoints").fill("1")
    page.get_by_label("Share of the calls").fill("2.5")
    page.get_by_role("button", name="Register the model").click()
    expect(page.get_by_role("status")).to_contain_text("Created")
    assert page.get_by_text("$2.5").first.is_visible()
    made = told(site, f"models/{quote(name, safe='')}")
    assert (made["sticky"], made["max_retries"]) == ("user", 1)
    assert made["shadow"] == {"model": "gpt-4o-mini", "percent": 2.5}

    page.get_by_role("link", name="New endpoint").click()
    expect(page.get_by_role("heading", name="New endpoint")).to_be_visible()
    page.get_by_label("Address").fill("http://169.254.169.254/v1")
    page.get_by_label("API key").fill("sk-upstream-secret-of-the-form")
    page.get_by_role("button", name="Register the endpoint").click()
    expect(page.locator("#d-api_base")).to_be_visible()
    page.get_by_label("Address").fill(site.house.upstream.base_url)
    page.get_by_text("when the breaker opens").click()
    page.get_by_label("Faults in a row").fill("0")
    page.get_by_role("button", name="Register the endpoint").click()
    expect(page.locator('[id="d-breaker.faults_in_row"]')).to_be_visible()
    page.get_by_label("Faults in a row").fill("7")
    page.get_by_label("Slow from, seconds").fill("2.5")
    page.get_by_label("API key").fill("sk-upstream-secret-of-the-form")
    page.get_by_role("button", name="Register the endpoint").click()
    expect(page.get_by_role("status")).to_contain_text("Created")
    assert "secret-of-the-form" not in page.content()
    breaker = told(site, f"endpoints/{page.url.rpartition('/')[2].partition('?')[0]}")["breaker"]
    assert (breaker["faults_in_row"], breaker["slow_first_token_seconds"], breaker["minimum_calls"]) == (7, 2.5, 20)
    page.get_by_role("button", name="Check now").click()
    expect(page.get_by_role("status")).to_contain_text("It is there")
    page.get_by_role("button", name="Drain").click()
    expect(page.get_by_role("status")).to_contain_text("Draining")
    page.get_by_role("button", name="Back into rotation").click()
    expect(page.get_by_role("status")).to_contain_text("Back in rotation")
    page.get_by_role("button", name="Reset breaker").click()
    expect(page.get_by_role("status")).to_contain_text("reset")
    page.get_by_role("link", name="Delete…").click()
    page.get_by_role("button", name="Delete the endpoint").click()
    expect(page.get_by_role("alert")).to_be_visible()
    page.get_by_label("Also if it is the last one").check()
    page.get_by_role("button", name="Delete the endpoint").click()
    expect(page.get_by_role("status")).to_contain_text("Deleted")
    page.get_by_role("link", name="Delete…").click()
    page.get_by_role("button", name="Delete the model").click()
    expect(page.get_by_role("status")).to_contain_text("Deleted")


def test_a_form_on_its_way_is_out_of_reach_and_what_was_opened_stays_open(site: Site, visit: Visitor) -> None:
    page, waiting = visit.page, list[Route]()
    visit.open("/admin/models/new")
    page.get_by_label("Name").fill(unique("vendor/model"))
    page.get_by_label("Fallbacks").fill("no-such-model")
    page.route("**/admin/models/new", lambda route: waiting.append(route), times=1)
    page.get_by_role("button", name="Register the model").click()
    form = page.locator('form[aria-busy="true"]')
    expect(form).to_have_count(1)
    expect(page.get_by_role("button", name="Register the model")).to_be_disabled()
    expect(page.get_by_label("Fallbacks")).to_be_disabled()
    page.get_by_text("Advanced").click()  # not a field: it may be opened while the answer is on its way
    waiting[0].continue_()
    expect(page.locator("#d-fallbacks")).to_contain_text("no other model")
    expect(form).to_have_count(0)
    expect(page.get_by_label("Keep together")).to_be_visible()
    expect(page.get_by_label("Fallbacks")).to_be_focused()

    page.route("**/admin/models/new", lambda route: route.abort(), times=1)
    page.get_by_role("button", name="Register the model").click()
    expect(page.get_by_role("button", name="Register the model")).to_be_enabled()
    assert page.get_by_label("Fallbacks").input_value() == "no-such-model"


def test_an_app_and_an_administrator(site: Site, hand: Visitor) -> None:
    page, app_id = hand.page, unique("app")
    page.goto(f"{site.origin}/admin/app/new")
    page.get_by_label("Id", exact=True).fill("no good id")
    page.get_by_role("button", name="Register the app").click()
    expect(page.locator("#d-app_id")).to_contain_text("must be 1 to 100")
    page.get_by_label("Id", exact=True).fill(app_id)
    page.get_by_label("Own secret only").check()
    page.get_by_role("button", name="Register the app").click()
    expect(page.locator("#secret")).to_be_visible()
    assert told(site, f"apps/{app_id}")["own_secret_only"] is True
    page.get_by_role("link", name="Go to the app").click()
    page.get_by_role("button", name="Switch off").click()
    expect(page.get_by_text("its calls are refused")).to_be_visible()
    page.get_by_role("link", name="Delete…").click()
    page.get_by_role("button", name="Delete the app").click()
    expect(page.get_by_role("status")).to_contain_text("Deleted")

    name = unique("Ada")
    page.goto(f"{site.origin}/admin/admins/new")
    page.get_by_role("button", name="Make the token").click()
    expect(page.locator("#d-name")).to_contain_text("empty")
    page.get_by_label("Name").fill(name)
    page.get_by_role("button", name="Make the token").click()
    expect(page.locator("#secret")).to_be_visible()
    page.goto(f"{site.origin}/admin/admins")
    row = page.locator('[aria-label="List of administrators"] tr').filter(has_text=name)
    row.get_by_role("button", name="Revoke").click()
    expect(page.locator("tr").filter(has_text=name)).to_contain_text("revoked")


def test_many_keys_are_revoked_at_once_and_filters_stay_in_the_address(site: Site, visit: Visitor) -> None:
    page = visit.page
    page.on("dialog", lambda dialog: dialog.accept())
    oid = site.run(site.house.user())
    ids = [
        site.run(site.house.admin("POST", "keys", {"user_oid": oid, "name": f"bulk key {n}"}))["id"] for n in range(3)
    ]
    visit.open(f"/admin/keys?user={oid}")
    before = page.evaluate("performance.timeOrigin")
    page.get_by_label("Select all").check()
    page.get_by_role("button", name="Revoke").click()
    expect(page.get_by_role("status")).to_contain_text("Revoked")
    assert {told(site, f"keys/{each}")["status"] for each in ids} == {"revoked"}
    page.goto(f"{site.origin}/admin/keys")
    before = page.evaluate("performance.timeOrigin")
    page.get_by_label("Status").select_option("revoked")
    page.wait_for_url("**status=revoked**")
    page.get_by_label("Search keys", exact=True).fill("bulk key 1")
    page.wait_for_url("**q=bulk**")
    expect(page.locator("tbody tr")).to_have_count(1)
    page.get_by_role("link", name="bulk key 1").click()
    page.wait_for_url(f"**/admin/keys/{ids[1]}")
    assert page.evaluate("performance.timeOrigin") == before, "a whole page was loaded"
    assert visit.complaints == []


def test_rows_of_limits_are_added_and_taken_away(site: Site, visit: Visitor) -> None:
    page = visit.page
    visit.open("/admin/users/new")
    limits = page.locator('[data-rows="limits"]')
    limits.get_by_role("button", name="Add a limit").click()
    limits.locator('[name="limits.1.limit"]').fill("5")
    limits.get_by_role("button", name="Remove this limit").first.click()
    oid = unique("user")
    page.get_by_label("Oid").fill(oid)
    page.get_by_role("button", name="Add the user").click()
    expect(page.get_by_role("status")).to_contain_text("Created")
    assert [limit["limit"] for limit in told(site, f"users/{oid}")["limits"]] == [5]


def test_the_playground_sends_as_a_key_and_tells_what_it_cost(site: Site, hand: Visitor) -> None:
    page: Page = hand.page
    page.goto(f"{site.origin}/admin/playground?model=demo&key={site.company.keys[0][0]}")
    page.get_by_label("Message", exact=True).fill("Hello there")
    page.get_by_role("button", name="Send", exact=True).click()
    answer = page.locator(".said.assistant .text")
    expect(answer).not_to_have_text(re.compile(r"^…?$"))
    assert "failed" not in (page.locator(".said.assistant").get_attribute("class") or "")
    trail = told(site, "audit?action=playground.call&limit=1")["items"]
    assert trail[0]["after"]["key_id"] == site.company.keys[0][0]
    record = site.run(site.house.record(trail[0]["object_id"]))
    assert record["key_id"] == site.company.keys[0][0]
    if page.locator("[data-as]").first.is_visible():
        expect(page.locator("[data-facts]")).to_contain_text("Request id")


async def looks_at(house: House, request_id: str) -> int:
    """How many looks at the call's content are in the trail, once it is kept, which it is a moment after the call's record is."""
    async with asyncio.timeout(20):
        while (await house.record(request_id))["content"] is None:
            await asyncio.sleep(0.05)
    trail = await house.admin("GET", f"audit?object_id={request_id}", expect=200)
    return [row["action"] for row in trail["items"]].count("call.view_content")


def test_content_is_shown_when_asked_for_and_the_look_is_in_the_trail(site: Site, hand: Visitor) -> None:
    house = site.house
    answer = site.run(house.chat(site.company.secrets[0], "demo"))
    request_id = answer.header("x-request-id")
    assert request_id
    before = site.run(looks_at(house, request_id))
    hand.page.goto(f"{site.origin}/admin/usage/{request_id}")
    assert "Say hello" not in hand.page.content()
    hand.page.get_by_role("button", name="Show what was sent").click()
    expect(hand.page.locator(".code pre").first).to_contain_text("Say hello")
    trail = told(site, f"audit?object_id={request_id}")["items"]
    assert [row["action"] for row in trail].count("call.view_content") > before


def test_the_trail_is_verified_by_a_button(site: Site, hand: Visitor) -> None:
    hand.page.goto(f"{site.origin}/admin/audit")
    hand.page.get_by_role("button", name="Verify the chain").click()
    expect(hand.page.get_by_role("status")).to_contain_text("The chain holds")


def test_what_was_changed_lately_is_told_without_sign_ins_and_with_refused_attempts(site: Site, visit: Visitor) -> None:
    made = site.run(site.house.admin("POST", "admins", {"name": unique("Bo"), "role": "viewer"}, expect=201))
    bearer = {"Authorization": f"Bearer {made['token']}"}
    port, body = site.house.gateway.port, {"user_oid": unique("u")}
    refused = site.run(raw_http.call(port, "POST", "/admin/api/users", headers=bearer, json_body=body))
    assert refused.status == 403
    visit.open("/admin/")
    lately = visit.page.get_by_role("region", name="Changed lately")
    expect(lately).to_contain_text("access.refused")
    expect(lately).not_to_contain_text("session.open")
    visit.open("/admin/audit")
    expect(visit.page.get_by_text("access.refused").first).to_be_visible()
    expect(visit.page.get_by_text("session.open")).to_have_count(0)
    visit.page.get_by_label("Kind of object").select_option("all")
    expect(visit.page.get_by_text("session.open").first).to_be_visible()
    assert visit.complaints == []


def test_somebodys_session_is_ended_from_the_list(site: Site, browser: Browser, hand: Visitor) -> None:
    name = unique("Grace")
    made = site.run(site.house.admin("POST", "admins", {"name": name, "role": "viewer"}, expect=201))
    other = visitor(browser, site, token=made["token"])
    page = hand.page
    page.goto(f"{site.origin}/admin/admins")
    row = page.get_by_role("region", name="Open sessions").locator("tr").filter(has_text=name)
    expect(row).to_contain_text("Chrome on Linux")
    row.get_by_role("button", name="End").click()
    expect(page.get_by_role("status")).to_contain_text("That session was ended")
    other.page.goto(f"{site.origin}/admin/keys")
    expect(other.page.get_by_label("Administrator token")).to_be_visible()
    other.context.close()


def test_the_tiles_of_the_overview_lead_to_the_calls_behind_them(site: Site, visit: Visitor) -> None:
    visit.open("/admin/?range=30d")
    told_errors = visit.page.locator(".tile", has_text="Errors").locator(".below").text_content() or ""
    visit.page.locator(".tile", has_text="Errors").click()
    expect(visit.page.get_by_label("Outcome")).to_have_value("errors")
    outcomes = visit.page.locator("tbody tr td:nth-child(2) .badge").all_text_contents()
    assert len(outcomes) == min(50, int(told_errors.partition(" ")[0]))
    assert not {"ok", "cancelled", "refused"} & set(outcomes)
    for tile in ("Requests", "Spend", "Tokens", "Latency", "First token"):
        visit.open("/admin/?range=30d")
        visit.page.locator(".tile", has_text=tile).click()
        expect(visit.page.get_by_role("heading", name="Usage log")).to_be_visible()
        expect(visit.page.locator("tbody tr").first).to_be_visible()
    assert visit.complaints == []
