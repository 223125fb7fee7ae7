"""One request on bare ASGI: headers read once, credentials never chosen from, bodies capped, errors with their headers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from app.dialects.openai_chat import OpenAIChat
from app.domain.identity import AppCredential
from app.exceptions import (
    AmbiguousCredentials,
    BudgetExceeded,
    CallerError,
    DependencyUnavailable,
    GatewayError,
    HeadersTooLarge,
    InvalidApiKey,
    InvalidRequest,
    MethodNotAllowed,
    NoHealthyEndpoint,
    PayloadTooLarge,
    RateLimited,
    RequestTimeout,
    UnsupportedMediaType,
    UpstreamError,
)
from app.middleware.exchange import MAX_HEADER_BYTES, MAX_HEADERS, PART_BYTES, Exchange, error_headers

Headers = list[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")
ERROR_BODY: Callable[[GatewayError, str], bytes] = OpenAIChat().error_body


class Wire:
    """A fake server: what it will hand in, and what it was handed."""

    def __init__(self, *parts: Message) -> None:
        self.incoming = list(parts)
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        if self.incoming:
            return self.incoming.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    def header(self, name: bytes) -> bytes | None:
        found = [value for key, value in self.sent[0]["headers"] if key == name]
        assert len(found) < 2
        return found[0] if found else None


def part(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def exchange(
    *headers: tuple[bytes, bytes], wire: Wire | None = None, method: str = "POST", argument: str = ""
) -> Exchange:
    wire = wire or Wire()
    scope = {"type": "http", "method": method, "path": "/x", "headers": list(headers), "client": ("10.0.0.9", 5)}
    scope["query_string"] = b""
    return Exchange(scope, wire.receive, wire.send, "018f-id", argument)


def read(*headers: tuple[bytes, bytes]) -> Exchange:
    made = exchange(*headers)
    made.read_headers()
    return made


async def body_of(headers: Headers, *parts: Message, max_bytes: int = 100, timeout_s: float = 5.0) -> bytes:
    made = exchange(*headers, wire=Wire(*parts))
    made.read_headers()
    return await made.read_body(max_bytes=max_bytes, timeout_s=timeout_s)


# Headers and credentials.


@pytest.mark.parametrize(
    "header",
    [
        (b"authorization", b"Bearer sk-1"),
        (b"authorization", b"bearer sk-1"),
        (b"authorization", b"BEARER sk-1"),
        (b"x-api-key", b"sk-1"),
        (b"api-key", b"sk-1"),
    ],
)
def test_a_key_is_found_in_each_of_its_carriers(header: tuple[bytes, bytes]) -> None:
    assert read(header).credential() == "sk-1"


def test_one_key_in_several_carriers_is_one_key() -> None:
    assert read((b"authorization", b"Bearer k"), (b"x-api-key", b"k"), (b"api-key", b"k")).credential() == "k"


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"Bearer one"), (b"x-api-key", b"two")],
        [(b"x-api-key", b"one"), (b"api-key", b"two")],
        [(b"authorization", b"Bearer one"), (b"x-gateway-secret", b"s")],
        [(b"x-api-key", b"one"), (b"x-app-id", b"crm")],
        [(b"api-key", b"one"), (b"x-user-oid", b"alice")],
        [(b"authorization", b"Basic dXNlcjpwYXNz"), (b"x-app-id", b"crm")],
        [(b"authorization", b""), (b"x-user-oid", b"")],
    ],
)
def test_two_credentials_are_refused_not_chosen_from(headers: Headers) -> None:
    with pytest.raises(AmbiguousCredentials):
        read(*headers).credential()


@pytest.mark.parametrize(
    "name", [b"authorization", b"x-api-key", b"api-key", b"x-gateway-secret", b"x-app-id", b"x-user-oid"]
)
def test_a_credential_sent_twice_is_refused_even_if_it_is_the_same(name: bytes) -> None:
    with pytest.raises(AmbiguousCredentials):
        read((name, b"Bearer k"), (name, b"Bearer k"))


@pytest.mark.parametrize("name", [b"content-length", b"content-type", b"content-encoding", b"x-request-id"])
def test_any_other_header_that_matters_is_refused_when_sent_twice(name: bytes) -> None:
    with pytest.raises(InvalidRequest, match=name.decode()):
        read((name, b"1"), (name, b"2"))


def test_headers_that_do_not_matter_may_come_as_often_as_they_like() -> None:
    assert read((b"accept", b"a"), (b"accept", b"b"), (b"x-api-key", b"k")).credential() == "k"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"Basic dXNlcjpwYXNz")],
        [(b"authorization", b"")],
        [(b"authorization", b"sk-1")],
        [(b"authorization", b"Basic x"), (b"x-api-key", b"sk-1")],
    ],
)
def test_without_a_key_there_is_no_credential(headers: Headers) -> None:
    with pytest.raises(InvalidApiKey):
        read(*headers).credential()


def test_what_an_app_shows_is_read_as_it_is() -> None:
    shown = read((b"x-gateway-secret", b"s"), (b"x-app-id", b"crm"), (b"x-user-oid", b"alice"))
    assert shown.credential() == AppCredential("s", "crm", "alice")
    assert read((b"x-app-id", b"crm")).credential() == AppCredential("", "crm", "")
    assert read((b"x-app-id", b"crm"), (b"x_user_oid", b"mallory")).credential() == AppCredential("", "crm", "")


@pytest.mark.parametrize("name", [b"x-gateway-secret", b"x-app-id", b"x-user-oid"])
def test_an_apps_header_that_is_far_too_long_is_refused_by_name(name: bytes) -> None:
    """T048: a 10 KB OID is a 400."""
    with pytest.raises(InvalidRequest, match=name.decode()):
        read((name, b"x" * 10_000)).credential()


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_no_header_value_breaks_the_reading_of_a_key(authorization: bytes, key: bytes) -> None:
    with contextlib.suppress(InvalidApiKey, AmbiguousCredentials):
        read((b"authorization", authorization), (b"x-api-key", key)).credential()


def test_too_many_headers_and_too_long_ones_are_refused() -> None:
    with pytest.raises(HeadersTooLarge):
        read(*[(b"x-%d" % n, b"") for n in range(MAX_HEADERS + 1)])
    with pytest.raises(HeadersTooLarge):
        read((b"authorization", b"x" * (MAX_HEADER_BYTES + 1)))


@pytest.mark.parametrize(
    ("own", "kept"), [(b"trace-1", "trace-1"), (b"a b", None), (b"x" * 65, None), (b"", None), (b"\xff", None)]
)
def test_a_well_formed_request_id_of_the_caller_is_kept_beside_ours(own: bytes, kept: str | None) -> None:
    made = read((b"x-request-id", own))

    assert (made.client_request_id, made.request_id) == (kept, "018f-id")


def test_the_argument_of_a_path_is_what_the_server_decoded_and_not_decoded_again() -> None:
    assert exchange(argument="meta/llama 3").argument == "meta/llama 3"
    assert exchange(argument="a%2Fb").argument == "a%2Fb"


def test_the_callers_address_is_the_connections_or_none() -> None:
    assert exchange().address == "10.0.0.9"
    assert Exchange({"method": "GET", "path": "/", "client": None}, Wire().receive, Wire().send, "i").address is None


# Bodies.


@pytest.mark.parametrize("is_all_here", [True, False])
async def test_only_a_body_that_is_still_under_way_is_timed(is_all_here: bool) -> None:
    class Server(Wire):
        """As uvicorn's: says whether more of the body is to come."""

        more_body = not is_all_here

        async def receive(self) -> Message:
            await asyncio.sleep(0.01)
            return await super().receive()

    made = exchange(JSON, wire=Server(part(b"{}")))
    made.read_headers()

    if is_all_here:
        assert await made.read_body(max_bytes=100, timeout_s=0.0) == b"{}"
    else:
        with pytest.raises(RequestTimeout):
            await made.read_body(max_bytes=100, timeout_s=0.0)


async def test_a_body_is_read_whole_however_it_is_cut() -> None:
    assert await body_of([JSON], part(b'{"a":', more=True), part(b"", more=True), part(b"1}")) == b'{"a":1}'
    assert await body_of([JSON], part(b"{}")) == b"{}"
    assert await body_of([JSON], {"type": "http.request"}) == b""


async def test_a_body_of_exactly_the_limit_is_taken_and_one_byte_more_is_not() -> None:
    assert await body_of([JSON], part(b"x" * 60, more=True), part(b"x" * 40)) == b"x" * 100
    with pytest.raises(PayloadTooLarge):
        await body_of([JSON], part(b"x" * 60, more=True), part(b"x" * 41))


async def test_a_body_that_says_it_is_too_large_is_refused_unread() -> None:
    wire = Wire(part(b"{}"))
    made = exchange(JSON, (b"content-length", b"101"), wire=wire)
    made.read_headers()
    with pytest.raises(PayloadTooLarge):
        await made.read_body(max_bytes=100, timeout_s=5)

    assert len(wire.incoming) == 1


@pytest.mark.parametrize("length", [b"-1", b"+1", b"1e3", b"abc", b"", b"1,1", b"\xb2"])
async def test_a_length_that_is_no_number_is_refused(length: bytes) -> None:
    with pytest.raises(InvalidRequest, match="Content-Length"):
        await body_of([JSON, (b"content-length", length)], part(b"{}"))


async def test_a_length_of_thousands_of_digits_is_too_large_and_nothing_worse() -> None:
    with pytest.raises(PayloadTooLarge):
        await body_of([JSON, (b"content-length", b"9" * 10_000)], part(b"{}"))
    assert await body_of([JSON, (b"content-length", b"0" * 30 + b"2")], part(b"{}")) == b"{}"


@pytest.mark.parametrize(
    "media",
    [
        b"application/json",
        b"Application/JSON",
        b"application/json; charset=utf-8",
        b'application/json;charset="UTF-8"',
        b"application/json; charset=utf-8; profile=x",
        b"application/json ; profile=x",
        b"text/json",
    ],
)
async def test_json_is_known_by_its_media_type(media: bytes) -> None:
    assert await body_of([(b"content-type", media)], part(b"{}")) == b"{}"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"content-type", b"")],
        [(b"content-type", b"text/plain")],
        [(b"content-type", b"application/x-www-form-urlencoded")],
        [(b"content-type", b"application/jsonx")],
        [(b"content-type", b"application/json; charset=latin-1")],
        [(b"content-type", b"application/json; profile=x; charset=utf-16")],
        [JSON, (b"content-encoding", b"gzip")],
        [JSON, (b"content-encoding", b"identity, gzip")],
    ],
)
async def test_anything_but_json_in_utf8_is_refused_unread(headers: Headers) -> None:
    with pytest.raises(UnsupportedMediaType):
        await body_of(headers, part(b"{}"))


async def test_a_body_that_does_not_come_in_time_is_refused() -> None:
    with pytest.raises(RequestTimeout):
        await body_of([JSON], part(b"{", more=True), timeout_s=0.001)


async def test_a_client_that_leaves_before_its_body_is_whole_is_not_answered_from_half_of_it() -> None:
    with pytest.raises(RequestTimeout):
        await body_of([JSON], part(b"{", more=True), {"type": "http.disconnect"})


# Answers.


async def test_an_answer_carries_the_request_id_twice_and_its_length() -> None:
    wire = Wire()
    await exchange(wire=wire).send(200, [JSON], b"{}")

    assert wire.sent[0]["status"] == 200
    assert [wire.header(name) for name in (b"x-request-id", b"request-id")] == [b"018f-id"] * 2
    assert (wire.header(b"content-length"), wire.body) == (b"2", b"{}")
    assert wire.sent[-1]["more_body"] is False


async def test_head_is_answered_with_headers_only() -> None:
    wire = Wire()
    await exchange(wire=wire, method="HEAD").send(200, [JSON], b"{}")

    assert (wire.header(b"content-length"), wire.body) == (b"2", b"")


async def test_an_error_is_answered_in_the_routes_shape() -> None:
    wire = Wire()
    await exchange(wire=wire).send_error(InvalidRequest("no", param="model"), ERROR_BODY)

    assert wire.sent[0]["status"] == 400
    assert b'"request_id":"018f-id"' in wire.body
    assert wire.header(b"x-should-retry") == b"false"


async def test_an_answer_that_has_begun_is_not_followed_by_an_error() -> None:
    wire = Wire()
    made = exchange(wire=wire)
    await made.start(200, [])

    await made.send_error(UpstreamError(), ERROR_BODY)

    assert len(wire.sent) == 1


async def test_silence_is_noticed_only_once_an_answer_is_under_way() -> None:
    made = exchange()
    assert not made.has_been_silent()
    await made.start(200, [])
    assert made.has_been_silent()
    await made.send_part(b"x")
    assert not made.has_been_silent()

    assert made.has_been_silent()


@pytest.mark.parametrize(
    ("seconds", "retry_after", "retry_after_ms"),
    [(0.0, b"1", b"1"), (0.0004, b"1", b"1"), (0.25, b"1", b"250"), (1.0, b"1", b"1000"), (1.001, b"2", b"1001")],
)
def test_when_to_come_back_is_never_told_too_early(seconds: float, retry_after: bytes, retry_after_ms: bytes) -> None:
    headers = dict(error_headers(DependencyUnavailable("x", retry_after_s=seconds)))

    assert (headers[b"retry-after"], headers[b"retry-after-ms"]) == (retry_after, retry_after_ms)


def test_a_refusal_that_a_repeat_cannot_cure_says_so_and_one_that_it_can_does_not() -> None:
    limited = RateLimited(scope="key", kind="requests", limit=1, window_s=60, retry_after_s=3)
    spent = BudgetExceeded(scope="key", period="daily", resets_at=None)

    def says(error: GatewayError) -> bytes | None:
        return dict(error_headers(error)).get(b"x-should-retry")

    assert [says(error) for error in (CallerError("no"), spent, UpstreamError())] == [b"false"] * 3
    assert [says(error) for error in (limited, NoHealthyEndpoint(), DependencyUnavailable("x"))] == [None] * 3
    assert b"retry-after" in dict(error_headers(NoHealthyEndpoint()))


def test_a_wrong_method_is_told_the_right_ones() -> None:
    assert dict(error_headers(MethodNotAllowed("GET, HEAD")))[b"allow"] == b"GET, HEAD"


# ── Clients who take nothing ──────────────────────────────────────────────────────────────────────────────────────────


class Flow:
    write_paused = False


class Stuck(Wire):
    """A server whose client takes one part and then nothing, as uvicorn shows it: its `send` waits."""

    def __init__(self, *, takes: int) -> None:
        super().__init__()
        self.takes = takes
        self.flow = Flow()
        self.transport = self
        self.is_aborted = False

    async def send(self, message: Message) -> None:
        if len(self.sent) > self.takes:
            self.flow.write_paused = True
            await asyncio.Event().wait()
        self.sent.append(message)

    def abort(self) -> None:
        self.is_aborted = True


def stuck(server: Stuck) -> Exchange:
    scope: dict[str, object] = {"type": "http", "method": "POST", "path": "/x", "headers": [], "client": None}
    return Exchange(scope, server.receive, server.send, "018f-id", write_stall_s=0.05)


async def test_t083_a_large_answer_goes_out_in_parts_and_one_who_takes_none_is_cut_off() -> None:
    server = Stuck(takes=2)
    async with asyncio.timeout(5):
        await stuck(server).send(200, [], b"x" * PART_BYTES * 8)
    assert server.is_aborted
    assert len(server.body) == 2 * PART_BYTES

    patient = Stuck(takes=99)
    await stuck(patient).send(200, [], b"x" * (PART_BYTES + 1))
    assert (len(patient.body), patient.is_aborted) == (PART_BYTES + 1, False)


async def test_t083_the_last_bytes_are_not_waited_for_without_end() -> None:
    server = Stuck(takes=0)
    exchange = stuck(server)
    await exchange.start(200, [])
    server.flow.write_paused = True
    async with asyncio.timeout(5):
        await exchange.send_last(b"data: [DONE]\n\n")
    assert server.is_aborted
