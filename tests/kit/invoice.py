"""What the scripted upstream says it served: the second opinion on the gateway's ledger.

The upstream writes one line per request. Tests compare these lines with the usage records, and the cost computed here,
by arithmetic written independently of the gateway's, with the money the gateway booked. Integers only: tokens,
picodollars per token, nanodollars per call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import msgspec

PICOUSD_PER_NANOUSD = 1_000

Outcome = Literal[
    "in_flight",  # still being answered when the invoice was read
    "ok",  # answered in full, as scripted
    "error",  # the scripted status was not 2xx
    "failed_midstream",  # a scripted error event ended the stream
    "cut",  # the script closed or reset the connection
    "client_hung_up",  # the peer went away before the answer was complete
    "unauthorized",  # required keys are set and none of them was sent
    "bad_request",  # the request could not be read: the gateway's fault
    "not_found",  # no protocol has this path
    "stopped",  # the upstream itself was stopped
]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as OpenAI counts them: cached and cache-write ones are part of the prompt, reasoning of the completion."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cache_write_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
            cache_write_tokens=self.cache_write_tokens + other.cache_write_tokens,
        )

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Price:
    """Picodollars (10⁻¹² USD) per token, nanodollars per request. `None`: the same as its whole (input or output)."""

    input_picousd: int
    output_picousd: int
    cached_input_picousd: int | None = None
    cache_write_picousd: int | None = None
    reasoning_picousd: int | None = None
    request_nanousd: int = 0

    @classmethod
    def usd_per_mtok(cls, input_usd: int, output_usd: int) -> Price:
        """A price in whole dollars per million tokens: 1 USD per million tokens is 1,000,000 picodollars per token."""
        return cls(input_picousd=input_usd * 1_000_000, output_picousd=output_usd * 1_000_000)

    def cost_nanousd(self, usage: Usage) -> int:
        """The cost of one call, rounded up to a nanodollar once."""
        cached_price = self.input_picousd if self.cached_input_picousd is None else self.cached_input_picousd
        write_price = self.input_picousd if self.cache_write_picousd is None else self.cache_write_picousd
        reasoning_price = self.output_picousd if self.reasoning_picousd is None else self.reasoning_picousd
        fresh_tokens = usage.prompt_tokens - usage.cached_tokens - usage.cache_write_tokens
        visible_tokens = usage.completion_tokens - usage.reasoning_tokens
        if min(fresh_tokens, visible_tokens) < 0:
            raise ValueError(f"parts exceed their whole: {usage}")
        picousd = (
            fresh_tokens * self.input_picousd
            + usage.cached_tokens * cached_price
            + usage.cache_write_tokens * write_price
            + visible_tokens * self.output_picousd
            + usage.reasoning_tokens * reasoning_price
        )
        return -(-picousd // PICOUSD_PER_NANOUSD) + self.request_nanousd


@dataclass(frozen=True, slots=True)
class InvoiceLine:
    """One request as the upstream saw it. Times are Unix seconds of this machine's clock."""

    number: int
    """Counts from 1; the answer carried it as `x-request-id: req-stub-<number>`."""
    connection: int
    """Which accepted connection it came on, counting from 1: equal numbers mean keep-alive."""
    arrived_at: float
    method: str
    path: str
    query: str
    model: str
    is_stream: bool
    headers: tuple[tuple[str, str], ...]
    """As received, names in lower case, duplicates kept, in order."""
    body: bytes
    """At most the upstream's body cap; `body_bytes` is the true size."""
    body_bytes: int
    status: int
    outcome: Outcome
    usage_reported: Usage | None
    """What was sent as usage and can be believed; `None` if nothing, nonsense, or the call broke off before it."""
    usage_reported_raw: str
    """The usage object as JSON text as it went out, nonsense included; empty if none did."""
    usage_due: Usage
    """What a provider would bill: prompt plus the completion tokens generated so far; zero for an error status."""
    chunks_delivered: int
    """Content events handed to the transport (a role-only or `message_start` event is not one)."""
    bytes_delivered: int
    """Bytes of this answer that reached the kernel."""
    first_byte_at: float | None
    finished_at: float | None
    hung_up_at: float | None
    """When the peer went away, if it did so before the answer was complete."""

    def header(self, name: str) -> str | None:
        """The only value of a header, `None` when absent.

        Raises:
            ValueError: it came more than once.
        """
        values = [value for key, value in self.headers if key == name.lower()]
        if len(values) > 1:
            raise ValueError(f"{name} came {len(values)} times")
        return values[0] if values else None

    @property
    def credential(self) -> str | None:
        """The key the request carried, by whichever header."""
        for name in ("x-api-key", "api-key"):
            if (value := self.header(name)) is not None:
                return value
        authorization = self.header("authorization")
        return authorization.removeprefix("Bearer ") if authorization else None

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def json(self) -> object:
        """The request body, parsed. Raises `msgspec.DecodeError` for what is not JSON."""
        return msgspec.json.decode(self.body)


@dataclass(frozen=True, slots=True)
class Invoice:
    """A snapshot of all lines, in order of arrival."""

    lines: tuple[InvoiceLine, ...] = ()
    dropped_lines: int = 0
    """Requests that have no line here: served after the line cap was reached, or all of them in `totals`."""
    connections_accepted: int = 0
    connections_open: int = 0
    requests_by_model: Mapping[str, int] = field(default_factory=dict)
    """Counted even past the line cap."""
    unlisted_usage: Mapping[str, Usage] = field(default_factory=dict)
    """By model, what is due for finished requests that have no line here."""

    def where(self, is_wanted: Callable[[InvoiceLine], bool]) -> Invoice:
        """The same invoice with only the wanted lines, and without what has no line."""
        lines = tuple(line for line in self.lines if is_wanted(line))
        return replace(self, lines=lines, unlisted_usage={})

    def of_model(self, model: str) -> Invoice:
        return self.where(lambda line: line.model == model)

    @property
    def calls(self) -> Invoice:
        """Without health probes and other GETs: what a user may be charged for."""
        return self.where(lambda line: line.method == "POST")

    def outcomes(self) -> dict[Outcome, int]:
        return dict(Counter(line.outcome for line in self.lines))

    def usage_due(self) -> Usage:
        return sum_usage(self.usage_by_model().values())

    def usage_by_model(self) -> dict[str, Usage]:
        sums = dict(self.unlisted_usage)
        for line in self.lines:
            sums[line.model] = sums.get(line.model, Usage()) + line.usage_due
        return sums

    def cost_nanousd(self, prices: Mapping[str, Price]) -> int:
        """What all lines cost, each call rounded up by itself. An error status costs nothing, not even the request fee.

        Raises:
            KeyError: a model that was billed has no price.
            ValueError: some requests have no line, so the sum would be too small.
        """
        if self.unlisted_usage:
            raise ValueError("some requests have no line; their cost cannot be rounded call by call")
        return sum(line_cost_nanousd(line, prices) for line in self.lines)


def line_cost_nanousd(line: InvoiceLine, prices: Mapping[str, Price]) -> int:
    """What one line costs; 0 for one that is not billed."""
    if line.usage_due == Usage():
        return 0
    return prices[line.model].cost_nanousd(line.usage_due)


def sum_usage(usages: Iterable[Usage]) -> Usage:
    return sum(usages, Usage())
