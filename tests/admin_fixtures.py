"""The admin API over a real PostgreSQL: a migrated database of the test's own, the services, and an HTTP client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, timedelta
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.admin.sign_in_page import refused_page
from app.config import Settings, load_settings
from app.domain.catalog import EMPTY, Endpoint, HealthCheckKind
from app.domain.egress import EgressPolicy
from app.domain.endpoint_figures import Figures
from app.exceptions import CounterStoreAway
from app.middleware.admin_session import AdminSessionMiddleware
from app.routers import admin, alerts, apps, management, sessions, sign_in
from app.routers.errors import install_error_handlers
from app.services.admin_access import AdminAccess
from app.services.admin_sessions import AdminSessions, SessionCookie
from app.services.alerts import Alerts
from app.services.api_key import fingerprint_of, pepper_of
from app.services.call_content import CallContents
from app.services.endpoint_care import EndpointCare
from app.services.endpoint_checks import Check
from app.services.endpoint_events import EndpointEvents
from app.services.load_balancer import LoadBalancer
from app.services.management import Management, open_management
from app.services.repeats import Repeats
from app.services.secret_key import SecretKeys
from app.services.single_sign_on import SingleSignOn
from app.storage.alert_ports import WebhookSender
from app.storage.ports import ReportStore, UsageStore
from app.storage.sealing import Sealer
from app.storage.sql_alerts import SqlAlertStore
from app.storage.sql_audit import SqlAudit
from app.storage.sql_endpoint_events import SqlEndpointEvents
from app.storage.sql_management import SqlManagement
from app.storage.sql_repeats import SqlRepeats
from app.storage.sql_reports import SqlReportStore
from app.storage.sql_sessions import SqlSessions
from app.storage.sql_usage import SqlUsageStore
from tests.kit.clock import ManualClock
from tests.storage.conftest import database, engine, postgres_url, template

__all__ = ["api", "database", "engine", "gateway", "postgres_url", "template"]

SECRET_KEY = "a-secret-key-that-only-these-tests-know-0123456789"
ADMIN_TOKEN = "an-admin-token-that-only-these-tests-know-0123456789"


@dataclass(slots=True)
class Published:
    """Where changes are announced; `breaks` makes every announcement fail."""

    messages: list[tuple[int, str, str]] = field(default_factory=list)
    breaks: bool = False

    async def __call__(self, revision: int, kind: str, ref: str) -> None:
        if self.breaks:
            raise ConnectionError("the messenger is away")
        self.messages.append((revision, kind, ref))


class NoNews:
    """There is no other process."""

    async def publish(self, message: bytes) -> None: ...

    async def listen(self, heard: Callable[[bytes], None]) -> None: ...


class OtherProcesses:
    """What other processes told of endpoints; by default there are none."""

    def __init__(self) -> None:
        self.others: list[Mapping[str, Figures]] = []
        self.told_last: Mapping[str, Figures] = {}
        self.is_away = False

    async def tell(self, figures: Mapping[str, Figures]) -> None:
        self.told_last = figures

    async def told(self, endpoint_ids: Sequence[str]) -> list[Mapping[str, Figures]]:
        if self.is_away:
            raise CounterStoreAway
        return self.others


async def no_check(endpoint: Endpoint, kind: HealthCheckKind) -> Check:
    raise AssertionError("nothing is served here, so nothing is checked")


@dataclass(slots=True)
class Gateway:
    """What the routers get instead of the container."""

    engine: AsyncEngine
    settings: Settings
    clock: ManualClock
    management: Management
    admin_access: AdminAccess
    admin_sessions: AdminSessions
    audit: SqlAudit
    call_contents: CallContents
    repeats: Repeats
    reports: ReportStore
    usage: UsageStore
    alerts: Alerts
    balancer: LoadBalancer
    endpoint_care: EndpointCare
    other_processes: OtherProcesses
    published: Published
    pepper: bytes
    sealer: Sealer
    session_cookie: SessionCookie = SessionCookie()
    single_sign_on: SingleSignOn | None = None

    async def rows(self, sql: str, **values: object) -> list[dict[str, Any]]:
        async with self.engine.begin() as connection:
            return [dict(row) for row in (await connection.execute(text(sql), values)).mappings()]

    async def execute(self, sql: str, **values: object) -> None:
        async with self.engine.begin() as connection:
            await connection.execute(
                text("SET LOCAL application_name = 'psql'")
            )  # whom the audit trail's trigger lets through
            await connection.execute(text(sql), values)


def open_gateway(
    engine: AsyncEngine,
    *,
    private_hosts: str = "",
    admin_token: str | None = ADMIN_TOKEN,
    webhook: WebhookSender | None = None,
) -> Gateway:
    clock, published, pepper, sealer = ManualClock(), Published(), pepper_of(SECRET_KEY), Sealer(SECRET_KEY)
    store = SqlManagement(engine)
    commands = open_management(
        store,
        clock=clock,
        publish=published,
        pepper=pepper,
        sealer=sealer,
        secret_keys=SecretKeys(fingerprint_of(SECRET_KEY), ()),
        egress=EgressPolicy.parse(private_hosts),
        has_bootstrap_token=admin_token is not None,
    )
    kept = SqlEndpointEvents(engine)
    events = EndpointEvents(store=kept, news=NoNews(), clock=clock, process_id="this-process")
    figures = OtherProcesses()
    balancer = LoadBalancer(clock, chance=lambda: 0.5, on_change=events.changed)
    admin_access, sessions = AdminAccess(store, clock, pepper, admin_token), SqlSessions(engine)
    audit = SqlAudit(engine)
    return Gateway(
        engine=engine,
        settings=load_settings({"SECRET_KEY": SECRET_KEY, "DATABASE_URL": "postgresql://u:hidden-password@h/d"}),
        clock=clock,
        management=commands,
        admin_access=admin_access,
        admin_sessions=open_sessions(admin_access, sessions, clock, pepper),
        audit=audit,
        call_contents=CallContents(SqlReportStore(engine), SqlUsageStore(engine), audit, clock),
        repeats=Repeats(SqlRepeats(engine), sealer, clock),
        reports=SqlReportStore(engine),
        usage=SqlUsageStore(engine),
        alerts=Alerts(store=SqlAlertStore(engine), clock=clock, zone=UTC, webhook=webhook),
        balancer=balancer,
        endpoint_care=EndpointCare(
            balancer=balancer,
            events=events,
            store=kept,
            figures=figures,
            commands=commands.endpoints,
            check=no_check,
            catalog=lambda: EMPTY,
            clock=clock,
        ),
        other_processes=figures,
        published=published,
        pepper=pepper,
        sealer=sealer,
    )


def open_sessions(access: AdminAccess, store: SqlSessions, clock: ManualClock, pepper: bytes) -> AdminSessions:
    return AdminSessions(
        access=access,
        store=store,
        failures=store,
        clock=clock,
        peppers=[pepper],
        idle=timedelta(hours=1),
        lifetime=timedelta(hours=12),
    )


def open_app(gateway: Gateway) -> FastAPI:
    app = FastAPI(docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.container = gateway
    install_error_handlers(app)
    for router in (
        sign_in.router,
        *admin.routers,
        *alerts.routers,
        *apps.routers,
        *management.routers,
        *sessions.routers,
    ):
        app.include_router(router)
    app.add_middleware(
        AdminSessionMiddleware,
        sessions=gateway.admin_sessions,
        cookie=gateway.session_cookie,
        error_page=refused_page,
    )
    return app


def open_client(app: FastAPI, token: str | None = ADMIN_TOKEN) -> httpx2.AsyncClient:
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False, client=("203.0.113.9", 1))
    return httpx2.AsyncClient(transport=transport, base_url="http://gateway/admin/api", headers=headers)


@pytest.fixture
def gateway(engine: AsyncEngine) -> Gateway:
    return open_gateway(engine)


@pytest.fixture
async def api(gateway: Gateway) -> AsyncIterator[httpx2.AsyncClient]:
    async with open_client(open_app(gateway)) as client:
        yield client
