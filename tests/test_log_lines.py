"""The log: every line is written whole, or dropped and counted; who logs never waits."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.log_lines import LogLines


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    for file in (read, write):
        os.close(file)


def read_up_to(file: int, last: bytes) -> bytes:
    """What comes until this line has come."""
    content = b""
    while not content.endswith(last):
        content += os.read(file, 1_000_000)
    return content


def test_lines_arrive_whole_and_in_order(pipe: tuple[int, int]) -> None:
    lines = LogLines(pipe[1], on_dropped=lambda _: None)
    wanted = [b"%d %s\n" % (n, b"x" * (n % 700)) for n in range(500)]
    reader = threading.Thread(target=lambda: read.append(read_up_to(pipe[0], wanted[-1])))
    read: list[bytes] = []
    reader.start()
    for line in wanted:
        lines.write(line)
    reader.join(timeout=20)
    assert read == [b"".join(wanted)]


def test_a_pipe_that_nobody_reads_costs_lines_and_holds_nobody_up(pipe: tuple[int, int]) -> None:
    """T103."""
    dropped: list[int] = []
    lines = LogLines(pipe[1], on_dropped=dropped.append, max_lines=100)
    line = b"x" * 999 + b"\n"
    for _ in range(1_000):
        lines.write(line)
        lines.write_now(line)
    assert not lines.flush(0.1), "it is full"
    lost = sum(dropped)
    assert lost > 1_500

    read = 0
    while read < 1_000 * (2_000 - lost):
        read += len(os.read(pipe[0], 1_000_000))
    assert lines.flush(), "it goes on as soon as somebody reads"
    lines.write_now(b"again\n")
    assert os.read(pipe[0], 100) == b"again\n"
    assert sum(dropped) == lost


def test_what_is_said_at_once_is_written_when_it_was_said_and_not_before_what_waits(pipe: tuple[int, int]) -> None:
    lines = LogLines(pipe[1], on_dropped=lambda _: None)
    lines.write_now(b"last words\n")
    assert os.read(pipe[0], 100) == b"last words\n"

    lines.write(b"one\n")
    lines.write_now(b"two\n")
    lines.write_now(b"x" * select.PIPE_BUF + b"\n")
    assert read_up_to(pipe[0], b"x\n")[:8] == b"one\ntwo\n"


def test_a_disk_that_is_full_costs_lines_that_are_counted() -> None:
    """T103."""
    dropped: list[int] = []
    with Path("/dev/full").open("wb") as full:
        lines = LogLines(full.fileno(), on_dropped=dropped.append)
        for _ in range(10):
            lines.write(b"x\n")
        assert lines.flush()
        lines.write_now(b"y\n")
        assert sum(dropped) == 11
