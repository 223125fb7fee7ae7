"""A whole answer of chat completions, told as a message of Anthropic's."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import msgspec

from app.dialects.chat_retold import arguments_in, object_in
from app.dialects.envelope import encode
from app.dialects.openai_usage import read_usage
from app.domain.pricing import Usage

STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}


def message_of(body: bytes) -> bytes:
    """`body` was found to be a completion."""
    answer: dict[str, Any] = msgspec.json.decode(body)
    choice = answer["choices"][0]
    blocks = _blocks(choice.get("message") or {})
    usage = read_usage(encode(answer.get("usage"))) or Usage()
    told = {
        "id": message_id(answer.get("id")),
        "type": "message",
        "role": "assistant",
        "model": answer.get("model"),
        "content": blocks,
        **ending(choice, choice.get("finish_reason"), has_tools=blocks[-1]["type"] == "tool_use"),
        "usage": usage_told(usage),
    }
    return encode(told)


def message_id(upstream_id: object) -> str:
    return f"msg_{upstream_id if isinstance(upstream_id, str) and upstream_id else uuid.uuid4().hex}"


def ending(choice: Mapping[str, Any], finish_reason: str | None, *, has_tools: bool) -> dict[str, object]:
    """Why it ended. Some upstreams say `stop` after a call of a tool; vLLM and SGLang say which of the caller's own words ended it, if one
    did."""
    word = choice.get("stop_reason") or choice.get("matched_stop")
    if has_tools and finish_reason in (None, "stop"):
        return {"stop_reason": "tool_use", "stop_sequence": None}
    if finish_reason == "stop" and isinstance(word, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": word}
    return {"stop_reason": STOP_REASONS.get(finish_reason or "stop", "end_turn"), "stop_sequence": None}


def usage_told(usage: Usage) -> dict[str, int]:
    """Anthropic counts what was read from a cache, and written to one, beside the input; OpenAI counts it within."""
    written = usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
    return {
        "input_tokens": max(0, usage.prompt_tokens - usage.cached_tokens - written),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def texts_of(body: bytes) -> list[str]:
    """The words of a message that was handed on, as one text."""
    blocks = msgspec.json.decode(body).get("content") or []
    said = [
        str(block.get("text") or block.get("thinking") or "") or encode(block.get("input") or {}).decode()
        for block in blocks
        if isinstance(block, dict)
    ]
    return ["".join(said)]


def thoughts_in(said: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a model that signs its thinking thought, as LiteLLM hands it on: only so its maker takes it back in the next turn."""
    thoughts = said.get("thinking_blocks")
    return [each for each in thoughts if isinstance(each, dict)] if isinstance(thoughts, list) else []


def thought_block(thought: Mapping[str, Any]) -> dict[str, Any]:
    if thought.get("type") == "redacted_thinking":
        return {"type": "redacted_thinking", "data": str(thought.get("data") or "")}
    text, signature = thought.get("thinking"), thought.get("signature")
    return {"type": "thinking", "thinking": str(text or ""), "signature": str(signature or "")}


def _blocks(message: dict[str, Any]) -> list[dict[str, Any]]:
    blocks = [thought_block(thought) for thought in thoughts_in(message)]
    thought = message.get("reasoning_content") or message.get("reasoning")
    if not blocks and isinstance(thought, str) and thought:
        blocks.append({"type": "thinking", "thinking": thought, "signature": ""})
    text = message.get("content") or message.get("refusal")
    if isinstance(text, list):
        text = "".join(str(part.get("text", "")) for part in text if isinstance(part, dict))
    if text:
        blocks.append({"type": "text", "text": text})
    calls = message.get("tool_calls") or ()
    if isinstance(older := message.get("function_call"), dict):
        calls = [{"function": older}]
    for call in calls:
        function = call.get("function") or {}
        blocks.append(
            {
                "type": "tool_use",
                "id": call.get("id") or f"toolu_{uuid.uuid4().hex[:24]}",
                "name": function.get("name") or "",
                "input": object_in(arguments_in(function)),
            }
        )
    return blocks or [{"type": "text", "text": ""}]
