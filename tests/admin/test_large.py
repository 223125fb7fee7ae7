"""A reduced form of `bench.pages`: every page answers over a ledger filled by SQL, and none reads it whole (T139)."""

from __future__ import annotations

import asyncio
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from app.embedded import PostgresServer, ValkeyServer
from bench.pages import PAGES, measure

ROWS = 40_000
SLOW_MS = 2_000.0
"""Far above the goal of 150 ms, which is measured by hand at five million: this machine is shared by whoever runs tests."""


def test_every_page_answers_over_a_filled_ledger_t139() -> None:
    with tempfile.TemporaryDirectory(prefix="gateway-large-") as home:
        postgres = PostgresServer(Path(home) / "postgres", durable=False, on_progress=lambda _: None)
        valkey = ValkeyServer(Path(home) / "valkey", durable=False, on_progress=lambda _: None)
        postgres.start()
        valkey.start()
        try:
            with ThreadPoolExecutor(1) as elsewhere:  # the browser's driver keeps a loop in this thread
                work = measure(postgres.url, valkey.url, rows=ROWS, rounds=3)
                found = elsewhere.submit(asyncio.run, work).result()
        finally:
            valkey.stop()
            postgres.stop()
    assert {each.name for each in found if each.status == 200} == set(PAGES)
    assert {each.name: each.p50_ms for each in found if each.p50_ms > SLOW_MS} == {}
