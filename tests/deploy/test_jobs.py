"""T153: the one-shot and daily jobs of the compose file and the chart run without a folder that they may write to."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.e2e.house import House
from tests.kit.clients import REPO_ROOT


@pytest.mark.parametrize("command", ["migrate", "sync-expiry", "maintain"])
async def test_a_job_needs_nothing_to_write_to(house: House, tmp_path: Path, command: str) -> None:
    """T153: on a read-only file system, with nothing mounted at DATA_DIR."""
    in_the_way = tmp_path / "a-file"
    in_the_way.write_text("")
    env = {
        **house.env,
        "DATA_DIR": str(in_the_way / "data"),
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(REPO_ROOT),
        "HOME": "/nonexistent",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app", command),
        cwd="/",
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()

    assert process.returncode == 0, said.decode()
