"""Calls, models and meters for tests of what is estimated, learned and cut."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from app.dialects.openai_chat import OpenAIChat
from app.domain.call import Call, Estimate, Meter
from app.domain.catalog import Endpoint, Model, ProviderKind
from app.domain.identity import Identity, PaymentStatus, User

CHAT = OpenAIChat()


def a_call(content: object = "hi", *, model: str = "m", **more: object) -> Call:
    messages = more.pop("messages", [{"role": "user", "content": content}])
    return CHAT.read(json.dumps({"model": model, "messages": messages, **more}, ensure_ascii=False).encode())


def a_model(upstream: str = "gpt-4o", *, window: int | None = None) -> Model:
    endpoint = Endpoint("e", "m", ProviderKind.OPENAI, upstream, "http://127.0.0.1:1/v1")
    return Model("m", context_window_tokens=window, endpoints=(endpoint,))


def a_meter(call: Call | None = None, *, user: str = "u", model: Model | None = None, most_tokens: int = 1000) -> Meter:
    identity = Identity(User(user, PaymentStatus.ACTIVE, None))
    meter = Meter("r", None, identity, call or a_call(stream=True), datetime.now(UTC), 0.0)
    meter.model, meter.estimate = model or a_model("llama"), Estimate(10, most_tokens)
    return meter
