"""Which endpoint next: by priority, then by smooth weighted round robin, leaving out those that drain or keep failing.

An endpoint that has failed `FAILURES_TO_REST` times in a row rests for `REST_S`; while every endpoint of a model rests, all of them
are tried all the same, for a model is never shut off by its own memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from app.clock import Clock
from app.domain.call import Candidate, Meter
from app.domain.catalog import Catalog, Endpoint, Model
from app.domain.routing import smooth_pick

FAILURES_TO_REST = 3
REST_S = 10.0


@dataclass(slots=True)
class _Health:
    failures_in_row: int = 0
    rests_until_s: float = 0.0


@dataclass(slots=True)
class LoadBalancer:
    clock: Clock
    _credits: dict[tuple[str, int], dict[str, int]] = field(default_factory=dict)
    _health: dict[str, _Health] = field(default_factory=dict)

    def candidates(self, model: Model, meter: Meter) -> Iterator[Endpoint]:
        """Endpoints in the order in which this call should try them, each once. Notes in the meter why others were passed over."""
        usable = []
        for endpoint in model.endpoints:
            if endpoint.is_draining:
                meter.candidates.append(Candidate(endpoint.id, "draining"))
            else:
                usable.append(endpoint)
        awake = [endpoint for endpoint in usable if not self._rests(endpoint.id)]
        for endpoint in usable if awake else ():
            if endpoint not in awake:
                meter.candidates.append(Candidate(endpoint.id, "resting after failures"))
        left = awake or usable
        while left:
            endpoint = self._pick(model, left)
            meter.candidates.append(Candidate(endpoint.id, "tried"))
            yield endpoint
            left = [other for other in left if other.id != endpoint.id]
        # What rests is better than nothing once all others have failed.
        if awake:
            for endpoint in usable:
                if endpoint not in awake:
                    meter.candidates.append(Candidate(endpoint.id, "tried"))
                    yield endpoint

    def succeeded(self, endpoint: Endpoint) -> None:
        self._health.pop(endpoint.id, None)

    def failed(self, endpoint: Endpoint, *, retry_after_s: float | None = None) -> None:
        health = self._health.setdefault(endpoint.id, _Health())
        health.failures_in_row += 1
        now = self.clock.monotonic()
        if health.failures_in_row >= FAILURES_TO_REST:
            health.rests_until_s = max(health.rests_until_s, now + REST_S)
        if retry_after_s is not None:
            health.rests_until_s = max(health.rests_until_s, now + retry_after_s)

    def state_of(self, endpoint_id: str) -> str:
        """The endpoint's state in the words of the admin API: open while it rests."""
        return "open" if self._rests(endpoint_id) else "closed"

    def healthy(self, catalog: Catalog) -> tuple[int, int]:
        """How many endpoints are well, and how many are not (resting or draining)."""
        endpoints = [endpoint for model in catalog.models.values() for endpoint in model.endpoints]
        well = sum(not endpoint.is_draining and not self._rests(endpoint.id) for endpoint in endpoints)
        return well, len(endpoints) - well

    def forget_all_but(self, catalog: Catalog) -> None:
        """Drop what is remembered of endpoints and models that are gone."""
        endpoints = {endpoint.id for model in catalog.models.values() for endpoint in model.endpoints}
        self._health = {key: value for key, value in self._health.items() if key in endpoints}
        self._credits = {key: value for key, value in self._credits.items() if key[0] in catalog.models}

    def _rests(self, endpoint_id: str) -> bool:
        health = self._health.get(endpoint_id)
        return health is not None and health.rests_until_s > self.clock.monotonic()

    def _pick(self, model: Model, endpoints: list[Endpoint]) -> Endpoint:
        priority = max(endpoint.priority for endpoint in endpoints)
        group = [endpoint for endpoint in endpoints if endpoint.priority == priority]
        if len(group) == 1:
            return group[0]
        key = (model.name, priority)
        chosen, credits = smooth_pick([(e.id, e.weight) for e in group], self._credits.get(key, {}))
        self._credits[key] = {**self._credits.get(key, {}), **credits}
        return next(endpoint for endpoint in group if endpoint.id == chosen)
