"""The client connection by its bytes alone: framing, however the segments fall, and what must never be taken for an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.providers.http1 import MAX_HEAD_BYTES, PAUSE_BYTES, BadHttp, Connection


class Wire(asyncio.Transport):
    """What the connection wrote, and whether it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.reads = True
        self.is_aborted = False
        self.unsent_bytes = 0

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def is_closing(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        self.is_aborted = True


def asked() -> tuple[Connection, Wire]:
    """A connection on which a request went out."""
    connection, wire = Connection(), Wire()
    connection.connection_made(wire)
    connection.begin(b"POST / HTTP/1.1\r\n\r\n", b"body")
    return connection, wire


def segments(whole: bytes, cuts: list[int]) -> Iterator[bytes]:
    at = sorted({0, len(whole), *(cut % len(whole) for cut in cuts)})
    for start, end in pairwise(at):
        yield whole[start:end]


LENGTH = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\nhello world"
CHUNKED = b"HTTP/1.1 200 OK\r\nX-A: 1\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nhello \r\n5;ext=1\r\nworld\r\n0\r\nX-Trailer: t\r\n\r\n"
CONTINUED = b"HTTP/1.1 100 Continue\r\nX-Early: 1\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + LENGTH


@given(whole=st.sampled_from([LENGTH, CHUNKED, CONTINUED]), cuts=st.lists(st.integers(0, 300), max_size=30))
def test_an_answer_is_the_same_however_its_segments_fall(whole: bytes, cuts: list[int]) -> None:
    connection, wire = asked()
    body = b""
    for segment in segments(whole, cuts):
        assert not connection.is_complete
        connection.data_received(segment)
        body += connection.taken()

    assert (connection.status, body) == (200, b"hello world")
    assert connection.is_complete
    assert connection.is_reusable
    assert not wire.is_aborted
    assert "x-early" not in connection.headers
    assert "x-trailer" not in connection.headers


@given(
    cuts=st.lists(st.integers(0, 300), max_size=10),
    surplus=st.binary(min_size=1, max_size=50).filter(lambda data: data.strip(b"\r\n")),
)
def test_a_byte_behind_the_answer_spoils_the_connection_and_not_the_answer(cuts: list[int], surplus: bytes) -> None:
    connection, _ = asked()
    body = b""
    for segment in segments(LENGTH + surplus, cuts):
        connection.data_received(segment)
        body += connection.taken()

    assert body == b"hello world"
    assert connection.is_complete
    assert not connection.is_reusable


def test_two_answers_on_one_connection_do_not_mix() -> None:
    connection, wire = asked()
    connection.data_received(CHUNKED)
    assert connection.taken() == b"hello world"
    connection.begin(b"POST /2 HTTP/1.1\r\n\r\n", b"")
    assert not connection.has_head
    assert not connection.has_something
    connection.data_received(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    assert (connection.status, connection.taken()) == (404, b"")
    assert "x-a" not in connection.headers
    assert wire.written.endswith(b"POST /2 HTTP/1.1\r\n\r\n")


def test_a_body_without_a_length_ends_with_its_connection() -> None:
    connection, _ = asked()
    connection.data_received(b"HTTP/1.1 200 OK\r\n\r\nhello ")
    connection.data_received(b"world")
    assert not connection.is_complete
    connection.connection_lost(None)
    assert connection.taken() == b"hello world"
    assert connection.taken() == b""
    assert not connection.is_reusable


@pytest.mark.parametrize("whole", [LENGTH[:-1], CHUNKED[:-2], CHUNKED[:-40], LENGTH[:30], b""])
def test_an_answer_that_stops_before_its_end_is_broken_behind_what_came(whole: bytes) -> None:
    connection, _ = asked()
    if whole:
        connection.data_received(whole)
    connection.connection_lost(None)
    if connection.has_head:
        assert connection.taken()
    with pytest.raises(ConnectionResetError):
        connection.taken()


def test_a_reset_is_no_end_even_where_the_end_of_the_connection_would_be_one() -> None:
    connection, _ = asked()
    connection.data_received(b"HTTP/1.1 200 OK\r\n\r\nhello ")
    connection.connection_lost(ConnectionResetError("reset"))
    assert connection.taken() == b"hello "
    with pytest.raises(ConnectionResetError):
        connection.taken()


@pytest.mark.parametrize(
    "whole",
    [
        b"SSH-2.0-OpenSSH_9\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * MAX_HEAD_BYTES,
        b"HTTP/1.1 103 Early Hints\r\nX: 1\r\n\r\n" * (MAX_HEAD_BYTES // 30),
    ],
)
def test_what_is_no_answer_is_said_to_be_none_and_closed(whole: bytes) -> None:
    connection, wire = asked()
    connection.data_received(whole)
    assert wire.is_aborted
    with pytest.raises(BadHttp):
        connection.taken()


def test_what_comes_unasked_closes_the_connection() -> None:
    connection, wire = asked()
    connection.data_received(LENGTH)
    connection.taken()
    connection.data_received(LENGTH)
    assert wire.is_aborted
    assert not connection.is_reusable


def test_an_upstream_is_made_to_wait_until_what_it_sent_was_taken() -> None:
    connection, wire = asked()
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n")
    while wire.reads:
        connection.data_received(b"x" * 10_000)
    assert len(connection.taken()) <= PAUSE_BYTES + 10_000
    assert wire.reads


@pytest.mark.parametrize("head", [b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 200 OK\r\nConnection: close\r\n"])
def test_a_server_that_does_not_keep_the_connection_gets_no_second_request_on_it(head: bytes) -> None:
    connection, _ = asked()
    connection.data_received(head + b"Content-Length: 2\r\n\r\nok")
    assert connection.taken() == b"ok"
    assert connection.is_complete
    assert not connection.is_reusable


def test_an_answer_that_comes_before_the_request_has_left_is_the_last_on_its_connection() -> None:
    connection, wire = asked()
    wire.unsent_bytes = 1
    connection.data_received(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
    assert connection.is_complete
    assert not connection.is_reusable


async def test_whoever_waits_is_woken_by_the_first_bytes_of_the_body() -> None:
    connection, _ = asked()
    woken = connection.awaited(asyncio.get_running_loop())
    connection.data_received(CHUNKED[:20])
    assert not woken.done(), "half a head is nothing"
    connection.data_received(CHUNKED[20:])
    await woken
    assert connection.status == 200
