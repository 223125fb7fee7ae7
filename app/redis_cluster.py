"""Redis Cluster. All that the gateway keeps lies in one slot, so the client speaks to that slot's master as it would to a single Redis.

One admission claims the limits and budgets of key, user, app and model in one script, and a script may touch one slot only. So a cluster
gives what it is good at: copies that take over by themselves (ADR 25).

1. Before each new connection the nodes are asked, one after another, who holds the slot. Whoever they tell of is asked as well from then
   on: the nodes of the URL need not live for ever.
2. A node that says that the slot is elsewhere (MOVED, ASK), or that it is a replica now (READONLY), is left. What it was asked it has not
   done; the next connection finds who does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from redis.asyncio import Redis
from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection, parse_url
from redis.crc import key_slot
from redis.exceptions import AskError, ReadOnlyError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

HASH_TAG = "{ag}"
"""Every name begins with it; see `app.redis_client.NAMESPACE`."""
SLOT: int = key_slot(HASH_TAG.encode())
DEFAULT_PORT = 6379

Address = tuple[str, int]


class Nodes:
    """The nodes of a cluster, as far as they are known."""

    def __init__(self, known: Sequence[Address], kind: type[Connection], options: dict[str, Any]) -> None:
        """`options` are those of a connection of `kind`, without host and port."""
        self._known = list(known)
        self._kind = kind
        self._options = options

    async def master(self) -> Address:
        """Who holds our slot. Raises: redis's ConnectionError when no node can tell."""
        failure: Exception | None = None
        for address in tuple(self._known):
            # Whoever is asked goes to the end first: one that does not answer must not use up the next attempt's time, too.
            self._known.sort(key=lambda each: each == address)
            try:
                return await self._told_by(address)
            except (RedisError, OSError) as error:
                failure = error
        raise RedisConnectionError("No node of the cluster can say who holds the slot.") from failure

    async def _told_by(self, address: Address) -> Address:
        connection = self._kind(host=address[0], port=address[1], **self._options)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_command("CLUSTER", "SLOTS")
            ranges: Any = await connection.read_response()
        finally:
            await connection.disconnect(nowait=True)
        holder: Address | None = None
        for first, last, *nodes in ranges:
            addresses = [_address(node, asked=address) for node in nodes]
            self._known += [each for each in addresses if each not in self._known]
            if first <= SLOT <= last:
                holder = addresses[0]
        if holder is None:
            raise RedisConnectionError("Nobody holds the slot.")
        self._known.sort(key=lambda each: each != address)  # who has answered is asked first
        return holder


class _OfSlot(Connection):
    def __init__(self, *, nodes: Nodes, **options: Any) -> None:
        super().__init__(**options)
        self._nodes = nodes

    async def _connect(self) -> None:
        self.host, self.port = await self._nodes.master()
        await super()._connect()  # type: ignore[no-untyped-call]

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*arguments, **options)
        except (AskError, ReadOnlyError) as error:  # MOVED is a kind of ASK
            await self.disconnect(nowait=True)
            raise RedisConnectionError("The slot is held by another node now.") from error


class _OfSlotByTls(_OfSlot, SSLConnection):
    pass


def behind_cluster(url: str, options: dict[str, Any]) -> Redis:
    """`redis://:password@host1:6379,host2:6379`, or `rediss://`. Connects lazily. Raises: ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss"):
        raise ValueError("REDIS_CLUSTER=true goes with redis:// and rediss://")
    login, at, hosts = parts.netloc.rpartition("@")
    known = [_host_and_port(host) for host in hosts.split(",")]
    single = urlunsplit(parts._replace(netloc=f"{login}{at}{hosts.split(',')[0]}"))
    told: dict[str, Any] = {**parse_url(single), **options}
    if told.pop("db", 0):
        raise ValueError("a cluster has no database but 0")
    for name in ("host", "port"):
        told.pop(name, None)
    plain: type[Connection] = told.pop("connection_class", Connection)
    kind = _OfSlotByTls if issubclass(plain, SSLConnection) else _OfSlot
    return Redis(connection_pool=ConnectionPool(connection_class=kind, nodes=Nodes(known, plain, told), **told))


def _host_and_port(text: str) -> Address:
    parts = urlsplit(f"//{text}")
    return parts.hostname or "localhost", parts.port or DEFAULT_PORT


def _address(node: Sequence[Any], *, asked: Address) -> Address:
    """A node of `CLUSTER SLOTS`. One that does not know its own name is where it was asked."""
    host = node[0].decode() if isinstance(node[0], bytes) else node[0]
    return host or asked[0], int(node[1])
