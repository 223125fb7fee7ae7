"""The breaker's table of states: T065, T067, T088, T089, and what holds of it whatever happens (by property)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.domain.breaker import (
    COOL_JITTER,
    COOL_S,
    CREDENTIAL_OPEN_S,
    JITTER,
    MAX_COOL_S,
    MIN_COOL_S,
    Breaker,
    BreakerRules,
    BreakerState,
    Fault,
)

RULES = BreakerRules()
MIDDLE = 0.5
"""The chance that leaves a nominal time as it is."""
FAULTS = [Fault.ERROR, Fault.TIMEOUT, Fault.BAD_ANSWER, Fault.TRUNCATED, Fault.SLOW]


def fail(breaker: Breaker, times: int = 1, *, fault: Fault = Fault.ERROR, at: float = 0.0) -> None:
    for _ in range(times):
        breaker.failed(breaker.begin(at), fault, now_s=at, chance=MIDDLE)


def succeed(breaker: Breaker, times: int = 1, *, at: float = 0.0) -> None:
    for _ in range(times):
        ticket = breaker.begin(at)
        breaker.answered(ticket)
        breaker.succeeded(ticket, at)


@pytest.mark.parametrize("fault", FAULTS)
def test_four_faults_in_a_row_leave_it_closed_and_the_fifth_opens_it(fault: Fault) -> None:
    """T088, of every kind of fault."""
    breaker = Breaker(RULES)
    fail(breaker, 4, fault=fault)
    assert breaker.state(0) is BreakerState.CLOSED

    fail(breaker, fault=fault)

    assert breaker.state(0) is BreakerState.OPEN
    assert breaker.fault is fault


def test_a_success_in_between_begins_the_count_anew() -> None:
    """T088."""
    breaker = Breaker(BreakerRules(fault_percent=0))
    for _ in range(10):
        fail(breaker, 4)
        succeed(breaker)

    assert breaker.state(0) is BreakerState.CLOSED


def test_half_of_twenty_opens_it_and_half_of_nineteen_does_not() -> None:
    """T088: 50 % of 20, never five in a row."""
    breaker = Breaker(RULES)
    for _ in range(9):
        fail(breaker)
        succeed(breaker)
    fail(breaker)
    assert breaker.state(0) is BreakerState.CLOSED, "10 of 19"

    fail(breaker)

    assert breaker.state(0) is BreakerState.OPEN, "11 of 20"


def test_what_has_left_the_window_does_not_count() -> None:
    breaker = Breaker(RULES)
    for _ in range(9):
        fail(breaker)
        succeed(breaker)

    fail(breaker, at=31)
    fail(breaker, at=31)

    assert breaker.counted(31) == (2, 2)
    assert breaker.state(31) is BreakerState.CLOSED


def test_it_is_half_open_after_its_time_and_lets_one_probe_through() -> None:
    """T089."""
    breaker = Breaker(RULES)
    fail(breaker, 5)
    assert not breaker.may_begin(RULES.open_s - 0.01)
    assert breaker.may_begin(RULES.open_s)

    ticket = breaker.begin(RULES.open_s)

    assert breaker.state(RULES.open_s) is BreakerState.HALF_OPEN
    assert not breaker.may_begin(RULES.open_s), "nobody else probes meanwhile"
    assert breaker.answered(ticket)
    assert breaker.state(RULES.open_s) is BreakerState.CLOSED


def test_each_failed_probe_doubles_the_time_up_to_the_cap() -> None:
    """T089."""
    breaker, now, times = Breaker(RULES), 0.0, []
    fail(breaker, 5)
    for _ in range(6):
        times.append(breaker.opens_in_s(now))
        now += breaker.opens_in_s(now)
        fail(breaker, at=now)

    assert times == pytest.approx([2, 4, 8, 10, 10, 10])


@given(st.floats(0, 1), st.integers(1, 40))
def test_an_open_time_lies_within_a_fifth_of_its_nominal_length(chance: float, failures: int) -> None:
    """T089: ± 20 %, capped."""
    breaker, now = Breaker(RULES), 0.0
    fail(breaker, 4)
    for number in range(failures):
        breaker.failed(breaker.begin(now), Fault.ERROR, now_s=now, chance=chance)
        nominal = min(RULES.open_s * 2**number, RULES.max_open_s)
        assert nominal * (1 - JITTER) - 1e-6 <= breaker.opens_in_s(now) <= nominal * (1 + JITTER) + 1e-6
        now += breaker.opens_in_s(now)


def test_until_a_whole_answer_one_fault_is_enough_to_open_it_again() -> None:
    breaker = Breaker(RULES)
    fail(breaker, 5)
    probe = breaker.begin(2)
    breaker.answered(probe)

    breaker.failed(probe, Fault.TRUNCATED, now_s=3, chance=MIDDLE)

    assert breaker.state(3) is BreakerState.OPEN
    assert breaker.opens_in_s(3) == pytest.approx(4)


def test_after_a_whole_answer_it_takes_five_again() -> None:
    breaker = Breaker(RULES)
    fail(breaker, 5)
    succeed(breaker, at=3)

    fail(breaker, 4, at=3)

    assert breaker.state(3) is BreakerState.CLOSED


def test_attempts_from_before_it_opened_change_nothing_afterwards() -> None:
    breaker = Breaker(RULES)
    early = [breaker.begin(0) for _ in range(30)]
    for ticket in early[:5]:
        breaker.failed(ticket, Fault.ERROR, now_s=0, chance=MIDDLE)
    for ticket in early[5:15]:
        breaker.failed(ticket, Fault.ERROR, now_s=1, chance=MIDDLE)
    assert breaker.opens_in_s(1) == pytest.approx(1), "not extended"
    probe = breaker.begin(2)
    breaker.answered(probe)

    for ticket in early[15:]:
        breaker.failed(ticket, Fault.ERROR, now_s=3, chance=MIDDLE)

    assert breaker.state(3) is BreakerState.CLOSED


def test_a_probe_whose_caller_left_lets_the_next_one_probe() -> None:
    breaker = Breaker(RULES)
    fail(breaker, 5)
    ticket = breaker.begin(0)
    breaker.abandoned(ticket)

    assert breaker.may_begin(2)
    assert breaker.state(2) is BreakerState.HALF_OPEN


@pytest.mark.parametrize(
    ("asked_s", "least_s"), [(7.0, 7.0), (86_400.0, MAX_COOL_S), (0.0, MIN_COOL_S), (None, COOL_S), (-1.0, MIN_COOL_S)]
)
@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_an_upstream_that_says_when_to_come_back_is_left_alone_for_that_long_and_a_little_longer(
    asked_s: float | None, least_s: float, chance: float
) -> None:
    """T065: min(value, cap) + positive jitter; and "at once" is no leave to ask in a loop."""
    breaker = Breaker(RULES)

    breaker.failed(breaker.begin(0), Fault.BUSY, now_s=0, chance=chance, retry_after_s=asked_s)

    assert least_s <= breaker.opens_in_s(0) <= least_s * (1 + COOL_JITTER)


@given(st.lists(st.tuples(st.floats(0, 400), st.floats(0, 1)), min_size=1, max_size=8))
def test_a_later_word_of_the_upstream_extends_and_never_shortens(words: list[tuple[float, float]]) -> None:
    """T065."""
    breaker, until = Breaker(RULES), 0.0
    for asked_s, chance in words:
        breaker.failed(0, Fault.BUSY, now_s=0, chance=chance, retry_after_s=asked_s)
        assert breaker.opens_in_s(0) >= until
        until = breaker.opens_in_s(0)


@pytest.mark.parametrize("fault", [Fault.CREDENTIAL, Fault.CERTIFICATE])
def test_what_only_somebody_can_mend_opens_it_at_once(fault: Fault) -> None:
    """T064, T085."""
    breaker = Breaker(RULES)

    fail(breaker, fault=fault)

    assert breaker.opens_in_s(0) == pytest.approx(CREDENTIAL_OPEN_S)


def test_who_only_believed_what_it_was_told_sees_for_itself_once_it_hears_better() -> None:
    """T067, T091."""
    told, knows = Breaker(RULES), Breaker(RULES)
    told.told(Fault.ERROR, 5, 0)
    fail(knows, 5)
    knows.told(Fault.ERROR, 5, 0)

    told.told_well(1)
    knows.told_well(1)

    assert told.state(1) is BreakerState.HALF_OPEN
    assert knows.state(1) is BreakerState.OPEN, "by what it has seen itself"


def test_a_word_from_elsewhere_ends_by_itself() -> None:
    """T091: no "open for ever"."""
    breaker = Breaker(RULES)
    breaker.told(Fault.ERROR, 1e12, 0)

    assert breaker.opens_in_s(0) <= MAX_COOL_S * (1 + COOL_JITTER)


def test_a_probe_that_hangs_is_not_waited_for_longer_than_the_endpoint_is_ever_left_alone() -> None:
    """T090: never black-holed, also by an upstream that takes calls and says nothing."""
    breaker = Breaker(RULES)
    fail(breaker, 5)
    hung = breaker.begin(2)
    assert not breaker.may_begin(2 + RULES.max_open_s - 0.01)
    assert breaker.may_begin(2 + RULES.max_open_s)

    second = breaker.begin(2 + RULES.max_open_s)

    assert not breaker.may_begin(2 + RULES.max_open_s)
    assert breaker.answered(hung) is None, "its word is old"
    assert breaker.answered(second)


def test_a_reset_forgets_everything() -> None:
    breaker = Breaker(RULES)
    fail(breaker, 5)

    breaker.reset(1)
    fail(breaker, 4, at=1)

    assert breaker.state(1) is BreakerState.CLOSED


class AnyLife(RuleBasedStateMachine):
    """Whatever happens to it, in whatever order."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(RULES)
        self.now = 0.0
        self.running: list[int] = []
        self.probes: set[int] = set()

    @rule(seconds=st.floats(0, 15))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.breaker.may_begin(self.now))
    @rule()
    def begin(self) -> None:
        is_probe = not self.breaker.is_closed
        ticket = self.breaker.begin(self.now)
        self.running.append(ticket)
        if is_probe:
            assert self.breaker.state(self.now) is BreakerState.HALF_OPEN
            assert not self.breaker.may_begin(self.now)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), how=st.sampled_from(["ok", "cancelled", *FAULTS, Fault.BUSY]), chance=st.floats(0, 1))
    def end(self, data: st.DataObject, how: str | Fault, chance: float) -> None:
        ticket = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        before = self.breaker.opens_in_s(self.now)
        if how == "ok":
            self.breaker.answered(ticket)
            self.breaker.succeeded(ticket, self.now)
        elif how == "cancelled":
            self.breaker.abandoned(ticket)
        else:
            self.breaker.failed(ticket, Fault(how), now_s=self.now, chance=chance)
            assert self.breaker.opens_in_s(self.now) >= before, "never shortened"

    @rule(seconds=st.floats(0, 1000))
    def told(self, seconds: float) -> None:
        self.breaker.told(Fault.ERROR, seconds, self.now)

    @invariant()
    def it_is_never_shut_for_good(self) -> None:
        assert self.breaker.opens_in_s(self.now) <= MAX_COOL_S * (1 + COOL_JITTER)

    @invariant()
    def whoever_waits_long_enough_may_begin(self) -> None:
        if not self.breaker.is_probing:
            assert self.breaker.may_begin(self.now + self.breaker.opens_in_s(self.now) + 1e-6)

    @invariant()
    def the_states_agree(self) -> None:
        state = self.breaker.state(self.now)
        assert (state is BreakerState.CLOSED) == self.breaker.is_closed
        if state is BreakerState.OPEN:
            assert not self.breaker.may_begin(self.now)


TestAnyLife = AnyLife.TestCase
TestAnyLife.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
"""A life is long; a slow machine needs minutes for the usual hundred of fifty steps."""
