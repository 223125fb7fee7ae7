"""Redis (or Valkey): the connection pool, bounded waits, and scripts whose calls of one event-loop tick share a round trip.

How a script call travels:
1. `run` puts it into the queue and wakes a pump; it does not touch the network itself.
2. By the time a pump runs, every other call of the same tick has queued too: they leave in one write. While one is under way the
   next gathers. Each pump holds one of redis-py's connections and packs the commands itself (CPU for an admission with its
   settlement, measured: by redis-py's pipelines 244 µs alone, 87 µs among 8 callers, 66 µs among 64; so 110, 58, 48).
3. Scripts go by digest; a server that does not know one (restarted, flushed) is taught all of them and asked again once,
   which is safe because a script it does not know it has not run.
4. Before the first command on a new connection the server is greeted: so a server that was restarted is known for one before it is
   trusted with anything.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import hiredis
import msgspec
from redis.asyncio import Redis, Sentinel
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, ReadOnlyError, RedisError, ResponseError

from app.exceptions import CounterStoreAway, SettingsError
from app.redis_cluster import HASH_TAG, behind_cluster

NAMESPACE = f"{HASH_TAG}:"
"""What every name begins with: all of them in one slot of a cluster, where one script may then touch them all."""
PUMPS = 2
"""Pipelines under way at once: one on the wire while the next gathers."""
BATCH_MAX = 256
"""Calls per pipeline; bounds how long one round trip holds the server."""

STALLED_S = 0.05
"""A timer that fires so much too late says that this process stood still (stopped, or starved): its time is no measure of the server."""

BROKEN = (RedisError, OSError, RuntimeError)
"""What a broken connection shows as. RuntimeError is uvloop's: writing to a connection that was reset a moment ago raises it."""

Argument = str | bytes | int


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script by its file in `app/storage/lua`."""

    name: str
    source: str
    sha: str

    @classmethod
    def load(cls, name: str) -> Script:
        source = (Path(__file__).parent / "storage" / "lua" / f"{name}.lua").read_text(encoding="utf-8")
        return cls(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


class _Queued(msgspec.Struct):
    script: Script
    keys: Sequence[str]
    arguments: Sequence[Argument]
    answer: asyncio.Future[Any]


@dataclass(frozen=True, slots=True)
class Greeting:
    """What is said first on every new connection; `arguments` are made anew each time."""

    script: Script
    keys: Sequence[str]
    arguments: Callable[[], Sequence[Argument]]


class RedisClient:
    """Speaks to one Redis for the whole process; `run` is answered while the context `pumping` is entered."""

    def __init__(self, redis: Redis, *, timeout_s: float) -> None:
        self.redis = redis
        self._timeout_s = timeout_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: list[_Queued] = []
        self._wakeup = asyncio.Event()
        self._known: dict[str, Script] = {}
        self._is_closing = self._is_over = False
        self.greeting: Greeting | None = None

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """Run a script; its answer as the server gave it (integers, bytes, lists).

        Raises: CounterStoreAway when no good answer came in time. The script may then have run or not.
        """
        if self._is_over:  # whoever asks now would wait for ever
            raise CounterStoreAway
        self._known.setdefault(script.sha, script)
        loop = self._loop
        if loop is None:  # asked for once: each time it is a system call
            loop = self._loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._queue.append(_Queued(script, keys, arguments, answer))
        self._wakeup.set()
        return await answer

    @asynccontextmanager
    async def pumping(self) -> AsyncIterator[None]:
        """Inside this context `run` is answered. On the way out what is queued is still sent, then the connections are closed."""
        failure: Exception | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(PUMPS):
                    group.create_task(self._pump(), name=f"redis-pump-{number}")
                try:
                    yield
                except Exception as error:  # noqa: BLE001 - raised again below, as itself: the group would wrap it
                    failure = error
                finally:
                    self._is_closing = True
                    self._wakeup.set()
        finally:
            await self.redis.aclose()
        if failure is not None:
            raise failure

    async def _pump(self) -> None:
        """Send what is queued until the client closes and nothing is left."""
        connection = self.redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        connection.socket_connect_timeout = (
            None  # it is a part of the exchange, whose bound knows of a process that stood still
        )
        try:
            while not (self._is_closing and not self._queue):
                await self._wakeup.wait()
                batch, self._queue = self._queue[:BATCH_MAX], self._queue[BATCH_MAX:]
                if not self._queue and not self._is_closing:
                    self._wakeup.clear()
                if batch:
                    await self._send(connection, batch)
        except asyncio.CancelledError:  # a loop that ends at once cancels this before those who wait for it
            self._is_over = True
            left, self._queue = self._queue, []
            _fail(left)
            raise
        finally:
            await connection.disconnect(nowait=True)

    @asynccontextmanager
    async def bounded(self, timeout_s: float | None = None) -> AsyncIterator[Redis]:
        """The client itself, for commands off the hot path. Errors and time-outs become CounterStoreAway."""
        try:
            async with _Within(timeout_s or self._timeout_s):
                yield self.redis
        except BROKEN as error:
            raise CounterStoreAway() from error

    async def is_alive(self) -> bool:
        try:
            async with self.bounded() as redis:
                await redis.ping()
        except CounterStoreAway:
            return False
        return True

    async def _send(self, connection: AbstractConnection, batch: list[_Queued]) -> None:
        """One exchange. However it fails, everybody in it is told, and those that wait behind a server that is silent are too."""
        try:
            async with _Within(self._timeout_s):
                await self._make_ready(connection)
                answers = await _exchange(connection, _packed(batch), len(batch))
                unknown = self._deliver(batch, answers)
                if unknown:
                    for script in tuple(self._known.values()):  # others may register while we wait
                        await _ask(connection, "SCRIPT", "LOAD", script.source)
                    unknown = self._deliver(unknown, await _exchange(connection, _packed(unknown), len(unknown)))
            _fail(unknown)
            if any(isinstance(answer, ReadOnlyError) for answer in answers):
                # It is a replica now. Whoever was promoted instead is looked up when we connect again.
                await connection.disconnect(nowait=True)
        except TimeoutError as error:
            behind, self._queue = self._queue, []
            await connection.disconnect(nowait=True)
            _fail(batch + behind, error)
        except BROKEN as error:
            await connection.disconnect(nowait=True)
            _fail(batch, error)
        except BaseException:
            _fail(batch)
            raise

    async def _make_ready(self, connection: AbstractConnection) -> None:
        """Connect, or connect again when the server hung up while nobody was speaking; greet."""
        if connection.is_connected and not await connection.can_read():
            return
        await connection.disconnect(nowait=True)
        await connection.connect()  # type: ignore[no-untyped-call]
        if self.greeting is not None:
            script, keys, arguments = self.greeting.script, self.greeting.keys, self.greeting.arguments()
            self._known.setdefault(script.sha, script)
            await _ask(connection, "EVAL", script.source, len(keys), *keys, *arguments)

    def _deliver(self, batch: list[_Queued], answers: list[Any]) -> list[_Queued]:
        """Hand out the answers; what the server did not know is returned, to be asked again."""
        unknown = []
        for queued, answer in zip(batch, answers, strict=True):
            if isinstance(answer, NoScriptError):
                unknown.append(queued)
            elif isinstance(answer, Exception):
                _fail([queued], answer)
            elif not queued.answer.done():
                queued.answer.set_result(answer)
        return unknown


class _Within:
    """`asyncio.timeout` for an exchange with a server. Raises: TimeoutError.

    A process that was stopped wakes with its timers due and the answers unread. Taken for the server's silence, that would have every
    limit enforced by this process alone, beside all the others that hear the server well. So a time-out that comes late is granted
    once more, and the answers are read first.
    """

    __slots__ = ("_bound", "_due_s", "_loop", "_timeout_s", "_timer")

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._bound = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._due_s = time.monotonic() + self._timeout_s
        await self._bound.__aenter__()
        self._timer = self._loop.call_later(self._timeout_s, self._look)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        await self._bound.__aexit__(kind, error, trace)

    def _look(self) -> None:
        if time.monotonic() - self._due_s > STALLED_S:
            self._timer = self._loop.call_later(self._timeout_s, self._end)
        else:
            self._end()

    def _end(self) -> None:
        self._bound.reschedule(self._loop.time())


def open_redis(url: str, *, timeout_ms: int, is_cluster: bool = False) -> RedisClient:
    """A client with bounded waits and no retries of its own (ours know what is safe to repeat). Connects lazily.

    Raises: SettingsError for a URL that cannot be used.
    """
    timeout_s = timeout_ms / 1000
    options: dict[str, Any] = {
        "socket_timeout": None,  # the whole exchange is bounded, and blocking reads of the drainer are longer
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0,
        "protocol": 2,
        "legacy_responses": True,
    }
    try:
        if is_cluster:
            return RedisClient(behind_cluster(url, options), timeout_s=timeout_s)
        if url.startswith("redis+sentinel://"):
            return RedisClient(_behind_sentinel(url, options), timeout_s=timeout_s)
        return RedisClient(Redis(connection_pool=ConnectionPool.from_url(url, **options)), timeout_s=timeout_s)
    except ValueError as error:
        raise SettingsError(f"REDIS_URL is not usable: {error}. Example: redis://:PASSWORD@localhost:6379/0") from None


def _behind_sentinel(url: str, options: dict[str, Any]) -> Redis:
    """`redis+sentinel://:password@host1:26379,host2:26379/master-name/db`"""
    parts = urlsplit(url)
    hosts = parts.netloc.rpartition("@")[2].split(",")
    name, _, db = parts.path.strip("/").partition("/")
    if not name:
        raise ValueError("the path of a Sentinel URL names the master")
    addresses = [(host.partition(":")[0], int(host.partition(":")[2] or 26379)) for host in hosts]
    password = parts.netloc.rpartition("@")[0].rpartition(":")[2] or None
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        addresses, sentinel_kwargs={"socket_connect_timeout": options["socket_connect_timeout"]}
    )
    master: Redis = sentinel.master_for(name, db=int(db or 0), password=password, **options)
    return master


_pack: Callable[[tuple[Argument, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]


def _packed(batch: Sequence[_Queued]) -> bytes:
    return b"".join([_pack(("EVALSHA", q.script.sha, len(q.keys), *q.keys, *q.arguments)) for q in batch])


async def _exchange(connection: AbstractConnection, packed: bytes, answers: int) -> list[Any]:
    """Write, and read that many answers; an error of the server's is an answer too."""
    await connection.send_packed_command([packed], check_health=False)
    given: list[Any] = []
    for _ in range(answers):
        try:
            given.append(await connection.read_response())
        except ResponseError as error:
            given.append(error)
    return given


async def _ask(connection: AbstractConnection, *command: Argument) -> Any:
    (answer,) = await _exchange(connection, _pack(command), 1)
    if isinstance(answer, Exception):
        raise answer
    return answer


def _fail(batch: Sequence[_Queued], cause: BaseException | None = None) -> None:
    for queued in batch:
        if not queued.answer.done():
            failure = CounterStoreAway()
            failure.__cause__ = cause
            queued.answer.set_exception(failure)
