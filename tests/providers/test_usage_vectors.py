"""T121: what providers report, in their own shapes, read by the dialect or by way of LiteLLM, and what it costs to the nanodollar.

Every expected figure is written as tokens × nanodollars, by hand, so that it can be checked against the shape above it. All prices
are whole nanodollars a token.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from app.dialects.openai_usage import read_usage
from app.domain.money import PicoUsd
from app.domain.pricing import Price, Rates, ServiceTier, Usage, cost_of
from app.providers.litellm_answers import usage_of

Json = dict[str, Any]


def nano(**rates: int) -> Rates:
    return Rates(**{name: PicoUsd(rate * 1_000) for name, rate in rates.items()})


OPENAI = Price(
    "openai",
    nano(input=2, output=8, cached_input=1, audio_input=20, audio_output=40, cached_audio_input=5, image_input=3),
    service_tiers=(
        ServiceTier("priority", nano(input=4, output=16, cached_input=2)),
        ServiceTier("flex", nano(input=1, output=4, cached_input=1)),
    ),
)
PLAIN = Price("plain", nano(input=2, output=8))
ANTHROPIC = Price("anthropic", nano(input=30, output=150, cached_input=3, cache_write_5m=38, cache_write_1h=60))
WITHOUT_1H = Price("older", nano(input=30, output=150, cached_input=3, cache_write_5m=38))
GEMINI = Price(
    "gemini", nano(input=3, output=25, cached_input=1, audio_input=10, reasoning=35, image_output=300, image_input=4)
)


def details(**figures: int) -> Json:
    return dict(figures)


OPENAI_VECTORS: list[tuple[str, Price, Json, bytes, int]] = [
    ("plain", OPENAI, {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}, b"", 100 * 2 + 50 * 8),
    ("nothing came back", OPENAI, {"prompt_tokens": 100, "completion_tokens": 0, "total_tokens": 100}, b"", 100 * 2),
    (
        "part of the prompt was cached",
        OPENAI,
        {"prompt_tokens": 100, "completion_tokens": 50, "prompt_tokens_details": details(cached_tokens=64)},
        b"",
        36 * 2 + 64 * 1 + 50 * 8,
    ),
    (
        "cached, where there is no price for it",
        PLAIN,
        {"prompt_tokens": 100, "completion_tokens": 50, "prompt_tokens_details": details(cached_tokens=64)},
        b"",
        100 * 2 + 50 * 8,
    ),
    (
        "reasoning inside the completion",
        OPENAI,
        {"prompt_tokens": 9, "completion_tokens": 500, "completion_tokens_details": details(reasoning_tokens=448)},
        b"",
        9 * 2 + 500 * 8,
    ),
    (
        "reasoning beside the completion, as xAI counts",
        OPENAI,
        {
            "prompt_tokens": 9,
            "completion_tokens": 52,
            "total_tokens": 509,
            "completion_tokens_details": details(reasoning_tokens=448),
        },
        b"",
        9 * 2 + 500 * 8,
    ),
    (
        "sound in and out",
        OPENAI,
        {
            "prompt_tokens": 120,
            "completion_tokens": 80,
            "prompt_tokens_details": details(audio_tokens=100),
            "completion_tokens_details": details(audio_tokens=60),
        },
        b"",
        20 * 2 + 100 * 20 + 20 * 8 + 60 * 40,
    ),
    (
        "sound of which part was cached: no token is counted twice",
        OPENAI,
        {
            "prompt_tokens": 200,
            "completion_tokens": 10,
            "prompt_tokens_details": {
                "cached_tokens": 128,
                "audio_tokens": 100,
                "cached_tokens_details": {"text_tokens": 64, "audio_tokens": 64},
            },
        },
        b"",
        64 * 5 + 64 * 1 + 36 * 20 + 36 * 2 + 10 * 8,
    ),
    (
        "pictures in the prompt",
        OPENAI,
        {"prompt_tokens": 900, "completion_tokens": 1, "prompt_tokens_details": details(image_tokens=765)},
        b"",
        135 * 2 + 765 * 3 + 1 * 8,
    ),
    (
        "DeepSeek's word for cached",
        OPENAI,
        {
            "prompt_tokens": 100,
            "completion_tokens": 5,
            "prompt_cache_hit_tokens": 60,
            "prompt_cache_miss_tokens": 40,
        },
        b"",
        60 * 1 + 40 * 2 + 5 * 8,
    ),
    (
        "Moonshot's place for cached",
        OPENAI,
        {"prompt_tokens": 100, "completion_tokens": 5, "cached_tokens": 30},
        b"",
        30 * 1 + 70 * 2 + 5 * 8,
    ),
    (
        "details that are null",
        OPENAI,
        {"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": None, "completion_tokens_details": None},
        b"",
        3 * 2 + 4 * 8,
    ),
    (
        "more cached than there was",
        OPENAI,
        {"prompt_tokens": 10, "completion_tokens": 0, "prompt_tokens_details": details(cached_tokens=99)},
        b"",
        10 * 1,
    ),
    (
        "served as priority",
        OPENAI,
        {"prompt_tokens": 100, "completion_tokens": 50, "prompt_tokens_details": details(cached_tokens=40)},
        b'"priority"',
        60 * 4 + 40 * 2 + 50 * 16,
    ),
    ("served as flex", OPENAI, {"prompt_tokens": 100, "completion_tokens": 50}, b'"flex"', 100 * 1 + 50 * 4),
    ("served as default", OPENAI, {"prompt_tokens": 100, "completion_tokens": 50}, b'"default"', 100 * 2 + 50 * 8),
    ("served as null", OPENAI, {"prompt_tokens": 100, "completion_tokens": 50}, b"null", 100 * 2 + 50 * 8),
    ("served as a number", OPENAI, {"prompt_tokens": 100, "completion_tokens": 50}, b"12345", 100 * 2 + 50 * 8),
]


@pytest.mark.parametrize(
    ("price", "reported", "tier", "nanousd"), [v[1:] for v in OPENAI_VECTORS], ids=[v[0] for v in OPENAI_VECTORS]
)
def test_openais_shape_costs_what_the_pencil_says(price: Price, reported: Json, tier: bytes, nanousd: int) -> None:
    usage = read_usage(msgspec.json.encode(reported), tier)
    assert usage is not None
    _adds_up(usage, price, nanousd)


ANTHROPIC_VECTORS: list[tuple[str, Price, Json, int]] = [
    ("plain", ANTHROPIC, {"input_tokens": 100, "output_tokens": 50}, 100 * 30 + 50 * 150),
    (
        "a cache read stands beside the input",
        ANTHROPIC,
        {"input_tokens": 100, "output_tokens": 50, "cache_read_input_tokens": 900, "cache_creation_input_tokens": 0},
        100 * 30 + 900 * 3 + 50 * 150,
    ),
    (
        "a cache write, of five minutes where it is not said",
        ANTHROPIC,
        {"input_tokens": 4, "output_tokens": 1, "cache_creation_input_tokens": 2_000, "cache_read_input_tokens": 0},
        4 * 30 + 2_000 * 38 + 1 * 150,
    ),
    (
        "a cache write of an hour",
        ANTHROPIC,
        {
            "input_tokens": 4,
            "output_tokens": 1,
            "cache_creation_input_tokens": 2_000,
            "cache_read_input_tokens": 0,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 2_000},
        },
        4 * 30 + 2_000 * 60 + 1 * 150,
    ),
    (
        "both writes and a read at once",
        ANTHROPIC,
        {
            "input_tokens": 100,
            "output_tokens": 50,
            "cache_creation_input_tokens": 300,
            "cache_read_input_tokens": 200,
            "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 200},
        },
        100 * 30 + 200 * 3 + 100 * 38 + 200 * 60 + 50 * 150,
    ),
    (
        "a write of an hour where only that of five minutes has a price",
        WITHOUT_1H,
        {
            "input_tokens": 10,
            "output_tokens": 0,
            "cache_creation_input_tokens": 100,
            "cache_read_input_tokens": 0,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 100},
        },
        10 * 30 + 100 * 38,
    ),
    (
        "all of the prompt was cached",
        ANTHROPIC,
        {"input_tokens": 0, "output_tokens": 7, "cache_read_input_tokens": 5_000, "cache_creation_input_tokens": 0},
        5_000 * 3 + 7 * 150,
    ),
    (
        "iterations of a server tool are in the sums already",
        ANTHROPIC,
        {"input_tokens": 700, "output_tokens": 90, "server_tool_use": {"web_search_requests": 2}},
        700 * 30 + 90 * 150,
    ),
    (
        "served as standard",
        ANTHROPIC,
        {"input_tokens": 100, "output_tokens": 50, "service_tier": "standard"},
        100 * 30 + 50 * 150,
    ),
    (
        "a price without any rate for caches",
        PLAIN,
        {"input_tokens": 5, "output_tokens": 5, "cache_read_input_tokens": 10},
        15 * 2 + 5 * 8,
    ),
]


@pytest.fixture(scope="module")
def litellm() -> Any:
    """Seconds to import, so once, and as the provider does it."""
    os.environ.update(LITELLM_LOCAL_MODEL_COST_MAP="True", LITELLM_MODE="PRODUCTION", HF_HUB_OFFLINE="1")
    import litellm

    return litellm


@pytest.mark.parametrize(
    ("price", "reported", "nanousd"), [v[1:] for v in ANTHROPIC_VECTORS], ids=[v[0] for v in ANTHROPIC_VECTORS]
)
def test_anthropics_shape_costs_what_the_pencil_says(litellm: Any, price: Price, reported: Json, nanousd: int) -> None:
    from litellm.llms.anthropic.chat.transformation import AnthropicConfig

    read = AnthropicConfig().calculate_usage(reported, reasoning_content=None)
    usage = usage_of(SimpleNamespace(usage=read))
    assert usage is not None
    _adds_up(usage, price, nanousd)


def counted(**modalities: int) -> list[Json]:
    return [{"modality": name.upper(), "tokenCount": count} for name, count in modalities.items()]


GEMINI_VECTORS: list[tuple[str, Price, Json, int]] = [
    (
        "plain",
        GEMINI,
        {"promptTokenCount": 100, "candidatesTokenCount": 20, "totalTokenCount": 120},
        100 * 3 + 20 * 25,
    ),
    (
        "thoughts stand beside the candidates",
        GEMINI,
        {"promptTokenCount": 10, "candidatesTokenCount": 20, "thoughtsTokenCount": 300, "totalTokenCount": 330},
        10 * 3 + 20 * 25 + 300 * 35,
    ),
    (
        "thoughts where reasoning has no price",
        PLAIN,
        {"promptTokenCount": 10, "candidatesTokenCount": 20, "thoughtsTokenCount": 300, "totalTokenCount": 330},
        10 * 2 + 320 * 8,
    ),
    (
        "cached content is part of the prompt",
        GEMINI,
        {
            "promptTokenCount": 1_000,
            "cachedContentTokenCount": 800,
            "candidatesTokenCount": 5,
            "totalTokenCount": 1_005,
        },
        800 * 1 + 200 * 3 + 5 * 25,
    ),
    (
        "sound in the prompt",
        GEMINI,
        {
            "promptTokenCount": 500,
            "candidatesTokenCount": 5,
            "totalTokenCount": 505,
            "promptTokensDetails": counted(text=100, audio=400),
        },
        100 * 3 + 400 * 10 + 5 * 25,
    ),
    (
        "sound of which part was cached",
        GEMINI,
        {
            "promptTokenCount": 1_000,
            "cachedContentTokenCount": 400,
            "candidatesTokenCount": 10,
            "totalTokenCount": 1_010,
            "promptTokensDetails": counted(text=700, audio=300),
            "cacheTokensDetails": counted(text=300, audio=100),
        },
        400 * 1 + 200 * 10 + 400 * 3 + 10 * 25,
    ),
    (
        "pictures in the prompt",
        GEMINI,
        {
            "promptTokenCount": 300,
            "candidatesTokenCount": 1,
            "totalTokenCount": 301,
            "promptTokensDetails": counted(text=42, image=258),
        },
        42 * 3 + 258 * 4 + 1 * 25,
    ),
    (
        "a picture in the answer",
        GEMINI,
        {
            "promptTokenCount": 10,
            "candidatesTokenCount": 1_300,
            "totalTokenCount": 1_310,
            "candidatesTokensDetails": counted(text=10, image=1_290),
        },
        10 * 3 + 10 * 25 + 1_290 * 300,
    ),
    (
        "what its own tools read is prompt, too",
        GEMINI,
        {
            "promptTokenCount": 100,
            "toolUsePromptTokenCount": 30,
            "candidatesTokenCount": 5,
            "totalTokenCount": 135,
        },
        130 * 3 + 5 * 25,
    ),
    (
        "everything at once",
        GEMINI,
        {
            "promptTokenCount": 1_000,
            "cachedContentTokenCount": 400,
            "toolUsePromptTokenCount": 30,
            "candidatesTokenCount": 100,
            "thoughtsTokenCount": 50,
            "totalTokenCount": 1_180,
            "promptTokensDetails": counted(text=500, audio=300, image=200),
            "cacheTokensDetails": counted(text=300, audio=100),
            "candidatesTokensDetails": counted(text=60, image=40),
        },
        400 * 1 + 200 * 10 + 200 * 4 + 230 * 3 + 50 * 35 + 40 * 300 + 60 * 25,
    ),
    ("only a prompt", GEMINI, {"promptTokenCount": 77, "totalTokenCount": 77}, 77 * 3),
    (
        "no candidates but thoughts",
        GEMINI,
        {"promptTokenCount": 7, "thoughtsTokenCount": 9, "totalTokenCount": 16},
        7 * 3 + 9 * 35,
    ),
]


@pytest.mark.parametrize(
    ("price", "reported", "nanousd"), [v[1:] for v in GEMINI_VECTORS], ids=[v[0] for v in GEMINI_VECTORS]
)
def test_geminis_shape_costs_what_the_pencil_says(litellm: Any, price: Price, reported: Json, nanousd: int) -> None:
    from litellm.llms.vertex_ai.gemini.vertex_and_google_ai_studio_gemini import VertexGeminiConfig

    usage = usage_of(SimpleNamespace(usage=VertexGeminiConfig._calculate_usage({"usageMetadata": reported})))
    assert usage is not None
    _adds_up(usage, price, nanousd)


def test_there_are_forty_of_them() -> None:
    assert len(OPENAI_VECTORS) + len(ANTHROPIC_VECTORS) + len(GEMINI_VECTORS) >= 40


def _adds_up(usage: Usage, price: Price, nanousd: int) -> None:
    cost = cost_of(usage, price)
    assert cost.nanousd == nanousd, cost.lines
    assert sum(line.quantity for line in cost.lines) == usage.prompt_tokens + usage.completion_tokens
    assert sum(line.quantity * line.unit_pico for line in cost.lines) == nanousd * 1_000


@pytest.mark.parametrize(
    ("usage", "raw", "tier"),
    [
        (SimpleNamespace(speed="fast"), SimpleNamespace(), "fast"),
        (SimpleNamespace(inference_geo="us"), SimpleNamespace(), "us"),
        (SimpleNamespace(inference_geo="global"), SimpleNamespace(service_tier="priority"), "priority"),
        (SimpleNamespace(speed="standard"), SimpleNamespace(service_tier=None), None),
        (SimpleNamespace(), SimpleNamespace(service_tier=5), None),
    ],
)
def test_how_litellm_says_the_call_was_served(usage: Any, raw: Any, tier: str | None) -> None:
    usage.prompt_tokens_details = None
    usage.model_dump = lambda **_: {"prompt_tokens": 1, "completion_tokens": 1}
    raw.usage = usage
    read = usage_of(raw)
    assert read is not None
    assert read.service_tier == tier
