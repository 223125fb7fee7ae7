"""What a failed exchange or a status of the upstream means: whose fault it is, whether another endpoint may be asked, and when.

* 400, 404, 413, 415, 422 and the like are the caller's: another endpoint would say the same, breakers don't count them.
* 401, 402 and 403 are about *our* credential: the endpoint's fault, never shown as such to the caller.
* a redirect is never followed, so it is the endpoint's fault.
* 408, 409, 425, 429 and 5xx may be cured by another endpoint; so may what the caller has no hand in: a method, a header or a
  connection that an endpoint does not like (405, 406, 411, 417, 421, 426, 431), a model behind it that failed (424) or is gone for
  good (410), and its having run full or given up by numbers of its own (498, 499).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from app.dialects.base import BadAnswer, UpstreamProblem
from app.exceptions import (
    AttemptFailed,
    EndpointBlocked,
    FailureKind,
    GatewayError,
    NoHealthyEndpoint,
    Overloaded,
    UpstreamBadResponse,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamTruncated,
)
from app.providers.rate_limits import reset_s
from app.providers.transport import ExchangeFailed

MAX_RETRY_AFTER_S = 300.0
"""An endpoint that asks for more is probed after five minutes all the same: a wrong clock must not take it out for a day."""

_OURS = frozenset({401, 402, 403, 407})
_CURABLE = frozenset({405, 406, 408, 409, 410, 411, 417, 421, 424, 425, 426, 429, 431, 498, 499})
_BUSY = frozenset({429, 498, 503, 529})
_LATE = frozenset({408, 504, 524})
_POLICY_CODES = frozenset({"content_filter", "content_policy_violation"})
"""A prompt against the provider's rules: said with 403 it is no word about our credential."""
_CREDENTIAL_CODES = frozenset(
    {"invalid_api_key", "insufficient_quota", "billing_hard_limit_reached", "account_deactivated"}
)
"""Some providers say these with 400 or 404; they concern our account all the same."""


def of_status(
    status: int,
    problem: UpstreamProblem,
    *,
    headers: Mapping[str, str] | None = None,
    has_begun: bool = False,
    now: datetime | None = None,
) -> AttemptFailed:
    """The failure behind a status that is not 2xx, or behind an error object that names (or stands for) that status."""
    retry_after_s = read_retry_after(headers, now=now) if headers else None
    if retry_after_s is None and status in _BUSY:
        asked_s = reset_s(headers, now=now) if headers and status == 429 else None
        asked_s = problem.retry_after_s if asked_s is None else asked_s
        retry_after_s = None if asked_s is None else min(asked_s, MAX_RETRY_AFTER_S)
    is_caller_fault = _is_caller_fault(status, problem)
    return AttemptFailed(
        kind=FailureKind.ANSWER_BEGUN if has_begun else FailureKind.NO_ANSWER,
        reason="redirect" if 300 <= status < 400 else f"status_{status}",
        error=_shown(status, is_caller_fault, retry_after_s),
        is_endpoint_fault=not is_caller_fault,
        is_caller_fault=is_caller_fault,
        upstream_status=status,
        upstream_message=problem.message,
        upstream_code=problem.code or problem.type,
        upstream_param=problem.param,
        retry_after_s=retry_after_s,
    )


def of_error_object(
    problem: UpstreamProblem, *, headers: Mapping[str, str] | None = None, has_begun: bool = False
) -> AttemptFailed:
    """The failure behind an error object in a 200: by the status it names, else as if it had been a 500."""
    return of_status(problem.status or 500, problem, headers=headers, has_begun=has_begun)


def of_bad_answer(fault: BadAnswer, *, status: int = 200, has_begun: bool = False) -> AttemptFailed:
    error: GatewayError = UpstreamTruncated() if fault.reason == "truncated" else UpstreamBadResponse()
    return AttemptFailed(
        kind=FailureKind.ANSWER_BEGUN if has_begun else FailureKind.NO_ANSWER,
        reason=fault.reason,
        error=error,
        upstream_status=status,
    )


def of_exchange(fault: ExchangeFailed, *, has_begun: bool = False, status: int | None = None) -> AttemptFailed:
    """The failure behind a broken exchange."""
    error: GatewayError
    if fault.is_ours:
        error = Overloaded()
    elif fault.is_blocked:
        error = EndpointBlocked()
    elif fault.is_timeout:
        error = UpstreamTimeout()
    elif has_begun:
        error = UpstreamTruncated()
    elif fault.reason in ("body_too_large", "encoded_answer", "bad_http"):
        error = UpstreamBadResponse()
    else:
        error = UpstreamError()
    kind = FailureKind.NO_ANSWER if fault.is_sent else FailureKind.NOTHING_SENT
    if has_begun:
        kind = FailureKind.ANSWER_BEGUN
    # It fell silent over its work, or broke off in the middle of an answer. One that closed without a word is given the benefit of
    # the doubt, and nobody pays for what is no answer.
    has_agreed = status is not None and 200 <= status < 300
    may_be_billed = fault.is_sent and (fault.is_timeout or (has_agreed and isinstance(error, UpstreamError)))
    return AttemptFailed(
        kind=kind,
        reason=fault.reason,
        error=error,
        is_endpoint_fault=not fault.is_ours,
        may_be_billed=may_be_billed,
        upstream_status=status,
    )


def read_retry_after(headers: Mapping[str, str], *, now: datetime | None = None) -> float | None:
    """When the upstream wants to be asked again, in seconds, capped; None when it does not say, or nonsense."""
    milliseconds = _seconds(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return min(milliseconds / 1000, MAX_RETRY_AFTER_S)
    text = headers.get("retry-after")
    if text is None:
        return None
    seconds = _seconds(text)
    if seconds is None:
        at = _moment(text)
        if at is None:
            return None
        seconds = max(0.0, (at - (_sent_at(headers) or now or datetime.now(UTC))).total_seconds())
    return min(seconds, MAX_RETRY_AFTER_S)


def _sent_at(headers: Mapping[str, str]) -> datetime | None:
    """By the upstream's own clock: a time to come back is told by that one, however wrong it is."""
    text = headers.get("date")
    return _moment(text) if text else None


def _moment(text: str) -> datetime | None:
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def _seconds(text: str | None) -> float | None:
    """A plain, not negative decimal number; headers are ASCII digits, not everything that `float` takes."""
    if text is None or len(text) > 20:
        return None
    whole, _, fraction = text.strip().partition(".")
    is_number = (
        whole.isascii() and whole.isdecimal() and (not fraction or (fraction.isascii() and fraction.isdecimal()))
    )
    return float(text) if is_number else None


def _is_caller_fault(status: int, problem: UpstreamProblem) -> bool:
    if status == 403 and problem.code in _POLICY_CODES:
        return True
    if not 400 <= status < 500 or status in _OURS or status in _CURABLE:
        return False
    return problem.code not in _CREDENTIAL_CODES


def _shown(status: int, is_caller_fault: bool, retry_after_s: float | None) -> GatewayError:
    """What the caller sees if nothing better comes. The upstream's own words are cleaned and put in elsewhere."""
    if is_caller_fault:
        return UpstreamRejected(status=status, message="The model's provider refused this request.")
    if status in _BUSY:
        return NoHealthyEndpoint(retry_after_s=5.0 if retry_after_s is None else max(1.0, retry_after_s))
    if status in _LATE:
        return UpstreamTimeout()
    return UpstreamError()
