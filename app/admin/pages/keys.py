"""Keys: found, made, changed, rotated, revoked, deleted; one at a time or many."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from starlette.responses import Response

from app.admin import forms
from app.admin.forms import Errors, Form, checked, refusal
from app.admin.pages.editing import conflict, gauges_and_spend, version_of
from app.admin.visit import Family, Visit
from app.domain.limits import Scope
from app.exceptions import CallerError, Conflict, NotFound
from app.models.schemas import KeyCreate, KeyPatch
from app.storage.management_ports import KeyRow, ListQuery
from app.storage.ports import LogFilter

family = Family()

USAGE_DAYS: Final = 30
GRACES: Final = (("0", "at once"), ("3600", "in 1 hour"), ("86400", "in 1 day"), ("604800", "in 7 days"))
BULK_MAX: Final = 200


@family.get("/keys")
async def list_keys(visit: Visit) -> Response:
    page = await visit.services.management.keys.page(visit.listing())
    gauges = await gauges_and_spend(visit, Scope.KEY, [(row.id, row.spec.budgets) for row in page.items])
    return visit.page("keys/list.html", page=page, gauges=gauges, now=visit.now)


@family.get("/keys/new")
async def new_key(visit: Visit) -> Response:
    start = {"user_oid": visit.query("user") or "", "allowed_models": "*"}
    return await _form(visit, None, start, {})


@family.post("/keys/new")
async def create_key(visit: Visit) -> Response:
    form = await visit.form()
    body, errors = checked(KeyCreate, {"user_oid": form.text("user_oid"), **_body(form)})
    if body is not None:
        try:
            row, secret = await visit.services.management.keys.create(visit.actor, body.spec())
            return visit.page("keys/secret.html", row=row, secret=secret, title="The key is made", grace_s=None)
        except CallerError as error:
            errors = refusal(error)
    return await _form(visit, None, _typed(form), errors)


@family.get("/keys/{key_id}")
async def show_key(visit: Visit) -> Response:
    services, key_id = visit.services, visit.path("key_id")
    row, usage = await services.management.keys.usage(
        key_id, since=visit.now - timedelta(days=USAGE_DAYS), until=visit.now
    )
    owner = await services.management.users.get(row.spec.user_oid)
    standings, month = (await gauges_and_spend(visit, Scope.KEY, [(row.id, row.spec.budgets)]))[row.id]
    calls = await services.reports.log_page(LogFilter(key_id=row.id), limit=10, cursor=None)
    return visit.page(
        "keys/show.html",
        row=row,
        owner=owner,
        usage=usage,
        standings=standings,
        month=month,
        calls=calls.items,
        key_status=row.status_at(visit.now),
        graces=GRACES,
    )


@family.get("/keys/{key_id}/edit")
async def edit_key(visit: Visit) -> Response:
    row = await visit.services.management.keys.get(visit.path("key_id"))
    return await _form(visit, row, _fields(row), {})


@family.post("/keys/{key_id}/edit")
async def save_key(visit: Visit) -> Response:
    commands, form = visit.services.management.keys, await visit.form()
    row = await commands.get(visit.path("key_id"))
    whole = _body(form) if visit.may("configure") else {"budgets": forms.budgets_in(form)}
    body, errors = checked(KeyPatch, whole)
    errors = errors or conflict(form, row)
    if body is not None and not errors:
        try:
            await commands.patch(visit.actor, row.id, body.changes())
            return visit.see_other(f"/keys/{row.id}", done="saved")
        except CallerError as error:
            errors = refusal(error)
    return await _form(visit, row, _typed(form), errors)


@family.post("/keys/{key_id}/rotate")
async def rotate_key(visit: Visit) -> Response:
    form, key_id = await visit.form(), visit.path("key_id")
    grace = form.text("grace_seconds")
    grace_s = int(grace) if grace in dict(GRACES) else 0
    row, secret = await visit.services.management.keys.rotate(visit.actor, key_id, grace_s=grace_s)
    return visit.page("keys/secret.html", row=row, secret=secret, title="The new secret", grace_s=grace_s)


@family.post("/keys/{key_id}/revoke")
async def revoke_key(visit: Visit) -> Response:
    row = await visit.services.management.keys.revoke(visit.actor, visit.path("key_id"))
    return visit.see_other(f"/keys/{row.id}", done="revoked")


@family.get("/keys/{key_id}/delete")
async def confirm_delete(visit: Visit) -> Response:
    services = visit.services
    row, usage = await services.management.keys.usage(
        visit.path("key_id"), since=visit.now - timedelta(days=USAGE_DAYS), until=visit.now
    )
    return visit.page("keys/delete.html", row=row, usage=usage)


@family.post("/keys/{key_id}/delete")
async def delete_key(visit: Visit) -> Response:
    await visit.services.management.keys.delete(visit.actor, visit.path("key_id"))
    return visit.see_other("/keys", done="deleted")


@family.post("/keys/bulk")
async def many_keys(visit: Visit) -> Response:
    """Revoke or delete all that were ticked, each as a command of its own; those that are gone already are passed over."""
    form, commands = await visit.form(), visit.services.management.keys
    action = form.text("action")
    if action not in ("revoke", "delete"):
        raise Conflict("Nothing was chosen to be done.", param="action")
    for key_id in form.all("id")[:BULK_MAX]:
        try:
            if action == "revoke":
                await commands.revoke(visit.actor, key_id)
            else:
                await commands.delete(visit.actor, key_id)
        except NotFound:
            continue
    return visit.see_other("/keys", done=f"{action}d")


# ── The form ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _form(visit: Visit, row: KeyRow | None, fields: dict[str, Any], errors: Errors) -> Response:
    models = list(visit.services.catalog.current.models)
    users = [] if row else (await visit.services.management.users.page(ListQuery(limit=200))).items
    fields = {**_EMPTY, **fields}
    return visit.page(
        "keys/form.html",
        status=422 if errors else 200,
        row=row,
        fields=fields,
        errors=errors,
        models=models,
        users=users,
        version=version_of(row) if row else "",
    )


_EMPTY: Final[dict[str, Any]] = {
    "user_oid": "",
    "name": "",
    "labels": "",
    "allowed_models": "*",
    "expires_at": "",
    "allowed_ips": "",
    "log_content": "",
    "overflow_mode": "reject",
    "overflow_max_wait_seconds": "10",
    "overflow_fallback_model": "",
    "limit_policy": "default",
    "limit_rows": [],
    "budget_rows": [],
}


def _fields(row: KeyRow) -> dict[str, Any]:
    spec = row.spec
    return {
        "user_oid": spec.user_oid,
        "name": spec.name,
        "labels": "\n".join(f"{name}={value}" for name, value in spec.labels.items()),
        "allowed_models": "\n".join(spec.allowed_models),
        "expires_at": spec.expires_at.isoformat(timespec="seconds").replace("+00:00", "Z") if spec.expires_at else "",
        "allowed_ips": "\n".join(spec.allowed_ips),
        "log_content": spec.log_content or "",
        "overflow_mode": spec.overflow.mode,
        "overflow_max_wait_seconds": f"{spec.overflow.max_wait_s:g}",
        "overflow_fallback_model": spec.overflow.fallback_model or "",
        "limit_policy": "default" if spec.limits is None else "own",
        "limit_rows": forms.limit_rows(spec.limits or ()),
        "budget_rows": forms.budget_rows(spec.budgets),
    }


def _typed(form: Form) -> dict[str, Any]:
    """The form as it was filled in."""
    texts = {name: form.text(name) for name in _EMPTY if name in form.fields}
    return {**texts, "limit_rows": forms.limit_rows_in(form), "budget_rows": forms.budget_rows_in(form)}


def _label(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name.strip(), value.strip()


def _body(form: Form) -> dict[str, object]:
    return {
        "name": form.text("name"),
        "labels": dict(_label(each) for each in form.names("labels")),
        "allowed_models": form.names("allowed_models"),
        "expires_at": forms.moment_in(form.text("expires_at")),
        "allowed_ips": form.names("allowed_ips"),
        "log_content": form.optional("log_content"),
        "limits": forms.limits_in(form) if form.text("limit_policy") == "own" else None,
        "budgets": forms.budgets_in(form),
        "overflow": {
            "mode": form.text("overflow_mode") or "reject",
            "max_wait_seconds": form.number("overflow_max_wait_seconds") or 0.0,
            "fallback_model": form.optional("overflow_fallback_model"),
        },
    }
