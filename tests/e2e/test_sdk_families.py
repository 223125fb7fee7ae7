"""The stock Anthropic client, and OpenAI's Responses, through the gateway: to endpoints that speak the protocol and to those that don't."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.demo_server import DemoServer, DemoUpstream
from tests.e2e.house import House, unique
from tests.kit import raw_http
from tests.kit.clients import run_client
from tests.kit.scenario import Scenario, ToolCall

ANTHROPIC = """
import json, os
import anthropic
client = anthropic.Anthropic(base_url=os.environ["ORIGIN"], api_key=os.environ["KEY"], timeout=60, max_retries=0)
model = os.environ["MODEL"]
hello = [{"role": "user", "content": "Say hello in one short sentence."}]
def show(value): print(json.dumps(value))
"""
OPENAI = """
import json, os
import openai
client = openai.OpenAI(base_url=os.environ["ORIGIN"] + "/v1", api_key=os.environ["KEY"], timeout=60, max_retries=0)
model = os.environ["MODEL"]
def show(value): print(json.dumps(value))
"""
PRICE = {"input_usd_per_mtok": "1", "output_usd_per_mtok": "2"}
SPENT = [{"period": "total", "hard_limit_usd": "0"}]


async def run(house: House, script: str, *, key: str, model: str) -> Any:
    return await run_client(script, env={"ORIGIN": house.gateway.origin, "KEY": key, "MODEL": model})


@pytest.fixture(scope="module")
def llama() -> Iterator[DemoUpstream]:
    """llama.cpp's own server with SmolLM2-135M: it speaks chat completions and Messages."""
    with tempfile.TemporaryDirectory(prefix="gateway-llama-") as folder, DemoServer(Path(folder)) as upstream:
        yield upstream


async def model_of(house: House, llama: DemoUpstream, provider: str) -> str:
    name = unique("model")
    await house.admin("POST", "models", {"name": name, "price": PRICE}, expect=201)
    await house.endpoint(
        name, provider=provider, upstream_model=llama.model, api_base=llama.api_base, api_key=llama.api_key
    )
    return name


# ── Anthropic's Messages ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("provider", ["anthropic", "openai"])
async def test_messages_whole_and_streamed(house: House, llama: DemoUpstream, provider: str) -> None:
    answer = await run(
        house,
        ANTHROPIC
        + """
message = client.messages.create(model=model, messages=hello, max_tokens=16)
with client.messages.stream(model=model, messages=hello, max_tokens=16, system="Be kind.") as stream:
    text = "".join(stream.text_stream)
    final = stream.get_final_message()
counted = client.messages.count_tokens(model=model, messages=hello)
show({"text": message.content[0].text, "usage": message.usage.to_dict(), "id": message._request_id, "stop": message.stop_reason,
      "streamed": text, "final": final.usage.to_dict(), "stream_id": stream.response.headers["request-id"],
      "counted": counted.input_tokens})
""",
        key=await house.key(),
        model=await model_of(house, llama, provider),
    )
    assert answer["text"].strip()
    assert answer["streamed"].strip()
    assert answer["stop"] in ("end_turn", "max_tokens")
    assert 4 <= answer["counted"] <= 60
    for request_id, usage in ((answer["id"], answer["usage"]), (answer["stream_id"], answer["final"])):
        record = await house.record(request_id)
        assert (record["dialect"], record["provider"], record["outcome"]) == ("messages", provider, "ok")
        assert record["usage_quality"] == "exact"
        assert record["completion_tokens"] == usage["output_tokens"] > 0
        cached = usage.get("cache_read_input_tokens") or 0
        assert record["prompt_tokens"] == usage["input_tokens"] + cached
        assert record["cost_usd"] > "0.000000000"


async def test_messages_of_the_demo_model(house: House) -> None:
    answer = await run(
        house,
        ANTHROPIC
        + """
message = client.messages.create(model=model, messages=hello, max_tokens=200)
with client.messages.stream(model=model, messages=hello, max_tokens=200) as stream:
    text = "".join(stream.text_stream)
show({"whole": message.content[0].text, "streamed": text})
""",
        key=await house.key(),
        model="demo",
    )
    assert answer["whole"] == answer["streamed"].rstrip()
    assert "demo model" in answer["whole"]


async def test_an_agents_turn_in_messages_goes_both_ways_where_the_upstream_speaks_chat(house: House) -> None:
    """With thinking of an earlier turn, a tool that failed, and tools that Anthropic's models know by heart."""
    model = await house.model(
        Scenario(reasoning_text="I think.", tool_call=ToolCall("bash", '{"command": "ls"}'), finish_reason="tool_calls")
    )
    found = await run(
        house,
        ANTHROPIC
        + """
tools = [{"type": "bash_20250124", "name": "bash"}, {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"},
         {"name": "own", "input_schema": {"type": "object", "properties": {}}}]
turns = [
    {"role": "user", "content": [{"type": "text", "text": "List.", "cache_control": {"type": "ephemeral"}}]},
    {"role": "assistant", "content": [
        {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
        {"type": "redacted_thinking", "data": "c2ln"},
        {"type": "tool_use", "id": "t1", "name": "bash", "input": {"command": "ls"}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "is_error": True, "content": "denied"}]},
]
asked = dict(model=model, messages=turns, tools=tools, max_tokens=2000, thinking={"type": "enabled", "budget_tokens": 1024},
             system=[{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}], metadata={"user_id": "u"},
             tool_choice={"type": "auto", "disable_parallel_tool_use": True}, extra_headers={"anthropic-beta": "a-beta"})
whole = client.messages.create(**asked)
with client.messages.stream(**asked) as stream:
    kinds = [event.type for event in stream]
    final = stream.get_final_message()
def blocks(message):
    return [block.to_dict() for block in message.content]
show({"whole": blocks(whole), "final": blocks(final), "stops": [whole.stop_reason, final.stop_reason], "kinds": kinds,
      "tokens": [whole.usage.output_tokens, final.usage.output_tokens, final.usage.input_tokens]})
""",
        key=await house.key(),
        model=model,
    )
    for told in (found["whole"], found["final"]):
        assert [block["type"] for block in told] == ["thinking", "tool_use"]
        assert (told[0]["thinking"], told[1]["name"], told[1]["input"]) == ("I think.", "bash", {"command": "ls"})
    assert found["stops"] == ["tool_use", "tool_use"]
    assert (found["kinds"][0], found["kinds"][-1]) == ("message_start", "message_stop")
    assert found["tokens"] == [8, 8, 10]
    for line in (await house.upstream.invoice()).of_model(model).lines:
        sent = json.loads(line.body)
        assert [message["role"] for message in sent["messages"]] == ["system", "user", "assistant", "tool"]
        assert sent["messages"][-1]["content"] == "Error: denied"
        assert [tool["function"]["name"] for tool in sent["tools"]] == ["bash", "str_replace_based_edit_tool", "own"]
        assert sent["parallel_tool_calls"] is False
        assert not {"thinking", "metadata", "reasoning_effort"} & sent.keys()
        assert line.header("anthropic-beta") is None


RAISED = """
def raised(act):
    try:
        act()
    except anthropic.APIStatusError as error:
        return {"type": type(error).__name__, "status": error.status_code, "body": error.body, "id": error.request_id}
    except anthropic.APIError as error:
        return {"type": type(error).__name__, "body": error.body}
"""


async def test_errors_arrive_as_the_anthropic_clients_own(house: House) -> None:
    model = await house.model(Scenario())
    found = await run(
        house,
        ANTHROPIC
        + RAISED
        + """
create = client.messages.create
show([
    raised(lambda: create(model="no-such-model", messages=hello, max_tokens=5)),
    raised(lambda: create(model=model, messages=hello, max_tokens=-1)),
    raised(lambda: create(model=model, messages=hello, max_tokens=5, tools=[{"type": "web_search_20250305", "name": "web_search"}])),
    raised(lambda: anthropic.Anthropic(base_url=os.environ["ORIGIN"], api_key="sk-wrong", max_retries=0).messages.create(
        model=model, messages=hello, max_tokens=5)),
])
""",
        key=await house.key(),
        model=model,
    )
    assert [(each["type"], each["status"], each["body"]["error"]["type"]) for each in found] == [
        ("NotFoundError", 404, "not_found_error"),
        ("BadRequestError", 400, "invalid_request_error"),
        ("BadRequestError", 400, "invalid_request_error"),
        ("AuthenticationError", 401, "authentication_error"),
    ]
    assert all(each["id"] == each["body"]["request_id"] for each in found)
    assert "web_search_20250305" in found[2]["body"]["error"]["message"]


async def test_a_spent_budget_is_the_anthropic_clients_402(house: House) -> None:
    found = await run(
        house,
        ANTHROPIC + RAISED + "show(raised(lambda: client.messages.create(model=model, messages=hello, max_tokens=5)))",
        key=await house.key(budgets=SPENT),
        model=await house.model(Scenario()),
    )
    assert (found["type"], found["status"], found["body"]["error"]["code"]) == (
        "PaymentRequiredError",
        402,
        "budget_exceeded",
    )


async def test_t084_a_messages_stream_that_breaks_raises_in_the_client(house: House) -> None:
    found = await run(
        house,
        ANTHROPIC
        + RAISED
        + """
def read():
    with client.messages.stream(model=model, messages=hello, max_tokens=50) as stream:
        list(stream)
show(raised(read))
""",
        key=await house.key(),
        model=await house.model(Scenario(close_after_chunks=3)),
    )
    assert found["body"]["error"]["code"] == "upstream_truncated"


async def test_a_native_endpoint_sees_the_callers_protocol_headers_and_no_others(house: House) -> None:
    model = unique("claude")
    await house.admin("POST", "models", {"name": model, "price": PRICE}, expect=201)
    await house.endpoint(model, provider="anthropic")
    await house.upstream.script(by_model={model: Scenario()})
    answer = await raw_http.call(
        house.gateway.port,
        "POST",
        "/v1/messages?beta=true",
        headers={
            "x-api-key": await house.key(),
            "anthropic-version": "2026-10-21",
            "anthropic-beta": "a-beta,b-beta",
            "x-custom": "secret",
        },
        json_body={
            "model": model,
            "max_tokens": 9,
            "messages": [{"role": "user", "content": "x"}],
            "thinking": {"type": "disabled"},
        },
    )
    assert answer.status == 200, answer.text
    assert '"type":"message"' in answer.text.replace(" ", "")
    (line,) = [line for line in (await house.upstream.invoice()).lines if line.model == model]
    assert line.path == "/v1/messages"
    headers = dict(line.headers)
    assert headers["anthropic-version"] == "2026-10-21"
    assert headers["anthropic-beta"] == "a-beta,b-beta"
    assert headers["x-api-key"] == "sk-upstream-key-of-the-tests"
    assert not {"x-custom", "authorization"} & headers.keys()


async def test_a_messages_body_without_the_version_prefix_is_served_too(house: House) -> None:
    model = await house.model(Scenario())
    answer = await raw_http.call(
        house.gateway.port,
        "POST",
        "/messages",
        headers={"Authorization": f"Bearer {await house.key()}"},
        json_body={"model": model, "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]},
    )
    assert answer.status == 200, answer.text
    assert '"type":"message"' in answer.text.replace(" ", "")


# ── OpenAI's Responses ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_responses_whole_and_streamed(house: House, llama: DemoUpstream) -> None:
    answer = await run(
        house,
        OPENAI
        + """
whole = client.responses.create(model=model, input="Say hello.", max_output_tokens=16)
with client.responses.stream(model=model, input="Say hello.", instructions="Be kind.", max_output_tokens=400) as stream:
    events = list(stream)
kinds, final = [event.type for event in events], events[-1].response
show({"text": whole.output_text, "usage": whole.usage.to_dict(), "id": whole._request_id, "kinds": kinds, "final": final.output_text,
      "status": whole.status})
""",
        key=await house.key(),
        model=await model_of(house, llama, "openai"),
    )
    assert answer["text"].strip()
    assert answer["final"].strip()
    assert answer["status"] in ("completed", "incomplete")
    assert answer["kinds"][0] == "response.created"
    assert answer["kinds"][-1] in ("response.completed", "response.incomplete")
    record = await house.record(answer["id"])
    assert (record["dialect"], record["outcome"], record["usage_quality"]) == ("responses", "ok", "exact")
    assert record["completion_tokens"] == answer["usage"]["output_tokens"] > 0


async def test_an_agents_turn_with_tools_goes_both_ways(house: House) -> None:
    answer = await run(
        house,
        OPENAI
        + """
tools = [{"type": "function", "name": "lookup", "parameters": {"type": "object", "properties": {}}, "strict": False}]
first = client.responses.create(model=model, input=[{"role": "user", "content": "Look."}], tools=tools, store=False)
again = client.responses.create(model=model, store=False, tools=tools, input=[
    {"role": "user", "content": "Look."}, {"type": "function_call", "call_id": "c1", "name": "lookup", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c1", "output": "found"}])
show({"first": [item.type for item in first.output], "again": [item.type for item in again.output]})
""",
        key=await house.key(),
        model=await house.model(Scenario()),
    )
    assert answer["first"]
    assert answer["again"]


async def test_an_agents_shell_goes_both_ways_as_openais_client_knows_it(house: House) -> None:
    """As Codex asks: nothing kept, reasoning that only its maker reads, and a tool that models of OpenAI's know by heart."""
    model = await house.model(
        Scenario(reasoning_text="I think.", tool_call=ToolCall("local_shell", '{"command": ["ls"]}'))
    )
    found = await run(
        house,
        OPENAI
        + """
picture = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAoAAAAUCAYAAAC07w7bAAAAAElEQVQ="
asked = dict(model=model, store=False, include=["reasoning.encrypted_content"], prompt_cache_key="k", truncation="auto",
    instructions="Be kind.", metadata={"a": "b"}, parallel_tool_calls=False, reasoning={"effort": "low", "summary": "auto"},
    tools=[{"type": "local_shell"}, {"type": "web_search"}], tool_choice="auto", text={"verbosity": "low"},
    input=[{"role": "user", "content": [{"type": "input_text", "text": "List."}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
        {"type": "item_reference", "id": "rs_2"},
        {"type": "local_shell_call", "id": "l", "call_id": "c1", "status": "completed",
         "action": {"type": "exec", "command": ["ls"], "env": {}}},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_image", "image_url": picture}]}])
whole = client.responses.create(**asked)
with client.responses.stream(**asked) as stream:
    events = [event for event in stream]
    final = stream.get_final_response()
def refused(item):
    try:
        client.responses.create(model=model, input=[item])
    except openai.BadRequestError as error:
        return [error.param, error.code]
show({"whole": [item.to_dict() for item in whole.output], "final": [item.to_dict() for item in final.output],
      "numbers": [event.sequence_number for event in events], "kinds": [event.type for event in events],
      "metadata": whole.metadata, "store": whole.store,
      "refused": [refused({"type": "item_reference", "id": "msg_1"}),
                  refused({"role": "user", "content": [{"type": "input_image", "file_id": "f", "detail": "auto"}]})]})
""",
        key=await house.key(),
        model=model,
    )
    for told in (found["whole"], found["final"]):
        assert [item["type"] for item in told] == ["reasoning", "local_shell_call"]
        assert told[1]["action"] == {"type": "exec", "command": ["ls"], "env": {}}
    assert found["numbers"] == list(range(len(found["numbers"])))
    assert (found["kinds"][0], found["kinds"][-1]) == ("response.created", "response.completed")
    assert found["metadata"] == {"a": "b"}
    assert found["refused"] == [["input[0]", "invalid_request"], ["input[0].content[0]", "invalid_request"]]
    for line in (await house.upstream.invoice()).of_model(model).lines:
        sent = json.loads(line.body)
        assert [message["role"] for message in sent["messages"]] == ["system", "user", "assistant", "tool", "user"]
        assert sent["messages"][-1]["content"][0]["type"] == "image_url"
        assert [tool["function"]["name"] for tool in sent["tools"]] == ["local_shell"]
        assert not {"store", "include", "input", "metadata", "truncation", "instructions"} & sent.keys()


async def test_a_responses_stream_that_breaks_raises_in_the_client(house: House) -> None:
    found = await run(
        house,
        OPENAI
        + """
try:
    list(client.responses.create(model=model, input="x", stream=True))
except openai.APIError as error:
    show({"type": type(error).__name__, "code": error.code})
""",
        key=await house.key(),
        model=await house.model(Scenario(close_after_chunks=3)),
    )
    assert (found["type"], found["code"]) == ("APIError", "upstream_truncated")
