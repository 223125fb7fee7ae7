"""The dashboard's sessions: opened with an administrator's token or by single sign-on, carried by a cookie, checked at each use.

1. `open` looks the token up. A wrong one is counted for the network it came from; from the tenth within a minute on, that network
   is refused unheard (429). The rightful holder is not locked out by it, neither elsewhere nor there: a token that is one of ours
   is always heard. Finding out costs a flood of invented ones no look-up each: they are compared with all digests, which are read four
   times a second at most.
2. What is stored is a digest of the cookie. The cookie itself makes the session's CSRF token, so neither stands anywhere.
3. `identify` reads the session together with the administrator's row. Whoever was revoked, demoted, expired or idle for too long is
   signed out at that moment, on every replica, because no replica remembers anything.

A database that is away is no wrong token: it shows as DependencyUnavailable and counts against nobody.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
from base64 import urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from app.clock import Clock
from app.domain.access import NOBODY, Actor, Role
from app.domain.networks import network_of
from app.exceptions import Forbidden, InvalidApiKey, NotFound, TooManyFailures
from app.services.admin_access import AdminAccess, Holder
from app.services.command import new_id
from app.storage.management_ports import AuditEntry
from app.storage.session_ports import FailureStore, FoundSession, SessionKind, SessionRow, SessionStore

COOKIE_BYTES: Final = 32
_COOKIE: Final = re.compile(r"[A-Za-z0-9_-]{43}\Z")
"""32 bytes in base 64: anything else is none of ours, and no look-up can succeed."""

FAILURES: Final = 10
WINDOW: Final = timedelta(seconds=60)
"""Ten wrong tokens within a minute are more than a hand mistypes, and far fewer than guessing 256 bits needs."""
REMEMBERED_NETWORKS: Final = 10_000
"""Blocked networks that this process refuses without asking the database; about 1 MB."""
TOUCHED_EVERY: Final = timedelta(seconds=30)
"""How exactly a session's last use is known: writing it at every request would double the statements of a page."""
MAX_USER_AGENT_LENGTH: Final = 300

TOKEN_ACCOUNT: Final = "token"  # noqa: S105 - what was signed in to
SSO_ACCOUNT: Final = "sso"


@dataclass(frozen=True, slots=True)
class Session:
    """Who is signed in, and what a form has to bring along."""

    id: str
    actor: Actor
    csrf_token: str = field(repr=False)
    opened_at: datetime
    expires_at: datetime

    def has_csrf(self, given: str | None) -> bool:
        return given is not None and hmac.compare_digest(given.encode(errors="replace"), self.csrf_token.encode())


@dataclass(frozen=True, slots=True)
class SessionCookie:
    """How a session travels. Without TLS a browser keeps the `__Host-` cookie on its own machine only."""

    is_insecure: bool = False
    """For plain http between machines: no `Secure`, so whoever listens on the way can sign in with it."""

    purpose: str = "session"

    @property
    def name(self) -> str:
        return f"{'' if self.is_insecure else '__Host-'}ag_{self.purpose}"

    def set_header(self, value: str, *, max_age_s: int) -> str:
        secure = "" if self.is_insecure else "; Secure"
        return f"{self.name}={value}; Path=/; Max-Age={max_age_s}; HttpOnly; SameSite=Lax{secure}"

    def clear_header(self) -> str:
        return self.set_header("", max_age_s=0)

    @property
    def of_pending_sign_in(self) -> SessionCookie:
        """The one that a sign-in under way at the provider of single sign-on is kept in."""
        return replace(self, purpose="sso")


@dataclass(frozen=True, slots=True)
class OpenedSession:
    cookie_value: str = field(repr=False)
    csrf_token: str = field(repr=False)
    actor: Actor
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class SsoPerson:
    """Somebody whom the company's own sign-in vouches for, with the role that his groups give him."""

    name: str
    role: Role
    origin: str
    """What it hangs on: another provider or another mapping of groups to roles ends the sessions opened under it."""


@dataclass(frozen=True, slots=True)
class _Opening:
    kind: SessionKind
    holder: Holder
    origin: bytes | None
    address: str | None
    user_agent: str
    presented_cookie: str | None


class AdminSessions:
    def __init__(
        self,
        *,
        access: AdminAccess,
        store: SessionStore,
        failures: FailureStore,
        clock: Clock,
        peppers: Sequence[bytes],
        idle: timedelta,
        lifetime: timedelta,
        sso_origin: str | None = None,
    ) -> None:
        """`peppers`: the first makes digests, all of them are accepted. `idle` and `lifetime` bound a session; an administrator's
        own expiry bounds it too."""
        self._access = access
        self._store = store
        self._failures = failures
        self._clock = clock
        self._peppers = tuple(peppers)
        self._idle = idle
        self._lifetime = lifetime
        self._sso_origin = sso_origin
        self._touched_every = min(TOUCHED_EVERY, idle / 10)
        self._blocked: OrderedDict[tuple[str, str], datetime] = OrderedDict()
        self._counting = asyncio.Lock()

    async def open(
        self, token: str, *, address: str | None, user_agent: str, presented_cookie: str | None = None
    ) -> OpenedSession:
        """Sign in with a token; the session gets a new id, and one that the browser brought along ends.

        Raises: InvalidApiKey, TooManyFailures, DependencyUnavailable.
        """
        retry_after_s = await self._blocked_for(network_of(address), TOKEN_ACCOUNT)
        if retry_after_s is not None and not await self._access.is_known(token):
            raise TooManyFailures(retry_after_s)
        try:
            holder = await self._access.holder_of(token, address=address)
        except InvalidApiKey:
            await self.note_failure(TOKEN_ACCOUNT, address=address, why="wrong token")
            raise
        kind = SessionKind.SETTING if holder.admin_id is None else SessionKind.TOKEN
        origin = self._digest(token) if kind is SessionKind.SETTING else None
        return await self._opened(_Opening(kind, holder, origin, address, user_agent, presented_cookie))

    async def open_sso(
        self, person: SsoPerson, *, address: str | None, user_agent: str, presented_cookie: str | None = None
    ) -> OpenedSession:
        """Sign in somebody whom the provider of single sign-on vouches for. Raises: DependencyUnavailable."""
        holder = Holder(Actor(person.name, person.role, address))
        origin = self._digest(person.origin)
        return await self._opened(
            _Opening(SessionKind.SSO, holder, origin, address, user_agent, presented_cookie),
        )

    async def identify(self, cookie: str | None) -> Session | None:
        """Who is signed in by this cookie; None when nobody (any more). Raises: DependencyUnavailable."""
        digests = self._digests_of_cookie(cookie)
        if cookie is None or not digests:
            return None
        found = await self._store.find(digests)
        now = self._clock.now()
        if found is None or not self._is_live(found, now):
            return None
        row = found.row
        if row.last_seen_at + self._touched_every <= now:
            await self._store.touch(row.id, now)
        ends_at = found.admin.spec.expires_at if found.admin is not None else None
        return Session(
            row.id, replace(row.actor, expires_at=ends_at), csrf_token_of(cookie), row.opened_at, row.expires_at
        )

    async def close(self, cookie: str | None) -> None:
        """Sign out. A cookie of no session changes nothing."""
        session = await self.identify(cookie)
        if session is not None:
            await self.end(session.actor, session.id)

    async def end(self, actor: Actor, session_id: str) -> None:
        """End a session, one's own or another's."""
        await self._store.close(
            session_id, AuditEntry(self._clock.now(), actor, "session.close", "session", session_id)
        )

    async def end_anothers(self, actor: Actor, session_id: str) -> None:
        """Sign somebody out. Only an owner ends an owner's session. Raises: NotFound, Forbidden."""
        found = next((row for row in await self.open_sessions() if row.id == session_id), None)
        if found is None:
            raise NotFound("There is no such session.")
        if found.role is Role.OWNER and actor.role is not Role.OWNER:
            raise Forbidden("Only an owner may do that to an owner.")
        await self.end(actor, session_id)

    async def open_sessions(self) -> list[SessionRow]:
        """Every session that would be let in now, newest first."""
        now = self._clock.now()
        return [row for row in await self._store.sessions(now) if row.last_seen_at + self._idle > now]

    def seconds_left(self, expires_at: datetime) -> int:
        """How long a cookie is worth keeping."""
        return max(0, int((expires_at - self._clock.now()).total_seconds()))

    async def note_failure(self, account: str, *, address: str | None, why: str) -> None:
        """Count a failed sign-in and write it to the trail."""
        now, network = self._clock.now(), network_of(address)
        actor = Actor(NOBODY, Role.VIEWER, address)
        entry = AuditEntry(now, actor, "session.refused", "session", account, after={"why": why})
        async with self._counting:  # one connection of the pool, however many try at once
            await self._failures.add_failure(network, account, entry, since=now - WINDOW)

    async def require_not_blocked(self, account: str, *, address: str | None) -> None:
        """Raises: TooManyFailures."""
        retry_after_s = await self._blocked_for(network_of(address), account)
        if retry_after_s is not None:
            raise TooManyFailures(retry_after_s)

    # ── Opening ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _opened(self, opening: _Opening) -> OpenedSession:
        now, cookie, holder = self._clock.now(), secrets.token_urlsafe(COOKIE_BYTES), opening.holder
        expires_at = min(now + self._lifetime, holder.actor.expires_at or now + self._lifetime)
        user_agent = "".join(each for each in opening.user_agent if each.isprintable())[:MAX_USER_AGENT_LENGTH]
        row = SessionRow(
            id=new_id(),
            digest=self._digest(cookie),
            kind=opening.kind,
            admin_id=holder.admin_id,
            name=holder.actor.name,
            role=holder.actor.role,
            origin=opening.origin,
            address=opening.address,
            user_agent=user_agent,
            opened_at=now,
            last_seen_at=now,
            expires_at=expires_at,
        )
        shown = {"by": opening.kind.value, "user_agent": user_agent, "expires_at": expires_at.isoformat()}
        entry = AuditEntry(now, holder.actor, "session.open", "session", row.id, after=shown)
        replaced = self._digests_of_cookie(opening.presented_cookie)
        await self._store.open(row, entry, replaces=replaced)
        return OpenedSession(cookie, csrf_token_of(cookie), holder.actor, expires_at)

    # ── Using ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _is_live(self, found: FoundSession, now: datetime) -> bool:
        row, admin = found.row, found.admin
        if row.expires_at <= now or row.last_seen_at + self._idle <= now:
            return False
        match row.kind:
            case SessionKind.TOKEN:
                return admin is not None and admin.is_active_at(now) and admin.spec.role is row.role
            case SessionKind.SETTING:
                return self._hangs_on(row, self._access.bootstrap_token)
            case SessionKind.SSO:
                return self._hangs_on(row, self._sso_origin)

    def _hangs_on(self, row: SessionRow, setting: str | None) -> bool:
        """Whether the setting is still what it was when the session was opened."""
        if not setting or row.origin is None:
            return False
        return any(hmac.compare_digest(row.origin, self._digest(setting, pepper)) for pepper in self._peppers)

    def _digests_of_cookie(self, cookie: str | None) -> list[bytes]:
        if cookie is None or not _COOKIE.match(cookie):
            return []
        return [self._digest(cookie, pepper) for pepper in self._peppers]

    def _digest(self, secret: str, pepper: bytes | None = None) -> bytes:
        return hmac.digest(pepper or self._peppers[0], b"session\n" + secret.encode(), "sha256")

    # ── Throttling ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _blocked_for(self, network: str, account: str) -> float | None:
        """How long the network has to wait; None when it does not."""
        now, bucket = self._clock.now(), (network, account)
        ends_at = self._blocked.get(bucket)
        if ends_at is None or ends_at <= now:
            self._blocked.pop(bucket, None)
            times = await self._failures.failures(network, account, now - WINDOW)
            if len(times) < FAILURES:
                return None
            ends_at = self._blocked[bucket] = times[-FAILURES] + WINDOW
            while len(self._blocked) > REMEMBERED_NETWORKS:
                self._blocked.popitem(last=False)
        return max(1.0, (ends_at - now).total_seconds())


def csrf_token_of(cookie: str) -> str:
    """Derived from the cookie, which no page can read and no table holds."""
    return urlsafe_b64encode(hmac.digest(cookie.encode(), b"csrf token v1", "sha256")).decode().rstrip("=")
