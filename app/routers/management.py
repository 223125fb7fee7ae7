"""The admin API's models and endpoints, and what it shows: usage, the audit trail, health, settings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Query
from pydantic import BaseModel, Field, SecretStr
from starlette.responses import StreamingResponse

from app.config import Settings
from app.domain.catalog import HealthCheckKind
from app.domain.record import CallRecord
from app.exceptions import InvalidRequest, NotFound
from app.models.endpoint_schemas import CheckBody, CheckView, EndpointEventView, LiveEndpointView
from app.models.money_fields import Usd
from app.models.schemas import (
    AuditVerdictView,
    AuditView,
    Drain,
    EndpointCreate,
    EndpointPatch,
    ModelCreate,
    ModelPatch,
    ModelView,
    Moment,
    PageView,
)
from app.models.schemas_health import EndpointHealth
from app.models.usage_schemas import EXPORT_COLUMNS, CallView, Deletions, ExplainedCallView, SummaryView, csv_line
from app.routers.deps import (
    AdminServices,
    Caller,
    Force,
    Listing,
    Services,
    Versioned,
    admin_router,
    require_budgets_only,
)
from app.storage.management_ports import AuditQuery, EndpointRow, ListQuery
from app.storage.ports import LogFilter
from app.storage.sql_rows import is_uuid

models = admin_router("models", "Models")
endpoints = admin_router("endpoints", "Endpoints")
usage = admin_router("usage", "Usage")
audit = admin_router("audit", "Audit")
health = admin_router("health", "Health")
settings = admin_router("settings", "Settings")
routers: tuple[APIRouter, ...] = (models, endpoints, usage, audit, health, settings)

Limit = Annotated[int, Query(ge=1, le=200)]
Cursor = Annotated[str | None, Query(max_length=600)]
SUMMARY_DAYS = 30
"""How far back a summary goes when no `from` is given."""


# ── Models ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@models.get("")
async def list_models(services: Services, query: Listing) -> PageView[ModelView]:
    page = await services.management.models.page(query)
    return PageView(items=[ModelView.of(row) for row in page.items], next_cursor=page.next_cursor)


@models.post("", status_code=201)
async def create_model(services: Services, actor: Caller, body: ModelCreate, version: Versioned) -> ModelView:
    row = await services.management.models.create(actor, body.spec())
    version.tell(row.spec)
    return ModelView.of(row)


@models.get("/{name:path}")
async def get_model(services: Services, name: str, version: Versioned) -> ModelView:
    row = await services.management.models.get(name)
    version.tell(row.spec)
    return ModelView.of(row)


@models.patch("/{name:path}")
async def patch_model(services: Services, actor: Caller, name: str, body: ModelPatch, version: Versioned) -> ModelView:
    """Change what is named. A new price begins a new row of the history; past records keep theirs."""
    require_budgets_only(actor, body.model_fields_set)
    row = await services.management.models.patch(actor, name, body.changes(), expected=version.expected)
    version.tell(row.spec)
    return ModelView.of(row)


@models.delete("/{name:path}", status_code=204)
async def delete_model(services: Services, actor: Caller, name: str, version: Versioned, force: Force = False) -> None:
    """Delete the model. Refused (`in_use`) while it has endpoints or is another model's fallback, unless forced."""
    await services.management.models.delete(actor, name, force=force, expected=version.expected)


# ── Endpoints ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _view(services: AdminServices, row: EndpointRow) -> LiveEndpointView:
    (view,) = await _endpoint_views(services, [row])
    return view


async def _endpoint_views(services: AdminServices, rows: Sequence[EndpointRow]) -> list[LiveEndpointView]:
    standings = await services.endpoint_care.standings([row.id for row in rows])
    return [LiveEndpointView.standing(row, standings[row.id]) for row in rows]


@endpoints.get("")
async def list_endpoints(services: Services, query: Listing) -> PageView[LiveEndpointView]:
    page = await services.management.endpoints.page(query)
    return PageView(items=await _endpoint_views(services, page.items), next_cursor=page.next_cursor)


@endpoints.post("", status_code=201)
async def create_endpoint(
    services: Services, actor: Caller, body: EndpointCreate, version: Versioned
) -> LiveEndpointView:
    """Register an upstream of a model. Its credential is stored encrypted and never shown again."""
    row = await services.management.endpoints.create(actor, body.spec(), body.credential())
    version.tell(row.spec)
    return await _view(services, row)


@endpoints.get("/{endpoint_id}")
async def get_endpoint(services: Services, endpoint_id: str, version: Versioned) -> LiveEndpointView:
    row = await services.management.endpoints.get(endpoint_id)
    version.tell(row.spec)
    return await _view(services, row)


@endpoints.patch("/{endpoint_id}")
async def patch_endpoint(
    services: Services, actor: Caller, endpoint_id: str, body: EndpointPatch, version: Versioned
) -> LiveEndpointView:
    """Change what is named. Another host in `api_base` needs the `api_key` again."""
    commands = services.management.endpoints
    changes, credential = body.changes(merges=True), body.credential()
    row = await commands.patch(actor, endpoint_id, changes, credential, expected=version.expected)
    version.tell(row.spec)
    return await _view(services, row)


@endpoints.delete("/{endpoint_id}", status_code=204)
async def delete_endpoint(
    services: Services, actor: Caller, endpoint_id: str, version: Versioned, force: Force = False
) -> None:
    """Delete the endpoint. Refused (`in_use`) when it is its model's last, unless forced."""
    await services.management.endpoints.delete(actor, endpoint_id, force=force, expected=version.expected)


@endpoints.post("/{endpoint_id}/drain")
async def drain_endpoint(
    services: Services, actor: Caller, endpoint_id: str, body: Annotated[Drain | None, Body()] = None
) -> LiveEndpointView:
    """Send it no new calls; those in flight finish. `{"draining": false}` undoes it."""
    draining = (body or Drain()).draining
    return await _view(services, await services.endpoint_care.drain(actor, endpoint_id, draining=draining))


@endpoints.post("/{endpoint_id}/check")
async def check_endpoint(
    services: Services, endpoint_id: str, body: Annotated[CheckBody | None, Body()] = None
) -> CheckView:
    """Ask it now whether it is there. Free, unless the endpoint's own checks are paid ones, or the body asks for one."""
    kind = body.kind if body else None
    check = await services.endpoint_care.check(endpoint_id, None if kind is None else HealthCheckKind(kind))
    return CheckView.of(check, services.endpoint_care.standing(endpoint_id).state)


@endpoints.post("/{endpoint_id}/undrain")
async def undrain_endpoint(services: Services, actor: Caller, endpoint_id: str) -> LiveEndpointView:
    """Send it calls again."""
    return await _view(services, await services.endpoint_care.drain(actor, endpoint_id, draining=False))


@endpoints.post("/{endpoint_id}/reset")
async def reset_endpoint(services: Services, actor: Caller, endpoint_id: str) -> LiveEndpointView:
    """Close its breaker in every process and forget what it failed at: the next call may go there."""
    return await _view(services, await services.endpoint_care.reset(actor, endpoint_id))


@endpoints.get("/{endpoint_id}/events")
async def list_endpoint_events(
    services: Services, endpoint_id: str, limit: Limit = 50, cursor: Cursor = None
) -> PageView[EndpointEventView]:
    """What happened to it, when and why, newest first: breakers, checks, and what administrators did. Also of one that is gone."""
    page = await services.endpoint_care.events(endpoint_id, limit=limit, cursor=cursor)
    return PageView(items=[EndpointEventView.of(event) for event in page.items], next_cursor=page.next_cursor)


# ── Usage ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def log_filter(
    search: Annotated[str | None, Query(max_length=200, description="A request id, or a user's oid.")] = None,
    request_id: Annotated[str | None, Query(max_length=200)] = None,
    user_oid: Annotated[str | None, Query(max_length=200)] = None,
    key_id: Annotated[str | None, Query(max_length=200)] = None,
    app_id: Annotated[str | None, Query(max_length=200)] = None,
    model: Annotated[str | None, Query(max_length=200, description="As it was asked for.")] = None,
    outcome: Annotated[str | None, Query(max_length=50)] = None,
    http_status: Annotated[int | None, Query(ge=100, le=599)] = None,
    since: Annotated[Moment | None, Query(alias="from")] = None,
    until: Annotated[Moment | None, Query(alias="to")] = None,
    client_request_id: Annotated[str | None, Query(max_length=64, description="The caller's own X-Request-Id.")] = None,
    served_model: Annotated[str | None, Query(max_length=200)] = None,
    endpoint_id: Annotated[str | None, Query(max_length=200)] = None,
    provider: Annotated[str | None, Query(max_length=50)] = None,
    dialect: Annotated[str | None, Query(max_length=50, examples=["chat"])] = None,
    error_code: Annotated[str | None, Query(max_length=100, examples=["rate_limit_exceeded"])] = None,
    is_stream: Annotated[bool | None, Query()] = None,
    min_cost_usd: Annotated[Usd | None, Query()] = None,
    max_cost_usd: Annotated[Usd | None, Query()] = None,
    min_duration_ms: Annotated[int | None, Query(ge=0, le=2**31 - 1)] = None,
    max_duration_ms: Annotated[int | None, Query(ge=0, le=2**31 - 1)] = None,
) -> LogFilter:
    if search and is_uuid(search):
        request_id = request_id or search
    elif search:
        user_oid = user_oid or search
    for name, amount in (("min_cost_usd", min_cost_usd), ("max_cost_usd", max_cost_usd)):
        if amount is not None and not 0 <= amount < 2**63:
            raise InvalidRequest(f"'{name}' is not an amount that a call can cost.", param=name)
    return LogFilter(
        request_id=request_id,
        user_oid=user_oid,
        key_id=key_id,
        app_id=app_id,
        model=model,
        outcome=outcome,
        http_status=http_status,
        since=since,
        until=until,
        client_request_id=client_request_id,
        served_model=served_model,
        endpoint_id=endpoint_id,
        provider=provider,
        dialect=dialect,
        error_code=error_code,
        is_stream=is_stream,
        min_cost_nanousd=min_cost_usd,
        max_cost_nanousd=max_cost_usd,
        min_duration_ms=min_duration_ms,
        max_duration_ms=max_duration_ms,
    )


Filtered = Annotated[LogFilter, Depends(log_filter)]


@usage.get("/logs")
async def list_calls(
    services: Services, wanted: Filtered, limit: Limit = 50, cursor: Cursor = None
) -> PageView[CallView]:
    """Calls, newest first; those that were refused are among them.

    Where little of a long log matches, a page may hold fewer calls than asked for, or none, and still name a next one:
    the search goes on from there.
    """
    page = await services.reports.log_page(wanted, limit=limit, cursor=cursor)
    deletions = await services.reports.deletions({record.user_oid for record in page.items})
    return PageView(items=[CallView.of(record, deletions) for record in page.items], next_cursor=page.next_cursor)


@usage.get("/logs/{request_id}")
async def explain_call(services: Services, actor: Caller, request_id: str) -> ExplainedCallView:
    """One call: its attempts, the endpoints considered, limits and budgets, the price and the arithmetic, its content.

    The content is for owners and admins; each look at it is in the audit trail (`call.view_content`).
    """
    record = await services.reports.record(request_id)
    if record is None:
        raise NotFound("There is no record of this request.")
    content = await services.call_contents.viewed(actor, record.request_id)
    return ExplainedCallView.explained(record, content, await services.reports.deletions({record.user_oid}))


class ErasedView(BaseModel):
    user_oid: str
    erased: int = Field(description="Calls whose prompt and answer were kept until now.")


@usage.delete("/content")
async def erase_content(
    services: Services, actor: Caller, user_oid: Annotated[str, Query(min_length=1, max_length=200)]
) -> ErasedView:
    """Delete what was kept of a user's prompts and answers. The ledger keeps what the calls cost."""
    return ErasedView(user_oid=user_oid, erased=await services.call_contents.erase(actor, user_oid))


@usage.get("/summary")
async def summarize(
    services: Services,
    group_by: Annotated[
        str,
        Query(
            max_length=40,
            description="key, user, app, model, endpoint, hour or day, or two of them with a comma between.",
            examples=["model", "user,day"],
        ),
    ] = "model",
    since: Annotated[str | None, Query(alias="from", max_length=40, examples=["2026-11-01"])] = None,
    until: Annotated[str | None, Query(alias="to", max_length=40, examples=["2026-11-30"])] = None,
    user_oid: Annotated[str | None, Query(max_length=200)] = None,
    key_id: Annotated[str | None, Query(max_length=200)] = None,
    app_id: Annotated[str | None, Query(max_length=200)] = None,
    model: Annotated[str | None, Query(max_length=200, description="That served.")] = None,
    endpoint_id: Annotated[str | None, Query(max_length=200)] = None,
) -> SummaryView:
    """Sums of whole hours in UTC. `from` and `to` are days (the last one included) or RFC 3339 times."""
    now = services.clock.now()
    begins = _day_or_moment(since, "from") or now - timedelta(days=SUMMARY_DAYS)
    ends = _day_or_moment(until, "to") or now
    of = LogFilter(user_oid=user_oid, key_id=key_id, app_id=app_id, model=model, endpoint_id=endpoint_id)
    sums = await services.reports.summary(group_by=group_by, since=begins, until=ends, of=of)
    return SummaryView.of(group_by, sums)


def _day_or_moment(text: str | None, param: str) -> date | datetime | None:
    if text is None:
        return None
    try:
        if len(text) == len("2026-11-01"):
            return date.fromisoformat(text)
        # A "+" that was not escaped arrives as a space.
        moment = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
    except ValueError:
        raise InvalidRequest(f"'{param}' is neither a day (2026-11-01) nor an RFC 3339 time.", param=param) from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


@usage.get(
    "/export",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/csv": {}, "application/x-ndjson": {}}}},
)
async def export_calls(
    services: Services,
    wanted: Filtered,
    format: Literal["csv", "ndjson"] = "csv",  # the contract's name
) -> StreamingResponse:
    """Every call that matches, newest first, streamed."""
    records = services.reports.export(wanted)
    first = await anext(records, None)  # so that a database that is away is a 503 and not half a file
    views = _views(first, records, await services.reports.deletions(None))
    lines = _csv_lines(views) if format == "csv" else _json_lines(views)
    media = "text/csv; charset=utf-8" if format == "csv" else "application/x-ndjson"
    headers = {"content-disposition": f'attachment; filename="usage.{format}"'}
    return StreamingResponse(lines, media_type=media, headers=headers)


async def _csv_lines(views: AsyncIterator[CallView]) -> AsyncIterator[bytes]:
    yield csv_line(list(EXPORT_COLUMNS))
    async for view in views:
        shown = view.model_dump(mode="json")
        yield csv_line([shown[name] for name in EXPORT_COLUMNS])


async def _json_lines(views: AsyncIterator[CallView]) -> AsyncIterator[bytes]:
    async for view in views:
        yield view.model_dump_json().encode() + b"\n"


async def _views(
    first: CallRecord | None, rest: AsyncIterator[CallRecord], deletions: Deletions
) -> AsyncIterator[CallView]:
    if first is not None:
        yield CallView.of(first, deletions)
        async for record in rest:
            yield CallView.of(record, deletions)


# ── The trail ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@audit.get("")
async def list_audit(
    services: Services,
    limit: Limit = 50,
    cursor: Cursor = None,
    actor: Annotated[str | None, Query(max_length=200)] = None,
    action: Annotated[str | None, Query(max_length=100, examples=["key.create"])] = None,
    object_kind: Annotated[str | None, Query(max_length=100)] = None,
    object_id: Annotated[str | None, Query(max_length=500)] = None,
    search: Annotated[str | None, Query(max_length=200, description="Anywhere in actor, action and object.")] = None,
    since: Annotated[Moment | None, Query(alias="from")] = None,
    until: Annotated[Moment | None, Query(alias="to")] = None,
) -> PageView[AuditView]:
    """Who changed what, when and from where, newest first. Refused attempts are in it (`access.refused`)."""
    wanted = AuditQuery(limit, cursor, actor, action, object_kind, object_id, search, since, until)
    page = await services.audit.page(wanted)
    return PageView(items=[AuditView.of(row) for row in page.items], next_cursor=page.next_cursor)


@audit.get("/verify")
async def verify_audit(services: Services) -> AuditVerdictView:
    """Recompute the whole chain. An edited, removed or swapped row shows as the first invalid one."""
    found = await services.audit.verify()
    first = None if found.first_invalid_id is None else str(found.first_invalid_id)
    return AuditVerdictView(verified=found.verified, valid=found.is_valid, first_invalid_id=first)


# ── Health and settings ───────────────────────────────────────────────────────────────────────────────────────────────


class EndpointsHealth(BaseModel):
    endpoints: list[EndpointHealth]


@health.get("")
async def endpoint_health(services: Services) -> EndpointsHealth:
    """Every endpoint with the state of its breaker, as this process sees it."""
    found: list[EndpointHealth] = []
    cursor: str | None = None
    while True:
        page = await services.management.endpoints.page(ListQuery(limit=200, cursor=cursor))
        for row in page.items:
            view = LiveEndpointView.standing(row, services.endpoint_care.standing(row.id))
            found.append(EndpointHealth(**view.model_dump(include=set(EndpointHealth.model_fields))))
        cursor = page.next_cursor
        if cursor is None:
            return EndpointsHealth(endpoints=found)


class SettingView(BaseModel):
    name: str = Field(examples=["RATE_LIMIT_REQUESTS_PER_MINUTE"])
    value: Any = Field(description="Secrets and the stores' URLs show only whether they are set.")
    is_default: bool


_HIDDEN = frozenset({"database_url", "redis_url", "alert_webhook_url", "audit_anchor"})
"""Not secrets by type, but they hold passwords, or tokens in their paths."""


@settings.get("")
async def list_settings(services: Services) -> PageView[SettingView]:
    """The settings this process runs on. They come from the environment and are changed there."""
    return PageView(items=[_setting(services.settings, name) for name in Settings.model_fields], next_cursor=None)


def _setting(current: Settings, name: str) -> SettingView:
    value = getattr(current, name)
    if isinstance(value, SecretStr):
        shown: object = "set" if value.get_secret_value() else None
    elif name in _HIDDEN:
        shown = "set" if value else None
    elif isinstance(value, int | float | bool) or value is None:
        shown = value
    elif isinstance(value, tuple):
        shown = [str(each) for each in value]
    else:
        shown = str(value)
    return SettingView(name=name.upper(), value=shown, is_default=value == Settings.model_fields[name].default)
