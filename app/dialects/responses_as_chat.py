"""A request of OpenAI's Responses in the words of chat completions.

Tools of the caller's own go along; a *custom* tool, which takes plain text, becomes a function of one text argument. Tools that run on
OpenAI's servers (search, code, images) are left out: the model is simply not told of them. Reasoning of earlier turns is left out, for
only the service that produced it can read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Raw

from app.dialects.envelope import encode
from app.exceptions import InvalidRequest

CUSTOM_ARGUMENT = "input"
"""What the one argument of a custom tool is called."""
_SAME = (
    *("temperature", "top_p", "parallel_tool_calls", "service_tier", "seed", "logit_bias", "frequency_penalty"),
    *("presence_penalty", "prompt_cache_key", "safety_identifier", "user"),
)
_LEFT_OUT = frozenset(
    {"reasoning", "web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call"}
)
_ROLES = ("user", "assistant", "system", "developer")
_value = msgspec.json.Decoder()


def chat_fields(fields: Mapping[str, Raw]) -> dict[str, object]:
    """The fields of the chat request. Raises: InvalidRequest."""
    given: dict[str, Any] = {name: _value.decode(raw) for name, raw in fields.items() if bytes(raw) != b"null"}
    messages: list[dict[str, Any]] = []
    if given.get("instructions"):
        messages.append({"role": "system", "content": given["instructions"]})
    if isinstance(given["input"], str):
        messages.append({"role": "user", "content": given["input"]})
    else:
        for number, item in enumerate(given["input"]):
            _tell(item, f"input[{number}]", messages)
    told: dict[str, object] = {"model": given["model"], "messages": messages}
    told |= {name: given[name] for name in _SAME if name in given}
    if "max_output_tokens" in given:
        told["max_tokens"] = given["max_output_tokens"]
    if tools := [_tool(tool) for tool in given.get("tools") or () if _is_own(tool)]:
        told["tools"] = tools
        if (choice := _tool_choice(given.get("tool_choice"))) is not None:
            told["tool_choice"] = choice
    else:
        told.pop("parallel_tool_calls", None)
    return told | _text_options(given.get("text")) | _reasoning(given.get("reasoning")) | _logprobs(given)


def custom_tools(fields: Mapping[str, Raw]) -> frozenset[str]:
    """The names of tools that take plain text."""
    tools = _value.decode(fields["tools"]) if "tools" in fields else None
    return frozenset(
        str(tool.get("name")) for tool in tools or () if isinstance(tool, dict) and tool.get("type") == "custom"
    )


def _tell(item: Any, param: str, messages: list[dict[str, Any]]) -> None:
    match item:
        case {"type": "function_call", "call_id": str(call_id), "name": str(name), "arguments": str(arguments)}:
            _add_call(messages, call_id, name, arguments)
        case {"type": "custom_tool_call", "call_id": str(call_id), "name": str(name), "input": str(text)}:
            _add_call(messages, call_id, name, encode({CUSTOM_ARGUMENT: text}).decode())
        case {"type": "function_call_output" | "custom_tool_call_output", "call_id": str(call_id), "output": output}:
            messages.append({"role": "tool", "tool_call_id": call_id, "content": _output(output, param)})
        case {"role": str(role), "content": content} if role in _ROLES and item.get("type", "message") == "message":
            chat_role = "system" if role == "developer" else role
            messages.append({"role": chat_role, "content": _content(content, chat_role, param)})
        case {"type": str(kind)} if kind in _LEFT_OUT:
            pass
        case {"type": str(kind)}:
            raise InvalidRequest(f"This gateway takes no input of type '{kind[:60]}'.", param=param)
        case _:
            raise InvalidRequest("An input item has a role and content, or a type.", param=param)


def _add_call(messages: list[dict[str, Any]], call_id: str, name: str, arguments: str) -> None:
    """Calls made together are one message in chat, as is what was said before them."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    messages[-1].setdefault("tool_calls", []).append(call)


def _content(content: object, role: str, param: str) -> object:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest("Content is text or a list of parts.", param=f"{param}.content")
    parts = [_part(part, f"{param}.content[{number}]") for number, part in enumerate(content)]
    if role != "user" or all(part["type"] == "text" for part in parts):
        return "".join(str(part.get("text", "")) for part in parts)
    return parts


def _part(part: Any, param: str) -> dict[str, object]:
    match part:
        case {"type": "input_text" | "output_text" | "text", "text": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "refusal", "refusal": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "input_image", "image_url": str(url)}:
            return {"type": "image_url", "image_url": {"url": url, "detail": part.get("detail") or "auto"}}
        case {"type": "input_file", "file_data": str(data)}:
            return {"type": "file", "file": {"filename": part.get("filename") or "document.pdf", "file_data": data}}
        case {"type": str(kind)}:
            raise InvalidRequest(f"This gateway takes no content of type '{kind[:60]}' by reference.", param=param)
        case _:
            raise InvalidRequest("A part of content has a type.", param=param)


def _output(output: object, param: str) -> str:
    if isinstance(output, str):
        return output
    if isinstance(output, list):
        return "".join(str(_part(part, param).get("text", "")) for part in output)
    return encode(output).decode()


def _is_own(tool: object) -> bool:
    return isinstance(tool, dict) and tool.get("type") in ("function", "custom") and isinstance(tool.get("name"), str)


def _tool(tool: dict[str, Any]) -> dict[str, object]:
    function: dict[str, object] = {"name": tool["name"]}
    if tool.get("description"):
        function["description"] = tool["description"]
    if tool["type"] == "custom":
        argument = {"type": "string", "description": "The whole input, as plain text."}
        function["parameters"] = {
            "type": "object",
            "properties": {CUSTOM_ARGUMENT: argument},
            "required": [CUSTOM_ARGUMENT],
        }
    else:
        function["parameters"] = tool.get("parameters") or {"type": "object", "properties": {}}
        if tool.get("strict") is not None:
            function["strict"] = tool["strict"]
    return {"type": "function", "function": function}


def _tool_choice(choice: object) -> object:
    match choice:
        case "none" | "auto" | "required":
            return choice
        case {"type": "function" | "custom", "name": str(name)}:
            return {"type": "function", "function": {"name": name}}
        case {"type": "allowed_tools", "mode": "required"}:
            return "required"
        case _:
            return None


def _text_options(text: object) -> dict[str, object]:
    if not isinstance(text, dict):
        return {}
    told: dict[str, object] = {"verbosity": text["verbosity"]} if text.get("verbosity") else {}
    match text.get("format"):
        case {"type": "json_schema", **schema}:
            told["response_format"] = {"type": "json_schema", "json_schema": schema}
        case {"type": "json_object"}:
            told["response_format"] = {"type": "json_object"}
    return told


def _reasoning(reasoning: object) -> dict[str, object]:
    effort = reasoning.get("effort") if isinstance(reasoning, dict) else None
    return {"reasoning_effort": effort} if effort else {}


def _logprobs(given: Mapping[str, Any]) -> dict[str, object]:
    include = given.get("include")
    if not isinstance(include, list) or "message.output_text.logprobs" not in include:
        return {}
    return {"logprobs": True, "top_logprobs": given.get("top_logprobs") or 0}
