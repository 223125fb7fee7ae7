"""What `GET /v1/me` answers: the caller's own limits and budgets, and what is left of them."""

from __future__ import annotations

from datetime import date, datetime

from pydantic import BaseModel

from app.domain.budget import PeriodKind
from app.domain.identity import PaymentStatus
from app.domain.limits import LimitKind, Scope
from app.domain.money import nano_to_usd
from app.models.schemas import Moment
from app.services.standing import BudgetStanding, LimitStanding, Standing


class OwnLimitView(BaseModel):
    """`remaining` is null when it cannot be said now. All of it is free again at `resets_at`, if no further call is made."""

    scope: Scope
    holder: str
    kind: LimitKind
    limit: int
    window_seconds: int
    remaining: int | None
    reset_after_seconds: float | None
    resets_at: Moment | None

    @classmethod
    def of(cls, standing: LimitStanding, now: datetime) -> OwnLimitView:
        claim = standing.claim
        return cls(
            scope=claim.scope,
            holder=claim.scope_id,
            kind=claim.limit.kind,
            limit=claim.limit.limit,
            window_seconds=claim.limit.window_s,
            remaining=standing.remaining,
            reset_after_seconds=_seconds(standing.resets_at, now),
            resets_at=standing.resets_at,
        )


class OwnBudgetView(BaseModel):
    """Amounts are null when they cannot be said now, limits when there are none, times when a budget never resets."""

    scope: Scope
    holder: str
    period: PeriodKind
    soft_limit_usd: str | None
    hard_limit_usd: str | None
    spent_usd: str | None
    reserved_usd: str | None
    remaining_usd: str | None
    reset_after_seconds: float | None
    resets_at: Moment | None

    @classmethod
    def of(cls, standing: BudgetStanding, now: datetime) -> OwnBudgetView:
        claim = standing.claim
        return cls(
            scope=claim.scope,
            holder=claim.scope_id,
            period=claim.budget.period,
            soft_limit_usd=_usd(claim.budget.soft_limit_nanousd),
            hard_limit_usd=_usd(claim.budget.hard_limit_nanousd),
            spent_usd=_usd(standing.spent_nanousd),
            reserved_usd=_usd(standing.reserved_nanousd),
            remaining_usd=_usd(standing.remaining_nanousd),
            reset_after_seconds=_seconds(claim.period.ends_at, now),
            resets_at=claim.period.ends_at,
        )


class MonthView(BaseModel):
    """What was spent since the month began; what running calls have reserved is not in it."""

    starts_at: Moment
    resets_at: Moment
    user_usd: str | None
    key_usd: str | None


class MeView(BaseModel):
    at: Moment
    user_oid: str
    payment_status: PaymentStatus
    payment_valid_until: date | None
    key_id: str | None
    key_expires_at: Moment | None
    app_id: str | None
    allowed_models: list[str]
    limits: list[OwnLimitView]
    budgets: list[OwnBudgetView]
    spent_this_month: MonthView

    @classmethod
    def of(cls, standing: Standing) -> MeView:
        user, key, app = standing.identity.user, standing.identity.key, standing.identity.app
        return cls(
            at=standing.at,
            user_oid=user.oid,
            payment_status=user.payment_status,
            payment_valid_until=user.payment_valid_until,
            key_id=key.id if key else None,
            key_expires_at=key.expires_at if key else None,
            app_id=app.id if app else None,
            allowed_models=list(standing.allowed_models),
            limits=[OwnLimitView.of(each, standing.at) for each in standing.limits],
            budgets=[OwnBudgetView.of(each, standing.at) for each in standing.budgets],
            spent_this_month=_month(standing),
        )


def _month(standing: Standing) -> MonthView:
    spent = {each.claim.scope: _usd(each.spent_nanousd) for each in standing.month}
    period = standing.month[0].claim.period
    return MonthView.model_validate(
        {
            "starts_at": period.starts_at,
            "resets_at": period.ends_at,
            "user_usd": spent[Scope.USER],
            "key_usd": spent.get(Scope.KEY),
        }
    )


def _usd(amount: int | None) -> str | None:
    return None if amount is None else nano_to_usd(amount)


def _seconds(moment: datetime | None, now: datetime) -> float | None:
    return None if moment is None else round(max(0.0, (moment - now).total_seconds()), 3)
