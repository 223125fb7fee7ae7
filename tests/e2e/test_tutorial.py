"""TUTORIAL.md, run as it stands by a shell against a gateway that has just started."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.kit.processes import GatewayProcess

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = (ROOT / "TUTORIAL.md").read_text()
BLOCK = re.compile(r"^```(sh|text|console)\n(.*?)^```", re.DOTALL | re.MULTILINE)
BETWEEN = "----- next block -----"


@pytest.fixture
async def laptop() -> AsyncIterator[tuple[GatewayProcess, Path]]:
    with tempfile.TemporaryDirectory(prefix="gw-tutorial-") as folder:
        async with GatewayProcess({"DATA_DIR": folder}, entry="serve", name="tutorial") as gateway:
            yield gateway, Path(folder)


@pytest.mark.timeout(240)
async def test_every_step_does_what_it_says(laptop: tuple[GatewayProcess, Path]) -> None:
    gateway, folder = laptop
    token = json.loads((folder / "secrets.json").read_text())["admin_token"]
    blocks = BLOCK.findall(TUTORIAL)
    steps: list[tuple[str, list[str]]] = []
    for kind, text in blocks:
        if kind == "sh":
            steps.append((text, []))
        elif kind == "text":
            steps[-1][1].extend(text.strip().splitlines())
    assert len(steps) > 10
    script = f"\necho '{BETWEEN}'\n".join(text for text, _ in steps)

    ran = await asyncio.to_thread(
        subprocess.run,
        ["bash", "-euo", "pipefail", "-c", script],
        env={"GATEWAY": gateway.origin, "ADMIN_TOKEN": token, "PATH": "/usr/local/bin:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )

    printed = ran.stdout.split(BETWEEN)
    assert ran.returncode == 0, (printed[-1], ran.stderr[-2000:])
    for output, (text, expected) in zip(printed, steps, strict=True):
        for line in expected:
            assert line in output, (text, output)


def test_what_is_not_run_names_only_what_exists() -> None:
    commands = "".join(text for kind, text in BLOCK.findall(TUTORIAL) if kind == "console")

    for path in re.findall(r"(?:tools|deploy)/[\w./-]+|\b\w+\.py\b|docker-compose\.yml|\.env\.example", commands):
        assert (ROOT / path).exists(), path
