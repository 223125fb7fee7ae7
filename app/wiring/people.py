"""Who calls, who administers, and the commands of administration."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from app.clock import Clock
from app.config import Settings
from app.domain.egress import EgressPolicy
from app.services.admin_access import AdminAccess
from app.services.admin_sessions import AdminSessions
from app.services.command import Publish
from app.services.identities import Identities
from app.services.management import Management, open_management
from app.services.user_expiry import UserExpiry
from app.wiring.from_settings import default_user, sso_origin
from app.wiring.secret_keys import Secrets
from app.wiring.stores import Stores


@dataclass(frozen=True, slots=True)
class People:
    commands: Management
    identities: Identities
    user_expiry: UserExpiry
    admin_access: AdminAccess
    admin_sessions: AdminSessions


def wire_people(
    settings: Settings, clock: Clock, stores: Stores, secrets: Secrets, egress: EgressPolicy, announce: Publish
) -> People:
    """`announce` tells every process of a change."""
    admin_token = settings.admin_token.get_secret_value() or None
    commands = open_management(
        stores.management,
        clock=clock,
        publish=announce,
        pepper=secrets.pepper,
        sealer=secrets.sealer,
        secret_keys=secrets.keys,
        egress=egress,
        has_bootstrap_token=admin_token is not None,
        default_user=default_user(settings),
        older_peppers=secrets.older_peppers,
    )
    zone, grace_days = settings.budget_zone, settings.payment_grace_days
    user_expiry = UserExpiry(users=commands.users, clock=clock, zone=zone, grace_days=grace_days)
    identities = Identities(
        store=stores.keys,
        pepper=secrets.pepper,
        clock=clock,
        zone=zone,
        on_expired=user_expiry.noticed,
        until_stored=user_expiry.stored,
        create_user=commands.users.create_on_sight,
        shared_secret=settings.gateway_shared_secret.get_secret_value(),
        grace_days=grace_days,
        older_peppers=secrets.older_peppers,
        redigest=secrets.redigest,
        accepts_imported=settings.accept_litellm_keys,
    )
    admin_access = AdminAccess(
        stores.management, clock, secrets.pepper, admin_token, secrets.older_peppers, secrets.redigest
    )
    admin_sessions = AdminSessions(
        access=admin_access,
        store=stores.sessions,
        failures=stores.sessions,
        clock=clock,
        peppers=[secrets.pepper, *secrets.older_peppers],
        idle=timedelta(minutes=settings.dashboard_session_idle_minutes),
        lifetime=timedelta(hours=settings.dashboard_session_hours),
        sso_origin=sso_origin(settings),
    )
    return People(commands, identities, user_expiry, admin_access, admin_sessions)
