"""The pictures of the README, taken of the real pages: `SCREENSHOTS=1 pytest tests/admin/test_screenshots.py` writes docs/images.

Otherwise the same pages are taken and thrown away, which shows that they still can be.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.admin.conftest import Site, visitor

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
SIZE = {"width": 1280, "height": 800}
MAX_BYTES = 1_500_000
"""Of all of them together: a clone of the repository is not to be slow because of its pictures."""


def pictures(site: Site) -> dict[str, str]:
    company = site.company
    return {
        "overview": "/admin/?range=30d",
        "keys": "/admin/keys?sort=name",
        "call": f"/admin/usage/{company.calls[3]}",
        "model": "/admin/model?name=gpt-4o",
        "usage": "/admin/usage",
    }


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_main_pages_can_be_shown(site: Site, browser: Browser, theme: str) -> None:
    is_kept = os.environ.get("SCREENSHOTS") == "1"
    visit = visitor(browser, site, viewport=SIZE, color_scheme=theme, locale="en-US", timezone_id="UTC")
    with tempfile.TemporaryDirectory() as away:
        folder = IMAGES if is_kept else Path(away)
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in pictures(site).items():
            visit.open(path)
            if name == "overview":
                visit.page.wait_for_selector(".u-legend")
            visit.page.evaluate("document.fonts.ready.then(() => 1)")
            target = folder / f"{name}-{theme}.png"
            visit.page.screenshot(path=target)
            assert target.stat().st_size > 10_000
    visit.context.close()


def test_the_pictures_are_small_enough_for_a_repository() -> None:
    assert sum(path.stat().st_size for path in IMAGES.glob("*.png")) <= MAX_BYTES
