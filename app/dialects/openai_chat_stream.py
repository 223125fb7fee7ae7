"""A stream of chat completions; see `app.dialects.openai_stream` for what becomes of each event."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec
from msgspec import Raw, Struct

from app.dialects.envelope import NONE, is_filled
from app.dialects.openai_chat_answer import Spoken, events_of
from app.dialects.openai_names import Name
from app.dialects.openai_stream import MAX_KEPT_BYTES, OpenAIStream


class _Choice(Struct, gc=False):
    delta: Spoken | None = None
    finish_reason: str | None = None
    index: int | None = None


class _Chunk(Struct):
    choices: list[_Choice] | None = None
    usage: Raw = NONE
    service_tier: Raw = NONE
    error: Raw = NONE
    id: Name = None
    object: Name = None
    model: Name = None
    system_fingerprint: Name = None


class _BareChoice(Struct):
    delta: dict[str, Raw] | None = None


class _BareChunk(Struct):
    choices: list[_BareChoice]


_bare_chunk = msgspec.json.Decoder(_BareChunk).decode
_ARGUMENTS = re.compile(rb'(?<="arguments":)\s*("(?:[^"\\]|\\.)*")')


class ChatStream(OpenAIStream[_Choice]):
    __slots__ = ()

    _chunk = msgspec.json.Decoder(_Chunk).decode

    def _count(self, choices: Sequence[_Choice], payload: bytes) -> None:
        """Note what the choices of one chunk carried."""
        for choice in choices:
            delta = choice.delta
            if delta is not None:
                size = len(delta.content) - 2
                if size == 2 and bytes(delta.content) == b"null":
                    size = 0
                if size > 0:
                    said = self._said.get(choice.index or 0)
                    if said is None:
                        self._keep(choice.index or 0, bytes(delta.content))
                    elif len(said) < MAX_KEPT_BYTES:
                        said += bytes(delta.content)[1:-1]
                else:
                    size = self._rest_of(choice.index or 0, delta)
                if size > 0:
                    self._carried(size)
            if choice.finish_reason:
                self._finish(choice)
        if not self.has_begun:
            self.has_begun = _says_anything(payload)

    def _rest_of(self, index: int, delta: Spoken) -> int:
        """Bytes of what a delta carries beside content; of that too the words are kept."""
        size = delta.rest()
        if size > 0:
            for raw in (delta.reasoning_content or delta.reasoning, delta.refusal):
                self._keep(index, bytes(raw))
            for raw in (delta.tool_calls, delta.function_call):
                for said in _ARGUMENTS.findall(raw):
                    self._keep(index, said)
        return size

    def _ended(self, index: int) -> dict[str, object]:
        return {"index": index, "delta": {}, "logprobs": None, "finish_reason": "length"}


def _says_anything(payload: bytes) -> bool:
    """Does a delta hold more than its role and empty values? Only asked until the stream has begun, for deltas of unknown kinds."""
    try:
        chunk = _bare_chunk(payload)
    except msgspec.DecodeError:
        return True
    return any(
        name != "role" and is_filled(value) for choice in chunk.choices for name, value in (choice.delta or {}).items()
    )


def texts_of(body: bytes) -> list[str]:
    """The words of a complete answer that was found good, all choices."""
    reader = ChatStream()
    reader.feed(events_of(body))
    return reader.texts()
