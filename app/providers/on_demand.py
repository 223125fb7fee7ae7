"""A provider that costs nothing until an endpoint needs it: its module, and what that imports, are loaded then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from app.dialects.base import Dialect
from app.domain.call import Call, Meter
from app.domain.catalog import Endpoint
from app.providers.base import Answer, Provider


class Preparable(Provider, Protocol):
    async def prepare(self) -> None:
        """Do beforehand what takes long. Raises: ImportError."""
        ...


class OnDemand:
    """`Provider`. `make` imports and builds the real one; it is called once, in a thread, for an import may take long."""

    def __init__(self, make: Callable[[], Preparable]) -> None:
        self._make = make
        self._made: Preparable | None = None
        self._making = asyncio.Lock()

    async def prepare(self) -> None:
        """Raises: ImportError."""
        await (await self._provider()).prepare()

    @asynccontextmanager
    async def opened(
        self,
        call: Call,
        endpoint: Endpoint,
        dialect: Dialect,
        meter: Meter,
        *,
        max_tokens: int | None,
        deadline_s: float,
    ) -> AsyncIterator[Answer]:
        """Raises: AttemptFailed. See `app.providers.base.Provider.opened`."""
        provider = await self._provider()
        attempt = provider.opened(call, endpoint, dialect, meter, max_tokens=max_tokens, deadline_s=deadline_s)
        async with attempt as answer:
            yield answer

    async def close(self) -> None:
        if self._made is not None:
            await self._made.close()

    async def _provider(self) -> Preparable:
        if self._made is None:
            async with self._making:
                if self._made is None:
                    self._made = await asyncio.to_thread(self._make)
        return self._made
