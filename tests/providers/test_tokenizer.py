"""The bundled tokenizer: right, away from the event loop, without network, and absent without harm."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path

import pytest
import tiktoken
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.domain.call import Call
from app.providers.tokenizer import MAX_COUNTED_BYTES, BundledTokenizer, bundled_folder
from app.providers.tokenizer_process import FILES
from app.services import context_validation
from tests.services.metered import a_call, a_model

FOLDER = bundled_folder()
assert FOLDER is not None

COOKBOOK = [
    {
        "role": "system",
        "content": "You are a helpful, pattern-following assistant that translates corporate jargon into plain English.",
    },
    {"role": "system", "name": "example_user", "content": "New synergies will help drive top-line growth."},
    {"role": "system", "name": "example_assistant", "content": "Things working well together will increase revenue."},
    {
        "role": "system",
        "name": "example_user",
        "content": "Let's circle back when we have more bandwidth to touch base on opportunities for increased leverage.",
    },
    {
        "role": "system",
        "name": "example_assistant",
        "content": "Let's talk later when we're less busy about how to do better.",
    },
    {
        "role": "user",
        "content": "This late pivot means we don't have time to boil the ocean for the client deliverable.",
    },
]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_current_weather",
        "description": "Get the current weather in a given location",
        "parameters": {
            "type": "object",
            "properties": {
                "location": {"type": "string", "description": "The city and state, e.g. San Francisco, CA"},
                "unit": {
                    "type": "string",
                    "description": "The unit of temperature to return",
                    "enum": ["celsius", "fahrenheit"],
                },
            },
            "required": ["location"],
        },
    },
}
ASKED = [
    {"role": "system", "content": "You are a helpful assistant that can answer to questions about the weather."},
    {"role": "user", "content": "What's the weather like in San Francisco?"},
]
TEXTS = {
    "prose": "It was the best of times, it was the worst of times, it was the age of wisdom. " * 20,
    "code": "def f(x: int) -> int:\n    if x > 1:\n        return x * f(x - 1)\n    return 1\n" * 20,
    "german": "Die Würde des Menschen ist unantastbar. Sie zu achten und zu schützen ist Verpflichtung. " * 20,
    "chinese": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心。" * 30,
    "russian": "Все люди рождаются свободными и равными в своём достоинстве и правах. " * 20,
    "json": '{"id": 12345, "name": "widget", "tags": ["a", "b"], "price": 12.50}\n' * 30,
    "digits": "3.14159265358979323846264338327950288419716939937510" * 20,
    "base64": "TWFuIGlzIGRpc3Rpbmd1aXNoZWQsIG5vdCBvbmx5IGJ5IGhpcyByZWFzb24s" * 20,
    "emoji": "👩‍👩‍👧‍👦🎉🚀 what a day 🏳️‍🌈 " * 40,
}


def sizes_in(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir()}


@cache
def published(name: str) -> tiktoken.Encoding:
    os.environ["TIKTOKEN_CACHE_DIR"] = str(FOLDER)
    return tiktoken.get_encoding(name)


@pytest.fixture
async def tokenizer() -> AsyncIterator[BundledTokenizer]:
    tokenizer = BundledTokenizer(
        deadline_s=30.0
    )  # to start it and to read its vocabulary takes seconds on a busy machine
    yield tokenizer
    await tokenizer.close()


@pytest.mark.parametrize(
    ("upstream", "call", "said_by_openai"),
    [
        ("gpt-4o", a_call(messages=COOKBOOK), 124),
        ("gpt-4-0613", a_call(messages=COOKBOOK), 129),
        ("gpt-4o-mini", a_call(messages=ASKED, tools=[WEATHER]), 101),
        ("gpt-4", a_call(messages=ASKED, tools=[WEATHER]), 105),
    ],
)
async def test_prompts_count_as_openais_cookbook_reports_them(
    tokenizer: BundledTokenizer, upstream: str, call: Call, said_by_openai: int
) -> None:
    """T120: four vectors whose truth came from OpenAI's API."""
    counted = await tokenizer.count(call, a_model(upstream))
    assert counted is not None
    assert abs(counted - said_by_openai) <= said_by_openai * 0.1


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
@pytest.mark.parametrize(("upstream", "encoding"), [("openai/gpt-4.1", "o200k_base"), ("gpt-4", "cl100k_base")])
async def test_text_counts_as_the_published_vocabulary_has_it(
    tokenizer: BundledTokenizer, upstream: str, encoding: str, text: str
) -> None:
    """T120: eighteen more, around which seven tokens stand: three of the message, its role, three of the reply."""
    counted = await tokenizer.count(a_call(text), a_model(upstream))
    assert counted == len(published(encoding).encode_ordinary(text)) + 7


async def test_long_text_is_counted_in_pieces_with_hardly_a_difference(tokenizer: BundledTokenizer) -> None:
    for text in TEXTS.values():
        long = text * (200_000 // len(text))
        counted = await tokenizer.count_texts([long], a_model("gpt-4o"))
        exact = len(published("o200k_base").encode_ordinary(long))
        assert counted is not None
        assert abs(counted - exact) <= exact * 0.005 + 2


async def test_a_prompt_of_a_megabyte_takes_no_time_from_the_event_loop(tokenizer: BundledTokenizer) -> None:
    call, model = a_call(TEXTS["prose"] * 625), a_model("gpt-4o")
    assert call.prompt_bytes > 950_000
    taken_s = []
    for _ in range(3):
        before_s = time.thread_time()
        counted = await tokenizer.count(call, model)
        taken_s.append(time.thread_time() - before_s)
        assert counted is not None
        assert counted > 200_000
    # CPU of this thread: how busy the machine is plays no part, nor the garbage of other tests, which is gathered now and then.
    assert min(taken_s) < 0.02


@pytest.mark.parametrize("run", [" ", "\n", "a", "=-", "é", "\u3000"])
async def test_a_run_without_a_break_ends_in_time(tokenizer: BundledTokenizer, run: str) -> None:
    assert await tokenizer.count_texts([run * 500_000], a_model("gpt-4o"))


async def test_too_much_is_not_counted(tokenizer: BundledTokenizer) -> None:
    assert await tokenizer.count_texts(["x" * (MAX_COUNTED_BYTES + 1)], a_model("gpt-4o")) is None


async def test_counts_asked_for_at_once_are_not_mixed_up(tokenizer: BundledTokenizer) -> None:
    model = a_model("gpt-4o")
    counts = await asyncio.gather(*(tokenizer.count_texts(["word " * n], model) for n in range(1, 40)))
    assert counts == [len(published("o200k_base").encode_ordinary("word " * n)) for n in range(1, 40)]


async def test_a_count_that_nobody_waits_for_does_not_spoil_the_next(tokenizer: BundledTokenizer) -> None:
    model = a_model("gpt-4o")
    assert await tokenizer.count_texts(["hello world"], model) == 2
    leaving = asyncio.create_task(tokenizer.count_texts(["x y " * 500_000], model))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert await tokenizer.count_texts(["hello world"], model) == 2


async def test_a_process_that_was_killed_is_replaced(tokenizer: BundledTokenizer) -> None:
    model = a_model("gpt-4o")
    assert await tokenizer.count_texts(["hello world"], model) == 2
    assert tokenizer._process is not None
    os.kill(tokenizer._process.pid, signal.SIGKILL)
    await tokenizer._process.wait()
    assert await tokenizer.count_texts(["hello world"], model) == 2


async def test_the_process_ends_when_nothing_is_counted() -> None:
    tokenizer = BundledTokenizer(idle_s=0.05, deadline_s=30.0)
    await tokenizer.count_texts(["hello"], a_model("gpt-4o"))
    process = tokenizer._process
    async with asyncio.timeout(30):
        while tokenizer._process is not None:
            await asyncio.sleep(0.01)
        if process is not None:
            await process.wait()
    assert await tokenizer.count_texts(["hello world"], a_model("gpt-4o")) == 2
    await tokenizer.close()


async def test_a_count_that_takes_too_long_is_given_up() -> None:
    tokenizer = BundledTokenizer(deadline_s=0.01)
    assert await tokenizer.count_texts(["hello"], a_model("gpt-4o")) is None
    await tokenizer.close()


@pytest.mark.parametrize("is_altered", [False, True])
async def test_without_its_vocabulary_there_is_no_count_and_nothing_is_fetched(
    tmp_path: Path, is_altered: bool
) -> None:
    """Fetched, the file would lie in the folder; an altered one would have been replaced."""
    assert FOLDER is not None
    if is_altered:
        name = FILES["o200k_base"].name
        shutil.copy(FOLDER / name, tmp_path)
        with (tmp_path / name).open("ab") as file:
            file.write(b"AAAA 1\n")
    before = sizes_in(tmp_path)
    tokenizer = BundledTokenizer(tmp_path)
    assert await tokenizer.count_texts(["hello"], a_model("gpt-4o")) is None
    assert sizes_in(tmp_path) == before
    await tokenizer.close()


@pytest.mark.parametrize(
    ("upstream", "is_own"),
    [("gpt-4o", True), ("azure/gpt-4", True), ("gpt-5-mini", True), ("claude-sonnet-4", False), ("llama-3", False)],
)
def test_it_knows_whose_vocabulary_it_has(upstream: str, is_own: bool) -> None:
    assert BundledTokenizer().is_own(a_model(upstream)) is is_own


contents = st.one_of(st.text(max_size=300), st.text(alphabet='🙂漢é \n"\\{}ab1', max_size=300))


@given(st.lists(contents, min_size=1, max_size=5))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_prompt_has_more_tokens_than_its_bytes_allow(texts: list[str]) -> None:
    """As OpenAI writes prompts out; and twice as much around every message would still be within."""
    call, model = a_call(messages=[{"role": "user", "content": text} for text in texts]), a_model("gpt-4o")
    estimate = context_validation.estimate(call, model)
    truth = 3 + sum(3 + 1 + len(published("o200k_base").encode_ordinary(text)) for text in texts)
    assert truth <= estimate.prompt_bound
