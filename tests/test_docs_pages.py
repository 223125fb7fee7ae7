"""/docs, /redoc and /openapi.json: they work in a real browser, load nothing from elsewhere and obey their own policy."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI
from playwright.sync_api import Page, Request, sync_playwright
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse

from app.routers.data_plane_openapi import data_plane_openapi
from app.routers.docs import STATIC_FOLDER, add_docs, add_static
from app.routers.errors import install_error_handlers

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMIUM_FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
"""As root and without a GPU; and nothing of the browser's own may look like a request of the page."""


def an_app(*, with_docs: bool = True) -> FastAPI:
    app = FastAPI(title="Gateway <test>", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/admin/api/kettles", summary="List the kettles", tags=["Kettles"])
    async def kettles() -> list[str]:
        return []

    install_error_handlers(app)
    add_static(app)
    if with_docs:
        add_docs(app)
    return app


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    yield from _served(an_app())


def _served(app: FastAPI) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", loop="asyncio"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


# ── In a browser ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Visit:
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield browser.new_page()
        browser.close()


def visit(page: Page, url: str, *, until_text: str) -> Visit:
    """Open the page, wait for the text, and note every request and every complaint of the browser."""
    seen = Visit()

    def note_request(request: Request) -> None:
        seen.requests.append(request.url)

    page.on("request", note_request)
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.on("console", lambda message: seen.complaints.append(message.text) if message.type == "error" else None)
    page.add_init_script(
        "addEventListener('securitypolicyviolation', e => console.error('violation', e.violatedDirective, e.blockedURI))"
    )
    page.goto(url)
    page.get_by_text(until_text).first.wait_for()
    page.wait_for_load_state("networkidle")
    return seen


def elsewhere(seen: Visit, origin: str) -> list[str]:
    return [url for url in seen.requests if not url.startswith((origin + "/", "data:", "blob:"))]


def test_swagger_ui_shows_both_planes_without_another_origin_or_a_violation(origin: str, page: Page) -> None:
    seen = visit(page, f"{origin}/docs", until_text="List the kettles")

    assert page.get_by_text("Ask a model").first.is_visible()
    page.get_by_text("/v1/chat/completions").first.click()
    page.get_by_text("Try it out").first.wait_for()
    assert elsewhere(seen, origin) == []
    assert seen.complaints == []
    assert f"{origin}/openapi.json" in seen.requests


def test_redoc_shows_both_planes_without_another_origin_or_a_violation(origin: str, page: Page) -> None:
    seen = visit(page, f"{origin}/redoc", until_text="Kettles")

    page.get_by_text("Calling models").first.click()
    page.get_by_text("/v1/chat/completions").first.wait_for()
    assert elsewhere(seen, origin) == []
    assert seen.complaints == []
    assert f"{origin}/openapi.json" in seen.requests


def test_the_browser_test_would_notice_a_foreign_script(page: Page) -> None:
    """The two tests above are worth what this one shows."""
    app = an_app()
    app.add_route("/spoilt", _spoilt)
    for origin in _served(app):
        seen = visit(page, f"{origin}/spoilt", until_text="spoilt")
        assert elsewhere(seen, origin) == ["http://127.0.0.1:9/foreign.js"]
        assert seen.complaints != []


async def _spoilt(request: HttpRequest) -> HTMLResponse:
    html = "<!doctype html><script src='http://127.0.0.1:9/foreign.js'></script><p>spoilt"
    return HTMLResponse(html, headers={"content-security-policy": "script-src 'self'"})


# ── Over HTTP ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_pages_allow_scripts_of_this_origin_only(origin: str, path: str) -> None:
    policy = dict(
        directive.strip().split(" ", 1)
        for directive in httpx2.get(origin + path).headers["content-security-policy"].split(";")
    )

    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert policy["connect-src"] == "'self'"
    assert "unsafe-inline" not in policy["style-src"] or path == "/redoc"


def test_titles_are_escaped(origin: str) -> None:
    assert "<title>Gateway &lt;test&gt;</title>" in httpx2.get(f"{origin}/docs").text


def test_without_add_docs_nothing_is_documented_but_assets_are_served() -> None:
    for origin in _served(an_app(with_docs=False)):
        statuses = {path: httpx2.get(origin + path).status_code for path in ("/docs", "/redoc", "/openapi.json")}
        assert statuses == {"/docs": 404, "/redoc": 404, "/openapi.json": 404}
        assert httpx2.get(f"{origin}/static/docs/swagger-init.js").status_code == 200


def test_assets_asked_for_by_their_hash_are_kept_for_ever_and_others_are_revalidated(origin: str) -> None:
    versioned = httpx2.get(f"{origin}/static/docs/swagger-init.js?v=0123")
    plain = httpx2.get(f"{origin}/static/docs/swagger-init.js")
    again = httpx2.get(f"{origin}/static/docs/swagger-init.js", headers={"if-none-match": plain.headers["etag"]})

    assert versioned.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert plain.headers["cache-control"] == "no-cache"
    assert again.status_code == 304


@pytest.mark.parametrize(
    "path",
    [
        "/static/../../config.py",
        "/static/%2e%2e/%2e%2e/config.py",
        "/static/..%2f..%2fconfig.py",
        "/static/%5c..%5c..%5cconfig.py",
        "/static//etc/passwd",
        "/static/vendor/",
        "/static/vendor",
    ],
)
def test_static_files_do_not_lead_out_of_their_folder(origin: str, path: str) -> None:
    assert _raw_get(origin, path).startswith(b"HTTP/1.1 404")


def test_the_document_holds_the_administration_and_the_data_plane(origin: str) -> None:
    document = httpx2.get(f"{origin}/openapi.json").json()

    assert {"/admin/api/kettles", *data_plane_openapi()["paths"]} == set(document["paths"])
    assert document["openapi"].startswith("3.1")
    assert _dangling_references(document) == set()


def test_a_path_described_twice_is_refused() -> None:
    app = an_app()
    app.add_api_route("/v1/models", list, methods=["GET"])

    with pytest.raises(ValueError, match="/v1/models"):
        app.openapi()


# ── Vendored files ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_vendored_files_are_those_that_were_published() -> None:
    vendor = STATIC_FOLDER / "vendor"
    lines = [line for line in (vendor / "vendor.lock").read_text().splitlines() if not line.startswith("#")]
    locked = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    found = {str(path.relative_to(vendor)): _sha256(path) for path in vendor.rglob("*") if path.is_file()}
    del found["vendor.lock"]

    assert found == locked
    for package in {Path(name).parts[0] for name in locked}:
        assert (vendor / package / "LICENSE").is_file()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _raw_get(origin: str, path: str) -> bytes:
    """The path goes out as it stands: a client library would clean it."""
    host, port = origin.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        return connection.recv(64)


def _dangling_references(document: dict[str, object]) -> set[str]:
    def references(node: object) -> Iterator[str]:
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                yield node["$ref"]
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    def leads_somewhere(reference: str) -> bool:
        node: object = document
        for part in reference.removeprefix("#/").split("/"):
            node = node.get(part) if isinstance(node, dict) else None
        return node is not None

    return {reference for reference in references(document) if not leads_somewhere(reference)}
