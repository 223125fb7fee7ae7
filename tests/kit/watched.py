"""A Python program under watch: what it looks up, connects to, starts and imports is written down, and what it may not reach is refused.

`python -m tests.kit.watched FILE PORTS MODULE ARGUMENTS…` runs MODULE as `python -m` would. One JSON array a line in FILE: the event's
name and what it was about. Only loopback is reached, and there only PORTS (comma-separated); anything else fails like a machine without
a network. The watch is an audit hook: nothing that goes through Python's sockets gets past it, whichever library asks. uvloop does not
go through them, so a server under watch runs on asyncio's own loop.
"""

from __future__ import annotations

import errno
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Final, NamedTuple

LOOK_UPS: Final = frozenset({"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"})
SENDS: Final = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})
STARTS: Final = frozenset({"subprocess.Popen", "os.posix_spawn", "os.exec", "os.system"})
HERE: Final = frozenset({"127.0.0.1", "::1", "localhost", "None", ""})


class Event(NamedTuple):
    name: str
    about: str
    was_refused: bool


def events_in(path: Path) -> list[Event]:
    """What a watched program did so far."""
    return [Event(*json.loads(line)) for line in path.read_text().splitlines()]


def watch(path: str, ports: frozenset[int]) -> None:
    """Begin, for the rest of this process."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(name: str, about: str, *, refuse: bool = False) -> None:
        os.write(file, json.dumps([name, about, refuse]).encode() + b"\n")
        if refuse:
            raise OSError(errno.ENETUNREACH, f"not while watched: {about}")

    def heard(name: str, arguments: tuple[object, ...]) -> None:
        if name == "import":
            if str(arguments[0]).startswith("litellm.proxy"):
                note(name, str(arguments[0]))
        elif name in LOOK_UPS:
            host = arguments[0].decode() if isinstance(arguments[0], bytes) else str(arguments[0])
            note(name, host, refuse=host not in HERE)
        elif name in SENDS:
            match arguments[1]:
                case (str(host), int(port), *_):
                    note(name, f"{host}:{port}", refuse=host not in HERE or port not in ports)
        elif name in STARTS:
            note(name, str(arguments[0]))

    sys.addaudithook(heard)


def main() -> None:
    _, path, ports, module, *arguments = sys.argv
    watch(path, frozenset(map(int, ports.split(","))))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
