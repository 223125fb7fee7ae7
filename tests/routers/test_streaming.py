"""The sending of an answer: watched for the client's leaving, kept alive in silence, ended only once the call was left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import nullcontext
from typing import Any

import pytest
from starlette.types import Message

from app.dialects.base import Dialect
from app.dialects.openai_chat import OpenAIChat
from app.dialects.openai_stream import DONE
from app.domain.call import Meter
from app.domain.catalog import EMPTY, Catalog
from app.exceptions import AttemptFailed, FailureKind, InternalError, ModelNotFound, UpstreamTruncated
from app.middleware.exchange import Exchange
from app.providers.base import Answer
from app.routers import streaming
from app.routers.streaming import KEEP_ALIVE, CallResponse, ClientLeft, Watched
from app.services.chat import Chat
from app.services.running import RunningCalls
from tests.calls import a_meter

CHAT = OpenAIChat()
CHUNK = b'data: {"choices":[]}\n\n'
BROKEN = AttemptFailed(kind=FailureKind.ANSWER_BEGUN, reason="truncated", error=UpstreamTruncated())


class Client:
    """The other end: reads what is sent, and hangs up when told to."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.has_left = asyncio.Event()
        self.on_send: Callable[[Message], None] = lambda _: None

    async def receive(self) -> Message:
        await self.has_left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        self.on_send(message)

    def exchange(self) -> Exchange:
        scope: dict[str, object] = {
            "type": "http",
            "method": "POST",
            "path": "/chat/completions",
            "headers": [],
            "client": None,
        }
        return Exchange(scope, self.receive, self.send, "018f-id")

    @property
    def parts(self) -> list[bytes]:
        return [message["body"] for message in self.sent[1:]]

    @property
    def is_ended(self) -> bool:
        return bool(self.sent) and self.sent[-1].get("more_body") is False


class FakeChat(Chat):
    """A call that answers as it is told to, and notes how and when it was left."""

    def __init__(self, client: Client, *script: bytes | BaseException | asyncio.Event, is_stream: bool = True) -> None:
        self._client = client
        self._script = list(script)
        self._is_stream = is_stream
        self.running = RunningCalls()
        self.left_after: list[bytes] | None = None
        self.left_by: BaseException | None = None

    async def answered(
        self, meter: Meter, dialect: Dialect, catalog: Catalog, take: Callable[[Answer], Awaitable[None]]
    ) -> None:
        first = self._script.pop(0)
        if isinstance(first, asyncio.Event):
            await first.wait()
            first = self._script.pop(0)
        if isinstance(first, BaseException):
            raise first
        assert isinstance(first, bytes)
        try:
            if self._is_stream:
                await take(Answer("text/event-stream", first, chunks=self._chunks()))
            else:
                await take(Answer("application/json", first))
        except BaseException as error:
            self.left_by = error
            raise
        finally:
            await asyncio.sleep(0)  # a settlement takes its time
            self.left_after = self._client.parts

    async def _chunks(self) -> AsyncIterator[bytes]:
        for step in self._script:
            if isinstance(step, asyncio.Event):
                await step.wait()
            elif isinstance(step, BaseException):
                raise step
            else:
                yield step


@pytest.fixture
def client() -> Client:
    return Client()


async def answered(chat: FakeChat, client: Client, meter: Meter | None = None) -> None:
    await CallResponse(chat, CHAT, EMPTY, meter or a_meter()).send(client.exchange())


async def test_a_stream_is_passed_on_chunk_by_chunk(client: Client) -> None:
    chat = FakeChat(client, b"data: 1\n\n", b"data: 2\n\n", b"data: 3\n\n" + DONE)

    await answered(chat, client)

    assert client.parts == [b"data: 1\n\n", b"data: 2\n\n", b"data: 3\n\n" + DONE]
    assert client.is_ended
    headers = dict(client.sent[0]["headers"])
    assert (client.sent[0]["status"], headers[b"content-type"]) == (200, b"text/event-stream; charset=utf-8")
    assert headers[b"x-accel-buffering"] == b"no"
    assert b"content-length" not in headers


async def test_the_last_bytes_of_a_stream_are_held_until_the_call_was_left(client: Client) -> None:
    chat = FakeChat(client, CHUNK, CHUNK, DONE)

    await answered(chat, client)

    assert chat.left_after == [CHUNK, CHUNK]
    assert client.parts == [CHUNK, CHUNK, DONE]


async def test_a_stream_that_is_whole_from_the_beginning_is_held_like_any_other(client: Client) -> None:
    chat = FakeChat(client, CHUNK + DONE)

    await answered(chat, client)

    assert chat.left_after == []
    assert client.parts == [CHUNK + DONE]


async def test_what_follows_the_end_of_a_stream_loses_nothing(client: Client) -> None:
    chat = FakeChat(client, CHUNK, DONE, b"", b": bye\n\n")

    await answered(chat, client)

    assert b"".join(client.parts) == CHUNK + DONE + b": bye\n\n"
    assert client.is_ended


async def test_a_whole_answer_is_sent_after_the_call_was_left(client: Client) -> None:
    chat = FakeChat(client, b'{"id":1}', is_stream=False)

    await answered(chat, client)

    assert chat.left_after == []
    assert client.parts == [b'{"id":1}']
    assert dict(client.sent[0]["headers"])[b"content-length"] == b"8"


async def test_a_failure_before_an_answer_has_begun_keeps_its_true_status(client: Client) -> None:
    with pytest.raises(ModelNotFound):
        await answered(FakeChat(client, ModelNotFound("x")), client)

    assert client.sent == []


async def test_a_stream_that_breaks_ends_with_one_error_event_after_the_settlement(client: Client) -> None:
    chat = FakeChat(client, CHUNK, BROKEN)

    await answered(chat, client)

    assert chat.left_after == [CHUNK]
    assert client.parts[0] == CHUNK
    assert client.parts[1].startswith(b'data: {"error"')
    assert b"upstream_truncated" in client.parts[1]
    assert client.is_ended


async def test_a_client_that_leaves_in_the_middle_cancels_the_call(client: Client) -> None:
    never = asyncio.Event()
    chat, meter = FakeChat(client, CHUNK, never, DONE), a_meter()
    client.on_send = lambda message: client.has_left.set() if message.get("body") == CHUNK else None

    await answered(chat, client, meter)

    assert isinstance(chat.left_by, asyncio.CancelledError)
    assert meter.has_client_left
    assert client.parts == [CHUNK], "nobody is left to be told anything"


async def test_a_client_that_leaves_before_an_answer_has_begun_is_sent_nothing(client: Client) -> None:
    meter = a_meter()
    client.has_left.set()

    await answered(FakeChat(client, asyncio.Event()), client, meter)

    assert meter.has_client_left
    assert client.sent == []


async def test_a_shutdown_is_not_taken_for_a_client_that_left(client: Client) -> None:
    meter = a_meter()
    sending = asyncio.create_task(answered(FakeChat(client, CHUNK, asyncio.Event()), client, meter))
    while not client.parts:
        await asyncio.sleep(0)
    sending.cancel()

    with pytest.raises(asyncio.CancelledError):
        await sending
    assert not meter.has_client_left


async def test_after_a_client_has_left_the_task_can_be_used_again(client: Client) -> None:
    """The cancellation was ours and is taken back: a connection that is kept does not end with its call."""
    client.has_left.set()

    async def twice() -> int:
        with pytest.raises(ClientLeft):
            async with Watched(client.exchange(), a_meter(), RunningCalls()):
                await asyncio.Event().wait()
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    assert await asyncio.create_task(twice()) == 0


async def until_watched(before: set[asyncio.Task[Any]]) -> None:
    while asyncio.all_tasks() == before:
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("error", [None, InternalError()])
async def test_the_watcher_ends_with_its_call_however_that_ends(client: Client, error: InternalError | None) -> None:
    before = asyncio.all_tasks()

    async def call() -> None:
        async with Watched(client.exchange(), a_meter(), RunningCalls()):
            await until_watched(before)
            if error is not None:
                raise error

    with nullcontext() if error is None else pytest.raises(InternalError):
        await call()

    assert asyncio.all_tasks() == before


async def test_a_call_that_is_over_at_once_is_never_watched(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "WATCH_AFTER_S", 0.001)
    before = asyncio.all_tasks()
    async with Watched(client.exchange(), a_meter(), RunningCalls()):
        pass
    await asyncio.sleep(0.02)

    assert asyncio.all_tasks() == before


async def test_a_rest_of_the_body_that_still_comes_is_not_taken_for_a_hang_up(client: Client) -> None:
    messages: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]
    exchange = client.exchange()

    async def receive() -> Message:
        return messages.pop() if messages else await client.receive()

    made = Exchange({"type": "http", "method": "POST", "path": "/"}, receive, client.send, exchange.request_id)
    meter = a_meter()
    async with Watched(made, meter, RunningCalls()):
        while messages:
            await asyncio.sleep(0)
        await asyncio.sleep(0)

    assert not meter.has_client_left


async def test_a_silent_stream_is_kept_alive_with_comments(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "KEEP_ALIVE_S", 0.001)
    resumed = asyncio.Event()

    def resume_after_two(message: Message) -> None:
        if client.parts.count(KEEP_ALIVE) == 2:
            resumed.set()

    client.on_send = resume_after_two

    await answered(FakeChat(client, CHUNK, resumed, CHUNK, DONE), client)

    assert KEEP_ALIVE.startswith(b":")
    assert [part for part in client.parts if part != KEEP_ALIVE] == [CHUNK, CHUNK, DONE]
    assert client.parts.count(KEEP_ALIVE) >= 2
    assert client.parts[-1] == DONE


async def test_an_answer_that_has_not_begun_is_given_no_comments(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "KEEP_ALIVE_S", 0.001)
    asked = 0
    begun = asyncio.Event()
    exchange = client.exchange()
    receive = client.receive

    async def counted() -> Message:
        nonlocal asked
        asked += 1
        if asked == 4:  # three periods of silence have passed
            begun.set()
        return await receive()

    made = Exchange(
        {"type": "http", "method": "POST", "path": "/", "headers": []}, counted, client.send, exchange.request_id
    )
    await CallResponse(FakeChat(client, begun, b"{}", is_stream=False), CHAT, EMPTY, a_meter()).send(made)

    assert client.parts == [b"{}"]
