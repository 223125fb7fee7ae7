"""The command line of the import: files in, a report out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from app.config import environment_variable
from app.container import Container
from app.domain.access import COMMAND_LINE, Actor, Role
from app.exceptions import InvalidRequest
from app.import_litellm.apply import CREATED, FAILED, THERE, Import, Report
from app.import_litellm.config_file import ConfigUnreadable, read_config
from app.import_litellm.plan import Plan
from app.import_litellm.tables import plan_accounts, read_tables

SHOWN_NOTES = 100
"""More than anybody reads at once; `--json` has them all."""


def planned(config: Path, tables: Sequence[Path], *, now: datetime, resolves_env: bool) -> Plan:
    """Raises: InvalidRequest, one line for the operator, when a file cannot be read."""
    plan = Plan()
    try:
        read_config(config.read_text(encoding="utf-8-sig"), plan, environment_variable if resolves_env else None)
        plan_accounts(read_tables(tables), plan, now)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"A file cannot be read: {error}.") from None
    except ConfigUnreadable as error:
        raise InvalidRequest(f"The import cannot be read: {error}.") from None
    return plan


async def import_litellm(services: Container, plan: Plan, *, is_dry: bool) -> Report:
    if plan.keys and not services.settings.accept_litellm_keys:
        plan.note("keys", "", "set ACCEPT_LITELLM_KEYS=true to let the imported keys go on working")
    return await Import(services.management, Actor(COMMAND_LINE, Role.OWNER), Report(is_dry)).run(plan)


def told(report: Report, *, as_json: bool) -> str:
    if as_json:
        return json.dumps(report.as_mapping(), indent=2, ensure_ascii=False)
    verb = "would be created" if report.is_dry else "created"
    lines = [
        f"{kind.capitalize():10} {counts[CREATED]} {verb}, {counts[THERE]} there already, {counts[FAILED]} failed"
        for kind, counts in report.counts.items()
    ]
    if report.notes:
        lines += ["", "Not carried over, or not exactly:"]
        lines += [f"  {note.what} {note.name}: {note.why}" for note in report.notes[:SHOWN_NOTES]]
    if len(report.notes) > SHOWN_NOTES:
        lines.append(f"  … and {len(report.notes) - SHOWN_NOTES} more; all of them: --json")
    return "\n".join(lines)
