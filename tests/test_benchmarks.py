"""The benchmarks in `bench/`, in their short form: each runs, and its ratio is not many times what it was when it was written.

Generous on purpose, and ratios only: how fast this machine is, and what else it does, is not what is tested.
"""

from __future__ import annotations

import pytest

from bench.__main__ import BENCHMARKS, main, measured

MOST = {"call": 40.0, "identify": 20.0, "relay": 12.0, "stream": 6.0, "chunk": 60.0, "drain": 25.0, "reports": 12.0}
"""Of the first ratio of each: three times what it is, and more where a server of its own takes part."""


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", sorted(MOST))
def test_a_promise_costs_no_more_than_a_few_times_its_floor(name: str) -> None:
    ratios = measured(name, is_short=True)

    assert all(ratio.cost_us > 0 and ratio.floor_us > 0 for ratio in ratios)
    assert ratios[0].value < MOST[name], str(ratios[0])


@pytest.mark.timeout(120)
def test_our_own_client_is_cheaper_than_the_one_it_took_the_place_of() -> None:
    ours, aiohttp, *_ = measured("relay", is_short=True)

    assert ours.cost_us < aiohttp.cost_us


def test_every_benchmark_is_tested() -> None:
    assert set(MOST) <= set(BENCHMARKS)


def test_a_benchmark_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().err
