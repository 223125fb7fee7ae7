"""A stream and its grant: asked ahead, grown, and cut where there is no more."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence

from app.dialects.openai_chat_stream import ChatStream
from app.domain.call import Meter
from app.domain.catalog import Model
from app.providers.base import Answer
from app.services.estimation import Estimation, NoTokenizer
from app.services.stream_cap import StreamCap
from tests.services.metered import a_call, a_meter


class Counted(NoTokenizer):
    """A tokenizer that says what it is told to say."""

    def __init__(self, *counts: int) -> None:
        self.counts = list(counts)
        self.asked = 0

    async def count_texts(self, texts: Sequence[str], model: Model) -> int | None:
        self.asked += 1
        return self.counts.pop(0) if len(self.counts) > 1 else self.counts[0]


def event(text: str | None, *, finish: str | None = None, usage: int | None = None) -> bytes:
    delta = {} if text is None else {"content": text}
    chunk: dict[str, object] = {"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
    if usage is not None:
        chunk["usage"] = {"prompt_tokens": 1, "completion_tokens": usage}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


async def played(meter: Meter, events: Sequence[bytes], tokenizer: NoTokenizer | None = None) -> tuple[bytes, int]:
    """What is handed on of these events, and how many of them were taken from the upstream."""
    reader = ChatStream(shows_usage=meter.call.wants_usage)
    taken = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal taken
        for data in events[1:]:
            taken += 1
            yield reader.feed(data)

    first = reader.feed(events[0])
    answer = Answer("text/event-stream", first, chunks=chunks(), reader=reader)
    capped = StreamCap(Estimation(tokenizer or NoTokenizer())).capped(answer, meter)
    assert capped.chunks is not None
    body = first + b"".join([chunk async for chunk in capped.chunks])
    return body, taken + 1


def granted(tokens: int, *, most: int = 1000) -> Meter:
    meter = a_meter(most_tokens=most)
    meter.granted_tokens = tokens
    return meter


WORDS = [event(f"w{number} ") for number in range(50)]


async def test_the_event_beyond_the_grant_is_not_handed_on() -> None:
    meter = granted(10)
    body, taken = await played(meter, WORDS)
    assert body.count(b'"content"') == 10
    assert taken == 11
    assert body.endswith(b'"finish_reason":"length"}]}\n\ndata: [DONE]\n\n')
    assert (meter.delivered_tokens, meter.finish_reason, meter.capped_max_tokens) == (10, "length", 10)


async def test_a_large_event_that_would_go_far_beyond_is_dropped_whole() -> None:
    meter = granted(10)
    body, _ = await played(meter, [event("a "), event("x" * 10_000), event("b ")])
    assert b"xxx" not in body
    assert meter.delivered_tokens == 1


async def test_more_is_asked_for_ahead_and_the_stream_goes_on() -> None:
    wanted: list[int] = []
    meter = granted(10)

    async def grow(tokens: int) -> int:
        wanted.append(tokens)
        return tokens

    meter.grow = grow
    body, _ = await played(meter, [*WORDS, event(None, finish="stop")])
    assert body.count(b'"content"') == 50
    assert wanted == [266]
    assert meter.granted_tokens == 266
    assert meter.finish_reason is None  # its provider notes what the reader saw


async def test_refused_growth_is_asked_for_once_more_and_then_the_stream_is_cut() -> None:
    wanted: list[int] = []
    meter = granted(10)

    async def grow(tokens: int) -> int:
        wanted.append(tokens)
        return 10

    meter.grow = grow
    body, _ = await played(meter, WORDS)
    assert body.count(b'"content"') == 10
    assert len(wanted) == 2


async def test_growth_ends_at_the_most_a_call_may_produce() -> None:
    wanted: list[int] = []
    meter = granted(10, most=20)

    async def grow(tokens: int) -> int:
        wanted.append(tokens)
        return tokens

    meter.grow = grow
    body, _ = await played(meter, WORDS)
    assert body.count(b'"content"') == 20
    assert wanted == [20]


async def test_the_providers_own_running_figures_are_believed() -> None:
    events = [event(f"w{number} ", usage=(number + 1) // 5) for number in range(50)]
    body, _ = await played(granted(10), [*events, event(None, finish="stop")])
    assert body.count(b'"content"') == 50
    body, _ = await played(granted(3), events)
    assert body.count(b'"content"') == 19


async def test_text_that_its_bytes_make_look_too_long_is_counted() -> None:
    """Ten tokens of indentation are many bytes."""
    tokenizer = Counted(4)
    events = [event(" " * 40 + "x") for _ in range(4)]
    body, _ = await played(granted(10), [*events, event(None, finish="stop")], tokenizer)
    assert body.count(b'"content"') == 4
    assert tokenizer.asked >= 1


async def test_without_a_tokenizer_only_text_that_is_surely_too_long_is_cut() -> None:
    events = [event("x" * 60) for _ in range(20)]
    body, _ = await played(granted(20), events)
    assert 20 * 5 < 60 * body.count(b'"content"') <= 20 * 8 + 60


async def test_a_finish_behind_the_grant_passes_as_it_came() -> None:
    meter = granted(10)
    body, _ = await played(meter, [*WORDS[:10], event(None, finish="stop")])
    assert b'"finish_reason": "stop"' in body
    assert meter.capped_max_tokens is None


async def test_the_usage_is_shown_to_whom_asked_for_it() -> None:
    meter = a_meter(a_call(stream=True, stream_options={"include_usage": True}))
    meter.granted_tokens = 3
    body, _ = await played(meter, WORDS)
    assert b'"usage":{"prompt_tokens":10,"completion_tokens":3,"total_tokens":13}' in body
