"""A stream of chat completions, told as the events of OpenAI's Responses.

    response.created · response.in_progress
    response.output_item.added … its deltas … its done · response.output_item.done      for the reasoning, the message, each tool's call
    response.completed (or .incomplete), with the whole response and its usage

The chat dialect judges the stream; this only tells what it lets through. Items are told one after the other: a new kind of delta ends
the item before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from app.dialects.chat_retold import event, payloads_of, text_in
from app.dialects.openai_chat_stream import ChatStream
from app.dialects.responses_answer import (
    Echo,
    logprobs_in,
    message_item,
    new_id,
    reasoning_item,
    refusal_part,
    response,
    response_id,
    text_part,
)
from app.dialects.responses_tools import Tools, call_item, custom_input, is_told_in_pieces
from app.dialects.tool_turns import ToolDelta, ToolTurns, tool_calls_in
from app.domain.pricing import Usage

_chunk = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(slots=True)
class _Item:
    """One output item while it is told."""

    kind: str
    """reasoning, message, refusal, or `tool N`: the N-th call of a tool."""
    id: str
    index: int
    call_id: str = ""
    name: str = ""
    said: list[str] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.said)


class ResponsesStream(ChatStream):
    """Judges like a chat stream of one choice that shows its usage; hands on the events of a response."""

    __slots__ = ("_echo", "_first", "_id", "_item", "_items", "_number", "_tools", "_turns")

    def __init__(self, echo: Echo, tools: Tools) -> None:
        super().__init__(choices=1, shows_usage=True)
        self._echo = echo
        self._tools = tools
        self._turns = ToolTurns()
        self._first: dict[str, Any] | None = None
        """The first chunk: what the upstream calls itself."""
        self._id = ""
        self._item: _Item | None = None
        self._items: list[dict[str, object]] = []
        """The items that were told to their end."""
        self._number = 0

    def feed(self, data: bytes) -> bytes:
        return self._told(super().feed(data))

    def end(self) -> bytes:
        return self._told(super().end())

    def cut(self, delivered_tokens: int, prompt_tokens: int) -> bytes:
        known = self.usage
        self.usage = known or Usage(prompt_tokens, delivered_tokens)
        told = self._told(super().cut(delivered_tokens, prompt_tokens))
        self.usage = known
        return told

    def _told(self, passed: bytes) -> bytes:
        if not passed:
            return b""
        events: list[bytes] = []
        for payload in payloads_of(passed):
            if payload == b"[DONE]":
                self._end_response(events)
            else:
                chunk = _chunk(payload)
                if chunk.get("choices"):
                    self._tell(chunk, events)
        return b"".join(events)

    def _tell(self, chunk: dict[str, Any], events: list[bytes]) -> None:
        if self._first is None:
            self._begin_response(chunk, events)
        for choice in chunk["choices"]:
            if choice.get("index"):
                continue  # another choice than the first: nobody asked for one
            delta = choice.get("delta") or {}
            if thought := text_in(delta.get("reasoning_content")) or text_in(delta.get("reasoning")):
                item = self._opened("reasoning", events)
                item.said.append(thought)
                self._add(events, "response.reasoning_summary_text.delta", item, summary_index=0, delta=thought)
            if text := text_in(delta.get("content")):
                item = self._opened("message", events)
                item.said.append(text)
                logprobs = logprobs_in(choice)
                item.logprobs += logprobs
                self._add(events, "response.output_text.delta", item, content_index=0, delta=text, logprobs=logprobs)
            if refusal := text_in(delta.get("refusal")):
                item = self._opened("refusal", events)
                item.said.append(refusal)
                self._add(events, "response.refusal.delta", item, content_index=0, delta=refusal)
            for call in tool_calls_in(delta):
                for told in self._turns.take(call):
                    self._tell_tool(told, events)

    def _end_tools(self, events: list[bytes]) -> None:
        for told in self._turns.rest():
            self._tell_tool(told, events)

    def _tell_tool(self, told: ToolDelta, events: list[bytes]) -> None:
        item = self._opened(f"tool {told.number}", events, call_id=told.call_id, name=told.name)
        if told.arguments:
            item.said.append(told.arguments)
            if is_told_in_pieces(item.name, self._tools):
                self._add(events, "response.function_call_arguments.delta", item, delta=told.arguments)

    def _opened(self, kind: str, events: list[bytes], *, call_id: str = "", name: str = "") -> _Item:
        if self._item is not None and self._item.kind == kind:
            return self._item
        prefix = {"reasoning": "rs", "message": "msg", "refusal": "msg"}.get(kind, "fc")
        if prefix != "fc":
            self._end_tools(events)
        self._end_item(events)
        item = _Item(kind, new_id(prefix), len(self._items))
        if prefix == "fc":
            item.call_id, item.name = call_id or new_id("call"), name
        self._item = item
        self._add(events, "response.output_item.added", item, item=self._shown(item, is_done=False))
        if kind in ("message", "refusal"):
            part = text_part("") if kind == "message" else refusal_part("")
            self._add(events, "response.content_part.added", item, content_index=0, part=part)
        if kind == "reasoning":
            part = {"type": "summary_text", "text": ""}
            self._add(events, "response.reasoning_summary_part.added", item, summary_index=0, part=part)
        return item

    def _end_item(self, events: list[bytes]) -> None:
        item = self._item
        if item is None:
            return
        text = item.text
        if item.kind == "message":
            self._add(events, "response.output_text.done", item, content_index=0, text=text, logprobs=item.logprobs)
            part = text_part(text, item.logprobs)
            self._add(events, "response.content_part.done", item, content_index=0, part=part)
        elif item.kind == "refusal":
            self._add(events, "response.refusal.done", item, content_index=0, refusal=text)
            self._add(events, "response.content_part.done", item, content_index=0, part=refusal_part(text))
        elif item.kind == "reasoning":
            part = {"type": "summary_text", "text": text}
            self._add(events, "response.reasoning_summary_text.done", item, summary_index=0, text=text)
            self._add(events, "response.reasoning_summary_part.done", item, summary_index=0, part=part)
        elif is_told_in_pieces(item.name, self._tools):
            self._add(
                events, "response.function_call_arguments.done", item, arguments=text or "{}", name=self._called(item)
            )
        elif self._tools[item.name].kind == "custom":
            whole = custom_input(text)
            self._add(events, "response.custom_tool_call_input.delta", item, delta=whole)
            self._add(events, "response.custom_tool_call_input.done", item, input=whole)
        shown = self._shown(item, is_done=True)
        self._add(events, "response.output_item.done", item, item=shown)
        self._items.append(shown)
        self._item = None

    def _shown(self, item: _Item, *, is_done: bool) -> dict[str, object]:
        if item.kind in ("message", "refusal"):
            return message_item(
                item.id,
                item.text,
                status="completed" if is_done else "in_progress",
                logprobs=item.logprobs,
                is_refusal=item.kind == "refusal",
            )
        if item.kind == "reasoning":
            return reasoning_item(item.id, item.text)
        return call_item(
            item.id,
            item.call_id,
            item.name,
            (item.text or "{}") if is_done else "",
            self._tools,
            status="completed" if is_done else "in_progress",
        )

    def _called(self, item: _Item) -> str:
        """By the name that the caller knows."""
        tool = self._tools.get(item.name)
        return item.name if tool is None else tool.name

    def _begin_response(self, chunk: dict[str, Any], events: list[bytes]) -> None:
        self._first = chunk
        self._id = response_id(chunk.get("id"))
        for name in ("response.created", "response.in_progress"):
            events.append(event(name, {"sequence_number": self._next(), "response": self._response(None, None)}))

    def _end_response(self, events: list[bytes]) -> None:
        if self._first is None:
            self._begin_response({}, events)
        self._end_tools(events)
        if self._item is None and not self._items:
            self._opened("message", events)
        self._end_item(events)
        whole = self._response(self.finish_reason or "stop", self.usage or Usage(0, self.delivered_tokens))
        name = f"response.{whole['status']}"
        events.append(event(name, {"sequence_number": self._next(), "response": whole, "is_last": True}))

    def _response(self, finish_reason: str | None, usage: Usage | None) -> dict[str, object]:
        return response(
            self._id, self._first or {}, self._echo, output=list(self._items), finish_reason=finish_reason, usage=usage
        )

    def _add(self, events: list[bytes], name: str, item: _Item, /, **data: object) -> None:
        where: dict[str, object] = {"output_index": item.index}
        if "item" not in data:
            where["item_id"] = item.id
        events.append(event(name, {"sequence_number": self._next(), **where, **data}))

    def _next(self) -> int:
        self._number += 1
        return self._number - 1
