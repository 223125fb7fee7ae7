"""Wiring, and nothing else: settings → parts → container → application.

`app` is what ASGI servers import. It reads its settings at import and ends the process with one line when they cannot be used.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import random

from fastapi import FastAPI

from app import __version__
from app.admin.sign_in_page import refused_page
from app.admin.site import add_pages
from app.clock import Clock, SystemClock
from app.config import OnRedisDown, Settings, load_settings, require_cluster_settings
from app.container import Container
from app.database import is_alive
from app.doorway import Doorway
from app.exceptions import SettingsError
from app.exposition import siblings_of
from app.lifespan import Process, departure_of, running
from app.middleware.admin_session import AdminSessionMiddleware
from app.middleware.gateway import GatewayMiddleware
from app.open_files import Room, want_more_files
from app.routers import admin, alerts, apps, health, management, metrics, sessions, sign_in
from app.routers.chat import DataPlane
from app.routers.docs import add_docs, add_static
from app.routers.errors import install_error_handlers
from app.routers.playground import add_playground
from app.services.admin_sessions import SessionCookie
from app.services.audit_anchor import AuditAnchors
from app.services.call_content import CallContents
from app.services.call_repeats import CallRepeats
from app.services.endpoint_care import EndpointCare
from app.services.gauges import Gauges
from app.services.health_check import HealthCheck
from app.services.overload import Overload
from app.services.repeats import Repeats
from app.services.standing import Standings
from app.storage.redis_repeats import RedisCallRepeats
from app.storage.sql_overview import SqlOverview
from app.storage.sql_repeats import SqlRepeats
from app.telemetry import configure_logging
from app.telemetry import metrics as registry
from app.wiring.calls import Calls, wire_calls
from app.wiring.from_settings import anchor_keeper, default_limits, egress_policy, require_usable, single_sign_on_of
from app.wiring.people import People, wire_people
from app.wiring.secret_keys import Secrets, secrets_of
from app.wiring.stores import Stores, open_stores
from app.wiring.upstreams import Upstreams, wire_upstreams

SHARED_METRICS = "metrics"
"""Folder under DATA_DIR where the workers of one machine leave each other what they have counted."""


def wire(settings: Settings, clock: Clock | None = None, wall: SystemClock | None = None) -> Process:
    """Build every service. Opens no connection. `wall` is put right by the counter store's. Raises: SettingsError."""
    wall = wall or SystemClock()
    clock = clock or wall

    async def announce(revision: int, kind: str, ref: str) -> None:
        """Tell the other processes of a change, and know it here before whoever made it has his answer."""
        await stores.signals.publish(revision, kind, ref)
        await upstreams.catalog.catch_up(revision)

    stores, egress = open_stores(settings, clock, told_time=wall.told), egress_policy(settings)
    secrets = secrets_of(settings, stores)
    people = wire_people(settings, clock, stores, secrets, egress, announce)
    upstreams = wire_upstreams(settings, clock, stores, secrets.sealer, egress, people.identities)
    calls = wire_calls(settings, clock, stores, upstreams)
    keep = anchor_keeper(settings, upstreams.transport, clock)
    container = _container(settings, clock, stores, secrets, people, upstreams, calls)
    return Process(
        container, stores, secrets, people, upstreams, calls, AuditAnchors(audit=stores.audit, clock=clock, keep=keep)
    )


def _container(
    settings: Settings,
    clock: Clock,
    stores: Stores,
    secrets: Secrets,
    people: People,
    upstreams: Upstreams,
    calls: Calls,
) -> Container:
    """What routers receive: the parts by name, and what only they need."""
    zone, engine = settings.budget_zone, stores.engine
    room = Room.within(settings.max_running_calls)
    overview = SqlOverview(engine)
    return Container(
        settings=settings,
        clock=clock,
        identities=people.identities,
        catalog=upstreams.catalog,
        chat=calls.chat,
        admission=calls.admission,
        usage_log=calls.usage_log,
        balancer=upstreams.balancer,
        health=_health(settings, stores, upstreams),
        management=people.commands,
        admin_access=people.admin_access,
        admin_sessions=people.admin_sessions,
        session_cookie=SessionCookie(is_insecure=settings.dashboard_insecure_cookie),
        audit=stores.audit,
        call_contents=CallContents(stores.reports, stores.ledger, stores.audit, clock),
        reports=stores.reports,
        repeats=Repeats(SqlRepeats(engine), secrets.sealer, clock),
        call_repeats=CallRepeats(store=RedisCallRepeats(stores.redis), sealer=secrets.sealer),
        usage=stores.ledger,
        alerts=calls.alerts,
        standings=Standings(
            counters=stores.counters,
            ledger=stores.ledger,
            clock=clock,
            zone=zone,
            default_limits=default_limits(settings),
        ),
        overload=Overload(clock, chance=random, max_calls=room.calls, max_connections=room.connections),
        doorway=Doorway(),
        endpoint_care=_endpoint_care(clock, stores, people, upstreams, calls),
        single_sign_on=single_sign_on_of(settings, people.admin_sessions, clock),
        siblings=siblings_of(registry, settings.data_dir / SHARED_METRICS),
        overview=overview,
        gauges=Gauges(stores.counters, overview, clock, zone),
        presence=stores.presence,
        keys_by_id=stores.keys,
    )


def _health(settings: Settings, stores: Stores, upstreams: Upstreams) -> HealthCheck:
    async def database_is_alive() -> bool:
        return await is_alive(stores.engine)

    async def redis_is_alive() -> bool:
        # One that answers a ping may refuse all that counts (a replica, a server that lost its scripts, a full one).
        return not stores.counters.is_away and await stores.redis.is_alive()

    return HealthCheck(
        catalog=upstreams.catalog,
        balancer=upstreams.balancer,
        database_is_alive=database_is_alive,
        redis_is_alive=redis_is_alive,
        needs_redis=settings.on_redis_down is OnRedisDown.REFUSE,
    )


def _endpoint_care(clock: Clock, stores: Stores, people: People, upstreams: Upstreams, calls: Calls) -> EndpointCare:
    catalog = upstreams.catalog
    return EndpointCare(
        balancer=upstreams.balancer,
        events=upstreams.events,
        store=stores.endpoint_events,
        figures=stores.endpoint_figures,
        commands=people.commands.endpoints,
        check=calls.checks.check,
        catalog=lambda: catalog.current,
        clock=clock,
    )


def create_app(settings: Settings, clock: Clock | None = None) -> GatewayMiddleware:
    """The whole application: the data plane in front, FastAPI (administration, health, documentation) behind it."""
    wall = SystemClock()
    process = wire(settings, clock, wall)
    container = process.container
    departure = departure_of(container, wall.now_ms)

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
        now_ms=wall.now_ms,
        has_proxies=bool(settings.trusted_proxies),
        overload=container.overload,
        doorway=container.doorway,
    )


def _app() -> GatewayMiddleware:
    try:
        settings = load_settings()
        require_cluster_settings(settings)
        require_usable(settings)
        configure_logging(settings.log_level)
        want_more_files()
        return create_app(settings)
    except SettingsError as error:
        sys.exit(f"The gateway does not start: {error}")


def __getattr__(name: str) -> GatewayMiddleware:
    """`app.main:app`, built when a server asks for it: importing this module for its functions starts nothing."""
    if name == "app":
        globals()["app"] = _app()
        return globals()["app"]  # type: ignore[no-any-return]
    raise AttributeError(name)
