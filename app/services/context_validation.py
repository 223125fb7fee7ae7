"""Does a call fit its model? What will it need? Answered from bytes, before a token is counted."""

from __future__ import annotations

from app.domain.call import Call, Estimate, EstimateKind
from app.domain.catalog import Model
from app.domain.media import tokens_of
from app.exceptions import ContextLengthExceeded

BYTES_PER_TOKEN_ASCII = 4
BYTES_PER_TOKEN = 3
"""English text and code run at about four bytes a token, with anything but ASCII among it at three."""

MOST_BYTES_PER_TOKEN = 8
"""No text that people send averages more: a prompt that is too long even at this rate is surely too long."""

TOKENS_AROUND = 32
"""What surrounds a prompt at most: the opening of the reply, a system line that a model's template adds by itself. Each message's own
few tokens are fewer than the bytes of its JSON, which are counted."""
TOKENS_AROUND_TOOLS = 640
"""The system text that a provider adds to explain tools to its model (Anthropic's, the longest one published, is 530)."""

DEFAULT_OUTPUT_TOKENS = 4_096
"""What a call may produce when neither the caller nor the model's registration says."""


def estimate(call: Call, model: Model) -> Estimate:
    """What the call will need, from its bytes alone.

    A tokenizer that works on bytes makes at most one token of each, so `prompt_bound` is never less than the truth.

    Raises: ContextLengthExceeded when it surely does not fit. What might fit is for `app.services.estimation` to count, or for the
    upstream.
    """
    require_room(call, model, call.prompt_bytes // MOST_BYTES_PER_TOKEN)
    media = tokens_of(call.media, tuple(endpoint.upstream_model for endpoint in model.endpoints))
    rate = BYTES_PER_TOKEN_ASCII if call.body.isascii() else BYTES_PER_TOKEN
    around = TOKENS_AROUND + (TOKENS_AROUND_TOOLS if "tools" in call.fields or "functions" in call.fields else 0)
    return Estimate(
        prompt_tokens=-(-call.prompt_bytes // rate) + media.likely,
        completion_tokens=output_tokens(call, model) * call.choices,
        kind=EstimateKind.BYTES,
        prompt_bound=within_window(call.prompt_bytes + around * call.inputs + media.most, call, model),
    )


def require_room(call: Call, model: Model, prompt_tokens: int) -> None:
    """Raises: ContextLengthExceeded when a prompt of so many tokens and what the caller wants back do not fit."""
    window, needed = window_of(call, model), prompt_tokens + (call.max_tokens or 0) * call.inputs
    if window is not None and needed > window:
        raise ContextLengthExceeded(model=call.model, context_window_tokens=window, requested_tokens=needed)


def window_of(call: Call, model: Model) -> int | None:
    """How many tokens all inputs of a call may have together: each of them may fill the model's window."""
    return None if model.context_window_tokens is None else model.context_window_tokens * call.inputs


def within_window(tokens: int, call: Call, model: Model) -> int:
    """No model reads more than its window: what is longer is refused by the upstream and costs nothing."""
    window = window_of(call, model)
    return tokens if window is None else min(tokens, window)


def output_tokens(call: Call, model: Model) -> int:
    """The most that one choice of the call may have."""
    if call.max_tokens is not None:
        return call.max_tokens
    return model.max_output_tokens or DEFAULT_OUTPUT_TOKENS
