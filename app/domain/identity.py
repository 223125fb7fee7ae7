"""Who is calling: what a credential resolves to, and whether it may call now."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, tzinfo
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address

from app.domain.budget import Budget
from app.domain.limits import Limit
from app.exceptions import (
    AppInactive,
    InvalidApiKey,
    IpNotAllowed,
    PaymentExpired,
    UserSuspended,
)

Network = IPv4Network | IPv6Network


class PaymentStatus(StrEnum):
    ACTIVE = "active"
    TRIAL = "trial"
    EXPIRED = "expired"
    SUSPENDED = "suspended"


class KeyStatus(StrEnum):
    ACTIVE = "active"
    REVOKED = "revoked"


class LogContent(StrEnum):
    """What is kept of a call's bodies: all of it, or nothing but the record."""

    FULL = "full"
    METADATA = "metadata"


class OverflowMode(StrEnum):
    REJECT = "reject"
    QUEUE = "queue"
    FALLBACK = "fallback"


@dataclass(frozen=True, slots=True)
class Overflow:
    """What happens to a call that a limit of its key refuses."""

    mode: OverflowMode = OverflowMode.REJECT
    max_wait_s: float = 10.0
    fallback_model: str | None = None


HOUSE_PREFIX = "gateway:"
"""Begins the oids of the gateway's own accounts; no user may have such a one."""
ANY_MODEL = "*"
OID_PATTERN = re.compile(r"[!-~]{1,200}")
"""Of a user's id: visible ASCII, because it travels in a header."""
APP_ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class User:
    """The account that pays."""

    oid: str
    payment_status: PaymentStatus
    payment_valid_until: date | None
    limits: tuple[Limit, ...] = ()
    budgets: tuple[Budget, ...] = ()
    log_content: LogContent | None = None


@dataclass(frozen=True, slots=True)
class Key:
    id: str
    status: KeyStatus
    expires_at: datetime | None
    allowed_models: frozenset[str]
    allowed_networks: tuple[Network, ...] = ()
    log_content: LogContent | None = None
    limits: tuple[Limit, ...] | None = None
    """None: the defaults of the settings hold; empty: no limit."""
    budgets: tuple[Budget, ...] = ()
    overflow: Overflow = Overflow()


@dataclass(frozen=True, slots=True)
class App:
    """A registered internal application; it calls on behalf of a user."""

    id: str
    is_active: bool
    allowed_models: frozenset[str]
    allowed_networks: tuple[Network, ...] = ()
    log_content: LogContent | None = None
    limits: tuple[Limit, ...] = ()
    budgets: tuple[Budget, ...] = ()
    secret_ends_at: datetime | None = None
    """When the secret that was shown ends, if it was rotated out."""


@dataclass(frozen=True, slots=True)
class AppCredential:
    """What an internal app shows of itself and of the user on whose behalf it calls; nothing of it is known to be true."""

    secret: str = field(repr=False)
    app_id: str
    user_oid: str


@dataclass(frozen=True, slots=True)
class Identity:
    """A user, calling with one of his keys or through an app."""

    user: User
    key: Key | None = None
    app: App | None = None

    def may_use(self, model: str) -> bool:
        return all(
            ANY_MODEL in holder.allowed_models or model in holder.allowed_models
            for holder in (self.key, self.app)
            if holder is not None
        )

    @property
    def allowed_networks(self) -> tuple[Network, ...]:
        return (self.key.allowed_networks if self.key else ()) + (self.app.allowed_networks if self.app else ())


def payment_day(now: datetime, zone: tzinfo, grace_days: int) -> date:
    """The day that nobody's last paid day may lie before: today where budgets are reckoned, less the days of grace."""
    return now.astimezone(zone).date() - timedelta(days=grace_days)


def payment_expired(user: User, today: date) -> bool:
    """Expired by status, or because the last paid day lies before `today` (as `payment_day` tells it)."""
    if user.payment_status is PaymentStatus.EXPIRED:
        return True
    return user.payment_valid_until is not None and user.payment_valid_until < today


def require_may_call(identity: Identity, *, now: datetime, today: date, address: str | None) -> None:
    """Raise the first reason why this identity may not call now.

    Raises: InvalidApiKey (revoked or expired key), AppInactive, UserSuspended, PaymentExpired, IpNotAllowed.
    """
    key, app = identity.key, identity.app
    if key is not None and (
        key.status is not KeyStatus.ACTIVE or (key.expires_at is not None and key.expires_at <= now)
    ):
        raise InvalidApiKey
    if app is not None:
        require_app_may_call(app, now=now)
    if identity.user.payment_status is PaymentStatus.SUSPENDED:
        raise UserSuspended
    if payment_expired(identity.user, today):
        raise PaymentExpired
    for holder in (key, app):
        if holder is not None:
            require_inside(holder.allowed_networks, address)


def require_app_may_call(app: App, *, now: datetime) -> None:
    """Raises: InvalidApiKey (the secret was rotated out and its time is over), AppInactive."""
    if app.secret_ends_at is not None and app.secret_ends_at <= now:
        raise InvalidApiKey
    if not app.is_active:
        raise AppInactive


def require_inside(networks: tuple[Network, ...], address: str | None) -> None:
    """Raises: IpNotAllowed, unless the address lies in one of the networks or there are none."""
    if networks and not _is_inside(address, networks):
        raise IpNotAllowed


def _is_inside(address: str | None, networks: tuple[Network, ...]) -> bool:
    if address is None:
        return False
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    # A socket that listens on IPv6 and IPv4 at once shows its IPv4 callers as ::ffff:a.b.c.d.
    mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    return any(ip in network or (mapped is not None and mapped in network) for network in networks)
