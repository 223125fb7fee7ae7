"""T153: what the Dockerfile copies is all that the gateway and its jobs need."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
from pathlib import Path

import pytest

from app.models.tables import SCHEMA_REVISION
from tests.e2e.house import House
from tests.e2e.test_restore import a_database
from tests.kit import raw_http
from tests.kit.clients import REPO_ROOT
from tests.kit.processes import GatewayProcess

COPIED = re.findall(
    r"^COPY (?!--from)(?!requirements\.txt)(.+) \./?\S*$", (REPO_ROOT / "Dockerfile").read_text(), re.MULTILINE
)


@pytest.mark.timeout(120)
async def test_the_image_has_all_that_it_runs(house: House, tmp_path: Path) -> None:
    """The files alone, in a folder of their own: migrated, served and looked at from there."""
    place = tmp_path / "image"
    place.mkdir()
    names = " ".join(COPIED).split()
    assert {"app", "migrations", "list_tables.py"} <= set(names)
    for name in names:
        source = REPO_ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, place)
    async with a_database(house) as url:
        env = house.env | {
            "DATABASE_URL": url,
            "REDIS_URL": house.redis_url.replace("?db=0", "?db=4"),
            "PYTHONPATH": str(place),
            "PYTHONDONTWRITEBYTECODE": "1",
            "DATA_DIR": str(tmp_path / "data"),
        }
        assert f"The database is at {SCHEMA_REVISION}." in await said(place, env, "-m", "app", "migrate")
        async with GatewayProcess(env, entry="serve", name="image") as gateway:
            assert (await raw_http.call(gateway.port, "GET", "/admin/sign-in")).status == 200
            assert (await raw_http.call(gateway.port, "GET", "/docs")).status == 200
        assert "up to date" in await said(place, env, "list_tables.py")
        assert "The books agree" in await said(place, env, "-m", "app", "verify-ledger")
    assert not list(place.rglob("__pycache__"))


async def said(place: Path, env: dict[str, str], *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *arguments),
        cwd=place,
        env={**env, "PATH": "/usr/bin:/bin"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()
