"""Which fault of an endpoint a failed attempt shows, if it shows one."""

from __future__ import annotations

from typing import Final

from app.domain.breaker import Fault
from app.exceptions import AttemptFailed, UpstreamBadResponse, UpstreamTimeout, UpstreamTruncated

CREDENTIAL_STATUSES: Final = frozenset({401, 402, 403, 407})
CREDENTIAL_CODES: Final = frozenset(
    {"invalid_api_key", "insufficient_quota", "billing_hard_limit_reached", "account_deactivated"}
)
"""Some providers say these with 400, 404 or 429; they concern our account all the same, and waiting does not mend it."""
CERTIFICATE_REASON: Final = "tls_certificate"
"""As the transport names it: expired, self-signed, of another host, or of an authority that is not trusted."""
BUSY_STATUSES: Final = frozenset({429, 498, 529})
"""498: Groq's word for a flexible tier that has no room."""


def fault_of(failure: AttemptFailed) -> Fault | None:
    """None: the endpoint is not to blame."""
    if not failure.is_endpoint_fault:
        return None
    if failure.reason == CERTIFICATE_REASON:
        return Fault.CERTIFICATE
    status = failure.upstream_status
    if status in CREDENTIAL_STATUSES or failure.upstream_code in CREDENTIAL_CODES:
        return Fault.CREDENTIAL
    if status in BUSY_STATUSES or failure.retry_after_s is not None:
        return Fault.BUSY
    match failure.error:
        case UpstreamTimeout():
            return Fault.TIMEOUT
        case UpstreamTruncated():
            return Fault.TRUNCATED
        case UpstreamBadResponse():
            return Fault.BAD_ANSWER
        case _:
            return Fault.ERROR
