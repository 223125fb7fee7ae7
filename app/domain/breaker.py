"""The breaker of one endpoint: when it takes no calls, and how it comes back. A state machine without clock or chance of its own.

        ┌──────── so many faults in a row, or too great a share of the window ────────┐
        │                                                                             ▼
     CLOSED ◀── the probe's answer begins ── HALF_OPEN ◀── the open time is over ── OPEN
        │                                       └────────── the probe fails ──────────▲
        └── on probation (since a probe, until a whole answer): one fault is enough ──┘

1. Every attempt takes a ticket before it begins and hands it in when it ends. Attempts that began before the last change of state say
   nothing about the endpoint as it is now: their tickets are stale and change nothing (but see 4).
2. Closed, it opens after `faults_in_row` faults without a whole answer in between, or once `fault_percent` of at least `minimum_calls`
   attempts within `window_s` failed.
3. It stays open for `open_s`, twice as long each time it opens again without a whole answer in between, at most `max_open_s`, each
   time ± 20 % so that replicas do not probe in step. Then it is half open: one attempt at a time may go through, as a probe.
4. An upstream that says when to come back is left alone until then, and a little longer; what it says later extends, never shortens.
   A refused credential opens at once, for `CREDENTIAL_OPEN_S`: it does not mend itself, an administrator does.
5. Faults of callers are never handed in as faults; callers who leave only where `hang_up` says so.

An endpoint is thus never shut off for good: the longest it goes without an attempt is `max_open_s` + 20 %, or what it asked for itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

JITTER: Final = 0.2
"""How far an open time may lie from its nominal length, either way."""
COOL_JITTER: Final = 0.1
"""What is added at most to a time that the upstream named itself: never less than it asked for."""
COOL_S: Final = 5.0
"""How long an upstream that is busy and does not say for how long is left alone."""
MIN_COOL_S: Final = 0.25
"""An upstream that says "0", or a date that is over, is not asked in a loop all the same."""
MAX_COOL_S: Final = 300.0
"""An upstream that asks for more is probed after five minutes all the same: a wrong clock must not take it out for a day."""
CREDENTIAL_OPEN_S: Final = 30.0
_SLOTS: Final = 10
"""Of the window; what is counted is between nine and ten tenths of it."""


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Fault(StrEnum):
    """What went wrong with an attempt, as far as it is the endpoint's fault."""

    ERROR = "error"
    """A 5xx, a connection that failed or broke."""
    TIMEOUT = "timeout"
    BAD_ANSWER = "bad_answer"
    TRUNCATED = "truncated"
    SLOW = "slow"
    """An answer whose first token came later than `slow_first_token_s`."""
    BUSY = "busy"
    """429, or whatever said when to come back."""
    CREDENTIAL = "credential"
    """Our credential was refused."""
    CERTIFICATE = "certificate"
    """Its certificate is not one that we may trust."""
    CHECK = "check"
    """Active checks failed while nothing else was known."""


NEEDS_SOMEBODY: Final = frozenset({Fault.CREDENTIAL, Fault.CERTIFICATE})
"""What no waiting mends: the endpoint opens at once, and an administrator is told."""


@dataclass(frozen=True, slots=True)
class BreakerRules:
    """What an operator may set per endpoint."""

    faults_in_row: int = 5
    fault_percent: int = 50
    """Of the attempts within the window; 0: the share does not matter."""
    minimum_calls: int = 20
    """Fewer attempts within the window say nothing about a share."""
    window_s: float = 30.0
    slow_first_token_s: float | None = None
    """None: no first token is too slow that comes within its timeout."""
    open_s: float = 2.0
    max_open_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Change:
    """A change of state, as it is told to others and kept as an event."""

    before: BreakerState
    after: BreakerState
    fault: Fault | None
    open_s: float = 0.0
    """For how long it is open from now on."""
    streak: int = 0
    """How often it has opened now without a whole answer in between."""


class Breaker:
    """Mutable; `now_s` is any clock that never runs backwards, `chance` a random number from 0 to 1."""

    __slots__ = (
        "_epoch",
        "_faults_in_row",
        "_is_open",
        "_is_probing",
        "_probe_s",
        "_slot",
        "_slots",
        "_streak",
        "_until_s",
        "fault",
        "is_told",
        "rules",
    )

    def __init__(self, rules: BreakerRules) -> None:
        self.rules = rules
        self._epoch = 0
        self._is_open = False
        self._until_s = 0.0
        self._is_probing = False
        self._probe_s = 0.0
        """When the probe began that is under way."""
        self._streak = 0
        """How often it opened without a whole answer in between; above 0 while closed: on probation."""
        self._faults_in_row = 0
        self._slot = 0
        self._slots: list[list[int]] = []
        """Of the window, the present one last: [number, attempts, faults]."""
        self.fault: Fault | None = None
        """Why it opened last."""
        self.is_told = False
        """Open only because another process said so."""

    # ── Asking ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def state(self, now_s: float) -> BreakerState:
        if not self._is_open:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now_s < self._until_s else BreakerState.HALF_OPEN

    def may_begin(self, now_s: float) -> bool:
        """Whether an attempt may begin now: as a probe, where it is half open and nobody else probes.

        A probe that has shown nothing for as long as the endpoint is ever left alone is not waited for: it may hang for minutes.
        """
        if not self._is_open:
            return True
        return now_s >= self._until_s and (not self._is_probing or now_s >= self._probe_s + self.rules.max_open_s)

    def opens_in_s(self, now_s: float) -> float:
        """How long until the next attempt may begin, as far as that is known; 0 where one may now or a probe is under way."""
        return max(0.0, self._until_s - now_s) if self._is_open else 0.0

    @property
    def is_closed(self) -> bool:
        return not self._is_open

    @property
    def is_probing(self) -> bool:
        return self._is_probing

    @property
    def faults_in_row(self) -> int:
        return self._faults_in_row

    def counted(self, now_s: float) -> tuple[int, int]:
        """Attempts and faults within the window."""
        self._slide(now_s)
        return sum(slot[1] for slot in self._slots), sum(slot[2] for slot in self._slots)

    # ── Attempts ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def begin(self, now_s: float) -> int:
        """Take the ticket of an attempt. Only when `may_begin`."""
        if self._is_open:
            self._is_probing, self._probe_s = True, now_s
            self._epoch += 1
        return self._epoch

    def answered(self, ticket: int) -> Change | None:
        """The answer has begun: a probe is over and calls may come; the first whole answer ends the probation."""
        if ticket != self._epoch or not self._is_open:
            return None
        self._is_open = self._is_probing = self.is_told = False
        self._faults_in_row = 0
        self._slots.clear()
        return Change(BreakerState.HALF_OPEN, BreakerState.CLOSED, self.fault)

    def succeeded(self, ticket: int, now_s: float) -> None:
        """A whole answer. What was still on its way when the endpoint opened changes nothing."""
        if ticket != self._epoch or self._is_open:
            return
        self._faults_in_row = self._streak = 0
        self._count(now_s, 0)

    def failed(
        self, ticket: int, fault: Fault, *, now_s: float, chance: float, retry_after_s: float | None = None
    ) -> Change | None:
        """The attempt failed, and it was the endpoint's fault. Returns the change, if it was one."""
        if fault in NEEDS_SOMEBODY:
            self.is_told = False
            return self._open(fault, CREDENTIAL_OPEN_S * _jittered(chance), now_s)
        if fault is Fault.BUSY:
            asked_s = COOL_S if retry_after_s is None else min(max(MIN_COOL_S, retry_after_s), MAX_COOL_S)
            self.is_told = False
            return self._open(fault, asked_s * (1 + COOL_JITTER * chance), now_s)
        if self._is_open:
            return self._open_again(fault, now_s, chance) if ticket == self._epoch else None
        self._count(now_s, 1)
        self._faults_in_row += 1
        if self._streak and ticket < self._epoch:
            return None  # it began before the endpoint came back
        if self._streak or self._faults_in_row >= self.rules.faults_in_row or self._is_share_passed(now_s):
            return self._open_again(fault, now_s, chance)
        return None

    def abandoned(self, ticket: int) -> None:
        """The attempt ended without saying anything about the endpoint: its caller left, or was at fault himself."""
        if ticket == self._epoch:
            self._is_probing = False

    # ── From outside ──────────────────────────────────────────────────────────────────────────────────────────────────

    def told(self, fault: Fault, open_s: float, now_s: float) -> Change | None:
        """Another process has opened its own for so long. What is known here by experience is not shortened by it."""
        was_closed = not self._is_open
        change = self._open(fault, min(open_s, MAX_COOL_S * (1 + COOL_JITTER)), now_s)
        self.is_told = was_closed or self.is_told
        return change

    def told_well(self, now_s: float) -> Change | None:
        """Another process had an answer: where this one only believed what it was told, it may see for itself at once."""
        if not (self._is_open and self.is_told) or self._until_s <= now_s:
            return None
        self._until_s = now_s
        return Change(BreakerState.OPEN, BreakerState.HALF_OPEN, self.fault)

    def reset(self, now_s: float) -> Change | None:
        """Forget everything, by an administrator's word or because the endpoint is another one now."""
        before = self.state(now_s)
        self._epoch += 1
        self._is_open = self._is_probing = self.is_told = False
        self._until_s, self._streak, self._faults_in_row = 0.0, 0, 0
        self._slots.clear()
        self.fault = None
        return None if before is BreakerState.CLOSED else Change(before, BreakerState.CLOSED, None)

    # ── Inside ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _open_again(self, fault: Fault, now_s: float, chance: float) -> Change | None:
        self._streak += 1
        self.is_told = False
        rules = self.rules
        # 2¹⁶ times any open time is beyond any cap; the exponent is bounded so that a week of outage stays an ordinary number.
        nominal_s = min(rules.open_s * 2 ** min(self._streak - 1, 16), rules.max_open_s)
        return self._open(fault, nominal_s * _jittered(chance), now_s)

    def _open(self, fault: Fault, open_s: float, now_s: float) -> Change | None:
        """Open, or stay open for longer. An earlier end than the present one changes nothing."""
        before, until_s = self.state(now_s), now_s + open_s
        if before is BreakerState.OPEN and until_s <= self._until_s:
            return None
        self._until_s = max(self._until_s, until_s)
        self._is_open, self._is_probing = True, False
        self._streak = max(1, self._streak)
        self._epoch += 1
        self.fault = fault
        return Change(before, BreakerState.OPEN, fault, self._until_s - now_s, self._streak)

    def _count(self, now_s: float, faults: int) -> None:
        number = int(now_s * _SLOTS / self.rules.window_s)
        slots = self._slots
        if slots and slots[-1][0] == number:
            slots[-1][1] += 1
            slots[-1][2] += faults
        else:
            self._slide(now_s)
            slots.append([number, 1, faults])

    def _slide(self, now_s: float) -> None:
        first = int(now_s * _SLOTS / self.rules.window_s) - _SLOTS + 1
        slots = self._slots
        while slots and slots[0][0] < first:
            del slots[0]

    def _is_share_passed(self, now_s: float) -> bool:
        rules = self.rules
        if not rules.fault_percent:
            return False
        attempts, faults = self.counted(now_s)
        return attempts >= rules.minimum_calls and faults * 100 >= attempts * rules.fault_percent


def _jittered(chance: float) -> float:
    return 1 - JITTER + 2 * JITTER * chance
