"""What the admin API shows of alerts."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from app.domain.alerts import LimitSide, Sent
from app.domain.budget import PeriodKind
from app.domain.limits import Scope
from app.domain.money import nano_to_usd
from app.models.schemas import Moment
from app.storage.alert_ports import AlertRow, DeliveryState
from app.storage.endpoint_ports import EndpointEvent, EventKind


class DeliveryView(BaseModel):
    """How far the webhook has come."""

    state: DeliveryState
    attempts: int
    next_attempt_at: Moment | None
    delivered_at: Moment | None
    last_status: int | None
    last_error: str | None = Field(examples=["connect_failed"])


class EndpointAlertView(BaseModel):
    """An endpoint that only somebody can bring back: its provider does not take our credential any more, or its certificate is not one
    to trust. Told once a day, to the webhook too."""

    type: Literal["endpoint_credential_refused", "endpoint_certificate_refused"]
    id: str
    at: Moment
    endpoint_id: str
    model: str
    upstream_status: int | None = Field(examples=[401])
    message: str | None = Field(description="The upstream's own words, cleaned.")

    @classmethod
    def of(cls, event: EndpointEvent) -> EndpointAlertView:
        is_certificate = event.kind is EventKind.CERTIFICATE_REFUSED
        return cls(
            type="endpoint_certificate_refused" if is_certificate else "endpoint_credential_refused",
            id=event.id,
            at=event.at,
            endpoint_id=event.endpoint_id,
            model=event.model,
            upstream_status=event.upstream_status,
            message=event.message,
        )


class AlertView(BaseModel):
    """One threshold of a budget, passed in one period."""

    type: Literal["budget_threshold"] = "budget_threshold"
    id: str = Field(description="The webhook carries the same one, in every repeat.")
    at: Moment
    scope: Scope
    holder: str = Field(description="The key's id, the user's oid, the app's id or the model's name.")
    period: PeriodKind
    period_name: str = Field(examples=["monthly:2026-11-01"])
    limit: LimitSide
    threshold: int = Field(description="Percent of the limit.", examples=[80])
    limit_usd: str = Field(examples=["10.000000000"])
    spent_usd: str = Field(description="When the alert was made.", examples=["8.000000000"])
    delivery: DeliveryView

    @classmethod
    def of(cls, row: AlertRow) -> AlertView:
        alert = row.alert
        return cls(
            id=alert.id,
            at=alert.at,
            scope=alert.scope,
            holder=alert.scope_id,
            period=alert.period_kind,
            period_name=alert.period_name,
            limit=alert.threshold.side,
            threshold=alert.threshold.percent,
            limit_usd=nano_to_usd(alert.threshold.limit_nanousd),
            spent_usd=nano_to_usd(alert.spent_nanousd),
            delivery=DeliveryView(
                state=row.state,
                attempts=row.attempts,
                next_attempt_at=row.next_attempt_at,
                delivered_at=row.delivered_at,
                last_status=row.last_status,
                last_error=row.last_error,
            ),
        )


class AlertTestView(BaseModel):
    """What came of a test event. The receiver's words are not repeated."""

    id: str
    delivered: bool
    status: int | None = Field(description="The receiver's HTTP status, if it answered.")
    error: str | None = Field(description="What went wrong, in one word.", examples=["connect_failed"])

    @classmethod
    def of(cls, event_id: str, sent: Sent) -> AlertTestView:
        return cls(id=event_id, delivered=sent.is_delivered, status=sent.status, error=sent.error)
