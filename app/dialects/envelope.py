"""Reading JSON bodies: what is refused before any dialect looks at a field, and the names that no caller may use.

The body is decoded once, to its top-level members with every value still raw; the decoder walks all of it, so whatever is not
JSON is found here: truncation, NaN, wrong escapes, lone surrogates, nesting without end. What it lets through and a second
reader could understand differently is refused as well: bytes that are not UTF-8, a member named twice, a number beyond any
double.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

import msgspec
from msgspec import Raw, Struct

from app.exceptions import InvalidJson, InvalidRequest, MissingParameter, ParamNotAllowed

T = TypeVar("T")
S = TypeVar("S", bound=Struct)

as_members = msgspec.json.Decoder(dict[str, Raw]).decode
_as_string = msgspec.json.Decoder(str).decode
encode = msgspec.json.Encoder().encode

NONE = Raw(b"")
"""A member that is absent."""

_NAME = re.compile(rb'[ \t\r\n]*[{,][ \t\r\n]*("[^"\\]*(?:\\.[^"\\]*)*")[ \t\r\n]*:[ \t\r\n]*')
_END = re.compile(rb"[ \t\r\n]*}")

_STEERING = frozenset({
    # Where a request goes and with which credential …
    "api_base", "api_key", "api_type", "api_version", "azure_ad_token", "base_url", "client", "custom_llm_provider",
    "deployment_id", "engine", "extra_body", "extra_headers", "extra_query", "headers", "hf_model_name",
    "http_client", "model_info", "model_list", "models", "organization", "proxy_server_request", "region_name",
    "route", "router_settings_override", "shared_session", "specific_deployment", "ssl_verify", "user_config",
    # … how often and how long it is tried …
    "allowed_fails", "content_policy_fallbacks", "context_window_fallback_dict", "context_window_fallbacks",
    "cooldown_time", "disable_fallbacks", "fallbacks", "max_fallbacks", "max_retries", "num_retries",
    "request_timeout", "retry_policy", "retry_strategy", "stream_timeout", "timeout",
    # … what is answered without asking, kept, or told to others …
    "cache", "caching", "callbacks", "failure_callback", "input_callback", "logger_fn", "no-log", "no_log",
    "service_callback", "success_callback", "turn_off_message_logging",
    # … and which parameters are dropped on the way.
    "additional_drop_params", "allowed_openai_params", "drop_params",
})  # fmt: skip
_STEERING_PREFIXES = (
    "litellm_",
    "mock_",
    "langfuse_",
    "langsmith_",
    "aws_",
    "vertex_",
    "azure_ad_",
    "gcs_",
    "s3_",
    "watsonx_",
)
_PRICE = "_cost_per_"
_SHOWN_CHARS = 64
"""A refused name is repeated to the caller; it need not be long to be recognised."""


def read_members(body: bytes) -> dict[str, Raw]:
    """The top-level members of a JSON object, each value raw.

    Raises: InvalidJson for everything that is not exactly one JSON object in UTF-8 with each member named once.
    """
    try:
        members = as_members(body)
    except msgspec.ValidationError:
        raise InvalidJson("The request body must be a JSON object.") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidJson from None
    except RecursionError:
        raise InvalidJson("The request body is nested too deeply.") from None
    if not is_utf8(body):
        raise InvalidJson("The request body is not valid UTF-8.")
    # Clients write compact JSON, so encoding the members again usually gives the very same bytes, and then none was named
    # twice. Only where it doesn't (white space, escapes in names, duplicates) are the names walked one by one.
    if encode(members) != body:
        _require_each_once(body, members)
    return members


def with_model(body: bytes, model: str) -> bytes:
    """The body with this `model`, for a path that names it. Raises: InvalidJson."""
    return encode({**read_members(body), "model": model})


def is_utf8(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _require_each_once(body: bytes, members: Mapping[str, Raw]) -> None:
    """Walk the names in the order of the members; a duplicate is a name out of order or one too many."""
    position = body.index(b"{")
    for name, value in members.items():
        at_name = _NAME.match(body, position)
        if at_name is None or _as_string(at_name[1]) != name:
            raise InvalidJson("The request body names a member twice.")
        position = at_name.end() + len(value)
    if members and _END.match(body, position) is None:
        raise InvalidJson("The request body names a member twice.")


def is_given(raw: Raw) -> bool:
    """Neither absent nor null."""
    return len(raw) > 4 or (len(raw) > 0 and bytes(raw) != b"null")


def is_filled(raw: Raw) -> bool:
    """Neither absent, null nor an empty string, list or object."""
    return len(raw) > 2 and bytes(raw) != b"null"


def require_own_business(names: Iterable[str]) -> None:
    """Refuse names that would steer the gateway rather than the model.

    Raises: ParamNotAllowed.
    """
    for name in names:
        if name in _STEERING or name.startswith(_STEERING_PREFIXES) or _PRICE in name:
            raise ParamNotAllowed(name[:_SHOWN_CHARS])


def require_finite(members: Mapping[str, Raw], names: Iterable[str]) -> None:
    """Refuse numbers that no double can hold: each reader would make something else of them.

    Raises: InvalidRequest.
    """
    for name in names:
        text = bytes(members[name])
        if text[:1] in b"-0123456789" and not math.isfinite(float(text)):
            shown = name[:_SHOWN_CHARS]
            raise InvalidRequest(f"The number given as '{shown}' is out of range.", param=shown)


def read_fields(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Decode the typed fields of a body that `read_members` has let through.

    Raises: InvalidRequest or MissingParameter, naming the field in the caller's words (`messages[3].role`).
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as fault:
        text, _, path = str(fault).partition(" - at `$")
        param = path.rstrip("`").lstrip(".")
        missing = re.fullmatch(r"Object missing required field `(\w+)`", text)
        if missing:
            raise MissingParameter(f"{param}.{missing[1]}".lstrip(".")) from None
        what = text.replace("`", "").replace(" | null", "")
        raise InvalidRequest(f"Invalid value for '{param}': {what[:1].lower()}{what[1:]}.", param=param) from None
    except (msgspec.DecodeError, RecursionError):
        raise InvalidJson from None


class RequestReader(Generic[S]):
    """Reads the requests of one protocol: what is refused before any field is looked at, then the fields of `shape`."""

    def __init__(self, shape: type[S], *required: str) -> None:
        self._decoder = msgspec.json.Decoder(shape)
        self._typed = frozenset(shape.__struct_fields__)
        self._required = required

    def read(self, body: bytes) -> tuple[dict[str, Raw], S]:
        """The members, each value raw, and the typed fields.

        Raises: InvalidJson, InvalidRequest, MissingParameter, ParamNotAllowed.
        """
        members = read_members(body)
        untyped = members.keys() - self._typed
        if untyped:
            require_own_business(untyped)
            require_finite(members, untyped)
        for name in self._required:
            if name not in members:
                raise MissingParameter(name)
        return members, read_fields(self._decoder, body)
