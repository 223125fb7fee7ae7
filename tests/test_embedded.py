"""The embedded servers: real PostgreSQL and Valkey, through restarts, crashes, strangers and other accounts."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import httpx2
import pytest
import redis.asyncio

from app.demo_server import DemoServer, DemoUpstream
from app.embedded import (
    UNPRIVILEGED_ACCOUNT,
    EmbeddedError,
    EmbeddedServers,
    PostgresServer,
    Process,
    Server,
    ValkeyServer,
    account_for,
    telling_line,
)

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.timeout(180)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="shows what root's start does")

# A gateway that is never told to stop: it prints the two URLs and waits to be killed.
GATEWAY = """
import sys, pathlib
from app.embedded import EmbeddedServers, EmbeddedError
try:
    servers = EmbeddedServers(pathlib.Path(sys.argv[1]), durable=False).start()
except EmbeddedError as error:
    sys.exit(f"refused: {error}")
print(servers.database_url, servers.redis_url, flush=True)
sys.stdin.read()
"""


def quiet(_: str) -> None:
    """Progress that nobody reads."""


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A folder with a space in its name below one that only its owner may enter, short enough for a socket's name."""
    with tempfile.TemporaryDirectory(prefix="gw") as private:
        yield Path(private) / "the data"


@pytest.fixture
def servers(data_dir: Path) -> Iterator[EmbeddedServers]:
    """Both servers, not started; stopped at the end, whatever happens."""
    embedded = EmbeddedServers(data_dir, durable=False, on_progress=quiet)
    yield embedded
    embedded.stop()


def in_postgres(url: str, statement: str) -> object:
    """The single value that a statement answers over a connection of its own."""

    async def ask() -> object:
        connection = await asyncpg.connect(url, timeout=5)
        try:
            return await connection.fetchval(statement, timeout=5)
        finally:
            await connection.close()

    return asyncio.run(ask())


def in_valkey(url: str, *command: str) -> object:
    """What a command answers over a connection of its own."""

    async def ask() -> object:
        async with redis.asyncio.Redis.from_url(url, socket_timeout=5, decode_responses=True) as connection:
            return await connection.execute_command(*command)  # type: ignore[no-untyped-call]

    return asyncio.run(ask())


def without_password(url: str) -> str:
    """The same address, as a stranger would try it."""
    before, _, after = url.partition("@")
    return f"{before.rpartition(':')[0]}:wrong@{after}"


def launch_gateway(data_dir: Path) -> tuple[subprocess.Popen[str], list[str]]:
    """A gateway in a process of its own, and what it said first."""
    command = [sys.executable, "-c", GATEWAY, str(data_dir)]
    gateway = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert gateway.stdout is not None
    return gateway, gateway.stdout.readline().split()


def kill_gateway(gateway: subprocess.Popen[str]) -> None:
    """kill -9 of the gateway alone."""
    gateway.kill()
    gateway.communicate()


def pids(embedded: EmbeddedServers) -> tuple[int, int]:
    """Which processes serve."""
    return embedded.postgres.pid, embedded.valkey.pid


def is_running(server: Server, pid: int) -> bool:
    """Whether that process serves this server's data."""
    return Process(pid, server.store, server.program).is_alive()


def test_data_survives_a_stop_and_a_start(data_dir: Path) -> None:
    with EmbeddedServers(data_dir, durable=True, on_progress=quiet) as first:
        in_postgres(first.database_url, "CREATE TABLE kept AS SELECT 42 AS value")
        in_valkey(first.redis_url, "SET", "kept", "42")

    with EmbeddedServers(data_dir, durable=True, on_progress=quiet) as second:
        assert second == first
        assert in_postgres(second.database_url, "SELECT value FROM kept") == 42
        assert in_valkey(second.redis_url, "GET", "kept") == "42"


def test_stop_ends_both_servers_and_every_process_of_theirs(servers: EmbeddedServers) -> None:
    urls = servers.start()
    running = pids(servers)
    servers.stop()

    assert not is_running(servers.postgres, running[0])
    assert not is_running(servers.valkey, running[1])
    assert not (servers.postgres.store / "postmaster.pid").exists(), "PostgreSQL was not shut down in order"
    with pytest.raises((OSError, asyncpg.PostgresError)):
        in_postgres(urls.database_url, "SELECT 1")
    with pytest.raises(redis.exceptions.ConnectionError):
        in_valkey(urls.redis_url, "PING")


def test_servers_that_outlived_their_gateway_are_used_again(servers: EmbeddedServers) -> None:
    gateway, urls = launch_gateway(servers.data_dir)
    in_postgres(urls[0], "CREATE TABLE kept AS SELECT 42 AS value")
    in_valkey(urls[1], "SET", "kept", "42")  # in memory only: a new Valkey would not know it
    before = in_postgres(urls[0], "SELECT pg_postmaster_start_time()")
    kill_gateway(gateway)

    found = servers.start()

    assert [found.database_url, found.redis_url] == urls
    assert in_postgres(found.database_url, "SELECT pg_postmaster_start_time()") == before
    assert in_valkey(found.redis_url, "GET", "kept") == "42"


def test_a_frozen_left_over_is_woken_and_used(servers: EmbeddedServers) -> None:
    servers.start()
    gone, running = EmbeddedServers(servers.data_dir, on_progress=quiet), pids(servers)
    servers.postgres.pause()
    servers.valkey.pause()
    forget(servers)

    gone.start()
    try:
        assert pids(gone) == running
    finally:
        gone.stop()


def test_a_left_over_that_listens_elsewhere_than_wanted_is_replaced_with_its_data(data_dir: Path) -> None:
    on_socket = PostgresServer(data_dir / "postgres", durable=False, on_progress=quiet)
    on_port = PostgresServer(data_dir / "postgres", durable=False, port=0, on_progress=quiet)
    try:
        in_postgres(on_socket.start(), "CREATE TABLE kept AS SELECT 42 AS value")
        url = on_port.start()
        assert urlsplit(url).hostname == "127.0.0.1"
        assert in_postgres(url, "SELECT value FROM kept") == 42
        assert not is_running(on_socket, on_socket.pid)
    finally:
        on_port.kill()
        on_socket.kill()


def forget(servers: EmbeddedServers) -> None:
    """What kill -9 does to a gateway's memory: the servers go on, the lock is free."""
    assert servers._lock_fd is not None
    os.close(servers._lock_fd)
    servers._lock_fd = servers.postgres._process = servers.valkey._process = None


def test_a_second_gateway_on_the_same_data_is_refused_in_one_line(servers: EmbeddedServers) -> None:
    urls = servers.start()
    second, said = launch_gateway(servers.data_dir)
    assert said == []
    complaint = second.communicate(timeout=30)[1]

    assert complaint.strip() == (
        f"refused: another gateway (pid {os.getpid()}) already runs on {servers.data_dir}: stop it, or set DATA_DIR to another"
    )
    assert second.returncode == 1
    assert in_postgres(urls.database_url, "SELECT 1") == 1, (
        "the refused gateway must not touch the servers of the first"
    )


def test_killed_servers_recover_with_everything_they_acknowledged(data_dir: Path) -> None:
    servers = EmbeddedServers(data_dir, durable=True, on_progress=quiet)
    with servers as urls:
        in_postgres(urls.database_url, "CREATE TABLE kept AS SELECT 42 AS value")
        in_valkey(urls.redis_url, "SET", "kept", "42")
        servers.postgres.kill()
        servers.valkey.kill()

        assert servers.valkey.start() == urls.redis_url
        assert servers.postgres.start() == urls.database_url
        assert in_postgres(urls.database_url, "SELECT value FROM kept") == 42
        assert in_valkey(urls.redis_url, "GET", "kept") == "42"


def test_orphans_of_a_killed_postmaster_do_not_prevent_the_next_start(servers: EmbeddedServers) -> None:
    servers.start()
    os.kill(servers.postgres.pid, signal.SIGKILL)  # its children notice a moment later

    url = servers.postgres.start()

    assert in_postgres(url, "SELECT 1") == 1


def test_valkey_can_be_restarted_without_its_data(data_dir: Path) -> None:
    valkey = ValkeyServer(data_dir / "valkey", durable=True, on_progress=quiet)
    try:
        in_valkey(valkey.start(), "SET", "lost", "42")
        valkey.kill()
        valkey.erase()
        assert in_valkey(valkey.start(), "GET", "lost") is None
    finally:
        valkey.kill()


def test_a_paused_server_answers_nothing_and_goes_on_when_resumed(data_dir: Path) -> None:
    valkey = ValkeyServer(data_dir / "valkey", durable=False, on_progress=quiet)
    try:
        url = valkey.start()
        valkey.pause()
        with pytest.raises(redis.exceptions.ConnectionError, match="Timeout"):
            in_valkey(f"{url}&socket_timeout=0.2", "PING")
        valkey.resume()
        assert in_valkey(url, "PING") is True
    finally:
        valkey.kill()


def test_a_stale_pid_that_is_a_strangers_by_now_fools_nobody(data_dir: Path) -> None:
    stranger = subprocess.Popen(["/bin/sleep", "60"])
    postgres = PostgresServer(data_dir / "postgres", durable=False, on_progress=quiet)
    try:
        postgres.start()
        postgres.kill()
        for name in ("postmaster.pid", f"{postgres.socket_name}.lock"):
            lines = (postgres.store / name).read_text().splitlines()
            (postgres.store / name).write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
        state = json.loads((postgres.home / "server.json").read_text())
        (postgres.home / "server.json").write_text(json.dumps({**state, "pid": stranger.pid}))

        assert in_postgres(postgres.start(), "SELECT 1") == 1
        assert postgres.pid != stranger.pid
        postgres.stop()
        assert stranger.poll() is None, "a process that is not ours was ended"
    finally:
        postgres.kill()
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("port", [None, 0], ids=["on a socket", "on a port"])
def test_both_servers_want_the_password(data_dir: Path, port: int | None) -> None:
    postgres = PostgresServer(data_dir / "postgres", durable=False, port=port, on_progress=quiet)
    valkey = ValkeyServer(data_dir / "valkey", durable=False, port=port, on_progress=quiet)
    try:
        database_url, redis_url = postgres.start(), valkey.start()
        assert in_postgres(database_url, "SELECT 1") == 1
        assert in_valkey(redis_url, "PING") is True
        with pytest.raises(asyncpg.InvalidPasswordError):
            in_postgres(without_password(database_url), "SELECT 1")
        with pytest.raises(redis.exceptions.ConnectionError, match="invalid username-password"):
            in_valkey(without_password(redis_url), "PING")
    finally:
        postgres.kill()
        valkey.kill()


def test_passwords_and_data_are_closed_to_other_accounts(servers: EmbeddedServers) -> None:
    servers.start()
    for server in (servers.postgres, servers.valkey):
        assert (server.home / "server.json").stat().st_mode & 0o777 == 0o600
        assert server.store.stat().st_mode & 0o777 == 0o700
        password = server.state.password
        assert password not in Path(f"/proc/{server.pid}/cmdline").read_text(), "every account can list processes"


@as_root
def test_root_runs_them_under_an_unprivileged_account_and_leaves_the_folders_above_alone(
    servers: EmbeddedServers,
) -> None:
    servers.start()

    account = account_for(servers.data_dir / "new")
    for server in (servers.postgres, servers.valkey):
        assert Path(f"/proc/{server.pid}").stat().st_uid == account.uid != 0
        assert server.store.stat().st_uid == account.uid
        assert server.home.stat().st_uid == 0
    assert servers.data_dir.parent.stat().st_mode & 0o777 == 0o700


@as_root
def test_an_ordinary_account_is_refused_data_that_root_has_started(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    data_dir = tmp_path / "data"
    data_dir.mkdir(mode=0o755)
    with EmbeddedServers(data_dir, durable=False, on_progress=quiet):
        pass

    # Forked, not executed: that account may not be able to read this interpreter.
    assert outcome_as(UNPRIVILEGED_ACCOUNT, lambda: EmbeddedServers(data_dir, on_progress=quiet).start()) == "refused"


def outcome_as(account: str, action: Callable[[], object]) -> str:
    """What becomes of an action in a forked process of another account."""
    entry = pwd.getpwnam(account)
    child = os.fork()
    if child == 0:
        status = 2
        try:
            os.setgroups([])
            os.setgid(entry.pw_gid)
            os.setuid(entry.pw_uid)
            action()
            status = 0
        except EmbeddedError as error:
            status = 1 if "cannot be written by this account" in str(error) and "\n" not in str(error) else 2
        finally:
            os._exit(status)
    return {0: "started", 1: "refused"}.get(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), "failed otherwise")


def test_data_of_another_major_version_is_refused_in_one_line(servers: EmbeddedServers) -> None:
    servers.start()
    servers.stop()
    version_file = servers.postgres.store / "PG_VERSION"
    ours = version_file.read_text().strip()
    version_file.write_text("9\n")

    with pytest.raises(EmbeddedError, match=f"written by PostgreSQL 9 and this is PostgreSQL {ours}") as refusal:
        servers.start()

    assert "\n" not in str(refusal.value)
    assert (servers.postgres.store / "global").is_dir(), "the data must stay as it is"


def test_a_start_that_fails_leaves_no_process_and_no_lock(servers: EmbeddedServers) -> None:
    servers.start()
    servers.stop()
    configuration = servers.postgres.store / "postgresql.conf"
    good = configuration.read_text()
    configuration.write_text("shared_buffers = nonsense\n")

    with pytest.raises(EmbeddedError, match=r"PostgreSQL does not start: .*configuration file .*server\.log"):
        servers.start()
    with pytest.raises(EmbeddedError, match="not running"):
        _ = servers.valkey.pid

    configuration.write_text(good)
    assert in_postgres(servers.start().database_url, "SELECT 1") == 1


def test_a_fixed_port_that_is_taken_is_refused_in_one_line(data_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        valkey = ValkeyServer(data_dir / "valkey", durable=False, port=taken.getsockname()[1], on_progress=quiet)
        with pytest.raises(EmbeddedError, match=r"Valkey does not start: .*Address already in use"):
            valkey.start()


def test_a_remembered_port_that_is_taken_by_now_is_given_up(data_dir: Path) -> None:
    valkey = ValkeyServer(data_dir / "valkey", durable=False, port=0, on_progress=quiet)
    try:
        before = valkey.start()
        valkey.stop()
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", valkey.state.port))
            taken.listen()
            after = valkey.start()
            assert urlsplit(after).port != urlsplit(before).port
            assert urlsplit(after).password != urlsplit(before).password, "the holder of the port may have heard it"
            assert in_valkey(after, "PING") is True
    finally:
        valkey.kill()


def test_a_path_too_long_for_a_socket_falls_back_to_a_loopback_port(tmp_path: Path) -> None:
    with EmbeddedServers(tmp_path / ("long" * 25), durable=False, on_progress=quiet) as urls:
        assert urlsplit(urls.database_url).hostname == urlsplit(urls.redis_url).hostname == "127.0.0.1"
        assert in_postgres(urls.database_url, "SELECT 1") == 1
        assert in_valkey(urls.redis_url, "PING") is True


def test_the_log_line_that_tells_is_found_among_the_others() -> None:
    log = "LOG: could not bind: Address already in use\nFATAL: could not create any sockets\nLOG: shut down\n\n"
    assert telling_line(log) == "LOG: could not bind: Address already in use"
    assert telling_line("one\nFATAL: no space\nbye\n") == "FATAL: no space"
    assert telling_line("\n") == "it said nothing"


@pytest.fixture
def demo_server(data_dir: Path) -> Iterator[DemoServer]:
    """The demo model, not started; it has an environment of its own, which only `make demo` and `make test` build."""
    server = DemoServer(data_dir, on_progress=quiet)
    yield server
    server.stop()


def ask_demo(upstream: DemoUpstream, api_key: str) -> tuple[int, str]:
    """Status and body of one small chat with the demo model."""
    question = {"model": upstream.model, "max_tokens": 5, "messages": [{"role": "user", "content": "Say hello."}]}
    headers = {"Authorization": f"Bearer {api_key}"}
    answer = httpx2.post(f"{upstream.api_base}/chat/completions", json=question, headers=headers, timeout=60)
    return answer.status_code, answer.text


def test_the_demo_model_answers_its_own_key_alone_and_is_gone_after_stop(demo_server: DemoServer) -> None:
    upstream = demo_server.start()

    status, body = ask_demo(upstream, upstream.api_key)
    assert status == 200
    assert json.loads(body)["usage"]["completion_tokens"] > 0
    assert ask_demo(upstream, "another key")[0] == 401

    demo_server.stop()
    with pytest.raises(httpx2.ConnectError):
        ask_demo(upstream, upstream.api_key)
