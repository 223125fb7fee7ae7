"""What the admin API shows of an endpoint beyond its configuration: how it stands, and what happened to it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.domain.catalog import HealthCheckKind
from app.models.schemas import EndpointView, Moment
from app.services.endpoint_care import Standing
from app.services.endpoint_checks import Check
from app.storage.endpoint_ports import EndpointEvent, EventKind
from app.storage.management_ports import EndpointRow


class LastFaultView(BaseModel):
    at: Moment
    fault: str = Field(examples=["timeout"])
    reason: str = Field(examples=["first_token_timeout"])
    upstream_status: int | None
    message: str | None = Field(
        description="The upstream's own words, cleaned; null as well where another process heard them: `…/events` has them."
    )


class LastCheckView(BaseModel):
    at: Moment
    ok: bool
    reason: str | None = Field(examples=["connect_failed"])
    took_ms: int


class LiveView(BaseModel):
    """Over all processes; what others know is up to two seconds old. `state`, `opened_by` and `opens_in_seconds` are those of the
    process that answers."""

    processes: int = Field(
        description="How many are counted here: all that run. 1 while Redis is away: the one that answers."
    )
    open_in: int = Field(description="In how many of them its breaker is open or half open.")
    in_flight: int
    first_token_ms: int | None = Field(
        description="Peak-sensitive moving average, of several processes by their calls; null: no answer yet."
    )
    calls: int = Field(description="Attempts within the breaker's window.")
    faults: int
    fault_percent: int = Field(description="Of these.")
    faults_in_row: int = Field(description="In the process that has seen most.")
    opened_by: str | None = Field(description="Why it is open or half open.", examples=["error"])
    opens_in_seconds: float = Field(description="Until it is half open; 0: a call may go there now.")
    limited_by: str | None = Field(description="Which of its own limits is used up now.")
    last_fault: LastFaultView | None
    last_check: LastCheckView | None

    @classmethod
    def of(cls, standing: Standing) -> LiveView:
        figures, check = standing.figures, standing.last_check
        fault = figures.last_fault
        return cls(
            processes=standing.processes,
            open_in=figures.open_in,
            in_flight=figures.in_flight,
            first_token_ms=figures.first_token_ms,
            calls=figures.calls,
            faults=figures.faults,
            fault_percent=round(100 * figures.faults / figures.calls) if figures.calls else 0,
            faults_in_row=figures.faults_in_row,
            opened_by=standing.opened_by,
            opens_in_seconds=round(standing.opens_in_s, 3),
            limited_by=figures.limited_by,
            last_fault=None
            if fault is None
            else LastFaultView(
                at=fault.at,
                fault=fault.fault,
                reason=fault.reason,
                upstream_status=fault.upstream_status,
                message=standing.last_words,
            ),
            last_check=None
            if check is None or standing.last_check_at is None
            else LastCheckView(at=standing.last_check_at, ok=check.is_ok, reason=check.reason, took_ms=check.took_ms),
        )


class LiveEndpointView(EndpointView):
    """An endpoint's configuration and how it stands."""

    live: LiveView

    @classmethod
    def standing(cls, row: EndpointRow, standing: Standing) -> LiveEndpointView:
        fields: dict[str, Any] = dict(EndpointView.of(row, standing.state))
        return cls(**fields, live=LiveView.of(standing))


class EndpointEventView(BaseModel):
    id: str
    at: Moment
    kind: EventKind
    reason: str | None = Field(description="The fault, or who did it.", examples=["timeout"])
    message: str | None
    upstream_status: int | None
    open_seconds: float | None = Field(description="For how long it opened.")
    process: str = Field(description="Which process saw it.")

    @classmethod
    def of(cls, event: EndpointEvent) -> EndpointEventView:
        return cls(
            id=event.id,
            at=event.at,
            kind=event.kind,
            reason=event.reason,
            message=event.message,
            upstream_status=event.upstream_status,
            open_seconds=event.open_s,
            process=event.process,
        )


class CheckBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: Literal["models", "completion"] | None = Field(
        None,
        description="null: as the endpoint's own checks; `completion` is a paid call of one token, on the gateway's own account.",
    )


class CheckView(BaseModel):
    """What an active check found just now."""

    ok: bool
    kind: HealthCheckKind
    reason: str | None = Field(examples=["connect_failed"])
    upstream_status: int | None
    took_ms: int
    state: str = Field(
        description="The breaker's, after it: closed, open or half_open. A check does not overrule failed calls."
    )

    @classmethod
    def of(cls, check: Check, state: str) -> CheckView:
        seen = check.seen
        return cls(
            ok=seen.is_ok,
            kind=check.kind,
            reason=seen.reason,
            upstream_status=seen.upstream_status,
            took_ms=seen.took_ms,
            state=state,
        )
