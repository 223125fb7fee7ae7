"""Estimates: from bytes, and counted only where the answer could change."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.call import Call, EstimateKind, Meter, Quality
from app.domain.catalog import Model
from app.exceptions import ContextLengthExceeded
from app.services import context_validation
from app.services.estimation import Estimation, NoTokenizer
from tests.services.metered import a_call, a_meter, a_model


class Says(NoTokenizer):
    """A tokenizer that says what it is told to say."""

    def __init__(self, tokens: int | None, *, is_own: bool = True) -> None:
        self.tokens, self._is_own, self.asked = tokens, is_own, 0

    async def count(self, call: Call, model: Model) -> int | None:
        self.asked += 1
        return self.tokens

    async def count_texts(self, texts: Sequence[str], model: Model) -> int | None:
        self.asked += 1
        return self.tokens

    def is_own(self, model: Model) -> bool:
        return self._is_own


async def test_a_prompt_far_within_its_window_is_not_counted() -> None:
    tokenizer = Says(1)
    estimate = await Estimation(tokenizer).of(a_call("hello " * 1000), a_model(window=100_000))
    assert (tokenizer.asked, estimate.kind) == (0, EstimateKind.BYTES)
    assert estimate.prompt_tokens == pytest.approx(6000 / 4, rel=0.05)
    assert estimate.prompt_bound > 6000


async def test_text_that_is_not_ascii_is_taken_for_denser() -> None:
    estimation = Estimation(NoTokenizer())
    plain, other = (
        await estimation.of(a_call("x" * 3000), a_model()),
        await estimation.of(a_call("漢" * 1000), a_model()),
    )
    assert other.prompt_tokens > plain.prompt_tokens * 1.3


async def test_a_prompt_that_is_surely_too_long_is_refused_without_counting() -> None:
    tokenizer = Says(1)
    with pytest.raises(ContextLengthExceeded):
        await Estimation(tokenizer).of(a_call("x" * 9_000), a_model(window=1_000))
    assert tokenizer.asked == 0


@pytest.mark.parametrize(("counted", "is_refused"), [(900, False), (901, True)])
async def test_a_doubtful_prompt_is_counted_and_judged_by_the_count(counted: int, is_refused: bool) -> None:
    estimation, call, model = Estimation(Says(counted)), a_call("x" * 4_000, max_tokens=100), a_model(window=1_000)
    if is_refused:
        with pytest.raises(ContextLengthExceeded):
            await estimation.of(call, model)
    else:
        estimate = await estimation.of(call, model)
        assert (estimate.prompt_tokens, estimate.kind) == (900, EstimateKind.TOKENIZER)


@pytest.mark.parametrize("counted", [1_100, None])
async def test_what_might_fit_is_left_to_the_upstream(counted: int | None) -> None:
    """Another maker's tokenizer may need fewer tokens; and without a count nobody knows."""
    estimate = await Estimation(Says(counted, is_own=False)).of(a_call("x" * 4_000), a_model("llama", window=1_000))
    assert estimate.prompt_bound == 1_000, "no more than the window can be used"


async def test_a_refined_estimate_lowers_the_bound_only_for_the_models_own_vocabulary() -> None:
    call = a_call("hello " * 1000)
    for is_own, likely in ((True, 1007), (False, 1310)):
        estimation = Estimation(Says(1007, is_own=is_own))
        bytes_only = await estimation.of(call, a_model())
        refined = await estimation.refined(bytes_only, call, a_model())
        assert refined.prompt_tokens == likely
        assert refined.kind is EstimateKind.TOKENIZER
        assert (refined.prompt_bound < bytes_only.prompt_bound) is is_own
        assert refined.prompt_bound >= refined.prompt_tokens


async def test_what_is_counted_already_is_not_counted_again() -> None:
    tokenizer, call = Says(7), a_call("hello")
    estimation = Estimation(tokenizer)
    once = await estimation.refined(await estimation.of(call, a_model()), call, a_model())
    assert await estimation.refined(once, call, a_model()) is once
    assert tokenizer.asked == 1


async def test_an_answer_without_usage_is_counted_as_estimated() -> None:
    meter: Meter = a_meter(model=a_model("gpt-4o"))
    meter.delivered_tokens = 99
    await Estimation(Says(42)).counted(meter, ["some text"])
    assert meter.usage is not None
    assert (meter.usage.completion_tokens, meter.quality) == (42, Quality.ESTIMATED)


async def test_without_a_tokenizer_what_passed_is_billed() -> None:
    meter = a_meter()
    meter.delivered_tokens = 99
    await Estimation(NoTokenizer()).counted(meter, ["some text"])
    assert meter.usage is not None
    assert (meter.usage.prompt_tokens, meter.usage.completion_tokens) == (10, 99)


@given(st.text(max_size=500), st.integers(1, 5))
def test_the_bound_is_never_below_what_is_likely(text: str, choices: int) -> None:
    estimate = context_validation.estimate(a_call(text, n=choices), a_model())
    assert 0 < estimate.prompt_tokens <= estimate.prompt_bound
    assert estimate.completion_tokens == choices * 4096
