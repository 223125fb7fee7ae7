"""The one outgoing HTTP client of the process: pooled connections, deadlines that can be told apart, caps, and the egress guard.

A client of our own over `app.providers.http1`, because relaying is what this product is for: aiohttp's session, connector, request and
response cost a call more CPU than everything else that touches it (see docs/performance.md and ADR 14). What it does not do, a relay must
not do: follow redirects, keep cookies, read proxies or `.netrc` from the environment, decompress, retry.

One exchange:
1. `opened` checks an IP literal, takes a pooled connection or dials an address that the policy allowed for this very host.
   A pooled connection that the upstream has closed meanwhile is noticed before a byte is written, and another one is taken; one that
   it closes just then, before it had the request, is replaced as well.
2. The request goes out; from here on it may have been acted on, whatever happens (`is_sent`).
3. The caller reads at its own pace; what waits unread is bounded, beyond that the upstream is made to wait.
4. Leaving before the end of the body closes the socket at once; after it the connection goes back to the pool.

One timer watches an exchange. A wait sets when it must be over; the timer, when it fires too early, only sets itself again, so
that a stream of a thousand chunks does not cost a thousand timers. It fails the future that is waited for: nobody is cancelled, so a
cancellation is always somebody else's and passes on as it is.
"""

from __future__ import annotations

import asyncio
import errno
import math
import os
import re
import socket
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from time import monotonic
from types import MappingProxyType, TracebackType
from typing import Any, NoReturn, Protocol
from urllib.parse import quote, urlsplit

import aiohappyeyeballs
import msgspec

from app.domain.egress import Address
from app.providers.http1 import BadHttp, Connection

MAX_BODY_BYTES = 64 << 20
_KERNEL_BUFFER_BYTES = 128 << 10
"""A connection stops reading when 64 KiB wait unread; the last read may bring what the kernel held. Together that stays below
256 KiB per exchange. Left to itself the kernel would take in megabytes for a caller who does not read; the price is that one answer
comes at no more than this per round trip to the upstream."""
IDLE_CONNECTION_S = 20.0
"""Below most servers' own keep-alive, so that it is rarely the upstream who closes first. Where it says a shorter time, that holds."""
_KEEP_ALIVE = re.compile(r"(?:^|[,;\s])timeout\s*=\s*(\d{1,6})", re.IGNORECASE)
DNS_TTL_S = 30
DNS_STALE_S = 600.0
"""While a host's name server fails or is slow, the addresses it gave last are good for so long: better than none."""
_DNS_PATIENCE_S = 0.5
"""How long a new answer is waited for where an old one would do."""
_DNS_THREADS = 16
"""Made as they are needed. A host whose name server is slow keeps one busy: it takes many such hosts to hold up the rest."""
_MAX_KNOWN = 4096
"""URLs and host names remembered."""
_NEXT_ADDRESS_S = 0.25
"""A host with several addresses: how long one may be silent before the next is tried beside it (RFC 8305)."""
USER_AGENT = "antigravity-llm-gateway"
_HOST = re.compile(r"[A-Za-z0-9._~:%-]+")
_PATH_SAFE = "/%:@!$&'()*+,;=~-._"

_PACKED = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress", "dcb", "dcz"})
"""Encodings that make bytes of fewer bytes. Some servers say "utf-8" or "none" in this header; that changes nothing."""

NO_HEADERS: Mapping[str, str] = MappingProxyType({})
NO_HOSTS: Mapping[str, ssl.SSLContext] = MappingProxyType({})

AddressInfo = tuple[int, int, int, str, tuple[Any, ...]]
"""As `getaddrinfo` gives it."""


class AddressPolicy(Protocol):
    """Which addresses may be dialled; see `app.domain.egress.EgressPolicy`."""

    def allows_address(self, host: str, ip: Address) -> bool: ...


class Deadlines(msgspec.Struct, frozen=True):
    """Each wait's own limit, and the monotonic time at which all of it must be over."""

    connect_s: float
    first_byte_s: float
    between_bytes_s: float
    total_at_s: float


class Outgoing(msgspec.Struct, frozen=True):
    """A request. Its headers are all that is sent besides what HTTP itself needs; nothing of a caller's request is added."""

    method: str
    url: str
    deadlines: Deadlines
    headers: Mapping[str, str] = NO_HEADERS
    body: bytes = b""

    def __repr__(self) -> str:
        """Without what is nobody's business: a credential, a prompt."""
        return f"Outgoing({self.method} {self.url})"


class ExchangeFailed(Exception):
    """The exchange broke at the level of HTTP or below. `reason` is a short word for the record.

    `is_sent` is False only when not a byte of the request can have left. `is_ours`: this machine had nothing left to connect with.
    """

    def __init__(
        self, reason: str, *, is_sent: bool, is_timeout: bool = False, is_blocked: bool = False, is_ours: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_sent = is_sent
        self.is_timeout = is_timeout
        self.is_blocked = is_blocked
        self.is_ours = is_ours


class AddressBlocked(Exception):
    """The policy allows none of a host's addresses. No OSError, so that nobody takes it for an unreachable one."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL, taken apart once. `origin` is whom a pooled connection belongs to."""

    origin: tuple[str, str, int]
    is_tls: bool
    host: str
    port: int
    head: str
    """Of every request to it: the path, HTTP's version, and the headers that are always the same."""


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
        self._resolver = GuardedResolver(policy)
        self._targets: dict[str, Target] = {}
        self._idle: defaultdict[tuple[str, str, int], list[Connection]] = defaultdict(list)
        self._sweep: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The one it is used in. Asked for once: each time it is a system call."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    def opened(self, request: Outgoing) -> Exchange:
        """An async context: entering sends the request and waits for the answer's head.

        Raises: ExchangeFailed, from entering and from every read.
        """
        return Exchange(self, request)

    async def close(self) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in [each for idle in self._idle.values() for each in idle]:
            connection.abort()
        self._idle.clear()
        self._resolver.close()

    def target(self, url: str) -> Target:
        """Raises: ExchangeFailed."""
        target = self._targets.get(url)
        if target is None:
            target = target_of(url, self._policy)
            if len(self._targets) >= _MAX_KNOWN:
                self._targets.clear()
            self._targets[url] = target
        return target

    def pooled(self, target: Target) -> Connection | None:
        """The connection last given back that still stands."""
        idle = self._idle.get(target.origin)
        while idle:
            connection = idle.pop()
            if connection.idle_until_s > monotonic() and not connection.is_stale():
                return connection
            connection.abort()
        return None

    def give_back(self, target: Target, connection: Connection) -> None:
        """Keep it for the next exchange, or close it at once if its answer was not read to the end."""
        if not (connection.is_complete and connection.is_reusable):
            connection.abort()
            return
        connection.idle_until_s = monotonic() + _idle_s(connection)
        self._idle[target.origin].append(connection)
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(IDLE_CONNECTION_S, self._close_idle)

    def _close_idle(self) -> None:
        """Close what nobody has needed for long; come again while any are left."""
        self._sweep = None
        now = monotonic()
        for origin, idle in list(self._idle.items()):
            kept = []
            for connection in idle:
                if connection.is_reusable and connection.idle_until_s > now:
                    kept.append(connection)
                else:
                    connection.abort()
            if kept:
                self._idle[origin] = kept
            else:
                del self._idle[origin]
        if self._idle:
            next_s = min(idle[0].idle_until_s for idle in self._idle.values())
            wait_s = max(0.1, next_s - now)
            self._sweep = asyncio.get_running_loop().call_later(wait_s, self._close_idle)

    async def dialled(self, target: Target) -> Connection:
        """A new connection, to one of the addresses that the policy allows. Raises: OSError, AddressBlocked."""
        loop = asyncio.get_running_loop()
        addresses = await self._resolver.addresses(target.host, target.port)
        try:
            sock = await aiohappyeyeballs.start_connection(
                addresses,
                happy_eyeballs_delay=_NEXT_ADDRESS_S,
                interleave=1,
                socket_factory=lambda address: bounded_socket(*address[:3]),
            )
        except BaseException:
            self._resolver.doubt(target.host, target.port)  # it may have moved: the next one asks again
            raise
        try:
            tls = self._tls_for(target) if target.is_tls else None
            name = target.host.rstrip(".") if target.is_tls else None
            _, connection = await loop.create_connection(Connection, sock=sock, ssl=tls, server_hostname=name)
        except BaseException:
            sock.close()
            raise
        return connection

    def _tls_for(self, target: Target) -> ssl.SSLContext:
        own = self._tls_by_host.get(target.host)
        if own is not None:
            return own
        if self._tls is None:
            self._tls = system_tls()
        return self._tls


class Exchange:
    """One request and its answer. Use as an async context; `status` and `headers` are there once it is entered."""

    __slots__ = (
        "_connection",
        "_due_s",
        "_loop",
        "_reason",
        "_request",
        "_target",
        "_timer",
        "_timer_at_s",
        "_transport",
        "_waiter",
        "asked_s",
        "is_fresh",
        "is_sent",
    )

    def __init__(self, transport: Transport, request: Outgoing) -> None:
        self._transport = transport
        self._request = request
        self._target: Target | None = None
        self._connection: Connection | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = self._due_s = 0.0
        self._reason = ""
        self.is_fresh = False
        """Its connection was dialled for it, not taken from the pool."""
        self.is_sent = False
        self.asked_s = 0.0
        """When the request went out, by the monotonic clock."""

    async def __aenter__(self) -> Exchange:
        request = self._request
        self._target = target = self._transport.target(request.url)
        head = _head(request, target)
        self._loop = self._transport.loop
        try:
            connection = self._transport.pooled(target)
            if connection is None or not await self._asked(connection, head):
                connection = await self._dialled(target)
                await self._asked(connection, head)
            if (encoding := connection.headers.get("content-encoding")) is not None and _is_packed(encoding):
                # We asked for identity. Unpacking what came anyway would hand the size of the answer to the upstream.
                raise ExchangeFailed("encoded_answer", is_sent=True)
        except BaseException:
            self._abort()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_timer()
        connection, self._connection = self._connection, None
        if connection is not None and self._target is not None:
            self._transport.give_back(self._target, connection)

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
        named: str = self._answer.headers.get("content-type", "")
        return named.partition(";")[0].strip().lower()

    async def read_some(self, wait_s: float, reason: str) -> bytes:
        """What has come, at least one byte; empty at the end of the body. Fails as `reason` after `wait_s`.

        What had arrived before a break is part of the answer and comes first.
        """
        connection = self._answer
        if not connection.has_something:
            await self._something(wait_s, reason)
        elif not connection.is_complete and monotonic() > self._request.deadlines.total_at_s:
            raise ExchangeFailed(
                "total_timeout", is_sent=True, is_timeout=True
            )  # it never pauses: no timer would see it
        try:
            return connection.taken()
        except (BadHttp, OSError) as fault:
            self._fail(fault)

    async def read_all(self, cap_bytes: int | None = None, *, within_s: float = math.inf) -> bytes:
        """The whole body. Raises: ExchangeFailed("body_too_large") as soon as it is longer than the cap.

        Blanks before it are no progress: some send them for as long as a model thinks, as others send comments in a stream.
        """
        cap = self._transport.max_body_bytes if cap_bytes is None else cap_bytes
        length = self._answer.headers.get("content-length")
        if length is not None and int(length) > cap:
            raise ExchangeFailed("body_too_large", is_sent=True)
        if self._answer.is_complete:  # as nearly always: an answer of a few kilobytes comes with its head
            whole = self._answer.taken()
            if len(whole) > cap:
                raise ExchangeFailed("body_too_large", is_sent=True)
            return whole
        deadlines, now = self._request.deadlines, monotonic()
        due_s = now + within_s
        wait_s, reason = self.asked_s + deadlines.first_byte_s - now, "first_token_timeout"
        parts: list[bytes] = []
        size, has_begun = 0, False
        while part := await self.read_some(min(wait_s, due_s - monotonic()), reason):
            size += len(part)
            if size > cap:
                raise ExchangeFailed("body_too_large", is_sent=True)
            parts.append(part)
            if not has_begun and part.isspace():
                wait_s = self.asked_s + deadlines.first_byte_s - monotonic()
            else:
                has_begun = True
                wait_s, reason = deadlines.between_bytes_s, "between_tokens_timeout"
        return b"".join(parts)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes, for callers without deadlines of their own making."""
        deadlines = self._request.deadlines
        data = await self.read_some(deadlines.first_byte_s, "first_token_timeout")
        while data:
            yield data
            data = await self.read_some(deadlines.between_bytes_s, "between_tokens_timeout")

    @property
    def _answer(self) -> Connection:
        if self._connection is None:
            raise RuntimeError("the exchange was not entered")
        return self._connection

    async def _asked(self, connection: Connection, head: bytes) -> bool:
        """Send the request and wait for the answer's head. False: the connection was a kept one, and it was closed before the upstream
        can have had the request. Raises: ExchangeFailed."""
        self._connection = connection
        self.is_sent = True
        self.asked_s = monotonic()
        connection.begin(head, self._request.body)
        if not connection.has_head and connection.fault is None:
            await self._something(self._request.deadlines.first_byte_s, "first_token_timeout")
        if connection.has_head:
            return True
        self.is_sent = not connection.is_unheard
        if self.is_sent or self.is_fresh:
            self._fail(connection.fault or ConnectionResetError("no answer"))
        self._connection = None
        connection.abort()
        return False

    async def _dialled(self, target: Target) -> Connection:
        self.is_fresh = True
        deadlines, now = self._request.deadlines, monotonic()
        wait_s = min(deadlines.connect_s, deadlines.total_at_s - now)
        limit = asyncio.timeout(max(0.0, wait_s))
        try:
            async with limit:
                return await self._transport.dialled(target)
        except (OSError, AddressBlocked) as fault:
            if limit.expired():
                reason = "connect_timeout" if wait_s == deadlines.connect_s else "total_timeout"
                raise ExchangeFailed(reason, is_sent=False, is_timeout=True) from None
            self._fail(fault)

    async def _something(self, wait_s: float, reason: str) -> None:
        """Return when the connection has something, or has broken. Raises: ExchangeFailed when that takes too long."""
        now = monotonic()
        due_s, total_at_s = now + wait_s, self._request.deadlines.total_at_s
        if due_s > total_at_s:
            due_s, reason = total_at_s, "total_timeout"
        self._due_s, self._reason = due_s, reason
        if self._timer is None or due_s < self._timer_at_s:
            self._set_timer(due_s, now)
        self._waiter = waiter = self._answer.awaited(self._loop)
        try:
            await waiter
        finally:
            self._waiter = None

    def _set_timer(self, due_s: float, now_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at_s = due_s
        self._timer = self._loop.call_later(max(0.0, due_s - now_s), self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer = None
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        now = monotonic()
        if now < self._due_s - 0.001:
            self._set_timer(self._due_s, now)
        else:
            waiter.set_exception(ExchangeFailed(self._reason, is_sent=True, is_timeout=True))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _abort(self) -> None:
        """Close the socket at once. `abort`, not `close`: that one waits for unsent bytes."""
        self._stop_timer()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    def _fail(self, fault: BaseException) -> NoReturn:
        """Say what a fault means."""
        if isinstance(fault, AddressBlocked):
            raise ExchangeFailed("endpoint_blocked", is_sent=False, is_blocked=True) from None
        if self._connection is None:
            if getattr(fault, "errno", None) in _NOTHING_LEFT:
                raise ExchangeFailed("no_sockets", is_sent=False, is_ours=True) from fault
            for kind, reason in _WHILE_DIALLING:
                if isinstance(fault, kind):
                    raise ExchangeFailed(reason, is_sent=False) from fault
        reason = "bad_http" if isinstance(fault, BadHttp) else "connection_lost"
        raise ExchangeFailed(reason, is_sent=self.is_sent) from fault


_NOTHING_LEFT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})
"""Of files, memory or local ports: the endpoint was not even asked."""
_WHILE_DIALLING: tuple[tuple[type[BaseException], str], ...] = (
    # Special ones first: all of these derive from OSError.
    (ssl.SSLCertVerificationError, "tls_certificate"),
    (ssl.SSLError, "tls_error"),
    (socket.gaierror, "dns_error"),
    (OSError, "connect_failed"),
)


def _head(request: Outgoing, target: Target) -> bytes:
    """The request up to its body. Raises: ExchangeFailed where a header would become several."""
    fields = "".join([f"{name}: {value}\r\n" for name, value in request.headers.items()])
    length = f"Content-Length: {len(request.body)}\r\n" if request.body or request.method != "GET" else ""
    if fields.count("\n") != len(request.headers) or fields.count("\r") != len(request.headers):
        raise ExchangeFailed("bad_header", is_sent=False)
    return f"{request.method} {target.head}{fields}{length}\r\n".encode("latin-1", "replace")


def _is_packed(encodings: str) -> bool:
    return not _PACKED.isdisjoint(each.strip() for each in encodings.lower().split(","))


def _idle_s(connection: Connection) -> float:
    """How long the connection may lie unused: a second less than its upstream says it keeps it (`Keep-Alive: timeout=5`)."""
    said = connection.headers.get("keep-alive")
    if said is None:
        return IDLE_CONNECTION_S
    found = _KEEP_ALIVE.search(said)
    return min(IDLE_CONNECTION_S, max(0.0, int(found[1]) - 1.0)) if found else IDLE_CONNECTION_S


def target_of(url: str, policy: AddressPolicy) -> Target:
    """Take a URL apart, and check an address that is written into it: no resolver will see that. Raises: ExchangeFailed."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        if host is not None and not host.isascii():
            host = host.encode("idna").decode("ascii")
    except ValueError:
        raise ExchangeFailed("bad_url", is_sent=False) from None
    is_fit = parts.scheme in ("http", "https") and host and _HOST.fullmatch(host)
    if not is_fit or not host or parts.username is not None or parts.password is not None:
        raise ExchangeFailed("bad_url", is_sent=False)
    try:
        literal = ip_address(host.partition("%")[0])
    except ValueError:
        pass
    else:
        if not policy.allows_address(host, literal):
            raise ExchangeFailed("endpoint_blocked", is_sent=False, is_blocked=True)
    shown = f"[{host}]" if ":" in host else host
    named = shown if port is None else f"{shown}:{port}"
    path = quote(parts.path or "/", safe=_PATH_SAFE)
    query = f"?{quote(parts.query, safe=_PATH_SAFE + '?')}" if parts.query else ""
    head = f"{path}{query} HTTP/1.1\r\nHost: {named}\r\nUser-Agent: {USER_AGENT}\r\nAccept-Encoding: identity\r\n"
    is_tls = parts.scheme == "https"
    port = port or (443 if is_tls else 80)
    return Target((parts.scheme, host, port), is_tls, host, port, head)


def system_tls() -> ssl.SSLContext:
    """Trust in the system's authorities. By their compiled-in paths: `SSL_CERT_FILE` in the environment is not our setting."""
    paths = ssl.get_default_verify_paths()
    cafile = paths.openssl_cafile if os.path.isfile(paths.openssl_cafile) else None
    capath = paths.openssl_capath if os.path.isdir(paths.openssl_capath) else None
    return ssl.create_default_context(cafile=cafile, capath=capath)


def tls_trusting(authorities: Path) -> ssl.SSLContext:
    """Trust in the authorities of a PEM file and in no others. Raises: OSError, for a file that holds none as well."""
    return ssl.create_default_context(cafile=authorities)


def bounded_socket(family: int, kind: int, protocol: int) -> socket.socket:
    made = socket.socket(family, kind, protocol)
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _KERNEL_BUFFER_BYTES)
    return made


class _Known:
    """What a name server said of a host, and until when it is not asked again."""

    __slots__ = ("addresses", "good_until_s", "looked_at_s")

    def __init__(self, addresses: list[AddressInfo]) -> None:
        self.addresses = addresses
        self.looked_at_s = monotonic()
        self.good_until_s = self.looked_at_s + DNS_TTL_S


class GuardedResolver:
    """Resolves in threads of its own and lets through only what the policy allows; the connection goes to these very addresses."""

    def __init__(self, policy: AddressPolicy) -> None:
        self._policy = policy
        self._threads: ThreadPoolExecutor | None = None
        self._known: dict[tuple[str, int], _Known] = {}
        self._under_way: dict[tuple[str, int], asyncio.Task[list[AddressInfo]]] = {}

    async def addresses(self, host: str, port: int) -> list[AddressInfo]:
        """From memory for `DNS_TTL_S`, and longer while its name server has no answer. Raises: OSError, AddressBlocked."""
        known = self._known.get((host, port))
        if known is not None and known.good_until_s > monotonic():
            return known.addresses
        look = self._shared_look(host, port)
        if known is not None and known.looked_at_s + DNS_STALE_S > monotonic():
            await asyncio.wait({look}, timeout=_DNS_PATIENCE_S)
            if not look.done() or (not look.cancelled() and isinstance(look.exception(), OSError)):
                return known.addresses
        return await asyncio.shield(look)

    def doubt(self, host: str, port: int) -> None:
        """None of the addresses could be reached: the name is looked up again next time."""
        known = self._known.get((host, port))
        if known is not None:
            known.good_until_s = 0.0

    def _shared_look(self, host: str, port: int) -> asyncio.Task[list[AddressInfo]]:
        """One lookup of a host at a time, however many wait for it or have given up: a slow name server takes one thread a host."""
        look = self._under_way.get((host, port))
        if look is None:
            look = self._under_way[host, port] = asyncio.ensure_future(self.looked_up(host, port, socket.AF_UNSPEC))
            look.add_done_callback(partial(self._looked, (host, port)))
        return look

    def _looked(self, place: tuple[str, int], look: asyncio.Task[list[AddressInfo]]) -> None:
        self._under_way.pop(place, None)
        if look.cancelled() or look.exception() is not None:
            return  # whoever still waits has it; that nobody does is no fault
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known[place] = _Known(look.result())

    async def looked_up(self, host: str, port: int, family: int) -> list[AddressInfo]:
        """Raises: OSError, AddressBlocked."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_DNS_THREADS, thread_name_prefix="dns")
        lookup = partial(socket.getaddrinfo, host, port, family=family, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._threads, lookup)
        allowed: list[AddressInfo] = [
            info for info in found if self._policy.allows_address(host, ip_address(str(info[4][0]).partition("%")[0]))
        ]
        if found and not allowed:
            raise AddressBlocked
        return allowed

    def close(self) -> None:
        for look in self._under_way.values():
            look.cancel()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
