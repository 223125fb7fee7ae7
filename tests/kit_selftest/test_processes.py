"""Processes become ready, obey signals, are measured as a tree, and leave nothing behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.kit.clients import ClientFailed, ClientsMissing, clients_python, run_client
from tests.kit.processes import (
    GatewayFleet,
    GatewayProcess,
    ManagedProcess,
    Nginx,
    NotReady,
    UpstreamProcess,
    free_port,
    process_tree,
)
from tests.kit.raw_http import call
from tests.kit.scenario import Scenario
from tests.kit.stalls import stalled_s
from tests.kit.upstream import ScriptedUpstream
from tests.kit_selftest.chat import chat_body

FAKE_APP = """
import os
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                print("bye", flush=True)
                return
    body = f"{os.environ['GREETING']} {os.environ.get('HOSTILE')} {os.getcwd()}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
"""

WITH_CHILDREN = """
import os, subprocess, sys, time
grandchild = "import time; print('up', flush=True); b = bytearray(30_000_000); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", grandchild], start_new_session=True)
end = time.process_time() + 0.3
while time.process_time() < end: pass
print("ready", flush=True)
time.sleep(600)
"""


class ScriptProcess(ManagedProcess):
    """A Python script that prints `ready`, and its child that prints `up`."""

    def __init__(self, script: str, args: Sequence[str] = ()) -> None:
        super().__init__([sys.executable, "-c", script, *args], env={}, name="script")

    async def _is_ready(self) -> bool:
        return {"ready", "up"} <= set(self.log_text().split())


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def fake_gateway_env(tmp_path: Path) -> dict[str, str]:
    """An `app.main` that is not ours."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").touch()
    (tmp_path / "app" / "main.py").write_text(FAKE_APP)
    return {"PYTHONPATH": str(tmp_path), "GREETING": "hello"}


async def test_a_gateway_gets_its_environment_and_no_other(
    fake_gateway_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOSTILE", "from the developer's shell")
    async with GatewayProcess(fake_gateway_env) as gateway:
        answer = await call(gateway.port, "GET", "/")
        assert gateway.returncode is None
        gateway.terminate()
        status = await gateway.wait()
        log = gateway.log_text()
    assert answer.text == f"hello None {gateway.folder}/cwd"
    assert status in (0, -15)
    assert "bye" in log


async def test_pause_is_silence_and_resume_is_life(fake_gateway_env: dict[str, str]) -> None:
    async with GatewayProcess(fake_gateway_env) as gateway:
        gateway.pause()
        with pytest.raises(TimeoutError):
            await call(gateway.port, "GET", "/", timeout_s=0.1)
        gateway.resume()
        assert (await call(gateway.port, "GET", "/")).status == 200
        gateway.kill()
        assert gateway.returncode == -9
        with pytest.raises(ConnectionRefusedError):
            await call(gateway.port, "GET", "/")
        await gateway.start()
        assert (await call(gateway.port, "GET", "/")).status == 200, "it comes back on its port"


async def test_a_paused_process_ends_with_its_context(fake_gateway_env: dict[str, str]) -> None:
    async with GatewayProcess(fake_gateway_env) as gateway:
        gateway.pause()
        pid, left_s = gateway.pid, time.monotonic()
    assert not is_running(pid)
    assert time.monotonic() - left_s < 8 + stalled_s(left_s)


async def test_a_fleet_starts_side_by_side(fake_gateway_env: dict[str, str]) -> None:
    async with GatewayFleet(3, fake_gateway_env) as fleet:
        answers = [await call(gateway.port, "GET", "/") for gateway in fleet.gateways]
        pids = [gateway.pid for gateway in fleet.gateways]
        assert len({gateway.port for gateway in fleet.gateways}) == 3
        assert fleet.cpu_seconds() > 0
    assert [answer.status for answer in answers] == [200] * 3
    assert not any(is_running(pid) for pid in pids)


async def test_a_fleet_that_cannot_start_leaves_nothing(fake_gateway_env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "app" / "main.py").write_text(
        "import os\nif not os.path.exists('../first'):\n    raise SystemExit(3)\n" + FAKE_APP
    )
    fleet = GatewayFleet(2, fake_gateway_env)
    (fleet[0].folder / "first").touch()
    with pytest.raises(NotReady):
        await fleet.__aenter__()
    assert fleet[0].returncode is not None
    assert fleet[1].returncode == 3


async def test_a_process_that_dies_at_start_says_why(fake_gateway_env: dict[str, str]) -> None:
    with pytest.raises(NotReady, match="No module named"):
        async with GatewayProcess(fake_gateway_env, entry="serve"):
            pass


async def test_a_process_that_is_never_ready_is_ended() -> None:
    process = ScriptProcess("import time; print('almost', flush=True); time.sleep(600)")
    try:
        with pytest.raises(NotReady, match="not ready after"):
            await process.start(timeout_s=0.2)
        assert not is_running(process.pid)
    finally:
        shutil.rmtree(process.folder)


async def test_the_whole_tree_is_measured_and_ended_even_out_of_its_session() -> None:
    async with ScriptProcess(WITH_CHILDREN) as process:
        tree = process_tree(process.pid)
        pids = [pid for pid, _ in tree]
        assert len(pids) == 2
        assert process.cpu_seconds() >= 0.3
        deadline = time.monotonic() + 30
        while process.rss_bytes() < 35_000_000:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        assert process.open_fds() >= 6
    assert not any(is_running(pid) for pid in pids)


async def test_orphans_of_a_killed_process_live_until_the_context_ends() -> None:
    async with ScriptProcess(WITH_CHILDREN) as process:
        [orphan] = [pid for pid, _ in process_tree(process.pid) if pid != process.pid]
        process.kill()
        assert is_running(orphan), "only the process and its group were killed"
    assert not is_running(orphan)


NGINX = """
events {}
http {
    server {
        listen 127.0.0.1:%(port)d;
        location / { proxy_pass http://127.0.0.1:%(upstream)d; }
        location /page { root @DIR@/www; }
    }
}
"""


async def test_nginx_runs_a_given_configuration_in_its_folder() -> None:
    port = free_port()
    async with ScriptedUpstream() as up:
        up.script(Scenario(giant_body_bytes=2_000_000))
        config = NGINX % {"port": port, "upstream": up.port}
        async with Nginx(config, port=port, files={"www/page": "static page"}) as nginx:
            nginx.check()
            big = chat_body(padding="x" * 300_000)  # past the memory buffers: the temporary paths are used
            proxied = await call(port, "POST", "/v1/chat/completions", json_body=big)
            page = await call(port, "GET", "/page")
            log = nginx.log_text()
            pid = nginx.pid
    assert len(proxied.body) > 2_000_000
    assert page.text == "static page"
    assert "POST /v1/chat/completions" in log
    assert not is_running(pid)
    assert not nginx.folder.exists()


async def test_a_wrong_nginx_configuration_says_what_is_wrong() -> None:
    nginx = Nginx("events {}\nhttp { nonsense on; }", port=free_port())
    with pytest.raises(NotReady, match="nonsense"):
        nginx.check()
    with pytest.raises(NotReady, match="nonsense"):
        async with nginx:
            pass


async def test_an_upstream_process_is_gone_after_its_context() -> None:
    async with UpstreamProcess() as up:
        pid = up.pid
        assert is_running(pid)
    assert not is_running(pid)


async def test_a_client_script_gets_its_arguments_and_returns_json() -> None:
    script = (
        "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['BASE'], os.environ.get('OPENAI_API_KEY')]))"
    )
    os.environ["OPENAI_API_KEY"] = "sk-real"
    try:
        result = await run_client(script, "a", "b", env={"BASE": "http://x"}, python=Path(sys.executable))
    finally:
        del os.environ["OPENAI_API_KEY"]
    assert result == [["a", "b"], "http://x", None]


@pytest.mark.parametrize("script", ["print('not json')", "import sys; print('{}'); sys.exit('went wrong')"])
async def test_a_client_script_that_fails_says_so(script: str) -> None:
    with pytest.raises(ClientFailed, match=r"not json|went wrong"):
        await run_client(script, python=Path(sys.executable))


async def test_a_client_script_that_hangs_is_ended() -> None:
    with pytest.raises(TimeoutError):
        await run_client("import time; time.sleep(600)", timeout_s=0.2, python=Path(sys.executable))


def test_a_missing_clients_environment_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLIENTS_PYTHON", str(tmp_path / "none"))
    with pytest.raises(ClientsMissing, match="none"):
        clients_python()
