"""What this installation runs on: its settings, its processes, its stores."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import SecretStr
from starlette.responses import Response

from app import __version__
from app.admin.visit import Family, Visit
from app.config import Settings
from app.exceptions import DependencyUnavailable
from app.storage.overview_ports import Replica

family = Family()

HIDDEN = frozenset({"database_url", "redis_url", "alert_webhook_url"})
"""No secrets by type, but they hold passwords, or tokens in their paths."""


@dataclass(frozen=True, slots=True)
class Shown:
    name: str
    value: str
    is_default: bool


@family.get("/settings")
async def show_settings(visit: Visit) -> Response:
    services = visit.services
    try:
        replicas: list[Replica] | None = await services.presence.replicas()
    except DependencyUnavailable:
        replicas = None
    return visit.page(
        "settings/page.html",
        settings=[shown(services.settings, name) for name in Settings.model_fields],
        replicas=replicas,
        revision=services.catalog.revision,
        health=await services.health.report(),
        depth=services.usage_log.dropped_contents,
        version=__version__,
    )


def shown(current: Settings, name: str) -> Shown:
    value = getattr(current, name)
    is_default = value == Settings.model_fields[name].default
    if isinstance(value, SecretStr):
        text = "set" if value.get_secret_value() else "not set"
    elif name in HIDDEN:
        text = "set" if value else "not set"
    elif isinstance(value, tuple | list | frozenset):
        text = ", ".join(map(str, value)) or "none"
    else:
        text = "none" if value in (None, "") else str(value)
    return Shown(name.upper(), text, is_default)
