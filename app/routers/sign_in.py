"""Signing in to the dashboard, and out. `AdminSessionMiddleware` has seen to forged requests before anything here runs."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final, Protocol, cast

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from app.admin.sign_in_page import sign_in_page
from app.exceptions import DependencyUnavailable, GatewayError, NotFound, UnsupportedMediaType
from app.middleware.admin_session import (
    HOME,
    SIGN_IN,
    SIGN_OUT,
    form_fields,
    is_urlencoded,
    read_form_body,
    safe_next,
    session_cookie_in,
)
from app.middleware.exchange import error_headers
from app.services.admin_sessions import AdminSessions, OpenedSession, SessionCookie
from app.services.single_sign_on import PENDING_S, Answer, SingleSignOn

SIGN_IN_BYTES: Final = 16 * 1024
"""A token, and the address of the page to go on to."""

router = APIRouter(include_in_schema=False)


class SignInServices(Protocol):
    """What these routes use of the container."""

    @property
    def admin_sessions(self) -> AdminSessions: ...
    @property
    def session_cookie(self) -> SessionCookie: ...
    @property
    def single_sign_on(self) -> SingleSignOn | None: ...


@router.get(SIGN_IN)
async def show_sign_in(request: Request) -> Response:
    """The form; who is signed in already goes straight on."""
    services = _services(request)
    next_path = safe_next(request.query_params.get("next"))
    cookie = session_cookie_in(request.scope, services.session_cookie)
    try:
        is_signed_in = cookie is not None and await services.admin_sessions.identify(cookie) is not None
    except DependencyUnavailable as error:
        return _page(request, next_path=next_path, error=error)
    return RedirectResponse(next_path, status_code=303) if is_signed_in else _page(request, next_path=next_path)


@router.post(SIGN_IN)
async def sign_in(request: Request) -> Response:
    services = _services(request)
    if not is_urlencoded(request.scope):
        raise UnsupportedMediaType("Send the form as application/x-www-form-urlencoded.")
    fields = dict(form_fields(await read_form_body(request.receive, max_bytes=SIGN_IN_BYTES)))
    next_path = safe_next(fields.get("next"))
    try:
        opened = await services.admin_sessions.open(
            fields.get("token", "").strip(),
            address=address_of(request),
            user_agent=request.headers.get("user-agent", ""),
            presented_cookie=session_cookie_in(request.scope, services.session_cookie),
        )
    except GatewayError as error:
        return _page(request, next_path=next_path, error=error)
    return signed_in(services, opened, next_path)


@router.get(f"{SIGN_IN}/sso")
async def begin_single_sign_on(request: Request) -> Response:
    """Send the browser to the provider of single sign-on."""
    services = _services(request)
    next_path = safe_next(request.query_params.get("next"))
    try:
        begun = await _configured(services).start(next_path)
    except GatewayError as error:
        return _page(request, next_path=next_path, error=error)
    response = RedirectResponse(begun.location, status_code=303)
    cookie = services.session_cookie.of_pending_sign_in
    response.headers["set-cookie"] = cookie.set_header(begun.cookie_value, max_age_s=PENDING_S)
    return response


@router.get(f"{SIGN_IN}/sso/callback")
async def finish_single_sign_on(request: Request) -> Response:
    """Where the provider sends the browser back to."""
    services, query = _services(request), request.query_params
    pending = services.session_cookie.of_pending_sign_in
    try:
        opened, next_path = await _configured(services).finish(
            Answer(*(_only(query.getlist(name)) for name in ("code", "state", "iss", "error"))),
            pending_cookie=session_cookie_in(request.scope, pending),
            address=address_of(request),
            user_agent=request.headers.get("user-agent", ""),
            presented_cookie=session_cookie_in(request.scope, services.session_cookie),
        )
    except GatewayError as error:
        response = _page(request, next_path=HOME, error=error)
    else:
        response = signed_in(services, opened, next_path)
    response.headers.append("set-cookie", pending.clear_header())
    return response


def _configured(services: SignInServices) -> SingleSignOn:
    if services.single_sign_on is None:
        raise NotFound("Single sign-on is not configured.")
    return services.single_sign_on


def _only(values: list[str]) -> str | None:
    """A parameter sent twice is none at all."""
    return values[0] if len(values) == 1 else None


@router.post(SIGN_OUT)
async def sign_out(request: Request) -> Response:
    services = _services(request)
    await services.admin_sessions.close(session_cookie_in(request.scope, services.session_cookie))
    response = RedirectResponse(SIGN_IN, status_code=303)
    response.headers["set-cookie"] = services.session_cookie.clear_header()
    return response


def signed_in(services: SignInServices, opened: OpenedSession, next_path: str) -> Response:
    """Hand the session over and go on."""
    response = RedirectResponse(next_path, status_code=303)
    lasts_s = services.admin_sessions.seconds_left(opened.expires_at)
    response.headers.append("set-cookie", services.session_cookie.set_header(opened.cookie_value, max_age_s=lasts_s))
    return response


def address_of(request: Request) -> str | None:
    return request.client.host if request.client else None


def _page(request: Request, *, next_path: str, error: GatewayError | None = None) -> Response:
    services = _services(request)
    body = sign_in_page(
        next_path=next_path,
        fault=None if error is None else error.message,
        has_sso=services.single_sign_on is not None,
        is_unencrypted=not services.session_cookie.is_insecure and not _keeps_secure_cookies(request),
    )
    response = Response(body, status_code=200 if error is None else error.status, media_type="text/html; charset=utf-8")
    for name, value in error_headers(error) if error is not None else ():
        response.headers[name.decode()] = value.decode()
    return response


def _keeps_secure_cookies(request: Request) -> bool:
    """Whether browsers take this connection for trustworthy: TLS, or their own machine."""
    host = request.url.hostname or ""
    if request.url.scheme == "https" or host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _services(request: Request) -> SignInServices:
    return cast(SignInServices, request.app.state.container)
