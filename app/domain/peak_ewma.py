"""How long an endpoint takes to its first token, for choosing among several: a peak-sensitive moving average.

A slower answer than the average counts at once and in full, a quicker one only bit by bit: being late is noticed immediately, and
forgiven over `DECAY_S`. While nothing is heard the figure fades as well, so that a slow endpoint is tried again in time.
(Peak EWMA, as in Finagle and Linkerd.)
"""

from __future__ import annotations

from math import exp
from typing import Final

DECAY_S: Final = 10.0


class PeakEwma:
    """Mutable; `now_s` is any clock that never runs backwards."""

    __slots__ = ("_at_s", "_s")

    def __init__(self) -> None:
        self._s = 0.0
        self._at_s = 0.0

    def observe(self, seconds: float, now_s: float) -> None:
        kept = exp((self._at_s - now_s) / DECAY_S) if self._s else 0.0
        faded_s = self._s * kept
        self._s = seconds if seconds >= faded_s else faded_s + seconds * (1 - kept)
        self._at_s = now_s

    def at(self, now_s: float) -> float:
        """In seconds; 0 while nothing is known."""
        return self._s * exp(-max(0.0, now_s - self._at_s) / DECAY_S) if self._s else 0.0

    @property
    def observed_at_s(self) -> float:
        """When it was last observed, by the clock of `observe`; 0: never."""
        return self._at_s

    @property
    def last_s(self) -> float:
        """As it was when it was last observed, not faded: what people are shown."""
        return self._s
