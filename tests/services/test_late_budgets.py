"""Budgets that are made while calls run or come in: who holds them from then on."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC
from typing import cast

import pytest

from app.domain.budget import Budget, BudgetClaim
from app.domain.catalog import Catalog
from app.domain.limits import Scope
from app.exceptions import DependencyUnavailable
from app.services.late_budgets import LateBudgets
from app.services.running import RunningCalls
from app.storage.ports import ConfigChange, Counters
from tests.calls import PRICE, a_budget, a_meter, a_model, an_estimate

MODEL = a_model("gpt-4", price=PRICE)
CATALOG = Catalog.of(1, [MODEL])
CHANGE = ConfigChange(2, "user", "alice", 0.0)


class Store:
    def __init__(self) -> None:
        self.is_away = False

    async def budgets_of(self, scope: Scope, holder: str) -> tuple[Budget, ...]:
        if self.is_away:
            raise DependencyUnavailable("database")
        return (a_budget(10**9),)


class Joining:
    def __init__(self) -> None:
        self.joined: list[tuple[str, list[str]]] = []

    async def join(self, call_id: str, claims: Sequence[BudgetClaim]) -> None:
        self.joined.append((call_id, [claim.counter for claim in claims]))


class House:
    def __init__(self) -> None:
        self.running, self.counters, self.store = RunningCalls(), Joining(), Store()
        self.late = LateBudgets(
            running=self.running, counters=cast(Counters, self.counters), store=self.store, zone=UTC
        )

    def call(self) -> str:
        """One is admitted, on what its user had before."""
        meter = a_meter(estimate=an_estimate(), model=MODEL)
        self.running.add(meter.request_id, meter)
        return meter.request_id


async def test_a_call_that_runs_holds_the_budget_that_is_made() -> None:
    house = House()
    call_id = house.call()
    await house.late.follow([CHANGE], CATALOG)
    assert house.counters.joined == [(call_id, ["user:alice:total"])]


async def test_a_call_that_was_on_its_way_in_holds_it_a_moment_later() -> None:
    house = House()
    await house.late.follow([CHANGE], CATALOG)
    call_id = house.call()
    await house.late.follow_again(CATALOG)
    await house.late.follow_again(CATALOG)
    assert house.counters.joined == [(call_id, ["user:alice:total"])]


async def test_a_second_look_that_fails_is_taken_again() -> None:
    house = House()
    await house.late.follow([CHANGE], CATALOG)
    call_id = house.call()
    house.store.is_away = True
    with pytest.raises(DependencyUnavailable):
        await house.late.follow_again(CATALOG)
    house.store.is_away = False
    await house.late.follow_again(CATALOG)
    assert [each for each, _ in house.counters.joined] == [call_id]
