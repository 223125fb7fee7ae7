"""`GET /metrics`, for Prometheus. With METRICS_TOKEN set only for whoever carries it; the shipped nginx never publishes it."""

from __future__ import annotations

import asyncio
import hmac

from fastapi import APIRouter, Request, Response

from app.container import Container
from app.exceptions import InvalidApiKey
from app.exposition import CONTENT_TYPE, page
from app.telemetry import metrics as registry

router = APIRouter(tags=["Health"])


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, 401: {"description": "METRICS_TOKEN is set, and not what came."}},
)
async def metrics(request: Request) -> Response:
    """What this gateway has counted: this process, and the other workers of its machine."""
    container: Container = request.app.state.container
    token = container.settings.metrics_token.get_secret_value()
    if token and not _carries(request, token):
        raise InvalidApiKey
    # In a thread: it is some ten thousand lines at worst, and calls go on meanwhile.
    shown = await asyncio.to_thread(page, registry, container.siblings)
    return Response(shown, media_type=None, headers={"content-type": CONTENT_TYPE, "cache-control": "no-store"})


def _carries(request: Request, token: str) -> bool:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.encode(), token.encode())
