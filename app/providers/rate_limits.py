"""When a used-up quota is whole again, by the headers that providers send beside a 429: `Retry-After` says it best, but not all send it.

OpenAI and its like: `x-ratelimit-remaining-requests: 0` with `x-ratelimit-reset-requests: 6m0s`, and the same for tokens. Anthropic:
`anthropic-ratelimit-requests-remaining: 0` with `…-reset` as an RFC 3339 time. OpenRouter and others: `x-ratelimit-remaining: 0` with
`x-ratelimit-reset`, the IETF's draft: `ratelimit-remaining: 0` with `ratelimit-reset`; in seconds from now, or since 1970, or in ms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

KINDS: Final = ("requests", "tokens", "input-tokens", "output-tokens")
_DURATION: Final = re.compile(
    r"(?:(\d{1,4})h)?(?:(\d{1,5})m(?!s))?(?:(\d{1,6}(?:\.\d{1,9})?)s)?(?:(\d{1,9})ms)?\Z", re.ASCII
)
_EPOCH: Final = re.compile(r"\d{1,14}(?:\.\d{1,9})?\Z", re.ASCII)
SINCE_1970_S: Final = 1_000_000_000
"""A larger number is no waiting time but a moment after 2001."""
_NUMBER: Final = re.compile(r"\d{1,9}(?:\.\d{1,9})?\Z", re.ASCII)


def reset_s(headers: Mapping[str, str], *, now: datetime | None = None) -> float | None:
    """In how many seconds the last of the quotas that are used up is free again; None where the headers do not say."""
    waits = []
    for kind in KINDS:
        if headers.get(f"x-ratelimit-remaining-{kind}") == "0":
            waits.append(_duration_s(headers.get(f"x-ratelimit-reset-{kind}")))
        if headers.get(f"anthropic-ratelimit-{kind}-remaining") == "0":
            waits.append(_until_s(headers.get(f"anthropic-ratelimit-{kind}-reset"), now or datetime.now(UTC)))
    for name in ("x-ratelimit", "ratelimit"):
        if headers.get(f"{name}-remaining") == "0":
            waits.append(_from_number_s(headers.get(f"{name}-reset"), now or datetime.now(UTC)))
    return max((wait for wait in waits if wait is not None), default=None)


def _duration_s(text: str | None) -> float | None:
    """`6m0s`, `1.5s`, `20ms`, or plain seconds."""
    if not text or len(text) > 30:
        return None
    text = text.strip()
    if _NUMBER.match(text):
        return float(text)
    found = _DURATION.match(text)
    if found is None or not any(found.groups()):
        return None
    hours, minutes, seconds, milliseconds = (float(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


def _from_number_s(text: str | None, now: datetime) -> float | None:
    """A number of seconds; one that is a moment of this century is one, in seconds or milliseconds."""
    if not text or not _EPOCH.match(text):
        return None
    number = float(text)
    if number >= SINCE_1970_S * 1000:
        number /= 1000
    return number if number < SINCE_1970_S else max(0.0, number - now.timestamp())


def _until_s(text: str | None, now: datetime) -> float | None:
    if not text or len(text) > 40:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return max(0.0, ((at if at.tzinfo else at.replace(tzinfo=UTC)) - now).total_seconds())
