"""Wiring, and nothing else: settings → container → application → lifespan.

`app` is what ASGI servers import. It reads its settings at import and ends the process with one line when they cannot be used.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from random import random
from uuid import uuid4

from fastapi import FastAPI

from app import __version__
from app.admin.sign_in_page import refused_page
from app.admin.site import add_pages
from app.clock import Clock, SystemClock
from app.config import OnRedisDown, Settings, load_settings, require_cluster_settings
from app.container import Container
from app.database import Engine, is_alive, open_engine
from app.dialects.openai_chat import OpenAIChat
from app.domain.budget import Budget, PeriodKind
from app.domain.catalog import Catalog, ProviderKind
from app.domain.egress import LAPTOP, EgressPolicy, checked_url
from app.domain.identity import LogContent
from app.domain.limits import Limit, LimitKind
from app.domain.money import usd_to_nano
from app.domain.retry_budget import RetryBudget
from app.domain.sso import RolePolicy
from app.drain import Departure
from app.exceptions import CallerError, DependencyUnavailable, Draining, SettingsError
from app.exposition import siblings_of
from app.garbage import seldom_collected
from app.middleware.admin_session import SIGN_IN, AdminSessionMiddleware
from app.middleware.gateway import GatewayMiddleware
from app.providers.anthropic import AnthropicProvider
from app.providers.base import Provider
from app.providers.demo import DemoProvider
from app.providers.oidc import OidcClient, OidcProvider
from app.providers.on_demand import OnDemand, Preparable
from app.providers.price_map import PriceMap
from app.providers.prober import UpstreamProber
from app.providers.relay import OpenAIRelay
from app.providers.tokenizer import BundledTokenizer
from app.providers.transport import Transport, tls_trusting
from app.providers.webhook import Webhook
from app.redis_client import RedisClient, open_redis
from app.routers import admin, alerts, apps, health, management, metrics, sessions, sign_in
from app.routers.chat import DataPlane
from app.routers.docs import add_docs, add_static
from app.routers.errors import install_error_handlers
from app.routers.playground import add_playground
from app.services.admin_access import AdminAccess
from app.services.admin_sessions import AdminSessions, SessionCookie
from app.services.admission import Admission
from app.services.alerts import Alerts
from app.services.api_key import fingerprint_of, pepper_of
from app.services.audit_anchor import EVERY_S as ANCHOR_EVERY_S
from app.services.audit_anchor import AuditAnchors, Keep
from app.services.bootstrap import FirstModel, bootstrap
from app.services.call_content import CallContents
from app.services.call_repeats import CallRepeats
from app.services.catalog import CatalogFollower
from app.services.chat import Chat
from app.services.checkpoints import LOOK_EVERY_S
from app.services.endpoint_care import EndpointCare
from app.services.endpoint_checks import EndpointChecks, PaidChecks
from app.services.endpoint_events import EndpointEvents
from app.services.endpoint_limits import HOLD_EVERY_S, EndpointLimits
from app.services.estimation import Estimation
from app.services.expectations import Expectations
from app.services.failover import Failover
from app.services.fallback import ORPHANS_EVERY_S, FallbackCounters, FallbackSink
from app.services.gauges import Gauges
from app.services.health_check import HealthCheck
from app.services.identities import Identities
from app.services.late_budgets import LateBudgets
from app.services.load_balancer import LoadBalancer
from app.services.maintenance import Chore, supervise
from app.services.management import open_management
from app.services.overload import Overload
from app.services.recovery import RecoveringCounters
from app.services.repeats import Repeats
from app.services.secret_key import SecretKeys
from app.services.shadow import Shadows
from app.services.single_sign_on import SingleSignOn
from app.services.standing import Standings
from app.services.usage_log import UsageLog
from app.services.user_expiry import UserExpiry
from app.services.waiting_room import WaitingRoom
from app.storage.anchor_file import AnchorFile
from app.storage.journal import Journal
from app.storage.local_counters import LocalCounters
from app.storage.management_ports import UserSpec
from app.storage.migrate import migrate
from app.storage.redis_counters import RedisCounters, RedisUsageSink
from app.storage.redis_endpoint_claims import RedisEndpointClaims
from app.storage.redis_endpoint_news import RedisEndpointNews
from app.storage.redis_presence import RedisPresence
from app.storage.redis_repeats import RedisCallRepeats
from app.storage.redis_signals import RedisElection, RedisSignals
from app.storage.retention import Retention, keep_partitions
from app.storage.sealing import Sealer
from app.storage.sql_alerts import SqlAlertStore
from app.storage.sql_audit import SqlAudit
from app.storage.sql_catalog import SqlCatalogStore
from app.storage.sql_endpoint_events import SqlEndpointEvents
from app.storage.sql_identity import SqlKeyStore
from app.storage.sql_management import SqlManagement
from app.storage.sql_overview import SqlOverview
from app.storage.sql_partitions import NotTheOwner
from app.storage.sql_repeats import SqlRepeats
from app.storage.sql_reports import SqlReportStore
from app.storage.sql_secret_key import SqlSecretKey
from app.storage.sql_sessions import SqlSessions
from app.storage.sql_usage import SqlUsageStore
from app.telemetry import configure_logging, logger
from app.telemetry import metrics as registry
from app.vitals import EVERY_S as VITALS_EVERY_S
from app.vitals import follow_vitals, take_vitals
from app.watchdog import Watchdog

JOURNAL = "journal"
"""Folder under DATA_DIR where records wait while Redis is away. Replicas that share it adopt each other's when one is gone."""
SHARED_METRICS = "metrics"
"""Folder under DATA_DIR where the workers of one machine leave each other what they have counted."""
START_WAIT_S = 3.0
"""How long a start waits for its stores before it goes on, alive and not ready, and heals by itself once they are there.

Until then nobody listens on the port, so it is well below the patience of any liveness probe."""
GATHERED_S = 0.1
"""How long records gather before the drainer comes again. A transaction costs as much for one record as for fifty."""
FLUSH_WAIT_S = 5.0
"""How long a stop goes on moving records to SQL. What is left is durable in the stream and moved by the next process."""


@dataclass(frozen=True, slots=True)
class Process:
    """A container and what only its lifespan needs."""

    container: Container
    engine: Engine
    redis: RedisClient
    transport: Transport
    litellm: OnDemand
    signals: RedisSignals
    election: RedisElection
    events: EndpointEvents
    checks: EndpointChecks
    limits: EndpointLimits
    counters: FallbackCounters
    journal: Journal
    user_expiry: UserExpiry
    ledger: SqlUsageStore
    prices: PriceMap
    tokenizer: BundledTokenizer
    anchors: AuditAnchors
    secret_keys: SecretKeys
    secret_key_store: SqlSecretKey
    presence: RedisPresence


def wire(settings: Settings, clock: Clock | None = None) -> Process:
    """Build every service. Opens no connection. Raises: SettingsError."""
    clock = clock or SystemClock()
    zone = settings.budget_zone
    engine = open_engine(settings.database_url, pool_size=settings.database_pool_size)
    redis = open_redis(settings.redis_url, timeout_ms=settings.redis_timeout_ms, is_cluster=settings.redis_cluster)
    process_id = f"{os.getpid()}-{os.urandom(8).hex()}"
    signals, ledger = RedisSignals(redis), SqlUsageStore(engine, masks_secrets=settings.log_content_mask_secrets)
    shared, stream = RedisCounters(redis, process_id=process_id), RedisUsageSink(redis)
    journal = Journal(settings.data_dir / JOURNAL)
    counters = FallbackCounters(
        RecoveringCounters(shared, sink=stream, ledger=ledger, clock=clock),
        local=LocalCounters(lambda: int(clock.monotonic() * 1000)),
        journal=journal,
        clock=clock,
        is_local=settings.on_redis_down is OnRedisDown.LOCAL,
    )
    secret_key = settings.secret_key.get_secret_value()
    older_keys = [each for each in (settings.secret_key_previous.get_secret_value(),) if each]
    secret_keys = SecretKeys(fingerprint_of(secret_key), [fingerprint_of(each) for each in older_keys])
    pepper, older_peppers = pepper_of(secret_key), tuple(pepper_of(each) for each in older_keys)
    sealer, egress = Sealer(secret_key, *older_keys), egress_policy(settings)
    secret_key_store = SqlSecretKey(engine, sealer)

    async def redigest(old: bytes, new: bytes) -> None:
        await secret_key_store.redigest(old, new, fingerprint=secret_keys.current)

    admin_token = settings.admin_token.get_secret_value() or None
    management_store = SqlManagement(engine)
    admin_access = AdminAccess(management_store, clock, pepper, admin_token, older_peppers, redigest)
    sessions_store, audit, reports = SqlSessions(engine), SqlAudit(engine), SqlReportStore(engine)

    async def announce(revision: int, kind: str, ref: str) -> None:
        """Tell the other processes of a change, and know it here before whoever made it has his answer."""
        await signals.publish(revision, kind, ref)
        await catalog.catch_up(revision)

    commands = open_management(
        management_store,
        clock=clock,
        publish=announce,
        pepper=pepper,
        sealer=sealer,
        secret_keys=secret_keys,
        egress=egress,
        has_bootstrap_token=admin_token is not None,
        default_user=default_user(settings),
        older_peppers=older_peppers,
    )
    grace_days = settings.payment_grace_days
    user_expiry = UserExpiry(users=commands.users, clock=clock, zone=zone, grace_days=grace_days)
    key_store = SqlKeyStore(engine, clock=clock, zone=zone)
    identities = Identities(
        store=key_store,
        pepper=pepper,
        clock=clock,
        zone=zone,
        on_expired=user_expiry.noticed,
        until_stored=user_expiry.stored,
        create_user=commands.users.create_on_sight,
        shared_secret=settings.gateway_shared_secret.get_secret_value(),
        grace_days=grace_days,
        older_peppers=older_peppers,
        redigest=redigest,
        accepts_imported=settings.accept_litellm_keys,
    )
    prices = PriceMap.installed()
    tls_by_host = private_authorities(settings)
    transport = Transport(egress, tls_by_host=tls_by_host)
    webhook = webhook_of(settings, transport, clock)
    endpoint_events = SqlEndpointEvents(engine)
    events = EndpointEvents(
        store=endpoint_events,
        news=RedisEndpointNews(redis),
        clock=clock,
        process_id=process_id,
        webhook=webhook,
    )
    balancer = LoadBalancer(
        clock, chance=random, on_change=events.changed, max_in_flight=settings.endpoint_max_in_flight
    )
    catalog = CatalogFollower(
        store=SqlCatalogStore(engine, sealer=sealer, fallback_price=prices.fallback_price),
        identities=identities,
        on_swap=balancer.follow,
    )

    def with_litellm() -> Preparable:
        """Its adapter brings aiohttp along, and LiteLLM itself a moment later: only where an endpoint needs them."""
        from app.providers.litellm import LiteLLMProvider

        return LiteLLMProvider(egress, clock=clock, tls_by_host=tls_by_host)

    litellm = OnDemand(with_litellm)
    providers: dict[ProviderKind, Provider] = {
        ProviderKind.OPENAI: OpenAIRelay(transport),
        ProviderKind.LITELLM: litellm,
        ProviderKind.ANTHROPIC: AnthropicProvider(transport, litellm),
        ProviderKind.DEMO: DemoProvider(clock=clock),
    }
    alert_store = SqlAlertStore(engine)
    budget_alerts = Alerts(store=alert_store, clock=clock, zone=zone, webhook=webhook)
    presence = RedisPresence(redis, process_id=process_id, version=__version__)
    usage_log = UsageLog(
        sink=FallbackSink(stream, counters),
        store=ledger,
        clock=clock,
        log_content=LogContent(settings.log_content),
        content_max_bytes=settings.log_content_max_bytes,
        on_written=budget_alerts.noticed,
    )
    tokenizer = BundledTokenizer()
    estimation = Estimation(tokenizer)
    admission = Admission(
        counters=counters,
        clock=clock,
        conclude=usage_log.conclude,
        default_limits=default_limits(settings),
        zone=zone,
        lease_s=settings.reservation_lease_seconds,
        estimation=estimation,
        expectations=Expectations(),
    )
    limits = EndpointLimits(RedisEndpointClaims(redis))
    late_budgets = LateBudgets(running=admission.running, counters=counters, store=key_store, zone=zone)
    catalog.on_changes = lambda changes: late_budgets.follow(changes, catalog.current)
    failover = Failover(
        providers=providers,
        balancer=balancer,
        clock=clock,
        retries=RetryBudget(settings.retry_budget_percent),
        room=WaitingRoom(clock),
        limits=limits,
        swap=admission.swapped,
    )

    async def database_is_alive() -> bool:
        return await is_alive(engine)

    election = RedisElection(redis, process_id=process_id)
    checks = EndpointChecks(
        prober=UpstreamProber(transport),
        paid=PaidChecks(
            providers=providers,
            dialect=OpenAIChat(),
            admission=admission,
            estimation=estimation,
            usage_log=usage_log,
            clock=clock,
        ),
        balancer=balancer,
        events=events,
        catalog=lambda: catalog.current,
        election=election,
        clock=clock,
        chance=random,
    )
    shadows = Shadows(clock=clock, chance=random)
    admin_sessions = AdminSessions(
        access=admin_access,
        store=sessions_store,
        failures=sessions_store,
        clock=clock,
        peppers=[pepper, *older_peppers],
        idle=timedelta(minutes=settings.dashboard_session_idle_minutes),
        lifetime=timedelta(hours=settings.dashboard_session_hours),
        sso_origin=sso_origin(settings),
    )
    single_sign_on = single_sign_on_of(settings, admin_sessions, clock)

    container = Container(
        settings=settings,
        clock=clock,
        identities=identities,
        catalog=catalog,
        chat=Chat(usage_log=usage_log, admission=admission, failover=failover, estimation=estimation, shadows=shadows),
        admission=admission,
        usage_log=usage_log,
        balancer=balancer,
        health=HealthCheck(
            catalog=catalog,
            balancer=balancer,
            database_is_alive=database_is_alive,
            redis_is_alive=redis.is_alive,
            needs_redis=settings.on_redis_down is OnRedisDown.REFUSE,
        ),
        management=commands,
        admin_access=admin_access,
        admin_sessions=admin_sessions,
        session_cookie=SessionCookie(is_insecure=settings.dashboard_insecure_cookie),
        audit=audit,
        call_contents=CallContents(reports, ledger, audit, clock),
        reports=reports,
        repeats=Repeats(SqlRepeats(engine), sealer, clock),
        call_repeats=CallRepeats(store=RedisCallRepeats(redis), sealer=sealer),
        usage=ledger,
        alerts=budget_alerts,
        standings=Standings(
            counters=counters, ledger=ledger, clock=clock, zone=zone, default_limits=default_limits(settings)
        ),
        overload=Overload(clock, chance=random, max_calls=settings.max_running_calls),
        endpoint_care=EndpointCare(
            balancer=balancer,
            events=events,
            store=endpoint_events,
            commands=commands.endpoints,
            check=checks.check,
            catalog=lambda: catalog.current,
            clock=clock,
        ),
        single_sign_on=single_sign_on,
        siblings=siblings_of(registry, settings.data_dir / SHARED_METRICS),
        overview=SqlOverview(engine),
        gauges=Gauges(counters, alert_store, clock, zone),
        presence=presence,
        keys_by_id=key_store,
    )
    return Process(
        container,
        engine,
        redis,
        transport,
        litellm,
        signals,
        election,
        events,
        checks,
        limits,
        counters,
        journal,
        user_expiry,
        ledger,
        prices,
        tokenizer,
        AuditAnchors(audit=audit, clock=clock, keep=anchor_keeper(settings, transport, clock)),
        secret_keys,
        secret_key_store,
        presence,
    )


def create_app(settings: Settings, clock: Clock | None = None) -> GatewayMiddleware:
    """The whole application: the data plane in front, FastAPI (administration, health, documentation) behind it."""
    process = wire(settings, clock)
    container = process.container
    departure = departure_of(container)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with running(process, departure):
            yield

    api = FastAPI(
        title="Antigravity LLM Gateway",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    api.state.container = container
    install_error_handlers(api)
    for router in (
        *(health.router, metrics.router, sign_in.router),
        *(*admin.routers, *alerts.routers, *apps.routers, *management.routers, *sessions.routers),
    ):
        api.include_router(router)
    add_static(api)
    add_playground(api)
    add_pages(api)
    api.add_middleware(
        AdminSessionMiddleware,
        sessions=container.admin_sessions,
        cookie=container.session_cookie,
        error_page=refused_page,
        public_url=settings.public_url,
    )
    if settings.docs_enabled:
        add_docs(api)
    data_plane = DataPlane(container)
    return GatewayMiddleware(
        api,
        routes=data_plane.routes,
        prefixes=data_plane.prefixes,
        is_draining=lambda: container.health.is_draining,
        write_stall_s=settings.write_stall_seconds,
        departure=departure,
    )


@asynccontextmanager
async def running(process: Process, departure: Departure) -> AsyncIterator[None]:
    """From the first connection to the last: bring up, chores, drain. Every background task belongs to this group."""
    container = process.container
    async with AsyncExitStack() as closing:
        closing.callback(process.journal.close)
        closing.push_async_callback(process.engine.dispose)
        closing.push_async_callback(process.transport.close)
        closing.push_async_callback(process.tokenizer.close)
        await closing.enter_async_context(process.redis.pumping())
        closing.enter_context(watched(process))
        closing.enter_context(await traced_where_asked(container.settings))
        with suppress(DependencyUnavailable):
            process.secret_keys.require_known(await process.secret_key_store.belongs_to())
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(supervise(chore, process.election, container.clock), name=chore.name)
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
                    await process.election.resign()
                    await process.presence.withdraw()


def departure_of(container: Container) -> Departure:
    settings, running = container.settings, container.admission.running
    return Departure(
        health=container.health,
        end_calls=lambda: running.end(list(running), Draining()),
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
        container, redis_is_away=lambda: process.counters.is_away, journal_bytes=lambda: process.journal.size_bytes
    )
    return Watchdog(container.siblings)


def chores(process: Process) -> list[Chore]:
    container, settings = process.container, process.container.settings
    usage_log, admission, expiry = container.usage_log, container.admission, process.user_expiry
    loaded = container.catalog.loaded
    return [
        Chore("configuration", lambda: follow(process)),
        Chore("presence", lambda: process.presence.report(container.catalog.revision), every_s=2.0, after=loaded),
        Chore("messages", lambda: process.signals.listen(container.catalog.heard)),
        Chore("leases", admission.renew_leases, every_s=settings.reservation_lease_seconds / 3),
        Chore("checkpoints", admission.checkpoints.write, every_s=LOOK_EVERY_S),
        Chore("reaper", lambda: process.counters.expire_leases(500), every_s=2.0, is_elected=True),
        Chore("counters", process.counters.watch),
        Chore("journals", lambda: process.counters.adopt(settings.data_dir / JOURNAL), every_s=ORPHANS_EVERY_S),
        Chore("settlements", admission.settle_again, every_s=0.5),
        Chore("vitals", lambda: take_vitals(lambda: is_alive(process.engine), usage_log.depth), every_s=VITALS_EVERY_S),
        Chore("refusals", usage_log.send_unsent, every_s=0.5),
        # These write to tables, which exist once the configuration was loaded from them.
        Chore("drainer", lambda: usage_log.drain(GATHERED_S), is_elected=True, after=loaded),
        Chore("endpoint-news", process.events.send),
        Chore("endpoint-ears", lambda: process.events.listen(container.endpoint_care.heard)),
        Chore("endpoint-events", process.events.write, after=loaded),
        Chore("endpoint-alerts", process.events.alert),
        Chore("endpoint-limits", process.limits.hold, every_s=HOLD_EVERY_S),
        Chore("overload", container.overload.watch),
        Chore("checks", process.checks.run, after=loaded),
        Chore("shadows", lambda: container.chat.shadows.run(container.chat.opened)),
        Chore("old-endpoint-events", process.events.forget_old, every_s=3600.0, is_elected=True, after=loaded),
        Chore("content", usage_log.write_contents, after=loaded),
        Chore("repeats", container.repeats.forget_old, every_s=3600.0, is_elected=True, after=loaded),
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
        if not await process.secret_keys.settle(process.secret_key_store):
            logger.info("secret_key_rotation_pending", next_step="python -m app rotate-secret-key")
        await register_first_model(container, settings)
        await asyncio.to_thread(process.prices.load)
        await container.catalog.load()
        if settings.dashboard_insecure_cookie:
            logger.warning("dashboard_cookie_insecure", why="whoever listens on the way can sign in with it; use https")
        logger.info("configuration_loaded", revision=container.catalog.current.revision)
    if _needs_litellm(container.catalog.current):
        await process.litellm.prepare()
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
        await keep_partitions(process.engine, retention, process.container.clock.now())


def private_authorities(settings: Settings) -> dict[str, ssl.SSLContext]:
    """By host, what its certificates are checked against in place of the system's authorities. Raises: SettingsError."""
    try:
        return {host: tls_trusting(path) for host, path in settings.upstream_ca_files}
    except OSError as fault:
        raise SettingsError(
            "UPSTREAM_CA_FILES names a file that cannot be read as certificates "
            f"({'it holds none' if isinstance(fault, ssl.SSLError) else fault.strerror}). "
            "Set it to host=file, for example llm.corp.example=/etc/ssl/corp-ca.pem."
        ) from None


def egress_policy(settings: Settings) -> EgressPolicy:
    """What endpoints may point to. Raises: SettingsError."""
    if not settings.upstream_private_hosts:
        return LAPTOP if settings.is_embedded else EgressPolicy()
    try:
        return EgressPolicy.parse(settings.upstream_private_hosts)
    except ValueError as error:
        raise SettingsError(
            f"UPSTREAM_PRIVATE_HOSTS is not usable: {error}. Example: UPSTREAM_PRIVATE_HOSTS=loopback, 10.0.0.0/8"
        ) from None


def webhook_of(settings: Settings, transport: Transport, clock: Clock) -> Webhook | None:
    """The sender of alerts, where one is configured. Raises: SettingsError for an address that no endpoint could have either."""
    url = settings.alert_webhook_url
    return _webhook_to(url, "ALERT_WEBHOOK_URL", settings, transport, clock) if url else None


def sso_origin(settings: Settings) -> str | None:
    """What sessions from single sign-on hang on: with another provider or role map they end."""
    if not settings.oidc_issuer:
        return None
    policy = (settings.oidc_role_claim, settings.oidc_role_map, settings.oidc_email_domains)
    return "\n".join((settings.oidc_issuer, settings.oidc_client_id, *policy))


def single_sign_on_of(settings: Settings, sessions: AdminSessions, clock: Clock) -> SingleSignOn | None:
    """Single sign-on, where it is configured. Raises: SettingsError."""
    origin = sso_origin(settings)
    if origin is None:
        return None
    try:
        policy = RolePolicy.parse(
            claim=settings.oidc_role_claim,
            role_map=settings.oidc_role_map,
            email_domains=settings.oidc_email_domains,
        )
    except ValueError as error:
        raise SettingsError(
            f"OIDC_ROLE_MAP is not usable: {error}. Example: OIDC_ROLE_MAP=llm-owners=owner, llm-team=admin"
        ) from None
    client = OidcClient(
        issuer=settings.oidc_issuer,
        client_id=settings.oidc_client_id,
        client_secret=settings.oidc_client_secret.get_secret_value(),
        scopes=settings.oidc_scopes,
        redirect_uri=f"{settings.public_url}{SIGN_IN}/sso/callback",
        role_claim=settings.oidc_role_claim,
    )
    secrets = (settings.secret_key.get_secret_value(), settings.secret_key_previous.get_secret_value())
    return SingleSignOn(
        provider=OidcProvider(client, clock),
        policy=policy,
        sessions=sessions,
        clock=clock,
        origin=origin,
        secret_keys=tuple(each for each in secrets if each),
    )


def anchor_keeper(settings: Settings, transport: Transport, clock: Clock) -> Keep | None:
    """Where anchors of the audit trail go besides the log. Raises: SettingsError."""
    place = settings.audit_anchor
    if not place:
        return None
    if "://" not in place:
        return AnchorFile(Path(place)).keep
    webhook = _webhook_to(place, "AUDIT_ANCHOR", settings, transport, clock)

    async def keep(line: bytes) -> bool:
        return (await webhook.send(str(uuid4()), line)).error is None

    return keep


def _webhook_to(url: str, setting: str, settings: Settings, transport: Transport, clock: Clock) -> Webhook:
    try:
        checked_url(url.partition("?")[0], egress_policy(settings), param=setting)
    except CallerError as error:
        raise SettingsError(f"{error.message} Example: {setting}=https://hooks.example.com/alerts") from None
    return Webhook(transport, clock, url=url, secret=settings.alert_webhook_secret.get_secret_value().encode())


def default_limits(settings: Settings) -> tuple[Limit, ...]:
    """The limits of keys without their own; 0 means none."""
    limits = []
    if settings.rate_limit_requests_per_minute:
        limits.append(Limit(LimitKind.REQUESTS, settings.rate_limit_requests_per_minute, 60))
    if settings.rate_limit_tokens_per_minute:
        limits.append(Limit(LimitKind.TOKENS, settings.rate_limit_tokens_per_minute, 60))
    return tuple(limits)


def default_user(settings: Settings) -> UserSpec:
    """What users get for whom no limits or budgets are given; 0 and an empty amount mean none."""
    limits = []
    if settings.user_requests_per_minute:
        limits.append(Limit(LimitKind.REQUESTS, settings.user_requests_per_minute, 60))
    if settings.user_tokens_per_minute:
        limits.append(Limit(LimitKind.TOKENS, settings.user_tokens_per_minute, 60))
    amounts = (
        (PeriodKind.DAILY, settings.user_daily_budget_usd),
        (PeriodKind.MONTHLY, settings.user_monthly_budget_usd),
    )
    budgets = [Budget(period, None, usd_to_nano(amount)) for period, amount in amounts if amount]
    return UserSpec("", limits=tuple(limits), budgets=tuple(budgets))


def first_model(settings: Settings) -> FirstModel:
    return FirstModel(settings.default_model, settings.llm_api_base, settings.llm_api_key.get_secret_value() or None)


def _needs_litellm(catalog: Catalog) -> bool:
    translated = (ProviderKind.LITELLM, ProviderKind.ANTHROPIC)
    return any(e.provider in translated for model in catalog.models.values() for e in model.endpoints)


def _app() -> GatewayMiddleware:
    try:
        settings = load_settings()
        require_cluster_settings(settings)
        configure_logging(settings.log_level)
        return create_app(settings)
    except SettingsError as error:
        sys.exit(f"The gateway does not start: {error}")


def __getattr__(name: str) -> GatewayMiddleware:
    """`app.main:app`, built when a server asks for it: importing this module for its functions starts nothing."""
    if name == "app":
        globals()["app"] = _app()
        return globals()["app"]  # type: ignore[no-any-return]
    raise AttributeError(name)
