"""What metrics say of this process and its stores that no call says by itself: followed where it lies, or asked for by a chore."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path

from app.container import Container
from app.exceptions import DependencyUnavailable
from app.instruments import Labels, Number
from app.telemetry import (
    CPU_SECONDS,
    DATABASE_UP,
    DEPLOYMENT_STATE,
    DEPLOYMENTS_SHOWN,
    IN_FLIGHT,
    JOURNAL_BYTES,
    LOG_QUEUE_DEPTH,
    OPEN_FILES,
    REDIS_UP,
    RESIDENT_BYTES,
    TASKS,
    UNWRITTEN_CONTENT_BYTES,
)

EVERY_S = 5.0
"""Three times between two scrapes of an ordinary Prometheus."""
STATES = {"closed": 0, "half_open": 1, "draining": 1, "open": 2}
_PAGE_BYTES = resource.getpagesize()


def follow_vitals(container: Container, *, redis_is_away: Callable[[], bool], journal_bytes: Callable[[], int]) -> None:
    """Show what can be read at any moment, from any thread."""
    loop = asyncio.get_running_loop()
    IN_FLIGHT.follow(lambda: container.admission.running_calls)
    DEPLOYMENT_STATE.follow(lambda: _states(container))
    JOURNAL_BYTES.follow(journal_bytes)
    REDIS_UP.follow(lambda: int(not redis_is_away()))
    UNWRITTEN_CONTENT_BYTES.follow(lambda: container.usage_log.waiting_content_bytes)
    TASKS.follow(lambda: len(asyncio.all_tasks(loop)))
    OPEN_FILES.follow(_open_files)
    RESIDENT_BYTES.follow(_resident_bytes)
    CPU_SECONDS.follow(time.process_time)


async def take_vitals(database_is_alive: Callable[[], Awaitable[bool]], depth: Callable[[], Awaitable[int]]) -> None:
    """Ask the stores how they are."""
    DATABASE_UP.set(int(await database_is_alive()))
    with suppress(DependencyUnavailable):
        LOG_QUEUE_DEPTH.set(await depth())


def _states(container: Container) -> Mapping[Labels, Number]:
    found: dict[Labels, Number] = {}
    for model in list(container.catalog.current.models.values()):
        for endpoint in model.endpoints:
            if len(found) >= DEPLOYMENTS_SHOWN:
                return found
            state = "draining" if endpoint.is_draining else container.balancer.state_of(endpoint.id)
            found[endpoint.id, model.name] = STATES.get(state, 0)
    return found


def _open_files() -> int:
    with suppress(OSError):
        return len(os.listdir("/proc/self/fd"))
    return 0


def _resident_bytes() -> int:
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
    return 0
