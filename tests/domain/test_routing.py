"""Smooth weighted round robin: exact shares, evenly spread."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.routing import smooth_pick

WEIGHTS = st.lists(st.integers(min_value=0, max_value=20), min_size=1, max_size=6).map(
    lambda weights: [(f"e{i}", weight) for i, weight in enumerate(weights)]
)


def picks(weights: list[tuple[str, int]], count: int) -> list[str]:
    chosen, credits = [], dict[str, int]()
    for _ in range(count):
        name, credits = smooth_pick(weights, credits)
        chosen.append(name)
    return chosen


def test_weights_3_2_1_give_3_2_1_of_every_6_picks_wherever_one_begins_to_count() -> None:
    chosen = picks([("a", 3), ("b", 2), ("c", 1)], 60)

    for start in range(54):
        assert Counter(chosen[start : start + 6]) == {"a": 3, "b": 2, "c": 1}


def test_the_picks_are_spread_as_nginx_spreads_them() -> None:
    assert "".join(picks([("a", 5), ("b", 1), ("c", 1)], 7)) == "aabacaa"


@given(WEIGHTS)
def test_over_the_sum_of_the_weights_each_is_taken_its_weights_number_of_times(weights: list[tuple[str, int]]) -> None:
    total = sum(weight for _, weight in weights)
    shares = dict(weights) if total else dict.fromkeys((name for name, _ in weights), 1)
    total = total or len(weights)

    chosen = picks(weights, 3 * total)

    for start in (0, total, 2 * total):
        taken = Counter(chosen[start : start + total])
        assert {name: taken[name] for name in shares} == shares


@given(WEIGHTS)
def test_credits_always_sum_up_to_nothing(weights: list[tuple[str, int]]) -> None:
    credits: dict[str, int] = {}
    for _ in range(20):
        _, credits = smooth_pick(weights, credits)
        assert sum(credits.values()) == 0


def test_a_candidate_without_weight_is_taken_only_when_no_other_is_left() -> None:
    assert set(picks([("a", 0), ("b", 1)], 10)) == {"b"}
    assert Counter(picks([("a", 0), ("b", 0)], 10)) == {"a": 5, "b": 5}


def test_a_tie_goes_to_the_earlier_one() -> None:
    assert picks([("b", 1), ("a", 1)], 1) == ["b"]


def test_a_pick_changes_nothing_it_was_given() -> None:
    credits = {"a": 1, "b": -1}

    smooth_pick([("a", 1), ("b", 1)], credits)

    assert credits == {"a": 1, "b": -1}


def test_without_candidates_there_is_nothing_to_pick() -> None:
    with pytest.raises(ValueError, match="no candidates"):
        smooth_pick([], {})
