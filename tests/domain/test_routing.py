"""Choosing among endpoints: exact shares, fewest calls, shortest waits, least cost, and staying with one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain import routing
from app.domain.peak_ewma import DECAY_S, PeakEwma


@dataclass
class Share:
    id: str
    weight: int = 1
    in_flight: int = 0
    credit: int = 0


WEIGHTS = st.lists(st.integers(min_value=0, max_value=20), min_size=1, max_size=6).map(
    lambda weights: [(f"e{i}", weight) for i, weight in enumerate(weights)]
)


def picks(weights: list[tuple[str, int]], count: int) -> list[str]:
    shares = [Share(name, weight) for name, weight in weights]
    return [routing.round_robin(shares).id for _ in range(count)]


# ── Round robin ───────────────────────────────────────────────────────────────────────────────────────────────────────


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
    shares = [Share(name, weight) for name, weight in weights]
    for _ in range(20):
        routing.round_robin(shares)
        assert sum(share.credit for share in shares) == 0


def test_a_candidate_without_weight_is_taken_only_when_no_other_is_left() -> None:
    assert set(picks([("a", 0), ("b", 1)], 10)) == {"b"}
    assert Counter(picks([("a", 0), ("b", 0)], 10)) == {"a": 5, "b": 5}


def test_a_tie_goes_to_the_earlier_one() -> None:
    assert picks([("b", 1), ("a", 1)], 1) == ["b"]


def test_without_candidates_there_is_nothing_to_pick() -> None:
    with pytest.raises(ValueError, match="no shares"):
        routing.round_robin([])


# ── Least busy ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_of_two_the_one_with_fewer_calls_for_its_weight_is_taken() -> None:
    assert routing.least_busy([Share("a", 1, 1), Share("b", 1, 0)], Random(1).random).id == "b"
    assert routing.least_busy([Share("a", 10, 4), Share("b", 1, 0)], Random(1).random).id == "a"


def test_calls_that_stay_are_spread_by_weight() -> None:
    shares, chance = [Share("a", 3), Share("b", 2), Share("c", 1)], Random(7).random
    for _ in range(600):
        routing.least_busy(shares, chance).in_flight += 1

    assert {share.id: round(share.in_flight / 100) for share in shares} == {"a": 3, "b": 2, "c": 1}


def test_a_busy_one_is_left_alone_by_the_others_calls() -> None:
    shares, chance = [Share("hung", 1, 500), *(Share(f"e{i}") for i in range(4))], Random(3).random

    assert "hung" not in {routing.least_busy(shares, chance).id for _ in range(200)}


# ── Latency ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_quicker_one_is_taken_until_its_queue_makes_it_the_slower_one() -> None:
    latency = {"quick": 0.1, "slow": 0.25}
    shares = [Share("quick"), Share("slow")]
    taken = []
    for _ in range(3):
        share = routing.lowest_latency(shares, lambda each: latency[each.id])
        share.in_flight += 1
        taken.append(share.id)

    assert taken == ["quick", "quick", "slow"]


def test_an_endpoint_that_nobody_knows_is_tried_but_not_by_a_crowd() -> None:
    shares = [Share("known"), Share("new")]
    first = routing.lowest_latency(shares, lambda each: 0.2 if each.id == "known" else 0.0)
    first.in_flight += 1

    assert first.id == "new"
    assert routing.lowest_latency(shares, lambda each: 0.2 if each.id == "known" else 0.0).id == "known"


def test_a_peak_counts_at_once_and_fades_with_time() -> None:
    ewma = PeakEwma()
    ewma.observe(0.1, 0)
    ewma.observe(2.0, 1)
    assert ewma.at(1) == 2.0

    ewma.observe(0.1, 2)

    assert 1.7 < ewma.at(2) < 2.0, "forgiven bit by bit"
    assert ewma.at(2 + 5 * DECAY_S) < 0.02, "and tried again in time"


# ── Cost ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_cheapest_is_taken_and_the_cheapest_ones_take_turns() -> None:
    price = {"dear": 10, "b": 2, "c": 2, "unknown": None}
    shares = [Share(name) for name in price]

    taken = [routing.cheapest(shares, lambda each: price[each.id]).id for _ in range(4)]

    assert taken == ["b", "c", "b", "c"]


def test_without_any_price_they_take_turns() -> None:
    shares = [Share("a"), Share("b")]

    assert [routing.cheapest(shares, lambda _: None).id for _ in range(2)] == ["a", "b"]


# ── Sticking ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_key_meets_the_same_endpoint_whatever_the_order() -> None:
    shares = [Share(f"e{i}") for i in range(5)]

    for number in range(50):
        key = f"user-{number}".encode()
        assert routing.sticky(shares, key).id == routing.sticky(shares[::-1], key).id


def test_when_an_endpoint_goes_only_its_own_keys_move() -> None:
    shares = [Share(f"e{i}") for i in range(5)]
    before = {number: routing.sticky(shares, b"%d" % number).id for number in range(500)}

    after = {number: routing.sticky(shares[1:], b"%d" % number).id for number in range(500)}

    assert {before[number] for number in before if before[number] != after[number]} == {"e0"}


def test_keys_are_spread_by_weight() -> None:
    shares = [Share("a", 3), Share("b", 1), Share("off", 0)]
    taken = Counter(routing.sticky(shares, b"%d" % number).id for number in range(4000))

    assert taken["off"] == 0
    assert 0.70 < taken["a"] / 4000 < 0.80
