"""What is measured, and for how long. Plain values, so that a run can be read before it is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of load. `rate` in calls per second makes it an open loop, 0 a closed one."""

    name: str
    title: str
    is_stream: bool = False
    is_paced: bool = False
    connections: int = 32
    """For each worker, in a closed loop."""
    rate: float = 0.0
    least_s: float = 0.0
    """Shorter than this it says nothing: a paced stream alone takes 1.3 s."""
    spread_s: float = 0.0
    """Over how long its connections begin. Paced streams that begin together stay together: each token of all of them comes in the same
    millisecond, and what is measured is how long a burst of so many takes, not what one caller waits."""


UNARY: Final = Scenario("unary", "unary, closed loop, 32 connections")
STREAM: Final = Scenario("stream", "stream of 64 chunks back to back, 32 connections", is_stream=True)
PACED: Final = Scenario(
    "paced",
    "paced stream (50 ms + 64 × 20 ms), 32 connections",
    is_stream=True,
    is_paced=True,
    least_s=4.0,
    spread_s=1.33,
)
LATENCY: Final = Scenario("latency", "unary at 100/s, 50 ms upstream", is_paced=True, connections=8, rate=100.0)
SCENARIOS: Final = (UNARY, STREAM, PACED, LATENCY)


@dataclass(frozen=True, slots=True)
class Against:
    """Another gateway, already running; its model must lead to our upstream."""

    url: str
    key: str = field(repr=False)
    model: str


@dataclass(frozen=True, slots=True)
class Options:
    rounds: int
    seconds: float
    """Of load for each scenario, target and round."""
    starts: int
    """How often a start is timed."""
    workers: tuple[int, ...] = (1,)
    """One gateway for each of these numbers of WORKERS."""
    against: Against | None = None
    beside: Path | None = None
    """Another checkout of this repository, run the same way: before and after."""
    upstream_port: int = 0
    scenarios: tuple[Scenario, ...] = SCENARIOS


FULL: Final = Options(rounds=3, seconds=5.0, starts=3)
SHORT: Final = Options(rounds=1, seconds=2.0, starts=1)
"""Under a minute: enough to see a doubling, too little to see a tenth."""
