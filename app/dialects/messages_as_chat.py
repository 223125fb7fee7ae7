"""A request of Anthropic's Messages in the words of chat completions.

Left out is what only Anthropic's own models understand and an answer does without: cache marks, thinking of earlier turns, `top_k`,
metadata. What an answer would be wrong without is refused by name: tools that run on Anthropic's servers, files kept there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Raw

from app.dialects.envelope import encode
from app.exceptions import InvalidRequest

_SAME = ("temperature", "top_p")
_NOT_ASKED = ("none", "auto")
_value = msgspec.json.Decoder()


def chat_fields(fields: Mapping[str, Raw], *, keeps_thinking: bool) -> dict[str, object]:
    """The fields of the chat request. Raises: InvalidRequest."""
    given: dict[str, Any] = {name: _value.decode(raw) for name, raw in fields.items() if bytes(raw) != b"null"}
    system = _text_in(given.get("system", ""), "system")
    messages: list[object] = [{"role": "system", "content": system}] if system else []
    for number, message in enumerate(given["messages"]):
        messages += _told(message, f"messages[{number}]")
    told: dict[str, object] = {"model": given["model"], "messages": messages}
    told |= {name: given[name] for name in _SAME if name in given}
    if "max_tokens" in given:
        told["max_tokens"] = given["max_tokens"]
    if given.get("stop_sequences"):
        told["stop"] = given["stop_sequences"]
    if tools := [_tool(tool, f"tools[{number}]") for number, tool in enumerate(given.get("tools") or ())]:
        told["tools"] = tools
        told |= _tool_choice(given.get("tool_choice"))
    if (form := _response_format(given)) is not None:
        told["response_format"] = form
    if keeps_thinking and "thinking" in given:
        told["thinking"] = given["thinking"]
    return told


def _told(message: dict[str, Any], param: str) -> list[object]:
    """One message; a tool's results become messages of their own, before what the user says with them."""
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant", "system"):
        raise InvalidRequest("A message's role is 'user' or 'assistant'.", param=f"{param}.role")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list):
        raise InvalidRequest("A message's content is text or a list of blocks.", param=f"{param}.content")
    if role == "assistant":
        return [_of_assistant(content)]
    results: list[object] = []
    parts: list[dict[str, object]] = []
    for number, block in enumerate(content):
        where = f"{param}.content[{number}]"
        if isinstance(block, dict) and block.get("type") == "tool_result":
            text, pictures = _result(block.get("content", ""), where)
            results.append({"role": "tool", "tool_call_id": str(block.get("tool_use_id", "")), "content": text})
            parts += pictures
        else:
            parts.append(_part(block, where))
    return [*results, {"role": role, "content": _merged(parts)}] if parts else results


def _of_assistant(content: list[Any]) -> dict[str, object]:
    blocks = [block for block in content if isinstance(block, dict)]
    texts = [str(block.get("text", "")) for block in blocks if block.get("type") == "text"]
    calls = [
        {
            "id": str(block.get("id", "")),
            "type": "function",
            "function": {"name": str(block.get("name", "")), "arguments": encode(block.get("input") or {}).decode()},
        }
        for block in blocks
        if block.get("type") == "tool_use"
    ]
    told: dict[str, object] = {"role": "assistant", "content": "".join(texts) or (None if calls else "")}
    return told | {"tool_calls": calls} if calls else told


def _result(content: object, param: str) -> tuple[str, list[dict[str, object]]]:
    """What a tool answered: its text, and the pictures that only a user's message can carry."""
    if isinstance(content, str):
        return content, []
    if not isinstance(content, list):
        raise InvalidRequest("A tool's result is text or a list of blocks.", param=param)
    parts = [_part(block, param) for block in content]
    texts = [str(part["text"]) for part in parts if part["type"] == "text"]
    return "\n".join(texts), [part for part in parts if part["type"] != "text"]


def _part(block: Any, param: str) -> dict[str, object]:
    """Raises: InvalidRequest for a block that chat completions cannot carry."""
    match block:
        case {"type": "text", "text": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "image", "source": {"type": "base64", "media_type": str(media), "data": str(data)}}:
            return {"type": "image_url", "image_url": {"url": f"data:{media};base64,{data}"}}
        case {"type": "image", "source": {"type": "url", "url": str(url)}}:
            return {"type": "image_url", "image_url": {"url": url}}
        case {"type": "document", "source": {"type": "text", "data": str(text)}}:
            return {"type": "text", "text": text}
        case {"type": "document", "source": {"type": "base64", "media_type": str(media), "data": str(data)}}:
            name = str(block.get("title") or "document.pdf")
            return {"type": "file", "file": {"filename": name, "file_data": f"data:{media};base64,{data}"}}
        case {"type": "search_result", "content": list(content)}:
            return {"type": "text", "text": "\n".join(_texts(content))}
        case {"type": str(kind)}:
            raise InvalidRequest(f"This model takes no block of type '{kind[:60]}'.", param=param)
        case _:
            raise InvalidRequest("A block of content has a type.", param=param)


def _merged(parts: list[dict[str, object]]) -> object:
    """A single text as plain text: the oldest upstreams know no lists."""
    if len(parts) == 1 and parts[0]["type"] == "text":
        return parts[0]["text"]
    return parts


def _text_in(system: object, param: str) -> str:
    if isinstance(system, str):
        return system
    if not isinstance(system, list):
        raise InvalidRequest("The system prompt is text or a list of text blocks.", param=param)
    return "\n\n".join(_texts(system))


def _texts(blocks: list[Any]) -> Iterator[str]:
    return (str(block["text"]) for block in blocks if isinstance(block, dict) and "text" in block)


def _tool(tool: Any, param: str) -> dict[str, object]:
    match tool:
        case {"name": str(name), "input_schema": dict(schema)}:
            function: dict[str, object] = {"name": name, "parameters": schema}
            if tool.get("description"):
                function["description"] = tool["description"]
            return {"type": "function", "function": function}
        case {"type": str(kind)}:
            raise InvalidRequest(f"This model has no tool of type '{kind[:60]}'.", param=param)
        case _:
            raise InvalidRequest("A tool has a name and an input_schema.", param=param)


def _tool_choice(choice: object) -> dict[str, object]:
    told: dict[str, object] = {}
    match choice:
        case {"type": "any"}:
            told["tool_choice"] = "required"
        case {"type": "tool", "name": str(name)}:
            told["tool_choice"] = {"type": "function", "function": {"name": name}}
        case {"type": str(kind)} if kind in _NOT_ASKED:
            told["tool_choice"] = kind
    if isinstance(choice, dict) and choice.get("disable_parallel_tool_use"):
        told["parallel_tool_calls"] = False
    return told


def _response_format(given: Mapping[str, Any]) -> object:
    """Structured output, under both of its names."""
    config = given.get("output_config")
    form = config.get("format") if isinstance(config, dict) else given.get("output_format")
    match form:
        case {"type": "json_schema", "schema": dict(schema)}:
            return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
        case _:
            return None
