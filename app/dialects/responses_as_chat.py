"""A request of OpenAI's Responses in the words of chat completions.

Tools are told as `responses_tools` says. Reasoning of earlier turns is left out, for only the service that produced it can read it, and so
is what tools on OpenAI's servers found.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Raw

from app.dialects.chat_retold import IN_NEXT_MESSAGE
from app.dialects.envelope import encode
from app.dialects.responses_tools import arguments_of, chat_name, tools_in
from app.exceptions import InvalidRequest

_SAME = (
    *("temperature", "top_p", "parallel_tool_calls", "service_tier", "seed", "logit_bias", "frequency_penalty"),
    *("presence_penalty", "prompt_cache_key", "safety_identifier", "user"),
)
_LEFT_OUT = frozenset(
    [
        *("reasoning", "web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call"),
        *("mcp_list_tools", "mcp_call", "tool_search_call", "tool_search_output", "program", "program_output"),
    ]
)
_OWN_CALLS = {"local_shell_call": "local_shell", "shell_call": "shell", "apply_patch_call": "apply_patch"}
"""Calls of tools that OpenAI defines and the caller runs, by the names of the functions they are told as."""
_OUTPUTS = frozenset(
    f"{kind}_output"
    for kind in ("function_call", "custom_tool_call", "local_shell_call", "shell_call", "apply_patch_call")
)
_ROLES = ("user", "assistant", "system", "developer")
_value = msgspec.json.Decoder()


def chat_fields(fields: Mapping[str, Raw]) -> dict[str, object]:
    """The fields of the chat request. Raises: InvalidRequest."""
    given: dict[str, Any] = {name: _value.decode(raw) for name, raw in fields.items() if bytes(raw) != b"null"}
    conversation = _Conversation()
    if given.get("instructions"):
        conversation.add({"role": "system", "content": given["instructions"]})
    if isinstance(given["input"], str):
        conversation.add({"role": "user", "content": given["input"]})
    else:
        for number, item in enumerate(given["input"]):
            conversation.tell(item, f"input[{number}]")
    conversation.end_results()
    told: dict[str, object] = {"model": given["model"], "messages": conversation.messages}
    told |= {name: given[name] for name in _SAME if name in given}
    if "max_output_tokens" in given:
        told["max_tokens"] = given["max_output_tokens"]
    if tools := tools_in(given.get("tools")):
        told["tools"] = [{"type": "function", "function": tool.function} for tool in tools.values()]
        if (choice := _tool_choice(given.get("tool_choice"))) is not None:
            told["tool_choice"] = choice
    else:
        told.pop("parallel_tool_calls", None)
    return told | _text_options(given.get("text")) | _reasoning(given.get("reasoning")) | _logprobs(given)


class _Conversation:
    """The messages as they are told. Pictures in a tool's result wait until all results of that turn stand together."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._pictures: list[dict[str, object]] = []

    def tell(self, item: Any, param: str) -> None:
        """Raises: InvalidRequest for an item that an answer would be wrong without."""
        match item:
            case {"type": "function_call", "call_id": str(call_id), "name": str(name), "arguments": str(arguments)}:
                self._call(call_id, chat_name(name, item.get("namespace")), arguments)
            case {"type": "custom_tool_call", "call_id": str(call_id), "name": str(name), "input": str()}:
                self._call(call_id, chat_name(name, item.get("namespace")), arguments_of(item))
            case {"type": str(kind), "call_id": str(call_id)} if kind in _OWN_CALLS:
                self._call(call_id, _OWN_CALLS[kind], arguments_of(item))
            case {"type": str(kind)} if kind in _OUTPUTS:
                self._result(item, param)
            case {"role": str(role), "content": content} if role in _ROLES and item.get("type", "message") == "message":
                chat_role = "system" if role == "developer" else role
                self.add({"role": chat_role, "content": _content(content, chat_role, param)})
            case {"type": str(kind)} if kind in _LEFT_OUT:
                pass
            case {"type": "item_reference", "id": str(id)} if id.startswith("rs_"):
                pass  # reasoning: it would be left out, had it been sent
            case {"type": "item_reference"}:
                raise InvalidRequest(
                    "This gateway keeps no answers, so no item can be referred to: send it whole (with 'store': false clients do).",
                    param=param,
                )
            case {"type": str(kind)}:
                raise InvalidRequest(f"This gateway takes no input of type '{kind[:60]}'.", param=param)
            case _:
                raise InvalidRequest("An input item has a role and content, or a type.", param=param)

    def add(self, message: dict[str, Any]) -> None:
        self.end_results()
        self.messages.append(message)

    def end_results(self) -> None:
        if self._pictures:
            self.messages.append({"role": "user", "content": self._pictures})
            self._pictures = []

    def _call(self, call_id: str, name: str, arguments: str) -> None:
        """Calls made together are one message in chat, as is what was said before them."""
        if not self.messages or self.messages[-1]["role"] != "assistant":
            self.add({"role": "assistant", "content": None})
        call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        self.messages[-1].setdefault("tool_calls", []).append(call)

    def _result(self, item: Mapping[str, Any], param: str) -> None:
        text, pictures = _output(item, param)
        call_id = item.get("call_id") or item.get("id")  # a local shell's output names its call by `id`
        self.messages.append({"role": "tool", "tool_call_id": str(call_id), "content": text})
        self._pictures += pictures


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
        case {"type": "input_audio", "input_audio": dict(sound)}:
            return {"type": "input_audio", "input_audio": sound}
        case {"type": "input_file", "file_data": str(data)}:
            return {"type": "file", "file": {"filename": part.get("filename") or "document.pdf", "file_data": data}}
        case {"type": str(kind)}:
            raise InvalidRequest(f"This gateway takes no content of type '{kind[:60]}' by reference.", param=param)
        case _:
            raise InvalidRequest("A part of content has a type.", param=param)


def _output(item: Mapping[str, Any], param: str) -> tuple[str, list[dict[str, object]]]:
    """What a tool answered: its text, and the pictures and files that only a user's message can carry."""
    output = item.get("output")
    if item["type"] == "apply_patch_call_output":
        return f"{item.get('status') or 'completed'}: {output or ''}", []
    if isinstance(output, str):
        return output, []
    if isinstance(output, list) and item["type"] != "shell_call_output":
        parts = [_part(part, f"{param}.output[{number}]") for number, part in enumerate(output)]
        others = [part for part in parts if part["type"] != "text"]
        text = "".join(str(part["text"]) for part in parts if part["type"] == "text")
        return (IN_NEXT_MESSAGE if others and not text else text), others
    return encode(output).decode(), []


def _tool_choice(choice: Any) -> object:
    match choice:
        case "none" | "auto" | "required":
            return choice
        case {"type": "function" | "custom", "name": str(name)}:
            return {"type": "function", "function": {"name": chat_name(name, choice.get("namespace"))}}
        case {"type": "local_shell" | "shell" | "apply_patch" as kind}:
            return {"type": "function", "function": {"name": kind}}
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
