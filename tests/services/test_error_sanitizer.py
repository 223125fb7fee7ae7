"""What of an upstream's words may reach a caller: its message where the fault is his, and never what was not meant for him."""

from __future__ import annotations

import string
import timeit

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from app.exceptions import (
    AttemptFailed,
    FailureKind,
    GatewayError,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
)
from app.services.error_sanitizer import FIXED, MAX_MESSAGE_CHARS, caller_error, clean


def failure(
    message: str | None = None,
    *,
    status: int | None = 400,
    code: str | None = None,
    param: str | None = None,
    is_caller_fault: bool = True,
    error: GatewayError | None = None,
) -> AttemptFailed:
    return AttemptFailed(
        kind=FailureKind.NO_ANSWER,
        reason=f"status_{status}",
        error=error or UpstreamError(),
        is_caller_fault=is_caller_fault,
        upstream_status=status,
        upstream_message=message,
        upstream_code=code,
        upstream_param=param,
    )


LEAKS = [
    # what an upstream said, and what of it nobody may read
    ("Incorrect API key provided: sk-proj-Abcdef0123456789xyz. You can find your key here.", ["Abcdef0123456789xyz"]),
    ("Incorrect API key provided: sk-abcdefghijklmnopqrst", ["abcdefghijklmnop"]),
    ("invalid x-api-key: sk-ant-api03-AAAA_BBBB-CCCC", ["AAAA_BBBB", "api03"]),
    ("API key not valid: AIzaSyD-1234567890abcdefghijklmnopqrstu", ["SyD-1234567890"]),
    ("The security token AKIAIOSFODNN7EXAMPLE is invalid", ["IOSFODNN7EXAMPLE"]),
    ("key gsk_0123456789abcdef was revoked", ["0123456789abcdef"]),
    ("token hf_AbCdEfGhIjKlMnOp is not authorised", ["AbCdEfGhIjKlMnOp"]),
    ("Authorization: Bearer abc123.def456.ghi789", ["abc123", "def456"]),
    ('{"Authorization": "Bearer tiny-token-1"}', ["tiny-token-1"]),
    ("Authorization: Basic dXNlcjpodW50ZXIy", ["dXNlcjpodW50ZXIy"]),
    ("sent with bearer s3cr3t", ["s3cr3t"]),
    ('headers={"api-key": "0123456789abcdef0123456789abcdef"}', ["0123456789abcdef"]),
    ("config: {'api_key': 'hunter2hunter2', 'model': 'x'}", ["hunter2"]),
    ("password=hunter2 was refused", ["hunter2"]),
    ("client_secret = correcthorse", ["correcthorse"]),
    ("access_token: eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", ["eyJhbGciOiJ", "eyJzdWIi", "c2lnbmF0dXJl"]),
    ("POST https://10.0.3.7:8443/v1/chat?key=AIzaShort1 failed", ["10.0.3.7", "AIzaShort1", "8443"]),
    ("see http://user:pass@internal.corp/health", ["user", "pass", "internal.corp"]),
    ("request to /v1beta/models/gemini-pro:generateContent?key=shortkey1 failed", ["shortkey1"]),
    ("upstream 192.168.17.4:9000 unreachable", ["192.168.17.4"]),
    ("connect to localhost:11434 refused", ["localhost", "11434"]),
    ("Cannot connect to host llm-7.internal.corp:8000 ssl:default", ["llm-7", "internal.corp", "8000"]),
    ("no route to [fd12:3456:789a::1]:8443", ["fd12", "789a"]),
    ("redis://:topsecret@cache:6379/0 is down", ["topsecret", "cache", "6379"]),
    (
        'Bad request\nTraceback (most recent call last):\n  File "/srv/app/secret_place.py", line 3, in f\n    boom()\nKeyError',
        ["Traceback", "/srv/app", "secret_place", "boom", "KeyError"],
    ),
    ('oops File "/opt/vllm/engine.py", line 10, in step', ["/opt/vllm", "engine.py", "step"]),
    (
        "Error: x\n    at Object.handle (/srv/node/index.js:10:5)\n    at next (/srv/node/b.js:1:1)",
        ["/srv/node", "index.js"],
    ),
    ("Error: x\n    at /srv/node/index.js:10:5", ["/srv/node", "index.js"]),
    (
        "boom\n\tat com.corp.Secret.run(Secret.java:10)\n\tat java.lang.Thread.run(Unknown Source)",
        ["com.corp", "Secret"],
    ),
    (
        "panic: x\n\ngoroutine 7 [running]:\nmain.secretWork(0xc000)\n\t/build/main.go:10 +0x1",
        ["goroutine", "secretWork"],
    ),
    ("opaque " + "Zm9vYmFy" * 8, ["Zm9vYmFyZm9vYmFy"]),
]


@pytest.mark.parametrize(("said", "never"), LEAKS, ids=[said[:40] for said, _ in LEAKS])
def test_what_was_not_meant_for_a_caller_is_struck_out(said: str, never: list[str]) -> None:
    """T068."""
    shown = caller_error(failure(said)).message

    assert [part for part in never if part in shown] == []


PLAIN = [
    "Invalid value for 'temperature': must be between 0 and 2.",
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
    "'messages[3].content' is too long: 1048577 characters, at most 1048576.",
    "The model `meta-llama/Llama-3.1-8B-Instruct` does not exist.",
    "Your request was rejected by the content policy (category: violence).",
    "Zu viele Nachrichten: höchstens 100 – bitte kürzen. 请求太长。",
    "You must provide at least one of: tools, functions.",
    "Version 1.2.3 of the schema is needed; tool names match ^[a-zA-Z0-9_-]{1,64}$.",
]


@pytest.mark.parametrize("said", PLAIN)
def test_a_message_that_helps_the_caller_reaches_him_unchanged(said: str) -> None:
    assert caller_error(failure(said)).message == said


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
SECRET_CHARACTERS = string.ascii_letters + string.digits
SECRETS = st.text(SECRET_CHARACTERS, min_size=12, max_size=64)


@given(WORDS, SECRETS, WORDS, st.integers(min_value=1, max_value=4))
def test_a_secret_of_the_endpoint_never_survives_wherever_it_is_planted(
    before: str, secret: str, after: str, times: int
) -> None:
    said = (before + secret + after) * times

    for text in (clean(said, secrets=(secret,)), caller_error(failure(said), secrets=(secret,)).message):
        assert secret not in text


@given(
    WORDS,
    st.sampled_from(
        ["sk-", "sk-ant-", "sk-proj-", "AIza", "gsk_", "Bearer ", "api_key=", "token: ", "Authorization: Bearer "]
    ),
    st.text(SECRET_CHARACTERS, min_size=16, max_size=64),
    st.sampled_from(["", " ", ".", '"', "'", ",", "}", "\n", ")"]),
)
def test_a_credential_in_any_usual_form_never_survives(before: str, prefix: str, secret: str, after: str) -> None:
    assume(secret not in before)

    assert secret not in clean(f"{before} {prefix}{secret}{after}")


@given(SECRETS)
def test_a_secret_in_a_code_or_parameter_never_survives(secret: str) -> None:
    error = caller_error(failure("x", code=secret, param=secret), secrets=(secret,))

    assert secret not in f"{error.code} {error.param}"


def test_a_key_in_a_code_or_parameter_is_known_by_its_form() -> None:
    error = caller_error(failure("x", code="sk-proj-abcdef123456", param="sk-ant-abcdef123456"))

    assert (error.code, error.param) == ("invalid_request", None)


@given(WORDS)
def test_what_is_shown_is_one_printable_line_of_bounded_length(said: str) -> None:
    shown = caller_error(failure(said * 50)).message

    assert 0 < len(shown) <= MAX_MESSAGE_CHARS
    assert not any(ord(c) < 32 or 0x7F <= ord(c) <= 0x9F or c in "\u2028\u2029\u202e" for c in shown)


HOSTILE = [
    "a-",
    "a.",
    "1.",
    "[a:",
    "host x:",
    " ",
    "\n ",
    "\n at ",
    'File "x',
    "token",
    "secret = ",
    "?key=",
    "bearer ",
    "a",
    "://",
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_no_text_makes_the_search_slow(piece: str) -> None:
    """An upstream must not be able to stall every other call of this process: 5 ms is the house's limit, here with slack."""
    text = piece * 4_000

    fastest_s = min(timeit.repeat(lambda: clean(text), number=1, repeat=3))

    assert fastest_s < 0.05


def test_a_message_of_megabytes_is_cut_before_it_is_searched() -> None:
    assert len(clean("a " * 5_000_000)) == MAX_MESSAGE_CHARS


@pytest.mark.parametrize("said", [None, "", "  \n\t ", "\x00"])
def test_an_upstream_without_words_is_given_ours(said: str | None) -> None:
    assert caller_error(failure(said)).message == FIXED


@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_a_callers_fault_keeps_its_status_code_and_parameter(status: int) -> None:
    error = caller_error(failure("no", status=status, code="invalid_value", param="messages[0].role"))

    assert isinstance(error, UpstreamRejected)
    assert (error.status, error.code, error.param) == (status, "invalid_value", "messages[0].role")


@pytest.mark.parametrize("odd", ["", "two words", "x" * 65, 'a"b', "a\nb", "{}", "é"])
def test_a_code_or_parameter_that_is_no_plain_word_is_dropped(odd: str) -> None:
    error = caller_error(failure("no", code=odd, param=odd))

    assert (error.code, error.param) == ("invalid_request", None)


def test_a_fault_of_the_upstream_is_told_in_our_own_words() -> None:
    timeout = UpstreamTimeout()

    told = caller_error(failure("secret things", status=500, is_caller_fault=False, error=timeout))

    assert told is timeout
    assert "secret" not in told.message


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("context_length_exceeded", "This model's maximum context length is 8192 tokens."),
        (None, "This model's maximum context length is 8192 tokens, however you requested 9000."),
        ("invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum"),
        ("string_above_max_length", "Input exceeds the context window of this model."),
        (None, "too many tokens in the request"),
    ],
)
@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_prompt_that_is_too_long_is_told_alike_whoever_says_it(code: str | None, said: str, status: int) -> None:
    error = caller_error(failure(said, status=status, code=code))

    assert (error.status, error.code) == (400, "context_length_exceeded")
    assert error.message == said


def test_an_unknown_status_is_the_callers_400() -> None:
    assert caller_error(failure("no", status=None)).status == 400


@pytest.mark.parametrize("code", ["400", "1000"])
def test_a_number_is_no_code(code: str) -> None:
    assert caller_error(failure("no", code=code)).code == "invalid_request"


def test_a_providers_rules_are_told_as_a_400_whatever_its_own_status() -> None:
    """403 is the gateway's word for what a credential may not do."""
    error = caller_error(failure("flagged", status=403, code="content_filter"))
    assert (error.status, error.code) == (400, "content_filter")
