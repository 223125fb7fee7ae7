"""Health for people and for load balancers. It needs no credential; endpoints are named for administrators only."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from app import __version__
from app.container import Container
from app.exceptions import GatewayError
from app.models.schemas_health import EndpointCounts, EndpointHealth, HealthView, LiveView

router = APIRouter(tags=["Health"])


@router.head("/health", include_in_schema=False)
@router.get("/health", response_model=HealthView, responses={503: {"model": HealthView, "description": "It is down."}})
async def health(request: Request) -> Response:
    """How the gateway and its parts are. 503 when it is down. With an administrator's token each endpoint is named."""
    container: Container = request.app.state.container
    report = await container.health.report()
    named = _endpoints_of(container) if await _is_administrator(container, request) else None
    view = HealthView(
        status=report.status,
        version=__version__,
        database="ok" if report.database_ok else "down",
        redis="ok" if report.redis_ok else "down",
        endpoints=EndpointCounts(healthy=report.healthy_endpoints, unhealthy=report.unhealthy_endpoints, items=named),
    )
    return JSONResponse(view.model_dump(exclude_none=True), status_code=503 if report.status == "down" else 200)


async def _is_administrator(container: Container, request: Request) -> bool:
    """A token that is none is no reason to say nothing of health, and neither is a database that cannot be asked about it."""
    given = request.headers.getlist("authorization")
    if len(given) != 1:
        return False
    address = request.client.host if request.client else None
    try:
        await container.admin_access.identify(given[0], address=address)
    except GatewayError:
        return False
    return True


def _endpoints_of(container: Container) -> list[EndpointHealth]:
    """As this process sees them."""
    endpoints = [endpoint for model in container.catalog.current.models.values() for endpoint in model.endpoints]
    return [
        EndpointHealth(
            id=endpoint.id,
            model=endpoint.model,
            provider=endpoint.provider,
            upstream_model=endpoint.upstream_model,
            state="draining" if endpoint.is_draining else container.endpoint_care.standing(endpoint.id).state,
        )
        for endpoint in endpoints
    ]


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
