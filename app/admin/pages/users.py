"""Users: the accounts that pay. Renewed, expired, suspended, deleted; one at a time or many."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any, Final

from starlette.responses import Response

from app.admin import forms
from app.admin.forms import Errors, Form, checked, refusal
from app.admin.pages.editing import conflict, gauges_and_spend, version_of
from app.admin.visit import Family, Visit
from app.domain.identity import PaymentStatus
from app.domain.limits import Scope
from app.exceptions import CallerError, Conflict, NotFound
from app.models.schemas import UserCreate, UserPatch
from app.services.manage_users import UserChanges
from app.storage.management_ports import ListQuery, UserRow
from app.storage.ports import LogFilter

family = Family()

BULK_MAX: Final = 200
TERMS: Final = {"30": 30, "90": 90, "365": 365}
_DONE: Final = {"active": "activated", "suspended": "suspended", "expired": "expired"}


@family.get("/users")
async def list_users(visit: Visit) -> Response:
    page = await visit.services.management.users.page(visit.listing())
    gauges = await gauges_and_spend(visit, Scope.USER, [(row.spec.oid, row.spec.budgets) for row in page.items])
    return visit.page("users/list.html", page=page, gauges=gauges, today=visit.today)


@family.get("/users/new")
async def new_user(visit: Visit) -> Response:
    defaults = visit.services.management.users.defaults
    start = {"limit_rows": forms.limit_rows(defaults.limits), "budget_rows": forms.budget_rows(defaults.budgets)}
    return _form(visit, None, start, {})


@family.post("/users/new")
async def create_user(visit: Visit) -> Response:
    commands, form = visit.services.management.users, await visit.form()
    body, errors = checked(UserCreate, {"user_oid": form.text("user_oid"), **_body(form)})
    if body is not None:
        try:
            row = await commands.create(visit.actor, body.spec(commands.defaults))
            return visit.see_other("/user", oid=row.spec.oid, done="created")
        except CallerError as error:
            errors = refusal(error)
    return _form(visit, None, _typed(form), errors)


@family.get("/user")
async def show_user(visit: Visit) -> Response:
    services, oid = visit.services, visit.required("oid")
    row = await services.management.users.get(oid)
    keys = await services.management.keys.page(ListQuery(limit=20, user_oid=oid))
    gauges = await gauges_and_spend(visit, Scope.USER, [(oid, row.spec.budgets)])
    key_gauges = await gauges_and_spend(visit, Scope.KEY, [(each.id, each.spec.budgets) for each in keys.items])
    calls = await services.reports.log_page(LogFilter(user_oid=oid), limit=10, cursor=None)
    return visit.page(
        "users/show.html",
        row=row,
        keys=keys,
        gauges=gauges[oid],
        key_gauges=key_gauges,
        calls=calls.items,
        key_names=await services.overview.key_names(list({each.key_id for each in calls.items if each.key_id})),
        now=visit.now,
        today=visit.today,
        terms=list(TERMS),
    )


@family.get("/user/edit")
async def edit_user(visit: Visit) -> Response:
    row = await visit.services.management.users.get(visit.required("oid"))
    return _form(visit, row, _fields(row), {})


@family.post("/user/edit")
async def save_user(visit: Visit) -> Response:
    commands, form = visit.services.management.users, await visit.form()
    row = await commands.get(visit.required("oid"))
    body, errors = checked(UserPatch, _body(form))
    errors = errors or conflict(form, row)
    if body is not None and not errors:
        try:
            await commands.patch(visit.actor, row.spec.oid, body.changes())
            return visit.see_other("/user", oid=row.spec.oid, done="saved")
        except CallerError as error:
            errors = refusal(error)
    return _form(visit, row, _typed(form), errors)


@family.post("/user/renew")
async def renew_user(visit: Visit) -> Response:
    """Paid again: until the given day, or so many days from the day that is paid for already."""
    commands, form = visit.services.management.users, await visit.form()
    row = await commands.get(visit.required("oid"))
    until = _paid_until(form, row, visit.today)
    changes: UserChanges = {"payment_status": PaymentStatus.ACTIVE, "payment_valid_until": until}
    await commands.patch(visit.actor, row.spec.oid, changes)
    return visit.see_other("/user", oid=row.spec.oid, done="renewed")


def _paid_until(form: Form, row: UserRow, today: date) -> date | None:
    days = TERMS.get(form.text("days"))
    if days is not None:
        return max(row.spec.payment_valid_until or today, today) + timedelta(days=days)
    text = form.text("until")
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise Conflict("That is no date.", param="until") from None


@family.post("/user/status")
async def set_status(visit: Visit) -> Response:
    form, oid = await visit.form(), visit.required("oid")
    await _put(visit, oid, form.text("status"))
    return visit.see_other("/user", oid=oid, done=_DONE[form.text("status")])


@family.post("/users/bulk")
async def many_users(visit: Visit) -> Response:
    form = await visit.form()
    for oid in form.all("id")[:BULK_MAX]:
        try:
            await _put(visit, oid, form.text("action"))
        except NotFound:
            continue
    return visit.see_other("/users", done=_DONE.get(form.text("action"), "saved"))


async def _put(visit: Visit, oid: str, status: str) -> None:
    if status not in _DONE:
        raise Conflict("Nothing was chosen to be done.", param="action")
    await visit.services.management.users.patch(visit.actor, oid, {"payment_status": PaymentStatus(status)})


@family.post("/users/sync")
async def sync_expiries(visit: Visit) -> Response:
    await visit.services.management.users.sync_all_expiries(visit.actor, visit.today)
    return visit.see_other("/users", done="checked")


@family.get("/user/delete")
async def confirm_delete(visit: Visit) -> Response:
    row = await visit.services.management.users.get(visit.required("oid"))
    keys = await visit.services.management.keys.page(ListQuery(limit=200, user_oid=row.spec.oid))
    gauges = await gauges_and_spend(visit, Scope.USER, [(row.spec.oid, ())])
    return visit.page("users/delete.html", row=row, keys=keys, month=gauges[row.spec.oid][1], now=visit.now, errors={})


@family.post("/user/delete")
async def delete_user(visit: Visit) -> Response:
    await visit.services.management.users.delete(visit.actor, visit.required("oid"))
    return visit.see_other("/users", done="deleted")


# ── The form ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_EMPTY: Final[dict[str, Any]] = {
    "user_oid": "",
    "email": "",
    "name": "",
    "payment_status": "active",
    "payment_valid_until": "",
    "limit_rows": [],
    "budget_rows": [],
}


def _form(visit: Visit, row: UserRow | None, fields: dict[str, Any], errors: Errors) -> Response:
    return visit.page(
        "users/form.html",
        status=422 if errors else 200,
        row=row,
        fields={**_EMPTY, **fields},
        errors=errors,
        version=version_of(row) if row else "",
    )


def _fields(row: UserRow) -> dict[str, Any]:
    spec = row.spec
    return {
        "user_oid": spec.oid,
        "email": spec.email or "",
        "name": spec.name or "",
        "payment_status": spec.payment_status,
        "payment_valid_until": spec.payment_valid_until.isoformat() if spec.payment_valid_until else "",
        "limit_rows": forms.limit_rows(spec.limits),
        "budget_rows": forms.budget_rows(spec.budgets),
    }


def _typed(form: Form) -> dict[str, Any]:
    texts = {name: form.text(name) for name in _EMPTY if name in form.fields}
    return {**texts, "limit_rows": forms.limit_rows_in(form), "budget_rows": forms.budget_rows_in(form)}


def _body(form: Form) -> dict[str, object]:
    return {
        "email": form.optional("email"),
        "name": form.optional("name"),
        "payment_status": form.text("payment_status") or "active",
        "payment_valid_until": form.optional("payment_valid_until"),
        "limits": forms.limits_in(form),
        "budgets": forms.budgets_in(form),
    }
