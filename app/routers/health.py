"""Health for people and for load balancers. Names no endpoint, needs no credential."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from app import __version__
from app.container import Container
from app.models.schemas_health import EndpointCounts, HealthView, LiveView

router = APIRouter(tags=["Health"])


@router.head("/health", include_in_schema=False)
@router.get("/health", response_model=HealthView, responses={503: {"model": HealthView, "description": "It is down."}})
async def health(request: Request) -> Response:
    """How the gateway and its parts are. 503 when it is down."""
    container: Container = request.app.state.container
    report = await container.health.report()
    view = HealthView(
        status=report.status,
        version=__version__,
        database="ok" if report.database_ok else "down",
        redis="ok" if report.redis_ok else "down",
        endpoints=EndpointCounts(healthy=report.healthy_endpoints, unhealthy=report.unhealthy_endpoints),
    )
    return JSONResponse(view.model_dump(), status_code=503 if report.status == "down" else 200)


@router.head("/health/live", include_in_schema=False)
@router.get("/health/live", response_model=LiveView)
async def live() -> LiveView:
    """The process answers."""
    return LiveView(status="ok")


@router.head("/health/ready", include_in_schema=False)
@router.get("/health/ready", response_model=LiveView, responses={503: {"model": LiveView, "description": "Not now."}})
async def ready(request: Request) -> Response:
    """This replica can serve: its configuration is loaded and it is not shutting down. 503 otherwise."""
    container: Container = request.app.state.container
    is_ready = container.health.is_ready
    return JSONResponse({"status": "ok" if is_ready else "starting"}, status_code=200 if is_ready else 503)
