"""What Codex and OpenAI's SDK send beyond words, told in chat completions: shells, patches, namespaces, pictures; and told back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.exceptions import InvalidRequest
from tests.dialects.test_messages import PIXEL, chat_chunk
from tests.dialects.test_responses import answer_of, as_chat, told_stream

LOCAL_SHELL = {"type": "local_shell"}
SHELL = {"type": "shell", "environment": {"type": "local"}}
PATCH = {"type": "apply_patch"}
CRM: dict[str, Any] = {
    "type": "namespace",
    "name": "mcp__crm__",
    "description": "Customers.",
    "tools": [
        {"type": "function", "name": "find", "parameters": {"type": "object"}},
        {"type": "custom", "name": "note"},
    ],
}
PICTURE = {"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}"}
TOLD_PICTURE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}", "detail": "auto"}}


def names(*tools: object, **fields: object) -> list[str]:
    return [tool["function"]["name"] for tool in as_chat(tools=list(tools), **fields).get("tools", [])]


def messages_of(*items: object) -> list[Any]:
    told: list[Any] = as_chat(input=list(items))["messages"]
    return told


def called(name: str, arguments: object) -> dict[str, object]:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": name, "arguments": text}}]}


def item_of(name: str, arguments: object, *tools: object) -> Any:
    """The item that a call of this function is told as: whole, and streamed."""
    (whole,) = answer_of(called(name, arguments), "tool_calls", tools=list(tools))["output"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    begun = {"index": 0, "id": "c1", "function": {"name": name, "arguments": ""}}
    events = told_stream(
        chat_chunk({"tool_calls": [begun]}),
        *(chat_chunk({"tool_calls": [{"index": 0, "function": {"arguments": char}}]}) for char in text),
        chat_chunk({}, "tool_calls"),
        tools=list(tools),
    )
    (streamed,) = events[-1]["response"]["output"]
    assert streamed | {"id": ""} == whole | {"id": ""}
    assert [event["item"] for event in events if event["type"] == "response.output_item.done"] == [streamed]
    return whole


# ── Tools ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_tools_that_the_caller_runs_are_told_with_their_schemas() -> None:
    told = as_chat(tools=[LOCAL_SHELL, SHELL, PATCH])["tools"]
    assert [(each["function"]["name"], each["function"]["parameters"]["required"]) for each in told] == [
        ("local_shell", ["command"]),
        ("shell", ["commands"]),
        ("apply_patch", ["type", "path"]),
    ]


def test_tools_of_a_namespace_are_told_under_a_name_that_holds_it() -> None:
    assert names(CRM, {"type": "function", "name": "find"}) == ["mcp__crm__find", "mcp__crm__note", "find"]


def test_the_grammar_of_a_custom_tool_can_be_read_by_the_model() -> None:
    form = {"type": "grammar", "syntax": "lark", "definition": 'start: "*** Begin"'}
    (tool,) = as_chat(tools=[{"type": "custom", "name": "apply_patch", "format": form}])["tools"]
    assert 'start: "*** Begin"' in tool["function"]["parameters"]["properties"]["input"]["description"]


@pytest.mark.parametrize("kind", ["web_search", "web_search_preview", "image_generation", "tool_search", "some_day"])
def test_what_agents_offer_to_every_model_is_left_out(kind: str) -> None:
    assert names({"type": kind}) == []
    assert "tool_choice" not in as_chat(tools=[{"type": kind}], tool_choice="required")


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "file_search", "vector_store_ids": ["v"]},
        {"type": "code_interpreter", "container": {"type": "auto"}},
        {"type": "mcp", "server_label": "x"},
        {"type": "computer_use_preview"},
        {"type": "shell", "environment": {"type": "container_auto"}},
    ],
)
def test_what_an_answer_would_be_made_up_without_is_refused_by_name(tool: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        as_chat(tools=[{"type": "function", "name": "f"}, tool])
    assert caught.value.param == "tools[1]"


@pytest.mark.parametrize(
    ("choice", "name"),
    [
        ({"type": "apply_patch"}, "apply_patch"),
        ({"type": "shell"}, "shell"),
        ({"type": "function", "name": "f"}, "f"),
    ],
)
def test_a_tool_that_has_to_be_called_is_told_by_its_name(choice: dict[str, str], name: str) -> None:
    told = as_chat(tools=[SHELL, PATCH, {"type": "function", "name": "f"}], tool_choice=choice)
    assert told["tool_choice"] == {"type": "function", "function": {"name": name}}


# ── Earlier turns ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_calls_of_the_callers_tools_and_what_they_gave_go_along() -> None:
    exec_ = {"type": "exec", "command": ["ls"], "env": {}, "timeout_ms": 9, "working_directory": None}
    patch = {"type": "delete_file", "path": "a"}
    out = [{"stdout": "a", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}]
    told = messages_of(
        {"role": "user", "content": "Look."},
        {"type": "local_shell_call", "id": "l", "call_id": "c1", "action": exec_, "status": "completed"},
        {"type": "shell_call", "call_id": "c2", "action": {"commands": ["ls"], "timeout_ms": None}},
        {"type": "apply_patch_call", "call_id": "c3", "operation": patch, "status": "completed"},
        {"type": "function_call", "call_id": "c4", "name": "find", "namespace": "mcp__crm__", "arguments": "{}"},
        {"type": "custom_tool_call", "call_id": "c5", "name": "note", "namespace": "mcp__crm__", "input": "x"},
        {"type": "local_shell_call_output", "id": "c1", "output": "a"},
        {"type": "shell_call_output", "call_id": "c2", "output": out},
        {"type": "apply_patch_call_output", "call_id": "c3", "status": "failed", "output": "no such file"},
        {"type": "function_call_output", "call_id": "c4", "output": "Ann"},
        {"type": "custom_tool_call_output", "call_id": "c5", "output": "noted"},
    )
    assert [(call["id"], call["function"]["name"], json.loads(call["function"]["arguments"])) for call in told[1]["tool_calls"]] == [
        ("c1", "local_shell", {"command": ["ls"], "timeout_ms": 9}),
        ("c2", "shell", {"commands": ["ls"]}),
        ("c3", "apply_patch", patch),
        ("c4", "mcp__crm__find", {}),
        ("c5", "mcp__crm__note", {"input": "x"}),
    ]  # fmt: skip
    results = [(message["tool_call_id"], message["content"]) for message in told[2:]]
    assert [id for id, _ in results] == ["c1", "c2", "c3", "c4", "c5"]
    assert (results[0][1], json.loads(results[1][1]), results[2][1]) == ("a", out, "failed: no such file")


def test_pictures_in_results_wait_until_all_results_of_the_turn_stand_together() -> None:
    calls = [{"type": "function_call", "call_id": id, "name": "view", "arguments": "{}"} for id in ("c1", "c2")]
    told = messages_of(
        *calls,
        {"type": "function_call_output", "call_id": "c1", "output": [PICTURE]},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "b"}, PICTURE]},
        {"role": "user", "content": "And?"},
    )
    assert [message["role"] for message in told] == ["assistant", "tool", "tool", "user", "user"]
    assert [message["content"] for message in told[1:]] == [
        "(in the next message)",
        "b",
        [TOLD_PICTURE, TOLD_PICTURE],
        "And?",
    ]
    last = messages_of(calls[0], {"type": "function_call_output", "call_id": "c1", "output": [PICTURE]})
    assert last[-1] == {"role": "user", "content": [TOLD_PICTURE]}


def test_references_are_refused_with_what_helps_but_to_reasoning_which_nobody_misses() -> None:
    assert len(messages_of({"type": "item_reference", "id": "rs_1"}, {"role": "user", "content": "x"})) == 1
    with pytest.raises(InvalidRequest, match="'store': false") as caught:
        messages_of({"role": "user", "content": "x"}, {"type": "item_reference", "id": "msg_1"})
    assert caught.value.param == "input[1]"


@pytest.mark.parametrize("kind", ["mcp_list_tools", "mcp_call", "web_search_call", "tool_search_call", "reasoning"])
def test_what_openais_servers_did_is_left_out(kind: str) -> None:
    assert messages_of({"type": kind, "id": "x"}, {"role": "user", "content": "x"}) == [
        {"role": "user", "content": "x"}
    ]


@pytest.mark.parametrize("kind", ["compaction", "computer_call_output", "some_day"])
def test_what_would_be_missed_is_refused_by_name(kind: str) -> None:
    with pytest.raises(InvalidRequest, match=kind) as caught:
        messages_of({"type": kind, "id": "x"})
    assert caught.value.param == "input[0]"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_image", "file_id": "f"},
        {"type": "input_file", "file_id": "f"},
        {"type": "input_file", "file_url": "https://x/y"},
    ],
)
def test_a_file_that_is_kept_elsewhere_is_refused_by_name(part: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        messages_of({"role": "user", "content": [{"type": "input_text", "text": "x"}, part]})
    assert caught.value.param == "input[0].content[1]"


# ── Answers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_calls_of_openais_own_tools_are_told_back_as_clients_know_them() -> None:
    local = item_of("local_shell", {"command": ["ls", "-l"], "working_directory": "/w"}, LOCAL_SHELL)
    assert (local["type"], local["call_id"], local["status"]) == ("local_shell_call", "c1", "completed")
    assert local["action"] == {"type": "exec", "command": ["ls", "-l"], "env": {}, "working_directory": "/w"}
    shell = item_of("shell", {"commands": ["ls"], "timeout_ms": 5}, SHELL)
    assert (shell["type"], shell["action"]) == (
        "shell_call",
        {"commands": ["ls"], "timeout_ms": 5, "max_output_length": None},
    )
    patch = item_of("apply_patch", {"type": "create_file", "path": "a", "diff": "+x"}, PATCH)
    assert (patch["type"], patch["operation"]) == (
        "apply_patch_call",
        {"type": "create_file", "path": "a", "diff": "+x"},
    )


@pytest.mark.parametrize(
    ("arguments", "command"), [('{"command": "ls | wc"}', ["bash", "-lc", "ls | wc"]), ("{", []), ("[]", []), ("", [])]
)
def test_arguments_that_a_model_got_wrong_do_not_break_the_answer(arguments: str, command: list[str]) -> None:
    assert item_of("local_shell", arguments, LOCAL_SHELL)["action"]["command"] == command


def test_a_call_of_a_namespaced_tool_is_told_back_by_its_own_name() -> None:
    found = item_of("mcp__crm__find", {"name": "Ann"}, CRM)
    assert (found["type"], found["name"], found["namespace"]) == ("function_call", "find", "mcp__crm__")
    noted = item_of("mcp__crm__note", {"input": "x"}, CRM)
    assert (noted["type"], noted["name"], noted["namespace"], noted["input"]) == (
        *("custom_tool_call", "note", "mcp__crm__"),
        "x",
    )


def test_a_function_that_is_only_named_like_a_shell_stays_a_function() -> None:
    assert item_of("shell", {"commands": []}, {"type": "function", "name": "shell"})["type"] == "function_call"


def test_a_refusal_is_told_as_one() -> None:
    (whole,) = answer_of({"role": "assistant", "content": None, "refusal": "No."})["output"]
    assert whole["content"] == [{"type": "refusal", "refusal": "No."}]
    events = told_stream(chat_chunk({"refusal": "N"}), chat_chunk({"refusal": "o."}), chat_chunk({}, "stop"))
    assert events[-1]["response"]["output"][0]["content"] == whole["content"]
    kinds = [event["type"] for event in events]
    assert kinds[2:] == [
        *("response.output_item.added", "response.content_part.added"),
        *("response.refusal.delta", "response.refusal.delta", "response.refusal.done"),
        *("response.content_part.done", "response.output_item.done", "response.completed"),
    ]


def test_calls_that_all_have_the_number_nought_are_told_apart() -> None:
    calls = [
        {"index": 0, "id": id, "function": {"name": name, "arguments": "{}"}} for id, name in (("a", "f"), ("b", "g"))
    ]
    events = told_stream(*(chat_chunk({"tool_calls": [call]}) for call in calls), chat_chunk({}, "tool_calls"))
    assert [(item["call_id"], item["name"]) for item in events[-1]["response"]["output"]] == [("a", "f"), ("b", "g")]


def test_calls_whose_pieces_come_mixed_are_items_one_after_the_other() -> None:
    def said(index: int, arguments: str, **begun: object) -> bytes:
        name = {"name": f"f{index}"} if begun else {}
        return chat_chunk({"tool_calls": [{"index": index, **begun, "function": {**name, "arguments": arguments}}]})

    events = told_stream(
        *(said(0, "", id="c0"), said(1, '{"b":', id="c1"), said(0, '{"a":'), said(1, "2}")),
        chat_chunk({}, "tool_calls"),  # the first never ends: a model's slip
    )
    items = events[-1]["response"]["output"]
    assert [(item["call_id"], item["name"], item["arguments"]) for item in items] == [
        ("c0", "f0", '{"a":'),
        ("c1", "f1", '{"b":2}'),
    ]
    indexes = [event["output_index"] for event in events if "output_index" in event]
    assert indexes == sorted(indexes)
