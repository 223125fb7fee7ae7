"""Calls of tools whose deltas come mixed are told one after the other, and whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.dialects.tool_turns import ToolDelta, ToolTurns

INPUTS = st.dictionaries(
    st.text(max_size=4), st.one_of(st.integers(), st.text(max_size=6), st.lists(st.booleans(), max_size=2)), max_size=3
)


def called(index: int, arguments: object, *, id: str | None = None, name: str | None = None) -> dict[str, Any]:
    return {"index": index, "id": id, "function": {"name": name, "arguments": arguments}}


def begun(index: int, arguments: str = "") -> dict[str, Any]:
    return called(index, arguments, id=f"t{index}", name=f"f{index}")


def told(turns: ToolTurns, *calls: dict[str, Any]) -> list[tuple[int, str]]:
    return [(said.number, said.arguments) for call in calls for said in turns.take(call)]


@given(st.lists(INPUTS, min_size=1, max_size=4), st.data())
def test_however_they_are_mixed_each_is_told_whole_and_in_one_piece(
    inputs: list[dict[str, Any]], data: st.DataObject
) -> None:
    waiting = {index: [json.dumps(value)] for index, value in enumerate(inputs)}
    for pieces in waiting.values():
        for _ in range(data.draw(st.integers(0, 3))):
            whole = pieces.pop()
            at = data.draw(st.integers(0, len(whole)))
            pieces += [whole[:at], whole[at:]]
    turns, said, started = ToolTurns(), list[ToolDelta](), set[int]()
    while waiting:
        index = data.draw(st.sampled_from(sorted(waiting)))
        piece = waiting[index].pop(0)
        said += turns.take(called(index, piece) if index in started else begun(index, piece))
        started.add(index)
        if not waiting[index]:
            del waiting[index]
    said += turns.rest()

    order = [number for at, (number, *_) in enumerate(said) if not at or said[at - 1].number != number]
    assert order == sorted(set(order)), "a call was told in two pieces"
    by_name = {
        delta.name: "".join(other.arguments for other in said if other.number == delta.number)
        for delta in said
        if delta.name
    }
    assert {name: json.loads(text) for name, text in by_name.items()} == {
        f"f{index}": value for index, value in enumerate(inputs)
    }


def test_calls_that_come_in_order_are_told_as_they_come() -> None:
    turns = ToolTurns()
    assert told(turns, begun(0)) == [(1, "")]
    assert told(turns, called(0, '{"a":')) == [(1, '{"a":')]
    assert told(turns, called(0, "1}")) == [(1, "1}")]
    assert told(turns, begun(1, "{")) == [(2, "{")]
    assert told(turns, called(1, "}")) == [(2, "}")]


def test_a_call_that_is_not_whole_keeps_its_turn_and_the_next_follows_at_once() -> None:
    turns = ToolTurns()
    assert told(turns, begun(0), begun(1)) == [(1, "")]
    assert told(turns, called(1, '{"b":2}'), called(0, '{"a":{}')) == [(1, '{"a":{}')]
    assert told(turns, called(0, "}")) == [(1, "}"), (2, ""), (2, '{"b":2}')]


def test_a_model_that_never_finishes_its_json_is_told_all_the_same() -> None:
    turns = ToolTurns()
    assert told(turns, begun(0, '{"a"'), begun(1, "{}")) == [(1, '{"a"')]
    assert [(said.number, said.arguments) for said in turns.rest()] == [(2, "{}")]
    assert told(turns, called(0, "}"), called(1, " ")) == []


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"function": None},
        {"index": [0], "function": "f"},
        {"id": 7, "function": {"name": ["f"], "arguments": None}},
    ],
)
def test_odd_deltas_are_calls_without_a_name(call: dict[str, Any]) -> None:
    assert list(ToolTurns().take(call)) == [ToolDelta(1, "", "", "")]
