"""What happens to a call that a limit refuses, where its key's overflow policy is to queue: it waits for room, up to its patience.

1. Calls of one key that wait for the limits of one holder (the key, its user, its app, or the model) stand in one queue. A fresh call that
   finds one there lines up behind it without asking: it would take what the others wait for.
2. The heads of several keys' queues that wait for one holder stand in a line of their own, in the order in which they became heads. So
   each key has a turn, however many calls of another wait. Only who is first in that line looks for room.
3. Whoever cannot be served within his patience is told so at once, and whoever has waited in vain when it is over: with the time that it
   would take from that moment on, those before him included.

All this holds among the calls of one process; between processes it is chance who asks first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from app.clock import Clock
from app.domain.limits import Claim, ClaimState, LimitKind, Scope
from app.services.lines import Lines, Place
from app.services.turnstile import Turnstiles
from app.storage.ports import LimitRefused

MAX_QUEUED_PER_KEY = 100
MAX_QUEUED = 2_000
"""Calls that wait in this process at most; each holds its client's connection and its body."""

Holder = tuple[Scope, str]
"""Whose limits they are."""
Ask = Callable[[], Awaitable[LimitRefused | None]]


@dataclass(frozen=True, slots=True)
class _Said:
    """A refusal, and when it was given."""

    refused: LimitRefused
    at_s: float

    @property
    def holder(self) -> Holder:
        return self.refused.state.claim.scope, self.refused.state.claim.scope_id


class OverflowQueues:
    def __init__(
        self, *, clock: Clock, turnstiles: Turnstiles, room_in_ms: Callable[[Claim, int], Awaitable[int]]
    ) -> None:
        """`room_in_ms`: when so much more will fit into a limit's window."""
        self._clock = clock
        self._turnstiles = turnstiles
        self._room_in_ms = room_in_ms
        self._queues: Lines[tuple[str, Holder], _Said] = Lines()
        self._heads: Lines[Holder, _Said] = Lines()
        self._waiting = 0

    async def admitted(
        self, key_id: str, holders: Sequence[Holder], *, max_wait_s: float, ask: Ask
    ) -> LimitRefused | None:
        """Ask for room and wait for it; `ask` says whether there was (None). `holders` are those whose limits the call meets.

        Returns the refusal that stands when the wait is hopeless or over.
        """
        deadline_s = self._clock.monotonic() + max_wait_s
        in_front = self._in_front(key_id, holders) if self._queues else None
        if in_front is not None:
            holder, said = in_front
        else:
            refused = await ask()
            if refused is None:
                return None
            said = self._said(refused)
            holder = said.holder
        queue = (key_id, holder)
        if self._queues.length(queue) >= MAX_QUEUED_PER_KEY or self._waiting >= MAX_QUEUED:
            deadline_s = 0.0  # there is no place: he is told at once, as if he could not wait
        self._waiting += 1
        try:
            with self._queues.joined(queue, said) as place:
                return await self._waited(place, holder, deadline_s, ask, has_asked=in_front is None)
        finally:
            self._waiting -= 1

    def _in_front(self, key_id: str, holders: Sequence[Holder]) -> tuple[Holder, _Said] | None:
        """Whose limits others wait for that came before (calls of the same key above all), and what they were told."""
        for first in (lambda holder: self._queues.first((key_id, holder)), self._heads.first):
            for holder in holders:
                place = first(holder)
                if place is not None:
                    return holder, place.note
        return None

    async def _waited(
        self, place: Place[_Said], holder: Holder, deadline_s: float, ask: Ask, *, has_asked: bool
    ) -> LimitRefused | None:
        others = self._heads.length(holder)
        if place.ahead and others:
            others -= 1  # one of them is of this queue
        ahead = place.ahead * (1 + others) + others
        expected = place.note.refused
        if ahead or not has_asked:
            expected = await self._refusal_now(place.note, ahead)
        left_s = deadline_s - self._clock.monotonic()
        if left_s <= 0 or _is_hopeless(expected, left_s):
            return expected
        must_ask = not has_asked or not place.turn.done()
        if not await self._has_turn(place, deadline_s):
            return await self._refusal_now(place.first.note, place.ahead)
        return await self._at_the_head(place, holder, deadline_s, ask, must_ask=must_ask)

    async def _at_the_head(
        self, mine: Place[_Said], holder: Holder, deadline_s: float, ask: Ask, *, must_ask: bool
    ) -> LimitRefused | None:
        """`must_ask`: what was said last is a while ago, or was said to another."""
        while True:
            with self._heads.joined(holder, mine.note) as place:
                must_ask = must_ask or not place.turn.done()
                if not await self._has_turn(place, deadline_s):
                    return await self._refusal_now(place.first.note, place.ahead)
                if await self._found_room(mine, holder, deadline_s, ask, must_ask=must_ask):
                    return None
            if mine.note.holder == holder:
                return mine.note.refused
            holder, must_ask = mine.note.holder, False  # another one's limits refuse it now

    async def _found_room(
        self, mine: Place[_Said], holder: Holder, deadline_s: float, ask: Ask, *, must_ask: bool
    ) -> bool:
        """Look for room until there is some. False: it was refused for good, or by another holder's limits."""
        while True:
            if must_ask:
                refused = await ask()
                if refused is None:
                    return True
                mine.note = self._said(refused)
                if mine.note.holder != holder:
                    return False
            left_s = deadline_s - self._clock.monotonic()
            if left_s <= 0 or _is_hopeless(mine.note.refused, left_s):
                return False
            await self._until_worth_trying(mine.note.refused, left_s)
            must_ask = True

    async def _has_turn(self, place: Place[_Said], deadline_s: float) -> bool:
        """Wait for it. False: the patience is over."""
        if place.turn.done():
            return True
        try:
            async with asyncio.timeout(deadline_s - self._clock.monotonic()):
                await place.turn
        except TimeoutError:
            return False
        return True

    async def _until_worth_trying(self, refused: LimitRefused, left_s: float) -> None:
        if _is_unforeseeable(refused):
            await self._turnstiles.wait(refused.state.claim.counter, at_most_s=left_s)
        else:
            await self._clock.sleep(min(left_s, refused.retry_after_ms / 1000))

    async def _refusal_now(self, said: _Said, ahead: int) -> LimitRefused:
        """The refusal as it is true at this moment for a call behind so many others."""
        claim, retry_ms = said.refused.state.claim, said.refused.retry_after_ms
        if claim.limit.kind is LimitKind.REQUESTS and claim.limit.limit:
            retry_ms = await self._room_in_ms(claim, claim.amount * (ahead + 1))
        elif not _is_unforeseeable(said.refused):
            passed_ms = (self._clock.monotonic() - said.at_s) * 1000
            retry_ms = max(0, round(retry_ms - passed_ms + ahead * _spacing_ms(claim)))
        return LimitRefused(ClaimState(claim, said.refused.state.remaining, retry_ms), retry_ms)

    def _said(self, refused: LimitRefused) -> _Said:
        return _Said(refused, self._clock.monotonic())


def _is_hopeless(refused: LimitRefused, left_s: float) -> bool:
    return refused.retry_after_ms / 1000 > left_s and not _is_unforeseeable(refused)


def _is_unforeseeable(refused: LimitRefused) -> bool:
    """A slot is free when a call ends, and nobody knows when that is; a window says exactly when it will have room."""
    return refused.state.claim.limit.kind is LimitKind.CONCURRENCY


def _spacing_ms(claim: Claim) -> float:
    """How far apart a full window of tokens lets such calls through, about."""
    if claim.limit.limit <= 0:
        return 0.0
    return claim.limit.window_s * 1000 * claim.amount / claim.limit.limit
