"""T056: files under /static, asked for in every way that once did harm somewhere."""

from __future__ import annotations

import gzip
import time

import pytest

from app.admin.assets import STATIC_FOLDER, asset_url
from tests.admin.conftest import Site
from tests.kit import raw_http
from tests.kit.raw_http import RawResponse
from tests.kit.stalls import stalled_s


def get(site: Site, path: str, **headers: str) -> RawResponse:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return site.run(raw_http.call(site.house.gateway.port, "GET", path, headers=named))


@pytest.mark.parametrize(
    "path",
    [
        *("/static/..%2fpages/keys.py", "/static/%2e%2e/visit.py", "/static/admin/..%2f..%2f..%2fconfig.py"),
        *("/static/admin/", "/static/admin", "/static/", "/static/.gitignore", "/static//etc/passwd", "/static/%00"),
        *(
            "/static/admin/%2e%2e/%2e%2e/visit.py",
            "/static/..%5cvisit.py",
            "/static/vendor/vendor.lock/",
            "/static/x\u00e9",
        ),
    ],
)
def test_nothing_outside_of_the_folder_is_found_t056(site: Site, path: str) -> None:
    assert get(site, path.encode("ascii", "ignore").decode()).status == 404


def test_a_flood_of_ranges_is_refused_unread_t056(site: Site) -> None:
    flood = "bytes=" + ",".join(["0-"] * 10_000)
    began = time.monotonic()
    answer = get(site, "/static/vendor/swagger-ui/swagger-ui-bundle.js", range=flood)
    took_s = time.monotonic() - began - stalled_s(began)
    assert answer.status in (416, 431, 400)
    assert len(answer.body) < 1000
    assert took_s < 2.0  # 100 ms where nobody else works on the machine
    assert get(site, asset_url("admin/admin.css"), range="bytes=0-9,20-29").status == 416


def test_files_come_compressed_for_ever_by_their_hash_and_are_revalidated_without(site: Site) -> None:
    url, content = asset_url("admin/admin.css"), (STATIC_FOLDER / "admin" / "admin.css").read_bytes()
    packed = get(site, url, accept_encoding="gzip, br")
    plain = get(site, url.partition("?")[0])
    assert gzip.decompress(packed.body) == content == plain.body
    assert "immutable" in (packed.header("cache-control") or "")
    assert plain.header("cache-control") == "no-cache"
    assert packed.header("vary") == "accept-encoding"
    again = get(site, url.partition("?")[0], if_none_match=plain.header("etag") or "")
    assert (again.status, again.body) == (304, b"")
