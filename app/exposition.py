"""The page that Prometheus reads: what this process counted, and what its siblings on this machine did.

1. A process that is a worker of several (uvicorn starts them as children of one supervisor) writes what it has counted into a file of
   its own, once a second, in a folder named after that supervisor (and its container, where several share the disk). Whichever worker
   is asked has the others write theirs at once, and reads them; of one that does not answer in time it takes what lies there. It writes
   its own as well: what was shown once lies there, so that no page shows less than one before it.
2. A worker that is gone leaves its file. The next one that starts takes it over and goes on counting from there, so that nothing that
   only grows ever shrinks because of it.
3. A process that works alone writes nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import msgspec

from app.instruments import Family, Number, Registry, merged

if TYPE_CHECKING:
    from prometheus_client.core import Metric

ANSWER_WAIT_S = 1.0
"""How long others may take to write down what they have counted: a thread does it, also while their event loop is busy. Mostly it is
milliseconds; with a core wanted by many it was seen to take more than a quarter of a second."""
STALE_S = 3600.0
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Family]).decode


class Siblings:
    """The workers that share this one's supervisor, and what they have counted."""

    def __init__(self, folder: Path, registry: Registry, *, supervisor: str, pid: int) -> None:
        self._registry = registry
        self._folder = folder / supervisor
        self._own = self._folder / f"{pid}.metrics"
        self._socket: socket.socket | None = None
        self._asking: list[str | bytes] = []
        """Who waits for what is written next."""
        self._writing = Lock()
        """One thread writes when it is asked or every second, others when they show a page."""

    def join(self) -> None:
        """Take over what is left of workers and supervisors that are gone."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in self._folder.parent.iterdir():
            if folder != self._folder and not _lives(folder.name):
                shutil.rmtree(folder, ignore_errors=True)
        for path in self._others():
            if not Path(f"/proc/{path.stem}").exists():
                claimed = path.with_suffix(f".{self._own.stem}")
                with suppress(OSError):  # another worker that starts at the same moment was first
                    path.rename(claimed)
                    self._registry.adopt(_read(claimed))
                    claimed.unlink()

    def listen(self) -> None:
        """Be reachable for the others, where the system has names for sockets that lie in no folder (Linux)."""
        own = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            own.bind(self._address(self._own.stem))
        except OSError:
            own.close()  # they take what this process wrote last
        else:
            self._socket = own

    def close(self) -> None:
        """Leave what was counted to the others."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self.publish()

    def wait(self, seconds: float) -> bool:
        """Wait for that long, or until another worker asks. Returns whether one did."""
        if self._socket is None:
            time.sleep(seconds)
            return False
        self._socket.settimeout(seconds)
        try:
            question, asking = self._socket.recvfrom(16)
            if asking:
                self._asking.append(asking)
            return bool(question)
        except TimeoutError:
            return False
        except OSError:
            time.sleep(seconds)
            return False

    def publish(self) -> None:
        # Before the figures are taken: whoever asks later is to have later ones.
        asking, self._asking = self._asking, []
        self._write()
        for each in asking:
            with suppress(OSError):  # it has waited long enough and gone on
                if self._socket is not None:
                    self._socket.sendto(b"written", each)

    def _write(self) -> None:
        draft = self._own.with_suffix(".new")
        with self._writing:
            draft.write_bytes(_encode(self._registry.snapshot()))
            draft.rename(self._own)

    def snapshots(self) -> Iterator[list[Family]]:
        """Of the others, each at least as new as what any of them has shown."""
        with suppress(OSError):  # a full disk: what is shown is as new as it was
            self._write()
        self._ask()
        for path in self._others():
            yield _read(path, is_gone=not Path(f"/proc/{path.stem}").exists())

    def _ask(self) -> None:
        """Have the others write down what they have counted, and wait until they say that they have.

        That a file is new says nothing: its figures may have been taken before they were asked for, by a thread that was then kept
        from writing them.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asking:
            with suppress(OSError):
                asking.bind("")  # the system gives it a name to answer to
            asking.setblocking(False)
            awaited = set()
            for path in self._others():
                with suppress(OSError):  # it is gone
                    asking.sendto(b"now", self._address(path.stem))
                    awaited.add(self._address(path.stem).encode())
            deadline_s = time.monotonic() + ANSWER_WAIT_S
            with suppress(OSError):  # among them TimeoutError: then it is what lies there
                while awaited and (left_s := deadline_s - time.monotonic()) > 0:
                    asking.settimeout(left_s)
                    awaited.discard(asking.recvfrom(16)[1])

    def _address(self, pid: str) -> str:
        return f"\0antigravity-metrics-{self._folder.name}-{pid}"

    def _others(self) -> list[Path]:
        return [path for path in sorted(self._folder.glob("*.metrics")) if path != self._own]


def siblings_of(registry: Registry, folder: Path) -> Siblings | None:
    """None for a process that works alone."""
    supervisor = multiprocessing.parent_process()
    if supervisor is None or supervisor.pid is None:
        return None
    here = _namespace()
    _sweep(folder, here)
    return Siblings(folder / here, registry, supervisor=_named(supervisor.pid), pid=os.getpid())


def page(registry: Registry, siblings: Siblings | None) -> bytes:
    """The text format of Prometheus."""
    from prometheus_client import CollectorRegistry, generate_latest

    snapshots = [registry.snapshot(), *(siblings.snapshots() if siblings else ())]
    shown = CollectorRegistry(auto_describe=False)
    shown.register(_Shown(merged(snapshots)))
    return generate_latest(shown)


class _Shown:
    """Our figures in the words of the library that knows the format."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        for family in self._families:
            kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
            metric = kinds[family.kind](family.name, family.help, labels=family.labels)
            for labels, value in family.series:
                texts = [str(label) for label in labels]
                if isinstance(metric, HistogramMetricFamily) and isinstance(value, tuple):
                    metric.add_metric(texts, _buckets(family, value), value[-1])
                elif isinstance(metric, CounterMetricFamily | GaugeMetricFamily) and not isinstance(value, tuple):
                    metric.add_metric(texts, value / family.per if family.per != 1 else value)
            yield metric


def _buckets(family: Family, row: tuple[Number, ...]) -> list[tuple[str, float]]:
    """Cumulated, as the format wants them."""
    bounds = [*(f"{bound:g}" for bound in family.bounds), "+Inf"]
    found, total = [], 0.0
    for bound, count in zip(bounds, row[:-1], strict=True):
        total += count
        found.append((bound, total))
    return found


def _read(path: Path, *, is_gone: bool = False) -> list[Family]:
    try:
        families = _decode(path.read_bytes())
    except (OSError, msgspec.MsgspecError):
        return []  # taken over at this moment, or damaged: there is nothing to add
    return [family for family in families if family.kind != "gauge"] if is_gone else families


def _named(pid: int) -> str:
    """A process by its number and its start, which together are never given twice."""
    with suppress(OSError, IndexError):
        stat = Path(f"/proc/{pid}/stat").read_text()
        return f"{pid}-{stat[stat.rindex(')') + 2 :].split()[19]}"
    return f"{pid}-0"


def _namespace() -> str:
    """Where this process's number means this process: containers that share a volume give the same numbers to others."""
    with suppress(OSError):
        return "".join(each for each in os.readlink("/proc/self/ns/pid") if each.isalnum())
    return "here"


def _sweep(folder: Path, here: str) -> None:
    """Remove what containers that are gone have left. Those that live write every second."""
    stale_at_s = time.time() - STALE_S
    for place in folder.iterdir() if folder.is_dir() else ():
        with suppress(OSError):
            written_s = max(each.stat().st_mtime for each in (place, *place.rglob("*")))
            if place.name != here and written_s < stale_at_s:
                shutil.rmtree(place, ignore_errors=True)


def _lives(name: str) -> bool:
    pid, _, _ = name.partition("-")
    return not pid.isdigit() or _named(int(pid)) == name
