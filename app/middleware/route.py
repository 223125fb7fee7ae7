"""One path of the data plane: what answers each method, and the shape of its errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from app.exceptions import GatewayError
from app.middleware.exchange import Exchange

Handler = Callable[[Exchange], Awaitable[None]]
ErrorBody = Callable[[GatewayError, str], bytes]


@dataclass(frozen=True, slots=True)
class Route:
    handlers: Mapping[str, Handler]
    error_body: ErrorBody
    prefix: str = ""
    """Set where the rest of the path is an argument (`/models/` for `/models/{id}`)."""
