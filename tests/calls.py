"""Calls and what they are made of, by hand: identities, models, endpoints, meters. Every builder takes what is to be different."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec

from app.domain.budget import Budget, PeriodKind
from app.domain.call import Call, Estimate, Meter
from app.domain.catalog import Endpoint, Model, ProviderKind
from app.domain.identity import App, Identity, Key, KeyStatus, PaymentStatus, User
from app.domain.ids import uuid7
from app.domain.money import NanoUsd, PicoUsd
from app.domain.pricing import Price, Rates

NOON = datetime(2026, 1, 15, 12, 0, tzinfo=UTC)
"""The moment at which `ManualClock` starts."""
STARTED_S = 1_000.0
"""Its monotonic time at that moment."""

_numbers = itertools.count(1)

ALICE = User("alice", PaymentStatus.ACTIVE, None)
KEY = Key("key-1", KeyStatus.ACTIVE, None, frozenset({"*"}))
APP = App("crm", True, frozenset({"*"}))
PRICE = Price("p1", Rates(input=PicoUsd(2_000), output=PicoUsd(8_000)))
"""2 and 8 nanodollars a token: figures that can be checked without a pencil."""


def a_request_id(at: datetime = NOON) -> str:
    """A UUIDv7 of that moment, unlike any other of this process."""
    return uuid7(int(at.timestamp() * 1000), next(_numbers).to_bytes(10, "big"))


def a_user(**changes: Any) -> User:
    return replace(ALICE, **changes)


def a_key(**changes: Any) -> Key:
    return replace(KEY, **changes)


def an_app(**changes: Any) -> App:
    return replace(APP, **changes)


def an_identity(user: User = ALICE, *, key: Key | None = KEY, app: App | None = None) -> Identity:
    return Identity(user, key, app)


def an_endpoint(id: str = "e1", **changes: Any) -> Endpoint:
    made = Endpoint(id, "gpt-4", ProviderKind.OPENAI, "gpt-4o", "https://upstream.example/v1")
    return replace(made, **changes)


def a_model(name: str = "gpt-4", *endpoints: Endpoint, **changes: Any) -> Model:
    return replace(Model(name, endpoints=endpoints or (an_endpoint(),)), **changes)


def a_call(**changes: Any) -> Call:
    made = Call(
        dialect="chat",
        model="gpt-4",
        is_stream=False,
        wants_usage=False,
        max_tokens=100,
        choices=1,
        prompt_bytes=300,
        images=0,
        body=b'{"model":"gpt-4"}',
        fields={},
    )
    return msgspec.structs.replace(made, **changes)


def a_meter(
    identity: Identity | None = None, *, call: Call | None = None, at: datetime = NOON, **changes: Any
) -> Meter:
    meter = Meter(
        request_id=a_request_id(at),
        client_request_id=None,
        identity=identity or an_identity(),
        call=call or a_call(),
        created_at=at,
        started_s=STARTED_S,
    )
    return msgspec.structs.replace(meter, **changes)


def an_estimate(prompt_tokens: int = 100, completion_tokens: int = 100) -> Estimate:
    return Estimate(prompt_tokens, completion_tokens)


def a_budget(hard: int | None = 1_000_000, *, soft: int | None = None, period: PeriodKind = PeriodKind.TOTAL) -> Budget:
    return Budget(period, None if soft is None else NanoUsd(soft), None if hard is None else NanoUsd(hard))
