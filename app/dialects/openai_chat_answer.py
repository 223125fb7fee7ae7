"""A whole answer of chat completions: judged, and shown as the stream it would have been."""

from __future__ import annotations

import msgspec
from msgspec import Raw, Struct

from app.dialects.base import AnswerFacts, BadAnswer, UpstreamSaidError
from app.dialects.envelope import NONE, as_members, encode, is_filled, is_given
from app.dialects.openai_answer import WholeAnswer, read_whole
from app.dialects.openai_errors import NO_PROBLEM, raise_if_error, read_problem
from app.dialects.openai_stream import FAILED, framed
from app.dialects.openai_usage import read_usage


class Spoken(Struct, gc=False):
    """What a model may have produced: of a message, or of a delta."""

    content: Raw = NONE
    reasoning_content: Raw = NONE
    reasoning: Raw = NONE
    tool_calls: Raw = NONE
    function_call: Raw = NONE
    refusal: Raw = NONE
    audio: Raw = NONE
    images: Raw = NONE

    def rest(self) -> int:
        """Bytes of everything but the content."""
        others = (self.reasoning_content, self.reasoning, self.tool_calls, self.function_call)
        rare = (self.refusal, self.audio, self.images)
        return sum(len(raw) for raw in others + rare if is_filled(raw))


class _AnswerChoice(Struct, gc=False):
    message: Spoken | None = None
    finish_reason: str | None = None
    error: Raw = NONE


class _Completion(WholeAnswer):
    choices: list[_AnswerChoice] | None = None


_completion = msgspec.json.Decoder(_Completion)
_SILENT_FINISHES = ("length", "content_filter")
"""Reasons that explain an answer without content: all tokens went into thinking, or the filter took it."""


def read_completion(body: bytes) -> AnswerFacts:
    """Judge a complete answer. Raises: BadAnswer, UpstreamSaidError."""
    answer, mended = read_whole(_completion, body)
    if not answer.choices:
        raise_if_error(body)
        raise BadAnswer("no_choices")
    return AnswerFacts(
        usage=read_usage(answer.usage, answer.service_tier),
        finish_reason=answer.choices[0].finish_reason,
        output_bytes=sum(_output_bytes(choice) for choice in answer.choices),
        mended=None if mended is body else mended,
    )


def _output_bytes(choice: _AnswerChoice) -> int:
    if choice.finish_reason == FAILED:
        raise UpstreamSaidError(read_problem(bytes(choice.error)) if is_given(choice.error) else NO_PROBLEM)
    spoken = choice.message
    if spoken is None:
        raise BadAnswer("no_message")
    rest = spoken.rest()
    if not is_given(spoken.content):
        if not rest and choice.finish_reason not in _SILENT_FINISHES:
            raise BadAnswer("no_content")
        return rest
    return rest + len(spoken.content) - 2


def events_of(body: bytes) -> bytes:
    """A complete answer as a stream: what each choice said, why it ended, the usage, the done marker."""
    answer = as_members(body)
    usage = answer.pop("usage", NONE)
    choices = _choice_members.decode(answer.pop("choices"))
    base: dict[str, object] = {**answer, "object": "chat.completion.chunk"}
    events: list[bytes] = []
    for number, choice in enumerate(choices):
        index = choice.get("index", Raw(b"%d" % number))
        reason = choice.get("finish_reason", NONE)
        if not is_given(reason):
            reason = Raw(b'"stop"')  # a whole body has ended, whether or not it says so
        said = {"index": index, "delta": _as_delta(choice.get("message", NONE)), "finish_reason": None}
        ended = {"index": index, "delta": {}, "finish_reason": reason}
        if "logprobs" in choice:
            said["logprobs"] = choice["logprobs"]
        events += [encode({**base, "choices": [said]}), encode({**base, "choices": [ended]})]
    if is_given(usage):
        events.append(encode({**base, "choices": [], "usage": usage}))
    return framed([*events, b"[DONE]"])


_choice_members = msgspec.json.Decoder(list[dict[str, Raw]])


def _as_delta(message: Raw) -> dict[str, object]:
    """A message as one delta; its tool calls get the index that only deltas have."""
    delta: dict[str, object] = dict(as_members(message))
    calls = delta.get("tool_calls")
    if isinstance(calls, Raw) and is_filled(calls):
        delta["tool_calls"] = [{"index": index, **call} for index, call in enumerate(_choice_members.decode(calls))]
    return delta
