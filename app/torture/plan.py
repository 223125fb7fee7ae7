"""What one run does: its size, its clients, and the schedule of its faults, all drawn from one seed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """What is done to the gateway and its surroundings; each can be chosen alone."""

    KILL = "kill"  # kill -9 of a gateway process, then a new one in its place
    PAUSE = "pause"  # a gateway process stopped for longer than its calls' lease, then awake again
    DRAIN = "drain"  # SIGTERM of a gateway process, then a new one
    FLUSH = "flush"  # Valkey loses its memory: FLUSHALL, or killed and started empty
    REDIS = "redis"  # Valkey is killed, away for a while, and back with its data
    POSTGRES = "postgres"  # PostgreSQL is killed and recovers, or is stopped for some seconds
    UPSTREAM = "upstream"  # an upstream answers 500, resets, breaks streams off, or is slow
    DISCONNECT = "disconnect"  # clients hang up at any point


ALL_FAULTS = tuple(Fault)
LEASE_S = 3
"""Short, so that a pause beyond it fits into a short run; the default outside of this proof is 60 s."""
FIRST_FAULT_S = 2.0
CALM_TAIL_S = 3.0
"""No new fault this shortly before the clients stop."""
EVERY_S = 2.2


@dataclass(frozen=True, slots=True)
class Options:
    """The size of a run."""

    duration_s: float = 120.0
    processes: int = 3
    clients: int = 60
    seed: int = 1
    faults: tuple[Fault, ...] = ALL_FAULTS


@dataclass(frozen=True, slots=True)
class Event:
    """One fault of the schedule. `variant` and `length_s` say how, in the words of `app.torture.chaos`."""

    at_s: float
    fault: Fault
    variant: str
    target: int
    """Which gateway process, for those that hit one; which half of the upstream, for those that hit that."""
    length_s: float


VARIANTS: dict[Fault, tuple[str, ...]] = {
    Fault.KILL: ("kill -9",),
    Fault.PAUSE: ("stopped past its lease",),
    Fault.DRAIN: ("SIGTERM",),
    Fault.FLUSH: ("FLUSHALL", "restarted empty"),
    Fault.REDIS: ("killed and restarted",),
    Fault.POSTGRES: ("killed and restarted", "stopped"),
    Fault.UPSTREAM: ("500", "reset", "cut", "slow"),
}
LENGTHS_S: dict[Fault, tuple[float, float]] = {
    Fault.PAUSE: (LEASE_S + 1.5, LEASE_S + 3.0),
    Fault.REDIS: (0.0, 3.0),
    Fault.POSTGRES: (0.5, 5.0),
    Fault.UPSTREAM: (1.0, 3.0),
}


def parse_faults(text: str) -> tuple[Fault, ...]:
    """`kill,pause` → faults; `all` and `none` too. Raises: ValueError with the name that is no fault."""
    if text in ("all", "none"):
        return ALL_FAULTS if text == "all" else ()
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in set(Fault)]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no fault; choose from {', '.join(Fault)}")
    return tuple(Fault(name) for name in names)


def schedule(options: Options) -> list[Event]:
    """When what is done. Every chosen fault comes before any comes again; the same seed gives the same schedule."""
    rng = random.Random(options.seed)  # noqa: S311 - a schedule, not a secret
    kinds = [fault for fault in options.faults if fault is not Fault.DISCONNECT]
    events: list[Event] = []
    at_s, bag = FIRST_FAULT_S, list[Fault]()
    first_turn = rng.randrange(100)
    turn: Counter[Fault] = Counter(dict.fromkeys(kinds, first_turn))
    while kinds and at_s < options.duration_s - CALM_TAIL_S:
        if not bag:
            bag = rng.sample(kinds, len(kinds))
        fault = bag.pop()
        turn[fault] += 1
        low_s, high_s = LENGTHS_S.get(fault, (0.0, 0.0))
        variant = _nth(VARIANTS[fault], turn[fault])
        events.append(Event(at_s, fault, variant, rng.randrange(options.processes), rng.uniform(low_s, high_s)))
        at_s += rng.uniform(0.5, 1.5) * EVERY_S
    return events


def _nth(variants: Sequence[str], turn: int) -> str:
    return variants[turn % len(variants)]
