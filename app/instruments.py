"""Counters, gauges and histograms that cost the hot path a dictionary look-up: plain numbers of this process.

1. What is counted is added to a dictionary, keyed by the values of its labels. Nothing is locked: one thread counts, and whoever
   reads takes a copy, which is one step under the interpreter's lock.
2. Every instrument is bounded: from its `max_series`-th combination of labels on, all new ones are counted as `other`, so that no caller
   can grow this process, or the page that shows it, by inventing names.
3. `Registry.snapshot` is plain data. `merged` adds snapshots of several processes up: sums for what is counted, and for a gauge
   whatever it says itself.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, TypeVar

import msgspec

Labels = tuple[str | int, ...]
Number = int | float
Kind = Literal["counter", "gauge", "histogram"]
Joined = Literal["sum", "max", "min"]

OTHER = "other"
MAX_SERIES = 2_000
"""Of one counter. At some 130 bytes a line that is a quarter of a megabyte."""


class Family(msgspec.Struct, frozen=True):
    """One instrument as it stands. A histogram's value holds a count per bucket, the last without bound, and then the sum."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    bounds: tuple[float, ...] = ()
    joined: Joined = "sum"
    per: int = 1
    """What the number is divided by when it is shown: nanodollars are counted, US dollars are shown."""
    series: tuple[tuple[Labels, Number | tuple[Number, ...]], ...] = ()


class Counter:
    """Only ever grows."""

    __slots__ = ("help", "labels", "max_series", "name", "per", "values")

    def __init__(self, name: str, help: str, labels: tuple[str, ...], *, max_series: int, per: int = 1) -> None:
        self.name, self.help, self.labels, self.max_series, self.per = name, help, labels, max_series, per
        self.values: dict[Labels, Number] = {} if labels else {(): 0}

    def add(self, *labels: str | int, by: Number = 1) -> None:
        values = self.values
        if labels in values:
            values[labels] += by
        else:
            key = _bounded(labels, values, self.max_series)
            values[key] = values.get(key, 0) + by

    def family(self) -> Family:
        return Family(
            self.name, "counter", self.help, self.labels, per=self.per, series=tuple(self.values.copy().items())
        )


class Gauge:
    """What is so at this moment: set, or asked for when somebody looks."""

    __slots__ = ("_read", "help", "joined", "labels", "max_series", "name", "values")

    def __init__(self, name: str, help: str, labels: tuple[str, ...], *, max_series: int, joined: Joined) -> None:
        self.name, self.help, self.labels, self.max_series, self.joined = name, help, labels, max_series, joined
        self.values: dict[Labels, Number] = {}
        self._read: Callable[[], Number | Mapping[Labels, Number]] | None = None

    def set(self, value: Number, *labels: str | int) -> None:
        self.values[labels if labels in self.values else _bounded(labels, self.values, self.max_series)] = value

    def follow(self, read: Callable[[], Number | Mapping[Labels, Number]]) -> None:
        """From now on `read` says it, whole. It is called in another thread, and must not wait."""
        self._read = read

    def family(self) -> Family:
        values: Mapping[Labels, Number] = self.values.copy()
        if self._read is not None:
            found = self._read()
            values = found if isinstance(found, Mapping) else {(): found}
        series = tuple(values.items())[: self.max_series]
        return Family(self.name, "gauge", self.help, self.labels, joined=self.joined, series=series)


class Histogram:
    """How often a value was up to each bound, and their sum."""

    __slots__ = ("bounds", "help", "labels", "max_series", "name", "rows")

    def __init__(
        self, name: str, help: str, labels: tuple[str, ...], *, bounds: tuple[float, ...], max_series: int
    ) -> None:
        self.name, self.help, self.labels, self.bounds, self.max_series = name, help, labels, bounds, max_series
        self.rows: dict[Labels, list[Number]] = {}
        if not labels:
            self._row(())

    def observe(self, value: Number, *labels: str | int) -> None:
        row = self.rows[labels] if labels in self.rows else self._row(labels)
        row[bisect_left(self.bounds, value)] += 1
        row[-1] += value

    def family(self) -> Family:
        series = tuple((labels, tuple(row)) for labels, row in self.rows.copy().items())
        return Family(self.name, "histogram", self.help, self.labels, bounds=self.bounds, series=series)

    def _row(self, labels: Labels) -> list[Number]:
        key = _bounded(labels, self.rows, self.max_series)
        return self.rows.setdefault(key, [0] * (len(self.bounds) + 2))


Instrument = TypeVar("Instrument", Counter, Gauge, Histogram)


class Registry:
    """Every instrument of a process. A name is declared once."""

    def __init__(self) -> None:
        self._instruments: dict[str, Counter | Gauge | Histogram] = {}

    def counter(self, name: str, help: str, *labels: str, max_series: int = MAX_SERIES, per: int = 1) -> Counter:
        return self._declared(Counter(name, help, labels, max_series=max_series, per=per))

    def gauge(self, name: str, help: str, *labels: str, joined: Joined = "sum", max_series: int = MAX_SERIES) -> Gauge:
        return self._declared(Gauge(name, help, labels, max_series=max_series, joined=joined))

    def histogram(
        self, name: str, help: str, *labels: str, bounds: tuple[float, ...], max_series: int = MAX_SERIES
    ) -> Histogram:
        return self._declared(Histogram(name, help, labels, bounds=bounds, max_series=max_series))

    def snapshot(self) -> list[Family]:
        return [instrument.family() for instrument in self]

    def adopt(self, families: Iterable[Family]) -> None:
        """Go on counting where a process that is gone left off; of what was so at its moment nothing is taken over."""
        for family in families:
            instrument = self._instruments.get(family.name)
            for labels, value in family.series:
                if isinstance(instrument, Counter) and not isinstance(value, tuple):
                    instrument.add(*labels, by=value)
                elif (
                    isinstance(instrument, Histogram)
                    and isinstance(value, tuple)
                    and instrument.bounds == family.bounds
                ):
                    row = instrument.rows[labels] if labels in instrument.rows else instrument._row(labels)
                    row[:] = [ours + theirs for ours, theirs in zip(row, value, strict=True)]

    def __iter__(self) -> Iterator[Counter | Gauge | Histogram]:
        return iter(self._instruments.values())

    def _declared(self, instrument: Instrument) -> Instrument:
        if instrument.name in self._instruments:
            raise ValueError(f"{instrument.name} is declared twice")
        self._instruments[instrument.name] = instrument
        return instrument


def merged(snapshots: Iterable[Iterable[Family]]) -> list[Family]:
    """What several processes say, as one."""
    by_name: dict[str, Family] = {}
    sums: dict[str, dict[Labels, Number | tuple[Number, ...]]] = {}
    for family in (family for snapshot in snapshots for family in snapshot):
        first = by_name.setdefault(family.name, family)
        if first.bounds != family.bounds or first.labels != family.labels:
            continue  # of another version of this program, while it is being replaced
        own = sums.setdefault(family.name, {})
        for labels, value in family.series:
            own[labels] = _joined(first, own[labels], value) if labels in own else value
    return [msgspec.structs.replace(family, series=tuple(sums[name].items())) for name, family in by_name.items()]


def _joined(
    family: Family, ours: Number | tuple[Number, ...], theirs: Number | tuple[Number, ...]
) -> Number | tuple[Number, ...]:
    if isinstance(ours, tuple) and isinstance(theirs, tuple):
        return tuple(one + other for one, other in zip(ours, theirs, strict=True))
    if isinstance(ours, tuple) or isinstance(theirs, tuple):
        return ours
    match family.joined:
        case "max":
            return max(ours, theirs)
        case "min":
            return min(ours, theirs)
        case _:
            return ours + theirs


def _bounded(labels: Labels, known: Mapping[Labels, object], max_series: int) -> Labels:
    """The labels, or `other` in the place of each where there are too many already."""
    if labels in known or len(known) < max_series:
        return labels
    return (OTHER,) * len(labels)
