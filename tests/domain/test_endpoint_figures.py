"""How an endpoint stands over all processes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.domain.endpoint_figures import Figures, LastFault, together

counts = st.integers(0, 10**6)
faults = st.builds(LastFault, at_ms=st.integers(0, 10**13), fault=st.just("error"), reason=st.sampled_from("abc"))
figures = st.builds(
    Figures,
    in_flight=counts,
    calls=counts,
    faults=counts,
    faults_in_row=counts,
    first_token_ms=st.none() | st.integers(1, 600_000),
    open_in=st.integers(0, 1),
    last_fault=st.none() | faults,
)


def test_of_nobody_there_is_nothing() -> None:
    assert together([]) == Figures()


@given(figures)
def test_one_process_alone_is_taken_at_its_word(alone: Figures) -> None:
    assert together([alone]) == alone


@given(st.lists(figures, max_size=8))
def test_calls_add_up_and_the_worst_that_anybody_saw_stands(parts: list[Figures]) -> None:
    whole = together(parts)

    for name in ("in_flight", "calls", "faults", "open_in"):
        assert getattr(whole, name) == sum(getattr(part, name) for part in parts)
    assert whole.faults_in_row == max((part.faults_in_row for part in parts), default=0)
    seen = [part.last_fault.at_ms for part in parts if part.last_fault is not None]
    assert (whole.last_fault.at_ms if whole.last_fault else None) == max(seen, default=None)


@given(st.lists(figures, max_size=8))
def test_a_first_token_of_all_lies_between_the_quickest_and_the_slowest(parts: list[Figures]) -> None:
    known = [part.first_token_ms for part in parts if part.first_token_ms is not None]
    whole = together(parts).first_token_ms
    assert (whole is None) == (not known)
    assert whole is None or min(known) <= whole <= max(known)


def test_a_process_with_more_calls_says_more_of_the_first_token() -> None:
    busy, idle = Figures(calls=99, first_token_ms=100), Figures(first_token_ms=1100)
    assert together([busy, idle]).first_token_ms == 110


def test_any_process_may_find_out_that_a_limit_is_used_up() -> None:
    assert together([Figures(), Figures(limited_by="tokens_per_minute")]).limited_by == "tokens_per_minute"
