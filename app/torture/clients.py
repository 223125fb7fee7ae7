"""M clients that call, read, sometimes hang up, and note everything."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Iterator
from typing import Final

import aiohttp
import msgspec

from app.torture.notes import CallNote, Ending
from app.torture.plan import Fault, Options
from app.torture.stage import Key, Stage, now_s

CALL_WITHIN_S: Final = 25.0
"""Longer than any pause of the schedule, so that a paused process's answer is still waited for."""
THINKS_S: Final = (0.02, 0.5)
AFTER_REFUSAL_S: Final = 0.2
HANGS_UP_SHARE: Final = 0.15
MAX_TOKENS: Final = (None, None, 4, 16, 60)
PROMPT_WORDS: Final = (1, 40)


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    delta: _Message | None = None


class _Problem(msgspec.Struct):
    code: str | None = None


class _Said(msgspec.Struct):
    """What of an answer, or of one event of it, matters here."""

    choices: list[_Choice] = []
    error: _Problem | None = None


class Clients:
    def __init__(self, stage: Stage, options: Options) -> None:
        self._stage = stage
        self._options = options
        self._numbers = itertools.count(1)
        self.notes: list[CallNote] = []
        self.is_over = False

    async def call_until_over(self) -> None:
        """All clients, until `is_over` is set and each has finished its call."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._options.clients):
                group.create_task(self._client(random.Random(f"{self._options.seed}/{number}")))  # noqa: S311

    async def _client(self, rng: random.Random) -> None:
        await asyncio.sleep(rng.uniform(0, 0.5))
        while not self.is_over:
            key = rng.choice(self._stage.keys)
            note = await self._call(rng, key)
            if note.status == 402:
                key.refusals_in_row += 1
            elif note.status == 200:
                key.refusals_in_row = 0
            pause_s = rng.uniform(*THINKS_S)
            await asyncio.sleep(pause_s if note.ending is Ending.ANSWERED else pause_s + AFTER_REFUSAL_S)

    async def _call(self, rng: random.Random, key: Key) -> CallNote:
        gateway = rng.choice(self._stage.gateways)
        note = CallNote(
            marker=f"torture-{self._options.seed}-{next(self._numbers)}",
            gateway=gateway.number,
            key_id=key.key_id,
            user_oid=key.user_oid,
            model=rng.choice(key.models),
            is_stream=rng.random() < 0.6,
            max_tokens=rng.choice(MAX_TOKENS),
            began_at=now_s(),
        )
        self.notes.append(note)
        may_hang_up = Fault.DISCONNECT in self._options.faults and rng.random() < HANGS_UP_SHARE
        # Before the headers, between them and the first words, in the middle, and after the last.
        hangs_up_after_s = rng.choice((0.0, 0.01, 0.05, rng.uniform(0, 1.5))) if may_hang_up else None
        body = {
            "model": note.model,
            "messages": [{"role": "user", "content": "Say something. " * rng.randint(*PROMPT_WORDS)}],
            "user": note.marker,
            **({"stream": True} if note.is_stream else {}),
            **({} if note.max_tokens is None else {"max_tokens": note.max_tokens}),
        }
        try:
            async with asyncio.timeout(CALL_WITHIN_S if hangs_up_after_s is None else hangs_up_after_s):
                await self._exchange(gateway.url, key, body, note)
        except TimeoutError:
            note.ending = Ending.UNANSWERED if hangs_up_after_s is None else Ending.HUNG_UP
        except (aiohttp.ClientError, OSError):
            note.ending = Ending.UNANSWERED
        note.ended_at = now_s()
        return note

    async def _exchange(self, url: str, key: Key, body: dict[str, object], note: CallNote) -> None:
        headers = {"Authorization": f"Bearer {key.secret}", "X-Request-Id": note.marker}
        limits = aiohttp.ClientTimeout(total=None, sock_connect=5.0)
        async with self._stage.session.post(
            f"{url}/v1/chat/completions", json=body, headers=headers, timeout=limits
        ) as answer:
            note.status, note.request_id = answer.status, answer.headers.get("x-request-id")
            if answer.status != 200:
                said = _said(await answer.read())
                note.error_code = said.error.code if said and said.error else None
                note.ending = Ending.REFUSED
            elif note.is_stream:
                await _read_stream(answer, note)
            else:
                _read_words(_said(await answer.read()), note)
                note.ending = Ending.ANSWERED


async def _read_stream(answer: aiohttp.ClientResponse, note: CallNote) -> None:
    note.ending = Ending.UNANSWERED
    pending = b""
    async for data in answer.content.iter_any():
        *whole, pending = (pending + data).split(b"\n")
        for line in whole:
            if line.startswith(b"data: [DONE]"):
                note.ending = Ending.ANSWERED
            elif line.startswith(b"data: "):
                said = _said(line[6:])
                _read_words(said, note)
                if said is not None and said.error is not None:
                    note.ending, note.error_code = Ending.BROKEN, said.error.code
    if note.ending is Ending.UNANSWERED:
        note.ending = Ending.SILENT


def _read_words(said: _Said | None, note: CallNote) -> None:
    for word in _words(said):
        note.is_garbled |= word != f"w{note.received_words}"
        note.received_words += 1


def _words(said: _Said | None) -> Iterator[str]:
    for choice in said.choices if said else ():
        for message in (choice.message, choice.delta):
            if message is not None and message.content:
                yield from message.content.split()


def _said(body: bytes) -> _Said | None:
    with contextlib.suppress(msgspec.MsgspecError):
        return msgspec.json.decode(body, type=_Said)
    return None
