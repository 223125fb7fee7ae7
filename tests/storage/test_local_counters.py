"""Limits of one replica, in memory: its share, and never more of it in any interval than that."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from app.domain.limits import Claim, Limit, LimitKind, Scope
from app.storage.local_counters import LocalCounters
from app.storage.ports import Admitted, LimitRefused
from tests.storage.conform_counters import NOW_MS, requests, reservation, slots, tokens


@dataclass(slots=True)
class Time:
    now_ms: int = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


@given(
    steps=st.lists(st.integers(0, 20_000), min_size=1, max_size=120),
    limit=st.integers(1, 12),
    replicas=st.integers(1, 4),
)
def test_in_no_interval_of_the_windows_length_more_than_the_share_is_admitted(
    steps: list[int], limit: int, replicas: int
) -> None:
    time = Time()
    counters, admitted_ms = LocalCounters(time), []
    for number, step in enumerate(steps):
        time.now_ms += step
        if isinstance(counters.admit(reservation(f"c{number}", requests(limit)), replicas=replicas), Admitted):
            admitted_ms.append(time.now_ms)
    share = max(1, limit // replicas)
    for begin in admitted_ms:
        assert sum(begin <= moment < begin + 60_000 for moment in admitted_ms) <= share
    assert len(admitted_ms) >= min(share, len(steps))


def test_a_full_window_says_truly_when_the_claim_will_fit() -> None:
    time = Time()
    counters = LocalCounters(time)
    counters.admit(reservation("a", requests(1)), replicas=1)
    refused = counters.admit(reservation("b", requests(1)), replicas=1)
    assert isinstance(refused, LimitRefused)

    time.now_ms += refused.retry_after_ms - 1
    assert isinstance(counters.admit(reservation("c", requests(1)), replicas=1), LimitRefused)
    time.now_ms += 1
    assert isinstance(counters.admit(reservation("d", requests(1)), replicas=1), Admitted)


def test_a_refused_call_takes_nothing_from_other_limits() -> None:
    counters = LocalCounters(Time())
    wide = requests(2, holder="wide")
    assert isinstance(counters.admit(reservation("a", wide, tokens(10, 11)), replicas=1), LimitRefused)
    for call in ("b", "c"):
        assert isinstance(counters.admit(reservation(call, wide), replicas=1), Admitted)


def test_a_slot_is_free_again_and_tokens_are_corrected_once_the_call_is_settled() -> None:
    counters = LocalCounters(Time())
    one = reservation("a", slots(1), tokens(1_000, 800))
    assert isinstance(counters.admit(one, replicas=1), Admitted)
    assert isinstance(counters.admit(reservation("b", slots(1)), replicas=1), LimitRefused)

    assert counters.settle("a", tokens=100)

    assert not counters.settle("a", tokens=100), "once"
    assert isinstance(counters.admit(reservation("c", slots(1), tokens(1_000, 900)), replicas=1), Admitted)


def test_a_call_given_back_leaves_no_trace() -> None:
    counters = LocalCounters(Time())
    wanted = (requests(1), slots(1), tokens(10, 10))
    counters.admit(reservation("a", *wanted), replicas=1)
    counters.settle("a", tokens=None)
    assert isinstance(counters.admit(reservation("b", *wanted), replicas=1), Admitted)


def test_a_share_is_never_less_than_one_but_a_limit_of_zero_admits_nothing() -> None:
    counters = LocalCounters(Time())
    assert isinstance(counters.admit(reservation("a", requests(1)), replicas=9), Admitted)
    assert isinstance(counters.admit(reservation("b", requests(0, holder="none")), replicas=9), LimitRefused)


def test_an_elastic_claim_takes_what_is_left_but_no_less_than_it_needs() -> None:
    counters = LocalCounters(Time())
    claim = Claim(Scope.USER, "u1", Limit(LimitKind.TOKENS, 1_000, 60), 300, 100)
    answers = [counters.admit(reservation(f"c{i}", claim), replicas=1) for i in range(5)]
    taken = [answer.limits[0].claim.amount for answer in answers if isinstance(answer, Admitted)]
    assert taken == [300, 300, 300, 100]


def test_a_window_says_when_so_much_more_of_the_share_will_fit() -> None:
    time = Time()
    counters = LocalCounters(time)
    four = requests(4)
    assert counters.room_in_ms(four, 2, replicas=2) == 0
    for call in ("a", "b"):
        assert isinstance(counters.admit(reservation(call, four), replicas=2), Admitted)

    fits_ms, later_ms = counters.room_in_ms(four, 1, replicas=2), counters.room_in_ms(four, 3, replicas=2)

    assert later_ms == fits_ms + 60_000, "only two of them fit into one window"
    time.now_ms += fits_ms - 1
    assert isinstance(counters.admit(reservation("c", four), replicas=2), LimitRefused)
    time.now_ms += 1
    assert isinstance(counters.admit(reservation("c", four), replicas=2), Admitted)
