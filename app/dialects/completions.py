"""OpenAI's text completions: `POST /v1/completions`, whole and streamed.

Deprecated by OpenAI and everyday business of vLLM, llama.cpp and code editors. One request may hold many prompts; each of them is
answered `n` times, the choices numbered through.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta, Raw, Struct

from app.dialects.base import AnswerFacts, BadAnswer, UpstreamProblem, UpstreamSaidError
from app.dialects.envelope import (
    NONE,
    RequestReader,
    as_members,
    encode,
    is_filled,
    is_given,
)
from app.dialects.openai_answer import WholeAnswer, read_whole
from app.dialects.openai_errors import error_body, raise_if_error, read_problem
from app.dialects.openai_names import Name
from app.dialects.openai_request import Choices, Penalty, Stops, StreamOptions, TokenCap, redirected
from app.dialects.openai_stream import DONE, FAILED, MAX_KEPT_BYTES, OpenAIStream, framed
from app.dialects.openai_usage import read_usage
from app.dialects.sse import MAX_EVENT_BYTES
from app.domain.call import Call
from app.domain.catalog import ProviderKind
from app.domain.pricing import Usage
from app.exceptions import GatewayError, InvalidRequest

MAX_PROMPTS = 2048
"""OpenAI's own limit of inputs to one request, here and for embeddings."""
BYTES_PER_GIVEN_TOKEN = 4
"""A prompt may come as numbers of tokens. Each counts as the text that an estimate takes for one."""


class _Request(Struct):
    """The fields we act on, and bounds for those whose absurd values cost somebody something."""

    model: Annotated[str, Meta(min_length=1)]
    prompt: Raw
    suffix: Raw = NONE
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: TokenCap = None
    n: Choices = None
    best_of: Choices = None
    stop: str | Stops | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    frequency_penalty: Penalty = None
    presence_penalty: Penalty = None
    logit_bias: Annotated[dict[str, float], Meta(max_length=1024)] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=1000)] | bool | None = None


_request = RequestReader(_Request, "model", "prompt")

_Tokens = Annotated[list[Annotated[int, Meta(ge=0)]], Meta(min_length=1)]
_prompt = msgspec.json.Decoder(str | _Tokens | None)
_prompts = msgspec.json.Decoder(Annotated[list[str | _Tokens], Meta(min_length=1, max_length=MAX_PROMPTS)])


class Prompts(NamedTuple):
    """Of a prompt, or an input to be embedded: how many separate ones it holds, and their size as text."""

    number: int
    size_bytes: int


def read_prompts(raw: Raw, name: str) -> Prompts:
    """A text, a list of texts, the tokens of one text, or a list of those. Raises: InvalidRequest."""
    try:
        return Prompts(1, _size_of(_prompt.decode(raw), len(raw)))
    except msgspec.ValidationError:
        pass
    try:
        prompts = _prompts.decode(raw)
    except msgspec.ValidationError:
        many = f"a text, a list of at most {MAX_PROMPTS} texts, or texts as numbers of tokens"
        raise InvalidRequest(f"Invalid value for '{name}': it must be {many}.", param=name) from None
    return Prompts(len(prompts), sum(_size_of(prompt, 0) for prompt in prompts))


def _size_of(prompt: str | list[int] | None, raw_bytes: int) -> int:
    if isinstance(prompt, list):
        return BYTES_PER_GIVEN_TOKEN * len(prompt)
    return raw_bytes or len((prompt or "").encode("utf-8", "surrogatepass")) + 2


class Completions:
    """`POST /v1/completions`."""

    name = "completions"
    upstream_path = "/completions"
    passes_headers: tuple[bytes, ...] = ()

    def read(self, body: bytes) -> Call:
        """Raises: InvalidJson, InvalidRequest, MissingParameter, ParamNotAllowed."""
        members, request = _request.read(body)
        prompts = read_prompts(request.prompt, "prompt")
        return Call(
            dialect=self.name,
            model=request.model,
            is_stream=bool(request.stream),
            wants_usage=request.stream_options is not None and bool(request.stream_options.include_usage),
            max_tokens=request.max_tokens,
            choices=max(request.n or 1, request.best_of or 1) * prompts.number,
            prompt_bytes=prompts.size_bytes + len(request.suffix),
            images=0,
            body=body,
            fields=members,
            inputs=prompts.number,
        )

    def towards(self, provider: ProviderKind, call: Call) -> tuple[Completions, Call]:
        return self, call

    def ends_stream(self, chunk: bytes) -> bool:
        return chunk.endswith(DONE)

    def upstream_body(self, call: Call, *, upstream_model: str, max_tokens: int | None) -> bytes:
        return redirected(call, upstream_model=upstream_model, max_tokens=max_tokens)

    def read_answer(self, body: bytes) -> AnswerFacts:
        return _read_completion(body)

    def texts_of(self, body: bytes) -> list[str]:
        reader = CompletionStream()
        reader.feed(_events_of(body))
        return reader.texts()

    def read_problem(self, body: bytes) -> UpstreamProblem:
        return read_problem(body)

    def stream_reader(self, call: Call) -> CompletionStream:
        return CompletionStream(choices=call.choices, shows_usage=call.wants_usage)

    def as_stream(self, body: bytes) -> bytes:
        """The events that would have carried this complete answer. Raises: BadAnswer, UpstreamSaidError."""
        facts = _read_completion(body)
        return _events_of(facts.mended or body)

    def error_body(self, error: GatewayError, request_id: str) -> bytes:
        return error_body(error, request_id)

    def error_event(self, error: GatewayError, request_id: str) -> bytes:
        return b"data: " + error_body(error, request_id) + b"\n\n"


# ── The whole answer ──────────────────────────────────────────────────────────────────────────────────────────────────


class _Choice(Struct, gc=False):
    """One choice, of a whole answer and of a chunk alike."""

    text: Raw = NONE
    finish_reason: str | None = None
    index: int | None = None


class _Completion(WholeAnswer):
    choices: list[_Choice] | None = None


_completion = msgspec.json.Decoder(_Completion)


def _read_completion(body: bytes) -> AnswerFacts:
    answer, mended = read_whole(_completion, body)
    if not answer.choices:
        raise_if_error(body)
        raise BadAnswer("no_choices")
    if any(choice.finish_reason == FAILED for choice in answer.choices):
        raise UpstreamSaidError(read_problem(body))
    if not all(is_given(choice.text) for choice in answer.choices):  # an empty text is an answer, none is not
        raise BadAnswer("no_content")
    return AnswerFacts(
        usage=read_usage(answer.usage, answer.service_tier),
        finish_reason=answer.choices[0].finish_reason,
        output_bytes=sum(len(choice.text) - 2 for choice in answer.choices),
        mended=None if mended is body else mended,
    )


_choice_members = msgspec.json.Decoder(list[dict[str, Raw]])


def _events_of(body: bytes) -> bytes:
    """A complete answer as a stream: a chunk for each choice, which has ended whether or not it says so."""
    answer = as_members(body)
    usage = answer.pop("usage", NONE)
    events: list[bytes] = []
    for number, choice in enumerate(_choice_members.decode(answer["choices"])):
        if not is_filled(choice.get("finish_reason", NONE)):
            choice["finish_reason"] = Raw(b'"stop"')
        choice.setdefault("index", Raw(b"%d" % number))
        events.append(encode({**answer, "choices": [choice]}))
    if is_given(usage):
        events.append(encode({**answer, "choices": [], "usage": usage}))
    return framed([*events, b"[DONE]"])


# ── The stream ────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Chunk(Struct):
    choices: list[_Choice] | None = None
    usage: Raw = NONE
    service_tier: Raw = NONE
    error: Raw = NONE
    id: Name = None
    object: Name = None
    model: Name = None
    system_fingerprint: Name = None


class CompletionStream(OpenAIStream[_Choice]):
    """See `app.dialects.openai_stream` for what becomes of each event."""

    __slots__ = ("_usages",)

    _chunk = msgspec.json.Decoder(_Chunk).decode

    def __init__(self, *, choices: int = 1, shows_usage: bool = True, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        super().__init__(choices=choices, shows_usage=shows_usage, max_event_bytes=max_event_bytes)
        self._usages: list[Usage] = []
        """What stood on the last chunk of each choice."""

    def _count(self, choices: Sequence[_Choice], payload: bytes) -> None:
        for choice in choices:
            if is_filled(choice.text):
                text, index = bytes(choice.text), choice.index or 0
                said = self._said.get(index)
                if said is None:
                    self._keep(index, text)
                elif len(said) < MAX_KEPT_BYTES:
                    said += text[1:-1]
                self._carried(len(text) - 2)
            if choice.finish_reason:
                self._finish(choice)

    def _finish(self, choice: _Choice) -> None:
        super()._finish(choice)
        usage = self.usage
        if self._choices == 1 or usage is None or (self._usages and usage is self._usages[-1]):
            return
        self._usages.append(usage)
        if self.is_complete and usage.completion_tokens < self.pieces:
            # llama.cpp counts each prompt by itself. It is not all of them: no piece holds less than a token.
            self.usage = Usage(
                sum(each.prompt_tokens for each in self._usages),
                sum(each.completion_tokens for each in self._usages),
                sum(each.cached_tokens for each in self._usages),
            )

    def _ended(self, index: int) -> dict[str, object]:
        return {"index": index, "text": "", "logprobs": None, "finish_reason": "length"}
