"""How many files this process may open, and what that leaves for calls: each has one for its caller and one for its upstream.

A process that spends all of them on callers can serve none: it could not connect to an upstream, write down a record, open a page's file.
"""

from __future__ import annotations

import resource
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

WANTED: Final = 65_536
"""As the shipped containers have it; many systems start processes with 1,024 and let them have more if they ask."""
OWN_FILES: Final = 64
"""The process's own: a few dozen connections to its stores, its log, its program's files."""


def want_more_files() -> None:
    """Ask for as many as the system lets this process have without asking anybody."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = WANTED if hard == resource.RLIM_INFINITY else min(hard, WANTED)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


@dataclass(frozen=True, slots=True)
class Room:
    calls: int
    """At once."""
    connections: int
    """Of callers; those that wait for their next call among them."""

    @classmethod
    def within(cls, max_calls: int) -> Room:
        """What the files allow, and no more calls than these."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        files = max(3, (WANTED if soft == resource.RLIM_INFINITY else soft) - OWN_FILES)
        calls = min(max_calls, files // 3)
        return cls(calls, files - calls)
