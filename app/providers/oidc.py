"""OpenID Connect: discovery, the authorization code with PKCE, and the checks of an ID token.

Authlib drives the exchange, joserfc checks signatures; both are imported with the first sign-in. What is accepted is narrow: an issuer
that is exactly the configured one, asymmetric signatures by a key of its own set, and every time, audience and nonce in order.
Keys are fetched again when a token names one that is not known: that is how providers rotate them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from app.clock import Clock
from app.domain.sso import SsoRefused, values_of
from app.exceptions import DependencyUnavailable

if TYPE_CHECKING:
    from authlib.integrations.httpx_client import AsyncOAuth2Client
    from joserfc.jwk import KeySet

TIMEOUT_S: Final = 10.0
MAX_BYTES: Final = 1024 * 1024
"""Discovery documents and key sets are kilobytes."""
FRESH_S: Final = 3600.0
"""How long the discovery document and the keys are used before they are fetched again."""
REFETCH_S: Final = 10.0
"""Tokens that name unknown keys make the keys be fetched again this often at most."""
LEEWAY_S: Final = 60
"""What clocks may differ by."""
MAX_AGE_S: Final = 3600
"""An ID token older than this was not made for this sign-in, whatever its expiry says."""
ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Asymmetric ones only: neither `none` nor one that the client secret could forge."""


class Discovery(msgspec.Struct, frozen=True):
    """What is read of `/.well-known/openid-configuration`."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None = None
    token_endpoint_auth_methods_supported: list[str] = msgspec.field(default_factory=lambda: ["client_secret_basic"])
    authorization_response_iss_parameter_supported: bool = False


@dataclass(frozen=True, slots=True)
class OidcClient:
    """How the gateway is known to the provider."""

    issuer: str
    client_id: str
    client_secret: str = field(repr=False)
    scopes: str
    redirect_uri: str
    role_claim: str


class OidcProvider:
    """`IdentityProvider` over HTTP."""

    def __init__(self, client: OidcClient, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._discovery: Discovery | None = None
        self._keys: KeySet | None = None
        self._discovered_at_s = self._keys_at_s = float("-inf")
        self._learning = asyncio.Lock()

    async def authorization_url(self, *, state: str, nonce: str, verifier: str) -> str:
        discovery = await self._discovered()
        async with self._opened(discovery) as client:
            url, _ = client.create_authorization_url(
                discovery.authorization_endpoint, state=state, code_verifier=verifier, nonce=nonce
            )
        return str(url)

    async def claims(self, code: str, *, issuer: str | None, nonce: str, verifier: str) -> Mapping[str, object]:
        discovery = await self._discovered()
        if issuer != discovery.issuer and (issuer or discovery.authorization_response_iss_parameter_supported):
            raise SsoRefused("the answer is from another issuer")  # RFC 9207: two providers mixed up
        token = await self._exchanged(discovery, code, verifier)
        id_token = token.get("id_token")
        if not isinstance(id_token, str):
            raise SsoRefused("the provider sent no ID token")
        claims = await self._verified(discovery, id_token, nonce)
        if not values_of(claims, self._client.role_claim) and discovery.userinfo_endpoint:
            claims = {**claims, **await self._userinfo(discovery, discovery.userinfo_endpoint, token, claims)}
        return claims

    # ── The exchange ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _exchanged(self, discovery: Discovery, code: str, verifier: str) -> Mapping[str, object]:
        from authlib.integrations.base_client import OAuthError

        async with self._opened(discovery) as client:
            try:
                found = await client.fetch_token(
                    discovery.token_endpoint, code=code, code_verifier=verifier, grant_type="authorization_code"
                )
            except OAuthError as error:
                raise SsoRefused(f"the provider took the code for {str(error.error)[:100]}") from None
        return dict(found)

    async def _userinfo(
        self, discovery: Discovery, url: str, token: Mapping[str, object], claims: Mapping[str, object]
    ) -> Mapping[str, object]:
        """What the provider tells only there; about the same person or not at all."""
        headers = {"authorization": f"Bearer {token.get('access_token', '')}", "accept": "application/json"}
        async with self._opened(discovery) as client:
            told = await self._fetched(client, url, dict[str, Any], headers)
        if told.get("sub") != claims.get("sub"):
            raise SsoRefused("the user information is about somebody else")
        return {name: value for name, value in told.items() if name not in ("iss", "aud", "exp", "iat", "nonce")}

    # ── The ID token ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _verified(self, discovery: Discovery, id_token: str, nonce: str) -> dict[str, Any]:
        """Raises: SsoRefused, naming the first thing that is not in order."""
        from joserfc import jwt
        from joserfc.errors import JoseError

        now_s = int(self._clock.now().timestamp())
        try:
            key_set = await self._keys_for(discovery, _key_id_of(id_token))
            token = jwt.decode(id_token, key_set, algorithms=list(ALGORITHMS))
            registry = jwt.JWTClaimsRegistry(
                now=now_s,
                leeway=LEEWAY_S,
                iss={"essential": True, "value": discovery.issuer},
                sub={"essential": True},
                aud={"essential": True, "value": self._client.client_id},
                exp={"essential": True},
                iat={"essential": True},
                nonce={"essential": True, "value": nonce},
            )
            registry.validate(token.claims)
        except (JoseError, ValueError, TypeError) as error:
            raise SsoRefused(f"the ID token is not in order: {type(error).__name__}") from None
        claims = token.claims
        audience = claims["aud"]
        if isinstance(audience, list) and len(audience) > 1 and claims.get("azp") != self._client.client_id:
            raise SsoRefused("the ID token is for several, and not authorized for this one")
        if claims.get("azp", self._client.client_id) != self._client.client_id:
            raise SsoRefused("the ID token is authorized for another client")
        if not isinstance(claims["iat"], int | float) or now_s - claims["iat"] > MAX_AGE_S:
            raise SsoRefused("the ID token is old")
        return dict(claims)

    async def _keys_for(self, discovery: Discovery, key_id: str | None) -> KeySet:
        async with self._learning:
            age_s = self._clock.monotonic() - self._keys_at_s
            is_known = self._keys is not None and (key_id is None or key_id in {key.kid for key in self._keys.keys})
            if self._keys is None or age_s > FRESH_S or (not is_known and age_s > REFETCH_S):
                self._keys = await self._fetched_keys(discovery)
                self._keys_at_s = self._clock.monotonic()
            return self._keys

    async def _fetched_keys(self, discovery: Discovery) -> KeySet:
        from joserfc.errors import JoseError
        from joserfc.jwk import KeySet

        async with self._opened(discovery) as client:
            document = await self._fetched(client, discovery.jwks_uri, dict[str, Any])
        signing = [key for key in document.get("keys", []) if isinstance(key, dict) and key.get("use", "sig") == "sig"]
        try:
            return KeySet.import_key_set({"keys": [key for key in signing if key.get("kty") in ("RSA", "EC", "OKP")]})
        except (JoseError, ValueError, TypeError):
            raise DependencyUnavailable("single sign-on provider") from None

    # ── HTTP ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _discovered(self) -> Discovery:
        async with self._learning:
            if self._discovery is None or self._clock.monotonic() - self._discovered_at_s > FRESH_S:
                url = f"{self._client.issuer.rstrip('/')}/.well-known/openid-configuration"
                async with self._opened(None) as client:
                    found = await self._fetched(client, url, Discovery)
                self._require_own(found)
                self._discovery, self._discovered_at_s = found, self._clock.monotonic()
            return self._discovery

    def _require_own(self, found: Discovery) -> None:
        """A document that speaks for another issuer, or that leads where nothing is encrypted, is not followed."""
        urls = (found.authorization_endpoint, found.token_endpoint, found.jwks_uri, found.userinfo_endpoint)
        is_plain = urlsplit(self._client.issuer).scheme == "http"
        if found.issuer != self._client.issuer or any(
            url is not None and urlsplit(url).scheme not in (("http", "https") if is_plain else ("https",))
            for url in urls
        ):
            raise DependencyUnavailable("single sign-on provider")

    @asynccontextmanager
    async def _opened(self, discovery: Discovery | None) -> AsyncIterator[AsyncOAuth2Client]:
        """Raises: DependencyUnavailable for whatever goes wrong on the way."""
        import httpx2
        from authlib.integrations.httpx_client import AsyncOAuth2Client

        methods = discovery.token_endpoint_auth_methods_supported if discovery else []
        method = "client_secret_basic" if "client_secret_basic" in methods else "client_secret_post"
        try:
            async with (
                asyncio.timeout(TIMEOUT_S),
                AsyncOAuth2Client(
                    client_id=self._client.client_id,
                    client_secret=self._client.client_secret or None,
                    token_endpoint_auth_method=method if self._client.client_secret else "none",
                    scope=self._client.scopes,
                    redirect_uri=self._client.redirect_uri,
                    code_challenge_method="S256",
                    timeout=TIMEOUT_S,
                    follow_redirects=False,
                    trust_env=False,
                ) as client,
            ):
                yield client
        except (httpx2.HTTPError, TimeoutError, OSError, ValueError):
            raise DependencyUnavailable("single sign-on provider") from None

    async def _fetched(
        self, client: AsyncOAuth2Client, url: str, shape: type[Any], headers: Mapping[str, str] | None = None
    ) -> Any:
        """A JSON document of this shape. Raises: ValueError (for `_opened`) when it is not one."""
        async with client.stream("GET", url, headers=headers, withhold_token=True) as response:
            if response.status_code != 200:
                raise ValueError(f"the provider answered {response.status_code}")
            body = bytearray()
            async for part in response.aiter_bytes():
                body += part
                if len(body) > MAX_BYTES:
                    raise ValueError("the provider's document is too large")
        return msgspec.json.decode(bytes(body), type=shape)


def _key_id_of(id_token: str) -> str | None:
    """The key that a token says it was signed with; nothing is believed by that. Raises: ValueError."""
    from joserfc.util import to_bytes, urlsafe_b64decode

    header = msgspec.json.decode(urlsafe_b64decode(to_bytes(id_token.partition(".")[0])), type=dict[str, Any])
    key_id = header.get("kid")
    return key_id if isinstance(key_id, str) else None
