"""Failover: try one endpoint after another until one begins to answer.

The kind of a failure decides what follows: a caller's fault is answered at once, for every endpoint would say the same; a call that
was never sent, or was sent without an answer beginning, goes to the next endpoint while the deadline allows; an answer that has
begun is never tried again, for its caller has seen it.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import islice

from app.clock import Clock
from app.dialects.base import Dialect
from app.domain.call import Attempt, Candidate, Meter, Quality
from app.domain.catalog import Endpoint, Model, ProviderKind
from app.exceptions import AttemptFailed, FailureKind, GatewayError, NoHealthyEndpoint
from app.providers.base import Answer, Provider
from app.services import error_sanitizer
from app.services.load_balancer import LoadBalancer

MAX_ATTEMPTS = 3
"""More endpoints than this in a row failing says more about the call, or about the hour, than about any one of them."""


class Failover:
    def __init__(self, *, providers: Mapping[ProviderKind, Provider], balancer: LoadBalancer, clock: Clock) -> None:
        self._providers = providers
        self._balancer = balancer
        self._clock = clock

    @asynccontextmanager
    async def opened(self, dialect: Dialect, model: Model, meter: Meter) -> AsyncIterator[Answer]:
        """Inside the context one endpoint answers. Raises: GatewayError when none did."""
        last: GatewayError = NoHealthyEndpoint()
        for endpoint in islice(self._balancer.candidates(model, meter), MAX_ATTEMPTS):
            if meter.attempts and self._clock.monotonic() >= meter.started_s + endpoint.timeouts.total_s:
                meter.candidates[-1] = Candidate(endpoint.id, "no time left")
                continue
            exchange = self._exchange(dialect, endpoint, meter)
            attempt = self._begin(endpoint, meter)
            try:
                answer = await exchange.__aenter__()
            except AttemptFailed as failure:
                last = self._failed(attempt, endpoint, failure, meter)
                if failure.is_caller_fault or failure.kind is FailureKind.CLIENT_LEFT:
                    raise last from failure
                continue
            except BaseException:
                self._end(attempt, "cancelled", meter)
                raise
            attempt.first_byte_ms = self._elapsed_ms(meter)
            try:
                yield answer
            except BaseException as error:
                self._broke(attempt, endpoint, error, meter)
                if not await exchange.__aexit__(*sys.exc_info()):
                    raise
            else:
                self._end(attempt, "ok", meter)
                self._balancer.succeeded(endpoint)
                await exchange.__aexit__(None, None, None)
            return
        raise last

    def _exchange(self, dialect: Dialect, endpoint: Endpoint, meter: Meter) -> AbstractAsyncContextManager[Answer]:
        provider = self._providers[endpoint.provider]
        deadline_s = meter.started_s + endpoint.timeouts.total_s
        return provider.opened(
            meter.call, endpoint, dialect, meter, max_tokens=meter.capped_max_tokens, deadline_s=deadline_s
        )

    def _begin(self, endpoint: Endpoint, meter: Meter) -> Attempt:
        attempt = Attempt(endpoint.id, str(endpoint.provider), self._elapsed_ms(meter))
        meter.attempts.append(attempt)
        meter.endpoint = endpoint
        # What an attempt that failed had noted before it did says nothing about this one.
        meter.usage, meter.quality, meter.delivered_tokens = None, Quality.ESTIMATED, 0
        meter.finish_reason = meter.first_token_ms = None
        return attempt

    def _failed(self, attempt: Attempt, endpoint: Endpoint, failure: AttemptFailed, meter: Meter) -> GatewayError:
        """Note a failure before the answer began; what it means to the caller, should nothing better come."""
        secrets = (endpoint.credential,) if endpoint.credential else ()
        attempt.upstream_status = failure.upstream_status
        attempt.reason = failure.reason
        meter.error_reason = failure.reason
        meter.endpoint = None  # nobody answered, so nobody is paid
        self._end(attempt, "failed", meter)
        if failure.is_endpoint_fault:
            self._balancer.failed(endpoint, retry_after_s=failure.retry_after_s)
        return error_sanitizer.caller_error(failure, secrets=secrets)

    def _broke(self, attempt: Attempt, endpoint: Endpoint, error: BaseException, meter: Meter) -> None:
        if isinstance(error, AttemptFailed):
            attempt.reason, attempt.upstream_status = error.reason, error.upstream_status
            if error.is_endpoint_fault:
                self._balancer.failed(endpoint)
            self._end(attempt, "broke_off", meter)
        else:
            self._end(attempt, "cancelled", meter)

    def _end(self, attempt: Attempt, outcome: str, meter: Meter) -> None:
        attempt.outcome, attempt.ended_ms = outcome, self._elapsed_ms(meter)

    def _elapsed_ms(self, meter: Meter) -> int:
        return round((self._clock.monotonic() - meter.started_s) * 1000)
