"""Prices: what a model's tokens cost, and what one call cost. Exact integers; see `app.domain.money` for the units."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import msgspec

from app.domain.money import PICO_PER_NANO, NanoUsd, PicoUsd, pico_to_nano_rounded_up


class Usage(msgspec.Struct, frozen=True):
    """What a provider says it processed, in one shape for all of them.

    `prompt_tokens` includes cached, audio and image tokens, `completion_tokens` includes reasoning, audio and image tokens;
    the other fields say how much of them was of that kind.
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
    cached_audio_tokens: int = 0
    """Part of both the cached and the audio input."""
    image_input_tokens: int = 0
    image_output_tokens: int = 0
    service_tier: str | None = None
    """As the provider names how it served the call; None where it did not say, which costs what the default costs."""

    @property
    def is_nothing(self) -> bool:
        """Nothing but zeros."""
        return not (self.prompt_tokens or self.completion_tokens or self.images or self.cached_tokens)


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
    cached_audio_input: PicoUsd | None = None
    image_input: PicoUsd | None = None
    image_output: PicoUsd | None = None
    dearest: tuple[PicoUsd, PicoUsd] = field(init=False, repr=False, compare=False)
    """The dearest kind of input, and of output; looked for once, and asked for by every call."""
    is_plain: bool = field(init=False, repr=False, compare=False)
    """No kind has a rate of its own."""

    def __post_init__(self) -> None:
        cache = (self.cached_input, self.cached_audio_input, self.cache_write_5m, self.cache_write_1h)
        inputs = _known(*cache, self.audio_input, self.image_input)
        outputs = _known(self.reasoning, self.audio_output, self.image_output)
        object.__setattr__(self, "dearest", (max([self.input, *inputs]), max([self.output, *outputs])))
        object.__setattr__(self, "is_plain", not inputs and not outputs)


@dataclass(frozen=True, slots=True)
class Tier:
    """Rates that hold for the whole call once its prompt is longer than `above_prompt_tokens`."""

    above_prompt_tokens: int
    rates: Rates


@dataclass(frozen=True, slots=True)
class ServiceTier:
    """Rates that hold for the whole call where the provider served it as `name` (priority, flex, batch …)."""

    name: str
    rates: Rates
    tiers: tuple[Tier, ...] = ()
    """Ascending by `above_prompt_tokens`."""


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

    service_tiers: tuple[ServiceTier, ...] = ()

    def rates_for(self, prompt_tokens: int, service_tier: str | None = None) -> Rates:
        """A service tier that the price does not know (`default`, `standard` …) costs the price's own rates."""
        served: Price | ServiceTier = self
        if service_tier is not None and self.service_tiers:
            served = next((tier for tier in self.service_tiers if tier.name == service_tier), self)
        rates = served.rates
        for tier in served.tiers:
            if prompt_tokens > tier.above_prompt_tokens:
                rates = tier.rates
        return rates


class CostLine(msgspec.Struct, frozen=True):
    """One factor of the arithmetic: quantity × unit price."""

    what: str
    quantity: int
    unit_pico: PicoUsd


class Cost(msgspec.Struct, frozen=True):
    nanousd: NanoUsd
    lines: tuple[CostLine, ...] = ()


def cost_of(usage: Usage, price: Price) -> Cost:
    """Σ quantity × unit price, rounded up to a nanodollar once. Kinds are parts of their family and never counted twice."""
    rates = price.rates_for(usage.prompt_tokens, usage.service_tier)
    of_input = () if rates.is_plain else _kinds_of_input(usage, rates)
    of_output = () if rates.is_plain else _kinds_of_output(usage, rates)
    lines = [
        *_family("input", usage.prompt_tokens, rates.input, of_input),
        *_family("output", usage.completion_tokens, rates.output, of_output),
        CostLine("request", 1, price.request),
        CostLine("image", usage.images, price.image),
    ]
    charged = tuple([line for line in lines if line.quantity > 0 and line.unit_pico > 0])
    return Cost(pico_to_nano_rounded_up(sum([line.quantity * line.unit_pico for line in charged])), charged)


_Kind = tuple[str, int, PicoUsd | None]


def _kinds_of_input(usage: Usage, rates: Rates) -> tuple[_Kind, ...]:
    cached_audio_rate = rates.cached_input if rates.cached_audio_input is None else rates.cached_audio_input
    hour_rate = rates.cache_write_5m if rates.cache_write_1h is None else rates.cache_write_1h
    cached_audio = 0
    if cached_audio_rate is not None:
        cached_audio = max(0, min(usage.cached_audio_tokens, usage.cached_tokens, usage.audio_input_tokens))
    return (
        ("cached audio input", cached_audio, cached_audio_rate),
        ("cached input", usage.cached_tokens - cached_audio, rates.cached_input),
        ("cache write (5 min)", usage.cache_write_5m_tokens, rates.cache_write_5m),
        ("cache write (1 h)", usage.cache_write_1h_tokens, hour_rate),
        ("audio input", usage.audio_input_tokens - cached_audio, rates.audio_input),
        ("image input", usage.image_input_tokens, rates.image_input),
    )


def _kinds_of_output(usage: Usage, rates: Rates) -> tuple[_Kind, ...]:
    return (
        ("reasoning", usage.reasoning_tokens, rates.reasoning),
        ("audio output", usage.audio_output_tokens, rates.audio_output),
        ("image output", usage.image_output_tokens, rates.image_output),
    )


def _family(name: str, total: int, rate: PicoUsd, kinds: tuple[_Kind, ...]) -> list[CostLine]:
    """Each kind with a rate of its own, and what is left at the family's."""
    lines, left = [], max(0, total)
    for kind, quantity, own_rate in kinds:
        if own_rate is not None:
            part = min(left, max(0, quantity))
            left -= part
            lines.append(CostLine(kind, part, own_rate))
    return [*lines, CostLine(name, left, rate)]


def worst_case(
    price: Price, *, prompt_tokens: int, completion_tokens: int, images: int = 0, asked_tiers: Collection[str] = ()
) -> NanoUsd:
    """The most a call can cost: every token at the dearest rate of the dearest tier that it can reach. `asked_tiers` is what
    the caller says about the service tier; see `may_apply`."""
    sent, unit = dearest(price, prompt_tokens=prompt_tokens, images=images, asked_tiers=asked_tiers)
    return pico_to_nano_rounded_up(sent + completion_tokens * unit)


def dearest(
    price: Price, *, prompt_tokens: int, images: int = 0, asked_tiers: Collection[str] = ()
) -> tuple[int, PicoUsd]:
    """What a call costs at most before it has said a word, each token of its prompt as the dearest kind of input, and each token that
    it says; both in picodollars."""
    kinds = [rates.dearest for rates in _reachable(price, prompt_tokens, asked_tiers)]
    sent = prompt_tokens * max([kind[0] for kind in kinds]) + price.request + images * price.image
    return sent, PicoUsd(max([kind[1] for kind in kinds]))


def affordable_completion_tokens(price: Price, *, prompt_tokens: int, budget_nanousd: int, images: int = 0) -> int:
    """How many output tokens `budget_nanousd` still pays for after the prompt; 0 when not even the prompt is paid for."""
    sent, unit = dearest(price, prompt_tokens=prompt_tokens, images=images)
    left_pico = budget_nanousd * PICO_PER_NANO - sent
    if left_pico < 0:
        return 0
    return left_pico // unit if unit else 2**31


def may_apply(service_tier: str, asked_tiers: Collection[str]) -> bool:
    """Whether a call can be served as this tier. Who asks for none (or `auto`) gets what the project's setting at the provider
    says, which may be `priority`; every other tier has to be asked for."""
    if service_tier in asked_tiers:
        return True
    return service_tier == "priority" and not _SETTLED.intersection(asked_tiers)


_SETTLED = frozenset({"default", "standard", "standard_only", "flex", "batch"})
"""Who asks for one of these is served as that, or as the default."""


def _reachable(price: Price, prompt_tokens: int, asked_tiers: Collection[str]) -> list[Rates]:
    """The rates of every tier that a prompt of at most this length can fall into."""
    if not price.tiers and not price.service_tiers:
        return [price.rates]
    served: list[Price | ServiceTier] = [price]
    served += [tier for tier in price.service_tiers if may_apply(tier.name, asked_tiers)]
    return [
        rates
        for each in served
        for rates in (each.rates, *(t.rates for t in each.tiers if prompt_tokens > t.above_prompt_tokens))
    ]


def _known(*rates: PicoUsd | None) -> list[PicoUsd]:
    return [rate for rate in rates if rate is not None]
