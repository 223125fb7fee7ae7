"""The export of a LiteLLM proxy's database, as users and keys of ours.

A JSON file holds several tables (`{"LiteLLM_VerificationToken": [{…}], …}`) or the rows of one, a CSV file the rows of one; whose rows
they are is told by the file's name or by their columns. Teams become users of their own, since here a user is who pays: a team's key
is the team's, as its spend is there.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from app.import_litellm.config_file import ConfigUnreadable
from app.import_litellm.plan import PERIODS, Allowance, Body, Plan, PlannedKey, budgets_of, limits_of, moment

KEYS, USERS, TEAMS, BUDGETS = (
    "LiteLLM_VerificationToken",
    "LiteLLM_UserTable",
    "LiteLLM_TeamTable",
    "LiteLLM_BudgetTable",
)
COLUMN: Final = {KEYS: "token", TEAMS: "team_alias", USERS: "user_role", BUDGETS: "budget_id"}
"""The column that tells a table; tried in this order."""
NOBODY: Final = "litellm"
"""Who pays for keys that belong to nobody there."""
ALL_MODELS: Final = frozenset({"*", "all-proxy-models"})
_SHA256: Final = re.compile(r"[0-9a-f]{64}\Z")
_OID: Final = re.compile(r"[!-~]{1,200}\Z")

Tables = Mapping[str, list[Body]]


def read_tables(paths: Iterable[Path]) -> Tables:
    """Raises: ConfigUnreadable, OSError."""
    tables: defaultdict[str, list[Body]] = defaultdict(list)
    for path in paths:
        text = path.read_text(encoding="utf-8-sig")
        for name, rows in _csv_rows(path, text) if path.suffix.lower() == ".csv" else _json_rows(path, text):
            tables[name] += rows
    return tables


def plan_accounts(tables: Tables, plan: Plan, now: datetime) -> None:
    """Add the users and keys of the export to the plan."""
    budgets = {str(row.get("budget_id")): row for row in tables.get(BUDGETS, ())}
    teams = {str(row.get("team_id")): row for row in tables.get(TEAMS, ())}
    for row in tables.get(USERS, ()):
        _user(
            str(row.get("user_id") or ""), row, budgets, plan, email=row.get("user_email"), name=row.get("user_alias")
        )
    for team_id, row in teams.items():
        _user(f"team:{team_id}", row, budgets, plan, email=None, name=row.get("team_alias"))
    for row in tables.get(KEYS, ()):
        _key(row, teams, budgets, plan, now)
    if any(
        float(row.get("spend") or 0) > 0 for rows in tables.values() for row in rows if _is_number(row.get("spend"))
    ):
        plan.note("spend", "", "what was spent before is not carried over: budgets begin anew")


# ── Accounts ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _user(oid: str, row: Body, budgets: Mapping[str, Body], plan: Plan, *, email: Any, name: Any) -> None:
    if not _OID.match(oid):
        plan.note("user", oid, "its id cannot travel in a header: it is empty, too long, or has spaces")
        return
    body: Body = {"user_oid": oid, **_allowance("user", oid, row, budgets, plan)}
    if body["limits"] is None:
        del body["limits"]  # absent: the settings' defaults
    body |= {field: str(value) for field, value in (("email", email), ("name", name)) if value not in (None, "")}
    if _true(row.get("blocked")):
        body["payment_status"] = "suspended"
    if _list(row.get("models")) and not ALL_MODELS.intersection(_list(row.get("models"))):
        plan.note("user", oid, "models are allowed by key here, not by user")
    if row.get("metadata") not in (None, "", {}, "{}"):
        plan.note("user", oid, "its metadata has no counterpart here")
    plan.users.append(body)


def _key(row: Body, teams: Mapping[str, Body], budgets: Mapping[str, Body], plan: Plan, now: datetime) -> None:
    token, shown = str(row.get("token") or ""), str(row.get("key_name") or "")
    name = str(row.get("key_alias") or shown or "imported")[:200]
    digest = bytes.fromhex(token) if _SHA256.match(token) else hashlib.sha256(token.encode()).digest()
    if not token:
        plan.note("key", name, "the export does not hold its digest")
        return
    try:
        expires_at = moment(row.get("expires"))
    except ValueError:
        plan.note("key", name, "its expiry cannot be read, so it is left out")
        return
    if expires_at is not None and expires_at <= now:
        plan.note("key", name, "it has expired")
        return
    team = row.get("team_id") or None
    owner = f"team:{team}" if team else str(row.get("user_id") or NOBODY)
    body: Body = {
        "user_oid": owner,
        "name": name,
        "allowed_models": _models(name, row, teams.get(str(team), {}), plan),
        "expires_at": None if expires_at is None else expires_at.isoformat(),
        **_allowance("key", name, row, budgets, plan),
    }
    if team and row.get("user_id"):
        body["labels"] = {"litellm_user": str(row["user_id"])[:100]}
    for field in ("model_max_budget", "aliases", "permissions", "metadata", "allowed_routes", "config"):
        if row.get(field) not in (None, "", {}, "{}", [], "[]"):
            plan.note("key", name, f"'{field}' has no counterpart here")
    if owner not in {user["user_oid"] for user in plan.users}:
        plan.users.append({"user_oid": owner, "name": "Imported from LiteLLM"})
        if owner != NOBODY:
            plan.note("user", owner, "a key names it, and the export does not: it is made without limits of its own")
    plan.keys.append(PlannedKey(body, digest, shown[-4:] if "..." in shown else "", _true(row.get("blocked"))))


def _models(name: str, row: Body, team: Body, plan: Plan) -> list[str]:
    given = _list(row.get("models"))
    if "all-team-models" in given:
        given = [each for each in given if each != "all-team-models"] + _list(team.get("models"))
    if "no-default-models" in given:
        plan.note("key", name, "it may use no model but those of its user or team; here it may use none")
        given = [each for each in given if each != "no-default-models"]
        return list(dict.fromkeys(given))
    if not given or ALL_MODELS.intersection(given):
        return ["*"]
    for model in given:
        if plan.models and model not in plan.model_names:
            plan.note("key", name, f"it may use '{model[:100]}', which the file does not describe")
    return list(dict.fromkeys(given))


def _allowance(what: str, name: str, row: Body, budgets: Mapping[str, Body], plan: Plan) -> Body:
    allowance = Allowance.of(row, budgets.get(str(row.get("budget_id")), {}))
    body: Body = {"limits": None, "budgets": []}
    try:
        body["limits"] = limits_of(allowance)
    except ValueError as error:
        plan.note(what, name, f"a limit is left out: {error}")
    try:
        body["budgets"] = budgets_of(allowance)
    except ValueError as error:
        plan.note(what, name, f"its budget is left out: {error}")
    duration = str(allowance.budget_duration or "")
    if body["budgets"] and duration and duration not in PERIODS:
        plan.note(
            what,
            name,
            f"its budget was counted over '{duration[:20]}'; here it holds in total until you choose a period",
        )
    return body


# ── Files ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _json_rows(path: Path, text: str) -> list[tuple[str, list[Body]]]:
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        raise ConfigUnreadable(f"{path.name} is no JSON") from None
    if isinstance(read, dict) and all(isinstance(rows, list) for rows in read.values()):
        return [
            (_table_of(str(name), rows) or str(name), [row for row in rows if isinstance(row, dict)])
            for name, rows in read.items()
        ]
    if not isinstance(read, list):
        raise ConfigUnreadable(f"{path.name} holds neither tables nor the rows of one")
    rows = [row for row in read if isinstance(row, dict)]
    return [(_table_or_refuse(path, rows), rows)]


def _csv_rows(path: Path, text: str) -> list[tuple[str, list[Body]]]:
    rows: list[Body] = [dict(row) for row in csv.DictReader(io.StringIO(text, newline=""))]
    return [(_table_or_refuse(path, rows), rows)]


def _table_or_refuse(path: Path, rows: list[Body]) -> str:
    found = _table_of(path.stem, rows)
    if found is None:
        raise ConfigUnreadable(f"{path.name} holds no table of LiteLLM's that is known here ({', '.join(COLUMN)})")
    return found


def _table_of(name: str, rows: list[Any]) -> str | None:
    plain = name.lower().replace("_", "")
    for table in COLUMN:
        if table.lower().replace("_", "") in plain:
            return table
    columns = set(rows[0]) if rows and isinstance(rows[0], dict) else set()
    return next((table for table, column in COLUMN.items() if column in columns), None)


def _list(value: Any) -> list[str]:
    """An array of the export: JSON's own, as JSON text, or PostgreSQL's (`{a,b}`)."""
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            try:
                value = json.loads(text)
            except ValueError:
                return []
        elif text.startswith("{") and text.endswith("}"):
            value = next(csv.reader([text[1:-1]]), [])
        else:
            value = [text] if text else []
    return [each for each in value if isinstance(each, str) and each] if isinstance(value, list) else []


def _true(value: Any) -> bool:
    return value is True or str(value).lower() in ("t", "true", "1")


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
