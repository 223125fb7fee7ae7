"""The audit trail cannot be rewritten unnoticed, holds what was refused, and tells who looked at what callers wrote.

Covers T032, T033, T034 and T142 of the catalogue.
"""

# ruff: noqa: F811 - fixtures are imported by name and asked for by name

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database import transaction
from app.domain.access import Actor, Role
from app.domain.identity import PaymentStatus
from app.domain.masking import MASK, mask_secrets
from app.domain.record import CallContent
from app.models.tables import audit_log
from app.services.audit_anchor import AuditAnchors, read_anchors
from app.storage.anchor_file import AnchorFile
from app.storage.management_ports import AdminSpec, AuditEntry, AuditQuery, UserSpec
from app.storage.sql_audit import SqlAudit
from app.storage.sql_usage import SqlUsageStore
from tests.admin_fixtures import (
    Gateway,
    api,  # noqa: F401
    database,  # noqa: F401
    engine,  # noqa: F401
    gateway,  # noqa: F401
    open_app,
    open_client,
    open_gateway,
    postgres_url,  # noqa: F401
    template,  # noqa: F401
)
from tests.storage.records import a_record

OWNER = Actor("owner", Role.OWNER)
Client = httpx2.AsyncClient


async def with_trail(gateway: Gateway, rows: int = 5) -> None:
    for number in range(rows):
        await gateway.management.users.create(OWNER, UserSpec(f"u{number}"))


@pytest.fixture
async def viewer(gateway: Gateway) -> AsyncIterator[Client]:
    _, token = await gateway.management.admins.create(OWNER, AdminSpec("vera", Role.VIEWER))
    async with open_client(open_app(gateway), token) as client:
        yield client


async def test_verifications_at_once_leave_the_pool_to_others(gateway: Gateway, engine: AsyncEngine) -> None:
    await with_trail(gateway)
    async with gateway.audit.verifying:
        waiting = [asyncio.create_task(gateway.audit.verify()) for _ in range(20)]
        await asyncio.sleep(0.05)
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]

    assert {(await task).verified for task in waiting} == {5}


async def test_rows_written_alike_are_hashed_as_rows_written_one_by_one(gateway: Gateway) -> None:
    """T032: also where ids hold what JSON escapes, and a row of its own stands before and behind."""
    oids = ["plain", 'quote"back\\slash', "~!*'();:@&=+$,/?#[]"]
    for oid in oids:
        spec = UserSpec(oid, payment_valid_until=date(2020, 1, 1), payment_status=PaymentStatus.TRIAL)
        await gateway.management.users.create(OWNER, spec)
    await gateway.management.users.create(OWNER, UserSpec("active", payment_valid_until=date(2020, 1, 1)))

    await gateway.management.users.sync_all_expiries(OWNER, date(2020, 1, 2))
    await gateway.management.users.create(OWNER, UserSpec("later"))

    verdict = await gateway.audit.verify()
    assert (verdict.verified, verdict.is_valid) == (9, True)
    expired = (await gateway.audit.page(AuditQuery(action="user.expire"))).items
    assert {row.object_id for row in expired} == {*oids, "active"}
    assert {row.object_id: row.before for row in expired}["plain"] == {"payment_status": "trial"}
    assert {row.object_id: row.before for row in expired}["active"] == {"payment_status": "active"}
    assert {(row.actor, row.role, row.address, str(row.after)) for row in expired} == {
        ("owner", "owner", None, "{'payment_status': 'expired'}")
    }


# ── A trail that stays (T033) ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_log SET actor = 'x'",
        "DELETE FROM audit_log",
        "DELETE FROM audit_log WHERE id = 5",
        "TRUNCATE audit_log",
        "INSERT INTO audit_log SELECT * FROM audit_log ON CONFLICT (id) DO UPDATE SET actor = 'x'",
    ],
)
async def test_the_gateway_itself_cannot_change_the_trail_t033(gateway: Gateway, statement: str) -> None:
    await with_trail(gateway)

    with pytest.raises(DBAPIError, match="append-only"):
        async with transaction(gateway.engine) as connection:
            await connection.exec_driver_sql(statement)

    assert (await gateway.audit.verify()).verified == 5


async def test_a_database_role_without_special_rights_cannot_change_the_trail_either_t033(gateway: Gateway) -> None:
    await with_trail(gateway)
    await gateway.execute("CREATE ROLE clerk_of_the_trail")
    await gateway.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO clerk_of_the_trail")
    try:
        async with gateway.engine.connect() as connection:
            await connection.exec_driver_sql("SET application_name = 'psql'")
            await connection.exec_driver_sql("SET ROLE clerk_of_the_trail")
            with pytest.raises(DBAPIError, match="append-only"):
                await connection.exec_driver_sql("DELETE FROM audit_log")
            await connection.invalidate()
    finally:
        await gateway.execute("DROP OWNED BY clerk_of_the_trail")
        await gateway.execute("DROP ROLE clerk_of_the_trail")


@pytest.mark.parametrize(
    ("tampering", "first_invalid"),
    [
        ("DELETE FROM audit_log WHERE id = 5", 5),
        ("DELETE FROM audit_log WHERE id > 2", 3),
        ("DELETE FROM audit_log", 1),
        ("DELETE FROM audit_head", 6),
        ("UPDATE audit_log SET previous_hash = hash WHERE id = 2", 2),
        ("UPDATE audit_log SET id = 7 WHERE id = 5", 5),
        *((f"UPDATE audit_log SET {column} = {value} WHERE id = 3", 3) for column, value in {
            "at": "at + interval '1 microsecond'", "actor": "'x'", "role": "'viewer'", "address": "'10.0.0.1'",
            "action": "'x'", "object_kind": "'x'", "object_id": "'x'", "before": "'{}'", "after": "NULL",
        }.items()),
    ],
)  # fmt: skip
async def test_whatever_is_edited_or_taken_away_shows_also_at_the_end_t033(
    gateway: Gateway, tampering: str, first_invalid: int
) -> None:
    await with_trail(gateway)
    assert {column.name for column in audit_log.c} >= {"at", "actor", "role", "address", "before", "after"}

    await gateway.execute(tampering)

    verdict = await gateway.audit.verify()
    assert verdict.first_invalid_id == first_invalid, verdict


async def test_a_gap_at_the_end_stays_a_gap_when_the_trail_goes_on_t033(gateway: Gateway) -> None:
    await with_trail(gateway)
    await gateway.execute("DELETE FROM audit_log WHERE id = 5")

    await gateway.management.users.create(OWNER, UserSpec("later"))

    assert (await gateway.audit.verify()).first_invalid_id == 5


async def test_an_anchor_kept_elsewhere_shows_that_all_of_it_was_rewritten(gateway: Gateway, tmp_path: Path) -> None:
    file = tmp_path / "anchors" / "trail"
    anchors = AuditAnchors(audit=gateway.audit, clock=gateway.clock, keep=AnchorFile(file).keep)
    await anchors.tell()
    assert not file.exists(), "an empty trail has nothing to tell"
    await with_trail(gateway)
    await anchors.tell()
    await anchors.tell()
    told = read_anchors(file.read_text())
    assert [anchor.id for anchor in told] == [5], "what was told already is not told again"
    assert (await gateway.audit.verify(told)).is_valid

    await gateway.execute("DELETE FROM audit_log")
    await gateway.execute("DELETE FROM audit_head")
    for number in range(6):
        await gateway.audit.append(AuditEntry(gateway.clock.now(), OWNER, "user.create", "user", f"forged{number}"))

    assert (await gateway.audit.verify()).is_valid, "a chain alone cannot tell"
    assert (await gateway.audit.verify(told)).first_invalid_id == 5
    with pytest.raises(ValueError, match="line 2"):
        read_anchors(file.read_text() + "no anchor\n")


async def test_an_anchor_that_cannot_be_kept_is_tried_again(gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file where a folder should be")
    await with_trail(gateway, rows=1)
    assert not await AnchorFile(tmp_path / "blocked" / "trail").keep(b"{}")
    kept: list[bytes] = []

    async def keep(line: bytes) -> bool:
        kept.append(line)
        return len(kept) > 1

    anchors = AuditAnchors(audit=gateway.audit, clock=gateway.clock, keep=keep)
    for _ in range(3):
        await anchors.tell()

    assert len(kept) == 2


# ── What is in it (T032) ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_refused_attempts_are_in_the_trail_and_a_flood_of_them_does_not_fill_it_t032(
    gateway: Gateway, viewer: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.routers.deps.AUDITED_REFUSALS", 3)
    for _ in range(5):
        assert (await viewer.post("/users", json={"user_oid": "u"})).status_code == 403

    refused = (await gateway.audit.page(AuditQuery(action="access.refused"))).items
    assert [(row.actor, row.object_id, row.address) for row in refused] == [
        ("vera", "POST /admin/api/users", "203.0.113.9")
    ] * 3
    await gateway.clock.advance(61)
    assert (await viewer.post("/users", json={"user_oid": "u"})).status_code == 403
    assert len((await gateway.audit.page(AuditQuery(action="access.refused"))).items) == 4


async def test_the_trail_is_searched_by_words_and_time(gateway: Gateway, api: Client) -> None:
    await with_trail(gateway, rows=2)
    noon = gateway.clock.now()
    await gateway.clock.advance(3600)
    await gateway.management.users.create(Actor("Ada", Role.ADMIN), UserSpec("late"))

    async def ids(**query: str) -> list[str]:
        answer = await api.get("/audit", params=query)
        assert answer.status_code == 200, answer.text
        return [item["object_id"] for item in answer.json()["items"]]

    assert await ids(search="ADA") == ["late"]
    assert await ids(search="u1") == ["u1"]
    assert await ids(search="%") == []
    assert await ids(to=(noon + timedelta(minutes=1)).isoformat()) == ["u1", "u0"]
    assert await ids(**{"from": (noon + timedelta(minutes=1)).isoformat()}) == ["late"]
    assert await ids(action="user.create", actor="owner", object_kind="user") == ["u1", "u0"]


# ── Administrators (T021, T034) ───────────────────────────────────────────────────────────────────────────────────────


ODD = [
    *(-0.0, 0.0, 1e16, 1e15, -1e300, 1.5e-300, 5.0, 2**70, True, None, "a\0b", "\ud800", "é", "\u2028", ""),
    *([-0.0, "\0"], {"a": {"b": [-0.0]}}, {"\0": 1}, (1.0, 2)),
]


@pytest.mark.parametrize("odd", ODD, ids=ascii)
async def test_whatever_is_written_is_read_as_it_was_hashed(gateway: Gateway, odd: Any) -> None:
    """The database has its own way with numbers and texts: a row that it changed would be called forged."""
    entry = AuditEntry(gateway.clock.now(), OWNER, "a.b", "kind", "id\0", before={"x": odd}, after=odd)
    await gateway.audit.append(entry)
    verdict = await gateway.audit.verify()
    assert verdict.is_valid, verdict


async def test_an_overflow_of_minus_no_seconds_leaves_the_trail_whole(gateway: Gateway, api: Client) -> None:
    await with_trail(gateway, rows=1)
    body = '{"user_oid": "u0", "overflow": {"mode": "queue", "max_wait_seconds": -0.0}}'
    made = await api.post("/keys", content=body, headers={"content-type": "application/json"})
    assert made.status_code == 201
    assert (await api.get("/audit/verify")).json()["valid"]


async def test_a_refused_attempt_at_a_path_that_holds_a_nul_is_refused_and_told(
    gateway: Gateway, viewer: Client
) -> None:
    assert (await viewer.delete("/users/a%00b")).status_code == 403
    (newest, *_) = (await gateway.audit.page(AuditQuery(limit=5))).items
    assert (newest.action, newest.object_id) == ("access.refused", "DELETE /admin/api/users/a\ufffdb")


async def test_nobody_hands_out_more_than_he_has_t021(gateway: Gateway) -> None:
    ends_at = gateway.clock.now() + timedelta(hours=1)
    _, token = await gateway.management.admins.create(OWNER, AdminSpec("temp", Role.ADMIN, ends_at))
    owner, _ = await gateway.management.admins.create(OWNER, AdminSpec("olga", Role.OWNER))

    async with open_client(open_app(gateway), token) as admin:
        later, sooner = (ends_at + timedelta(seconds=1)).isoformat(), (ends_at - timedelta(minutes=1)).isoformat()
        for body in (
            {"name": "a", "role": "owner", "expires_at": sooner},
            {"name": "a", "role": "admin"},
            {"name": "a", "role": "viewer", "expires_at": later},
        ):
            assert (await admin.post("/admins", json=body)).status_code == 403, body
        made = await admin.post("/admins", json={"name": "a", "role": "viewer", "expires_at": sooner})
        assert made.status_code == 201
        path = f"/admins/{made.json()['id']}"
        for wider in ({"role": "owner"}, {"expires_at": later}, {"expires_at": None}):
            assert (await admin.patch(path, json=wider)).status_code == 403, wider
        for method, forbidden in (("PATCH", ""), ("POST", "/revoke"), ("POST", "/rotate"), ("DELETE", "")):
            change = {"role": "viewer"} if method == "PATCH" else {}
            answer = await admin.request(method, f"/admins/{owner.id}{forbidden}", json=change)
            assert answer.status_code == 403, (method, forbidden)

    rows = await gateway.rows("SELECT role FROM admins ORDER BY created_at, role")
    assert sorted(row["role"] for row in rows) == ["admin", "owner", "viewer"]


@pytest.mark.parametrize(
    "name",
    [
        *("ADMIN_TOKEN", " admin_token ", "nobody", "sso:ada@example.com", "Command  Line", "Gateway", "app crm"),
        *("admin\u200b_token", "\uff21dmin_token", "NOBODY\u2060"),
    ],
)
async def test_nobody_takes_a_name_that_means_somebody_else_in_the_trail(api: Client, name: str) -> None:
    answer = await api.post("/admins", json={"name": name, "role": "viewer"})

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "name")


async def test_the_last_owner_cannot_be_removed_demoted_or_made_to_expire_t034(engine: Any) -> None:
    gateway = open_gateway(engine, admin_token=None)
    owner, token = await gateway.management.admins.create(OWNER, AdminSpec("olga", Role.OWNER))
    async with open_client(open_app(gateway), token) as api:
        path = f"/admins/{owner.id}"
        soon = (gateway.clock.now() + timedelta(days=1)).isoformat()
        assert (await api.delete(path)).status_code == 409
        assert (await api.post(f"{path}/revoke")).status_code == 409
        assert (await api.patch(path, json={"role": "admin"})).status_code == 409
        assert (await api.patch(path, json={"expires_at": soon})).status_code == 409
        second = await api.post("/admins", json={"name": "second", "role": "owner"})
        assert second.status_code == 201
        assert (await api.delete(path)).status_code == 204


async def test_sessions_are_listed_and_ended_by_those_who_may(gateway: Gateway, api: Client) -> None:
    _, token = await gateway.management.admins.create(OWNER, AdminSpec("ada", Role.ADMIN))
    await gateway.admin_sessions.open(token, address="192.0.2.1", user_agent="Firefox\r\nX: y")
    await gateway.clock.advance(1)
    opened = await gateway.admin_sessions.open(
        "an-admin-token-that-only-these-tests-know-0123456789", address=None, user_agent=""
    )

    items = (await api.get("/sessions")).json()["items"]
    assert [(item["name"], item["kind"]) for item in items] == [("ADMIN_TOKEN", "setting"), ("ada", "token")]
    assert items[1]["user_agent"] == "FirefoxX: y"
    assert opened.cookie_value not in json.dumps(items)
    async with open_client(open_app(gateway), token) as admin:
        assert (await admin.delete(f"/sessions/{items[0]['id']}")).status_code == 403
        assert (await admin.delete(f"/sessions/{items[1]['id']}")).status_code == 204
        assert (await admin.delete(f"/sessions/{items[1]['id']}")).status_code == 404
    assert [item["name"] for item in (await api.get("/sessions")).json()["items"]] == ["ADMIN_TOKEN"]


# ── What callers wrote (T142) ─────────────────────────────────────────────────────────────────────────────────────────

NOON = datetime(2026, 1, 15, 10, tzinfo=UTC)


async def with_content(gateway: Gateway, user_oid: str, count: int = 1, body: bytes = b'{"a": 1}') -> list[str]:
    store = SqlUsageStore(gateway.engine)
    await store.ensure_partitions(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC))
    records = [a_record(at=NOON + timedelta(seconds=number), user_oid=user_oid) for number in range(count)]
    await store.write(records)
    made_ms = int(NOON.timestamp() * 1000)
    await store.write_content([CallContent(each.request_id, made_ms, user_oid, body, body, False) for each in records])
    return [record.request_id for record in records]


async def test_content_is_for_owners_and_admins_and_each_look_is_in_the_trail_t142(gateway: Gateway) -> None:
    (request_id,) = await with_content(gateway, "u")
    for role in Role:
        _, token = await gateway.management.admins.create(OWNER, AdminSpec(f"the {role}", role))
        async with open_client(open_app(gateway), token) as client:
            answer = await client.get(f"/usage/logs/{request_id}")
            assert answer.status_code == 200
            assert (answer.json()["content"] is not None) is (role in (Role.OWNER, Role.ADMIN)), role

    looks = (await gateway.audit.page(AuditQuery(action="call.view_content"))).items
    assert [(row.actor, row.object_id) for row in looks] == [("the admin", request_id), ("the owner", request_id)]


async def test_erasing_a_users_content_leaves_the_ledger_and_other_users_t142(
    gateway: Gateway, api: Client, viewer: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.storage.sql_usage.ERASED_AT_ONCE", 2)
    await with_content(gateway, "u", count=5)
    await with_content(gateway, "other")
    ledger = await gateway.rows("SELECT * FROM usage_records ORDER BY request_id")

    assert (await viewer.delete("/usage/content", params={"user_oid": "u"})).status_code == 403
    answer = await api.delete("/usage/content", params={"user_oid": "u"})

    assert answer.json() == {"user_oid": "u", "erased": 5}
    assert [row["user_oid"] for row in await gateway.rows("SELECT user_oid FROM usage_content")] == ["other"]
    assert await gateway.rows("SELECT * FROM usage_records ORDER BY request_id") == ledger
    (erased,) = (await gateway.audit.page(AuditQuery(action="content.erase"))).items
    assert (erased.object_kind, erased.object_id) == ("user", "u")
    assert (await api.delete("/usage/content", params={"user_oid": "u"})).json()["erased"] == 0


SECRETS = [
    "sk-abcdefghij0123456789",
    "sk-proj-abc_DEF-ghijklmnop",
    "sk-ant-api03-abcdefghijklmnop",
    "AIzaSyA-1234567890abcdefghijklmnopqrstu",
    "Bearer abcdef0123456789.xyz",
    "bearer  eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
    "ghp_0123456789abcdefghijABCDEFGHIJ012345",
    "AKIAIOSFODNN7EXAMPLE",
    "ag-admin-0123456789abcdef",
    "-----BEGIN RSA PRIVATE KEY-----\\nMIIEow\\nabc\\n-----END RSA PRIVATE KEY-----",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_what_looks_like_a_credential_is_masked_and_a_json_body_stays_one_t142(secret: str) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": f"my key is {secret}, please mind it"}]}).encode()

    masked = mask_secrets(body)

    hidden = secret.split()[-1].removeprefix("Bearer ") if not secret.startswith("---") else "MIIEow"
    assert hidden.encode() not in masked
    assert MASK in masked
    content = json.loads(masked)["messages"][0]["content"]
    assert content.startswith("my key is ")
    assert content.endswith("please mind it")


@pytest.mark.parametrize(
    "text", ["risk-assessment-of-tomorrow", "ask-me-anything-you-like", "sk-learn", "the bearer of news", "", "💥 AIza"]
)
def test_ordinary_words_are_left_alone(text: str) -> None:
    assert mask_secrets(text.encode()) == text.encode()


def test_masking_takes_time_in_proportion_to_the_body() -> None:
    for hostile in (
        b"sk-" * 90_000,
        b"bearer " * 40_000,
        b"-----BEGIN PRIVATE KEY-----" * 10_000,
        b"eyJaaaaaaaaa." * 20_000,
    ):
        mask_secrets(hostile)  # the test's own time limit is the assertion: quadratic would be minutes


async def test_kept_bodies_are_masked_unless_the_operator_says_otherwise_t142(gateway: Gateway) -> None:
    secret = b'{"content": "sk-abcdefghij0123456789"}'
    (masked,) = await with_content(gateway, "u", body=secret)
    store = SqlUsageStore(gateway.engine, masks_secrets=False)
    plain = a_record(at=NOON, user_oid="u")
    await store.write_content([CallContent(plain.request_id, int(NOON.timestamp() * 1000), "u", secret, b"", False)])

    shown = [await gateway.reports.content(each) for each in (masked, plain.request_id)]
    assert [each is not None and b"sk-" in each.request_body for each in shown] == [False, True]


async def test_the_trail_of_the_version_before_goes_on_under_the_new_one(gateway: Gateway) -> None:
    """A replica that does not know the head writes rows, too: the trigger follows."""
    await with_trail(gateway, rows=2)
    other_replica = SqlAudit(gateway.engine)
    await other_replica.append(AuditEntry(gateway.clock.now(), OWNER, "user.create", "user", "x"))

    head = await gateway.audit.head()
    assert head is not None
    assert head.id == 3
    assert (await gateway.audit.verify()).is_valid
