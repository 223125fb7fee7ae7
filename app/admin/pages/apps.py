"""Apps: internal applications that call on behalf of users."""

from __future__ import annotations

from typing import Any, Final

from starlette.responses import Response

from app.admin import forms
from app.admin.forms import Errors, Form, checked, refusal
from app.admin.pages.editing import conflict, gauges_and_spend, version_of
from app.admin.pages.keys import GRACES
from app.admin.visit import Family, Visit
from app.domain.limits import Scope
from app.exceptions import CallerError
from app.models.schemas import AppCreate, AppPatch
from app.storage.management_ports import AppRow
from app.storage.ports import LogFilter

family = Family()


@family.get("/apps")
async def list_apps(visit: Visit) -> Response:
    page = await visit.services.management.apps.page(visit.listing())
    gauges = await gauges_and_spend(visit, Scope.APP, [(row.spec.app_id, row.spec.budgets) for row in page.items])
    return visit.page("apps/list.html", page=page, gauges=gauges)


@family.get("/app/new")
async def new_app(visit: Visit) -> Response:
    return _form(visit, None, {}, {})


@family.post("/app/new")
async def create_app(visit: Visit) -> Response:
    form = await visit.form()
    body, errors = checked(AppCreate, {"app_id": form.text("app_id"), **_body(form)})
    if body is not None:
        try:
            row, secret = await visit.services.management.apps.create(visit.actor, body.spec())
            return visit.page("apps/secret.html", row=row, secret=secret, title="The app is registered", grace_s=None)
        except CallerError as error:
            errors = refusal(error)
    return _form(visit, None, _typed(form), errors)


@family.get("/apps/{app_id}")
async def show_app(visit: Visit) -> Response:
    row = await visit.services.management.apps.get(visit.path("app_id"))
    app_id = row.spec.app_id
    gauges = await gauges_and_spend(visit, Scope.APP, [(app_id, row.spec.budgets)])
    calls = await visit.services.reports.log_page(LogFilter(app_id=app_id), limit=10, cursor=None)
    return visit.page("apps/show.html", row=row, gauges=gauges[app_id], calls=calls.items, graces=GRACES)


@family.get("/apps/{app_id}/edit")
async def edit_app(visit: Visit) -> Response:
    row = await visit.services.management.apps.get(visit.path("app_id"))
    return _form(visit, row, _fields(row), {})


@family.post("/apps/{app_id}/edit")
async def save_app(visit: Visit) -> Response:
    commands, form = visit.services.management.apps, await visit.form()
    row = await commands.get(visit.path("app_id"))
    whole = _body(form) if visit.may("configure") else {"budgets": forms.budgets_in(form)}
    body, errors = checked(AppPatch, whole)
    errors = errors or conflict(form, row)
    if body is not None and not errors:
        try:
            await commands.patch(visit.actor, row.spec.app_id, body.changes())
            return visit.see_other(f"/apps/{row.spec.app_id}", done="saved")
        except CallerError as error:
            errors = refusal(error)
    return _form(visit, row, _typed(form), errors)


@family.post("/apps/{app_id}/active")
async def set_active(visit: Visit) -> Response:
    form, app_id = await visit.form(), visit.path("app_id")
    is_active = form.ticked("is_active")
    await visit.services.management.apps.patch(visit.actor, app_id, {"is_active": is_active})
    return visit.see_other(f"/apps/{app_id}", done="activated" if is_active else "deactivated")


@family.post("/apps/{app_id}/rotate-secret")
async def rotate_secret(visit: Visit) -> Response:
    form = await visit.form()
    grace = form.text("grace_seconds")
    grace_s = int(grace) if grace in dict(GRACES) else 0
    row, secret = await visit.services.management.apps.rotate_secret(visit.actor, visit.path("app_id"), grace_s=grace_s)
    return visit.page("apps/secret.html", row=row, secret=secret, title="The new secret", grace_s=grace_s)


@family.get("/apps/{app_id}/delete")
async def confirm_delete(visit: Visit) -> Response:
    return visit.page("apps/delete.html", row=await visit.services.management.apps.get(visit.path("app_id")))


@family.post("/apps/{app_id}/delete")
async def delete_app(visit: Visit) -> Response:
    await visit.services.management.apps.delete(visit.actor, visit.path("app_id"))
    return visit.see_other("/apps", done="deleted")


# ── The form ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_EMPTY: Final[dict[str, Any]] = {
    "app_id": "",
    "name": "",
    "is_active": "on",
    "allowed_models": "*",
    "allowed_networks": "",
    "own_secret_only": "",
    "auto_create_users": "",
    "log_content": "",
    "limit_rows": [],
    "budget_rows": [],
}
_TICKS: Final = ("is_active", "own_secret_only", "auto_create_users")


def _form(visit: Visit, row: AppRow | None, fields: dict[str, Any], errors: Errors) -> Response:
    return visit.page(
        "apps/form.html",
        status=422 if errors else 200,
        row=row,
        fields={**_EMPTY, **fields},
        errors=errors,
        models=list(visit.services.catalog.current.models),
        version=version_of(row) if row else "",
    )


def _fields(row: AppRow) -> dict[str, Any]:
    spec = row.spec
    return {
        "app_id": spec.app_id,
        "name": spec.name,
        **{name: "on" if getattr(spec, name) else "" for name in _TICKS},
        "allowed_models": "\n".join(spec.allowed_models),
        "allowed_networks": "\n".join(spec.allowed_networks),
        "log_content": spec.log_content or "",
        "limit_rows": forms.limit_rows(spec.limits),
        "budget_rows": forms.budget_rows(spec.budgets),
    }


def _typed(form: Form) -> dict[str, Any]:
    texts = {name: form.text(name) for name in _EMPTY if name in form.fields or name in _TICKS}
    return {**texts, "limit_rows": forms.limit_rows_in(form), "budget_rows": forms.budget_rows_in(form)}


def _body(form: Form) -> dict[str, object]:
    return {
        "name": form.text("name"),
        **{name: form.ticked(name) for name in _TICKS},
        "allowed_models": form.names("allowed_models"),
        "allowed_networks": form.names("allowed_networks"),
        "log_content": form.optional("log_content"),
        "limits": forms.limits_in(form),
        "budgets": forms.budgets_in(form),
    }
