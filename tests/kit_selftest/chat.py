"""Requests that the self-tests send."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.kit.raw_http import RawResponse, SseStream, call, request_bytes
from tests.kit.upstream import ScriptedUpstream

CHAT = "/v1/chat/completions"


def chat_body(
    *, stream: bool = False, model: str = "m", include_usage: bool = False, **more: object
) -> dict[str, object]:
    body: dict[str, object] = {"model": model, "messages": [{"role": "user", "content": "hello"}], "stream": stream}
    if include_usage:
        body["stream_options"] = {"include_usage": True}
    return body | more


def chat_request(*, path: str = CHAT, key: str = "sk-test", **more: object) -> bytes:
    body = chat_body(**more)  # type: ignore[arg-type]
    return request_bytes("POST", path, headers={"Authorization": f"Bearer {key}"}, json_body=body)


async def post_chat(up: ScriptedUpstream, *, path: str = CHAT, key: str = "sk-test", **more: object) -> RawResponse:
    body = chat_body(**more)  # type: ignore[arg-type]
    return await call(up.port, "POST", path, headers={"Authorization": f"Bearer {key}"}, json_body=body)


@asynccontextmanager
async def chat_stream(up: ScriptedUpstream, *, path: str = CHAT, **more: object) -> AsyncIterator[SseStream]:
    request = chat_request(path=path, stream=True, **more)  # type: ignore[arg-type]
    async with SseStream.opened(up.port, request) as stream:
        yield stream


def chat_text(events: list[object]) -> str:
    """The content of OpenAI chat chunks, joined."""
    parts = []
    for event in events:
        assert isinstance(event, dict)
        parts += [choice["delta"].get("content") or "" for choice in event["choices"]]
    return "".join(parts)
