"""What stands in front of everything under /admin, pure ASGI: who is signed in, forged requests, and the headers of every answer.

1. A request with an `Authorization` header is the API's own affair: its cookies are not looked at, it needs no CSRF token.
2. Otherwise the session's cookie says who acts: `request.state.actor` and `request.state.session`.
3. Whatever changes something under a session must prove that a page of ours sent it: the session's CSRF token, as header
   `X-CSRF-Token` or as form field `csrf_token`, and no word of the browser's that another site did.
4. A page that nobody is signed in for leads to the sign-in, and from there back.
5. Every answer carries a policy that lets no foreign script, frame or form in, and is kept by no cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final
from urllib.parse import parse_qsl, quote, urlsplit

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.exceptions import Forbidden, GatewayError, InvalidApiKey, PayloadTooLarge, RequestTimeout
from app.middleware.exchange import error_headers
from app.middleware.head import as_get
from app.services.admin_sessions import AdminSessions, Session, SessionCookie
from app.telemetry import logger

PREFIX: Final = "/admin"
API_PREFIX: Final = "/admin/api"
SIGN_IN: Final = "/admin/sign-in"
SIGN_OUT: Final = "/admin/sign-out"
HOME: Final = "/admin/"

CSRF_HEADER: Final = b"x-csrf-token"
CSRF_FIELD: Final = "csrf_token"
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})

FORM_BYTES: Final = 1024 * 1024
"""As large as a body of the admin API may be."""
FORM_FIELDS: Final = 2000
FORM_TIMEOUT_S: Final = 30.0
MAX_NEXT_LENGTH: Final = 2000

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; font-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
)
_SECURITY_HEADERS: Final = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    (b"cache-control", b"no-store"),
)
_HSTS: Final = (b"strict-transport-security", b"max-age=31536000")

ErrorPage = Callable[[GatewayError, str], bytes]
"""A whole page that tells of an error; the second argument is the request's id."""


def session_cookie_in(scope: Scope, cookie: SessionCookie) -> str | None:
    """The session's cookie; None when there is none, or several that differ."""
    found = set(cookies_named(scope, cookie.name))
    return found.pop() if len(found) == 1 else None


def cookies_named(scope: Scope, name: str) -> list[str]:
    """Read strictly: what a lenient parser makes of quotes and odd separators is no session of ours."""
    values = []
    for header, raw in scope["headers"]:
        if header == b"cookie":
            for pair in raw.decode("latin-1").split(";"):
                key, separator, value = pair.strip().partition("=")
                if separator and key == name:
                    values.append(value)
    return values


class AdminSessionMiddleware:
    def __init__(
        self,
        app: ASGIApp,
        *,
        sessions: AdminSessions,
        cookie: SessionCookie,
        error_page: ErrorPage,
        public_url: str = "",
    ) -> None:
        """`public_url` is the gateway's own origin, where it is told; otherwise the `Host` of each request."""
        self._app = app
        self._sessions = sessions
        self._cookie = cookie
        self._error_page = error_page
        self._public_host = _host_and_port(public_url) if public_url else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        if scope["type"] != "http" or not _is_under(path, PREFIX):
            await self._app(scope, receive, send)
            return
        send = _with_security_headers(send, is_encrypted=scope.get("scheme") == "https")
        scope.setdefault("state", {})
        try:
            receive = await self._admitted(scope, receive, path)
        except _SignInFirst as elsewhere:
            await _redirect(send, elsewhere.location)
        except GatewayError as error:
            await self._refuse(scope, send, error)
        else:
            if scope["method"] == "HEAD" and _is_under(path, API_PREFIX):
                scope, send = as_get(scope, send)
            await self._app(scope, receive, send)

    async def _admitted(self, scope: Scope, receive: Receive, path: str) -> Receive:
        """Let the request pass, or raise what is to be answered. Returns where its body can be read from."""
        is_api = _is_under(path, API_PREFIX)
        if is_api and _header(scope, b"authorization") is not None:
            return receive
        if _is_under(path, SIGN_IN):
            if scope["method"] not in SAFE_METHODS:
                self._require_own_page(scope)
            return receive
        cookie = session_cookie_in(scope, self._cookie)
        session = await self._sessions.identify(cookie) if cookie is not None else None
        if session is None:
            if is_api and cookie is None:
                return receive  # the route says that it wants a credential
            if path == SIGN_OUT:
                return receive  # whoever was signed out already only needs to be told
            raise _refusal_without_session(scope, is_api=is_api)
        if scope["method"] not in SAFE_METHODS:
            self._require_own_page(scope)
            receive = await _with_csrf(scope, receive, session)
        scope["state"]["actor"] = session.actor
        scope["state"]["session"] = session
        return receive

    def _require_own_page(self, scope: Scope) -> None:
        """Refuse what the browser says another site sent. Clients that are no browsers say nothing."""
        site = _header(scope, b"sec-fetch-site")
        if site is not None and site not in (b"same-origin", b"none"):
            raise Forbidden("This request came from another site.")
        origin = _header(scope, b"origin")
        if origin is not None:
            own = self._public_host, _host_and_port(f"//{(_header(scope, b'host') or b'').decode('latin-1')}")
            given = _host_and_port(origin.decode("latin-1"))
            if given is None or given not in own:
                raise Forbidden("This request came from another site.")

    async def _refuse(self, scope: Scope, send: Send, error: GatewayError) -> None:
        if isinstance(error, Forbidden):
            client = scope.get("client")
            logger.warning(
                "request_forged", path=scope["path"], why=error.message, address=client[0] if client else None
            )
        request_id = str(scope["state"].get("request_id", ""))
        headers = error_headers(error)
        if _is_under(scope["path"], API_PREFIX) or not _wants_page(scope):
            fields = ("message", "type", "param", "code")
            told = {name: getattr(error, name) for name in fields} | {"request_id": request_id}
            body, media = msgspec.json.encode({"error": told}), b"application/json"
        else:
            body, media = self._error_page(error, request_id), b"text/html; charset=utf-8"
        if isinstance(error, InvalidApiKey) and _header(scope, b"hx-request") is not None:
            headers.append((b"hx-redirect", SIGN_IN.encode()))
        await _send_whole(send, error.status, [(b"content-type", media), *headers], body)


class _SignInFirst(Exception):
    def __init__(self, location: str) -> None:
        super().__init__(location)
        self.location = location


def _refusal_without_session(scope: Scope, *, is_api: bool) -> Exception:
    """A page asked for by a reader leads to the sign-in; anything else is refused."""
    is_part_of_page = _header(scope, b"hx-request") is not None
    if is_api or scope["method"] not in ("GET", "HEAD") or is_part_of_page or not _wants_page(scope):
        return InvalidApiKey()
    wanted = scope["path"] + (f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else "")
    location = SIGN_IN if wanted in (PREFIX, HOME) else f"{SIGN_IN}?next={quote(wanted, safe='/')}"
    return _SignInFirst(location)


async def _with_csrf(scope: Scope, receive: Receive, session: Session) -> Receive:
    """Require the session's CSRF token. Raises: Forbidden, PayloadTooLarge, RequestTimeout."""
    given = _header(scope, CSRF_HEADER)
    if given is not None:
        if session.has_csrf(given.decode("latin-1")):
            return receive
        raise Forbidden("The CSRF token is not this session's. Reload the page.")
    if not is_urlencoded(scope):
        raise Forbidden("The CSRF token is missing.")
    body = await read_form_body(receive)
    tokens = {value for name, value in form_fields(body) if name == CSRF_FIELD}
    if len(tokens) != 1 or not session.has_csrf(tokens.pop()):
        raise Forbidden("The CSRF token is missing or not this session's. Reload the page.")
    return _replayed(body, receive)


# ── Forms ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def is_urlencoded(scope: Scope) -> bool:
    media = (_header(scope, b"content-type") or b"").partition(b";")[0].strip().lower()
    return media == b"application/x-www-form-urlencoded"


async def read_form_body(receive: Receive, *, max_bytes: int = FORM_BYTES) -> bytes:
    """Raises: PayloadTooLarge, RequestTimeout."""
    body = bytearray()
    try:
        async with asyncio.timeout(FORM_TIMEOUT_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise RequestTimeout
                body += message.get("body", b"")
                if len(body) > max_bytes:
                    raise PayloadTooLarge(max_bytes)
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise RequestTimeout from None


def form_fields(body: bytes) -> list[tuple[str, str]]:
    """The fields of a form, in their order. Raises: Forbidden for more than any page of ours has."""
    try:
        return parse_qsl(
            body.decode("utf-8", "replace"), keep_blank_values=True, errors="replace", max_num_fields=FORM_FIELDS
        )
    except ValueError:
        raise Forbidden("The form has too many fields.") from None


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body once more, for the page's own handler."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return messages.pop() if messages else await receive()

    return again


# ── Addresses ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def safe_next(wanted: str | None) -> str:
    """Where to go after signing in: a page of ours, whatever was asked for."""
    if wanted is None or len(wanted) > MAX_NEXT_LENGTH or "\\" in wanted or not wanted.isprintable():
        return HOME
    parts = urlsplit(wanted)
    is_ours = not parts.scheme and not parts.netloc and not parts.fragment and _is_under(parts.path, PREFIX)
    is_page = not any(_is_under(parts.path, other) for other in (API_PREFIX, SIGN_IN, SIGN_OUT))
    if not is_ours or not is_page or ".." in parts.path or "//" in parts.path:
        return HOME
    return quote(wanted, safe="/?&=%:@!$'()*+,;~-._")


def _is_under(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(f"{prefix}/")


def _host_and_port(url: str) -> tuple[str, int | None] | None:
    """The host and the port of an origin; the ports that browsers leave out count as none. The scheme is not compared: a proxy
    that ends TLS makes https of what arrives here as http."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if not parts.hostname:
        return None
    return parts.hostname, None if port in (80, 443) else port


# ── Bare ASGI ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _header(scope: Scope, name: bytes) -> bytes | None:
    return next((value for header, value in scope["headers"] if header == name), None)


def _wants_page(scope: Scope) -> bool:
    accepted = _header(scope, b"accept")
    return accepted is None or b"text/html" in accepted or b"*/*" in accepted


def _with_security_headers(send: Send, *, is_encrypted: bool) -> Send:
    added = (*_SECURITY_HEADERS, *((_HSTS,) if is_encrypted else ()))
    replaced = {name for name, _ in added}

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept: Iterable[tuple[bytes, bytes]] = message.get("headers", ())
            message = {**message, "headers": [*(pair for pair in kept if pair[0].lower() not in replaced), *added]}
        await send(message)

    return send_with_headers


async def _redirect(send: Send, location: str) -> None:
    await _send_whole(send, 303, [(b"location", location.encode("ascii", "ignore"))], b"")


async def _send_whole(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    sized = [*headers, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": sized})
    await send({"type": "http.response.body", "body": body})
