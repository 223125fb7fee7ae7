"""The calls of tools in a chat stream, one after the other.

Chat completions may mix the deltas of calls that run in parallel; in Messages and Responses one call is told to its end before the next
begins. A call whose arguments are whole JSON is over when another one begins; one that is not yet keeps its turn, and what the others
say meanwhile waits. So a stream that names its calls in order, as nearly all do, is told as it comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from app.dialects.chat_retold import arguments_in, text_in


class ToolDelta(NamedTuple):
    """A piece of the call with that number, which counts from 1 in order of appearance."""

    number: int
    call_id: str
    """Empty where the upstream gave none; so is the name."""
    name: str
    arguments: str


class ToolTurns:
    """Which call of a tool a delta belongs to, and when it may be told."""

    __slots__ = ("_begun", "_known", "_over", "_said", "_turn", "_waiting")

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, object]] = {}
        """Index → number and id of the call that is told there."""
        self._begun = 0
        self._turn = 0
        """The call whose turn it is; 0: nobody's."""
        self._said: list[str] = []
        """Its arguments so far."""
        self._waiting: dict[int, list[ToolDelta]] = {}
        """By call, in order of appearance."""
        self._over: set[int] = set()

    def take(self, call: Mapping[str, Any]) -> Iterator[ToolDelta]:
        """What may be told now that this delta came. What a call says after its turn is over is not told."""
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        number = self._number(call, has_name=bool(function.get("name")))
        delta = ToolDelta(number, text_in(call.get("id")), text_in(function.get("name")), arguments_in(function))
        if number in self._over:
            return
        if number == self._turn:
            yield self._told(delta)
        else:
            self._waiting.setdefault(number, []).append(delta)
        while self._waiting and self._is_next_ones_turn():
            yield from self._next_turn()

    def rest(self) -> Iterator[ToolDelta]:
        """What still waits, whole or not: the calls are over, something else comes."""
        while self._waiting:
            yield from self._next_turn()
        if self._turn:
            self._over.add(self._turn)
            self._turn = 0

    def _is_next_ones_turn(self) -> bool:
        if not self._turn:
            return True
        if not (self._said and self._said[-1].rstrip().endswith("}")):
            return False  # spares the reading of arguments that cannot be whole
        try:
            msgspec.json.decode("".join(self._said))
        except msgspec.DecodeError:
            return False
        return True

    def _next_turn(self) -> Iterator[ToolDelta]:
        if self._turn:
            self._over.add(self._turn)
        self._turn = next(iter(self._waiting))
        self._said = []
        for delta in self._waiting.pop(self._turn):
            yield self._told(delta)

    def _told(self, delta: ToolDelta) -> ToolDelta:
        if delta.arguments:
            self._said.append(delta.arguments)
        return delta

    def _number(self, call: Mapping[str, Any], *, has_name: bool) -> int:
        """A delta's index says whose it is; but some upstreams (Gemini's for one) number every call 0, and then a new name under a new
        id is a new call. An id alone is not: older vLLMs make up another one for every delta."""
        index, own_id = call.get("index"), call.get("id")
        index = index if isinstance(index, int) else 0
        known = self._known.get(index)
        if known is not None and not (own_id and own_id != known[1] and has_name):
            return known[0]
        self._begun += 1
        self._known[index] = (self._begun, own_id)
        return self._begun


def tool_calls_in(delta: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The deltas of tools' calls in a chunk's delta; the one call of older upstreams is `function_call`."""
    calls: list[Mapping[str, Any]] = [call for call in delta.get("tool_calls") or () if isinstance(call, dict)]
    if isinstance(older := delta.get("function_call"), dict):
        calls.append({"index": 0, "function": older})
    return calls
