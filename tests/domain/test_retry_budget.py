"""The retry budget: T093's bound on what an outage may be multiplied to."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.domain.retry_budget import FLOOR, WINDOW_S, RetryBudget


def test_little_traffic_may_fail_over_all_the_same() -> None:
    budget = RetryBudget(20)
    budget.called(0)

    assert budget.may_retry(0)


def test_at_200_calls_a_second_that_all_fail_no_ten_seconds_see_more_than_a_fifth_again() -> None:
    """T093: 30 s of outage, every call would be tried three times."""
    budget, sent = RetryBudget(20), []
    for number in range(6000):
        now = number / 200
        budget.called(now)
        sent.append((now, 1))
        sent += [(now, 0)] * sum(budget.may_retry(now) for _ in range(2))

    for start in range(21):
        within = [is_call for at, is_call in sent if start <= at < start + WINDOW_S]
        assert len(within) <= 1.2 * sum(within)


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 5)), min_size=1, max_size=60))
def test_the_bound_holds_at_every_moment(steps: list[tuple[float, int]]) -> None:
    budget, now = RetryBudget(20), 0.0
    retries: list[float] = []
    for wait_s, wanted in steps:
        now += wait_s
        budget.called(now)
        retries += [now for _ in range(wanted) if budget.may_retry(now)]
        calls, counted = budget.counted(now)
        assert counted <= max(FLOOR, calls * 20 // 100)
        assert sum(at > now - WINDOW_S for at in retries) <= counted


def test_without_a_share_only_the_floor_is_left() -> None:
    budget = RetryBudget(0)
    for _ in range(1000):
        budget.called(0)

    assert sum(budget.may_retry(0) for _ in range(100)) == FLOOR
