"""When a quota is whole again, by the headers of those who send no `Retry-After`. T065."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from app.dialects.base import UpstreamProblem
from app.dialects.openai_errors import read_problem
from app.providers.failures import of_status, read_retry_after
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


@pytest.mark.parametrize("name", ["x-ratelimit", "ratelimit"])
@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("30", 30),
        (str(int(NOW.timestamp()) + 30), 30),
        (str(int(NOW.timestamp() * 1000) + 30_000), 30),
        (str(int(NOW.timestamp()) - 30), 0),
        ("soon", None),
        ("-1", None),
        ("9" * 30, None),
    ],
    ids=["seconds", "since 1970", "in ms since 1970", "over", "a word", "negative", "too long"],
)
def test_a_reset_without_a_kind_is_a_wait_or_a_moment(name: str, said: str, seconds: float | None) -> None:
    assert reset_s({f"{name}-remaining": "0", f"{name}-reset": said}, now=NOW) == seconds
    assert reset_s({f"{name}-remaining": "3", f"{name}-reset": said}, now=NOW) is None


def test_an_error_object_may_say_when_to_come_back() -> None:
    body = (
        b'[{"error":{"code":429,"message":"quota","status":"RESOURCE_EXHAUSTED","details":'
        b'[{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"34.5s"}]}}]'
    )
    problem = read_problem(body)

    assert of_status(429, problem).retry_after_s == 34.5
    assert of_status(429, problem, headers={"retry-after": "7"}).retry_after_s == 7, "a header says it best"
    assert of_status(500, problem).retry_after_s is None
    assert of_status(429, read_problem(body.replace(b"34.5s", b"999999s"))).retry_after_s == 300
    assert of_status(429, read_problem(body.replace(b"34.5s", b"-1s"))).retry_after_s is None


def test_a_date_to_come_back_is_read_by_the_clock_of_whoever_says_it() -> None:
    """T065. One hour before ours, say: by our own clock it would be long over."""
    theirs = NOW - timedelta(hours=1)
    headers = {
        "date": format_datetime(theirs, usegmt=True),
        "retry-after": format_datetime(theirs + timedelta(seconds=20), usegmt=True),
    }

    assert read_retry_after(headers, now=NOW) == 20
    assert read_retry_after(headers | {"date": "yesterday"}, now=NOW) == 0
