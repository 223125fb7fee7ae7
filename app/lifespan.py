"""A process from its first connection to its last: bring up, chores, drain. Every background task belongs to its task group."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass

from app.config import Settings
from app.container import Container
from app.database import is_alive
from app.domain.catalog import Catalog, ProviderKind
from app.drain import Departure
from app.exceptions import CallerError, DependencyUnavailable, Draining
from app.garbage import seldom_collected
from app.services.audit_anchor import EVERY_S as ANCHOR_EVERY_S
from app.services.audit_anchor import AuditAnchors
from app.services.bootstrap import bootstrap
from app.services.checkpoints import LOOK_EVERY_S
from app.services.endpoint_limits import HOLD_EVERY_S
from app.services.fallback import ORPHANS_EVERY_S
from app.services.maintenance import Chore, supervise
from app.storage.migrate import migrate
from app.storage.retention import Retention, keep_partitions
from app.storage.sql_partitions import NotTheOwner
from app.telemetry import flush_log, logger
from app.vitals import EVERY_S as VITALS_EVERY_S
from app.vitals import follow_vitals, take_vitals
from app.watchdog import Watchdog
from app.wiring.calls import Calls
from app.wiring.from_settings import first_model
from app.wiring.people import People
from app.wiring.secret_keys import Secrets
from app.wiring.stores import JOURNAL, Stores
from app.wiring.upstreams import Upstreams

START_WAIT_S = 3.0
"""How long a start waits for its stores before it goes on, alive and not ready, and heals by itself once they are there.

Until then nobody listens on the port, so it is well below the patience of any liveness probe."""
GATHERED_S = 0.1
"""How long records gather before the drainer comes again. A transaction costs as much for one record as for fifty."""
FLUSH_WAIT_S = 5.0
"""How long a stop goes on moving records to SQL. What is left is durable in the stream and moved by the next process."""


@dataclass(frozen=True, slots=True)
class Process:
    """The container that routers receive, and the parts it was made of, which only the lifespan needs."""

    container: Container
    stores: Stores
    secrets: Secrets
    people: People
    upstreams: Upstreams
    calls: Calls
    anchors: AuditAnchors


@asynccontextmanager
async def running(process: Process, departure: Departure) -> AsyncIterator[None]:
    """From the first connection to the last: bring up, chores, drain. Every background task belongs to this group."""
    container = process.container
    async with AsyncExitStack() as closing:
        closing.callback(flush_log)
        closing.callback(process.stores.journal.close)
        closing.push_async_callback(process.stores.engine.dispose)
        closing.push_async_callback(process.upstreams.transport.close)
        closing.push_async_callback(process.calls.tokenizer.close)
        await closing.enter_async_context(process.stores.redis.pumping())
        closing.enter_context(watched(process))
        closing.enter_context(await traced_where_asked(container.settings))
        with suppress(DependencyUnavailable):
            process.secrets.keys.require_known(await process.secrets.store.belongs_to())
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(supervise(chore, process.stores.election, container.clock), name=chore.name)
                for chore in chores(process)
            ]
            tasks.append(group.create_task(departure.run(), name="departure"))
            try:
                await until_loaded(container)
                departure.listen()
                with seldom_collected():
                    yield
            finally:
                container.health.is_draining = True
                await flush(container)
                for task in tasks:
                    task.cancel()
                with suppress(DependencyUnavailable):
                    await process.stores.election.resign()
                    await process.stores.presence.withdraw()
                    await process.stores.endpoint_figures.withdraw()


def departure_of(container: Container, now_ms: Callable[[], int]) -> Departure:
    settings, running = container.settings, container.admission.running
    return Departure(
        health=container.health,
        end_calls=lambda: running.close(Draining()),
        doorway=container.doorway,
        now_ms=now_ms,
        delay_s=settings.shutdown_delay_seconds,
        grace_s=settings.shutdown_grace_seconds,
    )


async def traced_where_asked(settings: Settings) -> AbstractContextManager[None]:
    """Traces, where somebody is to be told of them; otherwise nothing of theirs is even imported."""
    if not settings.otel_exporter_otlp_endpoint:
        return nullcontext()
    tracing = await asyncio.to_thread(importlib.import_module, "app.tracing")
    opened: AbstractContextManager[None] = tracing.traced(
        settings.otel_exporter_otlp_endpoint, settings.otel_service_name
    )
    return opened


def watched(process: Process) -> Watchdog:
    """The thread that looks after this process's event loop, and what metrics say of it."""
    container = process.container
    follow_vitals(
        container,
        redis_is_away=lambda: process.stores.counters.is_away,
        journal_bytes=lambda: process.stores.journal.size_bytes,
    )
    return Watchdog(container.siblings)


def chores(process: Process) -> list[Chore]:
    container, settings = process.container, process.container.settings
    usage_log, admission, expiry = container.usage_log, container.admission, process.people.user_expiry
    loaded = container.catalog.loaded
    return [
        Chore("configuration", lambda: follow(process)),
        Chore(
            "presence", lambda: process.stores.presence.report(container.catalog.revision), every_s=2.0, after=loaded
        ),
        Chore("endpoint-figures", container.endpoint_care.tell, every_s=2.0, after=loaded),
        Chore("messages", lambda: process.stores.signals.listen(container.catalog.heard)),
        Chore("leases", admission.renew_leases, every_s=settings.reservation_lease_seconds / 3),
        Chore("checkpoints", admission.checkpoints.write, every_s=LOOK_EVERY_S),
        Chore("reaper", lambda: process.stores.counters.expire_leases(500), every_s=2.0, is_elected=True),
        Chore("counters", process.stores.counters.watch),
        Chore("journals", lambda: process.stores.counters.adopt(settings.data_dir / JOURNAL), every_s=ORPHANS_EVERY_S),
        Chore("settlements", admission.settle_again, every_s=0.5),
        Chore("late-budgets", lambda: process.calls.late_budgets.follow_again(container.catalog.current), every_s=0.5),
        Chore(
            "vitals",
            lambda: take_vitals(lambda: is_alive(process.stores.engine), usage_log.depth),
            every_s=VITALS_EVERY_S,
        ),
        Chore("refusals", usage_log.send_unsent, every_s=0.5),
        # These write to tables, which exist once the configuration was loaded from them.
        Chore("drainer", lambda: usage_log.drain(GATHERED_S), is_elected=True, after=loaded),
        Chore("endpoint-news", process.upstreams.events.send),
        Chore("endpoint-ears", lambda: process.upstreams.events.listen(container.endpoint_care.heard)),
        Chore("endpoint-events", process.upstreams.events.write, after=loaded),
        Chore("endpoint-alerts", process.upstreams.events.alert),
        Chore("endpoint-limits", process.calls.limits.hold, every_s=HOLD_EVERY_S),
        Chore("overload", container.overload.watch),
        Chore("doorway", container.doorway.keep),
        Chore("checks", process.calls.checks.run, after=loaded),
        Chore("shadows", lambda: container.chat.shadows.run(container.chat.answered)),
        Chore(
            "old-endpoint-events", process.upstreams.events.forget_old, every_s=3600.0, is_elected=True, after=loaded
        ),
        Chore("content", usage_log.write_contents, after=loaded),
        Chore("repeats", container.repeats.forget_old, every_s=3600.0, is_elected=True, after=loaded),
        Chore("old-changes", container.catalog.forget_old_changes, every_s=3600.0, is_elected=True, after=loaded),
        Chore("last-used", container.identities.write_used, every_s=10.0, after=loaded),
        Chore("noticed-expiries", expiry.store_noticed, after=loaded),
        Chore("daily-expiry", expiry.sync_daily, every_s=60.0, is_elected=True, after=loaded),
        Chore("alerts", container.alerts.deliver_due, every_s=1.0, is_elected=True, after=loaded),
        Chore("audit-anchors", process.anchors.tell, every_s=ANCHOR_EVERY_S, is_elected=True, after=loaded),
        Chore("partitions", lambda: kept_partitions(process), every_s=3600.0, is_elected=True, after=loaded),
    ]


async def follow(process: Process) -> None:
    """Bring the database and the catalog up, then follow the configuration for ever."""
    container, settings = process.container, process.container.settings
    if not container.catalog.is_loaded:
        await migrate(settings.database_url, lambda line: logger.info("migration", step=line))
        if not await process.secrets.keys.settle(process.secrets.store):
            logger.info("secret_key_rotation_pending", next_step="python -m app rotate-secret-key")
        await register_first_model(container, settings)
        await asyncio.to_thread(process.upstreams.prices.load)
        await container.catalog.load()
        if settings.dashboard_insecure_cookie:
            logger.warning("dashboard_cookie_insecure", why="whoever listens on the way can sign in with it; use https")
        logger.info("configuration_loaded", revision=container.catalog.current.revision)
    if _needs_litellm(container.catalog.current):
        await process.upstreams.litellm.prepare()
    await container.catalog.follow()


async def register_first_model(container: Container, settings: Settings) -> None:
    """A first model that the settings describe wrongly is no reason not to serve: it is said, and can be registered by hand."""
    try:
        await bootstrap(container.management, first_model(settings), is_embedded=settings.is_embedded)
    except CallerError as error:
        logger.error("first_model_not_registered", why=error.message)


async def until_loaded(container: Container) -> None:
    try:
        async with asyncio.timeout(START_WAIT_S):
            await container.catalog.loaded.wait()
    except TimeoutError:
        logger.warning("started_without_its_stores")


async def flush(container: Container) -> None:
    """Move what is still on its way to the ledger. Stops at the first failure: what is left is durable where it lies."""
    try:
        async with asyncio.timeout(FLUSH_WAIT_S):
            await container.usage_log.send_unsent()
            while container.usage_log.has_contents:
                await container.usage_log.write_contents_once()
            while await container.usage_log.drain_once(wait_s=0.01):
                pass
            await container.identities.write_used()
    except (DependencyUnavailable, TimeoutError):
        logger.warning("records_left_for_the_next_process")


async def kept_partitions(process: Process) -> None:
    """The months to come are made, those that are over dropped, where this role owns the tables; otherwise their owner does it."""
    settings = process.container.settings
    retention = Retention(settings.log_retention_days, settings.ledger_retention_days)
    with suppress(NotTheOwner):
        await keep_partitions(process.stores.engine, retention, process.container.clock.now())


def _needs_litellm(catalog: Catalog) -> bool:
    """Whether some endpoint needs it for every call. Anthropic's need it for chat only; the first such call loads it."""
    endpoints = (endpoint for model in catalog.models.values() for endpoint in model.endpoints)
    return any(endpoint.provider is ProviderKind.LITELLM for endpoint in endpoints)
