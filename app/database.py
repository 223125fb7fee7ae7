"""PostgreSQL: one async engine (asyncpg), and `transaction()`, the only way to a connection.

Every wait is bounded: for a connection from the pool, for one statement, for a lock. A database that is away or frozen
shows as `DependencyUnavailable`, never as a hang.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import msgspec
from sqlalchemy import event, select
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, InterfaceError, InvalidatePoolError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from app.exceptions import DependencyUnavailable

Engine = AsyncEngine

POOL_WAIT_S = 2.0
CONNECT_TIMEOUT_S = 2.0
STATEMENT_TIMEOUT_MS = 10_000
COMMAND_TIMEOUT_S = 12.0
"""A little above the server's own limit: its answer comes first, and a frozen server is still noticed."""
LOCK_TIMEOUT_MS = 5_000
QUICK_S = 2.0
"""For what a call waits on: an answer that comes later than this is of no use to it."""


CLOSE_S = 0.2
"""Time to say goodbye, and to have a cancelled statement cancelled by the server too."""


class PromptConnection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """SQLAlchemy gives a connection whose task was cancelled two seconds to close, and the task waits for it."""

    async def close(self, *, timeout: float | None = None) -> None:
        """Raises: TimeoutError, upon which SQLAlchemy cuts the connection."""
        await super().close(timeout=CLOSE_S if timeout is None else min(timeout, CLOSE_S))


def open_engine(database_url: str, *, pool_size: int = 5) -> AsyncEngine:
    """An engine whose waits are bounded. Connects lazily: a database that is away does not stop the process."""
    engine = create_async_engine(
        database_url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_WAIT_S,
        pool_recycle=1800,
        hide_parameters=True,  # an error's text goes to the log, what callers sent does not
        json_serializer=_to_json,
        json_deserializer=msgspec.json.decode,
        connect_args={
            "connection_class": PromptConnection,
            "timeout": CONNECT_TIMEOUT_S,
            "command_timeout": COMMAND_TIMEOUT_S,
            "server_settings": {
                "application_name": "antigravity",
                "timezone": "UTC",
                "jit": "off",  # compiling a plan costs more than any statement here can win by it
                "statement_timeout": str(STATEMENT_TIMEOUT_MS),
                "lock_timeout": str(LOCK_TIMEOUT_MS),
                "idle_in_transaction_session_timeout": "30000",
            },
        },
    )
    event.listen(engine.sync_engine, "checkout", _refuse_dead)
    return engine


def _refuse_dead(adapted: DBAPIConnection, *_: object) -> None:
    """A server that was restarted has closed its connections, and asyncpg knows: make new ones, at no round trip's cost.

    Not by `pool_pre_ping`: a frozen server lets it wait, and then lets its clean-up wait again.
    """
    if adapted.driver_connection.is_closed():
        raise InvalidatePoolError


@asynccontextmanager
async def transaction(
    engine: AsyncEngine, *, read_only_snapshot: bool = False, within_s: float | None = None
) -> AsyncIterator[AsyncConnection]:
    """One transaction: committed on the way out, rolled back on an exception.

    With `read_only_snapshot` all statements see one state of the database (REPEATABLE READ, READ ONLY). `within_s`
    bounds all of it together: waiting for a connection, the statements, the commit. When it is over, or when the task
    is cancelled, the connection is dropped at once: a frozen server could not even answer to a rollback.

    Raises: DependencyUnavailable when the database cannot be reached in time. Errors of the statements themselves
    (a broken constraint, say) pass as SQLAlchemy raises them: the adapter that wrote the statement knows their meaning.
    """
    try:
        async with asyncio.timeout(within_s), engine.connect() as connection:
            if read_only_snapshot:
                await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            try:
                async with connection.begin(), _dropped_when_cancelled(connection):
                    yield connection
            except asyncio.CancelledError:
                await drop(connection)  # cancelled while beginning or committing
                raise
    except (OSError, TimeoutError, PoolTimeoutError, OperationalError, InterfaceError) as error:
        raise DependencyUnavailable("database") from error
    except DBAPIError as error:
        if error.connection_invalidated or is_away(error.orig):
            raise DependencyUnavailable("database") from error
        raise


@asynccontextmanager
async def _dropped_when_cancelled(connection: AsyncConnection) -> AsyncIterator[None]:
    """Innermost, so that it runs before the rollback that would wait."""
    try:
        yield
    except asyncio.CancelledError:
        await drop(connection)
        raise


async def drop(connection: AsyncConnection) -> None:
    """Cut the connection without a word to the server, whose transaction ends with it."""
    if connection.closed or connection.invalidated:
        return
    driver = (await connection.get_raw_connection()).driver_connection
    if isinstance(driver, asyncpg.Connection) and not driver.is_closed():
        driver.terminate()


def is_away(cause: BaseException | None) -> bool:
    """True for errors that say "not now" about the server as a whole rather than "no" about the statement."""
    while cause is not None:
        if isinstance(
            cause,
            asyncpg.PostgresConnectionError
            | asyncpg.InvalidAuthorizationSpecificationError  # these two: refused while connecting
            | asyncpg.InvalidCatalogNameError
            | asyncpg.OperatorInterventionError  # shutting down, starting up, statement cancelled or timed out
            | asyncpg.InsufficientResourcesError  # disk full, out of memory, too many connections
            | asyncpg.TransactionRollbackError  # deadlock, serialization failure: the same again may pass
            | asyncpg.IdleInTransactionSessionTimeoutError
            | asyncpg.LockNotAvailableError
            | asyncpg.ReadOnlySQLTransactionError
            | asyncpg.InterfaceError
            | TimeoutError
            | OSError,
        ):
            return True
        cause = cause.__cause__
    return False


def _to_json(value: object) -> str:
    return msgspec.json.encode(value).decode()


async def is_alive(engine: AsyncEngine, *, within_s: float = 1.0) -> bool:
    """Whether the database answers now."""
    try:
        async with transaction(engine, within_s=within_s) as connection:
            await connection.execute(select(1))
    except DependencyUnavailable:
        return False
    return True
