"""Endpoints: the upstreams that serve a model. Watched, changed, drained, deleted."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from starlette.responses import Response

from app.admin.forms import Errors, Form, checked, refusal
from app.admin.pages.editing import conflict, version_of
from app.admin.pages.endpoint_view import HOURS, view_of
from app.admin.pages.prices import price_fields, price_in, price_typed
from app.admin.visit import Family, Visit
from app.exceptions import CallerError, InUse
from app.models.schemas import BreakerShape, EndpointCreate, EndpointPatch
from app.services.endpoint_checks import Check
from app.services.manage_catalog import PUBLIC_BASES
from app.storage.management_ports import EndpointRow

family = Family()

EVENTS_SHOWN: Final = 30


@family.get("/endpoints/{endpoint_id}")
async def show_endpoint(visit: Visit) -> Response:
    return await _show(visit, None)


async def _show(visit: Visit, check: Check | None) -> Response:
    services = visit.services
    row = await services.management.endpoints.get(visit.path("endpoint_id"))
    hours = await services.overview.endpoint_hours(
        visit.now - timedelta(hours=HOURS - 1), visit.now + timedelta(hours=1)
    )
    view = await view_of(visit, row, [hour for hour in hours if hour.endpoint_id == row.id])
    prices = [each for each in await services.overview.prices(row.spec.model) if each.endpoint_id == row.id]
    events = await services.endpoint_care.events(row.id, limit=EVENTS_SHOWN, cursor=None)
    return visit.page(
        "endpoints/show.html",
        row=row,
        view=view,
        standing=view.standing,
        prices=prices,
        events=events.items,
        check=check,
    )


@family.get("/endpoints/new")
async def new_endpoint(visit: Visit) -> Response:
    return _form(visit, None, {"model": visit.query("model") or ""}, {})


@family.post("/endpoints/new")
async def create_endpoint(visit: Visit) -> Response:
    form = await visit.form()
    key = form.optional("api_key")
    body, errors = checked(EndpointCreate, {"model": form.text("model"), "api_key": key, **_body(form)})
    if body is not None:
        try:
            row = await visit.services.management.endpoints.create(visit.actor, body.spec(), body.credential())
            return visit.see_other(f"/endpoints/{row.id}", done="created")
        except CallerError as error:
            errors = refusal(error)
    return _form(visit, None, _typed(form), errors)


@family.get("/endpoints/{endpoint_id}/edit")
async def edit_endpoint(visit: Visit) -> Response:
    row = await visit.services.management.endpoints.get(visit.path("endpoint_id"))
    return _form(visit, row, _fields(row), {})


@family.post("/endpoints/{endpoint_id}/edit")
async def save_endpoint(visit: Visit) -> Response:
    commands, form = visit.services.management.endpoints, await visit.form()
    row = await commands.get(visit.path("endpoint_id"))
    whole = _body(form)
    if form.ticked("forget_key"):
        whole["api_key"] = None
    elif key := form.optional("api_key"):
        whole["api_key"] = key
    body, errors = checked(EndpointPatch, whole)
    errors = errors or conflict(form, row)
    if body is not None and not errors:
        try:
            await commands.patch(visit.actor, row.id, body.changes(), body.credential())
            return visit.see_other(f"/endpoints/{row.id}", done="saved")
        except CallerError as error:
            errors = refusal(error)
    return _form(visit, row, _typed(form), errors)


@family.post("/endpoints/{endpoint_id}/drain")
async def drain_endpoint(visit: Visit) -> Response:
    form = await visit.form()
    draining = form.text("draining") == "yes"
    row = await visit.services.endpoint_care.drain(visit.actor, visit.path("endpoint_id"), draining=draining)
    return visit.see_other(f"/endpoints/{row.id}", done="draining" if draining else "undrained")


@family.post("/endpoints/{endpoint_id}/check")
async def check_endpoint(visit: Visit) -> Response:
    """Ask now whether it is there, in the way it is always asked."""
    return await _show(visit, await visit.services.endpoint_care.check(visit.path("endpoint_id"), None))


@family.post("/endpoints/{endpoint_id}/reset")
async def reset_endpoint(visit: Visit) -> Response:
    row = await visit.services.endpoint_care.reset(visit.actor, visit.path("endpoint_id"))
    return visit.see_other(f"/endpoints/{row.id}", done="reset")


@family.get("/endpoints/{endpoint_id}/delete")
async def confirm_delete(visit: Visit) -> Response:
    return await _confirmation(visit, "")


@family.post("/endpoints/{endpoint_id}/delete")
async def delete_endpoint(visit: Visit) -> Response:
    form, commands = await visit.form(), visit.services.management.endpoints
    row = await commands.get(visit.path("endpoint_id"))
    try:
        await commands.delete(visit.actor, row.id, force=form.ticked("force"))
    except InUse as error:
        return await _confirmation(visit, error.message)
    return visit.see_other("/model", name=row.spec.model, done="deleted")


async def _confirmation(visit: Visit, fault: str) -> Response:
    row = await visit.services.management.endpoints.get(visit.path("endpoint_id"))
    return visit.page("endpoints/delete.html", status=409 if fault else 200, row=row, fault=fault)


# ── The form ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_TIMEOUTS: Final = (
    "connect_seconds",
    "first_token_seconds",
    "between_tokens_seconds",
    "total_seconds",
    "unary_seconds",
)
_RULE_COUNTS: Final = ("faults_in_row", "fault_percent", "minimum_calls")
_RULE_SECONDS: Final = ("window_seconds", "slow_first_token_seconds", "open_seconds", "max_open_seconds")
_EMPTY: Final[dict[str, Any]] = {
    "model": "",
    "provider": "openai",
    "upstream_model": "",
    "api_base": "",
    "weight": "1",
    "priority": "0",
    "max_concurrency": "",
    "requests_per_minute": "",
    "tokens_per_minute": "",
    "timeouts.connect_seconds": "5",
    "timeouts.first_token_seconds": "60",
    "timeouts.between_tokens_seconds": "30",
    "timeouts.total_seconds": "600",
    "timeouts.unary_seconds": "",
    "health_check.kind": "models",
    "health_check.interval_seconds": "30",
    **{f"breaker.{name}": "" for name in (*_RULE_COUNTS, *_RULE_SECONDS)},
}


def _form(visit: Visit, row: EndpointRow | None, fields: dict[str, Any], errors: Errors) -> Response:
    return visit.page(
        "endpoints/form.html",
        status=422 if errors else 200,
        row=row,
        fields={**_EMPTY, **price_fields(None), **fields},
        errors=errors,
        model_options=[(name, name) for name in visit.services.catalog.current.models],
        breaker_names=[f"breaker.{name}" for name in (*_RULE_COUNTS, *_RULE_SECONDS)],
        usual={name: _shown(value) for name, value in BreakerShape().model_dump().items()},
        bases={str(kind): base for kind, base in PUBLIC_BASES.items()},
        version=version_of(row) if row else "",
    )


def _fields(row: EndpointRow) -> dict[str, Any]:
    spec, timeouts = row.spec, row.spec.timeouts
    seconds = (
        timeouts.connect_s,
        timeouts.first_token_s,
        timeouts.between_tokens_s,
        timeouts.total_s,
        timeouts.unary_s,
    )
    return {
        "model": spec.model,
        "provider": spec.provider,
        "upstream_model": spec.upstream_model,
        "api_base": spec.api_base,
        "weight": str(spec.weight),
        "priority": str(spec.priority),
        "max_concurrency": spec.max_concurrency or "",
        "requests_per_minute": spec.requests_per_minute or "",
        "tokens_per_minute": spec.tokens_per_minute or "",
        **{f"timeouts.{name}": f"{each:g}" for name, each in zip(_TIMEOUTS, seconds, strict=True)},
        **{f"breaker.{name}": _shown(value) for name, value in BreakerShape.of(spec.breaker).model_dump().items()},
        "health_check.kind": spec.health_check.kind,
        "health_check.interval_seconds": f"{spec.health_check.interval_s:g}",
        **price_fields(spec.price),
    }


def _typed(form: Form) -> dict[str, Any]:
    return {**{name: form.text(name) for name in _EMPTY if name in form.fields}, **price_typed(form)}


def _body(form: Form) -> dict[str, object]:
    timeouts = {name: form.number(f"timeouts.{name}") for name in _TIMEOUTS}
    counts = {name: form.count(f"breaker.{name}") for name in _RULE_COUNTS}
    rules = counts | {name: form.number(f"breaker.{name}") for name in _RULE_SECONDS}
    check = {"kind": form.text("health_check.kind") or "models"}
    interval = form.number("health_check.interval_seconds")
    return {
        "provider": form.text("provider"),
        "upstream_model": form.optional("upstream_model") or form.text("model"),
        "api_base": form.optional("api_base"),
        "weight": form.count("weight") if form.text("weight") else 1,
        "priority": _signed(form.text("priority")),
        **{name: form.count(name) for name in ("max_concurrency", "requests_per_minute", "tokens_per_minute")},
        "timeouts": {name: value for name, value in timeouts.items() if value is not None},
        "health_check": {**check, **({} if interval is None else {"interval_seconds": interval})},
        "breaker": {name: value for name, value in rules.items() if value is not None},
        "price": price_in(form),
    }


def _signed(text: str) -> int | str:
    digits = text.removeprefix("-")
    return int(text) if digits.isdecimal() and len(digits) < 10 else text or 0


def _shown(number: float | None) -> str:
    return "" if number is None else f"{number:g}"
