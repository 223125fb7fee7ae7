"""Choosing among endpoints: pure functions over weights.

Smooth weighted round robin (as in nginx): every pick raises each candidate's credit by its weight, takes the richest and charges
it the sum. Over any Σ weights picks each candidate is taken exactly its weight's number of times, spread as evenly as can be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Credits = Mapping[str, int]


def smooth_pick(weights: Sequence[tuple[str, int]], credits: Credits) -> tuple[str, dict[str, int]]:
    """The next candidate and the credits after it. Candidates without weight are taken only when no other is left.

    Raises ValueError without candidates. Ties go to the earlier one.
    """
    if not weights:
        raise ValueError("no candidates")
    effective = [(name, weight) for name, weight in weights if weight > 0] or [(name, 1) for name, _ in weights]
    total = sum(weight for _, weight in effective)
    raised = {name: credits.get(name, 0) + weight for name, weight in effective}
    best = max(raised, key=lambda name: raised[name])
    raised[best] -= total
    return best, raised
