"""The API's documentation, served without internet: Swagger UI at `/docs`, ReDoc at `/redoc`, the document at `/openapi.json`.

FastAPI's own pages load their scripts from a public CDN and carry inline code. These load everything from this origin and run
under a policy that allows nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from html import escape
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount

from app.admin.assets import STATIC_FOLDER, StaticFiles, asset_url
from app.routers.data_plane_openapi import data_plane_openapi
from app.routers.openapi_examples import add_examples

__all__ = ["STATIC_FOLDER", "add_docs", "add_static", "data_plane_openapi"]

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src {styles}; connect-src 'self'; img-src 'self' data:; "
    "font-src {fonts}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SWAGGER_POLICY = _POLICY.format(styles="'self'", fonts="'self'")
_REDOC_POLICY = _POLICY.format(styles="'self' 'unsafe-inline'", fonts="'self' data:")
"""ReDoc writes its styles into the page at run time and carries its icon font as a data: URL. It shows our own document only,
and scripts stay bound to files of this origin."""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
{head}
</head>
<body>
<main id="docs"{attributes}></main>
<noscript>This page needs JavaScript. The same is in <a href="openapi.json">openapi.json</a>.</noscript>
</body>
</html>
"""


def add_static(app: FastAPI) -> None:
    """Serve `app/admin/static` under `/static`; a second call changes nothing."""
    if not any(isinstance(route, Mount) and route.path == "/static" for route in app.routes):
        app.mount("/static", StaticFiles(), name="static")


def add_docs(app: FastAPI) -> None:
    """Add the two pages and the document they show; not called at all where `DOCS_ENABLED` is false.

    The app is to be made with `docs_url=None, redoc_url=None, openapi_url=None`. What `app.openapi()` says is extended by the
    routes of the data plane, which FastAPI does not know.
    """
    add_static(app)
    _document_data_plane(app)
    for path, endpoint in (
        ("/openapi.json", _openapi_endpoint(app)),
        ("/docs", _page(_swagger_html(app.title), _SWAGGER_POLICY)),
        ("/redoc", _page(_redoc_html(app.title), _REDOC_POLICY)),
    ):
        app.add_route(path, endpoint, methods=["GET", "HEAD"], include_in_schema=False)


# ── The document ──────────────────────────────────────────────────────────────────────────────────────────────────────


_ADMIN_REFUSALS = {
    "400": "The body or the query is wrong; `param` names the field.",
    "401": "`invalid_api_key`: missing, unknown, expired and revoked tokens answer alike.",
    "403": "`forbidden`: this administrator's role may not do that.",
    "404": "`not_found`.",
    "409": "`conflict`, `in_use`: another change, or what uses the object, stands against it.",
    "412": "`version_conflict`: somebody has changed it since the version that `If-Match` names.",
    "503": "`dependency_unavailable`: the database is away. With `Retry-After`.",
}


def _document_data_plane(app: FastAPI) -> None:
    administration = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None or "x-data-plane" not in app.openapi_schema:
            app.openapi_schema = _merged(administration(), data_plane_openapi())
            add_examples(app.openapi_schema)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's own way of extending the document


def _merged(administration: dict[str, Any], data_plane: dict[str, Any]) -> dict[str, Any]:
    """Both documents in one, the data plane first: it is what most readers come for."""
    _describe_refusals(administration)
    merged = {**administration, "x-data-plane": True}
    merged["paths"] = _union(data_plane["paths"], administration.get("paths", {}))
    merged["tags"] = [*data_plane["tags"], *administration.get("tags", [])]
    ours, theirs = data_plane["components"], administration.get("components", {})
    merged["components"] = {kind: _union(ours.get(kind, {}), theirs.get(kind, {})) for kind in {**ours, **theirs}}
    return merged


def _describe_refusals(administration: dict[str, Any]) -> None:
    """Put the gateway's own refusals in the place of FastAPI's 422, which is never answered (see `app.routers.errors`)."""
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/GatewayError"}}}
    for path, operations in administration.get("paths", {}).items():
        for operation in operations.values() if path.startswith("/admin/api/") else ():
            operation["responses"].pop("422", None)
            for status, description in _ADMIN_REFUSALS.items():
                operation["responses"].setdefault(status, {"description": description, "content": content})
    for unused in ("HTTPValidationError", "ValidationError"):
        administration.get("components", {}).get("schemas", {}).pop(unused, None)


def _union(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Raises: ValueError when both describe the same thing, because one of the two would silently be lost."""
    if doubled := ours.keys() & theirs.keys():
        raise ValueError(f"documented twice: {', '.join(sorted(doubled))}")
    return {**ours, **theirs}


def _openapi_endpoint(app: FastAPI) -> Callable[[Request], Awaitable[Response]]:
    async def openapi(request: Request) -> Response:
        body = json.dumps(app.openapi(), ensure_ascii=False).encode()
        return Response(body, media_type="application/json", headers={"cache-control": "no-cache"})

    return openapi


# ── The pages ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _swagger_html(title: str) -> str:
    head = (
        f'<link rel="stylesheet" href="{_asset("vendor/swagger-ui/swagger-ui.css")}">\n'
        f'<script defer src="{_asset("vendor/swagger-ui/swagger-ui-bundle.js")}"></script>\n'
        f'<script defer src="{_asset("docs/swagger-init.js")}"></script>'
    )
    return _PAGE.format(title=escape(title), head=head, attributes="")


def _redoc_html(title: str) -> str:
    # Modules resolve imports against their own address, so the bundle's is written from the init script's folder.
    bundle = "../" + _asset("vendor/redoc/redoc.standalone.js").removeprefix("static/")
    head = f'<script type="module" src="{_asset("docs/redoc-init.js")}"></script>'
    return _PAGE.format(title=escape(title), head=head, attributes=f' data-bundle="{bundle}"')


def _asset(path: str) -> str:
    """An address relative to the page, so that a path prefix of a front server does no harm, with the content's hash."""
    return asset_url(path).removeprefix("/")


def _page(html: str, policy: str) -> Callable[[Request], Awaitable[Response]]:
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }

    async def page(request: Request) -> Response:
        return HTMLResponse(html, headers=headers)

    return page
