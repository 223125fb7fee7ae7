"""Which figures of a provider are believed. Truth has no upper bound we know, but nonsense has a lower one: ten times too much."""

from __future__ import annotations

from app.domain.call import Estimate
from app.domain.pricing import Usage

TIMES_TOO_MUCH = 10
LEAST_PROMPT_TOKENS = 1_000
"""Providers put instructions of their own before a short prompt, some of them search results: so much may always be there."""
LEAST_COMPLETION_TOKENS = 16
"""A cap of one token is not held to the letter by every server."""


def believable(
    usage: Usage, estimate: Estimate | None, context_window_tokens: int | None, *, delivered_tokens: int = 0
) -> Usage | None:
    """The usage, or None when it cannot be true: a negative figure, ten times the tokens that a prompt of this size can have,
    ten times the answer that was asked for, ten times what the model can hold; or nothing at all for an answer that came."""
    figures = (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.reasoning_tokens)
    if min(figures) < 0 or (usage.is_nothing and delivered_tokens > 0):
        return None
    window = context_window_tokens
    if window is not None and usage.prompt_tokens + usage.completion_tokens > TIMES_TOO_MUCH * window:
        return None
    if estimate is None:
        return usage
    prompt = max(estimate.prompt_bound, estimate.prompt_tokens, LEAST_PROMPT_TOKENS)
    completion = max(estimate.completion_tokens, LEAST_COMPLETION_TOKENS)
    if usage.prompt_tokens > TIMES_TOO_MUCH * prompt or usage.completion_tokens > TIMES_TOO_MUCH * completion:
        return None
    return usage


def disbelief(usage: Usage) -> str:
    """The note on a record whose usage was not believed."""
    return (
        f"The provider reported {usage.prompt_tokens} prompt and {usage.completion_tokens} completion tokens, which cannot be "
        "true: the call is billed by what was sent and seen."
    )
