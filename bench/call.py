"""A whole call in one process: from the bytes of its request to those of its answer, without the kernel and without the stores.

The server's connection, the middleware, the data plane, every service and the upstream's connection are the gateway's own. Redis's scripts
answer at the next turn of the loop, with what they answer where there is room; so does the upstream. What is left is what Python does for
a call, and that hardly depends on what else the machine does: for counting instructions, run it under callgrind.
The floor is uvicorn with an application that answers with the same bytes.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from datetime import UTC
from random import random
from types import SimpleNamespace
from typing import Any, cast

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from app.bench.upstream import UNARY
from app.bench.wire import request
from app.clock import SystemClock
from app.container import Container
from app.domain.catalog import Catalog, Endpoint, Model, ProviderKind
from app.domain.egress import LAPTOP
from app.domain.identity import Identity, LogContent
from app.domain.retry_budget import RetryBudget
from app.doorway import Doorway
from app.drain import Departure
from app.garbage import seldom_collected
from app.middleware.connection import Connection
from app.middleware.gateway import GatewayMiddleware
from app.providers.http1 import Connection as UpstreamConnection
from app.providers.relay import OpenAIRelay
from app.providers.transport import Transport
from app.redis_client import RedisClient, Script
from app.routers.chat import DataPlane
from app.services.admission import Admission
from app.services.api_key import new_key
from app.services.chat import Chat
from app.services.endpoint_limits import EndpointLimits
from app.services.estimation import Estimation, NoTokenizer
from app.services.expectations import Expectations
from app.services.failover import Failover
from app.services.identities import Identities
from app.services.load_balancer import LoadBalancer
from app.services.overload import Overload
from app.services.recovery import RecoveringCounters
from app.services.shadow import Shadows
from app.services.usage_log import UsageLog
from app.services.waiting_room import WaitingRoom
from app.storage.redis_counters import RedisCounters, RedisUsageSink
from app.storage.redis_endpoint_claims import RedisEndpointClaims
from bench.admission import IDENTITY, PRICE, Ledger
from bench.measure import Ratio, in_turns

CALLERS = 32
PEPPER = b"p" * 32
URL = "http://127.0.0.1:9/v1"
ENDPOINT = Endpoint("0192bbbb-0000-7000-8000-000000000002", "bench", ProviderKind.OPENAI, "bench", URL, "sk-upstream")
MODEL = Model("bench", endpoints=(ENDPOINT,), price=PRICE, max_output_tokens=4096)
ANSWER = UNARY.partition(b"\r\n\r\n")[2]


class _Redis:
    """Runs nothing, and answers as the scripts do where there is room."""

    greeting = None

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._settled = 0

    async def run(self, script: Script, keys: object, arguments: object) -> Any:
        answer = self._loop.create_future()
        self._loop.call_soon(answer.set_result, self._answer(script.name))
        return await answer

    def _answer(self, script: str) -> list[Any]:
        match script:
            case "admit":
                limits = [10**9, 61_000, 1, 10**12, 61_000, 294, 10**6, 0, 1]
                return [0, time.time_ns() // 1_000_000, 64, *limits, *[10**9, 10**6, 1_215_000] * 2]
            case "settle":
                self._settled += 1
                return [1, b"1700000000000-%d" % self._settled]
            case "epoch":
                return [b"e", 1, 2, b"", 1]
            case _:
                raise NotImplementedError(script)


class _Upstream(asyncio.Transport):
    """Answers whatever is written, at the loop's next turn."""

    def __init__(self, connection: UpstreamConnection) -> None:
        super().__init__()
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._pipe = os.pipe()  # nothing ever comes out of it, which the pool asks the kernel

    def write(self, data: object) -> None:
        self._loop.call_soon(self._connection.data_received, UNARY)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return SimpleNamespace(fileno=lambda: self._pipe[0])

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        for end in self._pipe:
            os.close(end)


class _Caller(asyncio.Transport):
    """A client's connection: calls again when it was answered."""

    def __init__(self, server: Callable[..., HttpToolsProtocol], config: Config, state: ServerState) -> None:
        super().__init__()
        self._answered = asyncio.Event()
        self._received = b""
        self._server = server(config, state, {})
        self._server.connection_made(self)

    async def call(self, asked: bytes, times: int) -> None:
        for _ in range(times):
            self._received = b""
            self._answered.clear()
            self._server.data_received(asked)
            await self._answered.wait()
            assert self._received.startswith(b"HTTP/1.1 200 OK\r\n"), self._received
        self._server.connection_lost(None)

    def write(self, data: object) -> None:
        self._received += cast(bytes, data)
        if self._received.endswith(ANSWER):
            self._answered.set()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return None

    def is_closing(self) -> bool:
        return False

    def close(self) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class _Keys:
    async def identity_of_key(self, digest: bytes) -> Identity:
        return IDENTITY


async def _nobody(*_: object) -> None: ...


def _gateway(redis: _Redis, transport: Transport) -> ASGIApp:
    """As `app.main` wires it, with what a call passes."""
    clock, catalog, client = SystemClock(), Catalog.of(1, [MODEL]), cast(RedisClient, redis)
    sink = RedisUsageSink(client)
    counters = RecoveringCounters(RedisCounters(client, quarantine_ms=0), sink=sink, ledger=Ledger(), clock=clock)
    usage_log = UsageLog(sink=sink, store=Ledger(), clock=clock, log_content=LogContent.METADATA, content_max_bytes=0)
    estimation, balancer = Estimation(NoTokenizer()), LoadBalancer(clock, chance=random)
    admission = Admission(
        counters=counters,
        clock=clock,
        conclude=usage_log.conclude,
        default_limits=(),
        zone=UTC,
        lease_s=60,
        estimation=estimation,
        expectations=Expectations(),
        catalog=lambda: catalog,
    )
    failover = Failover(
        providers={ProviderKind.OPENAI: OpenAIRelay(transport)},
        balancer=balancer,
        clock=clock,
        retries=RetryBudget(20),
        room=WaitingRoom(clock),
        limits=EndpointLimits(RedisEndpointClaims(client)),
        swap=admission.swapped,
    )
    identities = Identities(
        store=cast(Any, _Keys()),
        pepper=PEPPER,
        clock=clock,
        zone=UTC,
        on_expired=lambda _: None,
        until_stored=_nobody,
        create_user=_nobody,
    )
    overload = Overload(clock, chance=random, max_calls=10_000, max_connections=10_000)
    container = SimpleNamespace(
        chat=Chat(
            usage_log=usage_log,
            admission=admission,
            failover=failover,
            estimation=estimation,
            shadows=Shadows(clock=clock, chance=random),
        ),
        catalog=SimpleNamespace(current=catalog, is_loaded=True),
        clock=clock,
        identities=identities,
        overload=overload,
        admission=admission,
        settings=SimpleNamespace(max_request_bytes=10**7, request_body_timeout_seconds=30),
    )
    data_plane, doorway = DataPlane(cast(Container, container)), Doorway()
    departure = Departure(
        health=cast(Any, None), doorway=doorway, end_calls=lambda: 0, now_ms=clock.now_ms, delay_s=0, grace_s=0
    )
    return GatewayMiddleware(
        _bare,
        routes=data_plane.routes,
        prefixes=data_plane.prefixes,
        is_draining=lambda: False,
        departure=departure,
        overload=overload,
        doorway=doorway,
        now_ms=clock.now_ms,
    )


async def _bare(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the same bytes, and does nothing else."""
    await receive()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(ANSWER))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": ANSWER})


async def call(*, is_short: bool) -> Ratio:
    """`CALLERS` at once, each calling again when it was answered: three limits, and a hard budget of key and user."""
    each = 10 if is_short else 100
    transport = Transport(LAPTOP)
    upstreams = [UpstreamConnection() for _ in range(CALLERS)]
    for upstream in upstreams:
        upstream.connection_made(_Upstream(upstream))
        upstream.is_complete = upstream.is_reusable = True
        transport.give_back(transport.target(f"{URL}/chat/completions"), upstream)
    asked = request(host="gateway", key=new_key(PEPPER).secret, model=MODEL.name, is_stream=False, is_paced=False)

    async def called(app: ASGIApp, server: Callable[..., HttpToolsProtocol]) -> int:
        config = Config(app, lifespan="off", log_config=None, access_log=False, server_header=False)
        config.load()
        state = ServerState()
        await asyncio.gather(*(_Caller(server, config, state).call(asked, each) for _ in range(CALLERS)))
        return CALLERS * each

    gateway = _gateway(_Redis(), transport)
    with seldom_collected():
        cost, floor = await in_turns(lambda: called(gateway, Connection), lambda: called(_bare, HttpToolsProtocol))
    await transport.close()
    return Ratio("call: all that Python does for one", cost, "uvicorn and the same answer", floor)
