"""The stage: upstream, load, nginx and gateways with stores of their own, all temporary, each on its cores.

Everything is on: the key is checked, requests, tokens and concurrency are limited, a hard budget is reserved from and settled, the
record reaches the ledger, the call is counted and logged. Only the bodies are not kept.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from app.bench.load import Job, Result
from app.bench.plan import Options, Scenario
from app.bench.processes import (
    BenchError,
    Cores,
    Program,
    cpu_s,
    free_port,
    listener_on,
    memory_bytes,
    nginx_program,
    pin,
    python,
)
from app.bench.wire import request
from app.embedded import PostgresServer, ValkeyServer
from app.torture.keeper import ROOT, Keeper

MODEL: Final = "bench"
PLENTY: Final = 1_000_000_000
"""A limit that is counted and never reached."""
ADMIN_TIMEOUT_S: Final = 10.0
IDLE_SHARE: Final = 0.05
IDLE_LOOK_S: Final = 0.3
IDLE_MEASURED_S: Final = 2.0
"""The kernel counts CPU by the hundredth of a second: an idle gateway uses some of these in two."""
IDLE_WITHIN_S: Final = 15.0
"""After its load a gateway still writes what it has to write; that is part of what its calls cost."""


@dataclass(slots=True)
class Target:
    """What is measured. `pid` is the root of its processes; None where they cannot be seen, or are not worth it (the upstream)."""

    name: str
    host: str
    port: int
    key: str = field(repr=False)
    model: str
    pid: int | None = None
    gateway: Gateway | None = None
    workers: int = 1

    def job(self, scenario: Scenario, seconds: float) -> Job:
        asked = request(
            host=self.host, key=self.key, model=self.model, is_stream=scenario.is_stream, is_paced=scenario.is_paced
        )
        return Job(
            host=self.host,
            port=self.port,
            request=asked,
            connections=scenario.connections * (1 if scenario.rate else self.workers),
            duration_s=max(seconds, scenario.least_s),
            rate=scenario.rate,
            spread_s=scenario.spread_s,
        )


@dataclass(slots=True)
class Gateway:
    """A gateway of this repository, with its own stores."""

    program: Program
    port: int
    admin_token: str = field(repr=False)
    key: str = field(repr=False, default="")

    def admin(self, path: str, body: Mapping[str, object]) -> dict[str, object]:
        """POST to the admin API. Blocks; for a thread. Raises: BenchError."""
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/admin/api/{path}",
            data=json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.admin_token}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(asked, timeout=ADMIN_TIMEOUT_S) as answer:  # noqa: S310
                made: dict[str, object] = json.load(answer)
                return made
        except urllib.error.HTTPError as error:
            raise BenchError(f"{path}: {error.code} {error.read()[:300]!r}") from None
        except OSError as error:
            raise BenchError(f"{path}: {error}") from None

    def register(self, upstream_port: int) -> None:
        """Model, endpoint, user and key."""
        price = {"input_usd_per_mtok": "2.5", "output_usd_per_mtok": "10"}
        self.admin("models", {"name": MODEL, "max_output_tokens": 4096, "price": price})
        base = f"http://127.0.0.1:{upstream_port}/v1"
        endpoint = {"model": MODEL, "provider": "openai", "upstream_model": MODEL, "api_key": "sk-bench"}
        self.admin("endpoints", {**endpoint, "api_base": base})
        budgets = [{"period": "monthly", "hard_limit_usd": "1000000"}]
        self.admin("users", {"user_oid": "bench", "limits": [], "budgets": budgets})
        limits = [
            {"kind": "requests", "limit": PLENTY, "window_seconds": 60},
            {"kind": "tokens", "limit": PLENTY, "window_seconds": 60},
            {"kind": "concurrency", "limit": 10_000, "window_seconds": 0},
        ]
        made = self.admin("keys", {"user_oid": "bench", "name": "bench", "limits": limits, "budgets": budgets})
        self.key = str(made["key"])

    async def started(self) -> None:
        """Launch, and wait until the admin API answers at all."""
        self.program.launch()
        await self.program.until_listening(self.port)

    async def timed_start(self) -> float:
        """Stop, launch, and call until an answer comes. Returns seconds from launch to answer."""
        await asyncio.to_thread(self.program.stop)
        began_s = time.perf_counter()
        self.program.launch()
        while not await asyncio.to_thread(self._answers):
            self.program.require_alive()
            await asyncio.sleep(0.01)
        return time.perf_counter() - began_s

    def _answers(self) -> bool:
        body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 128})
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/chat/completions",
            data=body.encode(),
            headers={"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(asked, timeout=5.0) as answer:  # noqa: S310
                return bool(answer.status == 200)
        except OSError:
            return False


@dataclass(frozen=True, slots=True)
class Measured:
    """One scenario, one target, one round."""

    load: Result
    cpu_us: float | None
    """Per call."""
    took_s: float = 0.0
    """From the first call until everything was written."""
    workers: int = 1


@dataclass(slots=True)
class Stage:
    targets: list[Target]
    load: Program
    cores: Cores

    async def measured(self, target: Target, scenario: Scenario, seconds: float) -> Measured:
        """Play a scenario against a target. Raises: BenchError when it could not answer."""
        before_s, began_s = cpu_s(target.pid) if target.pid else 0.0, time.monotonic()
        line = await asyncio.to_thread(self.load.ask, msgspec.json.encode(target.job(scenario, seconds)))
        result = msgspec.json.decode(line, type=Result)
        if result.failed or not result.calls:
            raise BenchError(f"{target.name}, {scenario.name}: {result.failed} calls failed: {result.first_problem}")
        if target.pid is None:
            return Measured(result, None)
        await until_idle(target.pid)
        cpu_us = (cpu_s(target.pid) - before_s) / result.calls * 1e6
        return Measured(result, cpu_us, time.monotonic() - began_s, target.workers)

    async def idle_cpu(self, target: Target) -> float | None:
        """What a target uses while nobody calls, in seconds of CPU a second: its chores."""
        if target.pid is None:
            return None
        await until_idle(target.pid)
        before_s, began_s = cpu_s(target.pid), time.monotonic()
        await asyncio.sleep(IDLE_MEASURED_S)
        return (cpu_s(target.pid) - before_s) / (time.monotonic() - began_s)

    def worker_bytes(self, target: Target) -> int | None:
        """The resident memory of the largest process of a target."""
        sizes = memory_bytes(target.pid) if target.pid else []
        return sizes[0] if sizes else None


async def until_idle(pid: int) -> None:
    """Wait until the drainer and the like have done what the load left them; at most `IDLE_WITHIN_S`."""
    deadline_s = time.monotonic() + IDLE_WITHIN_S
    while time.monotonic() < deadline_s:
        before_s = cpu_s(pid)
        await asyncio.sleep(IDLE_LOOK_S)
        if cpu_s(pid) - before_s <= IDLE_SHARE * IDLE_LOOK_S:
            return


@asynccontextmanager
async def staged(options: Options) -> AsyncIterator[Stage]:
    """Everything started and answering; everything ended on the way out, whatever happens, and its folder removed."""
    home = _temporary_folder()
    cores = Cores.shared_out(max(options.workers))
    with ExitStack() as ending:
        keeper = Keeper(home)
        ending.callback(keeper.close)

        def started(name: str, command: list[str], *, on: frozenset[int], talks: bool = False) -> Program:
            program = Program(name, command, home / name, OWN_ENV, keeper, on, talks)
            ending.callback(program.stop)
            program.launch()
            return program

        upstream = started(
            "upstream", python("-m", "app.bench.upstream", str(options.upstream_port)), on=cores.rest, talks=True
        )
        load = started("load", python("-m", "app.bench.load"), on=cores.rest, talks=True)
        upstream_port = int(await asyncio.to_thread(upstream.said))
        targets = [Target("direct", "127.0.0.1", upstream_port, "none", MODEL)]
        nginx = nginx_program()
        if nginx is not None:
            port = free_port()
            command = _nginx_command(nginx, home / "nginx", port, upstream_port)
            program = started("nginx", command, on=cores.gateways)
            await program.until_listening(port)
            targets.append(Target("nginx", "127.0.0.1", port, "none", MODEL, program.pid))
        for name, tree, workers in _gateways(options):
            gateway = await _gateway(name, tree, home / name, workers, cores, keeper, ending)
            await asyncio.to_thread(gateway.register, upstream_port)
            await gateway.timed_start()  # afresh: the first one has made the tables, and holds what it needed for that
            root = gateway.program.pid
            targets.append(Target(name, "127.0.0.1", gateway.port, gateway.key, MODEL, root, gateway, workers))
        if options.against is not None:
            url = urlsplit(options.against.url)
            host, port = url.hostname or "127.0.0.1", url.port or 80
            pid = listener_on(port) if host in ("127.0.0.1", "localhost", "::1") else None
            targets.append(Target("against", host, port, options.against.key, options.against.model, pid))
        await asyncio.sleep(1.0)  # by contract every worker knows model and key by then
        yield Stage(targets, load, cores)


def _gateways(options: Options) -> Iterator[tuple[str, Path, int]]:
    """Name, checkout and WORKERS of each."""
    for workers in options.workers:
        yield "gateway" if len(options.workers) == 1 else f"{workers} workers", ROOT, workers
    if options.beside is not None:
        yield "beside", options.beside, options.workers[0]


def _temporary_folder() -> Path:
    """nginx started by root serves as `nobody`, who must reach its own folder in here."""
    home = Path(tempfile.mkdtemp(prefix="gateway-bench-"))
    home.chmod(0o755)
    return home


async def _gateway(
    name: str, tree: Path, home: Path, workers: int, cores: Cores, keeper: Keeper, ending: ExitStack
) -> Gateway:
    postgres = PostgresServer(home / "postgres", on_progress=lambda _: None)
    valkey = ValkeyServer(home / "valkey", on_progress=lambda _: None)
    for server in (postgres, valkey):
        ending.callback(server.kill)
        await asyncio.to_thread(server.start)
        keeper.watch(server.pid)
        pin(server.pid, cores.rest)
    own = tree / ".venv" / "bin" / "python"
    command = [str(own), "-m", "app", "serve"] if own.exists() else python("-m", "app", "serve")
    port, token = free_port(), secrets.token_urlsafe(32)
    env = {
        "PYTHONPATH": str(tree),
        "PATH": "/usr/bin:/bin",
        "LC_ALL": "C.UTF-8",
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "WORKERS": str(workers),
        "DATA_DIR": str(home / "data"),
        "DATABASE_URL": postgres.url,
        "REDIS_URL": valkey.url,
        "SECRET_KEY": secrets.token_urlsafe(48),
        "ADMIN_TOKEN": token,
        "UPSTREAM_PRIVATE_HOSTS": "loopback",
        "LOG_CONTENT": "metadata",
        "REDIS_TIMEOUT_MS": "1000",
    }
    gateway = Gateway(Program(name, command, home / "cwd", env, keeper, cores.gateways), port, token)
    ending.callback(gateway.program.stop)
    await gateway.started()
    return gateway


OWN_ENV: Final = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}


def _nginx_command(program: Path, home: Path, port: int, upstream_port: int) -> list[str]:
    """One worker that only passes on: the floor. Unbuffered, as streams need it."""
    home.mkdir(parents=True)
    home.chmod(0o755)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {home}/{kind}; " for kind in kinds)
    config = home / "nginx.conf"
    config.write_text(
        f"worker_processes 1; pid {home}/pid; error_log {home}/error.log; events {{ worker_connections 4096; }}\n"
        f"http {{ access_log off; {temporary}\n"
        f"upstream up {{ server 127.0.0.1:{upstream_port}; keepalive 256; }}\n"
        f"server {{ listen 127.0.0.1:{port} backlog=1024; keepalive_requests 1000000000;\n"
        'location / { proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; } } }\n'
    )
    return [str(program), "-p", f"{home}/", "-c", str(config), "-e", f"{home}/error.log", "-g", "daemon off;"]


def as_fields(measured: Measured) -> dict[str, object]:
    """For JSON."""
    return {**asdict(measured.load), "cpu_us_per_call": measured.cpu_us, "took_s": measured.took_s}
