"""Whoever waits at the door is taken in at once, not one a turn. T136."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest
import uvloop

from app.doorway import Doorway

GUESTS = 100
TURNS = 5
"""The server's one, and one or two until the others are connected; one a turn would take a hundred."""


class Answering(asyncio.Protocol):
    """Writes in which turn it came."""

    turn = 0

    def __init__(self, doorway: Doorway | None) -> None:
        self._doorway = doorway

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._doorway is not None:
            self._doorway.take_in(lambda: Answering(None), transport.get_extra_info("sockname")[1])
        transport.write(b"%d\n" % Answering.turn)  # type: ignore[attr-defined]


async def count_turns() -> None:
    while True:
        Answering.turn += 1
        await asyncio.sleep(0)


def turns_of(guests: list[socket.socket]) -> list[int]:
    return [int(guest.recv(100)) for guest in guests]


async def turns_until_all_are_in(doorway: Doorway | None) -> int:
    loop = asyncio.get_running_loop()
    Answering.turn = 0
    server = await loop.create_server(lambda: Answering(doorway), "127.0.0.1", 0, backlog=GUESTS)
    address = server.sockets[0].getsockname()
    guests = [
        socket.create_connection(address) for _ in range(GUESTS)
    ]  # the kernel takes them in: this loop has not turned
    counting = asyncio.ensure_future(count_turns())
    try:
        return max(await asyncio.to_thread(turns_of, guests))
    finally:
        counting.cancel()
        server.close()
        if doorway is not None:
            doorway.close()
        for guest in guests:
            guest.close()


async def with_doorway() -> int:
    doorway = Doorway()
    keeping = asyncio.ensure_future(doorway.keep())
    await asyncio.sleep(0)
    try:
        return await turns_until_all_are_in(doorway)
    finally:
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping


def test_all_who_wait_are_taken_in_within_a_few_turns() -> None:
    assert uvloop.run(turns_until_all_are_in(None)) >= GUESTS - 1, "no doorway is needed any more"
    assert uvloop.run(with_doorway()) <= TURNS


@pytest.mark.parametrize("is_kept", [True, False])
async def test_a_door_that_is_closed_takes_nobody_in(is_kept: bool) -> None:
    doorway = Doorway()
    async with asyncio.TaskGroup() as group:
        keeping = group.create_task(doorway.keep()) if is_kept else None
        await asyncio.sleep(0)
        doorway.close()
        doorway.take_in(lambda: pytest.fail("taken in"), 1)
        if keeping is not None:
            keeping.cancel()
