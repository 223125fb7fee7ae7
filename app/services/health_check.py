"""Is this replica well, and can it serve?

`report` says how the parts are; `is_ready` says whether a load balancer should send calls here: once the configuration was
loaded, a replica serves the identities it knows also while PostgreSQL is away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from app.domain.catalog import Catalog
from app.services.catalog import CatalogFollower
from app.services.load_balancer import LoadBalancer


@dataclass(frozen=True, slots=True)
class HealthReport:
    database_ok: bool
    redis_ok: bool
    healthy_endpoints: int
    unhealthy_endpoints: int
    needs_redis: bool = True

    @property
    def status(self) -> str:
        """ok, degraded (calls are served, something is missing) or down."""
        if not self.redis_ok and self.needs_redis:
            return "down"
        everything = self.database_ok and self.redis_ok and self.unhealthy_endpoints == 0
        return "ok" if everything else "degraded"


class HealthCheck:
    def __init__(
        self,
        *,
        catalog: CatalogFollower,
        balancer: LoadBalancer,
        database_is_alive: Callable[[], Awaitable[bool]],
        redis_is_alive: Callable[[], Awaitable[bool]],
        needs_redis: bool = True,
    ) -> None:
        self._catalog = catalog
        self._balancer = balancer
        self._database_is_alive = database_is_alive
        self._redis_is_alive = redis_is_alive
        self._needs_redis = needs_redis
        self.is_draining = False
        self.is_leaving = False
        """SIGTERM has come: calls are still served, but a load balancer should send them elsewhere."""

    async def report(self) -> HealthReport:
        database_ok, redis_ok = await asyncio.gather(self._database_is_alive(), self._redis_is_alive())
        well, unwell = self._balancer.healthy(self._catalog.current)
        return HealthReport(database_ok, redis_ok, well, unwell, self._needs_redis)

    @property
    def is_ready(self) -> bool:
        return self._catalog.is_loaded and not self.is_draining and not self.is_leaving

    @property
    def snapshot(self) -> Catalog:
        return self._catalog.current
