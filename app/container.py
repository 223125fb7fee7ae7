"""Every long-lived service by name: all that routers ever receive. `app/main.py` builds it, nobody else."""

from __future__ import annotations

from dataclasses import dataclass

from app.clock import Clock
from app.config import Settings
from app.doorway import Doorway
from app.exposition import Siblings
from app.services.admin_access import AdminAccess
from app.services.admin_sessions import AdminSessions, SessionCookie
from app.services.admission import Admission
from app.services.alerts import Alerts
from app.services.call_content import CallContents
from app.services.call_repeats import CallRepeats
from app.services.catalog import CatalogFollower
from app.services.chat import Chat
from app.services.endpoint_care import EndpointCare
from app.services.gauges import Gauges
from app.services.health_check import HealthCheck
from app.services.identities import Identities
from app.services.load_balancer import LoadBalancer
from app.services.management import Management
from app.services.overload import Overload
from app.services.repeats import Repeats
from app.services.single_sign_on import SingleSignOn
from app.services.standing import Standings
from app.services.usage_log import UsageLog
from app.storage.management_ports import AuditStore
from app.storage.overview_ports import OverviewStore, Presence
from app.storage.ports import KeysById, ReportStore, UsageStore


@dataclass(frozen=True, slots=True)
class Container:
    settings: Settings
    clock: Clock
    identities: Identities
    catalog: CatalogFollower
    chat: Chat
    admission: Admission
    usage_log: UsageLog
    balancer: LoadBalancer
    health: HealthCheck
    management: Management
    admin_access: AdminAccess
    admin_sessions: AdminSessions
    session_cookie: SessionCookie
    audit: AuditStore
    call_contents: CallContents
    repeats: Repeats
    call_repeats: CallRepeats
    reports: ReportStore
    usage: UsageStore
    alerts: Alerts
    standings: Standings
    endpoint_care: EndpointCare
    single_sign_on: SingleSignOn | None
    overview: OverviewStore
    gauges: Gauges
    presence: Presence
    keys_by_id: KeysById
    overload: Overload
    doorway: Doorway
    siblings: Siblings | None = None
    """The other workers of this machine, where there are any: what they have counted."""
