"""A call from the dashboard's playground: made as one of the keys, by whoever may configure it, without the key's secret.

From here on it is a call like any other: the same limits, budgets, routing, record. That an administrator made it is written to the
trail. With JavaScript the answer is passed on as it comes; a plain form gets it whole, in the page.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from app.admin.forms import Form
from app.admin.pages.playground import page_of
from app.admin.rights import PAGE_RIGHTS, PREFIX
from app.admin.visit import Visit, guarded
from app.dialects.openai_chat import OpenAIChat
from app.domain.call import Meter
from app.domain.ids import time_of
from app.exceptions import GatewayError, InvalidJson, InvalidRequest, NotFound
from app.middleware.exchange import Exchange
from app.routers.streaming import CallResponse
from app.storage.management_ports import AuditEntry

PATH = "/playground/call"
DIALECT = OpenAIChat()


class Wanted(BaseModel):
    """As which key, and the body as an application would send it."""

    model_config = ConfigDict(extra="forbid")

    key_id: str = Field(max_length=100)
    body: dict[str, Any]


class Answered(Response):
    """The answer of one call, sent as it comes."""

    def __init__(self, visit: Visit, key_id: str, body: bytes) -> None:
        self._visit = visit
        self._key_id = key_id
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services, request_id = self._visit.services, str(scope["state"]["request_id"])
        exchange = Exchange(scope, receive, send, request_id)
        started_s = services.clock.monotonic()
        try:
            identity = await services.keys_by_id.identity_of_key_id(self._key_id)
            if identity is None:
                raise NotFound("There is no such key.")
            services.identities.require_may_act(identity, address=self._visit.actor.address)
            call = DIALECT.read(self._body)
            meter = Meter(request_id, None, identity, call, created_at=time_of(request_id), started_s=started_s)
            made = {"key_id": self._key_id, "model": call.model}
            await services.audit.append(
                AuditEntry(self._visit.now, self._visit.actor, "playground.call", "call", request_id, after=made)
            )
            await CallResponse(services.chat, DIALECT, services.catalog.current, meter).send(exchange)
        except GatewayError as error:
            await exchange.send_error(error, DIALECT.error_body)


def add_playground(app: FastAPI) -> None:
    route = Route(
        PREFIX + PATH, guarded(make_call, PAGE_RIGHTS[f"POST {PATH}"]), methods=["POST"], include_in_schema=False
    )
    app.router.routes.append(route)


async def make_call(visit: Visit) -> Response:
    if visit.request.headers.get("content-type", "").startswith("application/json"):
        return await _streamed(visit)
    return await _in_page(visit)


async def _streamed(visit: Visit) -> Response:
    try:
        wanted = Wanted.model_validate_json(await visit.request.body())
    except ValueError:
        return _Refused(InvalidJson("The request is no call of the playground."))
    return Answered(visit, wanted.key_id, json.dumps(wanted.body).encode())


class _Refused(Response):
    def __init__(self, error: GatewayError) -> None:
        body = DIALECT.error_body(error, "")
        super().__init__(body, status_code=error.status, media_type="application/json")


async def _in_page(visit: Visit) -> Response:
    """The same for a form without JavaScript: one question, one whole answer."""
    form = await visit.form()
    sent = _Kept()
    scope: Scope = dict(visit.request.scope)
    await Answered(visit, form.text("key_id"), json.dumps(_body(form)).encode())(scope, _never, sent)
    return await page_of(visit, form=form, status=sent.status, answer=sent.text())


class _Kept:
    """Keeps an answer instead of sending it."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.body += message.get("body", b"")

    def text(self) -> str:
        told = json.loads(self.body)
        if "error" in told:
            return f"{told['error']['code']}: {told['error']['message']}"
        return str(told["choices"][0]["message"].get("content") or "")


async def _never() -> Message:
    """The form's sender is waiting; whether he left is for the server to see."""
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


def _body(form: Form) -> dict[str, object]:
    system, prompt = form.text("system"), form.text("prompt")
    messages = [{"role": "system", "content": system}] if system else []
    body: dict[str, object] = {
        "model": form.text("model"),
        "messages": [*messages, {"role": "user", "content": prompt}],
    }
    for name in ("max_tokens", "temperature"):
        value = form.number(name)
        if isinstance(value, str):
            raise InvalidRequest(f"'{name}' is no number.", param=name)
        if value is not None:
            body[name] = int(value) if name == "max_tokens" else value
    return body
