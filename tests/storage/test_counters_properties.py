"""Whatever happens to calls in whatever order, a hard budget holds and nothing is lost of what it held: reserved is what open calls
reserved, spent is what settled calls cost.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from app.domain.budget import Need
from app.domain.money import NanoUsd, PicoUsd
from app.embedded import ValkeyServer
from app.redis_client import open_redis
from app.storage.ports import Admitted
from app.storage.redis_counters import RedisCounters
from tests.storage.conform_counters import NOW_MS, money, reservation, settlement

HARD = 10_000


@dataclass(slots=True)
class Model:
    """What the counters must say."""

    spent: int = 0
    open: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    leases: dict[str, int] = field(default_factory=dict)
    now_ms: int = NOW_MS
    count: int = 0


class BudgetMachine(RuleBasedStateMachine):
    valkey_url = ""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self._do("flush")
        self._do("seed")

    def _do(self, what: str, *arguments: Any) -> Any:
        """One step on a connection of its own: Hypothesis is not asynchronous, and steps need no speed."""

        async def step() -> Any:
            client = open_redis(self.valkey_url, timeout_ms=5_000)
            async with client.pumping():
                counters = RedisCounters(client)
                counters.now_ms = self.model.now_ms
                match what:
                    case "flush":
                        return await client.redis.flushall()
                    case "seed":
                        return await counters.seed(money(0, hard=HARD), NanoUsd(0))
                    case "state":
                        (state,) = await counters.budget_states([money(0, hard=HARD)])
                        return state
                    case _:
                        return await getattr(counters, what)(*arguments)

        return asyncio.run(step())

    @rule(
        fixed=st.integers(0, 300),
        unit=st.sampled_from([0, 1, 999, 1000, 2500, 10_000]),
        most=st.integers(1, 5_000),
        floor=st.integers(1, 200),
        elastic=st.booleans(),
    )
    def admit(self, fixed: int, unit: int, most: int, floor: int, elastic: bool) -> None:
        self.model.count += 1
        call_id = f"c{self.model.count}"
        need = Need(NanoUsd(fixed), PicoUsd(unit), most, floor, is_elastic=elastic)
        claim = money(0, hard=HARD, lost=fixed)
        free = HARD - self.model.spent - sum(self.model.open.values())
        answer = self._do("admit", reservation(call_id, claim, need=need))
        if isinstance(answer, Admitted):
            amount = answer.budgets[0].claim.amount_nanousd
            assert amount == need.cost_of(answer.output_tokens)
            assert min(floor, most) <= answer.output_tokens <= most
            assert amount <= max(0, free)
            self.model.open[call_id] = amount
            self.model.lost[call_id] = min(fixed, amount)
            self.model.leases[call_id] = self.model.now_ms + 60_000
        else:
            assert free < need.cost_of(most), "payable work is not refused"

    @precondition(lambda self: self.model.open)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        call_id = data.draw(st.sampled_from(sorted(self.model.open)))
        cost = data.draw(st.integers(0, self.model.open[call_id]))
        for _ in range(data.draw(st.integers(1, 2))):
            self._do("settle", settlement(call_id, cost=cost))
        self._close(call_id)
        self.model.spent += cost

    @precondition(lambda self: self.model.open)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        call_id = data.draw(st.sampled_from(sorted(self.model.open)))
        self._do("release", call_id)
        self._close(call_id)

    @precondition(lambda self: self.model.open)
    @rule(data=st.data(), wanted=st.integers(1, 6_000))
    def grow(self, data: st.DataObject, wanted: int) -> None:
        call_id = data.draw(st.sampled_from(sorted(self.model.open)))
        self._do("grow", call_id, wanted)
        state = self._do("state")
        others = sum(amount for other, amount in self.model.open.items() if other != call_id)
        assert state.reserved_nanousd - others >= self.model.open[call_id], (
            "a reservation never shrinks while its call runs"
        )
        self.model.open[call_id] = state.reserved_nanousd - others

    @rule(seconds=st.sampled_from([1, 30, 61]))
    def time_passes(self, seconds: int) -> None:
        self.model.now_ms += seconds * 1000
        self._do("expire_leases", 100)
        for call_id, ends_ms in list(self.model.leases.items()):
            if ends_ms <= self.model.now_ms:
                self.model.spent += self.model.lost[call_id]
                self._close(call_id)

    @invariant()
    def the_budget_holds_and_nothing_is_lost_of_it(self) -> None:
        state = self._do("state")
        assert state.spent_nanousd == self.model.spent
        assert state.reserved_nanousd == sum(self.model.open.values())
        assert state.spent_nanousd + state.reserved_nanousd <= HARD

    def _close(self, call_id: str) -> None:
        for known in (self.model.open, self.model.lost, self.model.leases):
            known.pop(call_id)


@pytest.mark.timeout(300)
def test_a_hard_budget_holds_whatever_happens_to_its_calls(valkey: ValkeyServer) -> None:
    BudgetMachine.valkey_url = valkey.url
    run_state_machine_as_test(
        BudgetMachine,
        settings=settings(
            max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
