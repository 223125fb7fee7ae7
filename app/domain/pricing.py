"""Prices: what a model's tokens cost, and what one call cost. Exact integers; see `app.domain.money` for the units."""

from __future__ import annotations

from dataclasses import dataclass, field

from app.domain.money import NanoUsd, PicoUsd, pico_to_nano_rounded_up


@dataclass(frozen=True, slots=True)
class Usage:
    """What a provider says it processed, in one shape for all of them.

    `prompt_tokens` includes cached and audio tokens, `completion_tokens` includes reasoning and audio tokens; the other
    fields say how much of them was of that kind.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    reasoning_tokens: int = 0
    audio_input_tokens: int = 0
    audio_output_tokens: int = 0
    images: int = 0


@dataclass(frozen=True, slots=True)
class Rates:
    """Unit prices in picodollars. A kind without a rate of its own costs what its family costs (`None`)."""

    input: PicoUsd
    output: PicoUsd
    cached_input: PicoUsd | None = None
    cache_write_5m: PicoUsd | None = None
    cache_write_1h: PicoUsd | None = None
    reasoning: PicoUsd | None = None
    audio_input: PicoUsd | None = None
    audio_output: PicoUsd | None = None


@dataclass(frozen=True, slots=True)
class Tier:
    """Rates that hold for the whole call once its prompt is longer than `above_prompt_tokens`."""

    above_prompt_tokens: int
    rates: Rates


@dataclass(frozen=True, slots=True)
class Price:
    """One row of a price history. `id` is kept on every record, so that an edit never changes the past."""

    id: str
    rates: Rates
    tiers: tuple[Tier, ...] = ()
    """Ascending by `above_prompt_tokens`."""
    request: PicoUsd = PicoUsd(0)
    image: PicoUsd = PicoUsd(0)
    source: str = "operator"
    """"operator", or "price map" where the operator set none."""

    def rates_for(self, prompt_tokens: int) -> Rates:
        rates = self.rates
        for tier in self.tiers:
            if prompt_tokens > tier.above_prompt_tokens:
                rates = tier.rates
        return rates


@dataclass(frozen=True, slots=True)
class CostLine:
    """One factor of the arithmetic: quantity × unit price."""

    what: str
    quantity: int
    unit_pico: PicoUsd


@dataclass(frozen=True, slots=True)
class Cost:
    nanousd: NanoUsd
    lines: tuple[CostLine, ...] = field(default=())


def cost_of(usage: Usage, price: Price) -> Cost:
    """Σ quantity × unit price, rounded up to a nanodollar once. Kinds are parts of their family and never counted twice."""
    rates = price.rates_for(usage.prompt_tokens)
    lines: list[CostLine] = []

    def line(what: str, quantity: int, unit: PicoUsd) -> None:
        if quantity > 0 and unit > 0:
            lines.append(CostLine(what, quantity, unit))

    left = max(0, usage.prompt_tokens)
    for what, quantity, rate in (
        ("cached input", usage.cached_tokens, rates.cached_input),
        ("cache write (5 min)", usage.cache_write_5m_tokens, rates.cache_write_5m),
        ("cache write (1 h)", usage.cache_write_1h_tokens, rates.cache_write_1h),
        ("audio input", usage.audio_input_tokens, rates.audio_input),
    ):
        if rate is not None:
            part = min(left, max(0, quantity))
            left -= part
            line(what, part, rate)
    line("input", left, rates.input)

    left = max(0, usage.completion_tokens)
    for what, quantity, rate in (
        ("reasoning", usage.reasoning_tokens, rates.reasoning),
        ("audio output", usage.audio_output_tokens, rates.audio_output),
    ):
        if rate is not None:
            part = min(left, max(0, quantity))
            left -= part
            line(what, part, rate)
    line("output", left, rates.output)
    line("request", 1, price.request)
    line("image", usage.images, price.image)
    return Cost(
        pico_to_nano_rounded_up(sum(item.quantity * item.unit_pico for item in lines)),
        tuple(lines),
    )


def worst_case(price: Price, *, prompt_tokens: int, completion_tokens: int, images: int = 0) -> NanoUsd:
    """The most a call can cost: every token at the dearest rate of the dearest tier that its prompt can reach."""
    reachable = [
        price.rates,
        *(tier.rates for tier in price.tiers if prompt_tokens > tier.above_prompt_tokens),
    ]
    dearest_input = max(
        max(
            _known(
                r.input,
                r.cached_input,
                r.cache_write_5m,
                r.cache_write_1h,
                r.audio_input,
            )
        )
        for r in reachable
    )
    dearest_output = max(max(_known(r.output, r.reasoning, r.audio_output)) for r in reachable)
    return pico_to_nano_rounded_up(
        prompt_tokens * dearest_input + completion_tokens * dearest_output + price.request + images * price.image
    )


def affordable_completion_tokens(price: Price, *, prompt_tokens: int, budget_nanousd: int) -> int:
    """How many output tokens `budget_nanousd` still pays for after the prompt; 0 when not even the prompt is paid for."""
    reachable = [
        price.rates,
        *(tier.rates for tier in price.tiers if prompt_tokens > tier.above_prompt_tokens),
    ]
    dearest_output = max(max(_known(r.output, r.reasoning, r.audio_output)) for r in reachable)
    left_pico = budget_nanousd * 1000 - worst_case(price, prompt_tokens=prompt_tokens, completion_tokens=0) * 1000
    if left_pico <= 0:
        return 0
    return left_pico // dearest_output if dearest_output else 2**31


def _known(*rates: PicoUsd | None) -> list[int]:
    return [rate for rate in rates if rate is not None]
