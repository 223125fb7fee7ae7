"""The operator's diagnostics, from the outside (the scripts) and from the inside (why a key would be refused)."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from app.config import load_settings
from app.database import transaction
from app.diagnostics import Question, Target, diagnose
from app.domain.budget import Budget, PeriodKind
from app.domain.catalog import Model
from app.domain.identity import App, Key, KeyStatus, PaymentStatus, User
from app.domain.limits import Limit, LimitKind
from app.domain.money import NanoUsd
from app.models.tables import SCHEMA_REVISION, keys
from app.services.api_key import imported_digest_of, new_key, pepper_of
from app.services.manage_imports import IMPORTED_PREFIX
from app.storage.ports import RegisteredApp, StoredSecret
from app.storage.sql_diagnostics import key_with_id, table_sizes
from app.storage.sql_usage import SqlUsageStore
from tests.storage.planting import SqlPlanter
from tests.storage.records import KEY_A, a_record

ROOT = Path(__file__).parents[2]
SECRET_KEY = "a-secret-key-for-the-diagnostics-long-enough"
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
USER = User("user-1", PaymentStatus.ACTIVE, None)
APP = App("crm", is_active=True, allowed_models=frozenset({"*"}))
KEY = Key(KEY_A, KeyStatus.ACTIVE, None, frozenset({"*"}))


@pytest.fixture
async def plant(engine: AsyncEngine) -> SqlPlanter:
    planter = SqlPlanter(engine)
    await planter.model(Model("gpt-4", aliases=("best",)))
    return planter


async def script(name: str, *arguments: str, folder: Path, **environment: str) -> tuple[int, str]:
    """Run a script as an operator does; its status and all it said."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, str(ROOT / f"{name}.py"), *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "COLUMNS": "200", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout


async def refusals(engine: AsyncEngine, **environment: str) -> list[str]:
    target = Target("", "", SECRET_KEY, load_settings(environment))
    found = await key_with_id(engine, KEY_A)
    assert found is not None
    return (await diagnose(Question(engine, SqlUsageStore(engine), None, target, NOW), found)).refusals


# ── Why a request would be refused ────────────────────────────────────────────────────────────────────────────────────


async def test_a_sound_key_is_refused_nothing(engine: AsyncEngine, plant: SqlPlanter) -> None:
    await plant.user(USER)
    await plant.key(KEY, owner="user-1", digest=b"d")
    assert await refusals(engine) == []


@pytest.mark.parametrize(
    ("user", "key", "code"),
    [
        (USER, replace(KEY, status=KeyStatus.REVOKED), "revoked"),
        (USER, replace(KEY, expires_at=NOW), "key has expired"),
        (replace(USER, payment_status=PaymentStatus.SUSPENDED), KEY, "user_suspended"),
        (replace(USER, payment_status=PaymentStatus.EXPIRED), KEY, "payment_expired"),
        (replace(USER, payment_valid_until=date(2026, 11, 22)), KEY, "payment_expired"),
        (USER, replace(KEY, allowed_models=frozenset({"other"})), "model_not_allowed"),
        (USER, replace(KEY, limits=(Limit(LimitKind.REQUESTS, 0, 60),)), "rate_limit_exceeded"),
        (USER, replace(KEY, budgets=(Budget(PeriodKind.DAILY, None, NanoUsd(1_500)),)), "budget_exceeded"),
        (replace(USER, budgets=(Budget(PeriodKind.TOTAL, None, NanoUsd(0)),)), KEY, "budget_exceeded"),
    ],
)
async def test_each_reason_is_named(engine: AsyncEngine, plant: SqlPlanter, user: User, key: Key, code: str) -> None:
    await plant.user(user)
    await plant.key(key, owner="user-1", digest=b"d")
    await SqlUsageStore(engine).write([a_record(NOW - timedelta(hours=1), cost_nanousd=1_500)])
    (refusal,) = await refusals(engine)
    assert code in refusal


async def test_what_does_not_refuse_is_not_named(engine: AsyncEngine, plant: SqlPlanter) -> None:
    key = replace(
        KEY,
        allowed_models=frozenset({"best"}),
        allowed_networks=(ip_network("10.0.0.0/8"),),
        expires_at=NOW + timedelta(seconds=1),
        budgets=(Budget(PeriodKind.DAILY, NanoUsd(0), NanoUsd(1_501)), Budget(PeriodKind.WEEKLY, NanoUsd(1), None)),
    )
    await plant.user(replace(USER, payment_valid_until=NOW.date()))
    await plant.key(key, owner="user-1", digest=b"d")
    await SqlUsageStore(engine).write([a_record(NOW - timedelta(hours=1), cost_nanousd=1_500)])
    assert await refusals(engine) == []


async def test_without_any_model_nothing_can_be_served(engine: AsyncEngine) -> None:
    planter = SqlPlanter(engine)
    await planter.user(USER)
    await planter.key(KEY, owner="user-1", digest=b"d")
    (refusal,) = await refusals(engine)
    assert "No model is registered" in refusal


# ── The scripts ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_tables_are_made_listed_and_made_only_once(empty_database: str, tmp_path: Path) -> None:
    status, said = await script("list_tables", folder=tmp_path, DATABASE_URL=empty_database)
    assert (status, "never migrated" in said) == (1, True)
    plain = empty_database.replace("+asyncpg", "")
    assert (await script("create_missing_tables", folder=tmp_path, DATABASE_URL=plain))[0] == 0
    status, said = await script("create_missing_tables", folder=tmp_path, DATABASE_URL=plain)
    assert (status, "Nothing to do" in said) == (0, True)
    status, said = await script("list_tables", folder=tmp_path, DATABASE_URL=plain)
    assert (status, f"Schema: {SCHEMA_REVISION}, up to date." in said) == (0, True)
    assert "usage_records" in said


async def test_a_table_counts_its_partitions(engine: AsyncEngine) -> None:
    await SqlUsageStore(engine).write([a_record(datetime(2026, month, 1, tzinfo=UTC)) for month in (1, 2, 2)])
    sizes = {size.name: size for size in await table_sizes(engine)}
    ledger = sizes["usage_records"]
    assert (ledger.rows, ledger.is_estimate, ledger.partitions) == (3, False, 2)
    assert ledger.size_bytes > sizes["config_revision"].size_bytes > 0
    assert not [name for name in sizes if "_p2026" in name]


async def test_a_key_is_found_by_its_secret_and_its_secret_is_not_shown(
    database: str, engine: AsyncEngine, plant: SqlPlanter, tmp_path: Path
) -> None:
    made = new_key(pepper_of(SECRET_KEY))
    await plant.user(replace(USER, payment_status=PaymentStatus.SUSPENDED))
    await plant.key(KEY, owner="user-1", digest=made.digest)
    setting = {"DATABASE_URL": database, "SECRET_KEY": SECRET_KEY}
    for arguments in (["--key", made.secret], ["--id", KEY_A], []):
        status, said = await script("diagnose_keys", *arguments, folder=tmp_path, **setting)
        assert status == 0
        assert "user_suspended" in said
        assert "60 requests per 60 s" in said
        assert made.secret not in said


async def test_an_imported_key_is_found_and_refused_unless_such_keys_are_accepted(
    database: str, engine: AsyncEngine, plant: SqlPlanter, tmp_path: Path
) -> None:
    secret = "sk-issued-elsewhere-0123"
    digest = imported_digest_of(secret, pepper_of(SECRET_KEY))
    assert digest is not None
    await plant.user(USER)
    await plant.key(KEY, owner="user-1", digest=digest)
    async with transaction(engine) as connection:
        await connection.execute(update(keys).values(key_prefix=IMPORTED_PREFIX))
    setting = {"DATABASE_URL": database, "SECRET_KEY": SECRET_KEY}

    status, said = await script("diagnose_keys", "--key", secret, folder=tmp_path, **setting)
    assert (status, "ACCEPT_LITELLM_KEYS" in said) == (0, True)
    status, said = await script(
        "diagnose_keys", "--key", secret, folder=tmp_path, **setting, ACCEPT_LITELLM_KEYS="true"
    )
    assert (status, "would be served now" in said) == (0, True)
    assert secret not in said


async def test_a_key_of_before_the_rotation_of_secret_key_is_found(
    database: str, engine: AsyncEngine, plant: SqlPlanter, tmp_path: Path
) -> None:
    made = new_key(pepper_of(SECRET_KEY))
    await plant.user(USER)
    await plant.key(KEY, owner="user-1", digest=made.digest)
    newer = "a-newer-secret-key-for-the-diagnostics-long-enough"

    status, said = await script(
        "diagnose_keys", "--key", made.secret, folder=tmp_path, DATABASE_URL=database, SECRET_KEY=newer
    )
    assert (status, "There is no such key" in said) == (1, True)
    status, said = await script(
        *("diagnose_keys", "--key", made.secret),
        folder=tmp_path,
        DATABASE_URL=database,
        SECRET_KEY=newer,
        SECRET_KEY_PREVIOUS=SECRET_KEY,
    )
    assert (status, "would be served now" in said) == (0, True)


@pytest.mark.parametrize(
    ("app", "user", "settings", "expected"),
    [
        ({}, "user-1", {}, "would be served now"),
        ({"app": replace(APP, is_active=False)}, "user-1", {}, "403 app_inactive"),
        ({"app": replace(APP, allowed_networks=(ip_network("10.0.0.0/8"),))}, "user-1", {}, "403 ip_not_allowed"),
        (
            {"app": replace(APP, budgets=(Budget(PeriodKind.DAILY, None, NanoUsd(0)),))},
            "user-1",
            {},
            "budget of $0 is spent",
        ),
        ({"app": replace(APP, allowed_models=frozenset({"other"}))}, "user-1", {}, "403 model_not_allowed"),
        ({}, "late", {}, "403 payment_expired"),
        ({}, "nobody", {}, "403 user_unknown"),
        ({"may_create_users": True}, "nobody", {}, "the first call creates one"),
        ({}, "a b", {}, "400 invalid_request"),
        ({"secrets": ()}, "user-1", {}, "Every secret would be refused"),
        ({"secrets": ()}, "user-1", {"GATEWAY_SHARED_SECRET": "s" * 40}, "and GATEWAY_SHARED_SECRET"),
        (None, "user-1", {}, "401 invalid_api_key"),
    ],
)
async def test_why_an_app_would_be_refused_is_named(
    database: str,
    plant: SqlPlanter,
    tmp_path: Path,
    app: dict[str, Any] | None,
    user: str,
    settings: dict[str, str],
    expected: str,
) -> None:
    await plant.user(USER)
    await plant.user(replace(USER, oid="late", payment_status=PaymentStatus.EXPIRED))
    if app is not None:
        await plant.app(replace(RegisteredApp(APP, (StoredSecret(b"d", None),), False, False, None), **app))
    settings = {"DATABASE_URL": database, "SECRET_KEY": SECRET_KEY, **settings}

    _, said = await script("diagnose_keys", "--app", "crm", "--user", user, folder=tmp_path, **settings)

    assert expected in said, said


@pytest.mark.parametrize("arguments", [["--key", "sk-nonsense"], ["--id", "no uuid"], ["--id", KEY_A]])
async def test_a_key_that_is_none_is_said_in_one_line(database: str, tmp_path: Path, arguments: list[str]) -> None:
    setting = {"DATABASE_URL": database, "SECRET_KEY": SECRET_KEY}
    status, said = await script("diagnose_keys", *arguments, folder=tmp_path, **setting)
    assert (status, said.count("\n")) == (1, 1)


@pytest.mark.parametrize("name", ["list_tables", "diagnose_keys", "create_missing_tables"])
@pytest.mark.parametrize("url", ["", "postgresql://gateway@127.0.0.1:1/none", "mysql://here"])
async def test_without_a_database_one_line_says_so(name: str, url: str, tmp_path: Path) -> None:
    setting = {"DATABASE_URL": url} if url else {}
    status, said = await script(name, folder=tmp_path, **setting)
    assert status == 1
    assert said.count("\n") == 1
    assert "DATABASE_URL" in said


async def test_counting_stops_where_an_estimate_is_as_good(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.storage.sql_diagnostics.COUNT_UP_TO", 10)
    async with transaction(engine) as connection:
        await connection.execute(text("INSERT INTO users (oid) SELECT 'u' || n FROM generate_series(1, 500) n"))
    async with transaction(engine) as connection:
        await connection.execute(text("ANALYZE users"))
    (size,) = [size for size in await table_sizes(engine) if size.name == "users"]
    assert (size.rows, size.is_estimate) == (500, True)
