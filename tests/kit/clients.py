"""Runs scripts with the stock SDKs, which live in an environment of their own: beside them no current LiteLLM resolves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

REPO_ROOT: Final = Path(__file__).resolve().parents[2]
TIMEOUT_S: Final = 60.0
INHERITED: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SSL_CERT_FILE")
"""Of our environment; the rest would let proxies and real keys slip into the SDKs."""


class ClientsMissing(Exception):
    """The clients' environment is not installed."""

    def __init__(self, python: Path) -> None:
        super().__init__(f"{python} does not exist: install the clients' environment, or set CLIENTS_PYTHON")


class ClientFailed(Exception):
    """The script ended with a failure, or did not print JSON."""

    def __init__(self, returncode: int | None, stdout: str, stderr: str) -> None:
        super().__init__(f"exit status {returncode}\n--- stdout\n{stdout[-4000:]}\n--- stderr\n{stderr[-4000:]}")


def clients_python() -> Path:
    """The interpreter: `CLIENTS_PYTHON`, else `.venv-clients/bin/python` in the repository. Raises `ClientsMissing`."""
    python = Path(os.environ.get("CLIENTS_PYTHON") or REPO_ROOT / ".venv-clients" / "bin" / "python")
    if not python.exists():
        raise ClientsMissing(python)
    return python


def are_clients_installed() -> bool:
    try:
        clients_python()
    except ClientsMissing:
        return False
    return True


async def run_client(
    script: str | Path,
    *args: str,
    env: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
    python: Path | None = None,
) -> object:
    """Runs a script (its source, or a file) and returns what it printed, parsed as JSON.

    The whole process group ends with the call, also when it is cancelled.

    Raises:
        ClientFailed: exit status not 0, or standard output is not JSON.
        TimeoutError: it did not end in time.
    """
    command: Sequence[str] = [str(script)] if isinstance(script, Path) else ["-c", script]
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        str(python or clients_python()),
        *command,
        *args,
        env=inherited | dict(env or {}),
        cwd=REPO_ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(timeout_s):
            stdout, stderr = await process.communicate()
    finally:
        _end_group(process.pid)
        await process.wait()
    out, err = stdout.decode("utf-8", "replace"), stderr.decode("utf-8", "replace")
    if process.returncode != 0:
        raise ClientFailed(process.returncode, out, err)
    try:
        return json.loads(out)
    except ValueError as fault:
        raise ClientFailed(process.returncode, out, err) from fault


def _end_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
