"""`python -m bench [--short] [NAME …]`: all of them, or those named."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import uvloop

from bench.admission import admission
from bench.call import call
from bench.chunk import chunk
from bench.identify import identify
from bench.measure import Ratio
from bench.overload import overload
from bench.relay import relay
from bench.retention import retention
from bench.stores import drain, reports

Benchmark = Callable[..., Awaitable[Ratio | Sequence[Ratio]]]

BENCHMARKS: dict[str, Benchmark] = {
    "call": call,
    "identify": identify,
    "admission": admission,
    "relay": relay,
    "stream": partial(relay, is_stream=True),
    "chunk": chunk,
    "drain": drain,
    "reports": reports,
    "overload": overload,
    "retention": retention,
}


def main(arguments: list[str]) -> int:
    names = [each for each in arguments if not each.startswith("--")] or list(BENCHMARKS)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"There is no {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}.", file=sys.stderr)
        return 2
    for name in names:
        for ratio in measured(name, is_short="--short" in arguments):
            print(ratio, flush=True)
    return 0


def measured(name: str, *, is_short: bool) -> list[Ratio]:
    """One benchmark, on a loop of its own, the one the gateway runs on."""

    async def run() -> Ratio | Sequence[Ratio]:
        return await BENCHMARKS[name](is_short=is_short)

    found = uvloop.run(run())
    return [found] if isinstance(found, Ratio) else list(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
