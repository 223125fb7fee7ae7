"""One call's way: estimation, admission, failover, the record; and what is made of calls beside it."""

from __future__ import annotations

from dataclasses import dataclass
from random import random

from app.clock import Clock
from app.config import Settings
from app.dialects.openai_chat import OpenAIChat
from app.domain.identity import LogContent
from app.domain.retry_budget import RetryBudget
from app.providers.prober import UpstreamProber
from app.providers.tokenizer import BundledTokenizer
from app.services.admission import Admission
from app.services.alerts import Alerts
from app.services.chat import Chat
from app.services.endpoint_checks import EndpointChecks, PaidChecks
from app.services.endpoint_limits import EndpointLimits
from app.services.estimation import Estimation
from app.services.expectations import Expectations
from app.services.failover import Failover
from app.services.late_budgets import LateBudgets
from app.services.shadow import Shadows
from app.services.usage_log import UsageLog
from app.services.waiting_room import WaitingRoom
from app.storage.redis_endpoint_claims import RedisEndpointClaims
from app.wiring.from_settings import default_limits
from app.wiring.stores import Stores
from app.wiring.upstreams import Upstreams


@dataclass(frozen=True, slots=True)
class Calls:
    chat: Chat
    usage_log: UsageLog
    admission: Admission
    alerts: Alerts
    checks: EndpointChecks
    limits: EndpointLimits
    tokenizer: BundledTokenizer
    late_budgets: LateBudgets


def wire_calls(settings: Settings, clock: Clock, stores: Stores, upstreams: Upstreams) -> Calls:
    zone = settings.budget_zone
    alerts = Alerts(store=stores.alerts, clock=clock, zone=zone, webhook=upstreams.webhook)
    usage_log = UsageLog(
        sink=stores.sink,
        store=stores.ledger,
        clock=clock,
        log_content=LogContent(settings.log_content),
        content_max_bytes=settings.log_content_max_bytes,
        on_written=alerts.noticed,
    )
    tokenizer = BundledTokenizer()
    estimation = Estimation(tokenizer)
    catalog = upstreams.catalog
    admission = Admission(
        counters=stores.counters,
        clock=clock,
        conclude=usage_log.conclude,
        default_limits=default_limits(settings),
        zone=zone,
        lease_s=settings.reservation_lease_seconds,
        estimation=estimation,
        expectations=Expectations(),
        catalog=lambda: catalog.current,
    )
    late_budgets = LateBudgets(running=admission.running, counters=stores.counters, store=stores.keys, zone=zone)
    catalog.on_changes = lambda changes: late_budgets.follow(changes, catalog.current)
    limits = EndpointLimits(RedisEndpointClaims(stores.redis))
    failover = Failover(
        providers=upstreams.providers,
        balancer=upstreams.balancer,
        clock=clock,
        retries=RetryBudget(settings.retry_budget_percent),
        room=WaitingRoom(clock),
        limits=limits,
        swap=admission.swapped,
    )
    chat = Chat(
        usage_log=usage_log,
        admission=admission,
        failover=failover,
        estimation=estimation,
        shadows=Shadows(clock=clock, chance=random),
    )
    return Calls(
        chat, usage_log, admission, alerts, _checks(clock, stores, upstreams, chat), limits, tokenizer, late_budgets
    )


def _checks(clock: Clock, stores: Stores, upstreams: Upstreams, chat: Chat) -> EndpointChecks:
    """Active checks: free ones, and paid ones that are calls of their own."""
    catalog = upstreams.catalog
    return EndpointChecks(
        prober=UpstreamProber(upstreams.transport),
        paid=PaidChecks(
            providers=upstreams.providers,
            dialect=OpenAIChat(),
            admission=chat.admission,
            estimation=chat.estimation,
            usage_log=chat.usage_log,
            clock=clock,
        ),
        balancer=upstreams.balancer,
        events=upstreams.events,
        catalog=lambda: catalog.current,
        election=stores.election,
        clock=clock,
        chance=random,
    )
