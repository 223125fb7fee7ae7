"""The outgoing HTTP client over real sockets: pooling, deadlines, caps, the egress guard, and what leaving early does."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
import threading
from asyncio import AbstractEventLoopPolicy, DefaultEventLoopPolicy
from collections.abc import AsyncIterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import uvloop

from app.domain.egress import LAPTOP, NOTHING_PRIVATE, EgressPolicy
from app.providers.failures import of_exchange
from app.providers.transport import Deadlines, ExchangeFailed, Outgoing, Transport, tls_trusting
from app.services.endpoint_faults import fault_of
from tests.kit.certificates import make_certificate
from tests.kit.scenario import RawPiece, Scenario
from tests.kit.stalls import require_close_to, require_soon, stalled_s
from tests.kit.upstream import ScriptedUpstream

BODY = b'{"model":"m","messages":[]}'


@pytest.fixture(scope="module", params=[DefaultEventLoopPolicy, uvloop.EventLoopPolicy], ids=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> AbstractEventLoopPolicy:
    policy: AbstractEventLoopPolicy = request.param()
    return policy


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as server:
        yield server


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    client = Transport(LAPTOP)
    yield client
    await client.close()


def post(
    url: str,
    *,
    connect_s: float = 10,
    first_s: float = 10,
    between_s: float = 10,
    total_s: float = 20,
    body: bytes = BODY,
) -> Outgoing:
    deadlines = Deadlines(connect_s, first_s, between_s, monotonic() + total_s)
    return Outgoing("POST", url, deadlines, {"Content-Type": "application/json"}, body)


def chat(upstream: ScriptedUpstream, **limits: float) -> Outgoing:
    return post(upstream.base_url + "/chat/completions", **limits)  # type: ignore[arg-type]


async def fetched(transport: Transport, request: Outgoing) -> bytes:
    async with transport.opened(request) as exchange:
        return await exchange.read_all()


async def failure(transport: Transport, request: Outgoing) -> ExchangeFailed:
    with pytest.raises(ExchangeFailed) as caught:
        await fetched(transport, request)
    return caught.value


async def until_closed(upstream: ScriptedUpstream, *, within_s: float) -> None:
    await require_soon(lambda: not upstream.invoice().connections_open, within_s=within_s)


async def test_a_connection_is_kept_and_used_again(transport: Transport, upstream: ScriptedUpstream) -> None:
    for _ in range(3):
        assert b'"choices"' in await fetched(transport, chat(upstream))
    assert {line.connection for line in upstream.invoice().lines} == {1}


async def test_t053_nothing_is_sent_besides_what_the_request_names(
    transport: Transport, upstream: ScriptedUpstream
) -> None:
    await fetched(transport, chat(upstream))
    names = {name for name, _ in upstream.invoice().lines[0].headers}
    assert names <= {"host", "user-agent", "accept-encoding", "accept", "content-type", "content-length"}
    assert upstream.invoice().lines[0].header("accept-encoding") == "identity"
    assert upstream.invoice().lines[0].body == BODY


async def test_cookies_of_an_upstream_are_never_sent_back(transport: Transport, upstream: ScriptedUpstream) -> None:
    upstream.script(Scenario(headers=(("set-cookie", "a=b; Path=/"),)))
    await fetched(transport, chat(upstream))
    await fetched(transport, chat(upstream))
    assert all(line.header("cookie") is None for line in upstream.invoice().lines)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_t041_a_redirect_is_shown_and_not_followed(
    transport: Transport, upstream: ScriptedUpstream, status: int
) -> None:
    upstream.script(Scenario(status=status, redirect_location=upstream.base_url + "/chat/completions"))
    async with transport.opened(chat(upstream)) as exchange:
        assert exchange.status == status
    assert len(upstream.invoice().lines) == 1


async def test_t043_proxies_and_netrc_of_the_environment_are_ignored(
    upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    transport = Transport(LAPTOP)
    await fetched(transport, chat(upstream))
    assert upstream.invoice().lines[0].header("authorization") is None
    await transport.close()


# ── Connections that are stale, refused or broken ─────────────────────────────────────────────────────────────────────


async def test_a_pooled_connection_that_the_upstream_closed_is_replaced_before_anything_is_sent(
    transport: Transport, upstream: ScriptedUpstream
) -> None:
    upstream.script(Scenario(close_after_answer=True))
    for _ in range(5):
        assert b'"choices"' in await fetched(transport, chat(upstream))
        await until_closed(upstream, within_s=1)
    assert len(upstream.invoice().lines) == 5


async def test_a_close_that_the_event_loop_has_not_seen_yet_is_noticed_all_the_same(transport: Transport) -> None:
    """A server in a thread closes while our loop is blocked, so only a look into the kernel can tell."""
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(5)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"

    def serve_one() -> socket.socket:
        connection, _ = listener.accept()
        connection.recv(65536)
        connection.sendall(answer)
        return connection

    served = asyncio.create_task(asyncio.to_thread(serve_one))
    assert await fetched(transport, post(url)) == b"ok"
    first = await served
    again = asyncio.create_task(asyncio.to_thread(serve_one))
    await asyncio.sleep(0)
    first.shutdown(socket.SHUT_RDWR)
    first.close()  # no turn of the loop between this and the next request
    assert await fetched(transport, post(url)) == b"ok"
    (await again).close()
    listener.close()


async def test_t074_a_refused_connection_has_sent_nothing(transport: Transport) -> None:
    with socket.socket() as deaf:  # it holds its port, so that nobody else may listen there meanwhile
        deaf.bind(("127.0.0.1", 0))
        fault = await failure(transport, post(f"http://127.0.0.1:{deaf.getsockname()[1]}/v1"))
    assert (fault.reason, fault.is_sent, fault.is_timeout) == ("connect_failed", False, False)


async def test_a_machine_without_sockets_blames_no_endpoint(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T138."""

    def none_left(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("app.providers.transport.bounded_socket", none_left)

    fault = await failure(transport, post("http://127.0.0.1:9/v1"))

    assert (fault.reason, fault.is_sent, fault.is_ours) == ("no_sockets", False, True)
    failed = of_exchange(fault)
    assert (failed.error.code, failed.is_endpoint_fault, fault_of(failed)) == ("overloaded", False, None)


async def test_an_unknown_host_has_sent_nothing(transport: Transport) -> None:
    fault = await failure(transport, post("http://no-such-host.invalid/v1"))
    assert (fault.reason, fault.is_sent) == ("dns_error", False)


@pytest.mark.parametrize("scenario", [Scenario(accept_and_close=True), Scenario(accept_and_reset=True)])
async def test_a_request_that_went_out_and_was_not_answered_counts_as_sent(
    transport: Transport, upstream: ScriptedUpstream, scenario: Scenario
) -> None:
    upstream.script(scenario)
    fault = await failure(transport, chat(upstream))
    assert (fault.reason, fault.is_sent, fault.is_timeout) == ("connection_lost", True, False)
    assert len(upstream.invoice().lines) == 1


async def test_an_upstream_that_hangs_up_on_every_connection_ends_and_does_not_loop(
    transport: Transport, upstream: ScriptedUpstream
) -> None:
    upstream.script(on_connect="close")
    fault = await failure(transport, chat(upstream))
    assert fault.reason == "connection_lost"


async def test_what_is_no_http_is_said_to_be_none(transport: Transport, upstream: ScriptedUpstream) -> None:
    upstream.script(Scenario(raw_stream=(RawPiece(b"SSH-2.0-OpenSSH_9\r\n\r\n"),), raw_whole=True))
    fault = await failure(transport, chat(upstream))
    assert (fault.reason, fault.is_sent) == ("bad_http", True)


@pytest.mark.parametrize(
    "url", ["ftp://127.0.0.1/x", "file:///etc/passwd", "http://", "http://a:b@127.0.0.1/", "http://[::1", "x"]
)
async def test_a_url_that_is_none_of_http_is_refused(transport: Transport, url: str) -> None:
    assert (await failure(transport, post(url))).reason == "bad_url"


# ── Deadlines ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def timed_failure(transport: Transport, request: Outgoing) -> tuple[str, float]:
    started = monotonic()
    fault = await failure(transport, request)
    assert fault.is_timeout
    return fault.reason, monotonic() - started


@pytest.mark.parametrize("scenario", [Scenario(hang_before_headers=True), Scenario(hang_after_headers=True)])
async def test_t074_silence_ends_at_the_first_token_deadline(
    transport: Transport, upstream: ScriptedUpstream, scenario: Scenario
) -> None:
    upstream.script(scenario)
    reason, taken_s = await timed_failure(transport, chat(upstream, first_s=0.4))
    assert reason == "first_token_timeout"
    require_close_to(taken_s, 0.4)
    await until_closed(upstream, within_s=1)


async def test_t074_a_hanging_tls_handshake_ends_at_the_connect_deadline(
    transport: Transport, upstream: ScriptedUpstream
) -> None:
    upstream.script(on_connect="ignore")
    url = upstream.base_url.replace("http:", "https:")
    started = monotonic()
    fault = await failure(transport, post(url, connect_s=0.4))
    assert (fault.reason, fault.is_sent, fault.is_timeout) == ("connect_timeout", False, True)
    require_close_to(monotonic() - started, 0.4)


async def test_t075_silence_between_chunks_ends_at_its_own_deadline(
    transport: Transport, upstream: ScriptedUpstream
) -> None:
    upstream.script(Scenario(stall_after_chunks=2))
    request = post(upstream.base_url + "/chat/completions", between_s=0.4, body=b'{"model":"m","stream":true}')
    reason, taken_s = await timed_failure(transport, request)
    assert reason == "between_tokens_timeout"
    require_close_to(taken_s, 0.4)


async def test_t077_the_total_deadline_ends_what_never_pauses(transport: Transport, upstream: ScriptedUpstream) -> None:
    upstream.script(Scenario(endless=True, gap_ms=20))
    request = post(
        upstream.base_url + "/chat/completions", between_s=5, total_s=0.5, body=b'{"model":"m","stream":true}'
    )
    reason, taken_s = await timed_failure(transport, request)
    assert reason == "total_timeout"
    require_close_to(taken_s, 0.5)


async def test_a_deadline_counts_from_the_last_byte_not_from_the_first(
    transport: Transport, upstream: ScriptedUpstream
) -> None:
    upstream.script(Scenario(chunks=10, gap_ms=320))
    request = post(
        upstream.base_url + "/chat/completions", first_s=2.5, between_s=2.5, body=b'{"model":"m","stream":true}'
    )
    started = monotonic()
    assert (await fetched(transport, request)).endswith(b"data: [DONE]\n\n")
    assert monotonic() - started > 2.5


async def test_a_slow_reader_of_ours_is_not_the_upstreams_delay(
    transport: Transport, upstream: ScriptedUpstream
) -> None:
    upstream.script(Scenario(chunks=4, gap_ms=30))
    request = post(
        upstream.base_url + "/chat/completions", between_s=1.5, first_s=1.5, body=b'{"model":"m","stream":true}'
    )
    async with transport.opened(request) as exchange:
        await asyncio.sleep(2.0)
        data = b"".join([chunk async for chunk in exchange.chunks()])
    assert data.endswith(b"data: [DONE]\n\n")


async def test_a_cancellation_from_outside_is_no_deadline(transport: Transport, upstream: ScriptedUpstream) -> None:
    upstream.script(Scenario(hang_before_headers=True))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await fetched(transport, chat(upstream, first_s=5))
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


# ── Leaving early ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "scenario",
    [Scenario(hang_before_headers=True), Scenario(hang_after_headers=True), Scenario(endless=True, gap_ms=10)],
)
async def test_t117_t118_a_cancelled_exchange_closes_its_socket_at_once(
    transport: Transport, upstream: ScriptedUpstream, scenario: Scenario
) -> None:
    upstream.script(scenario)
    request = post(upstream.base_url + "/chat/completions", body=b'{"model":"m","stream":true}')
    task = asyncio.create_task(fetched(transport, request))
    await upstream.requests_seen(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until_closed(upstream, within_s=1)


async def test_leaving_before_the_end_closes_and_leaving_after_it_does_not(
    transport: Transport, upstream: ScriptedUpstream
) -> None:
    upstream.script(Scenario(giant_body_bytes=4 << 20))
    async with transport.opened(chat(upstream)) as exchange:
        assert await exchange.read_some(1, "x")
    await until_closed(upstream, within_s=1)
    upstream.script(Scenario())
    await fetched(transport, chat(upstream))
    assert upstream.invoice().connections_open == 1


async def test_a_large_request_that_nobody_reads_is_cancelled_all_the_same(transport: Transport) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        started = monotonic()
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/v1"
        fault = await failure(transport, post(url, first_s=0.3, body=b"x" * (64 << 20)))
        assert (fault.reason, fault.is_sent) == ("first_token_timeout", True)
        require_close_to(monotonic() - started, 0.3)
        peer, _ = deaf.accept()
        peer.settimeout(5)
        received = await asyncio.to_thread(_drained, peer)
        assert received < 48 << 20, "what had not left when the deadline came is thrown away"


def _drained(peer: socket.socket) -> int:
    """How many bytes come until the other side closes or resets. Raises TimeoutError when it does neither."""
    received = 0
    with peer:
        try:
            while data := peer.recv(1 << 20):
                received += len(data)
        except ConnectionResetError:
            pass
    return received


# ── Caps ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_t080_a_body_over_the_cap_is_dropped_announced_or_not(upstream: ScriptedUpstream) -> None:
    transport = Transport(LAPTOP, max_body_bytes=1 << 20)
    upstream.script(Scenario(giant_body_bytes=200 << 20))
    assert (await failure(transport, chat(upstream))).reason == "body_too_large"
    upstream.script(Scenario(endless=True))
    request = post(upstream.base_url + "/chat/completions", body=b'{"model":"m","stream":true}')
    assert (await failure(transport, request)).reason == "body_too_large"
    await until_closed(upstream, within_s=1)
    assert sum(line.bytes_delivered for line in upstream.invoice().lines) < 20 << 20
    await transport.close()


async def test_t080_a_compressed_answer_is_refused_unread(transport: Transport, upstream: ScriptedUpstream) -> None:
    upstream.script(Scenario(gzip_bomb_bytes=100 << 20))
    assert (await failure(transport, chat(upstream))).reason == "encoded_answer"


async def test_t083_an_unread_answer_makes_the_upstream_wait(transport: Transport, upstream: ScriptedUpstream) -> None:
    """Also after a while of fast reading, when the kernel by itself would have learnt to take in megabytes."""
    upstream.script(Scenario(giant_body_bytes=256 << 20))
    async with transport.opened(chat(upstream)) as exchange:
        taken = 0
        while taken < 64 << 20:
            data = await exchange.read_some(10, "x")
            taken += len(data)
            assert len(data) <= 256 << 10
        await asyncio.sleep(0.3)
        upstreams_own_send_buffer = 4 << 20
        assert upstream.invoice().lines[0].bytes_delivered - taken < upstreams_own_send_buffer + (512 << 10)


async def test_a_body_shorter_than_announced_is_broken(transport: Transport, upstream: ScriptedUpstream) -> None:
    upstream.script(Scenario(lying_content_length=5))
    assert (await failure(transport, chat(upstream))).reason == "connection_lost"


async def test_a_surplus_behind_a_body_is_never_taken_for_the_next_answer(
    transport: Transport, upstream: ScriptedUpstream
) -> None:
    upstream.script(Scenario(lying_content_length=-5, raw_body='{"a":"bcdefgh"}'))
    for _ in range(3):
        with contextlib.suppress(ExchangeFailed):  # where the surplus came in the same segment as the body
            assert await fetched(transport, chat(upstream)) == b'{"a":"bcde'
    upstream.script(Scenario())
    assert b'"choices"' in await fetched(transport, chat(upstream))


async def test_t070_what_came_before_a_break_is_still_handed_on(
    transport: Transport, upstream: ScriptedUpstream
) -> None:
    upstream.script(Scenario(reset_after_chunks=5))
    request = post(upstream.base_url + "/chat/completions", body=b'{"model":"m","stream":true}')
    data = b""

    async def read_late() -> None:
        nonlocal data
        async with transport.opened(request) as exchange:
            await asyncio.sleep(0.2)  # the reset has been seen by then, and must not swallow what came before it
            async for chunk in exchange.chunks():
                data += chunk

    with pytest.raises(ExchangeFailed, match="connection_lost"):
        await read_late()
    assert data.count(b'"w') == 5


# ── The egress guard ──────────────────────────────────────────────────────────────────────────────────────────────────


class Recorder:
    """A policy that allows one address and remembers what it was asked."""

    def __init__(self, allowed: str) -> None:
        self.allowed = allowed
        self.asked: list[tuple[str, str]] = []

    def allows_address(self, host: str, ip: IPv4Address | IPv6Address) -> bool:
        self.asked.append((host, str(ip)))
        return str(ip) == self.allowed


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "169.254.169.254", "0.0.0.0", "[::ffff:127.0.0.1]"]
)
async def test_t040_a_forbidden_address_is_never_dialled(upstream: ScriptedUpstream, host: str) -> None:
    transport = Transport(NOTHING_PRIVATE)
    fault = await failure(transport, post(f"http://{host}:{upstream.port}/v1"))
    assert (fault.reason, fault.is_blocked, fault.is_sent) == ("endpoint_blocked", True, False)
    assert upstream.invoice().connections_accepted == 0
    await transport.close()


async def test_t040_the_address_that_was_checked_is_the_one_that_is_dialled(
    upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that resolves to a forbidden and an allowed address goes to the allowed one; a later lookup is judged anew."""
    answers = {"rebind.test": ["169.254.169.254", "127.0.0.1"]}
    real = socket.getaddrinfo

    def scripted(host: str, *args: object, **kwargs: object) -> list[tuple[object, ...]]:
        names = answers.get(host)
        if names is None:
            return real(host, *args, **kwargs)  # type: ignore[arg-type,return-value]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (name, upstream.port)) for name in names]

    monkeypatch.setattr(socket, "getaddrinfo", scripted)
    policy = Recorder("127.0.0.1")
    transport = Transport(policy)
    await fetched(transport, post(f"http://rebind.test:{upstream.port}/v1/chat/completions"))
    assert policy.asked == [("rebind.test", "169.254.169.254"), ("rebind.test", "127.0.0.1")]
    await transport.close()

    answers["rebind.test"] = ["169.254.169.254"]
    transport = Transport(EgressPolicy.parse("rebind.test, loopback"))
    assert (await failure(transport, post(f"http://rebind.test:{upstream.port}/v1"))).is_blocked
    await transport.close()
    assert upstream.invoice().connections_accepted == 1


async def test_t106_a_slow_name_is_asked_for_once_and_holds_up_nobody_else(
    upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked, gate = socket.getaddrinfo, list[str](), threading.Event()

    def resolved(host: str, *rest: Any, **named: Any) -> Any:
        asked.append(host)
        if host == "slow.test":
            gate.wait(20)
        return real("127.0.0.1", *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    transport = Transport(LAPTOP)
    slow, quick = (f"http://{name}.test:{upstream.port}/v1/chat/completions" for name in ("slow", "quick"))
    waiting = [asyncio.create_task(failure(transport, post(slow, connect_s=0.3))) for _ in range(30)]
    await asyncio.sleep(0)
    began = monotonic()
    assert b'"choices"' in await fetched(transport, post(quick))
    assert monotonic() - began - stalled_s(began) < 5
    assert {(await each).reason for each in waiting} == {"connect_timeout"}
    assert asked.count("slow.test") == 1
    gate.set()
    assert b'"choices"' in await fetched(transport, post(slow))
    await transport.close()


# ── TLS ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_t085_certificates_are_verified_against_name_time_and_authority(tmp_path: Path) -> None:
    good = make_certificate(tmp_path)
    expired = make_certificate(tmp_path, is_expired=True)
    stranger = make_certificate(tmp_path, host="other.test")
    for served, trusted, reason in (
        (good, None, "tls_certificate"),
        (expired, expired, "tls_certificate"),
        (stranger, stranger, "tls_certificate"),
    ):
        transport = Transport(LAPTOP, tls=None if trusted is None else trusted.client_context())
        async with ScriptedUpstream(tls=served.server_context()) as upstream:
            fault = await failure(transport, chat(upstream))
            assert (fault.reason, fault.is_sent) == (reason, False)
            assert upstream.invoice().lines == ()
        await transport.close()


async def test_t085_a_trusted_authority_is_enough_and_the_connection_is_pooled(tmp_path: Path) -> None:
    good = make_certificate(tmp_path)
    transport = Transport(LAPTOP, tls=good.client_context())
    async with ScriptedUpstream(tls=good.server_context()) as upstream:
        for _ in range(3):
            assert b'"choices"' in await fetched(transport, chat(upstream))
        assert {line.connection for line in upstream.invoice().lines} == {1}
    await transport.close()


async def test_t085_a_private_authority_counts_for_its_own_host_alone(tmp_path: Path) -> None:
    ours, other = make_certificate(tmp_path), make_certificate(tmp_path, host="localhost")
    transport = Transport(LAPTOP, tls_by_host={"127.0.0.1": tls_trusting(ours.certificate)})
    async with (
        ScriptedUpstream(tls=ours.server_context()) as trusted,
        ScriptedUpstream(tls=other.server_context()) as stranger,
    ):
        assert b'"choices"' in await fetched(transport, chat(trusted))
        for url in (stranger.base_url, stranger.base_url.replace("127.0.0.1", "localhost")):
            assert (await failure(transport, post(f"{url}/chat/completions"))).reason == "tls_certificate"
        assert stranger.invoice().lines == ()
    await transport.close()


def test_t085_a_file_without_certificates_is_no_authority(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    with pytest.raises(OSError, match=r"PEM|X509|certificate"):
        tls_trusting(tmp_path / "empty.pem")


def test_t085_a_context_that_does_not_verify_is_refused() -> None:
    careless = ssl.create_default_context()
    careless.check_hostname = False
    with pytest.raises(ValueError, match="verify"):
        Transport(LAPTOP, tls=careless)


# ── What a header may hold, and how long a connection is kept ─────────────────────────────────────────────────────────


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nX-Evil: 1", "a\rb"])
async def test_a_header_cannot_become_two(transport: Transport, upstream: ScriptedUpstream, value: str) -> None:
    request = chat(upstream)
    evil = Outgoing(request.method, request.url, request.deadlines, {"Authorization": value}, BODY)
    fault = await failure(transport, evil)
    assert (fault.reason, fault.is_sent) == ("bad_header", False)
    assert not upstream.invoice().lines


async def test_a_path_cannot_become_a_header(transport: Transport, upstream: ScriptedUpstream) -> None:
    await fetched(transport, post(f"{upstream.base_url}/chat/completions?a= b\r\nX-Evil: 1"))
    assert upstream.invoice().lines[0].header("x-evil") is None


async def test_a_connection_nobody_needs_is_closed_after_a_while(
    upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.providers.transport.IDLE_CONNECTION_S", 0.2)
    transport = Transport(LAPTOP)
    await fetched(transport, chat(upstream))
    assert upstream.invoice().connections_open == 1
    await until_closed(upstream, within_s=5)
    await transport.close()
