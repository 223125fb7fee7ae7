"""What users, keys, apps and models have alike in SQL: limits and budgets of their own, and names to search for."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Text, any_, delete, func, insert, literal, literal_column, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.budget import Budget
from app.domain.limits import Limit, Scope
from app.models.tables import budgets, limits
from app.storage.sql_rows import HOLDER_COLUMN, budget_values, budgets_json, limit_values, limits_json

UNAWARE_MS = 1_500
"""How long after a change a process may still make calls without it: it looks once a second, whatever messages were lost."""


async def put_limits(
    connection: AsyncConnection,
    scope: Scope,
    holder: str,
    held: tuple[tuple[Limit, ...], tuple[Budget, ...]],
    *,
    is_new: bool,
) -> None:
    """Replace a holder's limits and budgets. Their counters are named by holder, kind and window, so they stay. A budget of a period
    that he had none of is open from now on: for a new holder at once, for one who may be making calls from when everybody knows of it.
    """
    new_limits, new_budgets = held
    column = HOLDER_COLUMN[scope]
    of_holder = select(budgets.c.period, budgets.c.opened_ms).where(budgets.c[column] == holder)
    opened_ms = {row.period: row.opened_ms for row in await connection.execute(of_holder)}
    await connection.execute(delete(limits).where(limits.c[column] == holder))
    await connection.execute(delete(budgets).where(budgets.c[column] == holder))
    if new_limits:
        await connection.execute(insert(limits), [limit_values(scope, holder, each) for each in new_limits])
    if new_budgets:
        now_ms = int((await connection.execute(select(func.extract("epoch", func.now()) * 1000))).scalar_one())
        opens_ms = now_ms if is_new else now_ms + UNAWARE_MS
        rows = [
            budget_values(scope, holder, each) | {"opened_ms": opened_ms.get(each.period.value, opens_ms)}
            for each in new_budgets
        ]
        await connection.execute(insert(budgets), rows)


def held_columns(scope: Scope, holder: ColumnElement[Any]) -> list[ColumnElement[str]]:
    """Columns `limits` and `budgets` of a select: JSON texts, for `sql_rows` to read."""
    column = HOLDER_COLUMN[scope]
    return [
        limits_json(limits.c[column] == holder).label("limits"),
        budgets_json(budgets.c[column] == holder).label("budgets"),
    ]


def found(search: str, *columns: ColumnElement[Any]) -> ColumnElement[bool]:
    """The words as they are, anywhere in one of the columns, in any case; `%` and `_` mean themselves."""
    return or_(*(column.icontains(search, autoescape=True) for column in columns))


def within(words: str, search: str) -> ColumnElement[bool]:
    """The same, in a text that one expression makes of several columns, in lower case already, so that one index serves it."""
    escaped = search.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return literal_column(words, Text).like(func.lower(f"%{escaped}%"))


def holds(column: ColumnElement[Any], value: str) -> ColumnElement[bool]:
    """Whether the array in this column has the value as one of its elements."""
    return literal(value) == any_(column)
