"""Forms with files: read in place and in linear time, and refused where two readers could disagree."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.dialects.multipart import MAX_PARTS, boundary_in, form_type, read_form, replaced
from app.exceptions import InvalidRequest
from tests.kit.cost import least_cpu_s

BOUNDARY = b"xYz"


def part(content: bytes, disposition: bytes = b'form-data; name="a"', more: bytes = b"") -> bytes:
    return b"--xYz\r\nContent-Disposition: " + disposition + more + b"\r\n\r\n" + content + b"\r\n"


END = b"--xYz--\r\n"


@given(st.lists(st.binary(max_size=200).filter(lambda content: b"--xYz" not in content), min_size=1, max_size=8))
def test_every_part_is_found_where_it_lies(contents: list[bytes]) -> None:
    body = b"".join(map(part, contents)) + END
    found = read_form(body, BOUNDARY)
    assert [body[each.start : each.end] for each in found] == contents


def test_names_and_files_are_told_apart_and_one_part_can_be_replaced() -> None:
    sound = part(b"\x00\xff", b'form-data; name="file"; filename="../../etc/passwd"', b"\r\nContent-Type: audio/wav")
    body = part(b"old", b"form-data; name=model") + sound + END
    model, file = read_form(body, BOUNDARY)
    assert [(each.name, each.is_file, each.size) for each in (model, file)] == [("model", False, 3), ("file", True, 2)]
    again = read_form(replaced(body, model, b"a longer name"), BOUNDARY)
    assert [each.size for each in again] == [13, 2]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--xYz",
        b"--xYz--x",
        b"no boundary",
        part(b"x"),
        part(b"x")[:-2] + END,
        b"--xYz\r\n\r\nx\r\n" + END,
        b"--xYz\r\nContent-Type: text/plain\r\n\r\nx\r\n" + END,
        part(b"x", b"form-data") + END,
        part(b"x", b'form-data; name=""') + END,
        part(b"x", b'form-data; name="a"; name="b"') + END,
        part(b"x", b'form-data; name="a\x00"') + END,
        part(b"x", b'form-data; name="' + b"n" * 200 + b'"') + END,
        part(b"x", b'form-data; name="a"', b"\r\nContent-Disposition: form-data; name=b") + END,
        part(b"x", b'attachment; name="a"') + END,
        part(b"x", b'form-data; name="a"', b"\r\nX: " + b"y" * 5000) + END,
        part(b"x") * (MAX_PARTS + 1) + END,
    ],
    ids=range(17),
)
def test_t055_what_could_be_read_in_two_ways_is_refused(body: bytes) -> None:
    if body == b"--xYz--x":
        assert read_form(body, BOUNDARY) == [], "what follows the end is nobody's"
        return
    with pytest.raises(InvalidRequest):
        read_form(body, BOUNDARY)


@pytest.mark.parametrize(
    "body",
    [
        part(b"x") + b"--xYz--" + b"-" * 10_000_000,
        b"--xYz\r\n" + b"-" * 10_000_000,
        part(b"\r\n--xY" * 2_000_000) + END,
        part(b"", b"form-data" + b'; a="' * 800) + END,
        part(b"x") * 100_000,
    ],
    ids=range(5),
)
def test_t055_no_body_takes_long(body: bytes) -> None:
    def read() -> None:
        with contextlib.suppress(InvalidRequest):
            read_form(body, BOUNDARY)

    assert least_cpu_s(read) < 0.5


def test_a_boundary_may_be_quoted_and_is_told_in_words_of_ours() -> None:
    assert boundary_in(b'multipart/form-data; charset=utf-8; boundary="a b"') == b"a b"
    assert form_type(b"a b") == 'multipart/form-data; boundary="a b"'
    assert form_type(boundary_in(b"multipart/form-data; boundary=----x7")) == "multipart/form-data; boundary=----x7"
    for wrong in (
        b"multipart/form-data",
        b"multipart/form-data; boundary=",
        b"multipart/form-data; boundary=" + b"x" * 71,
    ):
        with pytest.raises(InvalidRequest):
            boundary_in(wrong)
