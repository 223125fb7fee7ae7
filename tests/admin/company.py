"""A company that has used the gateway for a month: users, keys, apps, models, and a ledger that looks like one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from app.database import open_engine
from app.domain.ids import uuid7
from app.domain.pricing import Usage
from app.domain.record import (
    AttemptDetail,
    BudgetDetail,
    CallRecord,
    CandidateDetail,
    CostLineDetail,
    LimitDetail,
    RecordDetail,
)
from app.storage.sql_usage import SqlUsageStore
from tests.e2e.house import House

PEOPLE = (
    ("ada.lovelace", "Ada Lovelace", "active"),
    ("grace.hopper", "Grace Hopper", "active"),
    ("alan.turing", "Alan Turing", "trial"),
    ("katherine.johnson", "Katherine Johnson", "active"),
    ("edsger.dijkstra", "Edsger Dijkstra", "expired"),
    ("barbara.liskov", "Barbara Liskov", "active"),
    ("donald.knuth", "Donald Knuth", "suspended"),
    ("radia.perlman", "Radia Perlman", "active"),
)
KEYS = (
    ("support chatbot", 0, "60"),
    ("ci: release notes", 1, "20"),
    ("search summaries", 1, "150"),
    ("notebook", 2, "5"),
    ("contract review", 3, "200"),
    ("translations", 5, "40"),
    ("nightly batch", 5, "300"),
    ("on-call assistant", 7, "25"),
    ("old prototype", 4, "10"),
)
MODELS = (
    # name, upstreams, input and output in picodollars per token, typical latency in ms
    ("gpt-4o", ("gpt-4o-2024-11-20", "azure/gpt-4o"), 2_500_000, 10_000_000, 1400),
    ("gpt-4o-mini", ("gpt-4o-mini",), 150_000, 600_000, 700),
    ("claude-sonnet", ("claude-sonnet-4-5", "bedrock/claude-sonnet-4-5"), 3_000_000, 15_000_000, 1900),
    ("llama-3.3-70b", ("llama-3.3-70b-instruct",), 590_000, 790_000, 950),
)
FAULTS = ("upstream_error", "timeout", "truncated", "client_cancelled")


@dataclass(slots=True)
class Company:
    users: list[str] = field(default_factory=list)
    keys: list[tuple[str, str]] = field(default_factory=list)
    """Key id and the oid of its user."""
    secrets: list[str] = field(default_factory=list)
    endpoints: dict[str, list[str]] = field(default_factory=dict)
    app_ids: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    """Request ids, newest first."""


async def found_company(house: House, *, calls: int, days: int = 30, seed: int = 7) -> Company:
    """Set it up by the API, and write its past into the ledger. The same seed gives the same company."""
    made = Company()
    for oid, name, status in PEOPLE:
        body = {"user_oid": oid, "name": name, "email": f"{oid}@example.com", "payment_status": status}
        await house.admin("POST", "users", {**body, "payment_valid_until": "2027-06-30"}, expect=201)
        made.users.append(oid)
    for name, person, budget in KEYS:
        soft = str(int(budget) * 8 / 10).removesuffix(".0")
        budgets = [{"period": "monthly", "soft_limit_usd": soft, "hard_limit_usd": budget}]
        oid = made.users[person]
        key = await house.admin(
            "POST",
            "keys",
            {"user_oid": oid, "name": name, "budgets": budgets, "limits": [], "log_content": "full"},
            expect=201,
        )
        made.keys.append((key["id"], oid))
        made.secrets.append(key["key"])
    for app_id, app_name in (("crm", "Customer desk"), ("intranet", "Intranet search")):
        app: dict[str, object] = {"app_id": app_id, "name": app_name, "auto_create_users": app_id == "crm"}
        await house.admin("POST", "apps", {**app, "budgets": [{"period": "daily", "hard_limit_usd": "15"}]}, expect=201)
        made.app_ids.append(app_id)
    for model, upstreams, price_in, price_out, _ in MODELS:
        price = {"input_usd_per_mtok": str(price_in / 1e6), "output_usd_per_mtok": str(price_out / 1e6)}
        await house.admin("POST", "models", {"name": model, "price": price, "context_window": 128000}, expect=201)
        made.endpoints[model] = [
            await house.endpoint(model, upstream_model=name, weight=weight)
            for name, weight in zip(upstreams, (3, 1), strict=False)
        ]
    await house.admin("PATCH", "models/gpt-4o", {"fallbacks": ["claude-sonnet"], "aliases": ["gpt-4"]})
    records = list(past(made, calls=calls, days=days, chance=random.Random(seed)))
    engine = open_engine(house.database_url.replace("postgresql://", "postgresql+asyncpg://"))
    try:
        store = SqlUsageStore(engine)
        for start in range(0, len(records), 1000):
            await store.write(records[start : start + 1000])
    finally:
        await engine.dispose()
    made.calls = [record.request_id for record in sorted(records, key=lambda record: -record.created_at_ms)]
    return made


def past(company: Company, *, calls: int, days: int, chance: random.Random) -> Iterator[CallRecord]:
    """Calls by the hours in which people work, most of them good."""
    now = datetime.now(UTC)
    weights = [1 + 9 * max(0.0, 1 - abs(hour - 13) / 7) for hour in range(24)]
    for number in range(calls):
        day = now - timedelta(days=chance.random() * days)
        if day.weekday() >= 5 and chance.random() < 0.7:
            day -= timedelta(days=2)
        hour = chance.choices(range(24), weights)[0]
        at = day.replace(hour=hour, minute=chance.randrange(60), second=chance.randrange(60), microsecond=0)
        if number % 60 == 0:
            at = now - timedelta(minutes=chance.random() * 180)  # and some just now
        yield a_call(company, at if at < now else at - timedelta(days=1), chance)


def a_call(company: Company, at: datetime, chance: random.Random) -> CallRecord:
    model, _, price_in, price_out, typical_ms = chance.choices(MODELS, (4, 8, 3, 2))[0]
    endpoint = company.endpoints[model][0 if chance.random() < 0.75 else -1]
    key_id, oid = chance.choices(company.keys, (9, 3, 6, 1, 4, 3, 7, 2, 0.3))[0]
    prompt, completion = int(chance.lognormvariate(6.6, 0.9)) + 8, int(chance.lognormvariate(5.2, 0.8)) + 1
    outcome = "ok" if chance.random() > 0.024 else chance.choice(FAULTS)
    duration = int(typical_ms * chance.lognormvariate(0, 0.45)) + completion * 3
    is_stream, first = chance.random() < 0.7, int(duration * chance.uniform(0.15, 0.4))
    cached = prompt // 2 if chance.random() < 0.25 else 0
    cost = -(-(prompt * price_in + completion * price_out) // 1000)
    if outcome in ("upstream_error", "timeout"):
        completion, cost, cached = 0, 0, 0
    attempts = _attempts(company.endpoints[model], endpoint, outcome, first, duration, chance)
    detail = RecordDetail(
        attempts=attempts,
        candidates=tuple(
            CandidateDetail(each, "tried" if each in {a.endpoint_id for a in attempts} else "spare, by weight")
            for each in company.endpoints[model]
        ),
        limits=(
            LimitDetail("key", key_id, "requests", 600, 60, 1, 563),
            LimitDetail("user", oid, "tokens", 200_000, 60, prompt, 151_200),
        ),
        budgets=(
            BudgetDetail("key", key_id, "monthly:2026-11-01", 60_000_000_000, 41_000_000, 23_417_220_000, 12_000_000),
        ),
        arithmetic=(CostLineDetail("input", prompt, price_in), CostLineDetail("output", completion, price_out))
        if cost
        else (),
        price_source="operator",
        estimated_prompt_tokens=prompt + 11,
        estimated_completion_tokens=1024,
        finish_reason="stop" if outcome == "ok" else None,
        usage=Usage(prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached),
    )
    return CallRecord(
        request_id=uuid7(int(at.timestamp() * 1000), chance.randbytes(10)),
        created_at_ms=int(at.timestamp() * 1000),
        client_request_id=None,
        user_oid=oid,
        key_id=key_id,
        app_id=None,
        requested_model=model,
        served_model=model,
        endpoint_id=endpoint,
        provider="openai",
        dialect="chat",
        is_stream=is_stream,
        outcome=outcome,
        http_status={"upstream_error": 502, "timeout": 504, "client_cancelled": 499}.get(outcome, 200),
        error_code=outcome if outcome in ("upstream_error",) else "upstream_timeout" if outcome == "timeout" else None,
        error_reason="connect_failed" if outcome == "upstream_error" else None,
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=cached,
        reasoning_tokens=0,
        usage_quality="exact" if outcome == "ok" else "partial",
        cost_nanousd=cost,
        price_id="map:test",
        first_token_ms=None if not completion else first,
        duration_ms=duration,
        attempts=len(attempts),
        detail=detail,
    )


def _attempts(
    endpoints: list[str], endpoint: str, outcome: str, first: int, duration: int, chance: random.Random
) -> tuple[AttemptDetail, ...]:
    last = AttemptDetail(endpoint, "openai", 2, outcome, None, 200, first, duration)
    if outcome != "ok":
        return (AttemptDetail(endpoint, "openai", 2, "failed", outcome, None, None, duration),)
    if len(endpoints) > 1 and chance.random() < 0.06:
        other = endpoints[0] if endpoint != endpoints[0] else endpoints[1]
        failed = AttemptDetail(other, "openai", 2, "failed", "connect_failed", None, None, first // 3)
        return (failed, AttemptDetail(endpoint, "openai", first // 3 + 1, "ok", None, 200, first, duration))
    return (last,)
