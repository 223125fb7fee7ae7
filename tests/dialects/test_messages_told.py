"""What Claude Code and Anthropic's SDK send beyond words, told in chat completions: tools, thinking, documents, results; and told back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from app.dialects.messages import Messages, MessagesAsChat
from app.dialects.messages_stream import MessagesStream
from app.domain.catalog import ProviderKind
from app.exceptions import InvalidRequest
from tests.dialects.test_messages import PIXEL, as_chat, body, chat_chunk, events_in, read_all

MESSAGES = Messages()
PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
TOLD_PICTURE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
SIGNED = {"type": "thinking", "thinking": "hm", "signature": "c2ln"}
REDACTED = {"type": "redacted_thinking", "data": "c2VjcmV0"}
CALLED = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}


def messages_of(*messages: dict[str, object]) -> list[Any]:
    told: list[Any] = as_chat(messages=list(messages))["messages"]
    return told


def told_by(*content: object) -> Any:
    (message,) = messages_of({"role": "user", "content": list(content)})
    return message["content"]


def result(content: object = None, **more: object) -> list[Any]:
    block = {"type": "tool_result", "tool_use_id": "t1", **({} if content is None else {"content": content}), **more}
    return messages_of({"role": "user", "content": [block]})


def functions(*tools: Mapping[str, object]) -> list[Any]:
    return [tool["function"] for tool in as_chat(tools=list(tools)).get("tools", [])]


# ── Tools ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["bash_20241022", "bash_20250124"])
def test_bash_is_told_with_the_schema_that_anthropics_models_know(kind: str) -> None:
    (bash,) = functions({"type": kind, "name": "bash", "cache_control": {"type": "ephemeral"}})
    assert bash["name"] == "bash"
    assert {name: field["type"] for name, field in bash["parameters"]["properties"].items()} == {
        "command": "string",
        "restart": "boolean",
    }
    assert bash["parameters"]["required"] == []


@pytest.mark.parametrize(
    ("kind", "name", "commands", "inserted"),
    [
        ("text_editor_20241022", "str_replace_editor", 5, "new_str"),
        ("text_editor_20250124", "str_replace_editor", 5, "new_str"),
        ("text_editor_20250429", "str_replace_based_edit_tool", 4, "insert_text"),
        ("text_editor_20250728", "str_replace_based_edit_tool", 4, "insert_text"),
    ],
)
def test_each_text_editor_has_the_commands_of_its_date(kind: str, name: str, commands: int, inserted: str) -> None:
    (editor,) = functions({"type": kind, "name": name, "max_characters": 5000})
    fields = editor["parameters"]["properties"]
    assert (editor["name"], len(fields["command"]["enum"])) == (name, commands)
    assert ("undo_edit" in fields["command"]["enum"]) == (commands == 5)
    assert {"path", "file_text", "old_str", "new_str", "insert_line", "view_range", inserted} == fields.keys() - {
        "command"
    }
    assert editor["parameters"]["required"] == ["command", "path"]


def test_memory_and_the_computer_are_told_too() -> None:
    size = {"display_width_px": 1024, "display_height_px": 768}
    memory, first, second = functions(
        {"type": "memory_20250818", "name": "memory"},
        {"type": "computer_20241022", "name": "computer", **size},
        {"type": "computer_20251124", "name": "computer", "enable_zoom": True, **size},
    )
    assert "rename" in memory["parameters"]["properties"]["command"]["enum"]
    assert "scroll" not in first["parameters"]["properties"]["action"]["enum"]
    assert {"scroll", "zoom"} <= set(second["parameters"]["properties"]["action"]["enum"])
    assert "1024 by 768" in first["description"]


def test_own_tools_go_along_and_the_search_among_them_is_not_needed() -> None:
    own = {"name": "f", "type": "custom", "input_schema": {"type": "object"}, "defer_loading": True}
    search = {"type": "tool_search_tool_regex_20251119", "name": "tool_search_tool_regex"}
    assert functions(search, own) == [{"name": "f", "parameters": {"type": "object"}}]
    assert functions(search) == []


@pytest.mark.parametrize(
    "kind",
    [
        *("web_search_20250305", "web_search_20260209", "web_fetch_20250910", "code_execution_20250825"),
        *("mcp_toolset", "advisor_20260301", "browser_toolset_20260801", "computer_toolset_20260801", "x"),
    ],
)
def test_a_tool_that_only_anthropic_can_run_is_refused_by_its_name(kind: str) -> None:
    with pytest.raises(InvalidRequest, match=kind) as caught:
        as_chat(tools=[{"name": "f", "input_schema": {}}, {"type": kind, "name": "n"}])
    assert caught.value.param == "tools[1]"


def test_servers_that_anthropic_would_call_are_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        as_chat(mcp_servers=[{"type": "url", "url": "https://x", "name": "x"}])
    assert caught.value.param == "mcp_servers"
    as_chat(mcp_servers=[])


# ── Earlier turns ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_thinking_of_earlier_turns_is_left_out_wherever_it_stands() -> None:
    told = messages_of(
        {"role": "user", "content": [SIGNED, {"type": "text", "text": "Go on."}]},
        {"role": "assistant", "content": [SIGNED, REDACTED, {"type": "text", "text": "I look."}, CALLED]},
        {"role": "assistant", "content": [SIGNED]},
    )
    assert told[0] == {"role": "user", "content": "Go on."}
    assert told[1]["content"] == "I look."
    assert told[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
    assert told[2] == {"role": "assistant", "content": ""}


def test_a_provider_that_may_be_claudes_gets_signed_thinking_back_and_no_other() -> None:
    unsigned = {"type": "thinking", "thinking": "mine", "signature": ""}
    turn = {"role": "assistant", "content": [unsigned, SIGNED, REDACTED, CALLED]}
    sent = body(messages=[{"role": "user", "content": "x"}, turn], thinking={"type": "enabled", "budget_tokens": 1024})
    _, call = MESSAGES.towards(ProviderKind.LITELLM, MESSAGES.read(sent))
    assert json.loads(bytes(call.fields["messages"]))[1]["thinking_blocks"] == [SIGNED, REDACTED]
    assert json.loads(bytes(call.fields["thinking"])) == {"type": "enabled", "budget_tokens": 1024}


def test_marks_for_a_cache_are_kept_for_a_provider_that_may_be_claudes_and_for_no_other() -> None:
    mark = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    sent = body(
        system=[{"type": "text", "text": "a"}, {"type": "text", "text": "b", **mark}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "x", **mark}]},
            {"role": "assistant", "content": [CALLED]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "y", **mark}]},
        ],
    )
    told = {}
    for kind in (ProviderKind.LITELLM, ProviderKind.OPENAI):
        _, call = MESSAGES.towards(kind, MESSAGES.read(sent))
        told[kind] = json.loads(bytes(call.fields["messages"]))
    marked = told[ProviderKind.LITELLM]
    assert marked[0]["content"] == [{"type": "text", "text": "a"}, {"type": "text", "text": "b", **mark}]
    assert marked[1]["content"] == [{"type": "text", "text": "x", **mark}]
    assert marked[3] == {"role": "tool", "tool_call_id": "t1", "content": "y", **mark}
    assert "cache_control" not in json.dumps(told[ProviderKind.OPENAI])
    assert [message["content"] for message in told[ProviderKind.OPENAI]] == ["a\n\nb", "x", None, "y"]


def test_what_ran_at_anthropics_stays_behind_and_what_was_said_of_it_goes_along() -> None:
    (told,) = messages_of(
        {
            "role": "assistant",
            "content": [
                {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "x"}},
                {"type": "web_search_tool_result", "tool_use_id": "s1", "content": [{"encrypted_content": "…"}]},
                {"type": "text", "text": "It is sunny.", "citations": [{"type": "web_search_result_location"}]},
            ],
        }
    )
    assert told == {"role": "assistant", "content": "It is sunny."}


def test_a_compaction_stands_for_what_it_sums_up() -> None:
    (told,) = messages_of({"role": "assistant", "content": [{"type": "compaction", "content": "They greeted."}]})
    assert told["content"] == "They greeted."


@pytest.mark.parametrize(
    ("content", "more", "said"),
    [
        (None, {}, ""),
        ("", {}, ""),
        ([], {}, ""),
        ("no such file", {"is_error": True}, "Error: no such file"),
        ("Error: no such file", {"is_error": True}, "Error: no such file"),
        (None, {"is_error": True}, "Error"),
        ("fine", {"is_error": False}, "fine"),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], {}, "a\nb"),
        ([{"type": "tool_reference", "tool_name": "f"}], {}, "Tool found: f"),
    ],
)
def test_a_tools_result_is_told_and_that_it_failed_too(content: object, more: dict[str, object], said: str) -> None:
    assert result(content, **more) == [{"role": "tool", "tool_call_id": "t1", "content": said}]


def test_null_as_a_result_is_no_result() -> None:
    (told,) = messages_of({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": None}]})
    assert told["content"] == ""


def test_a_picture_in_a_tools_result_comes_right_behind_it() -> None:
    assert result([PICTURE]) == [
        {"role": "tool", "tool_call_id": "t1", "content": "(in the next message)"},
        {"role": "user", "content": [TOLD_PICTURE]},
    ]


# ── Content ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_document_keeps_its_title_and_context() -> None:
    plain = {"type": "text", "media_type": "text/plain", "data": "words"}
    named = {"type": "document", "source": plain, "title": "Q3", "context": "a report", "citations": {"enabled": True}}
    assert told_by(named) == "Q3\n\na report\n\nwords"
    blocks = {
        "type": "document",
        "source": {"type": "content", "content": [{"type": "text", "text": "words"}, PICTURE]},
    }
    assert told_by({**blocks, "title": "Q3"}) == [
        {"type": "text", "text": "Q3"},
        {"type": "text", "text": "words"},
        TOLD_PICTURE,
    ]


@pytest.mark.parametrize(("title", "filename"), [(None, "document.pdf"), ("Q3", "Q3.pdf"), ("q.PDF", "q.PDF")])
def test_a_pdf_is_told_as_a_file_of_that_kind(title: str | None, filename: str) -> None:
    paper = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBE"}}
    assert told_by({**paper, "title": title}, {"type": "text", "text": "?"})[0] == {
        "type": "file",
        "file": {"filename": filename, "file_data": "data:application/pdf;base64,JVBE"},
    }


def test_a_search_result_says_where_it_is_from() -> None:
    found = {
        "type": "search_result",
        "title": "T",
        "source": "https://x",
        "content": [{"type": "text", "text": "words"}],
    }
    assert told_by(found) == "T\nhttps://x\nwords"


@pytest.mark.parametrize(
    ("block", "kind"),
    [
        ({"type": "image", "source": {"type": "file", "file_id": "f"}}, "file"),
        ({"type": "document", "source": {"type": "file", "file_id": "f"}}, "file"),
        ({"type": "document", "source": {"type": "url", "url": "https://x/y.pdf"}}, "url"),
    ],
)
def test_what_is_kept_elsewhere_is_refused_by_how_it_was_named(block: dict[str, object], kind: str) -> None:
    with pytest.raises(InvalidRequest, match=f"'{kind}'") as caught:
        told_by(block)
    assert caught.value.param == "messages[0].content[0].source"


def test_the_accounting_line_of_claude_code_is_not_told() -> None:
    bill = {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cch=12345;"}
    kind = {"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}
    assert as_chat(system=[bill, kind])["messages"][0] == {"role": "system", "content": "Be kind."}


@pytest.mark.parametrize(
    ("fields", "effort"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "low"),
        ({"thinking": {"type": "enabled", "budget_tokens": 10_000}}, "medium"),
        ({"thinking": {"type": "enabled", "budget_tokens": 32_000}}, "high"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, "high"),
        ({"output_config": {"effort": "low"}}, "low"),
        ({"thinking": {"type": "disabled"}}, None),
    ],
)
def test_how_hard_to_think_is_told_to_those_who_know_the_word(fields: dict[str, object], effort: str | None) -> None:
    dialect, call = MESSAGES.towards(ProviderKind.OPENAI, MESSAGES.read(body(**fields)))
    for model, told in (("gpt-5", effort), ("openai/o3", effort), ("gpt-4o", None), ("llama", None)):
        sent = json.loads(dialect.upstream_body(call, upstream_model=model, max_tokens=None))
        assert sent.get("reasoning_effort") == told
        assert "thinking" not in sent


# ── Answers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def answer(message: dict[str, object], **choice: object) -> Any:
    said = {"id": "c1", "model": "up", "choices": [{"message": {"role": "assistant", **message}, **choice}]}
    facts = MessagesAsChat().read_answer(json.dumps(said).encode())
    assert facts.mended is not None
    return json.loads(facts.mended)


def test_signed_thinking_of_an_answer_keeps_its_signature() -> None:
    told = answer(
        {"content": "Hi", "reasoning_content": "hm", "thinking_blocks": [SIGNED, REDACTED]}, finish_reason="stop"
    )
    assert told["content"] == [SIGNED, REDACTED, {"type": "text", "text": "Hi"}]


def test_signed_thinking_of_a_stream_keeps_its_signature() -> None:
    events = read_all(
        MessagesStream(),
        chat_chunk({"reasoning_content": "hm", "thinking_blocks": [{"type": "thinking", "thinking": "hm"}]}),
        chat_chunk({"thinking_blocks": [{"type": "thinking", "thinking": "", "signature": "c2ln"}]}),
        chat_chunk({"thinking_blocks": [REDACTED]}),
        chat_chunk({"content": "Hi"}),
        chat_chunk({}, "stop"),
    )
    begun = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    assert begun == ["thinking", "redacted_thinking", "text"]
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert deltas[:2] == [
        {"type": "thinking_delta", "thinking": "hm"},
        {"type": "signature_delta", "signature": "c2ln"},
    ]


@pytest.mark.parametrize("name", ["stop_reason", "matched_stop"])
def test_the_word_that_ended_an_answer_is_told_where_the_upstream_names_it(name: str) -> None:
    told = answer({"content": "Hi"}, finish_reason="stop", **{name: "END"})
    assert (told["stop_reason"], told["stop_sequence"]) == ("stop_sequence", "END")
    chunk = {"index": 0, "delta": {}, "finish_reason": "stop", name: "END"}
    data = b"data: " + json.dumps({"choices": [chunk]}).encode() + b"\n\n"
    assert read_all(MessagesStream(), chat_chunk({"content": "Hi"}), data)[-2]["delta"] == {
        "stop_reason": "stop_sequence",
        "stop_sequence": "END",
    }


@pytest.mark.parametrize(
    ("finish", "named", "reason"),
    [
        ("stop", 128001, "end_turn"),
        ("stop", None, "end_turn"),
        ("length", None, "max_tokens"),
        ("content_filter", None, "refusal"),
        ("tool_calls", None, "tool_use"),
        ("some_day", None, "end_turn"),
    ],
)
def test_every_other_ending_has_a_reason_that_clients_know(finish: str, named: object, reason: str) -> None:
    told = answer({"content": "Hi"}, finish_reason=finish, stop_reason=named)
    assert (told["stop_reason"], told["stop_sequence"]) == (reason, None)


def test_a_tools_input_may_come_as_an_object() -> None:
    call = {"id": "t1", "function": {"name": "f", "arguments": {"a": 1}}}
    assert answer({"content": None, "tool_calls": [call]}, finish_reason="tool_calls")["content"][0]["input"] == {
        "a": 1
    }
    told = read_all(MessagesStream(), chat_chunk({"tool_calls": [{"index": 0, **call}]}), chat_chunk({}, "tool_calls"))
    (delta,) = [event["delta"] for event in told if event["type"] == "content_block_delta"]
    assert delta == {"type": "input_json_delta", "partial_json": '{"a":1}'}


def test_calls_that_all_have_the_number_nought_are_told_apart() -> None:
    def called(id: str, name: str | None, arguments: str) -> bytes:
        return chat_chunk({"tool_calls": [{"index": 0, "id": id, "function": {"name": name, "arguments": arguments}}]})

    events = read_all(
        MessagesStream(),
        *(called("t1", "f", '{"a":'), called("t-other-each-time", None, "1}"), called("t2", "g", "{}")),
        chat_chunk({}, "tool_calls"),
    )
    begun = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert [(block["id"], block["name"]) for block in begun] == [("t1", "f"), ("t2", "g")]
    inputs = [
        (event["index"], event["delta"]["partial_json"]) for event in events if "delta" in event and "index" in event
    ]
    assert inputs == [(0, '{"a":'), (0, "1}"), (1, "{}")]


def test_calls_whose_pieces_come_mixed_are_blocks_one_after_the_other() -> None:
    def said(index: int, arguments: str, **begun: object) -> bytes:
        name = {"name": f"f{index}"} if begun else {}
        return chat_chunk({"tool_calls": [{"index": index, **begun, "function": {**name, "arguments": arguments}}]})

    events = read_all(
        MessagesStream(),
        *(said(0, "", id="t0"), said(1, "", id="t1"), said(0, '{"a":'), said(1, '{"b":'), said(1, "2}"), said(0, "1}")),
        chat_chunk({}, "tool_calls"),
    )
    blocks = [(event["type"], event["index"]) for event in events if "index" in event]
    assert blocks == [
        *[
            ("content_block_start", 0),
            ("content_block_delta", 0),
            ("content_block_delta", 0),
            ("content_block_stop", 0),
        ],
        *[
            ("content_block_start", 1),
            ("content_block_delta", 1),
            ("content_block_delta", 1),
            ("content_block_stop", 1),
        ],
    ]
    inputs = [event["delta"]["partial_json"] for event in events if event["type"] == "content_block_delta"]
    assert inputs == ['{"a":', "1}", '{"b":', "2}"]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


def test_events_come_in_the_order_that_the_protocol_names() -> None:
    events = events_in(MessagesStream().feed(chat_chunk({"role": "assistant", "content": ""})))
    assert [event["type"] for event in events] == ["message_start"]
    assert (events[0]["message"]["content"], events[0]["message"]["stop_reason"]) == ([], None)
