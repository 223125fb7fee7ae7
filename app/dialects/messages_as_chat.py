"""A request of Anthropic's Messages in the words of chat completions.

Left out is what only Anthropic's own models understand and an answer does without: cache marks, thinking of earlier turns, `top_k`,
metadata, what was found by tools on Anthropic's servers. What an answer would be wrong without is refused by name: such tools
themselves, files kept there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Raw

from app.dialects.messages_blocks import MARK, Part, assistant_message, parts_of, result_of, system_content, with_mark
from app.dialects.messages_tools import functions_of
from app.exceptions import InvalidRequest

_MEDIUM_TOKENS, _HIGH_TOKENS = 4 << 10, 16 << 10
"""Budgets for thinking from which on a model of OpenAI's is told to make a medium, or a high, effort: about what it then spends."""
_SAME = ("temperature", "top_p")
_NOT_ASKED = ("none", "auto")
_value = msgspec.json.Decoder()


def chat_fields(fields: Mapping[str, Raw], *, may_be_claude: bool) -> dict[str, object]:
    """The fields of the chat request. Behind a provider that translates back there may be a model of Anthropic's: it gets the thinking
    that it signed, and the marks for its cache. Raises: InvalidRequest."""
    given: dict[str, Any] = {name: _value.decode(raw) for name, raw in fields.items() if bytes(raw) != b"null"}
    if given.get("mcp_servers"):
        raise InvalidRequest("MCP servers are called by Anthropic's servers only.", param="mcp_servers")
    system = system_content(given.get("system", ""), keeps_marks=may_be_claude)
    messages: list[Part] = [{"role": "system", "content": system}] if system else []
    for number, message in enumerate(given["messages"]):
        messages += _told(message, f"messages[{number}]", may_be_claude=may_be_claude)
    told: dict[str, object] = {"model": given["model"], "messages": messages}
    told |= {name: given[name] for name in _SAME if name in given}
    if "max_tokens" in given:
        told["max_tokens"] = given["max_tokens"]
    if given.get("stop_sequences"):
        told["stop"] = given["stop_sequences"]
    if tools := functions_of(given.get("tools") or ()):
        told["tools"] = tools
        told |= _tool_choice(given.get("tool_choice"))
    if (form := _response_format(given)) is not None:
        told["response_format"] = form
    if may_be_claude and "thinking" in given:
        told["thinking"] = given["thinking"]
    elif (effort := _effort(given)) is not None:
        told["reasoning_effort"] = effort
    return told


def _told(message: dict[str, Any], param: str, *, may_be_claude: bool) -> list[Part]:
    """One message; a tool's results become messages of their own, before what the user says with them."""
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant", "system"):
        raise InvalidRequest("A message's role is 'user' or 'assistant'.", param=f"{param}.role")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list):
        raise InvalidRequest("A message's content is text or a list of blocks.", param=f"{param}.content")
    if role == "assistant":
        return [assistant_message(content, keeps_thinking=may_be_claude)]
    results: list[Part] = []
    parts: list[Part] = []
    for number, block in enumerate(content):
        where = f"{param}.content[{number}]"
        if isinstance(block, dict) and block.get("type") == "tool_result":
            text, others = result_of(block, where)
            results.append({"role": "tool", "tool_call_id": str(block.get("tool_use_id", "")), "content": text})
            parts += others
            told = results
        else:
            parts += parts_of(block, where)
            told = parts
        if may_be_claude and told:
            told[-1] = with_mark(told[-1], block)
    return [*results, {"role": role, "content": _merged(parts)}] if parts else results


def _merged(parts: list[Part]) -> object:
    """A single text as plain text: the oldest upstreams know no lists."""
    if len(parts) == 1 and parts[0]["type"] == "text" and MARK not in parts[0]:
        return parts[0]["text"]
    return parts


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


def _effort(given: Mapping[str, Any]) -> str | None:
    """How hard to think, as chat completions say it: asked for as such, or by how many tokens may go into it."""
    config = given.get("output_config")
    effort = config.get("effort") if isinstance(config, dict) else None
    if isinstance(effort, str):
        return effort if effort in ("low", "medium") else "high"
    match given.get("thinking"):
        case {"type": "enabled", "budget_tokens": int(tokens)}:
            return "low" if tokens < _MEDIUM_TOKENS else "medium" if tokens < _HIGH_TOKENS else "high"
        case _:
            return None


def _response_format(given: Mapping[str, Any]) -> object:
    """Structured output, under both of its names."""
    config = given.get("output_config")
    form = config.get("format") if isinstance(config, dict) else given.get("output_format")
    match form:
        case {"type": "json_schema", "schema": dict(schema)}:
            return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
        case _:
            return None
