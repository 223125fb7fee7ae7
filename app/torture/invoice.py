"""What the scripted upstream says it served, and what that costs by arithmetic of our own. Integers only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PICOUSD_PER_NANOUSD = 1_000

Ending = Literal["in_flight", "ok", "error", "cut", "hung_up"]
"""`ok`: answered in full with usage · `error`: an error status, nothing generated · `cut`: broken off by the script ·
`hung_up`: the gateway went away."""


@dataclass(frozen=True, slots=True)
class Price:
    """Picodollars (10⁻¹² USD) per token, nanodollars per request."""

    input_picousd: int
    output_picousd: int
    request_nanousd: int = 0

    def cost_nanousd(self, *, prompt_tokens: int, completion_tokens: int) -> int:
        """Rounded up to a nanodollar, once."""
        picousd = prompt_tokens * self.input_picousd + completion_tokens * self.output_picousd
        return -(-picousd // PICOUSD_PER_NANOUSD) + self.request_nanousd


@dataclass(slots=True)
class InvoiceLine:
    """One request as the upstream saw it; true at any moment while it goes on. Times are Unix seconds."""

    marker: str
    """Which client's call it was: the `user` field of the body, which every gateway has to pass through."""
    model: str
    arrived_at: float
    prompt_tokens: int = 0
    written: list[tuple[float, int]] | None = None
    """When how many completion tokens in all had been handed to the kernel; one entry per chunk."""
    completion_tokens: int = 0
    is_reported: bool = False
    """The usage went out in full."""
    ending: Ending = "in_flight"
    ended_at: float | None = None

    @property
    def is_due(self) -> bool:
        """A provider would want money for it."""
        return self.ending != "error"

    def tokens_before(self, moment: float) -> int:
        """Completion tokens that had been written by then."""
        return max((tokens for at, tokens in self.written or () if at <= moment), default=0)
