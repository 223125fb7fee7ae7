"""What a call claims from its holders' limits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.domain.limits import SLOTS, Claim, Limit, LimitKind, Scope, TokenNeed, claims_for

LIMITS = st.builds(Limit, st.sampled_from(LimitKind), st.integers(0, 10**6), st.integers(0, 10**6))


TOKENS = st.integers(min_value=0, max_value=10**7)
NEEDS = st.builds(TokenNeed, prompt=TOKENS, most=TOKENS, floor=TOKENS, is_elastic=st.booleans())


@given(st.lists(LIMITS).map(tuple), NEEDS)
def test_a_call_claims_from_every_limit_in_its_holders_name_and_one_where_calls_are_counted(
    limits: tuple[Limit, ...], need: TokenNeed
) -> None:
    claims = claims_for(Scope.KEY, "k", limits, need=need)

    assert [claim.limit for claim in claims] == list(limits)
    assert all((claim.scope, claim.scope_id) == (Scope.KEY, "k") for claim in claims)
    assert all(claim.amount == 1 for claim in claims if claim.limit.kind is not LimitKind.TOKENS)


@given(st.integers(min_value=0, max_value=10**6), NEEDS)
def test_a_call_claims_no_more_tokens_than_it_can_use_and_can_begin_with_no_more_than_the_limit(
    limit: int, need: TokenNeed
) -> None:
    amount, least = need.claim(limit)

    assert 0 <= least <= amount <= need.prompt + need.most
    assert least <= limit


@given(st.integers(min_value=0, max_value=10**6), TOKENS, TOKENS, TOKENS)
def test_a_maximum_of_the_callers_own_is_claimed_in_full_where_the_limit_can_hold_it(
    limit: int, prompt: int, most: int, floor: int
) -> None:
    claimed = TokenNeed(prompt, most, floor, is_elastic=False).claim(limit)

    assert claimed == (min(limit, prompt + most),) * 2


def test_nothing_is_claimed_from_a_holder_without_limits() -> None:
    assert claims_for(Scope.APP, "crm", (), need=TokenNeed(1, 2, 1, is_elastic=False)) == []


def test_an_edited_amount_keeps_its_counter_and_another_window_gets_its_own() -> None:
    def counter(scope: Scope, holder: str, kind: LimitKind, limit: int, window_s: int) -> str:
        return Claim(scope, holder, Limit(kind, limit, window_s), 1).counter

    one = counter(Scope.KEY, "k", LimitKind.REQUESTS, 60, 60)

    assert counter(Scope.KEY, "k", LimitKind.REQUESTS, 90, 60) == one
    others = {
        counter(Scope.USER, "k", LimitKind.REQUESTS, 60, 60),
        counter(Scope.KEY, "j", LimitKind.REQUESTS, 60, 60),
        counter(Scope.KEY, "k", LimitKind.TOKENS, 60, 60),
        counter(Scope.KEY, "k", LimitKind.REQUESTS, 60, 3600),
    }
    assert len(others | {one}) == 5


def test_slots_are_fine_enough_for_the_promised_98_percent() -> None:
    assert 1 - 1 / SLOTS > 0.98
