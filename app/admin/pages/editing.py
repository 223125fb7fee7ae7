"""What the forms of keys, users, apps, models and administrators have in common."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from app.admin.forms import Errors, Form
from app.admin.visit import Visit
from app.domain.budget import Budget
from app.domain.limits import Scope
from app.services.standing import SPEND, BudgetStanding

CHANGED_MEANWHILE = (
    "Somebody else has changed this since you opened it. What you wrote is kept below: look at it again, then save."
)


class Row(Protocol):
    @property
    def updated_at(self) -> datetime: ...


def version_of(row: Row) -> str:
    """What a form was made from; it is sent back with it."""
    return row.updated_at.isoformat()


def conflict(form: Form, row: Row) -> Errors:
    """Whether what the form was made from is still what is there."""
    given = form.text("version")
    return {"": CHANGED_MEANWHILE} if given and given != version_of(row) else {}


async def gauges_and_spend(
    visit: Visit, scope: Scope, holders: Sequence[tuple[str, Sequence[Budget]]]
) -> dict[str, tuple[list[BudgetStanding], BudgetStanding]]:
    """By holder: its budgets, and what it has spent this month."""
    asked = [(scope, holder, [*budgets, SPEND]) for holder, budgets in holders]
    found = await visit.services.gauges.of(asked)
    return {holder: (standings[:-1], standings[-1]) for (_, holder), standings in found.items()}
