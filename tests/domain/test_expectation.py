"""What is expected of an answer's length."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.domain.expectation import ENOUGH, REMEMBERED, expected_tokens

lengths = st.lists(st.integers(1, 100_000), min_size=1, max_size=REMEMBERED)


def test_nothing_is_expected_where_nothing_is_known() -> None:
    assert expected_tokens([]) is None


def test_the_first_answer_is_expected_to_be_followed_by_one_twice_as_long() -> None:
    assert expected_tokens([100]) == 200
    assert expected_tokens([100] * 10) == 110


def test_of_many_answers_the_95th_percentile_is_expected() -> None:
    assert expected_tokens(list(range(1, 101))) == 95
    assert expected_tokens([10] * 61 + [5000] * 3) == 10


@given(lengths)
def test_the_expectation_is_above_the_longest_of_few_and_covers_95_of_100_of_many(seen: list[int]) -> None:
    expected = expected_tokens(seen)
    assert expected is not None
    if len(seen) < ENOUGH:
        assert max(seen) < expected <= 2 * max(seen)
    else:
        assert sum(length <= expected for length in seen) * 100 >= 95 * len(seen)
        assert expected in seen


@given(lengths)
def test_the_order_of_answers_does_not_matter(seen: list[int]) -> None:
    assert expected_tokens(sorted(seen)) == expected_tokens(seen)
