"""`python -m app serve` in an empty folder, as somebody does who has just cloned the repository."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.house import HELLO, request_id_of
from tests.kit import raw_http
from tests.kit.clients import INHERITED, REPO_ROOT
from tests.kit.processes import GatewayProcess, NotReady, ProcessId, process_tree
from tests.kit.raw_http import RawResponse
from tests.kit.stalls import stalled_s

pytestmark = pytest.mark.timeout(90)

PATIENT = {"REDIS_TIMEOUT_MS": "3000"}
"""This machine may stall for longer than the default; what is tested here is not the time-out."""
ADMIN_LINE = re.compile(r"^ {2}Administrator {2}(ag-owner-\S+)$", re.MULTILINE)
KEY_LINE = re.compile(r"^ {2}Demo key {7}(sk-ag-\S+)$", re.MULTILINE)
CURL_LINE = re.compile(r"^ {2}(curl .+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Finished:
    status: int | None
    stdout: str
    stderr: str


@dataclass(slots=True)
class Laptop:
    """A folder of data and the one gateway on it, which may be started several times."""

    data_dir: Path
    gateway: GatewayProcess

    @property
    def env(self) -> dict[str, str]:
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        return inherited | PATIENT | {"DATA_DIR": str(self.data_dir), "PYTHONPATH": str(REPO_ROOT), "COLUMNS": "200"}

    async def start(self) -> str:
        """Start it; what it said since, up to the end of its banner."""
        said_before = len(self.gateway.log_text())
        await self.gateway.start()
        async with asyncio.timeout(30):
            while "Ctrl-C stops everything." not in self.gateway.log_text()[said_before:]:
                await asyncio.sleep(0.02)
        return self.gateway.log_text()[said_before:]

    async def stop(self) -> None:
        """SIGTERM: status 0, and nobody is left behind (Python's own resource tracker ends a moment after its parent)."""
        tree = process_tree(self.gateway.pid)
        self.gateway.terminate()
        assert await self.gateway.wait(timeout_s=15) == 0, self.gateway.log_text()[-2000:]
        async with asyncio.timeout(15):
            while alive(tree):
                await asyncio.sleep(0.01)

    def kill_everything(self) -> None:
        """kill -9 of the gateway, its workers, PostgreSQL and Valkey at once, as a power cut would."""
        for pid, _ in process_tree(self.gateway.pid):
            with contextlib.suppress(ProcessLookupError):  # PostgreSQL's children end when they see it end
                os.kill(pid, signal.SIGKILL)

    async def chat(self, key: str) -> RawResponse:
        headers = {"Authorization": f"Bearer {key}"}
        body = {"model": "demo", "messages": HELLO}
        return await raw_http.call(self.gateway.port, "POST", "/v1/chat/completions", headers=headers, json_body=body)

    async def cost_of(self, key: str, request_id: str) -> str:
        """What the caller's own record says, once it is there: a dead process's offices are inherited within seconds."""
        headers = {"Authorization": f"Bearer {key}"}
        async with asyncio.timeout(30):
            while True:
                answer = await raw_http.call(self.gateway.port, "GET", f"/v1/usage/{request_id}", headers=headers)
                if answer.status == 200:
                    break
                assert answer.status == 404, answer.text
                await asyncio.sleep(0.02)
        record = json.loads(answer.body)
        assert record["outcome"] == "ok"
        return str(record["cost_usd"])

    async def run(self, *arguments: str, cwd: Path | None = None) -> Finished:
        """A command of the operator, beside the gateway."""
        process = await asyncio.create_subprocess_exec(
            *arguments,
            env=self.env,
            cwd=cwd or self.data_dir.parent,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(60):
                stdout, stderr = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return Finished(process.returncode, stdout.decode(), stderr.decode())


def alive(tree: set[ProcessId]) -> set[ProcessId]:
    return {process for process in tree if process in process_tree(process[0])}


def found(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    assert match is not None, f"{pattern.pattern!r} in:\n{text}"
    return match.group(1)


@contextlib.contextmanager
def a_laptop(**settings: str) -> Iterator[Laptop]:
    with tempfile.TemporaryDirectory(prefix="gw-") as home:
        data_dir = Path(home) / "the data"
        gateway = GatewayProcess({**PATIENT, "DATA_DIR": str(data_dir), **settings}, entry="serve", name="laptop")
        try:
            yield Laptop(data_dir, gateway)
        finally:
            gateway.destroy()
            shutil.rmtree(gateway.folder, ignore_errors=True)


@pytest.fixture
def laptop() -> Iterator[Laptop]:
    """Where nothing was started yet."""
    with a_laptop() as laptop:
        yield laptop


@pytest.fixture(scope="module")
def started() -> Iterator[tuple[Laptop, str]]:
    """A gateway that runs, and what it said at its first start; for tests that leave it as it is."""
    with a_laptop() as laptop:
        said = asyncio.run(laptop.start())
        yield laptop, said


async def test_the_banner_says_all_that_is_needed_and_its_curl_line_works_as_pasted(
    started: tuple[Laptop, str],
) -> None:
    laptop, said = started

    base = f"http://localhost:{laptop.gateway.port}"
    for line in (f"  API            {base}/v1", f"  Documentation  {base}/docs", f"  Health         {base}/health"):
        assert line in said.splitlines()
    token, key = found(ADMIN_LINE, said), found(KEY_LINE, said)
    listed = await raw_http.call(
        laptop.gateway.port, "GET", "/admin/api/keys", headers={"Authorization": f"Bearer {token}"}
    )
    assert [item["last4"] for item in json.loads(listed.body)["items"]] == [key[-4:]]
    pasted = await laptop.run("bash", "-c", found(CURL_LINE, said))
    assert pasted.status == 0, pasted.stderr
    assert "demo model" in json.loads(pasted.stdout)["choices"][0]["message"]["content"]
    assert "Traceback" not in said


async def test_a_second_start_keeps_data_and_keys_and_does_not_show_the_administrators_token_again(
    laptop: Laptop,
) -> None:
    first = await laptop.start()
    token, key = found(ADMIN_LINE, first), found(KEY_LINE, first)
    request_id = request_id_of(await laptop.chat(key))
    cost = await laptop.cost_of(key, request_id)
    await laptop.stop()

    second = await laptop.start()

    assert ADMIN_LINE.search(second) is None
    assert token not in second
    assert found(KEY_LINE, second) == key
    assert shlex.split(found(CURL_LINE, second)) == shlex.split(found(CURL_LINE, first))
    assert (await laptop.chat(key)).status == 200
    assert await laptop.cost_of(key, request_id) == cost
    await laptop.stop()


async def test_after_a_kill_the_next_start_has_every_key_and_every_answered_call(laptop: Laptop) -> None:
    """Of calls that were answered a moment before, too: their records had not reached PostgreSQL yet."""
    key = found(KEY_LINE, await laptop.start())
    answers = await asyncio.gather(*(laptop.chat(key) for _ in range(5)))
    assert [answer.status for answer in answers] == [200] * 5
    laptop.kill_everything()
    await laptop.gateway.wait()

    said = await laptop.start()

    assert found(KEY_LINE, said) == key
    for answer in answers:
        await laptop.cost_of(key, request_id_of(answer))
    assert (await laptop.chat(key)).status == 200

    laptop.gateway.kill()  # and now it alone: its servers outlive it
    said = await laptop.start()

    assert "PostgreSQL was still running and is used again" in said
    assert (await laptop.chat(key)).status == 200
    laptop.gateway.terminate()
    assert await laptop.gateway.wait(timeout_s=15) == 0


async def test_a_server_that_is_killed_under_the_gateway_is_started_again_and_nothing_is_lost(laptop: Laptop) -> None:
    """Each alone, then both: as when the machine runs out of memory."""
    key = found(KEY_LINE, await laptop.start())
    answered = [request_id_of(await laptop.chat(key))]

    for victims in (["valkey-server"], ["postgres"], ["valkey-server", "postgres"]):
        before = laptop.gateway.log_text().count("is up (pid")
        for name in victims:
            os.kill(main_process_of(laptop, name), signal.SIGKILL)
        async with asyncio.timeout(60):
            while laptop.gateway.log_text().count("is up (pid") < before + len(victims):
                answer = await laptop.chat(key)
                assert answer.status in (200, 503), answer.text
                if answer.status == 200:
                    answered.append(request_id_of(answer))
                await asyncio.sleep(1)  # the first key may make sixty calls a minute
            while (await raw_http.call(laptop.gateway.port, "GET", "/health")).json()["status"] != "ok":  # type: ignore[index]
                await asyncio.sleep(0.05)
        answer = await laptop.chat(key)
        assert answer.status == 200
        answered.append(request_id_of(answer))

    for request_id in answered:
        await laptop.cost_of(key, request_id)
    assert "has ended by itself" in laptop.gateway.log_text()
    await laptop.stop()


def main_process_of(laptop: Laptop, program: str) -> int:
    """The one of a server's processes whose parent is none of them."""
    parents: dict[int, int] = {}
    for pid, _ in process_tree(laptop.gateway.pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # its children come and go
            if Path(f"/proc/{pid}/comm").read_text().strip() == program:
                parents[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return next(pid for pid, parent in parents.items() if parent not in parents)


async def test_an_impatient_second_ctrl_c_ends_everything_too(laptop: Laptop) -> None:
    """The server then leaves at once, without its way out; what waits for Redis must not wait for ever, nor the two servers stay."""
    await laptop.start()
    tree = process_tree(laptop.gateway.pid)

    laptop.gateway.signal(signal.SIGINT)
    async with asyncio.timeout(10):
        while "Shutting down" not in laptop.gateway.log_text():
            await asyncio.sleep(0.005)
    laptop.gateway.signal(signal.SIGINT)

    await laptop.gateway.wait(timeout_s=25)
    async with asyncio.timeout(15):
        while alive(tree):
            await asyncio.sleep(0.01)


async def test_a_second_gateway_on_the_same_data_is_refused_with_one_line(started: tuple[Laptop, str]) -> None:
    laptop, said = started
    key = found(KEY_LINE, said)
    rival = GatewayProcess({"DATA_DIR": str(laptop.data_dir)}, entry="serve", name="rival")

    with pytest.raises(NotReady):
        await rival.start()

    assert rival.returncode == 1
    (line,) = rival.log_text().splitlines()
    assert line.startswith(f"The gateway does not start: another gateway (pid {laptop.gateway.pid}) already runs on")
    shutil.rmtree(rival.folder)
    assert (await laptop.chat(key)).status == 200, "the first one is unharmed"


async def test_two_workers_serve_one_banner_and_end_together() -> None:
    with a_laptop(WORKERS="2") as laptop:
        await two_workers(laptop)


async def two_workers(laptop: Laptop) -> None:
    said = await laptop.start()
    key = found(KEY_LINE, said)

    answers = await asyncio.gather(*(laptop.chat(key) for _ in range(20)))

    assert [answer.status for answer in answers] == [200] * 20
    assert "Starting 2 workers" in said
    async with asyncio.timeout(30):  # the second may be ready after the banner
        while laptop.gateway.log_text().count('"event":"Application startup complete."') < 2:
            await asyncio.sleep(0.02)
    assert laptop.gateway.log_text().count("Antigravity LLM Gateway is ready.") == 1
    for answer in answers:
        await laptop.cost_of(key, request_id_of(answer))
    await laptop.stop()


async def test_the_operators_commands_work_beside_a_running_gateway_and_take_effect_at_once(
    started: tuple[Laptop, str],
) -> None:
    laptop, _ = started

    made_user = await laptop.run(sys.executable, "-m", "app", "create-user", "ada")
    made = await laptop.run(sys.executable, "-m", "app", "create-key", "ada", "--name", "ci", "--json")

    assert (made_user.status, made.status) == (0, 0), made.stderr
    key = json.loads(made.stdout)
    assert (await laptop.chat(key["key"])).status == 200
    one, tables = await asyncio.gather(
        laptop.run(sys.executable, str(REPO_ROOT / "diagnose_keys.py"), "--id", key["id"]),
        laptop.run(sys.executable, str(REPO_ROOT / "list_tables.py")),
    )
    assert one.status == 0, one.stdout + one.stderr
    assert key["last4"] in one.stdout
    assert "ada" in one.stdout
    assert key["key"] not in one.stdout
    assert tables.status == 0, tables.stdout + tables.stderr
    assert "usage_records" in tables.stdout
    revoked = await laptop.run(sys.executable, "-m", "app", "revoke-key", key["id"])
    assert revoked.status == 0
    began_s = time.monotonic()
    async with asyncio.timeout(15):
        while (await laptop.chat(key["key"])).status != 401:
            await asyncio.sleep(0.02)
    assert time.monotonic() - began_s < 2 + stalled_s(began_s), "within a second, and one for a busy machine"
    refused = await laptop.run(sys.executable, "diagnose_keys.py", "--id", key["id"], cwd=REPO_ROOT)
    assert "would be refused now" in refused.stdout
    assert "The key is revoked. (401 invalid_api_key)" in refused.stdout


async def test_a_setting_that_cannot_be_used_stops_the_start_with_one_line(laptop: Laptop) -> None:
    wrong = GatewayProcess({"DATA_DIR": str(laptop.data_dir), "WORKERS": "many"}, entry="serve", name="wrong")

    with pytest.raises(NotReady):
        await wrong.start()

    assert wrong.returncode == 1
    (line,) = wrong.log_text().splitlines()
    assert line.startswith("The gateway does not start: WORKERS ")
    assert not laptop.data_dir.exists(), "nothing was made before the settings were read"
    shutil.rmtree(wrong.folder)


async def test_a_port_that_is_taken_ends_the_start_with_one_line_and_starts_nothing(laptop: Laptop) -> None:
    """Another gateway that answers there must not be taken for this one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        laptop.data_dir.parent.mkdir(exist_ok=True)
        finished = await laptop.run(
            "env", "HOST=127.0.0.1", f"PORT={port}", sys.executable, "-m", "app", "serve", cwd=REPO_ROOT
        )
    (line,) = finished.stderr.strip().splitlines()
    assert finished.status == 1
    assert (
        line
        == f"The gateway does not start: PORT: 127.0.0.1:{port} cannot be used (address already in use). Example: PORT=8001"
    )
    assert not laptop.data_dir.exists()
