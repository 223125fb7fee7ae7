"""The webhook's sender: guarded, bounded, and silent about what the receiver said."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator

import pytest

from app.domain.alerts import Sent, signature
from app.domain.egress import LAPTOP, EgressPolicy
from app.providers import webhook as module
from app.providers.transport import Transport
from app.providers.webhook import Webhook
from tests.kit.clock import ManualClock
from tests.kit.stalls import stalled_s
from tests.kit.webhook_receiver import WebhookReceiver

SECRET = b"webhook-secret-for-tests-0123456789abcdefghij"
BODY = b'{"type":"test"}'


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    opened = Transport(LAPTOP)
    yield opened
    await opened.close()


def sender(transport: Transport, url: str) -> Webhook:
    return Webhook(transport, ManualClock(), url=url, secret=SECRET)


async def test_an_event_arrives_whole_signed_and_named(transport: Transport) -> None:
    async with WebhookReceiver() as receiver:
        sent = await sender(transport, receiver.url + "?token=abc").send("id-1", BODY)

    (posted,) = receiver.received
    assert sent == Sent(200)
    assert (posted.path, posted.body) == ("/hook?token=abc", BODY)
    assert posted.headers["content-type"] == "application/json"
    assert posted.headers["x-antigravity-event-id"] == "id-1"
    at_s = int(ManualClock().now().timestamp())
    assert posted.headers["x-antigravity-signature"] == signature(BODY, secret=SECRET, at_s=at_s)


@pytest.mark.parametrize("status", [302, 404, 500])
async def test_any_status_but_a_success_is_not_delivered_and_redirects_are_not_followed(
    transport: Transport, status: int
) -> None:
    async with WebhookReceiver(lambda posted, before: status) as receiver:
        sent = await sender(transport, receiver.url).send("id-1", BODY)

    assert sent == Sent(status, f"status_{status}")
    assert not sent.is_delivered
    assert len(receiver.received) == 1


async def test_nobody_there_is_told_in_a_word(transport: Transport) -> None:
    with socket.socket() as deaf:  # it holds its port, so that nobody else may listen there meanwhile
        deaf.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/"
        assert await sender(transport, url).send("i", BODY) == Sent(None, "connect_failed")


async def test_a_receiver_that_says_nothing_is_waited_for_so_long_only(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOTAL_S", 0.3)
    gone = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        gone.set()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    began = time.monotonic()
    sent = await sender(transport, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/").send("i", BODY)

    assert sent == Sent(None, "total_timeout")
    assert time.monotonic() - began - stalled_s(began) < 2
    await asyncio.wait_for(gone.wait(), 5)
    server.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "169.254.169.254"])
async def test_what_no_endpoint_may_point_to_no_webhook_may(host: str) -> None:
    guarded = Transport(EgressPolicy())
    async with WebhookReceiver() as receiver:
        sent = await sender(guarded, f"http://{host}:{receiver.port}/hook").send("i", BODY)
    await guarded.close()

    assert sent == Sent(None, "endpoint_blocked")
    assert receiver.received == []
