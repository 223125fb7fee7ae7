"""When a caller who hung up has shown that an endpoint hangs."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.hang_up import PATIENCE_S, USUAL_TIMES, shows_hanging

seconds = st.floats(0.001, 3600)


@given(waited_s=seconds, deadline_s=seconds, usual_s=st.floats(0, 600), answered_ago_s=seconds)
def test_an_answer_that_began_meanwhile_excuses_the_endpoint(
    waited_s: float, deadline_s: float, usual_s: float, answered_ago_s: float
) -> None:
    if answered_ago_s <= waited_s:
        assert not shows_hanging(
            waited_s=waited_s, deadline_s=deadline_s, usual_s=usual_s, answered_ago_s=answered_ago_s
        )


@given(waited_s=seconds, deadline_s=seconds, usual_s=st.floats(0, 600))
def test_nobody_is_blamed_for_a_caller_without_patience(waited_s: float, deadline_s: float, usual_s: float) -> None:
    if waited_s < min(PATIENCE_S, deadline_s / 2):
        assert not shows_hanging(waited_s=waited_s, deadline_s=deadline_s, usual_s=usual_s, answered_ago_s=inf)


@given(waited_s=seconds, deadline_s=seconds, usual_s=st.floats(0, 600))
def test_half_of_the_deadline_is_long_however_slow_the_endpoint_usually_is(
    waited_s: float, deadline_s: float, usual_s: float
) -> None:
    if waited_s >= deadline_s / 2:
        assert shows_hanging(waited_s=waited_s, deadline_s=deadline_s, usual_s=usual_s, answered_ago_s=inf)


@given(waited_s=seconds, longer_s=seconds, deadline_s=seconds, usual_s=st.floats(0, 600), answered_ago_s=seconds)
def test_who_waited_longer_in_vain_shows_no_less(
    waited_s: float, longer_s: float, deadline_s: float, usual_s: float, answered_ago_s: float
) -> None:
    short, long = sorted((waited_s, longer_s))
    since_s = long + answered_ago_s
    if shows_hanging(waited_s=short, deadline_s=deadline_s, usual_s=usual_s, answered_ago_s=since_s):
        assert shows_hanging(waited_s=long, deadline_s=deadline_s, usual_s=usual_s, answered_ago_s=since_s)


@pytest.mark.parametrize(
    ("usual_s", "deadline_s", "least_s"),
    [(0.0, 60.0, PATIENCE_S), (0.1, 60.0, PATIENCE_S), (2.0, 60.0, 2.0 * USUAL_TIMES), (20.0, 60.0, 30.0)],
    ids=["never answered", "quick", "slow", "slower than its deadline allows for"],
)
def test_how_long_is_long(usual_s: float, deadline_s: float, least_s: float) -> None:
    def blamed_after(waited_s: float) -> bool:
        return shows_hanging(waited_s=waited_s, deadline_s=deadline_s, usual_s=usual_s, answered_ago_s=1000)

    assert blamed_after(least_s)
    assert not blamed_after(least_s * 0.99)
