"""What the admin API's routes share: the services they may use, who is calling, and what he may do.

Every route stands in `RIGHTS`; one that does not cannot be made. Its right is checked before the body is read: FastAPI would
parse a body first and only then ask who sent it.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, Final, Literal, Protocol, cast

from fastapi import APIRouter, Depends, Header, Query, Request, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message

from app.clock import Clock
from app.config import Settings
from app.domain.access import Actor, Right
from app.domain.identity import PaymentStatus
from app.exceptions import (
    AmbiguousCredentials,
    Forbidden,
    InvalidJson,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    RequestTimeout,
    UnsupportedMediaType,
)
from app.models.schemas import Day, Moment
from app.routers.rights import PREFIX, RIGHTS
from app.services.admin_access import AdminAccess
from app.services.admin_sessions import AdminSessions, Session
from app.services.alerts import Alerts
from app.services.call_content import CallContents
from app.services.command import ANY_VERSION, Expected, version_of
from app.services.endpoint_care import EndpointCare
from app.services.management import Management
from app.services.repeats import HEADER, Answer, Repeats
from app.storage.management_ports import AuditEntry, AuditStore, ListQuery
from app.storage.ports import ReportStore, UsageStore

ADMIN_BODY_BYTES: Final = 1024 * 1024
"""Far more than the largest object an administrator can send."""


AUDITED_REFUSALS: Final = 300
"""Refused attempts of one administrator that get rows in the trail within a minute: a script gone wrong must not fill it."""


class AdminServices(Protocol):
    """What these routes use of the container."""

    @property
    def settings(self) -> Settings: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def management(self) -> Management: ...
    @property
    def admin_access(self) -> AdminAccess: ...
    @property
    def audit(self) -> AuditStore: ...
    @property
    def call_contents(self) -> CallContents: ...
    @property
    def admin_sessions(self) -> AdminSessions: ...
    @property
    def repeats(self) -> Repeats: ...
    @property
    def reports(self) -> ReportStore: ...
    @property
    def usage(self) -> UsageStore: ...
    @property
    def alerts(self) -> Alerts: ...
    @property
    def endpoint_care(self) -> EndpointCare: ...


class AdminRoute(APIRoute):
    """A route that knows who calls before it reads what is sent."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        rights = {RIGHTS[f"{method} {self.path.removeprefix(PREFIX)}"] for method in self.methods or ()}
        (right,) = rights

        async def guarded(request: Request) -> Response:
            services = services_of(request)
            actor = await _identified(request, services)
            try:
                if not actor.may(right):
                    raise Forbidden
                request.state.actor = actor
                _require_readable(request)
                request = await _with_body(request, services.settings.request_body_timeout_seconds)
                response = await _once(services, actor, request, handle)
            except Forbidden:
                await _audit_refusal(services, actor, f"{request.method} {request.url.path}"[:500])
                raise
            response.headers.setdefault("cache-control", "no-store")
            return response

        return guarded


def admin_router(resource: str, tag: str) -> APIRouter:
    """A router of the admin API. Security is named for the documentation; `AdminRoute` is what enforces it."""
    documented = Security(HTTPBearer(auto_error=False, description="ADMIN_TOKEN or an administrator's own token."))
    return APIRouter(
        prefix=f"{PREFIX}/{resource}",
        tags=[tag],
        route_class=AdminRoute,
        dependencies=[documented],
    )


def services_of(request: Request) -> AdminServices:
    return cast(AdminServices, request.app.state.container)


def actor_of(request: Request) -> Actor:
    return cast(Actor, request.state.actor)


Page = Annotated[int, Query(ge=1, le=200)]
Cursor = Annotated[str | None, Query(max_length=1_200, description="`next_cursor` of the page before.")]
Search = Annotated[
    str | None, Query(max_length=200, description="Looked for anywhere in names and ids.", examples=["ada"])
]
Status = Annotated[str | None, Query(max_length=50, examples=["active"])]
Oid = Annotated[str | None, Query(max_length=200)]
ModelName = Annotated[str | None, Query(max_length=200)]


def list_query(
    limit: Page = 50,
    cursor: Cursor = None,
    search: Search = None,
    status: Status = None,
    user_oid: Oid = None,
    model: ModelName = None,
) -> ListQuery:
    return ListQuery(limit, cursor, search, status, user_oid, model)


def user_query(
    limit: Page = 50,
    cursor: Cursor = None,
    search: Search = None,
    status: Annotated[PaymentStatus | None, Query(description="The payment status.")] = None,
    payment_status: Annotated[PaymentStatus | None, Query(description="The same.")] = None,
    user_oid: Oid = None,
    expires_before: Annotated[Day | None, Query(description="Whose last paid day lies before this one.")] = None,
    sort: Annotated[
        str | None, Query(max_length=50, description="`created_at`, `user_oid` or `payment_valid_until`; `-` turns it.")
    ] = None,
) -> ListQuery:
    return ListQuery(
        limit,
        cursor,
        search,
        status,
        user_oid,
        payment_status=payment_status,
        paid_before=expires_before,
        sort=sort,
    )


def key_query(
    limit: Page = 50,
    cursor: Cursor = None,
    search: Search = None,
    status: Annotated[Literal["active", "expired", "revoked"] | None, Query()] = None,
    user_oid: Oid = None,
    model: Annotated[str | None, Query(max_length=200, description="Named in `allowed_models`.")] = None,
    payment_status: Annotated[PaymentStatus | None, Query(description="Of the owner.")] = None,
    expires_before: Annotated[Moment | None, Query()] = None,
    label: Annotated[
        list[str] | None,
        Query(
            max_length=20, description="`name` or `name=value`; repeat for keys that have all.", examples=[["team=ops"]]
        ),
    ] = None,
    sort: Annotated[
        str | None,
        Query(max_length=50, description="`created_at`, `name`, `expires_at` or `last_used_at`; `-` turns it."),
    ] = None,
) -> ListQuery:
    return ListQuery(
        limit,
        cursor,
        search,
        status,
        user_oid,
        model,
        payment_status,
        ends_before=expires_before,
        labels=tuple(_label(each) for each in label or ()),
        sort=sort,
    )


def _label(text: str) -> tuple[str, str | None]:
    name, equals, value = text.partition("=")
    return name, value if equals else None


@dataclass(frozen=True, slots=True)
class Version:
    """The version of the object a route speaks of: what `If-Match` asks for, and what `ETag` tells."""

    expected: Expected
    _response: Response

    def tell(self, spec: object) -> None:
        self._response.headers["etag"] = f'"{version_of(spec)}"'


def version(
    response: Response,
    if_match: Annotated[
        str | None, Header(max_length=2_000, description="The `ETag` that was read: refuse if it has changed since.")
    ] = None,
) -> Version:
    if if_match is None:
        return Version(ANY_VERSION, response)
    tags = [tag.strip().removeprefix("W/") for tag in if_match.split(",")]
    if not all(tag == "*" or _TAG.fullmatch(tag) for tag in tags):
        raise InvalidRequest("'If-Match' holds entity tags, each in quotes, or *.", param="If-Match")
    return Version(ANY_VERSION if "*" in tags else frozenset(tag.strip('"') for tag in tags), response)


_TAG: Final = re.compile(r'"[!#-~]*"')

Services = Annotated[AdminServices, Depends(services_of)]
Caller = Annotated[Actor, Depends(actor_of)]
Listing = Annotated[ListQuery, Depends(list_query)]
UserListing = Annotated[ListQuery, Depends(user_query)]
KeyListing = Annotated[ListQuery, Depends(key_query)]
Versioned = Annotated[Version, Depends(version)]
Force = Annotated[bool, Query(description="Also when something uses it.")]


def require_budgets_only(actor: Actor, named: set[str]) -> None:
    """Whoever may only bill may change an object's budgets and nothing else of it."""
    if not actor.may(Right.CONFIGURE) and not named <= {"budgets"}:
        raise Forbidden("This role may change nothing here but 'budgets'.")


async def _once(
    services: AdminServices, actor: Actor, request: Request, handle: Callable[[Request], Coroutine[Any, Any, Response]]
) -> Response:
    """The route's answer; that of the first time, where the same `Idempotency-Key` says that this is a repeat."""
    keys = request.headers.getlist(HEADER)
    if request.method != "POST" or not keys:
        return await handle(request)
    if len(keys) > 1:
        raise InvalidRequest(f"The header '{HEADER}' was sent more than once.", param=HEADER)
    answered: list[Response] = []

    async def work() -> Answer:
        response = await handle(request)
        answered.append(response)
        return Answer(response.status_code, bytes(response.body).decode(), response.headers.get("etag"))

    url = request.url
    asked = b"\n".join((url.path.encode(), url.query.encode(), await request.body()))
    answer = await services.repeats.once(actor.key, keys[0], asked, work)
    if not answer.is_repeat:
        return answered[0]
    headers = {"idempotency-replayed": "true"}
    if answer.etag is not None:
        headers["etag"] = answer.etag
    return Response(answer.body or None, answer.status, headers, media_type="application/json")


async def _identified(request: Request, services: AdminServices) -> Actor:
    """By the session that `AdminSessionMiddleware` has found (and only looks for without this header), or by a token."""
    session = request.scope.get("state", {}).get("session")
    if session is not None:
        return cast(Session, session).actor
    given = request.headers.getlist("authorization")
    if len(given) > 1:
        raise AmbiguousCredentials
    address = request.client.host if request.client else None
    return await services.admin_access.identify(given[0] if given else None, address=address)


def _require_readable(request: Request) -> None:
    """A body must call itself JSON, and nothing in the URL may hold what no text of ours holds."""
    if any("\x00" in str(value) for value in request.path_params.values()):
        raise NotFound
    for name, value in request.query_params.multi_items():
        if "\x00" in name or "\x00" in value:
            raise InvalidRequest("The query holds a NUL character.", param=name.replace("\x00", "")[:100])
    has_body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if has_body and (media != "application/json" or encoding != "identity"):
        raise UnsupportedMediaType


async def _with_body(request: Request, timeout_s: float) -> Request:
    """The request with its body read, up to a cap and within a deadline, so that both are refused in our own words."""
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for part in request.stream():
                body += part
                if len(body) > ADMIN_BODY_BYTES:
                    raise PayloadTooLarge(ADMIN_BODY_BYTES)
    except (TimeoutError, ClientDisconnect):
        raise RequestTimeout from None
    if body:
        _require_one_reading(bytes(body))
    message: Message = {"type": "http.request", "body": bytes(body), "more_body": False}

    async def receive() -> Message:
        return message

    return Request(request.scope, receive)


def _require_one_reading(body: bytes) -> None:
    """Refuse what two readers of JSON could understand differently, as the data plane does: other encodings, a member named twice, NaN.

    Raises: InvalidJson.
    """
    try:
        json.loads(body.decode(), object_pairs_hook=_each_once, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise InvalidJson from None


def _each_once(members: list[tuple[str, object]]) -> dict[str, object]:
    if len(named := dict(members)) != len(members):
        raise InvalidJson("The request body names a member twice.")
    return named


def _no_number(name: str) -> object:
    raise ValueError(name)


async def _audit_refusal(services: AdminServices, actor: Actor, what: str) -> None:
    entry = AuditEntry(services.clock.now(), actor, "access.refused", "route", what)
    await services.audit.append_unless_flooded(entry, at_most=AUDITED_REFUSALS, within=timedelta(minutes=1))
