"""A streamed chunk: what our reader of events costs beside the search for the end of an event, which is the least one can do."""

from __future__ import annotations

from app.bench.upstream import CHUNKS
from app.dialects.openai_chat import OpenAIChat
from bench.measure import Ratio, in_turns

BODY = b'{"model":"bench","messages":[{"role":"user","content":"hello"}],"stream":true}'


async def chunk(*, is_short: bool) -> Ratio:
    times = 20 if is_short else 500
    dialect = OpenAIChat()
    call = dialect.read(BODY)
    events = [each.partition(b"\r\n")[2].removesuffix(b"\r\n") for each in CHUNKS]

    async def read() -> int:
        for _ in range(times):
            reader = dialect.stream_reader(call)
            for event in events:
                reader.feed(event)
        return times * len(events)

    async def searched() -> int:
        for _ in range(times):
            for event in events:
                event.find(b"\n\n")
        return times * len(events)

    cost, floor = await in_turns(read, searched)
    return Ratio("stream: one event read, counted and judged", cost, "one search for its end", floor)
