"""Models: what clients ask for, what it costs, which endpoints serve it and how calls are shared among them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, Final

from starlette.responses import Response

from app.admin import forms
from app.admin.forms import Errors, Form, checked, refusal
from app.admin.pages.editing import conflict, version_of
from app.admin.pages.endpoint_view import endpoint_views
from app.admin.pages.overview import span_of, total_of
from app.admin.pages.prices import price_fields, price_in, price_typed
from app.admin.visit import Family, Visit
from app.domain.budget import PeriodKind, period_at
from app.domain.limits import Scope
from app.exceptions import CallerError, InUse
from app.models.schemas import ModelCreate, ModelPatch
from app.storage.management_ports import ListQuery, ModelRow
from app.storage.ports import LogFilter

family = Family()


@family.get("/models")
async def list_models(visit: Visit) -> Response:
    management = visit.services.management
    page = await management.models.page(visit.listing())
    names = {row.spec.name for row in page.items}
    views = [view for view in await endpoint_views(visit) if view.row.spec.model in names]
    by_model = {name: [view for view in views if view.row.spec.model == name] for name in names}
    catalog = visit.services.catalog.current
    return visit.page("models/list.html", page=page, by_model=by_model, catalog=catalog)


@family.get("/models/new")
async def new_model(visit: Visit) -> Response:
    return _form(visit, None, {}, {})


@family.post("/models/new")
async def create_model(visit: Visit) -> Response:
    form = await visit.form()
    body, errors = checked(ModelCreate, {"name": form.text("name"), **_body(form)})
    if body is not None:
        try:
            row = await visit.services.management.models.create(visit.actor, body.spec())
            return visit.see_other("/model", name=row.spec.name, done="created")
        except CallerError as error:
            errors = refusal(error)
    return _form(visit, None, _typed(form), errors)


@family.get("/model")
async def show_model(visit: Visit) -> Response:
    services, name = visit.services, visit.required("name")
    row = await services.management.models.get(name)
    span = span_of(visit.query("range"), visit.now)
    month = period_at(PeriodKind.MONTHLY, visit.now, visit.zone).starts_at or visit.now
    # A model is everybody's: what it costs in a month is read from the sums by endpoint, which are few.
    views, gauges, month_parts, prices, parts = await asyncio.gather(
        endpoint_views(visit, model=name),
        services.gauges.of([(Scope.MODEL, name, row.spec.budgets)]),
        services.overview.traffic(month, visit.now, by_day=True, model=name),
        services.overview.prices(name),
        services.overview.traffic(visit.now - timedelta(hours=23), visit.now, by_day=False, model=name),
    )
    calls = await services.reports.log_page(LogFilter(model=name), limit=8, cursor=None)
    return visit.page(
        "models/show.html",
        row=row,
        views=views,
        standings=gauges.get((Scope.MODEL, name), []),
        month_nanousd=total_of(month_parts).cost_nanousd,
        prices=prices,
        total=total_of(parts),
        span=span,
        calls=calls.items,
        key_names=await services.overview.key_names([each.key_id for each in calls.items if each.key_id]),
        in_catalog=services.catalog.current.models.get(name),
    )


@family.get("/model/edit")
async def edit_model(visit: Visit) -> Response:
    row = await visit.services.management.models.get(visit.required("name"))
    return _form(visit, row, _fields(row), {})


@family.post("/model/edit")
async def save_model(visit: Visit) -> Response:
    commands, form = visit.services.management.models, await visit.form()
    row = await commands.get(visit.required("name"))
    whole = _body(form) if visit.may("configure") else {"budgets": forms.budgets_in(form)}
    body, errors = checked(ModelPatch, whole)
    errors = errors or conflict(form, row)
    if body is not None and not errors:
        try:
            await commands.patch(visit.actor, row.spec.name, body.changes())
            return visit.see_other("/model", name=row.spec.name, done="saved")
        except CallerError as error:
            errors = refusal(error)
    return _form(visit, row, _typed(form), errors)


@family.get("/model/delete")
async def confirm_delete(visit: Visit) -> Response:
    return await _confirmation(visit, "")


@family.post("/model/delete")
async def delete_model(visit: Visit) -> Response:
    form, name = await visit.form(), visit.required("name")
    try:
        await visit.services.management.models.delete(visit.actor, name, force=form.ticked("force"))
    except InUse as error:
        return await _confirmation(visit, error.message)
    return visit.see_other("/models", done="deleted")


async def _confirmation(visit: Visit, fault: str) -> Response:
    management = visit.services.management
    row = await management.models.get(visit.required("name"))
    served_by = (await management.endpoints.page(ListQuery(limit=200, model=row.spec.name))).items
    catalog = visit.services.catalog.current
    fallback_of = [model.name for model in catalog.models.values() if row.spec.name in model.fallbacks]
    status = 409 if fault else 200
    return visit.page(
        "models/delete.html", status=status, row=row, served_by=served_by, fallback_of=fallback_of, fault=fault
    )


# ── The form ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_EMPTY: Final[dict[str, Any]] = {
    "name": "",
    "aliases": "",
    "strategy": "round_robin",
    "fallbacks": "",
    "sticky": "",
    "max_retries": "",
    "shadow.model": "",
    "shadow.percent": "",
    "context_window": "",
    "max_output_tokens": "",
    "limit_rows": [],
    "budget_rows": [],
}


def _form(visit: Visit, row: ModelRow | None, fields: dict[str, Any], errors: Errors) -> Response:
    others = [name for name in visit.services.catalog.current.models if row is None or name != row.spec.name]
    return visit.page(
        "models/form.html",
        status=422 if errors else 200,
        row=row,
        fields={**_EMPTY, **price_fields(None), **fields},
        errors=errors,
        others=others,
        version=version_of(row) if row else "",
    )


def _fields(row: ModelRow) -> dict[str, Any]:
    spec = row.spec
    return {
        "name": spec.name,
        "aliases": "\n".join(spec.aliases),
        "strategy": spec.strategy,
        "fallbacks": "\n".join(spec.fallbacks),
        "sticky": spec.sticky or "",
        "max_retries": "" if spec.max_retries is None else spec.max_retries,
        "shadow.model": spec.shadow.model if spec.shadow else "",
        "shadow.percent": f"{spec.shadow.percent:g}" if spec.shadow else "",
        "context_window": spec.context_window or "",
        "max_output_tokens": spec.max_output_tokens or "",
        **price_fields(spec.price),
        "limit_rows": forms.limit_rows(spec.limits),
        "budget_rows": forms.budget_rows(spec.budgets),
    }


def _typed(form: Form) -> dict[str, Any]:
    texts = {name: form.text(name) for name in _EMPTY if name in form.fields}
    rows = {"limit_rows": forms.limit_rows_in(form), "budget_rows": forms.budget_rows_in(form)}
    return {**texts, **price_typed(form), **rows}


def _body(form: Form) -> dict[str, object]:
    return {
        "aliases": form.names("aliases"),
        "strategy": form.text("strategy") or "round_robin",
        "fallbacks": form.names("fallbacks"),
        "sticky": form.optional("sticky"),
        "max_retries": form.count("max_retries"),
        "shadow": _shadow(form),
        "context_window": form.count("context_window"),
        "max_output_tokens": form.count("max_output_tokens"),
        "price": price_in(form),
        "limits": forms.limits_in(form),
        "budgets": forms.budgets_in(form),
    }


def _shadow(form: Form) -> dict[str, object] | None:
    given = {"model": form.optional("shadow.model"), "percent": form.number("shadow.percent")}
    return {name: value for name, value in given.items() if value is not None} or None
