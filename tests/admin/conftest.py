"""One gateway with a month behind it, and one browser, for all tests of the dashboard."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from app.embedded import PostgresServer, ValkeyServer
from tests.admin.company import Company, found_company
from tests.e2e.conftest import environment
from tests.e2e.house import ADMIN_TOKEN, House
from tests.kit.processes import GatewayProcess, UpstreamProcess

T = TypeVar("T")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
CALLS, DAYS = 3000, 58
VENDOR = Path(__file__).resolve().parents[1] / "vendor"
AXE = (VENDOR / "axe-core" / "axe.min.js").read_text()
READY = "html[data-ready='yes']"
"""By selector: to wait for a function the driver evaluates strings, which the pages' policy forbids."""
expect.set_options(timeout=30_000)
"""As long as a click is waited for: with more work than cores a page has taken longer than the usual five seconds to follow its answer."""
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


@dataclass(slots=True)
class Site:
    """A gateway whose dashboard is looked at."""

    house: House
    company: Company

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it now. The browser's driver keeps a loop in this thread, so in another one."""
        with ThreadPoolExecutor(1) as elsewhere:
            return elsewhere.submit(asyncio.run, work).result()

    @property
    def origin(self) -> str:
        # By name: browsers keep `Secure` cookies of localhost also without TLS.
        return f"http://localhost:{self.house.gateway.port}"


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="gateway-pages-") as home:
        postgres = PostgresServer(Path(home) / "postgres", durable=False, on_progress=lambda _: None)
        valkey = ValkeyServer(Path(home) / "valkey", durable=False, on_progress=lambda _: None)
        postgres.start()
        valkey.start()
        env = environment(postgres.url, valkey.url)
        gateway, upstream = GatewayProcess(env), UpstreamProcess()
        try:
            with ThreadPoolExecutor(1) as elsewhere:
                made = elsewhere.submit(asyncio.run, _opened(gateway, upstream, postgres.url, valkey.url, env)).result()
            yield made
        finally:
            gateway.destroy()
            upstream.destroy()
            valkey.stop()
            postgres.stop()


async def _opened(
    gateway: GatewayProcess, upstream: UpstreamProcess, database_url: str, redis_url: str, env: dict[str, str]
) -> Site:
    async with asyncio.TaskGroup() as group:
        group.create_task(gateway.start())
        group.create_task(upstream.start())
    house = House(gateway, upstream, database_url, redis_url, env)
    return Site(house, await found_company(house, calls=CALLS, days=DAYS))


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """One for all of them. Its driver keeps a loop in the thread, so tests of this package run coroutines by `Site.run`."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@dataclass(slots=True)
class Visitor:
    """A browser that is signed in, and what it complained of."""

    context: BrowserContext
    page: Page
    origin: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def open(self, path: str) -> None:
        self.page.goto(f"{self.origin}{path}")
        self.page.wait_for_selector(READY, state="attached")

    def note(self, kind: str, text: str) -> None:
        """A refusal that a test asks for is told by its status; the browser grumbles about it all the same."""
        if kind in ("error", "warning") and "the server responded with a status of 4" not in text:
            self.complaints.append(text)

    @property
    def elsewhere(self) -> list[str]:
        return [url for url in self.requests if not url.startswith((self.origin + "/", "data:", "blob:"))]


def visitor(browser: Browser, site: Site, *, token: str = ADMIN_TOKEN, **options: object) -> Visitor:
    context = browser.new_context(**options)  # type: ignore[arg-type]
    page = context.new_page()
    visitor = Visitor(context, page, site.origin)
    page.on("request", lambda request: visitor.requests.append(request.url))
    page.on("pageerror", lambda error: visitor.complaints.append(f"error {error}"))
    page.on("console", lambda told: visitor.note(told.type, told.text))
    context.add_init_script(
        "addEventListener('securitypolicyviolation', e => console.error('violation', e.violatedDirective, e.blockedURI))"
    )
    page.goto(f"{site.origin}/admin/")
    page.get_by_label("Administrator token").fill(token)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_selector(".frame")
    return visitor


@pytest.fixture
def visit(browser: Browser, site: Site) -> Iterator[Visitor]:
    made = visitor(browser, site)
    yield made
    made.context.close()


STILL = """async () => {
  await document.fonts.ready;
  const frame = () => new Promise(done => requestAnimationFrame(done));
  const places = () => [innerWidth, ...[...document.querySelectorAll('main *')].map(e => {
    const at = e.getBoundingClientRect();
    return [at.x, at.y, at.width, at.height].map(Math.round);
  })].join();
  for (let before = '', now = places(), frames = 0; before !== now && frames < 100; frames++) {
    before = now;
    await frame();
    await frame();
    now = places();
  }
}"""
"""Until two frames have passed in which nothing has moved: fonts are there, charts are drawn, and the window has its size."""


def faults_of(visit: Visitor, rules: list[str] = WCAG) -> list[str]:
    """What axe finds, as "rule: element"; by default by all rules of WCAG 2.2 AA. What it finds must be there a second time: on a busy
    machine it has measured pages that were still being laid out."""
    # Through the debugger: the page's own policy lets no such script in.
    if not visit.page.evaluate("'axe' in window"):
        visit.page.evaluate(AXE)
    visit.page.evaluate(STILL)
    if found := _found(visit, rules):
        visit.page.wait_for_timeout(500)
        visit.page.evaluate(STILL)
        found = _found(visit, rules)
    return found


def _found(visit: Visitor, rules: list[str]) -> list[str]:
    found = visit.page.evaluate(
        "rules => axe.run(document, {runOnly: rules, resultTypes: ['violations']}).then(r => r.violations)", rules
    )
    return [
        f"{each['id']} ({each['impact']}): {node['target']} {node.get('failureSummary', '')[:160]}"
        for each in found
        for node in each["nodes"]
        if each["impact"] in ("serious", "critical")
    ]
