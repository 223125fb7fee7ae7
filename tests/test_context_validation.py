"""What a call will need, told from its bytes: refused only when it surely cannot fit, and never thought to need nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.exceptions import ContextLengthExceeded
from app.services.context_validation import MOST_BYTES_PER_TOKEN, estimate
from tests.calls import a_call, a_model

BYTES = st.integers(min_value=0, max_value=20 * 1024 * 1024)
MAX_TOKENS = st.none() | st.integers(min_value=1, max_value=10**9)
WINDOWS = st.none() | st.integers(min_value=1, max_value=2_000_000)


@given(BYTES, MAX_TOKENS, st.integers(min_value=1, max_value=128), st.none() | st.integers(1, 10**6))
def test_an_estimate_is_positive_finite_and_covers_every_choice(
    prompt_bytes: int, max_tokens: int | None, choices: int, most_of_the_model: int | None
) -> None:
    """T045."""
    call = a_call(prompt_bytes=prompt_bytes, max_tokens=max_tokens, choices=choices)

    needed = estimate(call, a_model(max_output_tokens=most_of_the_model))

    assert needed.completion_tokens > 0
    assert needed.completion_tokens % choices == 0
    assert 0 <= needed.prompt_tokens <= prompt_bytes + 1_000
    assert needed.total_tokens == needed.prompt_tokens + needed.completion_tokens
    if max_tokens is not None:
        assert needed.completion_tokens == max_tokens * choices


@given(st.text(max_size=500))
def test_text_is_thought_to_need_at_least_a_token_for_every_eight_bytes(text: str) -> None:
    size = len(text.encode("utf-8", "surrogatepass"))

    assert estimate(a_call(prompt_bytes=size), a_model()).prompt_tokens * 8 >= size


@given(BYTES, BYTES)
def test_a_longer_prompt_is_never_thought_to_need_less(one: int, other: int) -> None:
    fewer, more = sorted((one, other))

    def tokens(size: int) -> int:
        return estimate(a_call(prompt_bytes=size), a_model()).prompt_tokens

    assert tokens(fewer) <= tokens(more)


def test_without_a_word_of_the_caller_the_models_own_maximum_counts() -> None:
    call = a_call(max_tokens=None)

    assert estimate(call, a_model(max_output_tokens=777)).completion_tokens == 777
    assert estimate(call, a_model(max_output_tokens=None)).completion_tokens > 0


def test_a_word_of_the_caller_counts_more_than_the_models_maximum() -> None:
    assert estimate(a_call(max_tokens=5), a_model(max_output_tokens=777)).completion_tokens == 5


@pytest.mark.parametrize(
    ("window", "prompt_bytes", "max_tokens", "fits"),
    [
        (1_000, MOST_BYTES_PER_TOKEN * 1_000, None, True),
        (1_000, MOST_BYTES_PER_TOKEN * 1_001, None, False),
        (1_000, 0, 1_000, True),
        (1_000, 0, 1_001, False),
        (1_000, MOST_BYTES_PER_TOKEN * 600, 400, True),
        (1_000, MOST_BYTES_PER_TOKEN * 600, 401, False),
        (None, 20 * 1024 * 1024, 10**9, True),
    ],
)
def test_only_what_surely_does_not_fit_is_refused(
    window: int | None, prompt_bytes: int, max_tokens: int | None, fits: bool
) -> None:
    call, model = a_call(prompt_bytes=prompt_bytes, max_tokens=max_tokens), a_model(context_window_tokens=window)

    if fits:
        estimate(call, model)
    else:
        with pytest.raises(ContextLengthExceeded):
            estimate(call, model)


def test_the_refusal_says_what_the_model_takes_and_what_was_asked_for() -> None:
    with pytest.raises(ContextLengthExceeded) as told:
        estimate(a_call(max_tokens=5_000, prompt_bytes=0), a_model(context_window_tokens=4_096))

    assert (told.value.status, told.value.code, told.value.param) == (400, "context_length_exceeded", "messages")
    assert "4096" in told.value.message
    assert "5000" in told.value.message


@given(BYTES, MAX_TOKENS, WINDOWS)
def test_a_refusal_is_never_wrong_for_text_of_at_most_eight_bytes_a_token(
    prompt_bytes: int, max_tokens: int | None, window: int | None
) -> None:
    fewest_tokens = prompt_bytes // 8 + (max_tokens or 0)
    try:
        estimate(a_call(prompt_bytes=prompt_bytes, max_tokens=max_tokens), a_model(context_window_tokens=window))
    except ContextLengthExceeded:
        assert window is not None
        assert fewest_tokens > window
