"""The playground: a key, a model, a conversation. What is sent goes the way of every call (see `app.routers.playground`)."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from app.admin.forms import Form
from app.admin.visit import Family, Visit
from app.storage.management_ports import ListQuery

family = Family()

KEYS_SHOWN: Final = 200


@family.get("/playground")
async def playground(visit: Visit) -> Response:
    return await page_of(visit)


async def page_of(visit: Visit, *, form: Form | None = None, status: int = 200, answer: str | None = None) -> Response:
    """The page; with a form that was sent, also what was asked and answered."""
    keys = (await visit.services.management.keys.page(ListQuery(limit=KEYS_SHOWN, status="active"))).items
    form = form or Form()
    chosen = form.optional("key_id") or visit.query("key")
    if chosen and all(row.id != chosen for row in keys):
        keys = [*keys, await visit.services.management.keys.get(chosen)]
    models = list(visit.services.catalog.current.models)
    return visit.page(
        "playground/page.html",
        status=status,
        keys=keys,
        models=models,
        chosen_key=chosen or (keys[0].id if keys else ""),
        chosen_model=form.optional("model") or visit.query("model") or (models[0] if models else ""),
        form=form,
        answer=answer,
        is_refused=status != 200,
        base_url=str(visit.request.base_url).rstrip("/"),
    )
