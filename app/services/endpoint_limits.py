"""The limits of endpoints themselves: calls at once, requests and tokens a minute. A provider's quota is one for all replicas.

1. Only an endpoint that has such a limit is asked about: one more round trip, for those alone.
2. An attempt claims before it is sent and frees when it has left; the tokens it was thought to need become those it used.
3. While Redis is away, nothing is claimed: each process keeps to `max_concurrency` by its own count, and the provider's own 429 does
   the rest.
"""

from __future__ import annotations

from typing import Final

from app.domain.call import Meter
from app.domain.catalog import Endpoint
from app.exceptions import DependencyUnavailable
from app.storage.endpoint_ports import EndpointClaim, EndpointClaims, EndpointFull

HOLD_EVERY_S: Final = 20.0
"""A third of a claim's lease."""
MAX_HELD: Final = 500
"""Claims renewed in one step."""


class EndpointLimits:
    def __init__(self, claims: EndpointClaims) -> None:
        self._claims = claims
        self._held: dict[str, EndpointClaim] = {}

    async def claim(self, endpoint: Endpoint, meter: Meter) -> EndpointClaim | EndpointFull | None:
        """None: there is nothing to claim, or nobody to claim it from."""
        tokens = meter.estimate.total_tokens if meter.estimate else 0
        attempt = f"{meter.request_id}:{len(meter.attempts)}"
        try:
            claimed = await self._claims.claim(endpoint, attempt, tokens)
        except DependencyUnavailable:
            return None
        if isinstance(claimed, EndpointClaim):
            self._held[attempt] = claimed
        return claimed

    async def free(self, claim: EndpointClaim, meter: Meter) -> None:
        """Never fails: what Redis does not hear ends with its lease."""
        self._held.pop(claim.attempt, None)
        try:
            await self._claims.free(claim, _used(meter))
        except DependencyUnavailable:
            return

    async def hold(self) -> None:
        """Renew what is held. Raises: DependencyUnavailable."""
        held = list(self._held.values())
        for start in range(0, len(held), MAX_HELD):
            await self._claims.hold(held[start : start + MAX_HELD])


def _used(meter: Meter) -> int:
    """Tokens, as far as is known when the attempt ends; 0 where nobody answered."""
    if meter.usage is not None:
        return meter.usage.prompt_tokens + meter.usage.completion_tokens
    if meter.endpoint is None or meter.estimate is None:
        return 0
    return meter.estimate.prompt_tokens + meter.delivered_tokens
