"""What answers of a holder and a model are expected to need, learned in this process from those that were settled."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from app.domain.call import Meter, Outcome
from app.domain.catalog import Model
from app.domain.expectation import REMEMBERED, expected_tokens

USEFUL_TOKENS = 64
"""An answer of fewer tokens is of no use to most, where nothing has been learned."""
MAX_KINDS = 10_000
"""Of holders and models; the longest unused is forgotten first. About 1 KB each."""
CUT_FACTOR = 2
"""An answer that was cut short says only that it wanted more than it had."""


@dataclass(slots=True)
class _Kind:
    lengths: deque[int] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    expected: int = USEFUL_TOKENS
    unlearned: int = 0
    """Lengths since `expected` was computed: it is computed again after every eighth of those that are known."""


class Expectations:
    def __init__(self, *, max_kinds: int = MAX_KINDS) -> None:
        self._kinds: OrderedDict[tuple[str, str], _Kind] = OrderedDict()
        self._max_kinds = max_kinds

    def learn(self, meter: Meter) -> None:
        """Take in a call that was settled. Only whole answers say how long answers are; the others are passed over."""
        if meter.outcome is not Outcome.OK or meter.usage is None or meter.model is None:
            return
        tokens = -(-meter.usage.completion_tokens // max(1, meter.call.choices))
        if tokens <= 0:
            return
        if meter.capped_max_tokens is not None and meter.finish_reason == "length":
            tokens *= CUT_FACTOR
        kind = self._kind(meter, meter.model.name)
        kind.lengths.append(tokens)
        kind.unlearned += 1
        if kind.unlearned * 8 >= len(kind.lengths):
            kind.expected, kind.unlearned = expected_tokens(kind.lengths) or USEFUL_TOKENS, 0

    def has_learned(self, meter: Meter, model: Model) -> bool:
        """Whether calls like this one have been seen to end."""
        kind = self._kinds.get((_holder(meter), model.name))
        return kind is not None and bool(kind.lengths)

    def floor_tokens(self, meter: Meter, model: Model) -> int:
        """The fewest output tokens, over all choices, that make a useful answer to this call: never more than it may produce."""
        kind = self._kinds.get((_holder(meter), model.name))
        useful = (kind.expected if kind else USEFUL_TOKENS) * max(1, meter.call.choices)
        return min(useful, meter.estimate.completion_tokens) if meter.estimate else useful

    def _kind(self, meter: Meter, model: str) -> _Kind:
        name = (_holder(meter), model)
        kind = self._kinds.get(name)
        if kind is None:
            kind = self._kinds[name] = _Kind()
            if len(self._kinds) > self._max_kinds:
                self._kinds.popitem(last=False)
        else:
            self._kinds.move_to_end(name)
        return kind


def _holder(meter: Meter) -> str:
    """Whose habits they are: the key's, else the app's, else the user's."""
    identity = meter.identity
    if identity.key is not None:
        return identity.key.id
    return identity.app.id if identity.app is not None else identity.user.oid
