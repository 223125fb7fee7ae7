"""`python -m app serve`: everything that a start on a bare machine needs, in the order in which it happens.

1. Settings. Without both URLs the embedded servers are found or started, and secrets are made once and kept in the data folder.
2. The database is migrated, the first model registered, and in embedded mode a demo user with a key made.
3. uvicorn runs the application, in this process or in `WORKERS` of them. When it is ready, the banner says how to use it.
4. SIGTERM or Ctrl-C drains uvicorn; then the embedded servers are stopped. They sit in sessions of their own, so that the
   terminal's Ctrl-C does not reach them before their clients are done.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType

from app.caretaker import Caretaker
from app.config import Settings, export_settings, load_settings, require_cluster_settings
from app.demo_server import DemoServer, DemoServerError, DemoUpstream
from app.drain import refuse_new_connections
from app.embedded import EmbeddedError, EmbeddedServers
from app.exceptions import DependencyUnavailable, GatewayError, SettingsError

READY_WAIT_S = 60.0
ENDED_CALLS_S = 4
"""After the grace, calls that still run are ended by the application itself, and billed; uvicorn cuts what does not go even then."""
KEEP_ALIVE_S = 65
"""Longer than the minute for which most proxies keep a connection, so that it is never this side that closes one just in use."""


@dataclass(slots=True)
class Secrets:
    """What the embedded mode makes for itself on its first start; `secrets.json` in the data folder, readable by its owner only."""

    secret_key: str = field(repr=False)
    admin_token: str = field(repr=False)
    demo_key: str | None = field(default=None, repr=False)
    has_shown_admin_token: bool = False

    @classmethod
    def of(cls, data_dir: Path) -> Secrets:
        try:
            return cls(**json.loads(_secrets_file(data_dir).read_text(encoding="utf-8")))
        except FileNotFoundError:
            made = cls(secrets.token_urlsafe(48), f"ag-owner-{secrets.token_urlsafe(36)}")
            made.keep(data_dir)
            return made
        except (ValueError, TypeError, OSError) as error:
            raise SettingsError(f"{_secrets_file(data_dir)} cannot be read: {error}.") from None

    def keep(self, data_dir: Path) -> None:
        """Write whole or not at all: a half-written file would lose the key to everything that was sealed."""
        path = _secrets_file(data_dir)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".new")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(self), file)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)


def serve(*, with_demo_model: bool) -> None:
    """Run until stopped. Ends the process with one line when it cannot start."""
    signal.signal(signal.SIGTERM, _end)
    try:
        with ExitStack() as running:
            settings = load_settings()
            _require_usable(settings)
            listening = running.enter_context(_bound(settings))
            kept = None
            if not settings.database_url and not settings.redis_url:
                settings, kept = _embed(settings, running)
            upstream = running.enter_context(_demo_server(settings)) if with_demo_model else None
            demo_key = asyncio.run(_prepare(settings, upstream))
            if kept is not None and demo_key is not None:
                kept.demo_key = demo_key
                kept.keep(settings.data_dir)
            model = upstream.model if upstream else None
            threading.Thread(target=_announce, args=(settings, kept, model), daemon=True).start()
            _run_uvicorn(settings, listening)
    except (SettingsError, EmbeddedError, DemoServerError, GatewayError) as error:
        sys.exit(f"The gateway does not start: {error}")
    except KeyboardInterrupt:
        say("Stopped.")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _require_usable(settings: Settings) -> None:
    """Before anything is started. Raises: SettingsError."""
    from app.wiring.from_settings import require_usable

    if settings.database_url or settings.redis_url:
        require_cluster_settings(settings)
        require_usable(settings)
    else:
        require_usable(settings.model_copy(update={"is_embedded": True}))


def _embed(settings: Settings, running: ExitStack) -> tuple[Settings, Secrets]:
    """Start the embedded servers and put what the workers need into their environment."""
    embedded = EmbeddedServers(settings.data_dir, on_progress=say)
    servers = running.enter_context(embedded)
    running.enter_context(Caretaker(embedded, say))
    kept = Secrets.of(settings.data_dir)
    export_settings(
        DATABASE_URL=servers.database_url,
        REDIS_URL=servers.redis_url,
        SECRET_KEY=settings.secret_key.get_secret_value() or kept.secret_key,
        ADMIN_TOKEN=settings.admin_token.get_secret_value() or kept.admin_token,
        GATEWAY_EMBEDDED="true",
    )
    return load_settings(), kept


def _demo_server(settings: Settings) -> DemoServer:
    return DemoServer(settings.data_dir, on_progress=say)


async def _prepare(settings: Settings, upstream: DemoUpstream | None) -> str | None:
    """Migrate, register what a first start needs. Returns the demo key if it was made now."""
    from app.main import wire
    from app.services.bootstrap import bootstrap, register_demo_server
    from app.storage.migrate import migrate
    from app.wiring.from_settings import first_model

    process = wire(settings)
    try:
        async with process.stores.redis.pumping():
            await migrate(settings.database_url, say)
            await process.secrets.keys.settle(process.secrets.store)
            management = process.container.management
            made = await bootstrap(management, first_model(settings), is_embedded=settings.is_embedded)
            if upstream is not None:
                await register_demo_server(management, upstream.model, upstream.api_base, upstream.api_key)
            return made.demo_key
    except DependencyUnavailable as error:
        if settings.is_embedded:
            raise
        # A cluster's replica comes up without its stores and heals by itself once they are there.
        say(f"Starting without the database: {error.message}")
        return None
    finally:
        await process.stores.engine.dispose()


def _bound(settings: Settings) -> socket.socket:
    """The socket to listen on, claimed before anything is started: another gateway's readiness must not be taken for ours.

    Raises: SettingsError when the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    claimed = socket.socket(family)
    claimed.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    claimed.set_inheritable(True)
    try:
        claimed.bind((settings.host, settings.port))
    except OSError as error:
        claimed.close()
        name, example = ("PORT", "PORT=8001") if error.errno == errno.EADDRINUSE else ("HOST", "HOST=0.0.0.0")
        reason = (error.strerror or str(error)).lower()
        raise SettingsError(
            f"{name}: {settings.host}:{settings.port} cannot be used ({reason}). Example: {example}"
        ) from None
    return claimed


def _run_uvicorn(settings: Settings, listening: socket.socket) -> None:
    import uvicorn
    from uvicorn.config import STARTUP_FAILURE
    from uvicorn.supervisors import Multiprocess

    from app.middleware.connection import Connection

    class Workers(Multiprocess):
        """The supervisor of several processes on one socket, of which it holds a copy itself."""

        def terminate_all(self) -> None:
            super().terminate_all()
            # Else the kernel went on taking connections in as long as this process waits for its workers, and nobody would answer.
            time.sleep(settings.shutdown_delay_seconds)
            refuse_new_connections()
            for listening in self.sockets:
                listening.close()

    say(f"Starting {settings.workers} worker{'s' if settings.workers > 1 else ''} on {settings.host}:{settings.port}.")
    config = uvicorn.Config(
        "app.main:app",
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        loop="uvloop",
        http=Connection,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=[str(network) for network in settings.trusted_proxies],
        timeout_graceful_shutdown=round(settings.shutdown_grace_seconds) + ENDED_CALLS_S,
        timeout_keep_alive=KEEP_ALIVE_S,
        h11_max_incomplete_event_size=64 * 1024,
    )
    if settings.workers > 1:
        Workers(config, sockets=[listening]).run()
        return
    server = uvicorn.Server(config)
    server.run(sockets=[listening])
    if not server.started:
        sys.exit(STARTUP_FAILURE)


def _announce(settings: Settings, kept: Secrets | None, demo_model: str | None) -> None:
    """Print the banner once the gateway can serve."""
    shown_host = "localhost" if settings.host in ("0.0.0.0", "::", "127.0.0.1") else settings.host  # noqa: S104
    base = f"http://{shown_host}:{settings.port}"
    deadline_s = time.monotonic() + READY_WAIT_S
    while not _is_ready(f"http://127.0.0.1:{settings.port}/health/ready", settings):
        if time.monotonic() > deadline_s:
            return
        time.sleep(0.05)
    for line in _banner(base, settings, kept, demo_model):
        say(line)
    if kept is not None and not kept.has_shown_admin_token:
        kept.has_shown_admin_token = True
        kept.keep(settings.data_dir)


def _banner(base: str, settings: Settings, kept: Secrets | None, demo_model: str | None) -> list[str]:
    lines = ["", "Antigravity LLM Gateway is ready.", f"  API            {base}/v1", f"  Dashboard      {base}/admin/"]
    if settings.docs_enabled:
        lines.append(f"  Documentation  {base}/docs")
    lines.append(f"  Health         {base}/health")
    if kept is None:
        return [*lines, ""]
    if not kept.has_shown_admin_token and not _is_own_token(settings, kept):
        lines += [
            f"  Administrator  {kept.admin_token}",
            f"                 (shown this once; kept in {_secrets_file(settings.data_dir)})",
        ]
    if kept.demo_key:
        key_line = f"  Demo key       {kept.demo_key}"
        model = demo_model or ("demo" if not settings.llm_api_key.get_secret_value() else settings.default_model)
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Say hello."}]})
        lines += [
            key_line,
            "",
            "Try it:",
            f"  curl {base}/v1/chat/completions -H 'Authorization: Bearer {kept.demo_key}' "
            f"-H 'Content-Type: application/json' -d '{body}'",
        ]
    return [*lines, "", "Ctrl-C stops everything.", ""]


def _is_own_token(settings: Settings, kept: Secrets) -> bool:
    """The operator set ADMIN_TOKEN himself, so there is nothing to show."""
    return settings.admin_token.get_secret_value() != kept.admin_token


def _is_ready(url: str, settings: Settings) -> bool:
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104
    try:
        with urllib.request.urlopen(url.replace("127.0.0.1", host), timeout=1.0) as answer:  # noqa: S310 - our own address
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _secrets_file(data_dir: Path) -> Path:
    return data_dir / "secrets.json"


def _end(signum: int, frame: FrameType | None) -> None:
    """SIGTERM outside uvicorn's own handling: leave through the context managers, so that the servers are stopped."""
    raise SystemExit(0)
