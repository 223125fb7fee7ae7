"""Does a call fit its model? What will it need? Answered from bytes, before a token is counted."""

from __future__ import annotations

from app.domain.call import Call, Estimate, EstimateKind
from app.domain.catalog import Model
from app.exceptions import ContextLengthExceeded

BYTES_PER_TOKEN = 3
"""English text and code run at about four bytes a token, other scripts at two to three: three rather over- than underestimates."""

MOST_BYTES_PER_TOKEN = 8
"""No text that people send averages more: a prompt that is too long even at this rate is surely too long."""

TOKENS_PER_IMAGE = 1_105
"""A 1024 by 1024 image in high detail, by OpenAI's published tiling rule (85 + 6 tiles of 170)."""

DEFAULT_OUTPUT_TOKENS = 4_096
"""What a call may produce when neither the caller nor the model's registration says."""


def estimate(call: Call, model: Model) -> Estimate:
    """What the call will need at most.

    Raises: ContextLengthExceeded when it surely does not fit. What might fit is left to the upstream, which counts exactly.
    """
    window = model.context_window_tokens
    if window is not None:
        surely = call.prompt_bytes // MOST_BYTES_PER_TOKEN + (call.max_tokens or 0)
        if surely > window:
            raise ContextLengthExceeded(model=call.model, context_window_tokens=window, requested_tokens=surely)
    prompt = -(-call.prompt_bytes // BYTES_PER_TOKEN) + call.images * TOKENS_PER_IMAGE
    return Estimate(prompt, _output_tokens(call, model) * call.choices, EstimateKind.BYTES)


def _output_tokens(call: Call, model: Model) -> int:
    if call.max_tokens is not None:
        return call.max_tokens
    return model.max_output_tokens or DEFAULT_OUTPUT_TOKENS
