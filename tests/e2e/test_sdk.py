"""The stock OpenAI client, unchanged, through the gateway to model servers that nobody here wrote."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.demo_server import DemoServer, DemoUpstream
from tests.e2e.house import House, unique
from tests.kit.clients import run_client
from tests.kit.scenario import Scenario

PREAMBLE = """
import json, os, sys
import openai
client = openai.OpenAI(base_url=os.environ["BASE_URL"], api_key=os.environ["KEY"], timeout=60)
model = os.environ["MODEL"]
hello = [{"role": "user", "content": "Say hello in one short sentence."}]
def show(value): print(json.dumps(value))
"""


async def sdk(house: House, script: str, *, key: str, model: str, path: str = "/v1") -> Any:
    env = {"BASE_URL": f"{house.gateway.origin}{path}", "KEY": key, "MODEL": model}
    return await run_client(PREAMBLE + script, env=env)


@pytest.fixture(scope="session")
def llama() -> Iterator[DemoUpstream]:
    """llama.cpp's own server with SmolLM2-135M, as `make demo` starts it."""
    with tempfile.TemporaryDirectory(prefix="gateway-llama-") as folder, DemoServer(Path(folder)) as upstream:
        yield upstream


@pytest.fixture
async def smollm(house: House, llama: DemoUpstream) -> str:
    """A model of the gateway that llama.cpp serves."""
    name = unique("smollm")
    await house.admin(
        "POST", "models", {"name": name, "price": {"input_usd_per_mtok": "1", "output_usd_per_mtok": "2"}}
    )
    await house.endpoint(name, upstream_model=llama.model, api_base=llama.api_base, api_key=llama.api_key)
    return name


async def test_chat(house: House, smollm: str) -> None:
    answer = await sdk(
        house,
        """
answer = client.chat.completions.with_raw_response.create(model=model, messages=hello, max_tokens=24, temperature=0)
completion = answer.parse()
show({"text": completion.choices[0].message.content, "usage": completion.usage.to_dict(), "id": completion._request_id,
      "cost": answer.headers["x-gateway-cost-usd"]})
""",
        key=await house.key(),
        model=smollm,
    )
    assert answer["text"].strip()
    record = await house.record(answer["id"])
    assert record["outcome"] == "ok"
    assert record["usage_quality"] == "exact"
    assert record["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert record["completion_tokens"] == answer["usage"]["completion_tokens"] > 0
    assert record["cost_usd"] == answer["cost"] > "0.000000000"


async def test_stream(house: House, smollm: str) -> None:
    answer = await sdk(
        house,
        """
with client.chat.completions.with_streaming_response.create(
    model=model, messages=hello, max_tokens=24, temperature=0, stream=True
) as response:
    request_id = response.headers["x-request-id"]
    chunks = [chunk.to_dict() for chunk in response.parse()]
show({"id": request_id, "chunks": chunks})
""",
        key=await house.key(),
        model=smollm,
    )
    chunks = answer["chunks"]
    assert all(chunk["choices"] for chunk in chunks), "no usage chunk was asked for"
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks).strip()
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    record = await house.record(answer["id"])
    assert (record["outcome"], record["usage_quality"], record["is_stream"]) == ("ok", "exact", True)
    assert record["first_token_ms"] is not None
    assert record["completion_tokens"] > 0


async def test_stream_with_usage(house: House, smollm: str) -> None:
    usage = await sdk(
        house,
        """
stream = client.chat.completions.create(
    model=model, messages=hello, max_tokens=8, stream=True, stream_options={"include_usage": True}
)
show([chunk.usage.to_dict() for chunk in stream if chunk.usage][-1])
""",
        key=await house.key(),
        model=smollm,
    )
    assert usage["completion_tokens"] > 0


async def test_structured_output(house: House, smollm: str) -> None:
    parsed = await sdk(
        house,
        """
from pydantic import BaseModel
class Pet(BaseModel):
    name: str
    legs: int
completion = client.chat.completions.parse(
    model=model, response_format=Pet, max_tokens=64, temperature=0,
    messages=[{"role": "user", "content": "A pet as JSON with name and legs."}],
)
show(completion.choices[0].message.parsed.model_dump())
""",
        key=await house.key(),
        model=smollm,
    )
    assert isinstance(parsed["name"], str)
    assert isinstance(parsed["legs"], int)


async def test_text_completions(house: House, smollm: str) -> None:
    answer = await sdk(
        house,
        """
unary = client.completions.create(model=model, prompt="Once upon a time", max_tokens=8, temperature=0)
stream = client.completions.create(
    model=model, prompt=["Once upon a time", "The sky is"], max_tokens=8, temperature=0, stream=True,
    stream_options={"include_usage": True},
)
chunks = [chunk.to_dict() for chunk in stream]
show({"text": unary.choices[0].text, "usage": unary.usage.to_dict(), "id": unary._request_id, "chunks": chunks,
      "stream_id": stream.response.headers["x-request-id"]})
""",
        key=await house.key(),
        model=smollm,
    )
    assert answer["text"].strip()
    record = await house.record(answer["id"])
    assert (record["dialect"], record["outcome"], record["usage_quality"]) == ("completions", "ok", "exact")
    assert record["completion_tokens"] == answer["usage"]["completion_tokens"] > 0
    choices = [choice for chunk in answer["chunks"] for choice in chunk["choices"]]
    assert {choice["index"] for choice in choices if choice["text"]} == {0, 1}
    record = await house.record(answer["stream_id"])
    assert (record["usage_quality"], record["completion_tokens"]) == ("exact", 16)


async def test_embeddings(house: House, smollm: str) -> None:
    answer = await sdk(
        house,
        """
same, other = client.embeddings.create(model=model, input=["The cat sat.", "Stocks fell sharply today."]).data
raw = client.embeddings.with_raw_response.create(model=model, input="The cat sat.", encoding_format="float")
again = raw.parse()
show({"same": same.embedding == again.data[0].embedding or
      max(abs(a - b) for a, b in zip(same.embedding, again.data[0].embedding)) < 1e-3,
      "differ": same.embedding != other.embedding, "size": len(same.embedding),
      "usage": again.usage.to_dict(), "id": raw.headers["x-request-id"]})
""",
        key=await house.key(),
        model=smollm,
    )
    assert answer["same"]
    assert answer["differ"]
    assert answer["size"] == 576
    record = await house.record(answer["id"])
    assert (record["dialect"], record["outcome"], record["usage_quality"]) == ("embeddings", "ok", "exact")
    assert (record["prompt_tokens"], record["completion_tokens"]) == (answer["usage"]["prompt_tokens"], 0)


async def test_azures_client(house: House, smollm: str) -> None:
    answer = await sdk(
        house,
        """
azure = openai.AzureOpenAI(azure_endpoint=os.environ["BASE_URL"], api_key=os.environ["KEY"], api_version="2024-10-21")
chat = azure.chat.completions.create(model=model, messages=hello, max_tokens=4)
stream = azure.chat.completions.create(model=model, messages=hello, max_tokens=4, stream=True)
vectors = azure.embeddings.create(model=model, input="x")
show({"text": chat.choices[0].message.content, "id": chat._request_id, "size": len(vectors.data[0].embedding),
      "stream": "".join(chunk.choices[0].delta.content or "" for chunk in stream)})
""",
        key=await house.key(),
        model=smollm,
        path="",
    )
    assert answer["text"]
    assert answer["stream"]
    assert answer["size"] == 576
    assert (await house.record(answer["id"]))["dialect"] == "chat"


async def test_models(house: House, smollm: str) -> None:
    answer = await sdk(
        house,
        "show({'all': [m.id for m in client.models.list()], 'one': client.models.retrieve(model).id})",
        key=await house.key(allowed_models=[smollm]),
        model=smollm,
    )
    assert answer == {"all": [smollm], "one": smollm}


async def test_a_base_url_without_the_prefix_works_too(house: House, smollm: str) -> None:
    script = "show(client.chat.completions.create(model=model, messages=hello, max_tokens=4).object)"
    assert await sdk(house, script, key=await house.key(), model=smollm, path="") == "chat.completion"


ERRORS = """
def raised(call):
    try:
        call()
    except openai.APIError as error:
        return {"type": type(error).__name__, "status": getattr(error, "status_code", None), "code": error.code,
                "param": error.param, "id": getattr(error, "request_id", None)}
create = client.chat.completions.create
"""


async def test_errors_arrive_as_the_clients_own_exceptions(house: House, smollm: str) -> None:
    found = await sdk(
        house,
        ERRORS
        + """
wrong = openai.OpenAI(base_url=os.environ["BASE_URL"], api_key="sk-wrong")
show({
    "key": raised(lambda: wrong.chat.completions.create(model=model, messages=hello)),
    "model": raised(lambda: create(model="no-such-model", messages=hello)),
    "field": raised(lambda: create(model=model, messages=hello, extra_body={"max_tokens": -1})),
    "steering": raised(lambda: create(model=model, messages=hello, extra_body={"api_base": "http://x"})),
})
""",
        key=await house.key(),
        model=smollm,
    )
    assert {name: (error["type"], error["status"], error["code"]) for name, error in found.items()} == {
        "key": ("AuthenticationError", 401, "invalid_api_key"),
        "model": ("NotFoundError", 404, "model_not_found"),
        "field": ("BadRequestError", 400, "invalid_request"),
        "steering": ("BadRequestError", 400, "param_not_allowed"),
    }
    assert all(error["id"] for error in found.values())


async def test_the_client_sends_a_refusal_it_cannot_cure_only_once(house: House) -> None:
    """A 402 is not repeated, and neither is a 502 after failover was exhausted."""
    broke = await house.key(budgets=[{"period": "total", "hard_limit_usd": "0.000000001"}])
    model = await house.model(Scenario(status=500))
    found = await sdk(
        house, ERRORS + "show(raised(lambda: create(model=model, messages=hello)))", key=broke, model=model
    )
    assert (found["status"], found["code"]) == (402, "budget_exceeded")
    found = await sdk(
        house, ERRORS + "show(raised(lambda: create(model=model, messages=hello)))", key=await house.key(), model=model
    )
    assert (found["type"], found["code"]) == ("InternalServerError", "upstream_error")
    assert len([line for line in (await house.upstream.invoice()).lines if line.model == model]) == 1


async def test_a_rate_limit_is_obeyed_by_the_client_as_its_retry_after_says(house: House) -> None:
    key = await house.key(limits=[{"kind": "requests", "limit": 1, "window_seconds": 1}])
    seconds = await sdk(
        house,
        """
import time
began = time.monotonic()
for _ in range(2):
    client.chat.completions.create(model=model, messages=hello)
show(time.monotonic() - began)
""",
        key=key,
        model=await house.model(),
    )
    assert 0.9 < seconds < 15


async def test_a_stream_that_breaks_raises_in_the_client(house: House) -> None:
    found = await sdk(
        house,
        ERRORS + "show(raised(lambda: list(create(model=model, messages=hello, stream=True))))",
        key=await house.key(),
        model=await house.model(Scenario(close_after_chunks=3)),
    )
    assert (found["type"], found["code"]) == ("APIError", "upstream_truncated")


@pytest.mark.parametrize("provider", ["litellm", "anthropic"])
async def test_a_provider_of_another_protocol_is_served_through_litellm(
    house: House, llama: DemoUpstream, provider: str
) -> None:
    """The OpenAI client on our side, Anthropic's Messages protocol on the other, spoken by llama.cpp's own server."""
    name = unique("claude")
    price = {"input_usd_per_mtok": "3", "output_usd_per_mtok": "15"}
    await house.admin("POST", "models", {"name": name, "price": price}, expect=201)
    await house.endpoint(
        name,
        provider=provider,
        upstream_model=f"anthropic/{llama.model}" if provider == "litellm" else llama.model,
        api_base=llama.api_base.removesuffix("/v1") if provider == "litellm" else llama.api_base,
        api_key=llama.api_key,
        timeouts={"connect_seconds": 5, "first_token_seconds": 90, "between_tokens_seconds": 30, "total_seconds": 120},
    )
    key = await house.key()
    answer = await sdk(
        house,
        """
unary = client.chat.completions.create(model=model, messages=hello, max_tokens=12)
stream = client.chat.completions.create(model=model, messages=hello, max_tokens=12, stream=True)
text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
show({"text": unary.choices[0].message.content, "usage": unary.usage.to_dict(), "id": unary._request_id, "stream": text})
""",
        key=key,
        model=name,
    )
    assert answer["text"].strip()
    assert answer["stream"].strip()
    record = await house.record(answer["id"])
    assert (record["provider"], record["outcome"], record["usage_quality"]) == (provider, "ok", "exact")
    assert record["completion_tokens"] == answer["usage"]["completion_tokens"]
    assert record["cost_usd"] > "0.000000000"
    assert llama.api_key not in json.dumps(record) + house.gateway.log_text()
