"""The providers' wire formats, built from a scenario: unary bodies and streams of events. Pure: no I/O, no clock.

Each protocol has a function for its unary body and one for its stream. A stream has three parts: a preamble, which goes
out with the first chunk; the content events, one per chunk; and a tail (finish, usage, end marker).
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from tests.kit import wire_families
from tests.kit.invoice import Usage
from tests.kit.scenario import Scenario, UsageMode
from tests.kit.wire_families import Family

Protocol = Literal[
    "chat", "completions", "embeddings", "responses", "messages", "count_tokens", "models",
    "images", "transcription", "speech", "moderations", "rerank",
    "gemini", "bedrock", "cohere", "cohere_v1",
]  # fmt: skip
Json = dict[str, object]

CREATED_AT = 1_700_000_000
HUGE_FACTOR = 1_000_000_000
"""Far beyond any context window, still within 64 bits for ordinary counts."""
GARBAGE = "{not json}"
GIANT_MARK = "@@GIANT@@"
"""Where the server puts the bytes of a giant line: they are not built in memory here."""

_PATHS: tuple[tuple[str, Protocol], ...] = (
    ("/chat/completions", "chat"),
    ("/completions", "completions"),
    ("/embeddings", "embeddings"),
    ("/responses", "responses"),
    ("/messages/count_tokens", "count_tokens"),
    ("/messages", "messages"),
    ("/models", "models"),
    ("/images/generations", "images"),
    ("/audio/transcriptions", "transcription"),
    ("/audio/translations", "transcription"),
    ("/audio/speech", "speech"),
    ("/moderations", "moderations"),
    ("/rerank", "rerank"),
)
_ANTHROPIC_STOP = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


def protocol_of(path: str) -> Protocol | None:
    """By the end of the path: any base path may stand before it."""
    if (family := wire_families.family_of(path)) is not None:
        return family
    if "/models/" in path:
        return "models"
    return next((protocol for suffix, protocol in _PATHS if path.endswith(suffix)), None)


class Shape(NamedTuple):
    """All of a request that its answer depends on; two requests of one shape get the same bytes."""

    protocol: Protocol
    model: str = ""
    is_stream: bool = False
    wants_usage: bool = False
    n: int = 1
    inputs: int = 1
    wants_base64: bool = False
    max_tokens: int | None = None
    """Only set when the scenario obeys it."""


class Event(NamedTuple):
    """One SSE event as it goes out."""

    data: bytes
    usage_raw: str = ""
    """The usage object inside, as JSON."""


@dataclass(frozen=True, slots=True)
class Stream:
    preamble: tuple[Event, ...]
    content: tuple[Event, ...]
    tail: tuple[Event, ...]
    usage_after: tuple[Usage, ...] = ()
    """What is due after so many chunks; index 0 is before the first."""


# ------------------------------------------------------------------ usage


def completion_tokens(shape: Shape, scenario: Scenario) -> int:
    """What the model generates for this request if nothing stops it."""
    if shape.protocol in ("embeddings", "count_tokens", "models", "rerank", "moderations"):
        return 0
    tokens = scenario.completion_tokens
    if shape.max_tokens is not None:
        tokens = min(tokens, shape.max_tokens)
    return tokens * shape.n


def chunk_count(shape: Shape, scenario: Scenario) -> int:
    """Chunks of a stream, all choices together."""
    chunks = scenario.chunks
    if shape.max_tokens is not None:
        chunks = min(chunks, shape.max_tokens)
    return chunks * shape.n


def finish_reason(shape: Shape, scenario: Scenario) -> str | None:
    if shape.max_tokens is not None and shape.max_tokens < scenario.completion_tokens:
        return "length"
    if scenario.tool_call is not None and scenario.finish_reason == "stop":
        return "tool_calls"
    return scenario.finish_reason


def usage_after(shape: Shape, scenario: Scenario, chunks: int) -> Usage:
    """The tokens generated when so many chunks are out; an endless stream goes on at the same rate."""
    total = completion_tokens(shape, scenario)
    planned = chunk_count(shape, scenario)
    if planned == 0:
        generated = 0
    elif scenario.endless:
        generated = total * chunks // planned
    else:
        generated = total * min(chunks, planned) // planned
    return _usage(shape, scenario, generated)


def full_usage(shape: Shape, scenario: Scenario) -> Usage:
    return _usage(shape, scenario, completion_tokens(shape, scenario))


def _usage(shape: Shape, scenario: Scenario, generated: int) -> Usage:
    if shape.protocol in ("models", "count_tokens"):
        return Usage()
    return Usage(
        prompt_tokens=scenario.prompt_tokens,
        completion_tokens=generated,
        cached_tokens=min(scenario.cached_tokens, scenario.prompt_tokens),
        reasoning_tokens=min(scenario.reasoning_tokens, generated),
        cache_write_tokens=scenario.cache_write_tokens,
    )


def is_believable(mode: UsageMode) -> bool:
    return mode in ("exact", "in_content_chunk", "on_finish_chunk", "every_chunk")


def usage_json(protocol: Protocol, usage: Usage, mode: UsageMode) -> Json | None:
    """The usage object in the protocol's words, distorted as the mode says; `None` for `missing`."""
    if mode == "missing":
        return None
    family = _family(protocol)
    plain = wire_families.usage_words(family, usage) if family else _USAGE_WORDS.get(protocol, _openai_usage)(usage)
    if mode == "mismatched":
        return plain | {"total_tokens": usage.total_tokens + 7}
    distort = _DISTORTIONS.get(mode)
    return plain if distort is None else _distorted(plain, distort)


def _family(protocol: Protocol) -> Family | None:
    """The protocol, where `wire_families` speaks it."""
    return protocol if protocol in ("gemini", "bedrock", "cohere", "cohere_v1") else None


def _openai_usage(usage: Usage) -> Json:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def _embeddings_usage(usage: Usage) -> Json:
    return {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens}


def _responses_usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }


def _anthropic_usage(usage: Usage) -> Json:
    # Anthropic's input_tokens are the fresh ones only; cached and cache-write tokens stand beside them.
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens - usage.cache_write_tokens,
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


_USAGE_WORDS: Mapping[Protocol, Callable[[Usage], Json]] = {
    "embeddings": _embeddings_usage,
    "responses": _responses_usage,
    "messages": _anthropic_usage,
}
_DISTORTIONS: Mapping[UsageMode, Callable[[int], object]] = {
    "negative": lambda tokens: -abs(tokens) or -1,
    "strings": str,
    "floats": lambda tokens: tokens + 0.5,
    "nulls": lambda _: None,
    "nan": lambda _: float("nan"),
    "huge": lambda tokens: (tokens or 1) * HUGE_FACTOR,
}


def _distorted(plain: Json, distort: Callable[[int], object]) -> Json:
    return {
        name: distort(value) if isinstance(value, int) else _distorted(value, distort)
        for name, value in plain.items()
        if isinstance(value, int | dict)
    }


# ------------------------------------------------------------------ text


def pieces(scenario: Scenario, count: int) -> list[str]:
    """The text of each chunk; joined they are the whole text."""
    if scenario.text is None:
        return [f"w{number} " for number in range(count)]
    return cut(scenario.text, count)


def cut(text: str, count: int) -> list[str]:
    """`count` nearly equal slices."""
    return [text[len(text) * i // count : len(text) * (i + 1) // count] for i in range(count)]


def whole_text(scenario: Scenario) -> str:
    return scenario.text if scenario.text is not None else "".join(pieces(scenario, scenario.chunks)).rstrip()


def compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# ------------------------------------------------------------------ unary bodies


def unary_body(shape: Shape, scenario: Scenario) -> tuple[bytes, str]:
    """The whole body and the usage object inside it as JSON (empty when there is none)."""
    if shape.protocol == "speech":
        return b"ID3\x04stub-audio", ""
    mode: UsageMode = scenario.usage
    usage = usage_json(shape.protocol, full_usage(shape, scenario), mode)
    if (family := _family(shape.protocol)) is not None:
        told = wire_families.body(family, scenario, whole_text(scenario), finish_reason(shape, scenario), usage)
        return compact(told).encode("utf-8", "surrogatepass"), "" if usage is None else compact(usage)
    body = _UNARY[shape.protocol](shape, scenario)
    has_usage = usage is not None and shape.protocol not in ("models", "count_tokens", "moderations")
    if has_usage:
        body["usage"] = usage
    return compact(body).encode("utf-8", "surrogatepass"), compact(usage) if has_usage else ""


def _chat_body(shape: Shape, scenario: Scenario) -> Json:
    message: Json = {"role": "assistant", "content": whole_text(scenario), "refusal": scenario.refusal}
    if scenario.reasoning_text is not None:
        message["reasoning_content"] = scenario.reasoning_text
    if (call := scenario.tool_call) is not None:
        function = {"name": call.name, "arguments": call.arguments}
        message |= {"content": None, "tool_calls": [{"id": call.call_id, "type": "function", "function": function}]}
    reason = finish_reason(shape, scenario)
    choices = [{"index": i, "message": message, "logprobs": None, "finish_reason": reason} for i in range(shape.n)]
    return _openai_object("chatcmpl-stub", "chat.completion", shape.model) | {"choices": choices}


def _completions_body(shape: Shape, scenario: Scenario) -> Json:
    reason = finish_reason(shape, scenario)
    choices = [
        {"index": i, "text": whole_text(scenario), "logprobs": None, "finish_reason": reason} for i in range(shape.n)
    ]
    return _openai_object("cmpl-stub", "text_completion", shape.model) | {"choices": choices}


def _embeddings_body(shape: Shape, _: Scenario) -> Json:
    vector = [0.25, -0.5, 0.125, 1.0]
    packed = base64.b64encode(struct.pack("<4f", *vector)).decode()
    embedding: object = packed if shape.wants_base64 else vector
    items = [{"object": "embedding", "index": i, "embedding": embedding} for i in range(shape.inputs)]
    return {"object": "list", "data": items, "model": shape.model}


def _responses_body(shape: Shape, scenario: Scenario) -> Json:
    return _response_object(shape, "completed", [_output_message(whole_text(scenario), "completed")])


def _messages_body(shape: Shape, scenario: Scenario) -> Json:
    blocks: list[Json] = []
    if scenario.reasoning_text is not None:
        blocks.append({"type": "thinking", "thinking": scenario.reasoning_text, "signature": "c3R1Yg=="})
    if (call := scenario.tool_call) is not None:
        arguments = json.loads(call.arguments)
        blocks.append({"type": "tool_use", "id": call.call_id, "name": call.name, "input": arguments})
    else:
        blocks.append({"type": "text", "text": whole_text(scenario)})
    return _message_object(shape) | {"content": blocks, "stop_reason": _stop_reason(shape, scenario)}


def _count_tokens_body(_: Shape, scenario: Scenario) -> Json:
    return {"input_tokens": scenario.prompt_tokens}


def _models_body(shape: Shape, _: Scenario) -> Json:
    def model(name: str) -> Json:
        return {"id": name, "object": "model", "created": CREATED_AT, "owned_by": "stub"}

    if shape.model:
        return model(shape.model)
    return {"object": "list", "data": [model("stub-model"), model("stub-model-2")]}


def _images_body(shape: Shape, _: Scenario) -> Json:
    return {"created": CREATED_AT, "data": [{"b64_json": "c3R1Yg=="} for _ in range(shape.n)]}


def _transcription_body(_: Shape, scenario: Scenario) -> Json:
    return {"text": whole_text(scenario)}


def _moderations_body(shape: Shape, _: Scenario) -> Json:
    result = {"flagged": False, "categories": {"violence": False}, "category_scores": {"violence": 0.0}}
    return {"id": "modr-stub", "model": shape.model, "results": [result] * shape.inputs}


def _rerank_body(shape: Shape, _: Scenario) -> Json:
    return {"id": "rerank-stub", "model": shape.model, "results": [{"index": 0, "relevance_score": 0.5}]}


_UNARY: Mapping[Protocol, Callable[[Shape, Scenario], Json]] = {
    "chat": _chat_body,
    "completions": _completions_body,
    "embeddings": _embeddings_body,
    "responses": _responses_body,
    "messages": _messages_body,
    "count_tokens": _count_tokens_body,
    "models": _models_body,
    "images": _images_body,
    "transcription": _transcription_body,
    "moderations": _moderations_body,
    "rerank": _rerank_body,
}


def _openai_object(object_id: str, kind: str, model: str) -> Json:
    return {"id": object_id, "object": kind, "created": CREATED_AT, "model": model}


def _response_object(shape: Shape, status: str, output: list[Json]) -> Json:
    return {
        "id": "resp_stub",
        "object": "response",
        "created_at": CREATED_AT,
        "status": status,
        "model": shape.model,
        "output": output,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


def _output_message(text: str, status: str) -> Json:
    content: list[Json] = [{"type": "output_text", "text": text, "annotations": []}] if text else []
    return {"type": "message", "id": "msg_stub", "status": status, "role": "assistant", "content": content}


def _message_object(shape: Shape) -> Json:
    return {
        "id": "msg_stub",
        "type": "message",
        "role": "assistant",
        "model": shape.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def _stop_reason(shape: Shape, scenario: Scenario) -> str | None:
    reason = finish_reason(shape, scenario)
    return None if reason is None else _ANTHROPIC_STOP.get(reason, reason)


# ------------------------------------------------------------------ streams


def stream(shape: Shape, scenario: Scenario) -> Stream:
    """The events of a streamed answer. Only chat, completions, messages and responses have any."""
    builders = {"messages": _messages_stream, "responses": _responses_stream}
    family = _family(shape.protocol)
    made = (
        builders.get(shape.protocol, _openai_stream)(shape, scenario)
        if family is None
        else _of(family, shape, scenario)
    )
    dues = tuple(usage_after(shape, scenario, chunks) for chunks in range(len(made.content) + 1))
    return replace(made, usage_after=dues)


def _of(family: Family, shape: Shape, scenario: Scenario) -> Stream:
    count = chunk_count(shape, scenario)
    usage = usage_json(shape.protocol, usage_after(shape, scenario, count), scenario.usage)
    texts = pieces(scenario, count)
    parts = wire_families.events(
        family, scenario, texts, finish_reason(shape, scenario), usage, lambda data, name: _framed(data, name, scenario)
    )
    preamble, content, tail = (tuple(map(Event, part)) for part in parts)
    if tail and usage is not None:
        tail = (*tail[:-1], Event(tail[-1].data, compact(usage)))
    return Stream(preamble, content, tail)


def _framed(data: Json, name: str, scenario: Scenario) -> bytes:
    return sse(compact(data), scenario, event=name or None)


def _openai_stream(shape: Shape, scenario: Scenario) -> Stream:
    """`chat.completion.chunk` or `text_completion` events; choices of n > 1 take turns."""
    is_chat = shape.protocol == "chat"
    count = chunk_count(shape, scenario)
    mode = scenario.usage
    base = (
        _openai_object("chatcmpl-stub", "chat.completion.chunk", shape.model)
        if is_chat
        else _openai_object("cmpl-stub", "text_completion", shape.model)
    )

    def chunk(choices: list[Json], usage: Json | None = None) -> Event:
        payload = base | {"choices": choices}
        if usage is not None:
            payload["usage"] = usage
        elif shape.wants_usage:
            payload["usage"] = None
        return Event(sse(compact(payload), scenario), "" if usage is None else compact(usage))

    def usage_at(chunks: int) -> Json | None:
        return usage_json(shape.protocol, usage_after(shape, scenario, chunks), mode)

    preamble: list[Event] = []
    if is_chat and scenario.role_only_first:
        opening: Json = {"role": "assistant", "content": "", "refusal": None}
        preamble = [chunk([_delta_choice(i, opening)]) for i in range(shape.n)]
    content = []
    per_choice = count // shape.n if shape.n else 0
    deltas = _chat_deltas(scenario, per_choice) if is_chat else _text_deltas(scenario, per_choice)
    for number in range(count):
        index, delta = number % shape.n, deltas[number // shape.n]
        choice = _delta_choice(index, delta) if is_chat else _text_choice(index, delta)
        carries = mode == "every_chunk" or (mode == "in_content_chunk" and number == count - 1)
        content.append(chunk([choice], usage_at(number + 1) if carries else None))
    tail = []
    if (reason := finish_reason(shape, scenario)) is not None:
        ends: list[Json] = [
            _delta_choice(i, {}, reason) if is_chat else _text_choice(i, {"text": ""}, reason) for i in range(shape.n)
        ]
        tail.append(chunk(ends, usage_at(count) if mode == "on_finish_chunk" else None))
    if mode not in ("in_content_chunk", "on_finish_chunk", "missing") and shape.wants_usage:
        tail.append(chunk([], usage_at(count)))
    if scenario.done_marker:
        tail.append(Event(sse("[DONE]", scenario)))
    return Stream(tuple(preamble), tuple(content), tuple(tail))


def _delta_choice(index: int, delta: Json, reason: str | None = None) -> Json:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}


def _text_choice(index: int, delta: Json, reason: str | None = None) -> Json:
    return {"index": index, "logprobs": None, "finish_reason": reason} | delta


def _text_deltas(scenario: Scenario, count: int) -> list[Json]:
    deltas: list[Json] = [{"text": text} for text in pieces(scenario, count)]
    if scenario.giant_line_bytes is not None and deltas:
        deltas[0] = {"text": GIANT_MARK}
    return deltas


def _chat_deltas(scenario: Scenario, count: int) -> list[Json]:
    """One delta per chunk: first half reasoning if there is any, then the tool call, the refusal or the text."""
    thought = count // 2 if scenario.reasoning_text is not None else 0
    deltas: list[Json] = [{"reasoning_content": part} for part in cut(scenario.reasoning_text or "", thought)]
    rest = count - thought
    if (call := scenario.tool_call) is not None:
        for number, part in enumerate(cut(call.arguments, rest)):
            head = {"id": call.call_id, "type": "function"} if number == 0 else {}
            function = {"arguments": part} | ({"name": call.name} if number == 0 else {})
            deltas.append({"tool_calls": [{"index": 0, **head, "function": function}]})
    elif scenario.refusal is not None:
        deltas += [{"refusal": part} for part in cut(scenario.refusal, rest)]
    else:
        deltas += [{"content": part} for part in pieces(scenario, rest)]
    if scenario.giant_line_bytes is not None and deltas:
        deltas[0] = {"content": GIANT_MARK}
    return deltas


def _messages_stream(shape: Shape, scenario: Scenario) -> Stream:
    """Anthropic's events; a scripted reasoning text makes a thinking block before the text block."""
    count = chunk_count(shape, scenario)
    mode = scenario.usage

    def event(payload: Json, usage_raw: str = "") -> Event:
        return Event(sse(compact(payload), scenario, event=str(payload["type"])), usage_raw)

    start_usage = usage_json("messages", _usage(shape, scenario, min(1, completion_tokens(shape, scenario))), mode)
    message = _message_object(shape) | ({} if start_usage is None else {"usage": start_usage})
    preamble = [event({"type": "message_start", "message": message})]
    content: list[Event] = []
    index = 0
    thought = count // 2 if scenario.reasoning_text is not None else 0
    opening = {"type": "content_block_start", "index": 0}
    if thought:
        preamble.append(event(opening | {"content_block": {"type": "thinking", "thinking": "", "signature": ""}}))
        for part in cut(scenario.reasoning_text or "", thought):
            content.append(event(_block_delta(0, {"type": "thinking_delta", "thinking": part})))
        index = 1
    block, deltas = _anthropic_block(scenario, count - thought)
    block_start = event({"type": "content_block_start", "index": index, "content_block": block})
    if thought:
        turn = sse(compact({"type": "content_block_stop", "index": 0}), scenario, event="content_block_stop")
        content[-1] = Event(content[-1].data + turn + block_start.data)
    else:
        preamble += [block_start, event({"type": "ping"})]
    content += [event(_block_delta(index, delta)) for delta in deltas]
    tail = [event({"type": "content_block_stop", "index": index})]
    if (reason := _stop_reason(shape, scenario)) is not None:
        usage = usage_json("messages", usage_after(shape, scenario, count), mode)
        payload: Json = {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}}
        if usage is not None:
            payload["usage"] = usage
        tail.append(event(payload, "" if usage is None else compact(usage)))
    if scenario.done_marker:
        tail.append(event({"type": "message_stop"}))
    return Stream(tuple(preamble), tuple(content), tuple(tail))


def _block_delta(index: int, delta: Json) -> Json:
    return {"type": "content_block_delta", "index": index, "delta": delta}


def _anthropic_block(scenario: Scenario, count: int) -> tuple[Json, list[Json]]:
    if (call := scenario.tool_call) is not None:
        block: Json = {"type": "tool_use", "id": call.call_id, "name": call.name, "input": {}}
        return block, [{"type": "input_json_delta", "partial_json": part} for part in cut(call.arguments, count)]
    texts = pieces(scenario, count)
    if scenario.giant_line_bytes is not None and texts:
        texts[0] = GIANT_MARK
    return {"type": "text", "text": ""}, [{"type": "text_delta", "text": part} for part in texts]


def _responses_stream(shape: Shape, scenario: Scenario) -> Stream:
    """`response.created` … `response.completed`, numbered."""
    sequence = 0

    def event(kind: str, rest: Json, usage_raw: str = "") -> Event:
        nonlocal sequence
        payload = {"type": kind, "sequence_number": sequence} | rest
        sequence += 1
        return Event(sse(compact(payload), scenario, event=kind), usage_raw)

    count = chunk_count(shape, scenario)
    texts = pieces(scenario, count)
    if scenario.giant_line_bytes is not None and texts:
        texts[0] = GIANT_MARK
    whole = "".join(texts)
    place: Json = {"item_id": "msg_stub", "output_index": 0, "content_index": 0}
    part: Json = {"type": "output_text", "text": "", "annotations": []}
    preamble = [
        event("response.created", {"response": _response_object(shape, "in_progress", [])}),
        event("response.in_progress", {"response": _response_object(shape, "in_progress", [])}),
        event("response.output_item.added", {"output_index": 0, "item": _output_message("", "in_progress")}),
        event("response.content_part.added", place | {"part": part}),
    ]
    content = [event("response.output_text.delta", place | {"delta": text}) for text in texts]
    tail: list[Event] = []
    if scenario.finish_reason is not None:
        tail += [
            event("response.output_text.done", place | {"text": whole}),
            event("response.content_part.done", place | {"part": part | {"text": whole}}),
            event("response.output_item.done", {"output_index": 0, "item": _output_message(whole, "completed")}),
        ]
    if scenario.done_marker:
        usage = usage_json("responses", usage_after(shape, scenario, count), scenario.usage)
        status = "incomplete" if finish_reason(shape, scenario) == "length" else "completed"
        response = _response_object(shape, status, [_output_message(whole, "completed")])
        if usage is not None:
            response["usage"] = usage
        usage_raw = "" if usage is None else compact(usage)
        tail.append(event(f"response.{status}", {"response": response}, usage_raw))
    return Stream(tuple(preamble), tuple(content), tuple(tail))


# ------------------------------------------------------------------ SSE and errors


def sse(data: str, scenario: Scenario, *, event: str | None = None) -> bytes:
    """One event with the scenario's odd but legal framing."""
    if scenario.multiline_data and data.startswith("{") and data != GARBAGE:
        # JSON may break where a newline is white space; the parts are `data:` lines of one event.
        data = json.dumps(json.loads(data), ensure_ascii=False, indent=1)
    field_name = "data:" if scenario.no_space_after_data else "data: "
    lines = [f"event: {event}"] if event is not None else []
    lines += [field_name + line for line in data.split("\n")]
    newline = "\r\n" if scenario.crlf else "\n"
    return (newline.join(lines) + newline * 2).encode("utf-8", "surrogatepass")


def garbage_event(scenario: Scenario) -> bytes:
    return sse(GARBAGE, scenario)


def unknown_event(scenario: Scenario) -> bytes:
    return sse(compact({"type": "stub.unheard_of", "value": 1}), scenario, event="stub.unheard_of")


def error_event(protocol: Protocol, scenario: Scenario, *, message: str) -> bytes:
    """The protocol's way to say in a stream that it broke."""
    payload = scenario.error_body
    if payload is None and (family := _family(protocol)) is not None:
        return wire_families.error_event(
            family, scenario.status, message, lambda data, name: _framed(data, name, scenario)
        )
    if payload is None:
        payload = compact(error_json(protocol, scenario, message))
    return sse(payload, scenario, event="error" if protocol in ("messages", "responses") else None)


def error_json(protocol: Protocol, scenario: Scenario, message: str) -> Json:
    """A well-formed error of the protocol; its type follows the status."""
    if (family := _family(protocol)) is not None:
        return wire_families.error(family, scenario.status, message)
    if protocol in ("messages", "count_tokens"):
        kind = scenario.error_code or _ANTHROPIC_ERRORS.get(scenario.status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_stub"}
    kind, code = _OPENAI_ERRORS.get(scenario.status, ("server_error", None))
    error: Json = {"message": message, "type": kind, "param": None, "code": scenario.error_code or code}
    return {"error": error}


_OPENAI_ERRORS: Mapping[int, tuple[str, str | None]] = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "unsupported_country_region_territory"),
    404: ("invalid_request_error", "model_not_found"),
    413: ("invalid_request_error", "request_too_large"),
    422: ("invalid_request_error", None),
    429: ("requests", "rate_limit_exceeded"),
}
_ANTHROPIC_ERRORS: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    529: "overloaded_error",
}
