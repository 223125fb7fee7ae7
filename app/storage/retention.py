"""How long what was recorded is kept: months are made before they are needed, and dropped whole when all of them is old enough.

Prompts, answers and refused calls go after `LOG_RETENTION_DAYS`. The ledger has a longer rule of its own (`LEDGER_RETENTION_DAYS`; 0: it
is kept), and its hourly sums stay in any case, so that budgets in total and reports go on adding up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncEngine

from app.models.tables import refused_calls, usage_content, usage_records
from app.storage.sql_partitions import (
    Month,
    drop_partitions_before,
    ensure_partitions,
    month_after,
    month_of,
    months_kept,
)
from app.telemetry import PARTITIONS_DROPPED, logger

MONTHS_AHEAD = 2
"""Made beforehand, so that nobody minds a maintenance that has stood still for a month."""


@dataclass(frozen=True, slots=True)
class Retention:
    log_days: int
    ledger_days: int
    """0: for ever."""


async def keep_partitions(engine: AsyncEngine, retention: Retention, now: datetime) -> tuple[list[str], list[str]]:
    """Make the months to come and drop those that are over. Returns the names of both. Raises: NotTheOwner, DependencyUnavailable."""
    made = await ensure_partitions(engine, _months_from(month_of(now), MONTHS_AHEAD))
    dropped = await drop_partitions_before(
        engine, now - timedelta(days=retention.log_days), (usage_content, refused_calls)
    )
    if retention.ledger_days:
        moment = now - timedelta(days=retention.ledger_days)
        # What somebody reads all the time is left for the next round: then its calls are, too, or it would be of none.
        spoken = await months_kept(engine, usage_content)
        dropped += await drop_partitions_before(engine, moment, (usage_records,), but=spoken)
    for name in dropped:
        PARTITIONS_DROPPED.add(name.rpartition("_p")[0])
        logger.info("partition_dropped", partition=name)
    return made, dropped


def _months_from(month: Month, ahead: int) -> Sequence[Month]:
    months = [month]
    for _ in range(ahead):
        months.append(month_after(months[-1]))
    return months
