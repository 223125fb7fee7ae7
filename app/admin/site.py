"""All pages of the dashboard, put together."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.routing import Route

from app.admin.pages import (
    admins,
    alerts,
    apps,
    audit,
    endpoints,
    keys,
    models,
    overview,
    playground,
    settings,
    usage,
    users,
)
from app.admin.visit import NOWHERE

FAMILIES = (overview, keys, users, apps, models, endpoints, usage, alerts, audit, playground, settings, admins)


def add_pages(app: FastAPI) -> None:
    """After the API's routes: the last one here answers whatever under /admin is no page."""
    pages: list[Route] = [route for module in FAMILIES for route in module.family.routes]
    # Fixed paths first: `/endpoints/new` is no endpoint's id.
    pages.sort(key=lambda route: "{" in route.path)
    app.router.routes.extend(pages)
    app.router.routes.append(NOWHERE)
