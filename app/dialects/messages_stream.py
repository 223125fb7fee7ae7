"""A stream of chat completions, told as the events of Anthropic's Messages.

    message_start
    content_block_start · content_block_delta … · content_block_stop      for the thinking, the text and each call of a tool
    message_delta (why it ended, and the usage) · message_stop

The chat dialect judges the stream; this only tells what it lets through. The usage comes last in a chat stream, behind the finish
reason, so that the closing events wait for the end.
"""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

from app.dialects.chat_retold import event, payloads_of, text_in
from app.dialects.messages_answer import ending, message_id, thought_block, thoughts_in, usage_told
from app.dialects.openai_chat_stream import ChatStream
from app.dialects.tool_turns import ToolDelta, ToolTurns, tool_calls_in
from app.domain.pricing import Usage

MESSAGE_STOP = event("message_stop", {})

_SAID_BY_THE_MODEL = frozenset({"thinking", "redacted_thinking", "text"})

_chunk = msgspec.json.Decoder(dict[str, Any]).decode


class MessagesStream(ChatStream):
    """Judges like a chat stream of one choice that shows its usage; hands on Anthropic's events."""

    __slots__ = ("_block", "_blocks", "_final", "_has_started", "_tools")

    def __init__(self) -> None:
        super().__init__(choices=1, shows_usage=True)
        self._has_started = False
        self._blocks = 0
        """How many blocks were begun."""
        self._block: str | None = None
        """What the open block holds: thinking, text, or the call of a tool with its number."""
        self._tools = ToolTurns()
        self._final: dict[str, Any] = {}
        """The choice as it ended."""

    def feed(self, data: bytes) -> bytes:
        return self._told(super().feed(data))

    def end(self) -> bytes:
        return self._told(super().end())

    def cut(self, delivered_tokens: int, prompt_tokens: int) -> bytes:
        if self.usage is None:
            self.usage = Usage(prompt_tokens, delivered_tokens)
            told = self._told(super().cut(delivered_tokens, prompt_tokens))
            self.usage = None
            return told
        return self._told(super().cut(delivered_tokens, prompt_tokens))

    def _told(self, passed: bytes) -> bytes:
        if not passed:
            return b""
        events: list[bytes] = []
        for payload in payloads_of(passed):
            if payload == b"[DONE]":
                events += self._ending()
            else:
                chunk = _chunk(payload)
                if chunk.get("choices"):
                    self._tell(chunk, events)
        return b"".join(events)

    def _tell(self, chunk: dict[str, Any], events: list[bytes]) -> None:
        if not self._has_started:
            self._has_started = True
            events.append(_started(chunk))
        for choice in chunk["choices"]:
            if choice.get("index"):
                continue  # another choice than the first: nobody asked for one
            if choice.get("finish_reason"):
                self._final = choice
            delta = choice.get("delta") or {}
            if thoughts := thoughts_in(delta):
                for each in thoughts:
                    self._tell_signed(thought_block(each), events)
            elif thought := text_in(delta.get("reasoning_content")) or text_in(delta.get("reasoning")):
                self._tell_thought(thought, events)
            if text := text_in(delta.get("content")) or text_in(delta.get("refusal")):
                self._open("text", {"type": "text", "text": ""}, events)
                self._delta({"type": "text_delta", "text": text}, events)
            for call in tool_calls_in(delta):
                for said in self._tools.take(call):
                    self._tell_tool(said, events)

    def _tell_thought(self, thought: str, events: list[bytes]) -> None:
        self._open("thinking", {"type": "thinking", "thinking": "", "signature": ""}, events)
        self._delta({"type": "thinking_delta", "thinking": thought}, events)

    def _tell_signed(self, thought: dict[str, Any], events: list[bytes]) -> None:
        """A piece of thinking that will be signed, or its signature, which is the last of it."""
        if thought["type"] == "redacted_thinking":
            self._close(events)
            self._open("redacted_thinking", thought, events)
            self._close(events)
            return
        if thought["thinking"]:
            self._tell_thought(thought["thinking"], events)
        if thought["signature"]:
            self._open("thinking", {"type": "thinking", "thinking": "", "signature": ""}, events)
            self._delta({"type": "signature_delta", "signature": thought["signature"]}, events)
            self._close(events)

    def _end_tools(self, events: list[bytes]) -> None:
        for said in self._tools.rest():
            self._tell_tool(said, events)

    def _tell_tool(self, said: ToolDelta, events: list[bytes]) -> None:
        name = f"tool {said.number}"
        if self._block != name:
            call_id = said.call_id or f"toolu_{uuid.uuid4().hex[:24]}"
            self._open(name, {"type": "tool_use", "id": call_id, "name": said.name, "input": {}}, events)
        if said.arguments:
            self._delta({"type": "input_json_delta", "partial_json": said.arguments}, events)

    def _open(self, what: str, block: dict[str, object], events: list[bytes]) -> None:
        if self._block == what:
            return
        if what in _SAID_BY_THE_MODEL:
            self._end_tools(events)
        self._close(events)
        events.append(event("content_block_start", {"index": self._blocks, "content_block": block}))
        self._block = what
        self._blocks += 1

    def _delta(self, delta: dict[str, object], events: list[bytes]) -> None:
        events.append(event("content_block_delta", {"index": self._blocks - 1, "delta": delta}))

    def _close(self, events: list[bytes]) -> None:
        if self._block is not None:
            events.append(event("content_block_stop", {"index": self._blocks - 1}))
            self._block = None

    def _ending(self) -> list[bytes]:
        events: list[bytes] = []
        if not self._has_started:
            events.append(_started({}))
        if not self._blocks:
            self._open("text", {"type": "text", "text": ""}, events)
        self._end_tools(events)
        has_tools = (self._block or "").startswith("tool ")
        self._close(events)
        usage = usage_told(self.usage or Usage(0, self.delivered_tokens))
        ended = ending(self._final, self.finish_reason, has_tools=has_tools)
        return [*events, event("message_delta", {"delta": ended, "usage": usage}), MESSAGE_STOP]


def _started(chunk: dict[str, Any]) -> bytes:
    """The usage of the prompt is not known yet; the closing event tells it."""
    message: dict[str, object] = {
        "id": message_id(chunk.get("id")),
        "type": "message",
        "role": "assistant",
        "model": chunk.get("model"),
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage_told(Usage()),
    }
    return event("message_start", {"message": message})
