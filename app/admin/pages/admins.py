"""Administrators: who may sign in, as what."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from app.admin import forms
from app.admin.forms import Errors, Form, checked, refusal
from app.admin.visit import Family, Visit
from app.domain.access import Role
from app.exceptions import CallerError
from app.models.schemas import AdminCreate, AdminPatch
from app.storage.management_ports import AdminRow

family = Family()

_ABOUT = {
    Role.OWNER: "Owner: everything, also other owners",
    Role.ADMIN: "Admin: everything but owners",
    Role.BILLING: "Billing: users and budgets",
    Role.VIEWER: "Viewer: looks",
}


@family.get("/admins")
async def list_admins(visit: Visit) -> Response:
    page = await visit.services.management.admins.page(visit.listing())
    sessions = await visit.services.admin_sessions.open_sessions()
    return visit.page("admins/list.html", page=page, sessions=sessions, now=visit.now)


@family.get("/admins/new")
async def new_admin(visit: Visit) -> Response:
    return _form(visit, None, {"name": "", "role": "viewer", "expires_at": ""}, {})


@family.post("/admins/new")
async def create_admin(visit: Visit) -> Response:
    form = await visit.form()
    body, errors = checked(AdminCreate, _body(form))
    if body is not None:
        try:
            row, token = await visit.services.management.admins.create(visit.actor, body.spec())
            return visit.page("admins/secret.html", row=row, token=token)
        except CallerError as error:
            errors = refusal(error)
    return _form(visit, None, _typed(form), errors)


@family.get("/admins/{admin_id}/edit")
async def edit_admin(visit: Visit) -> Response:
    row = await visit.services.management.admins.get(visit.path("admin_id"))
    expires_at = row.spec.expires_at
    shown = expires_at.isoformat(timespec="seconds").replace("+00:00", "Z") if expires_at else ""
    return _form(visit, row, {"name": row.spec.name, "role": row.spec.role, "expires_at": shown}, {})


@family.post("/admins/{admin_id}/edit")
async def save_admin(visit: Visit) -> Response:
    commands, form = visit.services.management.admins, await visit.form()
    row = await commands.get(visit.path("admin_id"))
    body, errors = checked(AdminPatch, _body(form))
    if body is not None:
        try:
            await commands.patch(visit.actor, row.id, body.changes())
            return visit.see_other("/admins", done="saved")
        except CallerError as error:
            errors = refusal(error)
    return _form(visit, row, _typed(form), errors)


@family.post("/admins/{admin_id}/rotate")
async def rotate_token(visit: Visit) -> Response:
    row, token = await visit.services.management.admins.rotate(visit.actor, visit.path("admin_id"))
    return visit.page("admins/secret.html", row=row, token=token)


@family.post("/admins/{admin_id}/revoke")
async def revoke_admin(visit: Visit) -> Response:
    await visit.services.management.admins.revoke(visit.actor, visit.path("admin_id"))
    return visit.see_other("/admins", done="revoked")


@family.post("/admins/{admin_id}/delete")
async def delete_admin(visit: Visit) -> Response:
    await visit.services.management.admins.delete(visit.actor, visit.path("admin_id"))
    return visit.see_other("/admins", done="deleted")


@family.post("/admins/sessions/{session_id}/end")
async def end_session(visit: Visit) -> Response:
    await visit.services.admin_sessions.end_anothers(visit.actor, visit.path("session_id"))
    return visit.see_other("/admins", done="signed-out")


def _form(visit: Visit, row: AdminRow | None, fields: dict[str, Any], errors: Errors) -> Response:
    roles = [(str(role), _ABOUT[role]) for role in Role if role is not Role.OWNER or visit.actor.role is Role.OWNER]
    status = 422 if errors else 200
    return visit.page("admins/form.html", status=status, row=row, fields=fields, errors=errors, role_options=roles)


def _typed(form: Form) -> dict[str, Any]:
    return {name: form.text(name) for name in ("name", "role", "expires_at")}


def _body(form: Form) -> dict[str, object]:
    return {
        "name": form.text("name"),
        "role": form.text("role"),
        "expires_at": forms.moment_in(form.text("expires_at")),
    }
