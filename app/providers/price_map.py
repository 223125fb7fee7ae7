"""List prices and sizes of models from the table that LiteLLM's package carries, read as a file: the package itself takes seconds
and 180 MB to import, the file a few milliseconds and 2 MB to read.

The table is where a price comes from when the operator has set none. Its numbers are JSON floats; they are read as decimals and
never pass through a binary float. About one price in a hundred carries its makers' own floating-point noise
(`3.2000000000000003e-06`), which is why they are taken to the nearest picodollar.

Not every price can be told in our units. A model that is billed by the second, character or pixel has no price here, rather than
one that leaves that part out: unknown is not zero.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_EVEN, Decimal
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import NewType
from urllib.parse import urlsplit

import msgspec
from msgspec import Raw

from app.domain.money import PicoUsd
from app.domain.pricing import Price, Rates, ServiceTier, Tier

SOURCE = "price map"
FILE_NAME = "model_prices_and_context_window_backup.json"

_RATE_FIELDS = {
    "input": "input_cost_per_token",
    "output": "output_cost_per_token",
    "cached_input": "cache_read_input_token_cost",
    "cache_write_5m": "cache_creation_input_token_cost",
    "cache_write_1h": "cache_creation_input_token_cost_above_1hr",
    "reasoning": "output_cost_per_reasoning_token",
    "audio_input": "input_cost_per_audio_token",
    "audio_output": "output_cost_per_audio_token",
}
_RARE_RATE_FIELDS = {
    "cached_audio_input": "cache_read_input_audio_token_cost",
    "image_input": "input_cost_per_image_token",
    "image_output": "output_cost_per_image_token",
}
_RATE_FIELDS |= _RARE_RATE_FIELDS
_OTHER_NAME_OF_CACHED_INPUT = "input_cost_per_token_cache_hit"
_TIERED = re.compile(rf"({'|'.join(_RATE_FIELDS.values())})_above_(\d+)k_tokens")
_SERVICE_TIERS = {
    "priority": ("priority",),
    "flex": ("flex",),
    "batches": ("batch",),
    "balanced": ("balanced",),
    "ultrafast": ("ultrafast",),
}
"""How the table marks a price of a service tier, and how the providers call that tier in their answers."""
_MULTIPLIED_TIERS = ("us", "fast")
"""Service tiers that the table tells as a factor on all rates: Anthropic's `inference_geo` and `speed`."""
_REACHED_FROM = frozenset({"xai"})
"""Providers whose tiers begin at their threshold; those of all others begin above it."""
_HOSTS_OF_OPENAI = {"eu.api.openai.com": "eu", "us.api.openai.com": "us"}
_GLOBAL_HOST_OF_VERTEX = "aiplatform.googleapis.com"
_OTHER_UNITS = re.compile(
    r"cost_per_(second|character|pixel|page|credit|query|video|session|text_message)|dbu_cost|_per_second"
)
_IMAGE_MODES = frozenset({"image_generation", "image_edit"})
_MODES_WITHOUT_OUTPUT_PRICE = frozenset({"embedding", "rerank", "moderation"})
_PROVIDERS_OF_OPENAI = frozenset({"openai", "text-completion-openai"})
_ROUTES_OF_BEDROCK = ("converse/", "invoke/", "converse_like/")

_ID = re.compile(r"map:(?P<key>.+)@(?P<version>[0-9a-f]{8})(?:\+(?P<region>[a-z]+))?")

_Entry = NewType("_Entry", dict[str, object])
"""One model as the file tells it, reduced to what is read here."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """How much a model takes and gives; None where the table does not say."""

    context_window_tokens: int | None = None
    max_output_tokens: int | None = None


class PriceMap:
    """The table at `path`; empty when `path` is None.

    It is read at the first question, once, by whichever thread asks first. Ask off the event loop, or call `load` there before.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._reading = Lock()

    @classmethod
    def installed(cls) -> PriceMap:
        """The table of the installed LiteLLM, found without importing it; empty where it is not installed."""
        spec = importlib.util.find_spec("litellm")
        folders = (spec.submodule_search_locations or []) if spec else []
        paths = (Path(folder, FILE_NAME) for folder in folders)
        return cls(next((path for path in paths if path.is_file()), None))

    def load(self) -> int:
        """Read the file if that has not happened yet, and say how many models it knows. Takes a few milliseconds of CPU."""
        with self._reading:
            return len(self._table.models)

    def fallback_price(self, provider: str, upstream_model: str, api_base: str = "") -> Price | None:
        """The list price of a model at an endpoint's kind of provider; None where the table has none that we can tell exactly.

        Some providers charge more where the address keeps the call within a region.
        """
        self.load()
        for key in self._table.keys_of(provider, upstream_model):
            return self._priced(key, _region_of(key, provider, api_base))
        return None

    def price_by_id(self, price_id: str) -> Price | None:
        """The price that a record names, if it came from this version of the table."""
        self.load()
        found = _ID.fullmatch(price_id)
        if found is None or found["version"] != self._table.version:
            return None
        return self._priced(found["key"], found["region"])

    def _priced(self, key: str, region: str | None) -> Price | None:
        entry = self._table.entry(key)
        if entry is None:
            return None
        uplift = _uplift(entry, region)
        marked = f"+{region}" if uplift is not None else ""
        price = _price(entry, id=f"map:{key}@{self._table.version}{marked}")
        return price if price is None or uplift is None else _lifted(price, uplift)

    def facts(self, upstream_model: str) -> ModelFacts:
        """Context window and longest answer, whoever serves the model."""
        self.load()
        bare = upstream_model.rpartition("/")[2]
        for key in (*self._table.keys_of("litellm", upstream_model), upstream_model, bare):
            if entry := self._table.entry(key):
                return ModelFacts(
                    _tokens(entry, "max_input_tokens") or _tokens(entry, "max_tokens"),
                    _tokens(entry, "max_output_tokens"),
                )
        return ModelFacts()

    @cached_property
    def _table(self) -> _Table:
        return _Table.read(self._path) if self._path else _Table("", {})


@dataclass(frozen=True, slots=True)
class _Table:
    version: str
    """The first eight digits of the file's sha256: the same price under the same name, wherever it came from."""
    models: Mapping[str, Raw]
    """Pieces of the file as it was read: a model is looked at when somebody asks for it, and few ever are."""

    @classmethod
    def read(cls, path: Path) -> _Table:
        raw = path.read_bytes()
        models = msgspec.json.decode(raw, type=dict[str, Raw])
        models.pop("sample_spec", None)
        return cls(hashlib.sha256(raw).hexdigest()[:8], models)

    def entry(self, key: str) -> _Entry | None:
        raw = self.models.get(key)
        return None if raw is None else _reduced(json.loads(bytes(raw), parse_float=Decimal))

    def keys_of(self, provider: str, upstream_model: str) -> Iterator[str]:
        """The keys under which the table may keep this model, the most exact first, and only those that it has."""
        match provider:
            case "openai":
                base = ":".join(upstream_model.split(":")[:2]) if upstream_model.startswith("ft:") else upstream_model
                yield from self._of_family(_PROVIDERS_OF_OPENAI, upstream_model, base, f"openai/{upstream_model}")
            case "anthropic":
                yield from self._of_family({"anthropic"}, upstream_model, f"anthropic/{upstream_model}")
            case "litellm":
                yield from self._as_litellm_names_it(upstream_model)

    def _as_litellm_names_it(self, upstream_model: str) -> Iterator[str]:
        if upstream_model in self.models:
            yield upstream_model
        family, _, rest = upstream_model.partition("/")
        for route in _ROUTES_OF_BEDROCK:
            rest = rest.removeprefix(route)
        if entry := self.entry(rest):
            served_by = str(entry.get("litellm_provider", ""))
            # "vertex_ai" serves "vertex_ai-language-models", "bedrock" serves "bedrock_converse".
            if served_by == family or served_by.startswith((f"{family}-", f"{family}_")):
                yield rest

    def _of_family(self, providers: frozenset[str] | set[str], *keys: str) -> Iterator[str]:
        for key in keys:
            if (entry := self.entry(key)) and entry.get("litellm_provider") in providers:
                yield key


def _reduced(entry: Mapping[str, object]) -> _Entry:
    """Prices, sizes and what they are looked up by: a sixth of the file's bulk is notes on abilities and regions."""
    kept = ("litellm_provider", "mode", "max_input_tokens", "max_output_tokens", "max_tokens", "tiered_pricing")
    told = {name: value for name, value in entry.items() if name in kept or "cost" in name or "_uplift_" in name}
    if isinstance(factors := entry.get("provider_specific_entry"), dict):
        told |= {f"factor_{name}": factors[name] for name in _MULTIPLIED_TIERS if name in factors}
    return _Entry(told)


# ── One entry ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _price(entry: _Entry, *, id: str) -> Price | None:
    ranges = _ranges(entry)
    first = {**entry, **ranges[0][1]} if ranges else entry
    rates = _rates(first)
    image = _pico(first, "output_cost_per_image" if entry.get("mode") in _IMAGE_MODES else "input_cost_per_image")
    request = _pico(first, "input_cost_per_request") or _pico(first, "input_cost_per_query")
    if rates is None:
        return None
    is_free = not (rates.input or rates.output or image or request)
    if is_free and any(_OTHER_UNITS.search(name) and value for name, value in entry.items()):
        return None
    tiers = _tiers_by_range(ranges, rates) if ranges else _tiers_by_name(entry, rates)
    return Price(
        id=id,
        rates=rates,
        tiers=tiers,
        request=request or PicoUsd(0),
        image=image or PicoUsd(0),
        source=SOURCE,
        service_tiers=(*_service_tiers(first, rates, tiers), *_multiplied_tiers(entry, rates, tiers)),
    )


def _service_tiers(entry: Mapping[str, object], base: Rates, tiers: tuple[Tier, ...]) -> tuple[ServiceTier, ...]:
    """What a service tier does not price of its own costs what it costs without it."""
    found = []
    for mark, names in _SERVICE_TIERS.items():
        own = {rate: _pico(entry, f"{field}_{mark}") for rate, field in _RATE_FIELDS.items()}
        rates = _changed(base, {rate: price for rate, price in own.items() if price is not None})
        above = tuple(
            Tier(tier.above_prompt_tokens, _changed(tier.rates, _above(entry, tier.above_prompt_tokens, mark)))
            for tier in tiers
        )
        if rates != base or above != tiers:
            found += [ServiceTier(name, rates, above) for name in names]
    return tuple(found)


def _above(entry: Mapping[str, object], prompt_tokens: int, mark: str) -> dict[str, PicoUsd]:
    thousands = -(-prompt_tokens // 1000)
    own = {rate: _pico(entry, f"{field}_above_{thousands}k_tokens_{mark}") for rate, field in _RATE_FIELDS.items()}
    return {rate: price for rate, price in own.items() if price is not None}


def _multiplied_tiers(entry: _Entry, base: Rates, tiers: tuple[Tier, ...]) -> tuple[ServiceTier, ...]:
    found = []
    for name in _MULTIPLIED_TIERS:
        if (factor := _factor(entry, f"factor_{name}")) is not None:
            above = tuple(Tier(tier.above_prompt_tokens, _times(tier.rates, factor)) for tier in tiers)
            found.append(ServiceTier(name, _times(base, factor), above))
    return tuple(found)


def _rates(entry: Mapping[str, object]) -> Rates | None:
    """None when one of the two prices that every call needs is missing."""
    found = {name: _pico(entry, field) for name, field in _RATE_FIELDS.items()}
    if found["cached_input"] is None:
        found["cached_input"] = _pico(entry, _OTHER_NAME_OF_CACHED_INPUT)
    if found["input"] is None and _is_priced_by_piece(entry):
        found["input"] = PicoUsd(0)
    if entry.get("mode") in _IMAGE_MODES:
        found["output"] = _dearer(found["output"], _pico(entry, "output_cost_per_image_token"))
    if found["output"] is None and (entry.get("mode") in _MODES_WITHOUT_OUTPUT_PRICE or _is_priced_by_piece(entry)):
        found["output"] = PicoUsd(0)
    input_price, output_price = found.pop("input"), found.pop("output")
    if input_price is None or output_price is None:
        return None
    return Rates(input=input_price, output=output_price, **found)


def _dearer(price: PicoUsd | None, other: PicoUsd | None) -> PicoUsd | None:
    return max((each for each in (price, other) if each is not None), default=None)


def _is_priced_by_piece(entry: Mapping[str, object]) -> bool:
    if entry.get("mode") in _IMAGE_MODES:
        return bool(entry.get("output_cost_per_image"))
    return entry.get("mode") == "rerank" and bool(entry.get("input_cost_per_query"))


def _tiers_by_name(entry: _Entry, base: Rates) -> tuple[Tier, ...]:
    """`…_above_200k_tokens`: the rates of the whole call once its prompt is longer; what a tier does not name stays."""
    found: dict[int, dict[str, PicoUsd]] = {}
    rate_of = {field: rate for rate, field in _RATE_FIELDS.items()}
    for name in entry:
        if (match := _TIERED.fullmatch(name)) and (price := _pico(entry, name)) is not None:
            above = int(match[2]) * 1000 - (entry.get("litellm_provider") in _REACHED_FROM)
            found.setdefault(above, {})[rate_of[match[1]]] = price
    return tuple(Tier(above, _changed(base, found[above])) for above in sorted(found))


def _ranges(entry: _Entry) -> list[tuple[int, Mapping[str, object]]]:
    """`tiered_pricing`: a list of rates, each for prompts from so many tokens on (Alibaba's models)."""
    listed = entry.get("tiered_pricing")
    if not isinstance(listed, list):
        return []
    rows = [row for row in listed if isinstance(row, dict) and isinstance(row.get("range"), list)]
    return sorted(((int(row["range"][0]), row) for row in rows), key=lambda pair: pair[0])


def _tiers_by_range(ranges: list[tuple[int, Mapping[str, object]]], base: Rates) -> tuple[Tier, ...]:
    tiers = []
    for above, row in ranges[1:]:
        named = {rate: _pico(row, field) for rate, field in _RATE_FIELDS.items()}
        tiers.append(Tier(above, _changed(base, {rate: price for rate, price in named.items() if price is not None})))
    return tuple(tiers)


def _changed(base: Rates, prices: Mapping[str, PicoUsd]) -> Rates:
    rates = {name: prices.get(name, getattr(base, name)) for name in _RATE_FIELDS}
    return Rates(**rates)


def _region_of(key: str, provider: str, api_base: str) -> str | None:
    """Where the call is kept, as far as the endpoint's address tells."""
    host = urlsplit(api_base).hostname or ""
    if provider == "openai" or key.startswith("openai/"):
        return _HOSTS_OF_OPENAI.get(host)
    if key.startswith("vertex_ai/") and host != _GLOBAL_HOST_OF_VERTEX:
        return "regional"  # without an address LiteLLM chooses a region, too
    return None


def _uplift(entry: _Entry, region: str | None) -> Decimal | None:
    match region:
        case None:
            return None
        case "regional":
            return _factor(entry, "regional_endpoint_uplift_multiplier")
        case _:
            return _factor(entry, f"regional_processing_uplift_multiplier_{region}")


def _lifted(price: Price, factor: Decimal) -> Price:
    """All rates of tokens; what is charged by the request or the image stays."""

    def lifted(tiers: tuple[Tier, ...]) -> tuple[Tier, ...]:
        return tuple(Tier(tier.above_prompt_tokens, _times(tier.rates, factor)) for tier in tiers)

    return replace(
        price,
        rates=_times(price.rates, factor),
        tiers=lifted(price.tiers),
        service_tiers=tuple(
            ServiceTier(served.name, _times(served.rates, factor), lifted(served.tiers))
            for served in price.service_tiers
        ),
    )


def _times(rates: Rates, factor: Decimal) -> Rates:
    def times(rate: PicoUsd) -> PicoUsd:
        return PicoUsd(int((rate * factor).to_integral_value(ROUND_HALF_EVEN)))

    lifted = {name: times(rate) for name in _RATE_FIELDS if (rate := getattr(rates, name)) is not None}
    return Rates(**lifted)


def _factor(entry: _Entry, name: str) -> Decimal | None:
    value = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, int | Decimal) or value <= 0:
        return None
    return Decimal(value)


def _pico(entry: Mapping[str, object], name: str) -> PicoUsd | None:
    value = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, int | Decimal) or value < 0:
        return None
    return PicoUsd(int(Decimal(value).scaleb(12).to_integral_value(ROUND_HALF_EVEN)))


def _tokens(entry: _Entry, name: str) -> int | None:
    value = entry.get(name)
    return int(value) if isinstance(value, int | Decimal) and value > 0 else None
