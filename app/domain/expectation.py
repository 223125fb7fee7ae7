"""How long an answer is expected to be, learned from the last ones of its kind."""

from __future__ import annotations

from collections.abc import Sequence

REMEMBERED = 64
"""Answers: enough for a 95th percentile, few enough to follow a change of habit within an hour's work."""
ENOUGH = 20
"""Below so many a 95th percentile is the maximum or less; then the maximum is taken, and more."""
PERCENTILE = 95


def expected_tokens(lengths: Sequence[int]) -> int | None:
    """Tokens that 95 of 100 such answers stay within; None where nothing is known.

    With few lengths the longest may not have been seen yet: of `k` of them the maximum is taken times 1 + 1/k, twice the first one.
    """
    known = len(lengths)
    if known == 0:
        return None
    if known < ENOUGH:
        longest = max(lengths)
        return longest + -(-longest // known)
    return sorted(lengths)[-(-PERCENTILE * known // 100) - 1]  # the nearest rank
