"""Where the pinned LiteLLM reads a provider's answers wrongly, read rightly: each mend is shown by a test of that provider's wire format.

* Gemini: a chunk without a finish reason is taken for one that says "stop", so that every broken stream looks complete.
* Cohere, second version of its chat API: streams are server-sent events and are parsed as bare lines of JSON, in a shape that the API
  does not have; the finish reason of a whole answer is not read at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

_COHERE_ENDS: Final = {
    "COMPLETE": "stop",
    "STOP_SEQUENCE": "stop",
    "MAX_TOKENS": "length",
    "TOOL_CALL": "tool_calls",
    "ERROR_TOXIC": "content_filter",
}


def mend(load: Callable[[str], ModuleType]) -> None:
    """`load` imports a module of LiteLLM's by name. Doing it twice does no harm."""
    _mend_gemini(load("litellm.llms.vertex_ai.gemini.vertex_and_google_ai_studio_gemini").VertexGeminiConfig)
    _mend_cohere_streams(load("litellm.llms.cohere.common_utils").CohereV2ModelResponseIterator)
    _mend_cohere_answers(load("litellm.llms.cohere.chat.v2_transformation").CohereV2ChatConfig)


def _mend_gemini(config: Any) -> None:
    original = _original_of(config, "_check_finish_reason")

    def check_finish_reason(message: Any, finish_reason: str | None) -> Any:
        return original(message, finish_reason) if finish_reason else None

    config._check_finish_reason = staticmethod(check_finish_reason)


def _mend_cohere_answers(config: Any) -> None:
    original = _original_of(config, "transform_response")

    def transform_response(self: Any, model: str, raw_response: Any, *args: Any, **named: Any) -> Any:
        answer = original(self, model, raw_response, *args, **named)
        reason = _COHERE_ENDS.get(raw_response.json().get("finish_reason"))
        if reason is not None:
            answer.choices[0].finish_reason = reason
        return answer

    config.transform_response = transform_response


def _mend_cohere_streams(iterator: Any) -> None:
    def convert(self: Any, chunk: str | bytes) -> Any:
        line = chunk.decode() if isinstance(chunk, bytes) else chunk
        name, _, value = line.partition(":")
        if not line.startswith("{") and name != "data":
            return _generic()  # the event's name, a comment or the blank line between events: its data says all
        event = json.loads(line if line.startswith("{") else value)
        return _cohere_event(event) if isinstance(event, dict) else _generic()

    iterator.convert_str_chunk_to_generic_chunk = convert


def _cohere_event(event: dict[str, Any]) -> Any:
    """One event in the shape that LiteLLM gives to all its providers' events."""
    delta = event.get("delta") or {}
    message = delta.get("message") or {}
    match event.get("type"):
        case "content-delta":
            return _generic(text=(message.get("content") or {}).get("text") or "")
        case "tool-call-start" | "tool-call-delta":
            return _generic(tool_use=_tool_use(message.get("tool_calls") or {}, int(event.get("index") or 0)))
        case "message-end":
            return _cohere_end(delta)
    return _generic()


def _cohere_end(delta: dict[str, Any]) -> Any:
    """Raises: ValueError for an end that is none."""
    reason = _COHERE_ENDS.get(delta.get("finish_reason") or "")
    if reason is None:
        raise ValueError("the stream ended with an error")
    tokens = (delta.get("usage") or {}).get("tokens") or {}
    usage = None
    if {"input_tokens", "output_tokens"} <= tokens.keys():
        read, written = tokens["input_tokens"], tokens["output_tokens"]
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    return _generic(is_finished=True, finish_reason=reason, usage=usage)


def _tool_use(call: dict[str, Any], index: int) -> dict[str, Any]:
    function = call.get("function") or {}
    said = {"name": function.get("name"), "arguments": function.get("arguments") or ""}
    return {"id": call.get("id"), "type": "function", "function": said, "index": index}


def _generic(**given: Any) -> dict[str, Any]:
    nothing = {"text": "", "is_finished": False, "finish_reason": "", "usage": None, "index": 0, "tool_use": None}
    return {**nothing, **given}


def _original_of(holder: Any, name: str) -> Any:
    """What LiteLLM itself has under a name, also when it was mended before."""
    kept = f"_gateways_{name}"
    if kept not in vars(holder):
        setattr(holder, kept, vars(holder)[name])
    original = vars(holder)[kept]
    return original.__func__ if isinstance(original, staticmethod) else original
