"""Every provider that is not spoken to natively, through LiteLLM's SDK: the only file that imports it.

LiteLLM translates; everything else it would also do is ours and is turned off: retries, timeouts, callbacks, prices, log lines,
fetching things from the internet, and looking for credentials and addresses in the environment. How an attempt runs:

1. The arguments are built from an allow-list of the call's fields, never from the body as a whole: LiteLLM obeys `api_base`,
   `mock_response`, prices and much else when they are among its arguments.
2. All its requests go through one session of ours. Hooks on that session write down what really happened on the wire
   (`WireExchange`): whether anything was sent, the true status and headers, the connection to close. LiteLLM's own exceptions blur
   that: a refused connection, a redirect and a 529 all come out as its status 500.
3. Its answers are written out as JSON again and read by the same dialect as a relayed answer. A stream's end is judged by what
   the provider sent: where that was nothing, LiteLLM invents `finish_reason: "stop"` and a usage, and neither is believed.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import re
import ssl
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import aiohttp
import msgspec

from app.clock import Clock, SystemClock
from app.config import export_settings, withdraw_from_environment
from app.dialects.base import BadAnswer, Dialect, StreamReader, UpstreamProblem, UpstreamSaidError
from app.dialects.messages import Messages
from app.dialects.messages_blocks import MARK
from app.dialects.openai_chat import CHAT_PATH
from app.domain.call import Call, Meter, Quality
from app.domain.catalog import Endpoint, ProviderKind
from app.exceptions import AttemptFailed, EndpointUnfit, FailureKind, InvalidRequest, UpstreamError
from app.providers import failures
from app.providers.base import Answer
from app.providers.litellm_answers import plain_answer, plain_event, usage_of, usages_in
from app.providers.litellm_mends import mend
from app.providers.litellm_wire import WireExchange, hooks
from app.providers.relay import keep_answer, since_ms
from app.providers.session import REASONS, GuardedSession
from app.providers.transport import NO_HOSTS, AddressBlocked, AddressPolicy, ExchangeFailed

_SWITCHES: Final = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # prices come from the package's file, not from GitHub at every start
    "LITELLM_MODE": "PRODUCTION",  # otherwise the import loads `.env` of the working directory into the process
    "HF_HUB_OFFLINE": "1",  # no tokenizer is fetched
    "MAX_IMAGE_URL_DOWNLOAD_SIZE_MB": "0",  # no picture that a caller names is fetched
    "AWS_EC2_METADATA_DISABLED": "true",  # no credential of the machine we run on is asked for
}
_STEERING_VARIABLES: Final = re.compile(
    r"(?!LLM_API_)"  # the gateway's own two settings; LiteLLM does not read them
    r"(.*_(API_KEY|APIKEY|API_BASE|BASE_URL|API_URL|API_TOKEN|AUTH_TOKEN|ACCESS_TOKEN)"
    r"|(AWS|AZURE|GOOGLE|VERTEX|VERTEXAI|OPENAI|ANTHROPIC|LITELLM|WATSONX|WX|HF|SSL_VERIFY|SSL_CERTIFICATE|AIOHTTP)(_.*)?)\Z"
)
"""Variables that LiteLLM would take a credential, an address or a TLS rule from, where an endpoint has none of its own."""

_PASSED_ON: Final = frozenset(
    [
        *("messages", "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"),
        *("response_format", "temperature", "top_p", "n", "stop", "seed", "max_tokens", "max_completion_tokens"),
        *("presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "user"),
        *("reasoning_effort", "thinking", "modalities", "audio", "prediction", "verbosity"),
    ]
)
"""The allow-list. A field that is not here is dropped: LiteLLM would take it for an option of its own.
`service_tier` and `web_search_options` are left out because they change the price."""
_MERE_HINTS: Final = frozenset(
    [
        *("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "logit_bias", "user"),
        *("parallel_tool_calls", "verbosity", "reasoning_effort", "thinking", "prediction"),
    ]
)
"""Fields whose absence changes the taste of an answer, not its form: dropped for a provider that does not know them."""
_CREDENTIAL_PARTS: Final = frozenset(
    [
        *("api_key", "api_version", "organization", "aws_access_key_id", "aws_secret_access_key"),
        *("aws_session_token", "aws_region_name", "vertex_credentials", "vertex_project", "vertex_location"),
        *("region_name", "project_id", "token"),
    ]
)
"""What an endpoint's credential may consist of when it is a JSON object: some providers need more than one key."""
_NEEDED_PARTS: Final = {
    "sagemaker": "aws_access_key_id",
    "sagemaker_chat": "aws_access_key_id",
    "vertex_ai": "vertex_credentials",
    "vertex_ai_beta": "vertex_credentials",
}
"""Providers that would use the machine's own identity, whatever `api_key` says, unless the endpoint brings this."""
NO_KEY: Final = "no-key"
"""Sent where an endpoint has no credential: an absent key would make LiteLLM look for one elsewhere."""

_ADDRESS: Final = re.compile(r"\s*[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_PROSE: Final = frozenset(
    {"text", "content", "arguments", "name", "description", "reasoning_content", "thinking", "refusal"}
)
"""Members of a message that are words, wherever they stand; an address in them is never fetched by anyone here."""
_CLOSING_S: Final = 1.0
_BYTES_PER_TOKEN: Final = 4
"""Only for a bill whose usage never came; as for answers that are relayed."""
_MAX_KNOWN_MODELS: Final = 1024


class LiteLLMProvider:
    """One attempt at a time through LiteLLM; see `app.providers.base.Provider`. Serves chat completions only."""

    def __init__(
        self,
        policy: AddressPolicy,
        *,
        clock: Clock | None = None,
        tls_by_host: Mapping[str, ssl.SSLContext] = NO_HOSTS,
    ) -> None:
        self._clock = clock or SystemClock()
        self._guarded = GuardedSession(policy, tls_by_host=tls_by_host)
        """Its own, not the one that relays: LiteLLM's requests are watched by hooks that those do without."""
        self._sdk: Any = None
        self._importer = ThreadPoolExecutor(1, thread_name_prefix="litellm-import")
        self._importing: asyncio.Future[Any] | None = None
        self._known_parameters: dict[str, frozenset[str] | None] = {}

    async def prepare(self) -> None:
        """Import LiteLLM, in a thread: 4 to 15 s of CPU and 190 MB. Call it at the start when the catalog holds an endpoint of
        this kind; a call that arrives meanwhile waits for it. Cancelling one that waits does not stop the import.

        Raises: ImportError.
        """
        if self._sdk is not None:
            return
        if self._importing is None:
            self._importing = asyncio.get_running_loop().run_in_executor(self._importer, _imported)
        try:
            sdk = await asyncio.shield(self._importing)
        except ImportError:
            self._importing = None
            raise
        if self._sdk is None:
            session = self._guarded.session()
            session.trace_configs.append(hooks())
            _lend(session, sdk)
            self._sdk = sdk

    @asynccontextmanager
    async def opened(
        self,
        call: Call,
        endpoint: Endpoint,
        dialect: Dialect,
        meter: Meter,
        *,
        max_tokens: int | None,
        deadline_s: float,
    ) -> AsyncIterator[Answer]:
        """Raises: AttemptFailed. See `app.providers.base.Provider.opened`."""
        endpoint = _as_litellm_names_it(endpoint)
        if dialect.upstream_path != CHAT_PATH:
            raise _unfit(f"The model is served by a provider that answers chat completions only, not '{dialect.name}'.")
        exchange = WireExchange(connect_s=endpoint.timeouts.connect_s)
        deadline_s = min(deadline_s, self._clock.monotonic() + endpoint.timeouts.total_s)
        attempt = _Attempt(call, endpoint, dialect, meter, exchange, deadline_s, self._clock)
        try:
            with attempt.translated():
                async with attempt.limited(endpoint.timeouts.first_token_s, "litellm_loading"):
                    await self.prepare()
                async with attempt.limited(
                    endpoint.timeouts.first_byte_s(is_stream=call.is_stream), "first_token_timeout"
                ):
                    arguments = self._arguments(call, endpoint, max_tokens=max_tokens)
                    with exchange.noted():
                        raw = await self._sdk.acompletion(**arguments)
                    answer = await (attempt.begun_stream(raw) if call.is_stream else attempt.read(raw))
            yield answer
        finally:
            await attempt.close()

    async def close(self) -> None:
        """Close every connection. An import that is still running is waited for, since nothing can stop it."""
        if self._sdk is not None:
            _lend(None, self._sdk)
        await self._guarded.close()
        await asyncio.to_thread(self._importer.shutdown)

    # ── Arguments ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _arguments(self, call: Call, endpoint: Endpoint, *, max_tokens: int | None) -> dict[str, Any]:
        """Raises: AttemptFailed where the call cannot be expressed in the provider's protocol."""
        known = self._parameters_known_to(endpoint.upstream_model)
        fields = {name: msgspec.json.decode(raw) for name, raw in call.fields.items() if name in _PASSED_ON}
        fields = {name: value for name, value in fields.items() if value is not None}
        if max_tokens is not None:
            fields[_cap_name(fields, known)] = max_tokens
        if call.dialect == Messages.name and not _is_claude(endpoint.upstream_model):
            _drop_marks(fields["messages"])
        _require_no_address(fields["messages"])
        if endpoint.api_base:
            self._guarded.checked(endpoint.api_base)  # an address written into it would pass by the resolver's guard
        arguments = {name: value for name, value in fields.items() if _is_wanted(name, value, known)}
        if call.is_stream:
            arguments |= {"stream": True, "stream_options": {"include_usage": True}}
        return {
            **arguments,
            **_credential_of(endpoint),
            **({"api_base": endpoint.api_base} if endpoint.api_base else {}),
            "model": endpoint.upstream_model,
            "timeout": endpoint.timeouts.total_s,
            "num_retries": 0,
            "max_retries": 0,
            "drop_params": False,
            "shared_session": self._guarded.session(),
            # With tools among the arguments it would import its MCP gateway, which is not installed and not wanted.
            "_skip_mcp_handler": True,
        }

    def _parameters_known_to(self, upstream_model: str) -> frozenset[str] | None:
        """The OpenAI parameters that LiteLLM can translate for this model; None where it does not say."""
        if upstream_model not in self._known_parameters:
            if len(self._known_parameters) >= _MAX_KNOWN_MODELS:
                self._known_parameters.clear()
            self._known_parameters[upstream_model] = _known_parameters(self._sdk, upstream_model)
        return self._known_parameters[upstream_model]


def _as_litellm_names_it(endpoint: Endpoint) -> Endpoint:
    """An endpoint of provider `anthropic` in LiteLLM's terms: the family before the model's name, the base without its version."""
    if endpoint.provider is not ProviderKind.ANTHROPIC:
        return endpoint
    base = endpoint.api_base.rstrip("/").removesuffix("/v1")
    return replace(endpoint, upstream_model=f"anthropic/{endpoint.upstream_model}", api_base=base)


def _known_parameters(sdk: Any, upstream_model: str) -> frozenset[str] | None:
    try:
        model, family, *_ = sdk.get_llm_provider(upstream_model)
    except sdk.exceptions.BadRequestError:
        return None  # The call itself will say so.
    known = sdk.get_supported_openai_params(model=model, custom_llm_provider=family)
    return None if known is None else frozenset(known)


def _cap_name(fields: Mapping[str, object], known: frozenset[str] | None) -> str:
    if "max_completion_tokens" in fields:
        return "max_completion_tokens"
    is_new_name_only = known is not None and "max_tokens" not in known and "max_completion_tokens" in known
    return "max_completion_tokens" if is_new_name_only and "max_tokens" not in fields else "max_tokens"


def _is_wanted(name: str, value: object, known: frozenset[str] | None) -> bool:
    """Raises: AttemptFailed for a field that the provider does not know and that an answer must obey."""
    if name == "messages" or known is None or name in known:
        return True
    is_neutral = value in (False, [], {}) or (name == "n" and value == 1)
    if name in _MERE_HINTS or is_neutral:
        return False
    raise _unfit(f"The model's provider does not support the parameter '{name}'.", param=name)


def _is_claude(upstream_model: str) -> bool:
    return "claude" in upstream_model.lower()


def _drop_marks(messages: Sequence[dict[str, Any]]) -> None:
    """Of Anthropic's cache: for Gemini LiteLLM would make a cache of its own of them, by requests that nobody watches, counts or pays."""
    for message in messages:
        message.pop(MARK, None)
        for part in message["content"] if isinstance(message.get("content"), list) else ():
            part.pop(MARK, None)


def _require_no_address(messages: object) -> None:
    """Nothing that a caller names is ever fetched from here, and for some providers LiteLLM would: data: URLs only.

    Raises: AttemptFailed.
    """
    stack = [messages]
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            stack.extend(node)
        elif isinstance(node, dict):
            stack.extend(value for name, value in node.items() if not (name in _PROSE and isinstance(value, str)))
        elif isinstance(node, str) and _ADDRESS.match(node):
            raise _unfit("This model takes images and files as data: URLs only, not by address.", param="messages")


def _credential_of(endpoint: Endpoint) -> dict[str, object]:
    """Raises: AttemptFailed for a credential of the wrong shape, and where the machine's own identity would be used instead."""
    parts: dict[str, object] = {"api_key": endpoint.credential or NO_KEY}
    if endpoint.credential and endpoint.credential.lstrip().startswith("{"):
        try:
            parts = {"api_key": NO_KEY, **msgspec.json.decode(endpoint.credential, type=dict[str, Any])}
        except msgspec.DecodeError:
            raise _misconfigured("credential_malformed") from None
    if parts.keys() - _CREDENTIAL_PARTS:
        raise _misconfigured("credential_malformed")
    if "aws_access_key_id" in parts and parts["api_key"] == NO_KEY:
        del parts["api_key"]  # it would be taken for a bearer token, and nothing would be signed
    family = endpoint.upstream_model.partition("/")[0]
    if (needed := _NEEDED_PARTS.get(family)) and needed not in parts:
        raise _misconfigured("credential_missing")
    if family == "bedrock" and not endpoint.credential:
        raise _misconfigured("credential_missing")
    return parts


# ── One attempt ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _Attempt:
    """What one attempt knows while it lasts."""

    call: Call
    endpoint: Endpoint
    dialect: Dialect
    meter: Meter
    exchange: WireExchange
    deadline_s: float
    clock: Clock
    has_begun: bool = False
    raw_stream: Any = None
    events: AsyncGenerator[bytes, None] | None = None

    async def read(self, raw: Any) -> Answer:
        """A unary answer, complete and checked."""
        body = msgspec.json.encode(plain_answer(raw))
        facts = self.dialect.read_answer(body)
        self.meter.usage = usage_of(raw)
        self.meter.quality = Quality.EXACT if self.meter.usage else Quality.ESTIMATED
        self.meter.finish_reason = facts.finish_reason
        self.meter.delivered_tokens = -(-facts.output_bytes // _BYTES_PER_TOKEN)
        self.meter.first_token_ms = since_ms(self.meter.started_s)
        body = facts.mended or body
        keep_answer(self.meter, body)
        self.exchange.is_over = True
        return Answer("application/json", body)

    async def begun_stream(self, raw: Any) -> Answer:
        """A stream whose first real event has come."""
        self.raw_stream = raw
        reader = self.dialect.stream_reader(self.call)
        self.events = self._events(reader)
        first = bytearray()
        with self.exchange.noted():  # some of its providers are not asked before the first chunk is
            async for event in self.events:
                first += event
                if reader.has_begun:
                    break
        self.has_begun = True
        self.meter.first_token_ms = since_ms(self.meter.started_s)
        keep_answer(self.meter, bytes(first))
        return Answer("text/event-stream", bytes(first), chunks=self._rest(self.events), reader=reader)

    async def _rest(self, events: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
        """What follows the first event, each piece awaited no longer than an endpoint may be silent."""
        while True:
            with self.translated():
                async with self.limited(self.endpoint.timeouts.between_tokens_s, "between_tokens_timeout"):
                    event = await anext(events, None)
            if event is None:
                return
            keep_answer(self.meter, event)
            yield event

    async def _events(self, reader: StreamReader) -> AsyncGenerator[bytes, None]:
        """LiteLLM's chunks as events of the dialect. Raises: BadAnswer, UpstreamSaidError, whatever LiteLLM raises."""
        try:
            try:
                async for chunk in self.raw_stream:
                    passed = reader.feed(plain_event(chunk, self.raw_stream))
                    self.meter.delivered_tokens = reader.delivered_tokens
                    if passed:
                        yield passed
            except Exception:
                if not reader.is_complete:
                    raise  # else all of the answer is here; how the connection ended is nobody's business
            last = reader.end()
            self.exchange.is_over = True
        finally:
            self._note_usage(reader)
        if last:
            yield last

    def _note_usage(self, reader: StreamReader) -> None:
        """The provider's figures where it sent any; where not, LiteLLM counts for itself, and that is not believed."""
        meter, seen = self.meter, usages_in(self.raw_stream)
        meter.finish_reason, meter.delivered_tokens = reader.finish_reason, reader.delivered_tokens
        if not reader.is_complete:
            # Anthropic counts the prompt in its first event; the break came before it counted the answer.
            written = max([reader.delivered_tokens, *(usage.completion_tokens for usage in seen)])
            meter.usage = msgspec.structs.replace(seen[0], completion_tokens=written) if seen else None
            meter.quality = Quality.PARTIAL
        else:
            meter.usage = max(seen, key=lambda usage: usage.completion_tokens) if seen else None
            meter.quality = Quality.EXACT if seen else Quality.ESTIMATED

    @asynccontextmanager
    async def limited(self, wait_s: float, reason: str) -> AsyncIterator[None]:
        """Raises: ExchangeFailed when the wait, or the whole call, takes longer than it may."""
        left_s = self.deadline_s - self.clock.monotonic()
        is_last = left_s <= wait_s and reason != "litellm_loading"
        self.exchange.waits_for = "total_timeout" if is_last else reason
        try:
            async with asyncio.timeout(min(wait_s, left_s)) as self.exchange.limit:
                yield
        except TimeoutError:
            raise ExchangeFailed(self.exchange.waits_for, is_sent=self.exchange.is_sent, is_timeout=True) from None
        finally:
            self.exchange.limit = None

    async def close(self) -> None:
        """Close what is still open, at once: an answer nobody waits for must not be paid for."""
        try:
            await self.exchange.close()
            async with asyncio.timeout(_CLOSING_S):
                if self.events is not None:
                    await self.events.aclose()
                if self.raw_stream is not None:
                    await self.raw_stream.aclose()
        except Exception as fault:  # noqa: BLE001 - whatever LiteLLM makes of an early end, the connection is closed
            logging.getLogger(__name__).debug("closing a stream: %s", type(fault).__name__)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """The provider seam: whatever happens inside comes out as AttemptFailed; only cancellation passes."""
        try:
            yield
        except AttemptFailed:
            raise
        except Exception as fault:  # noqa: BLE001 - LiteLLM raises anything from KeyError to OSError
            # `from None`: its exceptions hold the credential and the request.
            raise self._failure(fault) from None

    def _failure(self, fault: Exception) -> AttemptFailed:
        """What a fault means, by what was seen on the wire first and by LiteLLM's own words last."""
        exchange, has_begun = self.exchange, self.has_begun
        if exchange.bad is not None:
            return failures.of_bad_answer(exchange.bad, has_begun=has_begun)
        fault = getattr(fault, "original_exception", None) or fault
        match fault:
            case ExchangeFailed(reason="litellm_loading"):
                return _still_loading(fault)
            case ExchangeFailed():
                return failures.of_exchange(fault, has_begun=has_begun, status=exchange.status)
            case BadAnswer():
                return failures.of_bad_answer(fault, has_begun=has_begun)
            case UpstreamSaidError():
                return failures.of_error_object(fault.problem, has_begun=has_begun)
        if exchange.fault is not None:
            return failures.of_exchange(_as_exchange_failed(exchange), has_begun=has_begun)
        problem = _words_of(fault, self.dialect)
        if exchange.status is not None and exchange.status >= 300:
            return failures.of_status(exchange.status, problem, headers=exchange.headers)
        if exchange.status is not None:
            return self._failure_within_answer(fault, problem)
        headers = getattr(fault, "litellm_response_headers", None)
        if headers is not None:  # It went by another way than our session.
            return failures.of_status(_status_of(fault), problem, headers=headers)
        return _not_sent(fault)

    def _failure_within_answer(self, fault: Exception, problem: UpstreamProblem) -> AttemptFailed:
        """The status was 200 and then something went wrong: the connection broke, an error was sent, or it is no answer."""
        if _is_break(fault):
            lost = ExchangeFailed("connection_lost", is_sent=True)
            if not self.has_begun:
                return failures.of_exchange(lost, status=self.exchange.status)
            return failures.of_bad_answer(BadAnswer("truncated"), has_begun=True)
        if _names_a_status(fault):
            return failures.of_error_object(replace(problem, status=_status_of(fault)), has_begun=self.has_begun)
        return failures.of_bad_answer(
            BadAnswer("bad_event" if self.call.is_stream else "bad_body"), has_begun=self.has_begun
        )


# ── What went wrong ───────────────────────────────────────────────────────────────────────────────────────────────────


def _words_of(fault: Exception, dialect: Dialect) -> UpstreamProblem:
    """What the upstream said, out of LiteLLM's sentence around it: raw words, for the sanitiser only."""
    text = str(getattr(fault, "message", ""))
    start, end = text.find("{"), text.rfind("}")
    if 0 <= start < end:
        problem = dialect.read_problem(text[start : end + 1].encode(errors="replace"))
        if problem.message and problem.message[:1] != "{":
            return problem
    said = text.partition(" - ")[2].partition(" Handle with `litellm.")[0]
    return UpstreamProblem(message=said[:2000] or None, code=None, type=None, param=None)


def _is_break(fault: BaseException) -> bool:
    """Does a broken connection stand at the end of the chain of causes?"""
    seen: BaseException | None = fault
    for _ in range(10):
        if seen is None:
            return False
        if isinstance(seen, aiohttp.ClientError | OSError) or type(seen).__module__.partition(".")[0] in (
            "httpx",
            "httpcore",
        ):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _names_a_status(fault: Exception) -> bool:
    """LiteLLM's APIConnectionError has a status of its own making; the others have one that the upstream's error stands for."""
    return type(fault).__name__ != "APIConnectionError" and isinstance(getattr(fault, "status_code", None), int)


def _status_of(fault: Exception) -> int:
    status = getattr(fault, "status_code", None)
    return status if isinstance(status, int) and 400 <= status <= 599 else 500


def _as_exchange_failed(exchange: WireExchange) -> ExchangeFailed:
    if isinstance(exchange.fault, AddressBlocked):
        return ExchangeFailed("endpoint_blocked", is_sent=False, is_blocked=True)
    reason = next((reason for kind, reason in REASONS if isinstance(exchange.fault, kind)), "connection_lost")
    return ExchangeFailed(reason, is_sent=exchange.is_sent)


def _not_sent(fault: Exception) -> AttemptFailed:
    """LiteLLM could not make a request of the call. Its own faults included, that is nothing a breaker should count."""
    if isinstance(fault, ImportError):
        return AttemptFailed(
            kind=FailureKind.NOTHING_SENT, reason="litellm_not_installed", error=UpstreamError(), is_endpoint_fault=True
        )
    return _unfit("The request cannot be expressed in the protocol of the model's provider.", reason="not_translatable")


def _unfit(message: str, *, param: str | None = None, reason: str = "not_supported") -> EndpointUnfit:
    return EndpointUnfit(InvalidRequest(message, param=param), reason=reason)


def _still_loading(fault: ExchangeFailed) -> AttemptFailed:
    """The package was still being imported: nothing that a breaker should hold against the endpoint."""
    failure = failures.of_exchange(fault)
    failure.is_endpoint_fault = False
    return failure


def _misconfigured(reason: str) -> AttemptFailed:
    return AttemptFailed(kind=FailureKind.NOTHING_SENT, reason=reason, error=UpstreamError())


# ── The package ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _imported() -> Any:
    """Import LiteLLM with everything turned off that is ours to do. Runs in a thread.

    Its switches are read from the environment while it is imported; variables that would supply a credential or an address behind
    an endpoint's back are looked up at every call, and so are taken away.
    """
    withdraw_from_environment(_STEERING_VARIABLES)
    export_settings(**_SWITCHES)
    sdk: Any = importlib.import_module("litellm")
    sdk.telemetry = False
    sdk.suppress_debug_info = True  # no "Give Feedback" banners
    sdk.disable_hf_tokenizer_download = True
    sdk.disable_aiohttp_trust_env = True  # no proxies from the environment
    sdk.disable_streaming_logging = True
    sdk.turn_off_message_logging = True
    mend(importlib.import_module)
    sdk.callbacks, sdk.success_callback, sdk.failure_callback = [], [], []
    for name in ("LiteLLM", "LiteLLM Proxy", "LiteLLM Router"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.disabled = True  # its lines hold prompts, and its errors keys
    for name in ("httpx", "httpcore", "openai"):
        logging.getLogger(name).setLevel(logging.WARNING)  # they log URLs, and Gemini's hold the key
    for other in (logging.root, *logging.root.manager.loggerDict.values()):
        if isinstance(
            other, logging.Logger
        ):  # it puts filters on uvicorn's and asyncio's loggers; those are not its own
            other.filters = [each for each in other.filters if not type(each).__module__.startswith("litellm")]
    # Its types, built as providers are first used, make pydantic warn on standard error.
    warnings.filterwarnings("ignore", message=r"Items? .* using the `ReadOnly` qualifier", category=UserWarning)
    return sdk


def _lend(session: aiohttp.ClientSession | None, sdk: Any) -> None:
    """Make every one of LiteLLM's clients use this session; None takes it back.

    Most of its providers take a session as an argument, some (Bedrock, Cohere …) make their own through this one function. Theirs
    would know nothing of our egress guard, and would follow redirects.
    """
    handler = importlib.import_module("litellm.llms.custom_httpx.http_handler").AsyncHTTPHandler
    original = getattr(handler, "_gateways_original", None) or handler.create_aiohttp_transport

    def lent(ssl_verify: Any = None, ssl_context: Any = None, shared_session: Any = None) -> Any:
        return original(ssl_verify=ssl_verify, ssl_context=ssl_context, shared_session=shared_session or session)

    handler._gateways_original = staticmethod(original)
    handler.create_aiohttp_transport = staticmethod(lent)
    # Clients made before hold another session, or one that is closed by now.
    sdk.in_memory_llm_clients_cache.flush_cache()
    vars(sdk).pop("module_level_aclient", None)
