"""Single sign-on for the dashboard: OpenID Connect, authorization code with PKCE.

1. `start` sends the browser to the provider and gives it a sealed cookie: the state, the nonce and the code verifier of this one
   sign-in. Nothing is stored here, so any replica can finish what another began, and only the browser that began can.
2. `finish` compares the state, lets the provider's adapter exchange the code (it checks the ID token's signature, issuer, audience,
   times and nonce), maps groups to a role, and opens a session.

Whoever the provider knows and no group gives a role is refused with 403; anything that does not fit together is a failed sign-in, which
is counted and written to the trail. A provider that is away is neither.
"""

from __future__ import annotations

import hmac
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from app.clock import Clock
from app.domain.sso import RolePolicy, SsoRefused, name_of
from app.exceptions import Forbidden, InvalidApiKey
from app.services.admin_sessions import SSO_ACCOUNT, AdminSessions, OpenedSession, SsoPerson
from app.telemetry import logger

PENDING_S: Final = 600
"""How long somebody may take at the provider."""
NONCE_BYTES: Final = 12


class IdentityProvider(Protocol):
    """The provider of single sign-on."""

    async def authorization_url(self, *, state: str, nonce: str, verifier: str) -> str:
        """Where to send the browser. Raises: DependencyUnavailable."""
        ...

    async def claims(self, code: str, *, issuer: str | None, nonce: str, verifier: str) -> Mapping[str, object]:
        """What the provider vouches for, checked. `issuer` is who the answer says it is from.

        Raises: SsoRefused, DependencyUnavailable.
        """
        ...


class Pending(msgspec.Struct, frozen=True):
    """One sign-in under way."""

    state: str
    nonce: str
    verifier: str
    next_path: str
    begun_at_s: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What the provider sent the browser back with."""

    code: str | None = field(repr=False)
    state: str | None = field(repr=False)
    issuer: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Begun:
    location: str
    cookie_value: str = field(repr=False)


class SingleSignOn:
    def __init__(
        self,
        *,
        provider: IdentityProvider,
        policy: RolePolicy,
        sessions: AdminSessions,
        clock: Clock,
        origin: str,
        secret_keys: tuple[str, ...],
    ) -> None:
        """`origin` names what sessions hang on: another provider or role map ends them. The first of `secret_keys` seals."""
        self._provider = provider
        self._policy = policy
        self._sessions = sessions
        self._clock = clock
        self._origin = origin
        self._ciphers = [AESGCM(_derived(each)) for each in secret_keys]

    async def start(self, next_path: str) -> Begun:
        """Raises: DependencyUnavailable."""
        pending = Pending(
            state=secrets.token_urlsafe(32),
            nonce=secrets.token_urlsafe(32),
            verifier=secrets.token_urlsafe(48),
            next_path=next_path,
            begun_at_s=int(self._clock.now().timestamp()),
        )
        location = await self._provider.authorization_url(
            state=pending.state, nonce=pending.nonce, verifier=pending.verifier
        )
        return Begun(location, self._sealed(pending))

    async def finish(
        self,
        answer: Answer,
        *,
        pending_cookie: str | None,
        address: str | None,
        user_agent: str,
        presented_cookie: str | None,
    ) -> tuple[OpenedSession, str]:
        """The session, and the page to go on to.

        Raises: InvalidApiKey (it does not fit together), Forbidden (no role), TooManyFailures, DependencyUnavailable.
        """
        try:
            pending = self._opened(pending_cookie)
            claims = await self._claims(answer, pending)
            person = SsoPerson(name_of(claims), self._policy.role_of(claims), self._origin)
        except SsoRefused as refused:
            logger.warning("single_sign_on_refused", why=refused.reason)
            # Only now: others behind the same address, whose sign-ins are in order, are not locked out by those that are not.
            await self._sessions.require_not_blocked(SSO_ACCOUNT, address=address)
            await self._sessions.note_failure(SSO_ACCOUNT, address=address, why=refused.reason)
            if refused.is_known:
                raise Forbidden("Your account has no role here. Ask an owner of this gateway.") from None
            raise InvalidApiKey from None
        opened = await self._sessions.open_sso(
            person, address=address, user_agent=user_agent, presented_cookie=presented_cookie
        )
        return opened, pending.next_path

    async def _claims(self, answer: Answer, pending: Pending) -> Mapping[str, object]:
        given = (answer.state or "").encode("utf-8", "replace")
        if not hmac.compare_digest(given, pending.state.encode()):
            raise SsoRefused("the state is not the one of this browser's sign-in")
        if answer.error is not None or not answer.code:
            raise SsoRefused("the provider refused")
        return await self._provider.claims(
            answer.code, issuer=answer.issuer, nonce=pending.nonce, verifier=pending.verifier
        )

    def _sealed(self, pending: Pending) -> str:
        nonce = secrets.token_bytes(NONCE_BYTES)
        return urlsafe_b64encode(nonce + self._ciphers[0].encrypt(nonce, msgspec.json.encode(pending), None)).decode()

    def _opened(self, cookie: str | None) -> Pending:
        """Raises: SsoRefused."""
        try:
            raw = urlsafe_b64decode((cookie or "").encode("ascii"))
        except ValueError:
            raw = b""
        for cipher in self._ciphers if len(raw) > NONCE_BYTES else ():
            try:
                plain = cipher.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], None)
            except InvalidTag:
                continue
            pending = msgspec.json.decode(plain, type=Pending)
            age_s = self._clock.now().timestamp() - pending.begun_at_s
            if age_s > PENDING_S:
                raise SsoRefused("the sign-in took too long")
            return pending
        raise SsoRefused("this browser began no sign-in")


def _derived(secret_key: str) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=b"antigravity single sign-on v1").derive(
        secret_key.encode()
    )
