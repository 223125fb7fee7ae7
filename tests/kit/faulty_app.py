"""The gateway with bugs, for tests of what a bug does: `uvicorn tests.kit.faulty_app:app`. Where one bites is said by the model's name.

`bug-early-…` before anything was reserved · `bug-call-…` while the reservation and the slot are held · `bug-stream-…` after two events ·
`/health?bug` in a middleware, `/admin/api/users/bug…` in a handler · `bug-blocks-…` holds the event loop for five seconds.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from msgspec.structs import replace
from starlette.types import Receive, Scope, Send

from app import main
from app.dialects.base import Dialect
from app.domain.call import Meter
from app.domain.catalog import Catalog, Model
from app.middleware.admin_session import AdminSessionMiddleware
from app.providers.base import Answer
from app.services.estimation import Estimation
from app.services.failover import Failover
from app.services.manage_users import UserCommands
from app.storage.management_ports import UserRow

BLOCKED_S = 5.0

_fitted, _opened = Estimation.fitted, Failover.opened
_session, _get = AdminSessionMiddleware.__call__, UserCommands.get


async def fitted(self: Estimation, meter: Meter, model: Model, catalog: Catalog) -> Model:
    if model.name.startswith("bug-early"):
        raise ZeroDivisionError("a bug with a secret in its words: sk-canary-in-a-traceback")
    return await _fitted(self, meter, model, catalog)


@asynccontextmanager
async def opened(
    self: Failover, dialect: Dialect, model: Model, meter: Meter, catalog: Catalog
) -> AsyncIterator[Answer]:
    if model.name.startswith("bug-call"):
        raise KeyError("sk-canary-in-a-traceback")
    if model.name.startswith("bug-blocks"):
        time.sleep(BLOCKED_S)  # noqa: ASYNC251 - the bug
    async with _opened(self, dialect, model, meter, catalog) as answer:
        if model.name.startswith("bug-stream") and answer.chunks is not None:
            answer = replace(answer, chunks=_breaking(answer.chunks))
        yield answer


async def _breaking(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    for _ in range(2):
        yield await anext(chunks)
    raise AttributeError("sk-canary-in-a-traceback")


async def session(self: AdminSessionMiddleware, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http" and scope["query_string"] == b"bug" and scope["path"] == "/health":
        raise IndexError("sk-canary-in-a-traceback")
    await _session(self, scope, receive, send)


async def get(self: UserCommands, oid: str) -> UserRow:
    if oid.startswith("bug"):
        raise RuntimeError("sk-canary-in-a-traceback")
    return await _get(self, oid)


Estimation.fitted = fitted  # type: ignore[method-assign]
Failover.opened = opened  # type: ignore[method-assign, assignment] # a context of another kind
AdminSessionMiddleware.__call__ = session  # type: ignore[method-assign]
UserCommands.get = get  # type: ignore[method-assign]


def __getattr__(name: str) -> Any:
    return getattr(main, name)
