"""T140 in small: months go while calls are made. The long form, with five million rows and the times, is `python -m bench.retention`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from statistics import median

import pytest

from app.storage.sql_partitions import month_of
from bench.retention import measured, rules

ROWS = 60_000
MB = 1_000_000


@pytest.mark.timeout(240)
def test_months_go_while_calls_are_made_and_nobody_minds() -> None:
    """T140."""
    with ThreadPoolExecutor(1) as elsewhere:  # the browser's driver keeps a loop in this thread
        outcome = elsewhere.submit(measured, ROWS, rounds=2, window_s=2.0, rate=20.0).result()

    assert outcome.failed == []
    assert outcome.summed == outcome.calls > 0
    assert (outcome.orphans, outcome.left_over) == (0, [])
    assert outcome.disk_after_bytes < 0.9 * outcome.disk_before_bytes
    assert outcome.oldest_content is not None
    assert outcome.oldest_record is not None
    last = rules(outcome.at)[-1]
    oldest_body, oldest_record = (
        month_of(outcome.at - timedelta(days=days)) for days in (last.log_days, last.ledger_days)
    )
    assert month_of(outcome.oldest_content) == oldest_body
    assert month_of(outcome.oldest_record) == oldest_record < oldest_body
    # Bounds that a stalling machine keeps too; how close to one the ratio is, the long form tells.
    assert outcome.lock_wait_s < 5.0
    assert median(outcome.dropping_ms) < 5 * median(outcome.quiet_ms) + 100
    assert outcome.memory_bytes[-1] < outcome.memory_bytes[0] + 40 * MB
