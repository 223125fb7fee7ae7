"""OpenAI's byte-pair tokenizer, from vocabularies that lie inside the LiteLLM package: no network, and LiteLLM is not imported.

1. A vocabulary takes 80 MB and holds the interpreter for a sixth of a second while it is loaded (measured); a long text takes
   longer to count than any other call should wait. So all of that happens in a process of its own, which is started when something is
   to be counted, in about 0.5 s, and ends when nothing was for a minute. A worker that never needs it never pays for it.
2. One text is counted after the other. What is too long, would have to wait behind too much, or takes too long is not counted: its
   caller has the bytes. A count that nobody waits for any more ends the process, for nothing else stops it.
3. Where a vocabulary is missing or altered there is no count, and nothing is fetched.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from tiktoken.model import encoding_name_for_model

from app.domain.call import Call
from app.domain.catalog import Model
from app.providers.tokenizer_process import COUNT, FILES, LENGTH, UNKNOWN, Request

MAX_COUNTED_BYTES: Final = 4 << 20
"""About 0.15 s of prose, measured, and 0.8 s of the worst text there is."""
MAX_WAITING_BYTES: Final = 8 << 20
DEADLINE_S: Final = 5.0
IDLE_S: Final = 60.0
_COMMON: Final = "o200k_base"
"""For models whose own vocabulary is not published: nearest to what they use."""
_READ_BY_MODEL: Final = (
    *("messages", "tools", "functions", "response_format", "system", "instructions", "prompt", "input"),
)
_ROOT: Final = Path(__file__).resolve().parents[2]

_encode = msgspec.json.Encoder().encode


class BundledTokenizer:
    """See `app.services.estimation.Tokenizer`."""

    def __init__(self, folder: Path | None = None, *, idle_s: float = IDLE_S, deadline_s: float = DEADLINE_S) -> None:
        self._folder = folder or bundled_folder()
        self._idle_s = idle_s
        self._deadline_s = deadline_s
        self._process: Process | None = None
        self._ending: set[Process] = set()
        """Those that were told to end and have not been seen to have done so."""
        self._turn = asyncio.Lock()
        self._waiting_bytes = 0
        self._rest: asyncio.TimerHandle | None = None

    def is_own(self, model: Model) -> bool:
        return _encoding_of(model) is not None

    async def count(self, call: Call, model: Model) -> int | None:
        prompt = {name: call.fields[name] for name in _READ_BY_MODEL if name in call.fields}
        return await self._counted(call.prompt_bytes, model, prompt=prompt)

    async def count_texts(self, texts: Sequence[str], model: Model) -> int | None:
        return await self._counted(sum(map(len, texts)), model, texts=list(texts))

    async def close(self) -> None:
        """End the process; whoever still waits for a count gets none."""
        self._forget()
        for process in self._ending:
            await process.wait()
        self._ending.clear()

    async def _counted(
        self,
        size: int,
        model: Model,
        *,
        prompt: dict[str, msgspec.Raw] | None = None,
        texts: list[str] | None = None,
    ) -> int | None:
        if self._folder is None or size > MAX_COUNTED_BYTES or self._waiting_bytes + size > MAX_WAITING_BYTES:
            return None
        request = Request(_encoding_of(model) or _COMMON, str(self._folder), prompt or {}, texts or [])
        self._waiting_bytes += size
        try:
            async with asyncio.timeout(self._deadline_s), self._turn:
                return await self._asked(_encode(request))
        except TimeoutError:
            return None
        finally:
            self._waiting_bytes -= size

    async def _asked(self, request: bytes) -> int | None:
        try:
            process = await self._running()
            if process.stdin is None or process.stdout is None:
                raise RuntimeError("the tokenizer was started without pipes")
            process.stdin.write(LENGTH.pack(len(request)) + request)
            await process.stdin.drain()
            (counted,) = COUNT.unpack(await process.stdout.readexactly(COUNT.size))
        except (OSError, asyncio.IncompleteReadError):
            self._forget()
            return None
        except BaseException:
            self._forget()  # it may be in the middle of an answer that the next one would take for its own
            raise
        self._rest = asyncio.get_running_loop().call_later(self._idle_s, self._forget)
        return None if counted == UNKNOWN else int(counted)

    async def _running(self) -> Process:
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", f"{__package__}.tokenizer_process"),
                cwd=_ROOT,
                env={"TIKTOKEN_CACHE_DIR": str(self._folder)},
                stdin=PIPE,
                stdout=PIPE,
                stderr=DEVNULL,
            )
        return self._process

    def _forget(self) -> None:
        """End the process without waiting for it."""
        process, self._process = self._process, None
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
        self._ending = {ending for ending in self._ending if ending.returncode is None}
        if process is not None:
            self._ending.add(process)
            if process.returncode is None:
                process.kill()


def bundled_folder() -> Path | None:
    """Where the vocabularies lie; None where LiteLLM is not installed."""
    package = importlib.util.find_spec("litellm")  # finds it without importing it
    if package is None or not package.submodule_search_locations:
        return None
    return Path(package.submodule_search_locations[0]) / "litellm_core_utils" / "tokenizers"


def _encoding_of(model: Model) -> str | None:
    """The vocabulary of the model that OpenAI publishes; None when it is not one of OpenAI's, or its endpoints differ."""
    names = {_published(endpoint.upstream_model) for endpoint in model.endpoints}
    return names.pop() if len(names) == 1 else None


def _published(upstream_model: str) -> str | None:
    try:
        name = encoding_name_for_model(upstream_model.rpartition("/")[2])
    except KeyError:
        return None
    if name == "o200k_harmony":
        return "o200k_base"  # the same but for its special tokens
    return name if name in FILES else None
