"""One request to a page: who asks, what for, and the ways to answer. Every page is a function of a `Visit`.

A page's right is looked up when the page is defined and checked before it runs. Whatever goes wrong is answered by a page too:
in the same frame, with the way back.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import date, datetime, tzinfo
from typing import Final, Protocol, cast
from urllib.parse import urlencode

from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from app.admin.forms import Form
from app.admin.looks import render
from app.admin.rights import PAGE_RIGHTS, PREFIX
from app.container import Container
from app.domain.access import Actor, Right
from app.exceptions import (
    Forbidden,
    GatewayError,
    InternalError,
    InvalidApiKey,
    InvalidRequest,
    NotFound,
    RequestTimeout,
)
from app.storage.management_ports import AuditEntry, ListQuery
from app.telemetry import logger

MAX_QUERY_LENGTH: Final = 600
FORM_TIMEOUT_S: Final = 30.0
THEME_COOKIE: Final = "ag_theme"
THEMES: Final = ("light", "dark")


class SignedIn(Protocol):
    """The session, as the middleware in front of /admin leaves it in the request's state."""

    @property
    def id(self) -> str: ...

    @property
    def csrf_token(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Visit:
    request: Request
    services: Container
    actor: Actor
    session_id: str
    csrf_token: str

    @property
    def now(self) -> datetime:
        return self.services.clock.now()

    @property
    def zone(self) -> tzinfo:
        return self.services.settings.budget_zone

    @property
    def today(self) -> date:
        return self.now.astimezone(self.zone).date()

    def may(self, right: str) -> bool:
        return self.actor.may(Right(right))

    def path(self, name: str) -> str:
        """A parameter of the path."""
        return cast(str, self.request.path_params[name])

    def query(self, name: str) -> str | None:
        """A parameter of the query, trimmed; None where it is absent or empty. Raises: InvalidRequest."""
        value = self.request.query_params.get(name, "").strip()
        if "\x00" in value or len(value) > MAX_QUERY_LENGTH:
            raise InvalidRequest(f"'{name}' cannot be used.", param=name)
        return value or None

    def required(self, name: str) -> str:
        value = self.query(name)
        if value is None:
            raise NotFound
        return value

    def listing(self, *, limit: int = 50) -> ListQuery:
        return ListQuery(
            limit=limit,
            cursor=self.query("cursor"),
            search=self.query("q"),
            status=self.query("status"),
            user_oid=self.query("user"),
            model=self.query("model"),
            labels=tuple(_label(each) for each in [self.query("label")] if each),
            sort=self.query("sort"),
        )

    async def form(self) -> Form:
        """What was sent, URL-encoded. Raises: RequestTimeout."""
        try:
            async with asyncio.timeout(FORM_TIMEOUT_S):
                return Form.of(await self.request.form(max_files=0, max_fields=2000))
        except (TimeoutError, ClientDisconnect):
            raise RequestTimeout from None

    # ── Answers ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def page(self, template: str, *, status: int = 200, **context: object) -> HTMLResponse:
        return HTMLResponse(render(template, visit=self, **context), status_code=status)

    def see_other(self, path: str, *, done: str | None = None, **query: str) -> RedirectResponse:
        """To a page of ours after a form was carried out; `done` names the message that it then shows."""
        named = {**query, **({"done": done} if done else {})}
        return RedirectResponse(f"{PREFIX}{path}{'?' + urlencode(named) if named else ''}", status_code=303)

    def trouble(self, error: GatewayError) -> HTMLResponse:
        """The page that tells of an error."""
        body = render("trouble.html", visit=self, error=error, request_id=self.request.scope["state"].get("request_id"))
        wait_s = error.retry_after_s
        return HTMLResponse(body, error.status, {"retry-after": str(math.ceil(wait_s))} if wait_s else None)

    # ── The frame ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def theme(self) -> str | None:
        """What the reader chose; None: as the system says."""
        chosen = self.request.cookies.get(THEME_COOKIE)
        return chosen if chosen in THEMES else None

    @property
    def place(self) -> str:
        """The part of the dashboard this page belongs to, for the menu."""
        inner = self.request.url.path.removeprefix(PREFIX).strip("/").partition("/")[0]
        return {"user": "users", "model": "models", "endpoints": "models"}.get(inner, inner or "overview")

    def here(self, **changes: str | None) -> str:
        """This page's address with some parameters of its query changed; None takes one away."""
        kept = [
            (name, value) for name, value in self.request.query_params.multi_items() if name not in (*changes, "done")
        ]
        named = [(name, value) for name, value in changes.items() if value is not None]
        query = urlencode([*kept, *named])
        return f"{self.request.url.path}{'?' + query if query else ''}"


def _label(text: str) -> tuple[str, str | None]:
    name, equals, value = text.partition("=")
    return name.strip(), value.strip() if equals else None


Handler = Callable[[Visit], Awaitable[Response]]


class Family:
    """The pages of one family. Each is listed in `PAGE_RIGHTS`, or this raises KeyError at import."""

    def __init__(self) -> None:
        self.routes: list[Route] = []

    def get(self, path: str) -> Callable[[Handler], Handler]:
        return self._page("GET", path)

    def post(self, path: str) -> Callable[[Handler], Handler]:
        return self._page("POST", path)

    def _page(self, method: str, path: str) -> Callable[[Handler], Handler]:
        right = PAGE_RIGHTS[f"{method} {path}"]

        def add(handler: Handler) -> Handler:
            self.routes.append(Route(PREFIX + path, guarded(handler, right), methods=[method], include_in_schema=False))
            return handler

        return add


def guarded(handler: Handler, right: Right) -> Callable[[Request], Awaitable[Response]]:
    """The page, for those who may see it."""

    async def answer(request: Request) -> Response:
        visit = visit_of(request)
        try:
            if not visit.actor.may(right):
                raise Forbidden("Your role may not do this.")
            return await handler(visit)
        except Forbidden as error:
            what = f"{request.method} {request.url.path}"[:500]
            await visit.services.audit.append(AuditEntry(visit.now, visit.actor, "access.refused", "page", what))
            return visit.trouble(error)
        except GatewayError as error:
            return visit.trouble(error)
        except Exception:  # noqa: BLE001 - the error boundary of pages: whoever reads gets a page, the log gets the rest
            request_id = request.scope["state"].get("request_id")
            logger.exception("unexpected_error", request_id=request_id, path=request.url.path)
            return visit.trouble(InternalError())

    return answer


def visit_of(request: Request) -> Visit:
    """Raises: InvalidApiKey when nobody is signed in."""
    state = request.scope.get("state", {})
    actor, session = state.get("actor"), cast(SignedIn | None, state.get("session"))
    if not isinstance(actor, Actor) or session is None:
        raise InvalidApiKey
    return Visit(request, cast(Container, request.app.state.container), actor, session.id, session.csrf_token)


class _PagePath(Convertor[str]):
    """Any path below /admin that is none of the API's, whose errors are JSON."""

    regex = "(?!api(?:/|$)).*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("page", _PagePath())


async def no_such_page(visit: Visit) -> Response:
    raise NotFound("There is no such page.")


NOWHERE: Final = Route(
    f"{PREFIX}/{{rest:page}}", guarded(no_such_page, Right.READ), methods=["GET", "POST"], include_in_schema=False
)
"""The last route: whatever is no page."""
