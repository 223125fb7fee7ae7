"""T136: three times the load that one process can carry, for as long as a test may take. `python -m bench overload` is the long form.

The machine that runs this has other work too, so what is demanded of goodput is less here than there, and of the better of two floods.
"""

from __future__ import annotations

import pytest

from bench.overload import Outcome, overloaded

LEAST = 0.6
REFUSED_MS, LOOKS_MS = 100, 1_000


def best(outcome: Outcome) -> float:
    """Of the capacity, what was served, by time or by the CPU that there was for it."""
    return max(*outcome.shares, *outcome.efficiencies)


def refused_ms(outcome: Outcome) -> float:
    return min(flood.refused_p50_ms for flood in outcome.floods)


@pytest.mark.timeout(240)
async def test_at_three_times_the_load_most_of_the_capacity_is_still_served() -> None:
    """T136. That nobody is refused two seconds after each flood is shown by the closed loop that then follows."""
    outcome = await overloaded(rounds=2, peak_s=2.0, flood_s=6.0)
    was_slow = refused_ms(outcome) >= REFUSED_MS or outcome.looks_p95_ms >= LOOKS_MS
    if (
        best(outcome) < LEAST or was_slow
    ):  # whoever else uses this machine may have had the core: look again before it is believed
        outcome = await overloaded(rounds=2, peak_s=2.0, flood_s=6.0)
    print(f"shares {outcome.shares}, by CPU {outcome.efficiencies}, health and pages p95 {outcome.looks_p95_ms:.0f} ms")

    assert best(outcome) >= LEAST, outcome
    for flood in outcome.floods:
        assert flood.broken == 0, flood.first_problem
        assert flood.hopeful == flood.refused, "each is told when to come back"
    assert all(flood.refused for flood in outcome.floods)
    assert refused_ms(outcome) < REFUSED_MS, outcome.floods
    assert outcome.failed_looks == []
    assert outcome.looks_p95_ms < LOOKS_MS
