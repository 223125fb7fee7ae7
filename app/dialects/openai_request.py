"""What the requests of OpenAI's older dialects have in common: bounds of fields, and how a stream is asked for its usage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta, Raw, Struct

from app.dialects.envelope import as_members, encode
from app.domain.call import Call

MAX_TOKENS = 100_000_000
"""No model writes as much; a larger number is a mistake and would only inflate reservations."""

Penalty = Annotated[float, Meta(ge=-100, le=100)] | None
TokenCap = Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None
Choices = Annotated[int, Meta(ge=1, le=128)] | None
Stops = Annotated[list[str], Meta(max_length=128)]

_TRUE = Raw(b"true")


class StreamOptions(Struct):
    include_usage: bool | None = None


def asking_for_usage(options: Raw | None) -> object:
    """`stream_options` with the usage asked for, whatever else the caller wants of them."""
    if options is None or bytes(options) == b"null":
        return {"include_usage": _TRUE}
    return msgspec.json.decode(options, type=dict[str, Raw]) | {"include_usage": _TRUE}


def without_asking(body: bytes, call: Call) -> bytes:
    """A request's body as if the gateway had not asked for the usage: with the `stream_options` that the caller gave, if any."""
    members: dict[str, object] = dict(as_members(body))
    members.pop("stream_options", None)
    own = call.fields.get("stream_options")
    return encode(members if own is None else {**members, "stream_options": own})


def is_refusal_to_be_asked(status: int, body: bytes) -> bool:
    """Whether an error is about `stream_options`, which some older servers do not know. One that repeats the request is not."""
    return status in (400, 422) and b"stream_options" in body and b"messages" not in body and b"prompt" not in body


def cap_names(fields: Mapping[str, Raw]) -> list[str]:
    """Under which names the caller capped the answer; every upstream knows the older one."""
    given = (name for name in ("max_completion_tokens", "max_tokens") if name in fields)
    return [name for name in given if bytes(fields[name]) != b"null"] or ["max_tokens"]


def redirected(call: Call, *, upstream_model: str, max_tokens: int | None) -> bytes:
    """The caller's body with the model renamed, usage asked for, and the answer capped where `max_tokens` is given; else as it came."""
    changes: dict[str, object] = {}
    if upstream_model != call.model:
        changes["model"] = upstream_model
    if call.is_stream and not call.wants_usage:
        changes["stream_options"] = asking_for_usage(call.fields.get("stream_options"))
    if max_tokens is not None:
        for name in cap_names(call.fields):
            changes[name] = max_tokens
    return encode({**call.fields, **changes}) if changes else call.body
