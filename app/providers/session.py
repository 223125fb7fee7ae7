"""The aiohttp session that LiteLLM's clients are lent: guarded like our own transport, and made only where an endpoint needs it.

What aiohttp would do by itself and must not: follow redirects, keep cookies, read proxies or `.netrc` from the environment, retry.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from app.providers.transport import (
    DNS_TTL_S,
    IDLE_CONNECTION_S,
    NO_HOSTS,
    USER_AGENT,
    AddressPolicy,
    GuardedResolver,
    Target,
    bounded_socket,
    system_tls,
    target_of,
)

if TYPE_CHECKING:
    from aiohttp.client_reqrep import ClientRequest
    from aiohttp.connector import AddrInfoType

_BUFFER_BYTES = 32 << 10

REASONS: tuple[tuple[type[BaseException], str], ...] = (
    # Special ones first: most of these derive from one another.
    (aiohttp.ClientConnectorCertificateError, "tls_certificate"),
    (aiohttp.ClientSSLError, "tls_error"),
    (aiohttp.ClientConnectorDNSError, "dns_error"),
    (aiohttp.ClientConnectorError, "connect_failed"),
    (aiohttp.ServerTimeoutError, "timeout"),
    (aiohttp.InvalidURL, "bad_url"),
    (aiohttp.ClientResponseError, "bad_http"),
    (aiohttp.ClientPayloadError, "connection_lost"),
    (aiohttp.ClientError, "connection_lost"),
    (OSError, "connection_lost"),
)


class GuardedSession:
    """Needs a running loop from the first `session` on, and `close` at the end."""

    def __init__(self, policy: AddressPolicy, *, tls_by_host: Mapping[str, ssl.SSLContext] = NO_HOSTS) -> None:
        self._policy = policy
        self._tls_by_host = tls_by_host
        self._session: aiohttp.ClientSession | None = None
        self._resolver: _Resolver | None = None

    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._resolver = _Resolver(self._policy)
            self._session = aiohttp.ClientSession(
                connector=_Connector(
                    tls_by_host=self._tls_by_host,
                    ssl=system_tls(),
                    socket_factory=_socket_for,
                    resolver=self._resolver,
                    ttl_dns_cache=DNS_TTL_S,
                    limit=0,  # what may be in flight is decided per endpoint, before it comes here
                    keepalive_timeout=IDLE_CONNECTION_S,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
                timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None),
                auto_decompress=False,
                trust_env=False,
                read_bufsize=_BUFFER_BYTES,
                raise_for_status=False,
            )
        return self._session

    def checked(self, url: str) -> Target:
        """An address written into a URL would pass by the resolver's guard. Raises: ExchangeFailed."""
        return target_of(url, self._policy)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
        if self._resolver is not None:
            await self._resolver.close()


def _socket_for(address: AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = address
    return bounded_socket(family, kind, protocol)


class _Connector(aiohttp.TCPConnector):
    """Trusts for a host whom that host's own context trusts."""

    def __init__(self, *, tls_by_host: Mapping[str, ssl.SSLContext], **options: Any) -> None:
        super().__init__(**options)
        self._tls_by_host = tls_by_host

    def _get_ssl_context(self, req: ClientRequest) -> ssl.SSLContext | None:
        """By host, so that it holds for whoever uses the session; a pooled connection is only ever used for its own host."""
        own = self._tls_by_host.get((req.url.host or "").lower()) if req.is_ssl() else None
        return own or super()._get_ssl_context(req)


class _Resolver(AbstractResolver):
    def __init__(self, policy: AddressPolicy) -> None:
        self._guarded = GuardedResolver(policy)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._guarded.looked_up(host, port, family)
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=found_family,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for found_family, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        self._guarded.close()
