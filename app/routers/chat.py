"""The data plane: what applications call. Plain ASGI handlers; `data_plane_openapi` shows them in `/docs`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from functools import partial
from typing import NoReturn

import msgspec

from app.container import Container
from app.dialects.base import Dialect
from app.dialects.chat_from_input import ChatFromInput
from app.dialects.completions import Completions
from app.dialects.embeddings import Embeddings
from app.dialects.envelope import with_model
from app.dialects.images import Images
from app.dialects.messages import Messages
from app.dialects.moderations import Moderations
from app.dialects.openai_errors import error_body
from app.dialects.rerank import Rerank
from app.dialects.responses import Responses
from app.dialects.speech import Speech
from app.dialects.transcriptions import Transcriptions, Translations
from app.domain.call import Call, Meter, Outcome
from app.domain.catalog import Model
from app.domain.identity import Identity
from app.domain.ids import time_of, unix_ms_of
from app.domain.record import CallRecord
from app.exceptions import (
    CallerError,
    DependencyUnavailable,
    Forbidden,
    GatewayError,
    ModelNotAllowed,
    ModelNotFound,
    NotFound,
)
from app.middleware.exchange import Exchange
from app.middleware.route import Route
from app.models.me_schemas import MeView
from app.models.usage_schemas import ExplainedCallView
from app.routers.call_headers import call_headers
from app.routers.streaming import CallResponse
from app.services.call_repeats import MAX_ANSWER_BYTES, KeptAnswer
from app.telemetry import begins_trace

JSON = [(b"content-type", b"application/json")]
OWN_HEADERS = frozenset({b"x-request-id", b"request-id", b"content-length"})
"""Of a kept answer: those that are the repeat's own."""
RECORD_WAIT_S = 2.0
"""A record reaches the ledger some 100 ms after its call; whoever asks sooner is made to wait rather than told "not found"."""
RECORD_POLL_S = 0.05

MESSAGES = Messages()
OF_AZURE: tuple[Dialect, ...] = (ChatFromInput(), Completions(), Embeddings(), Images(), Speech())
DIALECTS: tuple[Dialect, ...] = (*OF_AZURE, Responses(), MESSAGES, Moderations(), Rerank())
OF_FORMS: tuple[Transcriptions, ...] = (Transcriptions(), Translations())
OF_DEPLOYMENTS: Mapping[str, Dialect] = {dialect.upstream_path: dialect for dialect in OF_AZURE}
"""What Azure's clients may ask of a deployment, by the end of the path."""

_encode = msgspec.json.Encoder().encode


class DataPlane:
    def __init__(self, container: Container) -> None:
        self._container = container

    @property
    def routes(self) -> Mapping[str, Route]:
        """By path without its `/v1`."""
        errors = error_body
        calls = {dialect.upstream_path: self._calling(dialect) for dialect in DIALECTS}
        calls |= {dialect.upstream_path: self._calling_with_form(dialect) for dialect in OF_FORMS}
        return {
            **calls,
            **{f"/openai/v1{path}": route for path, route in calls.items()},
            "/messages/count_tokens": Route({"POST": self.count_tokens}, MESSAGES.error_body),
            "/me": Route({"GET": self.me, "HEAD": self.me}, errors),
            "/models": Route({"GET": self.models, "HEAD": self.models}, errors),
            "/": Route({"GET": self.root, "HEAD": self.root}, errors),
        }

    @property
    def prefixes(self) -> tuple[Route, ...]:
        errors = error_body
        return (
            Route({"POST": self.deployment}, errors, prefix="/openai/deployments/"),
            Route({"GET": self.model, "HEAD": self.model}, errors, prefix="/models/"),
            Route({"GET": self.usage, "HEAD": self.usage}, errors, prefix="/usage/"),
        )

    def _calling(self, dialect: Dialect) -> Route:
        return Route({"POST": partial(self._call, dialect)}, dialect.error_body)

    def _calling_with_form(self, dialect: Transcriptions) -> Route:
        async def call(exchange: Exchange) -> None:
            started_s = self._container.clock.monotonic()
            identity = await self._caller(exchange, dialect, started_s)
            try:
                body = await self._body(exchange, is_form=True)
                read = dialect.read_form(body, exchange.headers[b"content-type"])
            except CallerError as error:
                await self._refused(_meter(exchange, identity, _unread(dialect, b""), started_s), error)
            await self._made(exchange, dialect, _meter(exchange, identity, read, started_s))

        return Route({"POST": call}, dialect.error_body)

    async def deployment(self, exchange: Exchange) -> None:
        """Azure's clients: the path names the model, whatever the body says."""
        for path, dialect in OF_DEPLOYMENTS.items():
            if exchange.argument.endswith(path) and exchange.argument != path:
                await self._call(dialect, exchange, model=exchange.argument.removesuffix(path))
                return
            if exchange.argument == path:
                break
        raise NotFound(f"There is no such operation: {exchange.path[:200]}")

    async def count_tokens(self, exchange: Exchange) -> None:
        """How many tokens a request of Messages would send: counted here, so it costs nothing and asks no upstream."""
        identity = await self._identify(exchange)
        call = MESSAGES.read_to_count(await self._body(exchange))
        model = self._container.catalog.current.model_for(identity, call.model)
        tokens = await self._container.chat.estimation.prompt_tokens(call, model)
        await exchange.send(200, JSON, _encode({"input_tokens": tokens}))

    async def models(self, exchange: Exchange) -> None:
        identity = await self._identify(exchange)
        visible = self._container.catalog.current.visible_to(identity)
        views = [_model_view(name, model) for name, model in visible]
        await exchange.send(200, JSON, _encode({"object": "list", "data": views}))

    async def model(self, exchange: Exchange) -> None:
        identity, asked = await self._identify(exchange), exchange.argument
        try:
            model = self._container.catalog.current.model_for(identity, asked)
        except ModelNotAllowed:
            raise ModelNotFound(asked) from None
        await exchange.send(
            200, JSON, _encode(_model_view(model.name if identity.may_use(model.name) else asked, model))
        )

    async def me(self, exchange: Exchange) -> None:
        """Where the caller stands. True at this moment only, so nobody may keep it."""
        standing = await self._container.standings.of(await self._identify(exchange))
        headers = [*JSON, (b"cache-control", b"no-store")]
        await exchange.send(200, headers, MeView.of(standing).model_dump_json().encode())

    async def usage(self, exchange: Exchange) -> None:
        """The caller's own record of one request. Somebody else's is not found, like one that never was."""
        identity = await self._identify(exchange)
        record = await self._record(exchange.argument)
        if record is None or not _is_own(record, identity):
            raise NotFound("There is no record of this request.")
        content = await self._container.reports.content(record.request_id)
        view = ExplainedCallView.explained(record, content)
        await exchange.send(200, JSON, view.model_dump_json().encode())

    async def root(self, exchange: Exchange) -> None:
        await exchange.send(200, JSON, b'{"name":"Antigravity LLM Gateway","docs":"/docs","health":"/health"}')

    async def _call(self, dialect: Dialect, exchange: Exchange, *, model: str | None = None) -> None:
        """One call: who, what, then `services/chat.py`. `model`, where given, stands in the body's place."""
        container = self._container
        started_s = container.clock.monotonic()
        identity = await self._caller(exchange, dialect, started_s)
        body = b""
        try:
            body = await self._body(exchange)
            if model is not None:
                body = with_model(body, model)
            call = dialect.read(body)
            if dialect.passes_headers:
                call = msgspec.structs.replace(call, headers=exchange.passed(dialect.passes_headers))
        except CallerError as error:
            await self._refused(_meter(exchange, identity, _unread(dialect, body), started_s), error)
        await self._made(exchange, dialect, _meter(exchange, identity, call, started_s))

    async def _made(self, exchange: Exchange, dialect: Dialect, meter: Meter) -> None:
        response = CallResponse(self._container.chat, dialect, self._container.catalog.current, meter)
        meter.identify = lambda: self._container.identities.of(exchange.credential(), address=exchange.address)
        key = exchange.headers.get(b"idempotency-key")
        try:
            if key is None:
                await response.send(exchange)
            else:
                await self._made_once(exchange, response, meter, key.decode("latin-1"))
        except GatewayError:
            exchange.call_headers = call_headers(meter, is_over=True)
            raise

    async def _made_once(self, exchange: Exchange, response: CallResponse, meter: Meter, key: str) -> None:
        """Make a call that its caller may send again, or give the answer that it had."""
        repeats = self._container.call_repeats
        claim = await repeats.begun(meter.identity, key, _told(exchange, meter))
        if isinstance(claim, KeptAnswer):
            headers = [(name, value) for name, value in claim.headers if name not in OWN_HEADERS]
            await exchange.send(claim.status, [*headers, (b"idempotency-replayed", b"true")], claim.body or b"")
            return
        recording = exchange.recorded(MAX_ANSWER_BYTES)
        try:
            await response.send(exchange)
        finally:
            if meter.outcome is Outcome.OK and recording.is_whole:
                await repeats.finish(claim, KeptAnswer(recording.status, recording.headers, recording.body))
            else:
                await repeats.forget(claim)

    def _body(self, exchange: Exchange, *, is_form: bool = False) -> Awaitable[bytes]:
        settings = self._container.settings
        return exchange.read_body(
            max_bytes=settings.max_request_bytes, timeout_s=settings.request_body_timeout_seconds, is_form=is_form
        )

    async def _identify(self, exchange: Exchange) -> Identity:
        exchange.read_headers()
        if not self._container.catalog.is_loaded:
            raise DependencyUnavailable("configuration")  # no model is known yet: that is no reason to call one unknown
        return await self._container.identities.of(exchange.credential(), address=exchange.address)

    async def _caller(self, exchange: Exchange, dialect: Dialect, started_s: float) -> Identity:
        """Who makes a call. One who is known and may not call now leaves a record of it, too."""
        try:
            return await self._identify(exchange)
        except Forbidden as error:
            if isinstance(error.refused_to, Identity):
                await self._refused(_meter(exchange, error.refused_to, _unread(dialect, b""), started_s), error)
            raise

    async def _refused(self, meter: Meter, error: CallerError) -> NoReturn:
        """Leave the record of a call that was refused before it was one. Raises: the error."""
        async with self._container.usage_log.logged(meter):
            raise error
        raise AssertionError("the context does not swallow it")

    async def _record(self, request_id: str) -> CallRecord | None:
        try:
            age_s = self._container.clock.now().timestamp() - unix_ms_of(request_id) / 1000
        except ValueError:
            return None  # no id that this gateway ever gave
        deadline_s = self._container.clock.monotonic() + (RECORD_WAIT_S if 0 <= age_s < 3600 else 0)
        while True:
            record = await self._container.reports.record(request_id)
            if record is not None or self._container.clock.monotonic() >= deadline_s:
                return record
            await asyncio.sleep(RECORD_POLL_S)


def _meter(exchange: Exchange, identity: Identity, call: Call, started_s: float) -> Meter:
    return Meter(
        request_id=exchange.request_id,
        client_request_id=exchange.client_request_id,
        identity=identity,
        call=call,
        created_at=time_of(exchange.request_id),
        started_s=started_s,
        trace=begins_trace(exchange.headers.get(b"traceparent")),
    )


def _told(exchange: Exchange, meter: Meter) -> bytes:
    """What makes two requests the same. A form's boundary is drawn anew each time it is sent, so of forms only the path counts."""
    is_form = exchange.headers.get(b"content-type", b"").lower().startswith(b"multipart/")
    return exchange.path.encode("utf-8", "surrogatepass") + b"\n" + (b"" if is_form else meter.call.body)


def _unread(dialect: Dialect, body: bytes) -> Call:
    """A request that could not be read as a call: its record names the model, if it names one, and shows the body."""
    try:
        model = _named_model(body).model
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        model = ""
    return Call(
        dialect=dialect.name,
        model=model,
        is_stream=False,
        wants_usage=False,
        max_tokens=None,
        choices=1,
        prompt_bytes=0,
        images=0,
        body=body,
        fields={},
    )


class _Named(msgspec.Struct):
    model: str = ""


_named_model = msgspec.json.Decoder(_Named).decode


def _is_own(record: CallRecord, identity: Identity) -> bool:
    return record.user_oid == identity.user.oid


def _model_view(name: str, model: Model) -> dict[str, object]:
    return {"id": name, "object": "model", "created": model.created_at_s, "owned_by": "antigravity"}
