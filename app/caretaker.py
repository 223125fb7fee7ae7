"""Who looks after the embedded servers while the gateway runs: one that ends by itself (killed for memory, crashed) is started again.

It answers at the same address with the same password, so the gateway finds it as it finds any store that was away. A server that is
only slow or frozen is left alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Self

from app.embedded import EmbeddedError, EmbeddedServers

LOOK_EVERY_S = 0.5
AGAIN_AFTER_S = 5.0
"""After a start that failed; whatever is wrong then (a full disk, say) does not pass in a moment."""
LAST_START_S = 70.0
"""For a start that is under way when the gateway stops: longer than a start that fails takes."""


class Caretaker:
    """A context; leave it before the servers are stopped."""

    def __init__(self, servers: EmbeddedServers, on_progress: Callable[[str], None]) -> None:
        self._servers = servers
        self._on_progress = on_progress
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._care, name="caretaker", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join(LAST_START_S)

    def _care(self) -> None:
        pause_s = LOOK_EVERY_S
        while not self._is_over.wait(pause_s):
            pause_s = LOOK_EVERY_S
            for server in (self._servers.valkey, self._servers.postgres):
                if server.is_running or self._is_over.is_set():
                    continue
                self._on_progress(f"{server.label} has ended by itself. It is started again.")
                try:
                    server.start()
                except EmbeddedError as error:
                    self._on_progress(f"{error}")
                    pause_s = AGAIN_AFTER_S
