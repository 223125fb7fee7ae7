"""What a model reads of a request, as text to be counted. One reading for all dialects: they name the same things alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
from msgspec import Raw

_PLAIN = ("system", "instructions", "prompt", "input")
_PER_MESSAGE = 3
_PER_NAME = 1
_PER_TOOL_CALL = 8
_REPLY = 3
"""OpenAI's cookbook, "How to count tokens": so much around every message, and the opening of the reply."""
_PER_FUNCTION, _PER_PROPERTIES, _PER_PROPERTY, _PER_ENUM, _PER_CHOICE, _END = 7, 3, 3, -3, 3, 12
"""The same for functions, as it gives them for gpt-4o."""
_NOT_READ = frozenset({"type", "cache_control", "id", "tool_call_id", "tool_use_id", "index", "detail"})
_MEDIA = frozenset({"image_url", "input_audio", "audio", "file", "video_url", "source", "image", "document"})
_MAX_DEPTH = 32

_value = msgspec.json.Decoder()


@dataclass(slots=True)
class Prompt:
    """The pieces of text, and the tokens around them."""

    texts: list[str] = field(default_factory=list)
    around_tokens: int = 0


def read_prompt(fields: Mapping[str, Raw]) -> Prompt:
    """Never raises on a body that a dialect has read; what has an unknown shape is counted as the strings it holds."""
    prompt = Prompt()
    messages = _decoded(fields, "messages")
    if isinstance(messages, list):
        for message in messages:
            _read_message(message, prompt)
    for name in _PLAIN:
        value = _decoded(fields, name)
        _gather(value, prompt, 0)
        prompt.around_tokens += _given_tokens(value)
    for name in ("tools", "functions"):
        tools = _decoded(fields, name)
        if isinstance(tools, list) and tools:
            for tool in tools:
                _read_tool(tool, prompt)
            prompt.around_tokens += _END
    if (form := _decoded(fields, "response_format")) is not None:
        prompt.texts.append(msgspec.json.encode(form).decode())
    prompt.around_tokens += _REPLY
    return prompt


def _decoded(fields: Mapping[str, Raw], name: str) -> object:
    raw = fields.get(name)
    if raw is None:
        return None
    decoded: object = _value.decode(raw)
    return decoded


def _given_tokens(value: object) -> int:
    """A prompt may come as numbers of tokens, or as a list of such prompts."""
    if not isinstance(value, list):
        return 0
    return sum(_given_tokens(item) if isinstance(item, list) else isinstance(item, int) for item in value)


def _read_message(message: object, prompt: Prompt) -> None:
    prompt.around_tokens += _PER_MESSAGE
    if not isinstance(message, dict):
        _gather(message, prompt, 0)
        return
    if "name" in message:
        prompt.around_tokens += _PER_NAME
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        prompt.around_tokens += _PER_TOOL_CALL * len(calls)
    _gather(message, prompt, 0)


def _gather(value: object, prompt: Prompt, depth: int) -> None:
    """Every string in a value that the model reads."""
    if isinstance(value, str):
        prompt.texts.append(value)
    elif depth > _MAX_DEPTH:
        prompt.texts.append(msgspec.json.encode(value).decode())
    elif isinstance(value, list):
        for item in value:
            _gather(item, prompt, depth + 1)
    elif isinstance(value, dict):
        for name, item in value.items():
            if name not in _NOT_READ and name not in _MEDIA:
                _gather(item, prompt, depth + 1)


def _read_tool(tool: object, prompt: Prompt) -> None:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict):
        _gather(tool, prompt, 0)
        return
    prompt.around_tokens += _PER_FUNCTION
    prompt.texts.append(f"{function.get('name', '')}:{str(function.get('description', '')).rstrip('.')}")
    schema = function.get("parameters", function.get("input_schema"))
    if isinstance(schema, dict):
        _read_schema(schema, prompt, 0)


def _read_schema(schema: dict[str, object], prompt: Prompt, depth: int) -> None:
    properties = schema.get("properties")
    if not isinstance(properties, dict) or not properties:
        return
    prompt.around_tokens += _PER_PROPERTIES
    for name, described in properties.items():
        prompt.around_tokens += _PER_PROPERTY
        if not isinstance(described, dict):
            continue
        if isinstance(choices := described.get("enum"), list):
            prompt.around_tokens += _PER_ENUM + _PER_CHOICE * len(choices)
            prompt.texts += map(str, choices)
        kind, text = described.get("type", ""), str(described.get("description", "")).rstrip(".")
        prompt.texts.append(f"{name}:{kind}:{text}")
        inner = described.get("items", described)
        if isinstance(inner, dict) and depth < _MAX_DEPTH:
            _read_schema(inner, prompt, depth + 1)
