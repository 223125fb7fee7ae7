"""When a quota is whole again, by the headers of those who send no `Retry-After`. T065."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from app.dialects.base import UpstreamProblem
from app.providers.failures import of_status
from app.providers.rate_limits import reset_s

NOW = datetime(2026, 1, 15, 12, 0, tzinfo=UTC)
NO_WORDS = UpstreamProblem(None, None, None, None)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("1s", 1), ("6m0s", 360), ("1h2m3s", 3723), ("20ms", 0.02), ("1.5s", 1.5), ("7", 7), ("12.5", 12.5)],
)
def test_the_reset_of_a_used_up_quota_is_read_as_its_provider_writes_it(said: str, seconds: float) -> None:
    headers = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": said}

    assert reset_s(headers) == pytest.approx(seconds)


@pytest.mark.parametrize("said", ["", "soon", "-1", "1e9", "٣s", "1s1s", "9" * 40, "m", None])
def test_nonsense_says_nothing(said: str | None) -> None:
    headers = {"x-ratelimit-remaining-tokens": "0"} | ({} if said is None else {"x-ratelimit-reset-tokens": said})

    assert reset_s(headers) is None


def test_of_several_quotas_the_last_that_is_used_up_counts() -> None:
    headers = {
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "2s",
        "x-ratelimit-remaining-tokens": "5",
        "x-ratelimit-reset-tokens": "1h0s",
        "anthropic-ratelimit-input-tokens-remaining": "0",
        "anthropic-ratelimit-input-tokens-reset": "2026-01-15T12:00:30Z",
    }

    assert reset_s(headers, now=NOW) == pytest.approx(30)


def test_it_stands_in_where_a_429_names_no_time_itself_within_the_cap() -> None:
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "48h0m0s"}

    assert of_status(429, NO_WORDS, headers=headers).retry_after_s == 300
    assert of_status(429, NO_WORDS, headers=headers | {"retry-after": "7"}).retry_after_s == 7
    assert of_status(500, NO_WORDS, headers=headers).retry_after_s is None
