"""Requests with one thing wrong, anywhere: each dialect refuses them in its own words, or passes them on. It never stumbles."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from app.dialects.base import Dialect
from app.dialects.chat_from_input import ChatFromInput
from app.dialects.completions import Completions
from app.dialects.embeddings import Embeddings
from app.dialects.images import Images
from app.dialects.messages import Messages
from app.dialects.moderations import Moderations
from app.dialects.rerank import Rerank
from app.dialects.responses import Responses
from app.dialects.speech import Speech
from app.domain.catalog import ProviderKind
from app.exceptions import CallerError

ODD: list[Any] = [
    *(None, True, 0, -1, 2**53 + 1, 2**64, 1.5, 1e308, "", "\0", "é😀", "x" * 300, "1", "auto"),
    *([], {}, [[]], [None], {"a": None}, ["x"], [1, "x", {}], {"type": "text"}, {"type": "function"}, {"url": 5}),
]  # fmt: skip
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}}
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
WHOLE: list[tuple[Dialect, dict[str, Any]]] = [
    (
        ChatFromInput(),
        {
            "model": "m",
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}, PICTURE]},
                {"role": "assistant", "content": None, "tool_calls": [{"id": "c", **FUNCTION}]},
                {"role": "tool", "tool_call_id": "c", "content": "x"},
            ],
            "tools": [FUNCTION],
            "tool_choice": "auto",
            "max_tokens": 5,
            "n": 1,
            "stop": ["a"],
            "stream": True,
            "stream_options": {"include_usage": True},
            "logit_bias": {"5": 1},
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
            "service_tier": "auto",
        },
    ),
    (
        Messages(),
        {
            "model": "m",
            "max_tokens": 5,
            "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "x"},
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
                        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}},
                    ],
                },
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "t", "signature": "s"},
                        {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
                    ],
                },
                {
                    "role": "user",
                    "content": [{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "r"}]}],
                },
            ],
            "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "tool", "name": "f"},
            "stop_sequences": ["a"],
            "thinking": {"type": "enabled", "budget_tokens": 1024},
            "metadata": {"user_id": "u"},
            "output_config": {"effort": "low"},
            "stream": True,
        },
    ),
    (
        Responses(),
        {
            "model": "m",
            "input": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "x"},
                        {"type": "input_image", "image_url": "data:image/png;base64,aGk=", "detail": "auto"},
                        {"type": "input_file", "file_data": "aGk=", "filename": "a.pdf"},
                    ],
                },
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "x"}]},
                {"type": "custom_tool_call", "call_id": "d", "name": "g", "input": "x"},
                {"type": "reasoning", "summary": [], "encrypted_content": "x"},
            ],
            "instructions": "i",
            "tools": [{"type": "function", "name": "f", "parameters": {}, "strict": True}, {"type": "custom", "name": "g"}],
            "tool_choice": {"type": "function", "name": "f"},
            "text": {"format": {"type": "json_schema", "name": "x", "schema": {}}, "verbosity": "low"},
            "max_output_tokens": 5,
            "reasoning": {"effort": "low"},
            "include": ["message.output_text.logprobs"],
            "top_logprobs": 2,
            "stream": True,
            "store": False,
            "previous_response_id": None,
            "conversation": None,
        },
    ),
    (Completions(), {"model": "m", "prompt": ["a", [1, 2]], "max_tokens": 5, "n": 1, "best_of": 1, "stream": True}),
    (Embeddings(), {"model": "m", "input": ["a", [1, 2]], "dimensions": 5, "encoding_format": "float"}),
    (Images(), {"model": "m", "prompt": "p", "n": 1, "size": "1024x1024", "quality": "high"}),
    (Speech(), {"model": "m", "input": "i", "voice": "alloy", "speed": 1.0}),
    (Moderations(), {"model": "m", "input": ["x", {"type": "text", "text": "y"}]}),
    (Rerank(), {"model": "m", "query": "q", "documents": ["a", {"text": "b"}], "top_n": 1}),
]  # fmt: skip


def places_in(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if place:
        yield place
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places_in(each, (*place, key))


def changed(body: dict[str, Any], place: tuple[Any, ...], odd: Any) -> bytes:
    copied = copy.deepcopy(body)
    holder: Any = copied
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = odd
    return json.dumps(copied).encode()


@pytest.mark.parametrize(("dialect", "body"), WHOLE, ids=[dialect.name for dialect, _ in WHOLE])
def test_whatever_one_value_is_the_request_is_told_on_or_refused_by_name(
    dialect: Dialect, body: dict[str, Any]
) -> None:
    for place in places_in(body):
        for odd in ODD:
            try:
                call = dialect.read(changed(body, place, odd))
                for provider in (ProviderKind.OPENAI, ProviderKind.ANTHROPIC, ProviderKind.LITELLM):
                    spoken, retold = dialect.towards(provider, call)
                    sent = spoken.upstream_body(retold, upstream_model="other", max_tokens=3)
                    assert json.loads(sent)["model"] == "other"
            except CallerError:
                continue
            except Exception as error:
                raise AssertionError(f"{'.'.join(map(str, place))} = {odd!r}") from error
