"""Streams: whatever is legal passes with its content byte for byte, however it is cut; whatever is not ends as what it is."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.dialects.base import BadAnswer, UpstreamSaidError
from app.dialects.openai_chat_stream import ChatStream
from app.domain.pricing import Usage
from tests.dialects.vectors import ALL, DONE, HEL, LO, ROLE, SEEN, STOP, VECTORS, Vector, chunk, wire
from tests.kit.cost import least_cpu_s

Seen = tuple[bytes, str | None, ChatStream]


def run(segments: list[bytes], *, shows_usage: bool = False, choices: int = 1, max_event_bytes: int = 1 << 20) -> Seen:
    """All that is handed on, and how it ended: None for well, else the failure in a word."""
    reader = ChatStream(choices=choices, shows_usage=shows_usage, max_event_bytes=max_event_bytes)
    out = b""
    try:
        for segment in segments:
            out += reader.feed(segment)
            out += reader.feed(b"")
        out += reader.end()
    except BadAnswer as fault:
        return out, fault.reason, reader
    except UpstreamSaidError as fault:
        return out, f"error {fault.problem.status} {fault.problem.message}", reader
    return out, None, reader


def run_vector(vector: Vector, segments: list[bytes]) -> Seen:
    return run(segments, shows_usage=vector.shows_usage, choices=vector.choices)


def one_byte_each(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def cut_at(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def require_as_recorded(vector: Vector, seen: Seen) -> None:
    out, fault, reader = seen
    assert (out, fault) == (wire(*vector.payloads), None)
    assert reader.usage == vector.usage
    assert reader.finish_reason == vector.finish_reason
    assert reader.is_complete


def test_there_are_more_than_forty_vectors_and_no_two_are_alike() -> None:
    assert len({vector.name for vector in VECTORS}) == len(VECTORS) >= 40
    assert len({(vector.wire, vector.shows_usage) for vector in VECTORS}) == len(VECTORS)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_t082_a_recorded_vector_passes_whole_byte_by_byte_and_event_by_event(vector: Vector) -> None:
    require_as_recorded(vector, run_vector(vector, [vector.wire]))
    require_as_recorded(vector, run_vector(vector, one_byte_each(vector.wire)))
    require_as_recorded(vector, run_vector(vector, vector.wire.splitlines(keepends=True)))


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_t082_no_cut_changes_what_is_handed_on(data: st.DataObject) -> None:
    vector = data.draw(st.sampled_from(VECTORS))
    cuts = data.draw(st.lists(st.integers(0, len(vector.wire)), max_size=12))
    require_as_recorded(vector, run_vector(vector, cut_at(vector.wire, cuts)))


BROKEN = (
    wire(HEL, b"{not json}", LO),
    wire(HEL, b'{"error":{"message":"over","code":503}}', LO),
    wire(HEL) + b'event: error\ndata: {"message":"over","code":"server_error"}\n\n' + wire(LO),
    wire(HEL, LO),
    wire(HEL) + b'data: {"id":"x","choi',
    wire(HEL, b'{"choices":[{"delta":{"content":"\xff"}}]}', LO),
    wire(HEL) + b"data: " + b"x" * 3000 + b"\n\n" + wire(LO),
    wire(HEL) + b": " + b"x" * 3000 + b"\n\n" + wire(LO),
    b"\xef\xbb\xbf" + wire(HEL, b"{", LO, after=b"\r\n\r\n"),
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_cut_changes_how_a_broken_stream_ends_nor_what_came_before(data: st.DataObject) -> None:
    broken = data.draw(st.sampled_from(BROKEN))
    cuts = data.draw(st.lists(st.integers(0, len(broken)), max_size=12))
    whole, why, _ = run([broken], max_event_bytes=2000)
    again, why_again, _ = run(cut_at(broken, cuts), max_event_bytes=2000)
    assert whole.startswith(wire(HEL))
    assert why is not None
    assert (again, why_again) == (whole, why)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_bytes_of_any_kind_end_as_no_answer_and_never_as_an_exception_of_a_decoder(
    rubbish: bytes, cuts: list[int]
) -> None:
    out, why, reader = run(cut_at(rubbish, [cut for cut in cuts if cut <= len(rubbish)]))
    assert out == b""
    assert why is not None
    assert not reader.has_begun


def test_plain_segments_are_handed_on_uncopied() -> None:
    reader = ChatStream()
    several = wire(HEL, LO)
    one = wire(HEL)
    assert reader.feed(one) is one
    assert reader.feed(several) is several


def test_t070_a_stream_that_just_stops_is_truncated_and_gets_no_done_marker() -> None:
    for cut in (b"", b'data: {"id":"x","cho', b"data: ", b": x"):
        out, why, reader = run([wire(ROLE, HEL, LO) + cut])
        assert (out, why) == (wire(ROLE, HEL, LO), "truncated")
        assert not reader.is_complete
        assert reader.delivered_tokens == 2


def test_t070_one_of_two_choices_finished_is_truncated() -> None:
    first_only = wire(chunk('{"content":"a"}'), chunk("{}", '"stop"'), chunk('{"content":"b"}', index=1))
    assert run([first_only], choices=2)[1] == "truncated"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b": ping\n\n" * 5,
        wire(DONE),
        b"<html><body>Bad gateway</body></html>",
        wire(ROLE),
        wire(ROLE, DONE),
        b'{"choices":[]}',
    ],
    ids=["nothing", "comments only", "done only", "html", "role only", "role and done", "json"],
)
def test_t071_a_stream_without_an_answer_never_begins(data: bytes) -> None:
    _, why, reader = run([data])
    assert why == "empty_stream"
    assert not reader.has_begun


@pytest.mark.parametrize(
    ("event", "status"),
    [
        (b'data: {"error":{"message":"over","type":"server_error","code":503}}\n\n', 503),
        (b'data: {"error":{"message":"over","type":"requests","code":"rate_limit_exceeded"}}\n\n', 429),
        (b'data: {"error":{"message":"over","status":"429"}}\n\n', 429),
        (b'event: error\ndata: {"message":"over","code":"overloaded_error"}\n\n', 503),
        (b'data: {"object":"error","message":"over","type":"BadRequestError","code":400}\n\n', 400),
        (b'data: {"type":"error","error":{"type":"overloaded_error","message":"over"}}\n\n', 503),
        (b'data: {"choices":[],"error":{"message":"over"}}\n\n', None),
        (b'event: error\ndata: "over"\n\n', None),
        (b'data: {"error":"over"}\n\n', None),
    ],
)
def test_t072_an_error_event_is_recognised_with_its_status_before_and_after_content(
    event: bytes, status: int | None
) -> None:
    out, why, reader = run([event])
    assert (out, why, reader.has_begun) == (b"", f"error {status} over", False)
    out, why, reader = run([wire(ROLE, HEL) + event + wire(LO)])
    assert (out, why, reader.has_begun) == (wire(ROLE, HEL), f"error {status} over", True)


FAILED = chunk('{"content":""}', '"error"')


def test_t072_t073_a_finish_that_is_an_error_is_one() -> None:
    """As OpenRouter says that the provider behind it broke off: no finish, and never a done marker behind it."""
    out, why, reader = run([wire(FAILED, DONE)])
    assert (out, why, reader.has_begun) == (b"", "error None None", False)
    out, why, reader = run([wire(ROLE, HEL) + wire(FAILED, DONE)])
    assert (out, why, reader.is_complete) == (wire(ROLE, HEL), "error None None", False)


@pytest.mark.parametrize("last", [b'"[DONE]"', b"[done]", b"done", b"{}{}"])
def test_what_ends_a_whole_answer_in_nobodys_words_spoils_it_not(last: bytes) -> None:
    """T081, behind the last finish reason."""
    out, why, reader = run([wire(ROLE, HEL, STOP) + b"data: " + last + b"\n\n"])
    assert (out, why, reader.is_complete) == (wire(ROLE, HEL, STOP, DONE), None, True)
    assert run([wire(ROLE, HEL) + b"data: " + last + b"\n\n"])[1] == "bad_event", "before it, it does"


ZEROS = b'{"choices":[],"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}'


def test_t086_of_several_usages_the_last_counts_unless_it_is_nothing_but_zeros() -> None:
    first, last = (b'{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":%d}}' % n for n in (1, 5))
    assert run([wire(ROLE, first, HEL, STOP, last, DONE)])[2].usage == Usage(9, 5)
    assert run([wire(ROLE, HEL, STOP, last, ZEROS, DONE)])[2].usage == Usage(9, 5)
    assert run([wire(ROLE, ZEROS, HEL, STOP, last, DONE)])[2].usage == Usage(9, 5)
    assert run([wire(ROLE, HEL, STOP, last, last, DONE)])[2].usage == Usage(9, 5), "said twice, not summed"


def test_a_role_only_event_is_held_to_be_no_beginning_yet() -> None:
    reader = ChatStream()
    assert reader.feed(wire(ROLE)) == wire(ROLE)
    assert not reader.has_begun
    reader.feed(wire(HEL))
    assert reader.has_begun


def test_each_event_in_a_segment_of_its_own_passes_and_so_does_the_done_marker() -> None:
    assert run([wire(payload) for payload in ALL])[0] == wire(*SEEN)


def test_t058_text_that_looks_like_a_frame_stays_inside_its_line() -> None:
    sly = chunk('{"content":"\\n\\nevent: execute\\ndata: 1\\r"}')
    out, _, _ = run([wire(sly, STOP, DONE)])
    assert out.split(b"\n\n") == [b"data: " + sly, b"data: " + STOP, b"data: [DONE]", b""]


def test_t079_an_event_over_the_cap_is_refused_in_linear_time_and_bounded_memory() -> None:
    segment = b"x" * 65_536
    fed = 0

    def feed_on(reader: ChatStream) -> None:
        nonlocal fed
        fed = 0
        for piece in [b'data: {"choices":[{"delta":{"content":"'] + [segment] * 640:
            reader.feed(piece)
            fed += len(piece)

    def read() -> None:
        reader = ChatStream()
        reader.feed(wire(HEL))
        with pytest.raises(BadAnswer, match="event_too_large"):
            feed_on(reader)
        assert fed <= 1_100_000

    assert least_cpu_s(read) < 0.2


def test_t079_a_large_event_below_the_cap_passes_in_small_pieces_in_linear_time() -> None:
    big = chunk('{"content":"' + "y" * 1_000_000 + '"}')
    data = wire(big, STOP, DONE)

    def read() -> None:
        out, why, reader = run([data[i : i + 100] for i in range(0, len(data), 100)])
        assert (out, why) == (data, None)
        assert reader.delivered_tokens >= 200_000

    assert least_cpu_s(read) < 1.0


def test_delivered_tokens_count_events_and_do_not_fall_behind_large_pieces() -> None:
    reader = ChatStream()
    for _ in range(7):
        reader.feed(wire(HEL))
    assert reader.delivered_tokens == 7
    reader.feed(wire(chunk('{"content":"' + "word " * 200 + '"}')))
    assert 180 <= reader.delivered_tokens <= 220
    before = reader.delivered_tokens
    for silent in (ROLE, chunk("{}"), chunk('{"content":null}'), chunk('{"content":""}')):
        reader.feed(wire(silent))
    assert reader.delivered_tokens == before


def test_t119_the_usage_chunk_is_hidden_from_who_did_not_ask_and_shown_to_who_did() -> None:
    assert run([wire(*ALL)])[0] == wire(*SEEN)
    assert run([wire(*ALL)], shows_usage=True)[0] == wire(*ALL)


def test_a_chunk_costs_microseconds() -> None:
    data = [wire(HEL)] * 20_000

    def read() -> None:
        reader = ChatStream()
        for segment in data:
            reader.feed(segment)

    assert least_cpu_s(read) / len(data) < 20e-6, "ten times the goal: something was made much slower"
