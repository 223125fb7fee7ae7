"""Forms as they arrive, and the way from their fields to the bodies of the admin API: the same models check both.

Fields are named like paths into the body (`limits.0.kind`), so that a refusal's `param` (`limits[0].kind`) names the field it belongs to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData

from app.domain.budget import Budget
from app.domain.limits import Limit, LimitKind
from app.exceptions import CallerError
from app.models.money_fields import amount_text

Body = TypeVar("Body", bound=BaseModel)
MAX_ROWS: Final = 40
WHOLE: Final = ""
"""The key of an error that belongs to no field."""

_SPAN: Final = re.compile(r"\s*(\d{1,9})\s*(s|sec|seconds?|m|min|minutes?|h|hours?|d|days?)?\s*\Z", re.I)
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

Errors = dict[str, str]


@dataclass(frozen=True, slots=True)
class Form:
    """The fields of a form; a name that was sent twice keeps all its values."""

    fields: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, sent: FormData) -> Form:
        fields: dict[str, list[str]] = {}
        for name, value in sent.multi_items():
            if isinstance(value, str):
                fields.setdefault(name, []).append(value)
        return cls(fields)

    def text(self, name: str) -> str:
        return self.fields.get(name, ("",))[-1].strip()

    def optional(self, name: str) -> str | None:
        return self.text(name) or None

    def ticked(self, name: str) -> bool:
        return bool(self.text(name))

    def all(self, name: str) -> list[str]:
        return [value for value in self.fields.get(name, ()) if value]

    def names(self, name: str) -> list[str]:
        """Words, one per line or parted by commas."""
        given = "\n".join(self.fields.get(name, ()))
        return list(dict.fromkeys(word.strip() for word in re.split(r"[\n,]", given) if word.strip()))

    def count(self, name: str) -> int | str | None:
        """A whole number; what is none stays as it was written, for the model to refuse."""
        return whole(self.text(name))

    def number(self, name: str) -> float | str | None:
        text = self.text(name)
        try:
            return float(text) if text else None
        except ValueError:
            return text

    def rows(self, name: str, columns: Sequence[str], *, telling: Sequence[str]) -> list[dict[str, str]]:
        """The rows of a list in which one of the `telling` columns is filled in: choices always have a value."""
        rows = [{column: self.text(f"{name}.{index}.{column}") for column in columns} for index in range(MAX_ROWS)]
        return [row for row in rows if any(row[column] for column in telling)]


def whole(text: str) -> int | str | None:
    plain = text.replace(",", "").replace("_", "").replace(" ", "")
    return int(plain) if plain.isdecimal() and len(plain) < 19 else text or None


# ── Limits and budgets ────────────────────────────────────────────────────────────────────────────────────────────────

LIMIT_COLUMNS: Final = ("kind", "limit", "window_seconds")
BUDGET_COLUMNS: Final = ("period", "soft_limit_usd", "hard_limit_usd", "reserve")


def limit_rows(limits: Sequence[Limit]) -> list[dict[str, str]]:
    return [{"kind": each.kind, "limit": str(each.limit), "window_seconds": span(each.window_s)} for each in limits]


def budget_rows(budgets: Sequence[Budget]) -> list[dict[str, str]]:
    return [
        {
            "period": each.period,
            "soft_limit_usd": "" if each.soft_limit_nanousd is None else amount_text(each.soft_limit_nanousd),
            "hard_limit_usd": "" if each.hard_limit_nanousd is None else amount_text(each.hard_limit_nanousd),
            "reserve": each.reserve,
        }
        for each in budgets
    ]


def limit_rows_in(form: Form) -> list[dict[str, str]]:
    return form.rows("limits", LIMIT_COLUMNS, telling=("limit",))


def budget_rows_in(form: Form) -> list[dict[str, str]]:
    return form.rows("budgets", BUDGET_COLUMNS, telling=("soft_limit_usd", "hard_limit_usd"))


def limits_in(form: Form) -> list[dict[str, object]]:
    return [
        {"kind": row["kind"], "limit": whole(row["limit"]), "window_seconds": _window(row)}
        for row in limit_rows_in(form)
    ]


def _window(row: Mapping[str, str]) -> int | str:
    return 0 if row["kind"] == LimitKind.CONCURRENCY else seconds_of(row["window_seconds"] or "60s")


def budgets_in(form: Form) -> list[dict[str, object]]:
    return [
        {
            "period": row["period"],
            "soft_limit_usd": amount_in(row["soft_limit_usd"]),
            "hard_limit_usd": amount_in(row["hard_limit_usd"]),
            "reserve": row["reserve"] or "worst_case",
        }
        for row in budget_rows_in(form)
    ]


def amount_in(text: str) -> str | None:
    return text.lstrip("$").replace(",", "").strip() or None


def seconds_of(text: str) -> int | str:
    """A stretch of time as people write it: 60s, 5m, 1h, 7d. What is none stays as it is, for the model to refuse."""
    found = _SPAN.match(text)
    return int(found[1]) * _UNIT_S[(found[2] or "s")[0].lower()] if found else text


def span(seconds: int) -> str:
    for unit in ("d", "h", "m"):
        if seconds and seconds % _UNIT_S[unit] == 0 and not (unit == "m" and seconds == 60):
            return f"{seconds // _UNIT_S[unit]}{unit}"
    return f"{seconds}s" if seconds else ""


def moment_in(text: str) -> datetime | str | None:
    """A date (its end, in UTC) or a time in RFC 3339."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(f"{text}T23:59:59" if len(text) == len("2026-11-25") else text)
    except ValueError:
        return text
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


# ── Checking ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def checked(model: type[Body], body: Mapping[str, Any]) -> tuple[Body | None, Errors]:
    """The body as the admin API would take it, or what is wrong with each field."""
    try:
        return model.model_validate(dict(body)), {}
    except ValidationError as refused:
        return None, {_name(fault["loc"]): _told(fault["type"], fault["msg"]) for fault in reversed(refused.errors())}


def refusal(error: CallerError) -> Errors:
    """A command's refusal, at the field that it names."""
    return {_INDEX.sub(r".\1", error.param or WHOLE): error.message}


_INDEX = re.compile(r"\[(\d+)\]")


def _name(location: Sequence[int | str]) -> str:
    return ".".join(str(part) for part in location)


def _told(kind: str, message: str) -> str:
    known = {
        "int_type": "A whole number is needed.",
        "int_parsing": "A whole number is needed.",
        "float_type": "A number is needed.",
        "float_parsing": "A number is needed.",
        "missing": "This is needed.",
        "datetime_parsing": "This is no date.",
        "datetime_from_date_parsing": "This is no date.",
        "date_from_datetime_parsing": "This is no date.",
        "date_parsing": "This is no date.",
    }
    text = known.get(kind) or message.removeprefix("Value error, ")
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
