"""Taking in, at once, all who wait at the door.

uvloop takes one connection out of the kernel's queue in each turn of its loop. A turn of a busy process lasts some milliseconds, of an
overloaded one some dozens: whoever opens a connection then waits in the kernel behind all others who did, seconds long, where nobody
sees him, nobody answers him and nobody refuses him. So whenever the server has taken one, the others that wait are taken here.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

AT_ONCE: Final = 256
"""Taken in one turn: some 10 ms of it."""
FEW: Final = 16
STATE: Final = "doorway"
"""Under this name the server hands it to its connections."""

Factory = Callable[[], asyncio.Protocol]


class Doorway:
    def __init__(self) -> None:
        self._doors: list[socket.socket] | None = None
        self._guests: asyncio.TaskGroup | None = None

    async def keep(self) -> None:
        """Own the connections that are being taken in, for ever."""
        async with asyncio.TaskGroup() as self._guests:
            await asyncio.Event().wait()

    def take_in(self, make_connection: Factory, port: int | None, *, room: int = AT_ONCE) -> None:
        """The server has just taken one in at this port: take the others, no more than there is room for and a few to be refused."""
        if self._guests is None:
            return
        if self._doors is None:
            self._doors = [door for door in listening_sockets() if _is_at(door, port)]
        for door in self._doors:
            for _ in range(min(AT_ONCE, max(FEW, room))):
                try:
                    guest, _ = door.accept()
                except OSError:  # nobody is there any more, mostly
                    break
                guest.setblocking(False)
                guest.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._guests.create_task(_connected(make_connection, guest))

    def close(self) -> None:
        """Take nobody in any more. The sockets are the server's; only our doubles of them are closed."""
        doors, self._doors = self._doors or [], []
        for door in doors:
            door.close()


def _is_at(door: socket.socket, port: int | None) -> bool:
    if door.getsockname()[1] == port:
        return True
    door.close()
    return False


async def _connected(make_connection: Factory, guest: socket.socket) -> None:
    try:
        await asyncio.get_running_loop().connect_accepted_socket(make_connection, guest)
    except OSError:  # gone again
        guest.close()


def listening_sockets() -> Iterator[socket.socket]:
    """Of this process, as doubles: closing them closes nothing. None where the system does not tell."""
    if sys.platform != "linux":
        return
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if not stat.S_ISSOCK(os.stat(int(name)).st_mode):
                continue
            double = socket.socket(fileno=os.dup(int(name)))
            is_tcp = double.family in (socket.AF_INET, socket.AF_INET6) and double.type == socket.SOCK_STREAM
            if is_tcp and double.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                yield double
            else:
                double.close()
