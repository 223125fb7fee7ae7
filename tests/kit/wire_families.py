"""Wire formats of providers that are spoken to through LiteLLM: Gemini's, Bedrock's Converse, Cohere's chat (v1 and v2).

Written after the providers' public references. Pure, like `tests.kit.wire`, which dispatches here; a scenario's faults hold alike.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from tests.kit.invoice import Usage
from tests.kit.scenario import Scenario

Family = Literal["gemini", "bedrock", "cohere", "cohere_v1"]
Json = dict[str, Any]
Say = Callable[[Json, str], bytes]

_PATHS: Final[tuple[tuple[re.Pattern[str], Family], ...]] = (
    (re.compile(r"/models/([^/:]+):(?:streamG|g)enerateContent\Z"), "gemini"),
    (re.compile(r"/model/([^/]+)/converse(?:-stream)?\Z"), "bedrock"),
    (re.compile(r"/v2/chat()\Z"), "cohere"),
    (re.compile(r"/v1/chat()\Z"), "cohere_v1"),
)
STREAM_TYPES: Final[Mapping[str, str]] = {
    "bedrock": "application/vnd.amazon.eventstream",
    "cohere_v1": "application/stream+json",
}


def family_of(path: str) -> Family | None:
    return next((family for pattern, family in _PATHS if pattern.search(path)), None)


def model_of(path: str) -> str:
    """The model where the path names it."""
    found = (pattern.search(path) for pattern, _ in _PATHS)
    return next((match[1] for match in found if match), "")


def is_stream_path(path: str) -> bool:
    return ":streamGenerateContent" in path or path.endswith("/converse-stream")


# ------------------------------------------------------------------ whole answers


def body(family: Family, scenario: Scenario, text: str, reason: str | None, usage: Json | None) -> Json:
    call = scenario.tool_call
    match family:
        case "gemini":
            parts = [{"text": text}] if call is None else [_function_call(scenario)]
            candidate = {"content": {"role": "model", "parts": parts}, "finishReason": _GEMINI_ENDS.get(reason or "")}
            return _gemini([candidate | {"index": 0}], usage)
        case "bedrock":
            content: list[Json] = [{"text": text}]
            if call is not None:
                arguments = json.loads(call.arguments)
                content = [{"toolUse": {"toolUseId": call.call_id, "name": call.name, "input": arguments}}]
            message = {"message": {"role": "assistant", "content": content}}
            counted = {} if usage is None else {"usage": usage}
            return {
                "output": message,
                "stopReason": _BEDROCK_ENDS.get(reason or ""),
                "metrics": {"latencyMs": 1},
            } | counted
        case "cohere":
            said: Json = {"role": "assistant", "content": [{"type": "text", "text": text}]}
            if call is not None:
                function = {"name": call.name, "arguments": call.arguments}
                said = {
                    "role": "assistant",
                    "tool_calls": [{"id": call.call_id, "type": "function", "function": function}],
                }
            counted = {} if usage is None else {"usage": usage}
            return {"id": "c14c80c3", "finish_reason": _COHERE_ENDS.get(reason or ""), "message": said} | counted
        case "cohere_v1":
            counted = {} if usage is None else {"meta": usage}
            calls = [] if call is None else [{"name": call.name, "parameters": json.loads(call.arguments)}]
            return {
                "text": text, "generation_id": "g", "finish_reason": _COHERE_ENDS.get(reason or ""), "tool_calls": calls,
                **counted,
            }  # fmt: skip


def usage_words(family: Family, usage: Usage) -> Json:
    total = usage.prompt_tokens + usage.completion_tokens
    match family:
        case "gemini":
            return {
                "promptTokenCount": usage.prompt_tokens,
                "candidatesTokenCount": usage.completion_tokens - usage.reasoning_tokens,
                "thoughtsTokenCount": usage.reasoning_tokens,
                "cachedContentTokenCount": usage.cached_tokens,
                "totalTokenCount": total,
            }
        case "bedrock":
            return {
                "inputTokens": usage.prompt_tokens - usage.cached_tokens,
                "outputTokens": usage.completion_tokens,
                "totalTokens": total,
                "cacheReadInputTokens": usage.cached_tokens,
            }
        case "cohere" | "cohere_v1":
            tokens = {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens}
            return {"billed_units": tokens, "tokens": tokens}


def error(family: Family, status: int, message: str) -> Json:
    if family == "gemini":
        return {"error": {"code": status, "message": message, "status": _GEMINI_ERRORS.get(status, "INTERNAL")}}
    return {"message": message}


# ------------------------------------------------------------------ streams


def events(
    family: Family, scenario: Scenario, texts: list[str], reason: str | None, usage: Json | None, sse: Say
) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """Preamble, content, tail. `sse` frames what is an event stream of the web."""
    match family:
        case "gemini":
            return _gemini_events(scenario, texts, reason, usage, sse)
        case "bedrock":
            return _bedrock_events(scenario, texts, reason, usage)
        case "cohere":
            return _cohere_events(scenario, texts, reason, usage, sse)
        case "cohere_v1":
            return _cohere_v1_events(scenario, texts, reason, usage)


def error_event(family: Family, status: int, message: str, sse: Say) -> bytes:
    """The family's way to say in a stream that it broke; 503 where the scenario's own status is that of the stream."""
    status = status if status >= 400 else 503
    if family == "bedrock":
        return _frame(
            "throttlingException" if status == 429 else "modelStreamErrorException", {"message": message}, "exception"
        )
    if family == "cohere_v1":
        return _line({"event_type": "stream-end", "finish_reason": "ERROR", "is_finished": True, "error": message})
    if family == "cohere":
        return sse({"type": "message-end", "delta": {"finish_reason": "ERROR", "error": message}}, "message-end")
    return sse(error(family, status, message), "")


def _gemini_events(
    scenario: Scenario, texts: list[str], reason: str | None, usage: Json | None, sse: Say
) -> tuple[list[bytes], list[bytes], list[bytes]]:
    def chunk(parts: list[Json], end: str | None = None, counted: Json | None = None) -> bytes:
        candidate: Json = {"content": {"role": "model", "parts": parts}, "index": 0}
        return sse(_gemini([candidate | ({"finishReason": end} if end else {})], counted), "")

    content = [chunk([{"text": text}]) for text in texts]
    if scenario.tool_call is not None:
        content = [chunk([_function_call(scenario)])]
    tail = [chunk([{"text": ""}], _GEMINI_ENDS[reason], usage)] if reason else []
    return [], content, tail


def _bedrock_events(
    scenario: Scenario, texts: list[str], reason: str | None, usage: Json | None
) -> tuple[list[bytes], list[bytes], list[bytes]]:
    def delta(payload: Json) -> bytes:
        return _frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": payload})

    preamble = [_frame("messageStart", {"role": "assistant"})]
    call = scenario.tool_call
    if call is not None:
        start = {"toolUse": {"toolUseId": call.call_id, "name": call.name}}
        preamble.append(_frame("contentBlockStart", {"contentBlockIndex": 0, "start": start}))
    said = texts if call is None else _halves(call.arguments)
    content = [delta({"text": part} if call is None else {"toolUse": {"input": part}}) for part in said]
    tail = [_frame("contentBlockStop", {"contentBlockIndex": 0})]
    if reason:
        tail.append(_frame("messageStop", {"stopReason": _BEDROCK_ENDS[reason]}))
        if usage is not None:
            tail.append(_frame("metadata", {"usage": usage, "metrics": {"latencyMs": 1}}))
    return preamble, content, tail


def _cohere_events(
    scenario: Scenario, texts: list[str], reason: str | None, usage: Json | None, sse: Say
) -> tuple[list[bytes], list[bytes], list[bytes]]:
    def event(kind: str, delta: Json | None = None, **more: Any) -> bytes:
        return sse({"type": kind, **more, **({} if delta is None else {"delta": delta})}, kind)

    preamble = [event("message-start", {"message": {"role": "assistant", "content": []}}, id="c14c80c3")]
    call = scenario.tool_call
    if call is None:
        preamble.append(event("content-start", {"message": {"content": {"type": "text", "text": ""}}}, index=0))
        content = [event("content-delta", {"message": {"content": {"text": text}}}, index=0) for text in texts]
        tail = [event("content-end", index=0)]
    else:
        head = {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": ""}}
        preamble.append(event("tool-call-start", {"message": {"tool_calls": head}}, index=0))
        deltas = [{"message": {"tool_calls": {"function": {"arguments": part}}}} for part in _halves(call.arguments)]
        content = [event("tool-call-delta", delta, index=0) for delta in deltas]
        tail = [event("tool-call-end", index=0)]
    if reason:
        end: Json = {"finish_reason": _COHERE_ENDS[reason]} | ({} if usage is None else {"usage": usage})
        tail.append(event("message-end", end))
    return preamble, content, tail


def _cohere_v1_events(
    scenario: Scenario, texts: list[str], reason: str | None, usage: Json | None
) -> tuple[list[bytes], list[bytes], list[bytes]]:
    preamble = [_line({"is_finished": False, "event_type": "stream-start", "generation_id": "g"})]
    content = [_line({"is_finished": False, "event_type": "text-generation", "text": text}) for text in texts]
    tail = []
    if reason:
        response = {"text": "".join(texts), **({} if usage is None else {"meta": usage})}
        end = {"is_finished": True, "event_type": "stream-end", "finish_reason": _COHERE_ENDS[reason]}
        tail.append(_line({**end, "response": response}))
    return preamble, content, tail


# ------------------------------------------------------------------ pieces


def _gemini(candidates: list[Json], usage: Json | None) -> Json:
    counted = {} if usage is None else {"usageMetadata": usage}
    return {"candidates": candidates, "modelVersion": "gemini-stub", "responseId": "r1"} | counted


def _function_call(scenario: Scenario) -> Json:
    call = scenario.tool_call
    return {"functionCall": {"name": call.name, "args": json.loads(call.arguments)}} if call else {}


def _halves(text: str) -> list[str]:
    return [text[: len(text) // 2], text[len(text) // 2 :]]


def _line(payload: Json) -> bytes:
    return json.dumps(payload).encode() + b"\n"


def _frame(name: str, payload: Json, kind: str = "event") -> bytes:
    """One message of Amazon's event stream: lengths, a checksum of them, headers, payload, a checksum of all."""
    fields = {f":{kind}-type": name, ":content-type": "application/json", ":message-type": kind}
    headers = b"".join(
        bytes([len(field)]) + field.encode() + b"\x07" + struct.pack("!H", len(value)) + value.encode()
        for field, value in fields.items()
    )
    content = json.dumps(payload).encode()
    prelude = struct.pack("!II", 16 + len(headers) + len(content), len(headers))
    message = prelude + struct.pack("!I", zlib.crc32(prelude)) + headers + content
    return message + struct.pack("!I", zlib.crc32(message))


_GEMINI_ENDS: Final = {"stop": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY", "tool_calls": "STOP"}
_BEDROCK_ENDS: Final = {
    "stop": "end_turn", "length": "max_tokens", "content_filter": "content_filtered", "tool_calls": "tool_use",
}  # fmt: skip
_COHERE_ENDS: Final = {
    "stop": "COMPLETE",
    "length": "MAX_TOKENS",
    "content_filter": "ERROR_TOXIC",
    "tool_calls": "TOOL_CALL",
}
_GEMINI_ERRORS: Final = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL", 503: "UNAVAILABLE",
}  # fmt: skip
