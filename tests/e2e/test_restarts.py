"""Both stores restarted under load, once each way; `python -m bench.restarts` does it again and again, and tells the times."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from bench.restarts import measured


@pytest.mark.timeout(300)
def test_no_call_of_a_known_key_fails_while_redis_and_postgresql_are_restarted() -> None:
    """Three gateways behind nginx: each store is stopped and started, and killed and started; each call is in the ledger once."""
    with ThreadPoolExecutor(1) as elsewhere:  # the browser's driver keeps a loop in this thread
        outcome = elsewhere.submit(measured, times=1, rate=20.0, between_s=2.0).result()

    assert outcome.faults == {}
    assert len(outcome.restarts) == 4
    assert outcome.recorded == outcome.charged >= outcome.calls > 0
    assert outcome.cost_nanousd == outcome.due_nanousd
