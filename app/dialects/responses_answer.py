"""A whole answer of chat completions, told as a response of OpenAI's Responses."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Raw

from app.dialects.chat_retold import arguments_in
from app.dialects.envelope import encode
from app.dialects.openai_usage import read_usage
from app.dialects.responses_tools import Tools, call_item
from app.domain.pricing import Usage

LAST = b',"is_last":true}\n\n'
"""How the data of the event that ends a stream ends; a member that clients do not know, for `response.completed` holds a whole answer
and can be told from others by nothing that comes as late."""
_ECHOED: Mapping[str, object] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "service_tier": "default",
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}
"""What a response repeats of its request, and what stands there where the request did not say."""


class Echo:
    """What an answer repeats of its request."""

    def __init__(self, fields: Mapping[str, Raw]) -> None:
        self.members: dict[str, object] = {
            **_ECHOED,
            **{name: raw for name, raw in fields.items() if name in _ECHOED and bytes(raw) != b"null"},
        }


def response_of(body: bytes, echo: Echo, tools: Tools) -> bytes:
    """`body` was found to be a completion."""
    answer: dict[str, Any] = msgspec.json.decode(body)
    choice = answer["choices"][0]
    usage = read_usage(encode(answer.get("usage")), encode(answer.get("service_tier")))
    return encode(
        response(
            response_id(answer.get("id")),
            answer,
            echo,
            output=_output(choice, tools),
            finish_reason=choice.get("finish_reason") or "stop",
            usage=usage,
        )
    )


def response(
    own_id: str,
    answer: Mapping[str, Any],
    echo: Echo,
    *,
    output: list[dict[str, object]],
    finish_reason: str | None,
    usage: Usage | None,
) -> dict[str, object]:
    """The response object; without a finish reason as it stands while it is being produced."""
    reason = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(finish_reason or "")
    status = "in_progress" if finish_reason is None else "incomplete" if reason else "completed"
    return {
        "id": own_id,
        "object": "response",
        "created_at": answer.get("created") or 0,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": {"reason": reason} if reason else None,
        "model": answer.get("model"),
        "output": output,
        "store": False,
        "usage": usage_told(usage) if usage is not None else None,
        **echo.members,
    }


def response_id(upstream_id: object) -> str:
    return f"resp_{upstream_id if isinstance(upstream_id, str) and upstream_id else uuid.uuid4().hex}"


def usage_told(usage: Usage) -> dict[str, object]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def message_item(
    item_id: str, text: str, *, status: str = "completed", logprobs: object = (), is_refusal: bool = False
) -> dict[str, object]:
    part = refusal_part(text) if is_refusal else text_part(text, logprobs)
    return {
        "id": item_id,
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": [part] if status == "completed" else [],
    }


def text_part(text: str, logprobs: object = ()) -> dict[str, object]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs) if logprobs else []}  # type: ignore[call-overload]  # a JSON list


def refusal_part(text: str) -> dict[str, object]:
    return {"type": "refusal", "refusal": text}


def logprobs_in(choice: Mapping[str, Any]) -> list[Any]:
    """Of its text, where they were asked for."""
    found = choice.get("logprobs")
    tokens = found.get("content") if isinstance(found, dict) else None
    return tokens if isinstance(tokens, list) else []


def reasoning_item(item_id: str, text: str) -> dict[str, object]:
    """What a model thought aloud; shown as the summary, which is the part of the shape that clients show."""
    return {"id": item_id, "type": "reasoning", "summary": [{"type": "summary_text", "text": text}] if text else []}


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


def texts_of(body: bytes) -> list[str]:
    """The words of a response that was handed on, as one text."""
    said: list[str] = []
    for item in msgspec.json.decode(body).get("output") or ():
        said += [
            str(part.get("text") or part.get("refusal") or "")
            for part in item.get("content") or item.get("summary") or ()
        ]
        said.append(str(item.get("arguments") or item.get("input") or ""))
        if called := item.get("action") or item.get("operation"):
            said.append(encode(called).decode())
    return ["".join(said)]


def _output(choice: Mapping[str, Any], tools: Tools) -> list[dict[str, object]]:
    message: dict[str, Any] = choice.get("message") or {}
    items: list[dict[str, object]] = []
    thought = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(thought, str) and thought:
        items.append(reasoning_item(new_id("rs"), thought))
    text, refusal = message.get("content"), message.get("refusal")
    if isinstance(text, list):
        text = "".join(str(part.get("text", "")) for part in text if isinstance(part, dict))
    calls = message.get("tool_calls") or ()
    if isinstance(older := message.get("function_call"), dict):
        calls = [{"function": older}]
    if isinstance(refusal, str) and refusal and not text:
        items.append(message_item(new_id("msg"), refusal, is_refusal=True))
    elif text or not calls:
        items.append(message_item(new_id("msg"), text or "", logprobs=logprobs_in(choice)))
    for call in calls:
        function = call.get("function") or {}
        name = str(function.get("name") or "")
        items.append(
            call_item(
                new_id("fc"),
                call.get("id") or new_id("call"),
                name,
                arguments_in(function) or "{}",
                tools,
                status="completed",
            )
        )
    return items
