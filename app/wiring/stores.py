"""Everything behind a port of storage: PostgreSQL, Redis, and the journal that stands in for Redis."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from app import __version__
from app.clock import Clock
from app.config import OnRedisDown, Settings
from app.database import Engine, open_engine
from app.redis_client import RedisClient, open_redis
from app.services.fallback import FallbackCounters, FallbackSink
from app.services.recovery import RecoveringCounters
from app.storage.journal import Journal
from app.storage.local_counters import LocalCounters
from app.storage.redis_counters import RedisCounters, RedisUsageSink
from app.storage.redis_endpoint_figures import RedisEndpointFigures
from app.storage.redis_presence import RedisPresence
from app.storage.redis_signals import RedisElection, RedisSignals
from app.storage.sql_alerts import SqlAlertStore
from app.storage.sql_audit import SqlAudit
from app.storage.sql_endpoint_events import SqlEndpointEvents
from app.storage.sql_identity import SqlKeyStore
from app.storage.sql_management import SqlManagement
from app.storage.sql_reports import SqlReportStore
from app.storage.sql_sessions import SqlSessions
from app.storage.sql_usage import SqlUsageStore

JOURNAL = "journal"
"""Folder under DATA_DIR where records wait while Redis is away. Replicas that share it adopt each other's when one is gone."""


@dataclass(frozen=True, slots=True)
class Stores:
    process_id: str
    engine: Engine
    redis: RedisClient
    # In Redis, and while it is away beside it.
    counters: FallbackCounters
    sink: FallbackSink
    journal: Journal
    signals: RedisSignals
    election: RedisElection
    presence: RedisPresence
    endpoint_figures: RedisEndpointFigures
    # In PostgreSQL.
    ledger: SqlUsageStore
    reports: SqlReportStore
    keys: SqlKeyStore
    management: SqlManagement
    sessions: SqlSessions
    audit: SqlAudit
    alerts: SqlAlertStore
    endpoint_events: SqlEndpointEvents


def open_stores(settings: Settings, clock: Clock, *, told_time: Callable[[int, float], None]) -> Stores:
    """Opens no connection. Raises: SettingsError."""
    engine = open_engine(settings.database_url, pool_size=settings.database_pool_size)
    redis = open_redis(settings.redis_url, timeout_ms=settings.redis_timeout_ms, is_cluster=settings.redis_cluster)
    process_id = f"{os.getpid()}-{os.urandom(8).hex()}"
    ledger = SqlUsageStore(engine, masks_secrets=settings.log_content_mask_secrets)
    stream, journal = RedisUsageSink(redis), Journal(settings.data_dir / JOURNAL)
    counters = FallbackCounters(
        RecoveringCounters(
            RedisCounters(redis, process_id=process_id), sink=stream, ledger=ledger, clock=clock, told_time=told_time
        ),
        local=LocalCounters(lambda: int(clock.monotonic() * 1000)),
        journal=journal,
        clock=clock,
        is_local=settings.on_redis_down is OnRedisDown.LOCAL,
    )
    return Stores(
        process_id=process_id,
        engine=engine,
        redis=redis,
        counters=counters,
        sink=FallbackSink(stream, counters),
        journal=journal,
        signals=RedisSignals(redis),
        election=RedisElection(redis, process_id=process_id),
        presence=RedisPresence(redis, process_id=process_id, version=__version__),
        endpoint_figures=RedisEndpointFigures(redis, process_id=process_id),
        ledger=ledger,
        reports=SqlReportStore(engine),
        keys=SqlKeyStore(engine, clock=clock, zone=settings.budget_zone),
        management=SqlManagement(engine),
        sessions=SqlSessions(engine),
        audit=SqlAudit(engine),
        alerts=SqlAlertStore(engine),
        endpoint_events=SqlEndpointEvents(engine),
    )
