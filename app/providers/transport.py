"""The one outgoing HTTP client of the process: pooled connections, deadlines that can be told apart, caps, and the egress guard.

aiohttp stands behind `Transport` and is named nowhere else. What it would do by itself and must not: follow redirects, keep
cookies, read proxies or `.netrc` from the environment, decompress, retry.

One exchange:
1. `opened` checks an IP literal, takes a pooled connection or dials an address that the policy allowed for this very host.
   A pooled connection that the upstream has closed meanwhile is noticed before a byte is written, and another one is taken.
2. The request goes out; from here on it may have been acted on, whatever happens (`is_sent`).
3. The caller reads at its own pace; what waits unread is bounded, beyond that the upstream is made to wait.
4. Leaving before the end of the body closes the socket at once; after it the connection goes back to the pool.

One timer watches an exchange. A wait sets when it must be over; the timer, when it fires too early, only sets itself again, so
that a stream of a thousand chunks does not cost a thousand timers.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from time import monotonic
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from app.domain.egress import Address

if TYPE_CHECKING:
    from aiohttp.client import ClientTimeout
    from aiohttp.client_proto import ResponseHandler
    from aiohttp.client_reqrep import ClientRequest
    from aiohttp.connector import AddrInfoType, Connection
    from aiohttp.tracing import Trace

MAX_BODY_BYTES = 64 << 20
_BUFFER_BYTES = 32 << 10
_KERNEL_BUFFER_BYTES = 128 << 10
"""aiohttp stops reading from a socket when twice its limit waits unread; the last read may bring what the kernel held. Together
that stays below 256 KiB per exchange. Left to itself the kernel would take in megabytes for a caller who does not read; the
price is that one answer comes at no more than this per round trip to the upstream."""
_IDLE_CONNECTION_S = 20.0
"""Below every common server's own keep-alive, so that it is rarely the upstream who closes first."""
_DNS_TTL_S = 30
_DNS_THREADS = 4
_MAX_URLS = 4096
_USER_AGENT = "antigravity-llm-gateway"


NO_HOSTS: Mapping[str, ssl.SSLContext] = MappingProxyType({})


class AddressPolicy(Protocol):
    """Which addresses may be dialled; see `app.domain.egress.EgressPolicy`."""

    def allows_address(self, host: str, ip: Address) -> bool: ...


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Each wait's own limit, and the monotonic time at which all of it must be over."""

    connect_s: float
    first_byte_s: float
    between_bytes_s: float
    total_at_s: float


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request. Its headers are all that is sent besides what HTTP itself needs; nothing of a caller's request is added."""

    method: str
    url: str
    deadlines: Deadlines
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)


class ExchangeFailed(Exception):
    """The exchange broke at the level of HTTP or below. `reason` is a short word for the record.

    `is_sent` is False only when not a byte of the request can have left.
    """

    def __init__(self, reason: str, *, is_sent: bool, is_timeout: bool = False, is_blocked: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_sent = is_sent
        self.is_timeout = is_timeout
        self.is_blocked = is_blocked


class AddressBlocked(Exception):
    """The policy allows none of a host's addresses. No OSError, so that aiohttp passes it on as it is."""


class Transport:
    """Needs a running loop from the first `opened` on, and `close` at the end.

    `tls` may trust other authorities than the system's; it must verify certificates and host names, there is no way not to.
    """

    def __init__(
        self,
        policy: AddressPolicy,
        *,
        max_body_bytes: int = MAX_BODY_BYTES,
        tls: ssl.SSLContext | None = None,
        tls_by_host: Mapping[str, ssl.SSLContext] = NO_HOSTS,
    ) -> None:
        """`tls_by_host` takes the place of `tls` for hosts whose certificates a private authority signs; see `tls_trusting`."""
        contexts = [*tls_by_host.values(), *([tls] if tls else [])]
        if any(each.verify_mode is not ssl.CERT_REQUIRED or not each.check_hostname for each in contexts):
            raise ValueError("a TLS context that does not verify is no protection at all")
        self._policy = policy
        self._tls = tls
        self._tls_by_host = tls_by_host
        self.max_body_bytes = max_body_bytes
        self._session: aiohttp.ClientSession | None = None
        self._resolver: _GuardedResolver | None = None
        self._urls: dict[str, URL] = {}

    def opened(self, request: Outgoing) -> Exchange:
        """An async context: entering sends the request and waits for the answer's head.

        Raises: ExchangeFailed, from entering and from every read.
        """
        return Exchange(self, request)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
        if self._resolver is not None:
            await self._resolver.close()

    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._resolver = _GuardedResolver(self._policy)
            self._session = aiohttp.ClientSession(
                connector=_Connector(
                    tls_by_host=self._tls_by_host,
                    ssl=self._tls or _system_tls(),
                    socket_factory=_bounded_socket,
                    resolver=self._resolver,
                    ttl_dns_cache=_DNS_TTL_S,
                    limit=0,  # what may be in flight is decided per endpoint, before it comes here
                    keepalive_timeout=_IDLE_CONNECTION_S,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": _USER_AGENT, "Accept-Encoding": "identity"},
                timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None),
                auto_decompress=False,
                trust_env=False,
                read_bufsize=_BUFFER_BYTES,
                raise_for_status=False,
            )
        return self._session

    def url(self, text: str) -> URL:
        """Parse a URL, once per endpoint, and check an address that is written into it: no resolver will see that.

        Raises: ExchangeFailed.
        """
        url = self._urls.get(text)
        if url is None:
            url = self._checked(text)
            if len(self._urls) >= _MAX_URLS:
                self._urls.clear()
            self._urls[text] = url
        return url

    def _checked(self, text: str) -> URL:
        try:
            url = URL(text)
        except ValueError:
            raise ExchangeFailed("bad_url", is_sent=False) from None
        if url.scheme not in ("http", "https") or not url.host or url.user is not None or url.password is not None:
            raise ExchangeFailed("bad_url", is_sent=False)
        try:
            literal = ip_address(url.host.partition("%")[0])
        except ValueError:
            return url
        if not self._policy.allows_address(url.host, literal):
            raise ExchangeFailed("endpoint_blocked", is_sent=False, is_blocked=True)
        return url


def _system_tls() -> ssl.SSLContext:
    """Trust in the system's authorities. By their compiled-in paths: `SSL_CERT_FILE` in the environment is not our setting."""
    paths = ssl.get_default_verify_paths()
    cafile = paths.openssl_cafile if os.path.isfile(paths.openssl_cafile) else None
    capath = paths.openssl_capath if os.path.isdir(paths.openssl_capath) else None
    return ssl.create_default_context(cafile=cafile, capath=capath)


def tls_trusting(authorities: Path) -> ssl.SSLContext:
    """Trust in the authorities of a PEM file and in no others. Raises: OSError, for a file that holds none as well."""
    return ssl.create_default_context(cafile=authorities)


class Exchange:
    """One request and its answer. Use as an async context; `status` and `headers` are there once it is entered."""

    __slots__ = ("_connection", "_request", "_response", "_transport", "_watch", "is_fresh", "is_sent")

    def __init__(self, transport: Transport, request: Outgoing) -> None:
        self._transport = transport
        self._request = request
        self._response: aiohttp.ClientResponse | None = None
        self._connection: asyncio.Transport | None = None
        self._watch = _Watch(request.deadlines.total_at_s)
        self.is_fresh = False
        """Its connection was dialled for it, not taken from the pool."""
        self.is_sent = False

    async def __aenter__(self) -> Exchange:
        request = self._request
        url = self._transport.url(request.url)
        session = self._transport.session()
        token = _EXCHANGE.set(self)
        self._watch.wait(request.deadlines.connect_s, "connect_timeout")
        try:
            self._response = await session.request(
                request.method, url, data=request.body or None, headers=request.headers, allow_redirects=False
            )
        except (asyncio.CancelledError, aiohttp.ClientError, OSError, AddressBlocked) as fault:
            self._fail(fault)
        finally:
            _EXCHANGE.reset(token)
            self._watch.pause()
            if self._response is None:
                self._abort()
        if self._response.headers.get("Content-Encoding", "identity").lower() not in ("identity", ""):
            # We asked for identity. Unpacking what came anyway would hand the size of the answer to the upstream.
            self._abort()
            raise ExchangeFailed("encoded_answer", is_sent=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._abort()

    def dialled(self, connection: Connection) -> None:
        """A connection is there and the request is about to be written: now the wait is for the answer."""
        self._connection = connection.transport
        self.is_sent = True
        self._watch.wait(self._request.deadlines.first_byte_s, "first_token_timeout")

    @property
    def status(self) -> int:
        return self._answer.status

    @property
    def headers(self) -> Mapping[str, str]:
        """All of the upstream's headers; what of them may leave the process is for the caller to choose. Names in any case."""
        return self._answer.headers

    @property
    def content_type(self) -> str:
        """The media type in lower case, without parameters; empty when the upstream named none."""
        return self._answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()

    async def read_some(self, wait_s: float, reason: str) -> bytes:
        """What has come, at least one byte; empty at the end of the body. Fails as `reason` after `wait_s`."""
        content = self._answer.content
        self._watch.wait(wait_s, reason)
        try:
            return await content.readany()
        except asyncio.CancelledError as fault:
            self._fail(fault)
        except (aiohttp.ClientError, OSError) as fault:
            # What had arrived before the break is still in the buffer, behind the exception; it is part of the answer.
            left = b"".join(content._buffer)
            content._buffer.clear()
            if left:
                return left
            self._fail(fault)
        finally:
            self._watch.pause()

    async def read_all(self, cap_bytes: int | None = None) -> bytes:
        """The whole body. Raises: ExchangeFailed("body_too_large") as soon as it is longer than the cap."""
        cap = self._transport.max_body_bytes if cap_bytes is None else cap_bytes
        length = self._answer.content_length
        if length is not None and length > cap:
            raise ExchangeFailed("body_too_large", is_sent=True)
        deadlines = self._request.deadlines
        parts = [await self.read_some(deadlines.first_byte_s, "first_token_timeout")]
        size = len(parts[0])
        while parts[-1]:
            if size > cap:
                raise ExchangeFailed("body_too_large", is_sent=True)
            parts.append(await self.read_some(deadlines.between_bytes_s, "between_tokens_timeout"))
            size += len(parts[-1])
        return b"".join(parts)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes, for callers without deadlines of their own making."""
        deadlines = self._request.deadlines
        data = await self.read_some(deadlines.first_byte_s, "first_token_timeout")
        while data:
            yield data
            data = await self.read_some(deadlines.between_bytes_s, "between_tokens_timeout")

    @property
    def _answer(self) -> aiohttp.ClientResponse:
        if self._response is None:
            raise RuntimeError("the exchange was not entered")
        return self._response

    def _abort(self) -> None:
        """Close the socket unless the answer was read to its end. `abort`, not `close`: that one waits for unsent bytes."""
        self._watch.stop()
        response = self._response
        if response is not None and response.connection is None:
            return
        if self._connection is not None:
            self._connection.abort()
        if response is not None:
            response.close()

    def _fail(self, fault: BaseException) -> NoReturn:
        """Say what a fault means; a cancellation that is not our watch's passes on as it is."""
        reason = self._watch.claimed()
        if reason is not None:
            raise ExchangeFailed(reason, is_sent=self.is_sent, is_timeout=True) from None
        if isinstance(fault, AddressBlocked):
            raise ExchangeFailed("endpoint_blocked", is_sent=False, is_blocked=True) from None
        for kind, reason in REASONS:
            if isinstance(fault, kind):
                raise ExchangeFailed(reason, is_sent=self.is_sent) from fault
        raise fault


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

_EXCHANGE: ContextVar[Exchange | None] = ContextVar("exchange", default=None)
"""Which exchange dials: aiohttp has no argument that would carry it to the connector."""


class _Connector(aiohttp.TCPConnector):
    """Tells the exchange when its connection is there, and never hands out one that the upstream has closed."""

    def __init__(self, *, tls_by_host: Mapping[str, ssl.SSLContext], **options: Any) -> None:
        super().__init__(**options)
        self._tls_by_host = tls_by_host

    def _get_ssl_context(self, req: ClientRequest) -> ssl.SSLContext | None:
        """By host, so that it holds for whoever uses the session; a pooled connection is only ever used for its own host."""
        own = self._tls_by_host.get((req.url.host or "").lower()) if req.is_ssl() else None
        return own or super()._get_ssl_context(req)

    async def connect(self, req: ClientRequest, traces: list[Trace], timeout: ClientTimeout) -> Connection:
        exchange = _EXCHANGE.get()
        while True:
            connection = await super().connect(req, traces, timeout)
            if exchange is None:
                return connection
            # A fresh connection cannot be stale; to ask would turn a server that hangs up at once into an endless loop.
            if exchange.is_fresh or not _is_stale(connection):
                exchange.dialled(connection)
                return connection
            connection.close()

    async def _create_connection(
        self, req: ClientRequest, traces: list[Trace], timeout: ClientTimeout
    ) -> ResponseHandler:
        exchange = _EXCHANGE.get()
        if exchange is not None:
            exchange.is_fresh = True
        return await super()._create_connection(req, traces, timeout)


def _is_stale(connection: Connection) -> bool:
    """Has the upstream closed, or said something unasked, on a pooled connection? The event loop may not have seen it yet."""
    transport = connection.transport
    if transport is None or transport.is_closing():
        return True
    sock = transport.get_extra_info("socket")
    if sock is None:
        return False
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN | getattr(select, "POLLRDHUP", 0))
    return bool(poll.poll(0))


def _bounded_socket(address: AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _KERNEL_BUFFER_BYTES)
    return made


class _GuardedResolver(AbstractResolver):
    """Resolves in threads of its own and lets through only what the policy allows; the connection goes to these very addresses."""

    def __init__(self, policy: AddressPolicy) -> None:
        self._policy = policy
        self._threads = ThreadPoolExecutor(_DNS_THREADS, thread_name_prefix="dns")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        lookup = partial(socket.getaddrinfo, host, port, family=family, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._threads, lookup)
        allowed: list[ResolveResult] = []
        for found_family, _, protocol, _, address in found:
            text = str(address[0])
            if self._policy.allows_address(host, ip_address(text.partition("%")[0])):
                allowed.append(
                    ResolveResult(
                        hostname=host,
                        host=text,
                        port=port,
                        family=found_family,
                        proto=protocol,
                        flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                    )
                )
        if found and not allowed:
            raise AddressBlocked
        return allowed

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class _Watch:
    """The deadline of one exchange. When a wait is over its time, the waiting task is cancelled and `claimed` says why."""

    __slots__ = (
        "_cancelling",
        "_due_s",
        "_expired",
        "_handle",
        "_is_waiting",
        "_reason",
        "_set_s",
        "_task",
        "_total_at_s",
    )

    def __init__(self, total_at_s: float) -> None:
        self._total_at_s = total_at_s
        self._handle: asyncio.TimerHandle | None = None
        self._set_s = 0.0
        """When the timer will fire."""
        self._due_s = 0.0
        """When the present wait must be over."""
        self._is_waiting = False
        self._reason = ""
        self._expired: str | None = None
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0

    def wait(self, seconds: float, reason: str) -> None:
        """The current task begins to wait (or goes on waiting for something else)."""
        now = monotonic()
        due = now + seconds
        if due > self._total_at_s:
            due, reason = self._total_at_s, "total_timeout"
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("an exchange is made by a task")
        if not self._is_waiting:
            self._task, self._cancelling = task, task.cancelling()
            self._is_waiting = True
        self._due_s, self._reason = due, reason
        if self._handle is None or due < self._set_s:
            self._set(due, now)

    def pause(self) -> None:
        self._is_waiting = False

    def stop(self) -> None:
        self._is_waiting = False
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def claimed(self) -> str | None:
        """Why the task was cancelled, if it was by this watch and by nobody else besides."""
        if self._expired is None or self._task is None:
            return None
        reason, self._expired = self._expired, None
        return reason if self._task.uncancel() <= self._cancelling else None

    def _set(self, due_s: float, now_s: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._set_s = due_s
        self._handle = asyncio.get_running_loop().call_later(max(0.0, due_s - now_s), self._fire)

    def _fire(self) -> None:
        self._handle = None
        if not self._is_waiting or self._task is None:
            return
        now = monotonic()
        if now < self._due_s - 0.001:
            self._set(self._due_s, now)
            return
        self._expired = self._reason
        self._task.cancel()
