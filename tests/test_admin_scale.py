"""Long lists are served by indexes, whatever is asked of them. `bench.admin_lists` measures them at full size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from typing import Any

import asyncpg
import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from app.storage.management_ports import ListQuery
from app.storage.sql_management import SqlManagement
from bench.admin_lists import OWNER, fill
from tests.admin_fixtures import database, engine, open_gateway, postgres_url, template  # noqa: F401

USERS, KEYS = 3_000, 6_000


@contextmanager
def statements_of(engine: AsyncEngine) -> Iterator[list[tuple[str, Any]]]:  # noqa: F811
    asked: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        asked.append((statement, parameters))

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    yield asked
    event.remove(engine.sync_engine, "before_cursor_execute", note)


async def plan_of(database: str, statement: str, parameters: Any) -> str:  # noqa: F811
    connection = await asyncpg.connect(database.replace("+asyncpg", ""))
    try:
        await connection.execute("SET plan_cache_mode = force_custom_plan")
        rows = await connection.fetch(f"EXPLAIN {statement}", *parameters)
        return "\n".join(row[0] for row in rows)
    finally:
        await connection.close()


USER_QUESTIONS = [
    (ListQuery(), "ix_users_created_at_oid"),
    (ListQuery(search="user-1234@"), "ix_users_words"),
    (ListQuery(search="no such words"), "ix_users_words"),
    (ListQuery(sort="user_oid"), "pk_users"),
    (ListQuery(sort="payment_valid_until"), "ix_users_paid_until"),
    (ListQuery(user_oid="user-7"), "pk_users"),
]
KEY_QUESTIONS = [
    (ListQuery(), "ix_keys_created_at_id"),
    (ListQuery(search="user-1234"), "ix_keys_words"),
    (ListQuery(sort="name"), "ix_keys_name_id"),
    (ListQuery(sort="-expires_at"), "ix_keys_end"),
    (ListQuery(user_oid="user-7"), "ix_keys_user_oid"),
]


async def test_every_question_to_a_long_list_is_served_by_an_index(
    database: str,  # noqa: F811
    engine: AsyncEngine,  # noqa: F811
) -> None:
    """T060."""
    await fill(database, USERS, KEYS)
    gateway = open_gateway(engine)
    faults = []
    for questions, ask in (
        (USER_QUESTIONS, gateway.management.users.page),
        (KEY_QUESTIONS, gateway.management.keys.page),
    ):
        for query, index in questions:
            with statements_of(engine) as asked:
                await ask(query)
            plan = await plan_of(database, *asked[-1])
            if index not in plan:
                faults.append(f"{query}: {plan}")

    assert faults == []


async def test_expiring_all_users_is_a_few_statements_and_leaves_a_valid_trail(
    database: str,  # noqa: F811
    engine: AsyncEngine,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.services.manage_users.EXPIRY_BATCH", 2_000)
    await fill(database, USERS, 1)
    gateway = open_gateway(engine)

    with statements_of(engine) as asked:
        expiry = await gateway.management.users.sync_all_expiries(OWNER, date(2026, 1, 1))

    assert (expiry.checked, len(expiry.expired)) == (USERS, USERS)
    assert len(asked) < 20
    verdict = await gateway.audit.verify()
    assert (verdict.verified, verdict.is_valid) == (USERS, True)
    async with SqlManagement(engine).reading() as reader:
        assert not (await reader.users(ListQuery(payment_status="active"))).items
