"""One request of the data plane and the answer to it, on bare ASGI: its headers read once, its body capped, its errors shaped."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from starlette.types import Message, Receive, Scope, Send

from app.domain.identity import AppCredential
from app.domain.ids import CLIENT_ID_PATTERN
from app.exceptions import (
    AmbiguousCredentials,
    CallerError,
    GatewayError,
    HeadersTooLarge,
    InvalidApiKey,
    InvalidRequest,
    MethodNotAllowed,
    PayloadTooLarge,
    RateLimited,
    RequestTimeout,
    UnsupportedMediaType,
)
from app.middleware.rate_headers import Headers, rate_limit_headers

CREDENTIAL_HEADERS = frozenset({b"authorization", b"x-api-key", b"api-key"})
SECRET, APP_ID, USER_OID = b"x-gateway-secret", b"x-app-id", b"x-user-oid"
APP_HEADERS = frozenset({SECRET, APP_ID, USER_OID})
READ_HEADERS = (
    CREDENTIAL_HEADERS
    | APP_HEADERS
    | {
        b"content-length",
        b"content-type",
        b"content-encoding",
        b"host",
        b"x-request-id",
        b"traceparent",
        b"idempotency-key",
    }
)
MAX_HEADERS = 100
MAX_HEADER_BYTES = 16 * 1024
MAX_TARGET_BYTES = 8 * 1024
"""Of path and query; as much as the shipped nginx lets through."""
MAX_APP_HEADER_BYTES = 1024
"""No secret, app's id or user's id is as long as that."""
PART_BYTES = 256 * 1024
"""Of a large answer, handed to the server at once."""
MAX_PASSED_CHARS = 1024
"""Of a header that goes on to an upstream; Anthropic's list of beta features is the longest."""
MAX_LENGTH_DIGITS = 18
"""No body is a million terabytes long, and Python refuses to read numbers of thousands of digits."""


class Recording:
    """An answer as it is sent. `body` is None once it has grown too large."""

    def __init__(self, send: Send, max_bytes: int) -> None:
        self._send = send
        self._left = max_bytes
        self._parts: list[bytes] | None = []
        self.status = 0
        self.headers: Headers = []
        self.is_whole = False

    async def send(self, message: Message) -> None:
        await self._send(message)
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message["headers"])
            return
        part: bytes = message.get("body", b"")
        self._left -= len(part)
        if self._left < 0:
            self._parts = None
        elif self._parts is not None:
            self._parts.append(part)
        self.is_whole = not message.get("more_body", False)

    @property
    def body(self) -> bytes | None:
        return None if self._parts is None else b"".join(self._parts)


class Exchange:
    """A request being answered. Headers that matter are read once, in `headers`; sent twice they are refused, never chosen from."""

    __slots__ = (
        "_is_sending",
        "_receive",
        "_scope",
        "_send",
        "_sent_parts",
        "_spoke",
        "argument",
        "call_headers",
        "client_request_id",
        "headers",
        "method",
        "path",
        "request_id",
        "started",
        "write_stall_s",
    )

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        request_id: str,
        argument: str = "",
        *,
        write_stall_s: float = 60.0,
    ) -> None:
        """`write_stall_s`: how long the client may take nothing of what is sent before it is given up."""
        self._scope = scope
        self._receive = receive
        self._send = send
        self.request_id = request_id
        self.argument = argument
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.started = False
        self._spoke = False
        self._is_sending = False
        self._sent_parts = 0
        self.write_stall_s = write_stall_s
        self.headers: dict[bytes, bytes] = {}
        self.client_request_id: str | None = None
        self.call_headers: Headers = []
        """What a call that ends in an error has to say of itself all the same: what is left of its limits, how often it was tried."""

    @property
    def receive(self) -> Receive:
        return self._receive

    @property
    def address(self) -> str | None:
        client = self._scope.get("client")
        return client[0] if client else None

    def read_headers(self) -> None:
        """Raises: AmbiguousCredentials, InvalidRequest (a header sent twice), HeadersTooLarge."""
        raw: Headers = self._scope["headers"]
        if len(raw) > MAX_HEADERS:
            raise HeadersTooLarge
        found = self.headers
        if len(self._scope["query_string"]) + len(self.path) > MAX_TARGET_BYTES:
            raise HeadersTooLarge
        for name, value in raw:
            if len(value) > MAX_HEADER_BYTES:
                raise HeadersTooLarge
            if name in READ_HEADERS:
                if name in found:
                    if name in CREDENTIAL_HEADERS or name in APP_HEADERS:
                        raise AmbiguousCredentials
                    raise InvalidRequest(f"The header '{name.decode('latin-1')}' was sent more than once.")
                found[name] = value
        if b"host" not in found and self._scope.get("http_version") == "1.1":
            raise InvalidRequest("The header 'host' is missing.")
        own_id = found.get(b"x-request-id")
        if own_id is not None:
            text = own_id.decode("latin-1")
            self.client_request_id = text if CLIENT_ID_PATTERN.fullmatch(text) else None

    def credential(self) -> str | AppCredential:
        """The one credential of the request: an API key by any of its three carriers, or what an internal app shows of itself.

        Raises: InvalidApiKey when there is none, AmbiguousCredentials when there are keys that differ, or both kinds,
        InvalidRequest when an app's header is too long to be one.
        """
        found = self.headers
        if APP_HEADERS.isdisjoint(found):
            return self._api_key()
        if not CREDENTIAL_HEADERS.isdisjoint(found):
            raise AmbiguousCredentials
        for name in APP_HEADERS:
            if len(found.get(name, b"")) > MAX_APP_HEADER_BYTES:
                raise InvalidRequest(
                    f"The header '{name.decode('latin-1')}' is too long.", param=name.decode("latin-1")
                )
        secret, app_id, oid = (found.get(name, b"").decode("latin-1") for name in (SECRET, APP_ID, USER_OID))
        return AppCredential(secret, app_id, oid)

    def _api_key(self) -> str:
        found = self.headers
        keys = {found[name] for name in (b"x-api-key", b"api-key") if name in found}
        authorization = found.get(b"authorization")
        if authorization is not None:
            scheme, _, token = authorization.partition(b" ")
            if scheme.lower() != b"bearer":
                raise InvalidApiKey
            keys.add(token)
        if len(keys) > 1:
            raise AmbiguousCredentials
        if not keys:
            raise InvalidApiKey
        return keys.pop().decode("latin-1")

    def passed(self, names: tuple[bytes, ...]) -> tuple[tuple[str, str], ...]:
        """Of the request's headers those of these names, each once, its values joined as HTTP allows."""
        found: dict[str, str] = {}
        for name, value in self._scope["headers"]:
            if name in names:
                text = value.decode("latin-1")
                if not text.isascii() or not text.isprintable() or len(text) > MAX_PASSED_CHARS:
                    raise InvalidRequest(f"The header '{name.decode()}' cannot be passed on.")
                found[name.decode()] = f"{found[name.decode()]},{text}" if name.decode() in found else text
        return tuple(found.items())

    async def read_body(self, *, max_bytes: int, timeout_s: float, is_form: bool = False) -> bytes:
        """The whole body, JSON or a form with files. Raises: UnsupportedMediaType, PayloadTooLarge, RequestTimeout, InvalidRequest."""
        if is_form:
            self._require_form()
        else:
            self._require_json()
        length = self.headers.get(b"content-length")
        if length is not None:
            if not length.isdigit():
                raise InvalidRequest("The Content-Length header is not a number.")
            digits = length.lstrip(b"0")
            if len(digits) > MAX_LENGTH_DIGITS or int(digits or b"0") > max_bytes:
                raise PayloadTooLarge(max_bytes)
        if self._is_all_here():
            return await self._received(max_bytes)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._received(max_bytes)
        except TimeoutError:
            raise RequestTimeout from None

    async def send(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole answer."""
        await self.start(status, [*headers, (b"content-length", b"%d" % len(body))])
        if len(body) <= PART_BYTES or self.method == "HEAD":
            await self.send_last(b"" if self.method == "HEAD" else body)
            return
        try:  # in parts, so that one who takes nothing can be told from one who takes his time
            for start in range(0, len(body), PART_BYTES):
                async with asyncio.timeout(self.write_stall_s):
                    await self.send_part(body[start : start + PART_BYTES])
            await self.send_last(b"")
        except TimeoutError:
            self.cut_off()

    def recorded(self, max_bytes: int) -> Recording:
        """Keep what is sent from now on, as far as `max_bytes`."""
        recording = Recording(self._send, max_bytes)
        self._send = recording.send
        return recording

    async def start(self, status: int, headers: Headers) -> None:
        self.started = True
        request_id = self.request_id.encode()
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(b"x-request-id", request_id), (b"request-id", request_id), *headers],
            }
        )

    def has_been_silent(self) -> bool:
        """Whether an answer is under way and nothing was sent since this was last asked."""
        is_silent = self.started and not self._spoke
        self._spoke = False
        return is_silent

    def sending(self) -> int:
        """Which part is being sent at this moment; 0 for none. The same number twice: the client took none of it in between."""
        return self._sent_parts if self._is_sending else 0

    def cut_off(self) -> None:
        """Close the connection at once. A close that is polite would wait until the client takes what was sent, which it does not.

        ASGI knows no such thing, so the server's own transport is asked for; where there is none, the server closes politely.
        """
        transport = getattr(getattr(self._send, "__self__", None), "transport", None)
        if transport is not None:
            transport.abort()

    async def send_part(self, body: bytes) -> None:
        self._spoke = self._is_sending = True
        self._sent_parts += 1
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
        self._is_sending = False

    async def send_last(self, body: bytes) -> None:
        last: Message = {"type": "http.response.body", "body": body, "more_body": False}
        if not self._is_backed_up():
            await self._send(last)
            return
        try:  # nobody watches the client any more when a call was left
            async with asyncio.timeout(self.write_stall_s):
                await self._send(last)
        except TimeoutError:
            self.cut_off()

    def _is_all_here(self) -> bool:
        """Whether the server has the whole body, as it nearly always has by now: nobody is waited for, so nothing has to be timed. Like
        `cut_off` it asks the server itself, where that can be asked."""
        request = getattr(self._receive, "__self__", None)
        return getattr(request, "more_body", True) is False

    def _is_backed_up(self) -> bool:
        """Whether the server would wait before it takes more, because the client has not taken what was sent."""
        flow = getattr(getattr(self._send, "__self__", None), "flow", None)
        return flow is not None and bool(flow.write_paused)

    async def send_error(self, error: GatewayError, error_body: Callable[[GatewayError, str], bytes]) -> None:
        """Answer with an error, unless an answer has begun already: then the connection ends as it stands."""
        if not self.started:
            headers = [(b"content-type", b"application/json"), *error_headers(error)]
            if self.call_headers:
                told = {name for name, _ in headers}
                headers += [pair for pair in self.call_headers if pair[0] not in told]
            await self.send(error.status, headers, error_body(error, self.request_id))

    def _require_form(self) -> None:
        encoding = self.headers.get(b"content-encoding", b"identity").strip().lower()
        media = self.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if encoding not in (b"identity", b"") or media != b"multipart/form-data":
            raise UnsupportedMediaType

    def _require_json(self) -> None:
        encoding = self.headers.get(b"content-encoding", b"identity").strip().lower()
        media, _, parameters = self.headers.get(b"content-type", b"").lower().partition(b";")
        if encoding not in (b"identity", b"") or media.strip() not in (b"application/json", b"text/json"):
            raise UnsupportedMediaType
        for parameter in parameters.split(b";") if parameters else ():
            name, _, value = parameter.partition(b"=")
            if name.strip() == b"charset" and value.strip(b'" ') not in (b"utf-8", b"utf8", b"us-ascii"):
                raise UnsupportedMediaType

    async def _received(self, max_bytes: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise RequestTimeout  # nobody is left to read it, but the record of refusals stays honest
            part: bytes = message.get("body", b"")
            size += len(part)
            if size > max_bytes:
                raise PayloadTooLarge(max_bytes)
            parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)


def error_headers(error: GatewayError) -> Headers:
    """What an error says beside its body: when to come back, and whether a repeat makes sense at all."""
    headers: Headers = []
    if error.retry_after_s is not None:
        ms = max(1, math.ceil(error.retry_after_s * 1000))
        headers.append((b"retry-after", b"%d" % max(1, -(-ms // 1000))))
        headers.append((b"retry-after-ms", b"%d" % ms))
    should_retry = error.should_retry
    if should_retry is None and isinstance(error, CallerError):
        should_retry = False
    if should_retry is False:
        headers.append((b"x-should-retry", b"false"))
    if isinstance(error, RateLimited):
        reset_ms = math.ceil(error.reset_s * 1000)
        headers += rate_limit_headers(error.kind, limit=error.limit, remaining=error.remaining, reset_ms=reset_ms)
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))  # HTTP asks for it
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allowed.encode()))
    return headers
