from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.kit import stalls

STOPPED = """
import sys
import time
from tests.kit.stalls import stalled_s, watch_stalls
watch_stalls()
time.sleep(0.1)
began = time.monotonic()
print("ready", flush=True)
sys.stdin.readline()
time.sleep(0.05)
print(stalled_s(began), time.monotonic() - began)
"""


def paused_and_lasted_s(*, stopped_s: float) -> tuple[float, float]:
    script = [sys.executable, "-c", STOPPED]
    with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if stopped_s:
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(stopped_s)
            os.kill(process.pid, signal.SIGCONT)
        else:
            time.sleep(0.5)
        process.stdin.write("\n")
        process.stdin.flush()
        paused_s, lasted_s = process.stdout.readline().split()
    return float(paused_s), float(lasted_s)


def test_a_process_that_was_stopped_knows_for_how_long() -> None:
    paused_s, lasted_s = paused_and_lasted_s(stopped_s=1.0)
    assert 0.9 < paused_s <= lasted_s


def test_a_pause_counts_before_the_watch_has_woken_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all that a pause of the machine held up, the watch need not be the first to run again."""
    monkeypatch.setattr(stalls, "sleep", lambda _: threading.Event().wait())  # it never runs again
    began = time.monotonic()
    watch = stalls.StallWatch()
    time.sleep(0.3)
    paused_s = watch.since(began)

    assert 0.25 < paused_s <= time.monotonic() - began


def test_sleeping_is_no_stall() -> None:
    """Whoever waits for a slow gateway is not forgiven the wait."""
    least_s = min(paused_and_lasted_s(stopped_s=0)[0] for _ in range(5))
    assert least_s < 0.3
