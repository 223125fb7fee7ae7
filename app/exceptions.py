"""Every way a call can be refused or fail, drawn as one tree.

An error knows its HTTP status, its code and whether repeating can cure it; nobody matches on text. Messages are written here,
from typed arguments, and are safe to show to a caller: they never hold a credential, an upstream's URL or an upstream's body.

    GatewayError
    ├── CallerError                    the caller can mend it; a repeat of the same request cannot
    │   ├── InvalidJson · InvalidRequest · MissingParameter · ParamNotAllowed · ContextLengthExceeded
    │   │   AmbiguousCredentials · UpstreamRejected                                                 400 (as the upstream said)
    │   ├── InvalidApiKey                                                                           401
    │   ├── BudgetExceeded                                                                          402
    │   ├── PaymentExpired · UserSuspended · UserUnknown · ModelNotAllowed · AppInactive · IpNotAllowed · Forbidden
    │   │   PriceUnknown                                                                            403
    │   ├── ModelNotFound · NotFound                                                                404
    │   ├── MethodNotAllowed 405 · RequestTimeout 408 · Conflict · InUse · IdempotencyInFlight 409
    │   ├── VersionConflict 412
    │   └── PayloadTooLarge 413 · UnsupportedMediaType 415 · RangesNotServed 416 · Unprocessable 422 · HeadersTooLarge 431
    ├── LimitReached                   a repeat after `retry_after_s` can succeed
    │   ├── RateLimited · BudgetReserved · TooManyFailures                                          429
    ├── UpstreamFailed                 every endpoint that could be tried was tried
    │   ├── UpstreamError · UpstreamBadResponse · UpstreamTruncated · EndpointBlocked               502
    │   ├── NoHealthyEndpoint                                                                       503
    │   └── UpstreamTimeout                                                                         504
    └── Unavailable                    the gateway itself cannot serve now
        ├── DependencyUnavailable · Overloaded · Draining                                           503
        └── InternalError                                                                           500

    AttemptFailed      one attempt at one endpoint failed; `kind` carries the retry decision (never shown to a caller)
    └── EndpointUnfit  it was none: the endpoint cannot carry this call, another one may
    SettingsError      the process must not start: one line for the operator
    └── SecretKeyMismatch
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar


class GatewayError(Exception):
    """A refusal or failure as the caller sees it: status, code, type, message, and when to come back."""

    status: int = 500
    code: str = "internal_error"
    type: str = "server_error"
    should_retry: bool | None = None
    """What `x-should-retry` says: False stops the SDKs' own repeats, None leaves them to the status."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        type: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        if type is not None:
            self.type = type


# ── The caller's to mend ──────────────────────────────────────────────────────────────────────────────────────────────


class CallerError(GatewayError):
    status = 400
    code = "invalid_request"
    type = "invalid_request_error"


class InvalidJson(CallerError):
    code = "invalid_json"

    def __init__(self, reason: str = "The request body is not valid JSON.") -> None:
        super().__init__(reason)


class InvalidRequest(CallerError):
    """A field has a wrong type or an impossible value; `param` names it."""


class MissingParameter(CallerError):
    code = "missing_required_parameter"

    def __init__(self, param: str) -> None:
        super().__init__(f"Missing required parameter: '{param}'.", param=param)


class ParamNotAllowed(CallerError):
    """The field would steer the gateway rather than the model (destination, credential, price, callbacks)."""

    code = "param_not_allowed"

    def __init__(self, param: str) -> None:
        super().__init__(f"The parameter '{param}' is not accepted by this gateway.", param=param)


class ContextLengthExceeded(CallerError):
    code = "context_length_exceeded"

    def __init__(self, *, model: str, context_window_tokens: int, requested_tokens: int) -> None:
        super().__init__(
            f"The model '{model}' takes at most {context_window_tokens} tokens, but this request needs about "
            f"{requested_tokens}. Shorten the messages or lower max_tokens.",
            param="messages",
        )


class AmbiguousCredentials(CallerError):
    code = "ambiguous_credentials"

    def __init__(
        self,
        message: str = "The request carries more than one credential; send exactly one.",
    ) -> None:
        super().__init__(message)


class UpstreamRejected(CallerError):
    """A 4xx of the upstream that is the caller's fault, passed on with its status and a cleaned message."""

    def __init__(
        self,
        *,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message, param=param)
        self.status = status
        self.code = code or "invalid_request"


class InvalidApiKey(CallerError):
    """One answer for missing, unknown, malformed, expired and revoked credentials, so that none can be told apart."""

    status = 401
    code = "invalid_api_key"
    type = "authentication_error"

    def __init__(self) -> None:
        super().__init__("The credential is missing, unknown, expired or revoked.")


class BudgetExceeded(CallerError):
    status = 402
    code = "budget_exceeded"
    type = "insufficient_quota"
    should_retry = False

    def __init__(self, *, scope: str, period: str, resets_at: str | None) -> None:
        when = f" It resets at {resets_at}." if resets_at else ""
        super().__init__(f"The {period} budget of this {scope} cannot pay for the request.{when}")
        self.scope, self.period, self.resets_at = scope, period, resets_at


class Forbidden(CallerError):
    status = 403
    code = "forbidden"
    type = "permission_error"
    refused_to: object | None = None
    """The identity that may not call now, where it is known: its call leaves a record."""

    def __init__(self, message: str = "This credential may not do that.") -> None:
        super().__init__(message)


class PaymentExpired(Forbidden):
    code = "payment_expired"

    def __init__(self) -> None:
        super().__init__("The payment of this account has expired. Renew it to restore access.")


class UserSuspended(Forbidden):
    code = "user_suspended"

    def __init__(self) -> None:
        super().__init__("This account is suspended.")


class UserUnknown(Forbidden):
    """The app may call, but not for a user whom nobody has registered."""

    code = "user_unknown"

    def __init__(self) -> None:
        super().__init__("There is no such user, and this application may not create users.")
        self.param = "X-User-Oid"


class ModelNotAllowed(Forbidden):
    code = "model_not_allowed"

    def __init__(self, model: str) -> None:
        super().__init__(f"This credential may not use the model '{model[:100]}'.")
        self.param = "model"


class AppInactive(Forbidden):
    code = "app_inactive"

    def __init__(self) -> None:
        super().__init__("This application is registered but not active.")


class IpNotAllowed(Forbidden):
    code = "ip_not_allowed"

    def __init__(self) -> None:
        super().__init__("This credential may not be used from this address.")


class PriceUnknown(Forbidden):
    code = "price_unknown"

    def __init__(self, model: str) -> None:
        super().__init__(f"The model '{model}' has no price, so a hard budget cannot be charged for it.")
        self.param = "model"


class NotFound(CallerError):
    status = 404
    code = "not_found"
    type = "not_found_error"

    def __init__(self, message: str = "There is nothing here.") -> None:
        super().__init__(message)


class ModelNotFound(NotFound):
    code = "model_not_found"

    def __init__(self, model: str) -> None:
        super().__init__(f"The model '{model[:100]}' does not exist.")
        self.param = "model"


class MethodNotAllowed(CallerError):
    status = 405
    code = "method_not_allowed"

    def __init__(self, allowed: str) -> None:
        super().__init__(f"This path answers only to {allowed}.")
        self.allowed = allowed


class RequestTimeout(CallerError):
    status = 408
    code = "request_timeout"

    def __init__(self) -> None:
        super().__init__("The request body did not arrive in time.")


class Conflict(CallerError):
    status = 409
    code = "conflict"


class InUse(Conflict):
    code = "in_use"


class VersionConflict(Conflict):
    """`If-Match` was not met: 412, as HTTP says."""

    status = 412
    code = "version_conflict"


class IdempotencyInFlight(Conflict):
    code = "idempotency_in_flight"

    def __init__(self) -> None:
        super().__init__(
            "A request with this Idempotency-Key is being worked on, or was broken off: look what it has done."
        )


class PayloadTooLarge(CallerError):
    status = 413
    code = "payload_too_large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The request body is larger than {limit_bytes} bytes.")


class UnsupportedMediaType(CallerError):
    status = 415
    code = "unsupported_media_type"

    def __init__(
        self,
        message: str = "Send the body as application/json in UTF-8, without content encoding.",
    ) -> None:
        super().__init__(message)


class Unprocessable(CallerError):
    status = 422
    code = "unprocessable"


class RangesNotServed(CallerError):
    status = 416
    code = "ranges_not_served"

    def __init__(self) -> None:
        super().__init__("Lists of ranges are not served; ask for the whole file.")


class HeadersTooLarge(CallerError):
    status = 431
    code = "headers_too_large"

    def __init__(self) -> None:
        super().__init__("The request headers are too many or too large.")


# ── Come back later ───────────────────────────────────────────────────────────────────────────────────────────────────


class LimitReached(GatewayError):
    status = 429
    code = "rate_limit_exceeded"
    type = "requests"


class RateLimited(LimitReached):
    """`type` is the kind of limit: requests, tokens or concurrency. `retry_after_s` is true, not a guess.

    `remaining` is what the limit had left, too little for this request; `reset_s` when more of it is free.
    """

    def __init__(
        self,
        *,
        scope: str,
        kind: str,
        limit: int,
        window_s: int,
        retry_after_s: float,
        remaining: int = 0,
        reset_s: float | None = None,
    ) -> None:
        what = f"{limit} {kind} at once" if kind == "concurrency" else f"{limit} {kind} per {window_s} s"
        super().__init__(f"This {scope} may use {what}.", type=kind, retry_after_s=retry_after_s)
        self.scope, self.kind, self.limit, self.window_s = scope, kind, limit, window_s
        self.remaining, self.reset_s = remaining, retry_after_s if reset_s is None else reset_s


class BudgetReserved(LimitReached):
    """The money is there but calls still running hold it; it frees itself as they settle."""

    type = "budget_reserved"

    def __init__(self, *, scope: str, period: str, retry_after_s: float) -> None:
        super().__init__(
            f"The rest of the {period} budget of this {scope} is reserved by calls still running.",
            retry_after_s=retry_after_s,
        )
        self.scope, self.period = scope, period


class TooManyFailures(LimitReached):
    code = "too_many_failures"

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("Too many bad credentials came from this address.", retry_after_s=retry_after_s)


# ── The upstreams' doing ──────────────────────────────────────────────────────────────────────────────────────────────


class UpstreamFailed(GatewayError):
    """Failover was exhausted. SDKs are told not to repeat what the gateway has repeated already."""

    status = 502
    code = "upstream_error"
    type = "api_error"
    should_retry: bool | None = False
    default: ClassVar[str] = "The model's provider failed to answer."

    def __init__(self, message: str | None = None, *, retry_after_s: float | None = None) -> None:
        super().__init__(message or self.default, retry_after_s=retry_after_s)


class UpstreamError(UpstreamFailed):
    pass


class UpstreamBadResponse(UpstreamFailed):
    code = "upstream_bad_response"
    default = "The model's provider sent an answer that cannot be used."


class UpstreamTruncated(UpstreamFailed):
    code = "upstream_truncated"
    default = "The model's provider broke off before its answer was complete."


class EndpointBlocked(UpstreamFailed):
    code = "endpoint_blocked"
    default = "The endpoint's address is not one this gateway may connect to."


class NoHealthyEndpoint(UpstreamFailed):
    status = 503
    code = "no_healthy_endpoint"
    should_retry = None
    default = "No endpoint of this model can take the request now."

    def __init__(self, *, retry_after_s: float = 5.0) -> None:
        super().__init__(retry_after_s=retry_after_s)


class UpstreamTimeout(UpstreamFailed):
    status = 504
    code = "upstream_timeout"
    default = "The model's provider did not answer in time."


# ── The gateway's own ─────────────────────────────────────────────────────────────────────────────────────────────────


class Unavailable(GatewayError):
    status = 503
    code = "overloaded"
    type = "server_error"


class DependencyUnavailable(Unavailable):
    code = "dependency_unavailable"

    def __init__(self, what: str, *, retry_after_s: float = 2.0) -> None:
        super().__init__(f"The gateway cannot reach its {what} now.", retry_after_s=retry_after_s)


class CounterStoreAway(DependencyUnavailable):
    """Redis gave no good answer in time. What it was asked to do may have been done or not."""

    def __init__(self) -> None:
        super().__init__("counter store")


class LeaseLost(DependencyUnavailable):
    """This process stood still for longer than the call's lease; what was reserved for it may be others' by now."""

    def __init__(self) -> None:
        super().__init__("counter store")


class Overloaded(Unavailable):
    code = "overloaded"

    def __init__(self, *, retry_after_s: float = 1.0) -> None:
        super().__init__("The gateway is at its capacity.", retry_after_s=retry_after_s)


class Draining(Unavailable):
    code = "draining"

    def __init__(self) -> None:
        super().__init__("This replica is shutting down.", retry_after_s=1.0)


class InternalError(Unavailable):
    status = 500
    code = "internal_error"

    def __init__(self) -> None:
        super().__init__("Something went wrong inside the gateway. Quote the request id to its operator.")


# ── Never shown to a caller ───────────────────────────────────────────────────────────────────────────────────────────


class FailureKind(Enum):
    """What is known about an attempt that failed; the retry decision follows from it alone."""

    CLIENT_LEFT = "client_left"
    """Never an upstream's fault, never retried."""
    NOTHING_SENT = "nothing_sent"
    """Not a byte of the request left: retry freely."""
    NO_ANSWER = "no_answer"
    """The request left, no answer begun: retry elsewhere within the retry budget."""
    ANSWER_BEGUN = "answer_begun"
    """The caller has bytes already: never retried."""


class AttemptFailed(Exception):
    """One attempt at one endpoint failed.

    `reason` is a short word for the record ("connect_timeout", "status_500", "bad_body" …); `error` is what the caller sees if
    nothing better comes; `is_endpoint_fault` says whether breakers count it; `is_caller_fault` says that another endpoint
    would answer the same, so nobody else is asked; `may_be_billed` that the upstream had the prompt and went to work on it, so that it
    may want money although no answer came. The `upstream_*` fields are the upstream's own words, raw: only
    `services/error_sanitizer.py` may turn them into something that leaves the process.
    """

    def __init__(
        self,
        *,
        kind: FailureKind,
        reason: str,
        error: GatewayError,
        is_endpoint_fault: bool = True,
        is_caller_fault: bool = False,
        may_be_billed: bool = False,
        upstream_status: int | None = None,
        upstream_message: str | None = None,
        upstream_code: str | None = None,
        upstream_param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
        self.error = error
        self.is_endpoint_fault = is_endpoint_fault
        self.is_caller_fault = is_caller_fault
        self.may_be_billed = may_be_billed
        self.upstream_status = upstream_status
        self.upstream_message = upstream_message
        self.upstream_code = upstream_code
        self.upstream_param = upstream_param
        self.retry_after_s = retry_after_s


class EndpointUnfit(AttemptFailed):
    """An endpoint cannot carry this call: its protocol has no words for what is asked, or its provider does not offer it.

    That is no attempt. Nothing was sent, nobody is to blame, nothing is counted; the call goes to the next endpoint, and its caller sees
    `error` only where the model has none that could carry it.
    """

    error: InvalidRequest

    def __init__(self, error: InvalidRequest, *, reason: str = "not_supported") -> None:
        super().__init__(kind=FailureKind.NOTHING_SENT, reason=reason, error=error, is_endpoint_fault=False)


class SettingsError(Exception):
    """The process must not start; the message is one line that names the variable, the fault and an example."""


class SecretKeyMismatch(SettingsError):
    """The database belongs to another `SECRET_KEY`: nothing that it holds of credentials can be used."""

    def __init__(self) -> None:
        super().__init__(
            "SECRET_KEY is not the one that this database was set up with, so no key would be known and no credential could be "
            "opened. Restore it; to change it, set the old one as SECRET_KEY_PREVIOUS and run `python -m app rotate-secret-key`."
        )
