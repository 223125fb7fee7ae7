"""A Redis that answers with errors: passes everything on to a real one until it is told to answer itself."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

import hiredis

from tests.kit.fault_proxy import Target

CHUNK_BYTES = 65_536


class ErringRedis:
    """`async with ErringRedis(url) as erring:` then connect to `erring.url`.

    While `error` is set, every command whose name is in `commands` (of all, where that is empty) is answered with it and does not
    reach the server.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()
        self.error = ""
        self.commands: frozenset[bytes] = frozenset()
        self.answered = 0
        """Commands that were answered with an error."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._link, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    @property
    def url(self) -> str:
        assert self._server is not None
        parts = urlsplit(self._url)
        credentials, at, _ = parts.netloc.rpartition("@")
        port = self._server.sockets[0].getsockname()[1]
        return urlunsplit(("redis", f"{credentials}{at}127.0.0.1:{port}", parts.path if at else "", "", ""))

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        task.add_done_callback(self._links.discard)
        try:
            server_reader, server_writer = await asyncio.open_connection(sock=await Target.of_url(self._url).connect())
        except OSError:
            writer.close()
            return
        back = asyncio.create_task(_pump(server_reader, writer))
        try:
            with contextlib.suppress(OSError):
                await self._commands(reader, writer, server_writer)
        finally:
            back.cancel()
            writer.close()
            server_writer.close()

    async def _commands(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: asyncio.StreamWriter
    ) -> None:
        commands = hiredis.Reader()
        while received := await reader.read(CHUNK_BYTES):
            commands.feed(received)
            while (command := commands.gets()) is not False:
                if self._is_refused(command[0].upper()):
                    self.answered += 1
                    writer.write(f"-{self.error}\r\n".encode())
                else:
                    server.write(hiredis.pack_command(tuple(command)))
            await server.drain()
            await writer.drain()

    def _is_refused(self, name: bytes) -> bool:
        return bool(self.error) and (not self.commands or name in self.commands)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while received := await reader.read(CHUNK_BYTES):
            writer.write(received)
            await writer.drain()
    writer.close()
