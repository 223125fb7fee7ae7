"""The price map: exact list prices from LiteLLM's file, without importing LiteLLM."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from app.domain.pricing import Price, Rates, Tier, Usage, cost_of
from app.providers.price_map import ModelFacts, PriceMap


@pytest.fixture(scope="module")
def installed() -> PriceMap:
    return PriceMap.installed()


def a_map(tmp_path: Path, models: str) -> PriceMap:
    """The file's text is given as it stands: numbers are the point."""
    path = tmp_path / "prices.json"
    path.write_text(models)
    return PriceMap(path)


def only_price(tmp_path: Path, entry: str) -> Price | None:
    text = f'{{"m": {{"litellm_provider": "openai", {entry}}}}}'
    return a_map(tmp_path, text).fallback_price("openai", "m")


# ── The installed table ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_installed_table_is_found_and_large(installed: PriceMap) -> None:
    assert installed.load() > 3000


def test_reading_the_table_does_not_import_litellm() -> None:
    code = (
        "import sys; from app.providers.price_map import PriceMap; "
        "assert PriceMap.installed().fallback_price('openai', 'gpt-4o'); "
        "print([name for name in sys.modules if name.split('.')[0] == 'litellm'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)

    assert done.stdout.strip() == "[]"


def test_a_known_list_price_is_exact(installed: PriceMap) -> None:
    price = installed.fallback_price("openai", "gpt-4o")

    assert price is not None
    assert (price.rates.input, price.rates.output, price.rates.cached_input) == (2_500_000, 10_000_000, 1_250_000)
    assert price.source == "price map"
    assert price.id.startswith("map:gpt-4o@")
    assert cost_of(Usage(prompt_tokens=123, completion_tokens=45), price).nanousd == 757_500


def test_cache_writes_have_both_prices(installed: PriceMap) -> None:
    price = installed.fallback_price("anthropic", "claude-sonnet-4-5-20250929")

    assert price is not None
    assert (price.rates.cached_input, price.rates.cache_write_5m, price.rates.cache_write_1h) == (
        300_000,
        3_750_000,
        6_000_000,
    )


@pytest.mark.parametrize(
    ("upstream_model", "key"),
    [
        ("anthropic/claude-sonnet-4-5-20250929", "claude-sonnet-4-5-20250929"),
        ("openai/gpt-4o", "gpt-4o"),
        ("gpt-4o", "gpt-4o"),
        ("azure/gpt-4o", "azure/gpt-4o"),
        ("gemini/gemini-2.5-pro", "gemini/gemini-2.5-pro"),
        ("vertex_ai/gemini-2.5-pro", "gemini-2.5-pro"),
        ("bedrock/anthropic.claude-3-5-haiku-20241022-v1:0", "anthropic.claude-3-5-haiku-20241022-v1:0"),
        ("bedrock/converse/anthropic.claude-3-5-haiku-20241022-v1:0", "anthropic.claude-3-5-haiku-20241022-v1:0"),
    ],
)
def test_models_are_found_by_litellms_own_names(installed: PriceMap, upstream_model: str, key: str) -> None:
    price = installed.fallback_price("litellm", upstream_model)

    assert price is not None
    assert price.id.split("@")[0] == f"map:{key}"


@pytest.mark.parametrize(
    ("provider", "upstream_model"),
    [
        ("openai", "claude-sonnet-4-5-20250929"),  # another provider's model behind an OpenAI-compatible server
        ("anthropic", "gpt-4o"),
        ("litellm", "groq/gpt-4o"),
        ("litellm", "gpt-4O"),
        ("openai", "sample_spec"),
        ("openai", ""),
        ("demo", "gpt-4o"),
        ("openai", "whisper-1"),  # by the second
        ("openai", "tts-1"),  # by the character
        ("openai", "no-such-model"),
    ],
)
def test_what_is_not_known_exactly_has_no_price(installed: PriceMap, provider: str, upstream_model: str) -> None:
    assert installed.fallback_price(provider, upstream_model) is None


def test_fine_tunes_cost_what_their_base_costs(installed: PriceMap) -> None:
    price = installed.fallback_price("openai", "ft:gpt-4o-2024-08-06:acme::abc123")

    assert price is not None
    assert price.rates.input == 3_750_000


def test_facts_are_found_with_and_without_a_prefix(installed: PriceMap) -> None:
    assert installed.facts("gpt-4o") == ModelFacts(128_000, 16_384)
    assert installed.facts("openai/gpt-4o") == ModelFacts(128_000, 16_384)
    assert installed.facts("no-such-model") == ModelFacts()


# ── Entries ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_a_table_everything_is_unknown() -> None:
    absent = PriceMap(None)

    assert absent.load() == 0
    assert absent.fallback_price("openai", "gpt-4o") is None
    assert absent.facts("gpt-4o") == ModelFacts()


def test_prices_never_pass_through_a_binary_float(tmp_path: Path) -> None:
    # 2⁵³ + 1 picodollars: the first whole number that a double cannot hold.
    price = only_price(tmp_path, '"input_cost_per_token": 9007.199254740993, "output_cost_per_token": 0')

    assert price is not None
    assert price.rates.input == 9_007_199_254_740_993


def test_the_makers_floating_point_noise_is_taken_off(tmp_path: Path) -> None:
    price = only_price(
        tmp_path, '"input_cost_per_token": 9.499999999999999e-07, "output_cost_per_token": 0.0000032000000000000003'
    )

    assert price is not None
    assert price.rates == Rates(input=price.rates.input, output=price.rates.output)
    assert (price.rates.input, price.rates.output) == (950_000, 3_200_000)


def test_tiers_by_name_keep_what_they_do_not_change(tmp_path: Path) -> None:
    price = only_price(
        tmp_path,
        """"input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06, "cache_read_input_token_cost": 1e-07,
        "cache_creation_input_token_cost_above_1hr": 3e-06,
        "input_cost_per_token_above_272k_tokens": 4e-06,
        "input_cost_per_token_above_128k_tokens": 3e-06, "output_cost_per_token_above_128k_tokens": 5e-06,
        "cache_creation_input_token_cost_above_1hr_above_128k_tokens": 6e-06,
        "input_cost_per_token_above_128k_tokens_priority": 9e-06""",
    )

    assert price is not None
    assert [tier.above_prompt_tokens for tier in price.tiers] == [128_000, 272_000]
    low, high = (tier.rates for tier in price.tiers)
    assert (low.input, low.output, low.cached_input, low.cache_write_1h) == (3_000_000, 5_000_000, 100_000, 6_000_000)
    assert (high.input, high.output) == (4_000_000, 2_000_000)
    assert price.rates_for(128_000) == price.rates
    assert price.rates_for(128_001) == low


def test_tiers_by_range_apply_from_their_start(tmp_path: Path) -> None:
    price = only_price(
        tmp_path,
        """"mode": "chat", "tiered_pricing": [
        {"range": [256000.0, 1000000.0], "input_cost_per_token": 2e-06, "output_cost_per_token": 4e-06},
        {"range": [0, 256000.0], "input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06}]""",
    )

    assert price is not None
    assert (price.rates.input, price.rates.output) == (1_000_000, 2_000_000)
    assert price.tiers == (Tier(256_000, Rates(input=price.tiers[0].rates.input, output=price.tiers[0].rates.output)),)
    assert (price.tiers[0].rates.input, price.tiers[0].rates.output) == (2_000_000, 4_000_000)


def test_reasoning_audio_request_and_image_have_their_own_prices(tmp_path: Path) -> None:
    price = only_price(
        tmp_path,
        """"mode": "chat", "input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06,
        "output_cost_per_reasoning_token": 3e-06, "input_cost_per_audio_token": 4e-06,
        "output_cost_per_audio_token": 5e-06, "input_cost_per_request": 0.005, "input_cost_per_image": 0.002""",
    )

    assert price is not None
    assert (price.rates.reasoning, price.rates.audio_input, price.rates.audio_output) == (
        3_000_000,
        4_000_000,
        5_000_000,
    )
    assert (price.request, price.image) == (5_000_000_000, 2_000_000_000)


@pytest.mark.parametrize(
    "entry",
    [
        '"mode": "chat", "input_cost_per_token": 1e-06',
        '"mode": "chat", "output_cost_per_token": 1e-06',
        '"mode": "chat"',
        '"mode": "chat", "input_cost_per_token": 0, "output_cost_per_token": 0, "input_cost_per_second": 0.001',
        '"mode": "chat", "input_cost_per_token": -1e-06, "output_cost_per_token": 1e-06',
        '"mode": "chat", "input_cost_per_token": "1e-06", "output_cost_per_token": 1e-06',
        '"mode": "chat", "input_cost_per_token": true, "output_cost_per_token": 1e-06',
        '"mode": "image_generation", "input_cost_per_pixel": 4e-08, "input_cost_per_token": 0',
    ],
)
def test_half_a_price_is_no_price(tmp_path: Path, entry: str) -> None:
    assert only_price(tmp_path, entry) is None


def test_an_embedding_needs_no_output_price(tmp_path: Path) -> None:
    price = only_price(tmp_path, '"mode": "embedding", "input_cost_per_token": 2e-08')

    assert price is not None
    assert (price.rates.input, price.rates.output) == (20_000, 0)


def test_an_image_is_charged_by_piece_or_by_its_tokens(tmp_path: Path) -> None:
    by_piece = only_price(tmp_path, '"mode": "image_generation", "output_cost_per_image": 0.04')
    by_token = only_price(
        tmp_path, '"mode": "image_generation", "input_cost_per_token": 5e-06, "output_cost_per_image_token": 4e-05'
    )

    assert by_piece is not None
    assert by_piece.image == 40_000_000_000
    assert by_token is not None
    assert by_token.rates.output == 40_000_000


def test_a_price_names_the_file_it_came_from(tmp_path: Path) -> None:
    entry = {"litellm_provider": "openai", "input_cost_per_token": 0, "output_cost_per_token": 0}
    ids = set()
    for note in ("a", "b"):
        price = a_map(tmp_path, json.dumps({"m": {**entry, "note": note}})).fallback_price("openai", "m")
        assert price is not None
        ids.add(price.id)

    assert len(ids) == 2


# ── Service tiers and regions (T122) ──────────────────────────────────────────────────────────────────────────────────

TIERED_ENTRY = """"input_cost_per_token": 2e-06, "output_cost_per_token": 8e-06, "cache_read_input_token_cost": 1e-06,
    "input_cost_per_token_above_200k_tokens": 3e-06, "output_cost_per_token_above_200k_tokens": 9e-06,
    "input_cost_per_token_priority": 4e-06, "output_cost_per_token_priority": 16e-06,
    "input_cost_per_token_above_200k_tokens_priority": 6e-06,
    "input_cost_per_token_batches": 1e-06, "output_cost_per_token_batches": 4e-06,
    "regional_processing_uplift_multiplier_eu": 1.1"""


@pytest.mark.parametrize(
    ("usage", "nanousd"),
    [
        (Usage(1_000, 100), 1_000 * 2_000 + 100 * 8_000),
        (Usage(1_000, 100, service_tier="default"), 1_000 * 2_000 + 100 * 8_000),
        (Usage(1_000, 100, service_tier="priority"), 1_000 * 4_000 + 100 * 16_000),
        (Usage(1_000, 100, cached_tokens=400, service_tier="priority"), 600 * 4_000 + 400 * 1_000 + 100 * 16_000),
        (Usage(1_000, 100, service_tier="batch"), 1_000 * 1_000 + 100 * 4_000),
        (Usage(1_000, 100, service_tier="flex"), 1_000 * 2_000 + 100 * 8_000),
        (Usage(200_000, 100), 200_000 * 2_000 + 100 * 8_000),
        (Usage(200_001, 100), 200_001 * 3_000 + 100 * 9_000),
        (Usage(200_001, 100, service_tier="priority"), 200_001 * 6_000 + 100 * 9_000),
    ],
)
def test_a_call_costs_what_its_service_tier_and_its_length_cost(tmp_path: Path, usage: Usage, nanousd: int) -> None:
    price = only_price(tmp_path, TIERED_ENTRY)
    assert price is not None
    assert cost_of(usage, price).nanousd == nanousd


@pytest.mark.parametrize(
    ("api_base", "input_pico", "mark"),
    [
        ("", 2_000_000, ""),
        ("https://api.openai.com/v1", 2_000_000, ""),
        ("https://eu.api.openai.com/v1", 2_200_000, "+eu"),
        ("https://us.api.openai.com/v1", 2_000_000, ""),  # has no uplift here
        ("https://eu.api.openai.com.evil.example/v1", 2_000_000, ""),
    ],
)
def test_an_address_that_keeps_the_call_in_a_region_costs_more(
    tmp_path: Path, api_base: str, input_pico: int, mark: str
) -> None:
    prices = a_map(tmp_path, f'{{"m": {{"litellm_provider": "openai", {TIERED_ENTRY}}}}}')
    price = prices.fallback_price("openai", "m", api_base)

    assert price is not None
    assert price.rates.input == input_pico
    assert price.id.endswith(mark)
    assert prices.price_by_id(price.id) == price


def test_an_uplift_is_on_all_rates_of_all_tiers_and_exact(tmp_path: Path) -> None:
    prices = a_map(tmp_path, f'{{"m": {{"litellm_provider": "openai", {TIERED_ENTRY}}}}}')
    plain = prices.fallback_price("openai", "m")
    lifted = prices.fallback_price("openai", "m", "https://eu.api.openai.com/v1")

    assert plain is not None
    assert lifted is not None
    for usage in (Usage(1_000, 100, cached_tokens=10), Usage(300_000, 7, service_tier="priority"), Usage(5, 5)):
        assert cost_of(usage, lifted).nanousd * 10 == cost_of(usage, plain).nanousd * 11


@pytest.mark.parametrize(
    ("api_base", "is_lifted"),
    [
        ("", True),
        ("https://europe-west1-aiplatform.googleapis.com", True),
        ("https://aiplatform.googleapis.com", False),
    ],
)
def test_vertex_costs_more_anywhere_but_at_its_global_endpoint(tmp_path: Path, api_base: str, is_lifted: bool) -> None:
    entry = (
        '"input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06, "regional_endpoint_uplift_multiplier": 1.1,'
        '"litellm_provider": "vertex_ai-language-models"'
    )
    prices = a_map(tmp_path, f'{{"vertex_ai/m": {{{entry}}}}}')
    price = prices.fallback_price("litellm", "vertex_ai/m", api_base)

    assert price is not None
    assert price.rates.input == (1_100_000 if is_lifted else 1_000_000)


def test_a_factor_of_the_table_is_a_service_tier(tmp_path: Path) -> None:
    price = only_price(
        tmp_path,
        '"input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06, "provider_specific_entry": {"us": 1.1, "fast": 2.0}',
    )

    assert price is not None
    assert cost_of(Usage(10, 10, service_tier="us"), price).nanousd == 33_000
    assert cost_of(Usage(10, 10, service_tier="fast"), price).nanousd == 60_000


def test_where_a_provider_reaches_a_tier_at_its_threshold_so_does_the_price(tmp_path: Path) -> None:
    entry = '"input_cost_per_token": 1e-06, "output_cost_per_token": 0, "input_cost_per_token_above_200k_tokens": 2e-06'
    prices = a_map(tmp_path, f'{{"xai/m": {{"litellm_provider": "xai", {entry}}}}}')
    price = prices.fallback_price("litellm", "xai/m")

    assert price is not None
    assert cost_of(Usage(199_999), price).nanousd == 199_999_000
    assert cost_of(Usage(200_000), price).nanousd == 400_000_000


def test_a_price_of_another_version_of_the_table_is_not_known(installed: PriceMap) -> None:
    price = installed.fallback_price("openai", "gpt-4o")

    assert price is not None
    assert installed.price_by_id(price.id) == price
    assert installed.price_by_id("map:gpt-4o@00000000") is None
    assert installed.price_by_id("map:gpt-4o") is None
    assert installed.price_by_id("0192cccc-0000-7000-8000-000000000001") is None


def test_the_installed_table_tells_what_priority_costs(installed: PriceMap) -> None:
    price = installed.fallback_price("openai", "gpt-5.5")

    assert price is not None
    assert price.rates_for(1_000, "priority").output == 75_000_000
    assert price.rates_for(1_000, "flex").output == 15_000_000
    assert price.rates_for(300_000, "batch").input == 5_000_000
