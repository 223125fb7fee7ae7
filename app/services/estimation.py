"""How many tokens: from bytes first, and from a tokenizer, off the event loop, only where the answer could change.

It can change three things: whether a long prompt is refused for its model's window, whether a budget that is nearly empty pays for the
call (`refined`), and the bill of an answer whose provider never said what it used (`counted`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec.structs import replace

from app.domain.call import Call, Candidate, Estimate, EstimateKind, Meter, Quality
from app.domain.catalog import Catalog, Model
from app.domain.media import tokens_of
from app.domain.pricing import Usage
from app.exceptions import ContextLengthExceeded, ModelNotAllowed, ModelNotFound
from app.services import context_validation

FOREIGN_MARGIN_PERCENT = 130
"""Other makers' vocabularies need up to about this much of what OpenAI's needs for the same text."""
OWN_MARGIN_PERCENT = 103
OWN_MARGIN_TOOLS_PERCENT = 120
"""What a count may be short of by the provider's own: its way of writing messages is documented, of writing tools half so."""
OWN_MARGIN_TOKENS = 16
DOUBTFUL_FACTOR = 2
"""Dense text (base64, digits, rare scripts) has at most about twice the tokens that its bytes make likely."""


class Tokenizer(Protocol):
    """Counts text. None where that cannot be had: no vocabulary, too much text, or too much of it waiting."""

    async def count(self, call: Call, model: Model) -> int | None:
        """Tokens of a call's prompt but its pictures, sounds and documents, as OpenAI writes a prompt out."""
        ...

    async def count_texts(self, texts: Sequence[str], model: Model) -> int | None: ...

    def is_own(self, model: Model) -> bool:
        """Whether the vocabulary is the model's own, so that the count is the provider's but for what surrounds the text."""
        ...


class NoTokenizer:
    """Where bytes must do."""

    async def count(self, call: Call, model: Model) -> int | None:
        return None

    async def count_texts(self, texts: Sequence[str], model: Model) -> int | None:
        return None

    def is_own(self, model: Model) -> bool:
        return False


class Estimation:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    async def of(self, call: Call, model: Model) -> Estimate:
        """What a call will need. Raises: ContextLengthExceeded when it surely does not fit its model."""
        estimate = context_validation.estimate(call, model)
        if not _is_doubtful(estimate, call, model):
            return estimate
        counted = await self._tokenizer.count(call, model)
        if counted is None:
            return estimate
        is_own = self._tokenizer.is_own(model)
        context_validation.require_room(call, model, counted if is_own else counted * 100 // FOREIGN_MARGIN_PERCENT)
        return self._with_count(estimate, counted, call, model)

    async def fitted(self, meter: Meter, model: Model, catalog: Catalog) -> Model:
        """Write into the meter what the call will need. Returns the model, or the first of its fallbacks that has room for a prompt
        which is too long for it. Raises: ContextLengthExceeded when it fits none."""
        try:
            meter.estimate = await self.of(meter.call, model)
        except ContextLengthExceeded as error:
            if not model.fallbacks:
                raise
            return await self._fallback_with_room(meter, model, catalog, error)
        return model

    async def _fallback_with_room(
        self, meter: Meter, model: Model, catalog: Catalog, error: ContextLengthExceeded
    ) -> Model:
        meter.candidates.append(Candidate(f"model {model.name}", "prompt too long"))
        for name in model.fallbacks:
            try:
                fallback = catalog.model_for(meter.identity, name)
                meter.estimate = await self.of(meter.call, fallback)
            except (ModelNotFound, ModelNotAllowed, ContextLengthExceeded) as why:
                meter.candidates.append(Candidate(f"model {name}", f"fallback refused: {why.code}"))
                continue
            return fallback
        raise error

    async def prompt_tokens(self, call: Call, model: Model) -> int:
        """The prompt alone, counted as well as it can be. Raises: ContextLengthExceeded when it surely does not fit its model."""
        return (await self.refined(context_validation.estimate(call, model), call, model)).prompt_tokens

    async def refined(self, estimate: Estimate, call: Call, model: Model) -> Estimate:
        """The estimate with the prompt counted; as it was, where it is counted already or cannot be.

        `prompt_bound` comes down only for a model whose own vocabulary counted it: what another one makes of a text is a guess.
        """
        if estimate.kind is EstimateKind.TOKENIZER:
            return estimate
        counted = await self._tokenizer.count(call, model)
        return estimate if counted is None else self._with_count(estimate, counted, call, model)

    def _with_count(self, estimate: Estimate, counted: int, call: Call, model: Model) -> Estimate:
        media = tokens_of(call.media, tuple(endpoint.upstream_model for endpoint in model.endpoints))
        if not self._tokenizer.is_own(model):
            likely = _with_margin(counted, FOREIGN_MARGIN_PERCENT) + media.likely
            return replace(
                estimate,
                prompt_tokens=min(likely, estimate.prompt_bound),
                kind=EstimateKind.TOKENIZER,
            )
        has_tools = "tools" in call.fields or "functions" in call.fields
        margin = OWN_MARGIN_TOOLS_PERCENT if has_tools else OWN_MARGIN_PERCENT
        most = _with_margin(counted, margin) + OWN_MARGIN_TOKENS * call.inputs + media.most
        return replace(
            estimate,
            prompt_tokens=counted + media.likely,
            prompt_bound=min(estimate.prompt_bound, context_validation.within_window(most, call, model)),
            kind=EstimateKind.TOKENIZER,
        )

    async def output_tokens(self, texts: Sequence[str], model: Model) -> int | None:
        """Tokens of what a model said, without a margin: for most models fewer than the truth, if anything."""
        return await self._tokenizer.count_texts(texts, model)

    def is_own(self, model: Model) -> bool:
        return self._tokenizer.is_own(model)

    async def counted(self, meter: Meter, texts: Sequence[str]) -> None:
        """Write into the meter what an answer used whose provider did not say, counted as well as it can be."""
        if meter.model is None or meter.estimate is None:
            return
        meter.estimate = await self.refined(meter.estimate, meter.call, meter.model)
        completion = await self.output_tokens(texts, meter.model)
        if completion:
            meter.delivered_tokens = completion
        meter.usage = Usage(meter.estimate.prompt_tokens, meter.delivered_tokens)
        meter.quality = Quality.ESTIMATED


def _is_doubtful(estimate: Estimate, call: Call, model: Model) -> bool:
    """Whether the prompt may be too long for the model's window, as far as bytes can tell."""
    window = context_validation.window_of(call, model)
    if window is None:
        return False
    wanted = (call.max_tokens or 0) * call.inputs
    may_be = min(
        estimate.prompt_tokens * DOUBTFUL_FACTOR, call.prompt_bytes + context_validation.TOKENS_AROUND * call.inputs
    )
    return may_be + wanted > window


def _with_margin(tokens: int, percent: int) -> int:
    return -(-tokens * percent // 100)
