"""Admin commands: one transaction with its audit row, announced after the commit; a chain that shows tampering."""

# ruff: noqa: F811 - fixtures are imported by name and asked for by name

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.domain.access import Actor, Role
from app.domain.budget import Budget, PeriodKind
from app.domain.catalog import ProviderKind
from app.domain.identity import Identity, PaymentStatus
from app.domain.limits import Limit, LimitKind
from app.domain.money import NanoUsd, PicoUsd
from app.domain.pricing import Price, Rates
from app.exceptions import Conflict, Forbidden, GatewayError, InUse, InvalidRequest, NotFound
from app.services.api_key import digest_of
from app.services.bootstrap import FirstModel, bootstrap, register_demo_server
from app.services.manage_access import KeyChanges
from app.services.manage_catalog import EndpointChanges, NewCredential
from app.storage.holders import UNAWARE_MS
from app.storage.management_ports import (
    AdminSpec,
    AppSpec,
    AuditQuery,
    EndpointSpec,
    KeySpec,
    ListQuery,
    ModelSpec,
    UserSpec,
)
from app.storage.sql_identity import SqlKeyStore
from tests.admin_fixtures import Gateway, database, engine, gateway, open_gateway, postgres_url, template  # noqa: F401

OWNER = Actor("tester", Role.OWNER, "203.0.113.9")
SECRET = "sk-upstream-very-secret-1234"
OPENAI = EndpointSpec("m", ProviderKind.OPENAI, "gpt", "https://api.example.com/v1")


def _price(input_picousd: int) -> Price:
    return Price("", Rates(PicoUsd(input_picousd), PicoUsd(0)))


async def _count(gateway: Gateway, table: str) -> int:
    (row,) = await gateway.rows(f"SELECT count(*) AS n FROM {table}")
    return int(row["n"])


# ── One transaction ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_command_leaves_its_change_an_audit_row_and_a_new_revision_and_announces_it(gateway: Gateway) -> None:
    await gateway.management.users.create(OWNER, UserSpec("u", email="u@example.com"))

    (entry,) = (await gateway.audit.page(AuditQuery())).items
    (change,) = await gateway.rows("SELECT revision, kind, ref FROM config_changes")
    assert (entry.actor, entry.role, entry.address, entry.action) == ("tester", "owner", "203.0.113.9", "user.create")
    assert (entry.object_kind, entry.object_id, entry.at) == ("user", "u", gateway.clock.now())
    assert entry.before is None
    assert isinstance(entry.after, dict)
    assert entry.after["email"] == "u@example.com"
    assert gateway.published.messages == [(change["revision"], "user", "u")]


async def test_a_command_that_fails_half_way_leaves_nothing(gateway: Gateway) -> None:
    await gateway.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no audit today'; END $$"
    )
    await gateway.execute("CREATE TRIGGER refuse BEFORE INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION refuse()")

    with pytest.raises(Exception, match="no audit today"):
        await gateway.management.users.create(OWNER, UserSpec("u"))

    assert [await _count(gateway, table) for table in ("users", "audit_log", "config_changes")] == [0, 0, 0]
    assert gateway.published.messages == []


async def test_a_change_that_cannot_be_stored_leaves_no_audit_row(gateway: Gateway) -> None:
    await gateway.execute("ALTER TABLE users ADD CONSTRAINT never CHECK (oid <> 'u')")

    with pytest.raises(Exception, match="never"):
        await gateway.management.users.create(OWNER, UserSpec("u"))

    assert await _count(gateway, "audit_log") == 0


async def test_a_message_that_cannot_be_sent_does_not_fail_the_command(gateway: Gateway) -> None:
    gateway.published.breaks = True

    await gateway.management.users.create(OWNER, UserSpec("u"))

    assert await _count(gateway, "users") == 1
    assert await _count(gateway, "config_changes") == 1


async def test_commands_at_once_give_gapless_revisions_and_one_valid_chain(gateway: Gateway) -> None:
    await asyncio.gather(*(gateway.management.users.create(OWNER, UserSpec(f"u{n}")) for n in range(30)))

    changes = await gateway.rows("SELECT revision FROM config_changes ORDER BY revision")
    first = changes[0]["revision"]
    assert [change["revision"] for change in changes] == list(range(first, first + 30))
    verdict = await gateway.audit.verify()
    assert (verdict.verified, verdict.is_valid) == (30, True)


async def test_of_two_commands_that_create_the_same_user_one_is_told_that_it_exists(gateway: Gateway) -> None:
    outcomes = await asyncio.gather(
        *(gateway.management.users.create(OWNER, UserSpec("u")) for _ in range(2)), return_exceptions=True
    )

    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Conflict", "UserRow"]


# ── The chain ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _with_trail(gateway: Gateway, rows: int = 6) -> None:
    for number in range(rows):
        await gateway.management.users.create(OWNER, UserSpec(f"u{number}", name="Zoë <b> 💥"))


@pytest.mark.parametrize(
    ("tampering", "first_invalid"),
    [
        ("UPDATE audit_log SET actor = 'somebody else' WHERE id = 3", 3),
        ("""UPDATE audit_log SET after = jsonb_set(after, '{email}', '"x"') WHERE id = 4""", 4),
        ("UPDATE audit_log SET at = at + interval '1 microsecond' WHERE id = 1", 1),
        ("UPDATE audit_log SET hash = sha256(hash) WHERE id = 6", 6),
        ("DELETE FROM audit_log WHERE id = 3", 3),
        ("DELETE FROM audit_log WHERE id = 1", 1),
        (
            "UPDATE audit_log AS a SET actor = b.actor, after = b.after, object_id = b.object_id, hash = b.hash "
            "FROM audit_log AS b WHERE (a.id, b.id) IN ((2, 3), (3, 2))",
            2,
        ),
    ],
)
async def test_verify_names_the_first_row_that_was_edited_removed_or_swapped(
    gateway: Gateway, tampering: str, first_invalid: int
) -> None:
    await _with_trail(gateway)
    assert (await gateway.audit.verify()).is_valid

    await gateway.execute(tampering)

    verdict = await gateway.audit.verify()
    assert verdict.first_invalid_id == first_invalid
    assert verdict.verified == first_invalid - 1


async def test_verify_reads_chains_longer_than_one_batch(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.storage.sql_audit.BATCH_ROWS", 2)
    await _with_trail(gateway, rows=7)

    assert (await gateway.audit.verify()).verified == 7


# ── Users ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_user_is_expired_only_once_its_last_paid_day_is_over(gateway: Gateway) -> None:
    users, today = gateway.management.users, date(2026, 1, 15)
    for oid, until, status in [
        ("today", today, PaymentStatus.ACTIVE),
        ("yesterday", today - timedelta(days=1), PaymentStatus.ACTIVE),
        ("trial", today - timedelta(days=1), PaymentStatus.TRIAL),
        ("suspended", today - timedelta(days=1), PaymentStatus.SUSPENDED),
        ("endless", None, PaymentStatus.ACTIVE),
    ]:
        await users.create(OWNER, UserSpec(oid, payment_status=status, payment_valid_until=until))

    expiry = await users.sync_all_expiries(OWNER, today)

    assert (expiry.checked, expiry.expired) == (5, {"trial": PaymentStatus.TRIAL, "yesterday": PaymentStatus.ACTIVE})
    assert (await users.get("suspended")).spec.payment_status is PaymentStatus.SUSPENDED
    assert (await users.get("today")).spec.payment_status is PaymentStatus.ACTIVE
    assert (await users.sync_all_expiries(OWNER, today)).expired == {}


async def test_more_expiries_than_one_transaction_takes_are_all_stored_and_announced(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.services.manage_users.EXPIRY_BATCH", 2)
    for number in range(5):
        await gateway.management.users.create(OWNER, UserSpec(f"u{number}", payment_valid_until=date(2020, 1, 1)))
    gateway.published.messages.clear()

    expiry = await gateway.management.users.sync_all_expiries(OWNER, date(2026, 1, 15))

    assert list(expiry.expired) == [f"u{number}" for number in range(5)]
    told = await gateway.rows("SELECT ref FROM config_changes WHERE kind = 'user' ORDER BY revision DESC LIMIT 5")
    assert {row["ref"] for row in told} == set(expiry.expired)
    assert len(gateway.published.messages) == 3, "one for each transaction: whoever hears it asks what has changed"
    trail = [row for row in (await gateway.audit.page(AuditQuery())).items if row.action == "user.expire"]
    assert {row.object_id: (row.before, row.after) for row in trail} == {
        oid: ({"payment_status": "active"}, {"payment_status": "expired"}) for oid in expiry.expired
    }
    assert (await gateway.audit.verify()).is_valid


async def test_deleting_a_user_deletes_its_keys_and_leaves_other_users_alone(gateway: Gateway) -> None:
    for oid in ("gone", "stays"):
        await gateway.management.users.create(OWNER, UserSpec(oid, limits=(Limit(LimitKind.REQUESTS, 1, 60),)))
        await gateway.management.keys.create(OWNER, KeySpec(oid))

    await gateway.management.users.delete(OWNER, "gone")

    assert [row["user_oid"] for row in await gateway.rows("SELECT user_oid FROM keys")] == ["stays"]
    assert await _count(gateway, "limits") == 1
    with pytest.raises(NotFound):
        await gateway.management.users.get("gone")


# ── Keys, apps ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _identity(gateway: Gateway, secret: str) -> Identity | None:
    store = SqlKeyStore(gateway.engine, clock=gateway.clock, zone=UTC)
    digest = digest_of(secret, gateway.pepper)
    return None if digest is None else await store.identity_of_key(digest)


async def _identity_works(gateway: Gateway, secret: str) -> bool:
    identity = await _identity(gateway, secret)
    if identity is None or identity.key is None:
        return False
    expires_at = identity.key.expires_at
    return identity.key.status == "active" and (expires_at is None or expires_at > gateway.clock.now())


async def test_a_rotated_keys_old_secret_works_until_its_grace_is_over(gateway: Gateway) -> None:
    await gateway.management.users.create(OWNER, UserSpec("u"))
    row, old = await gateway.management.keys.create(OWNER, KeySpec("u", name="ci"))

    rotated, new = await gateway.management.keys.rotate(OWNER, row.id, grace_s=60)

    assert rotated.id == row.id
    assert old != new
    assert await _identity_works(gateway, old)
    assert await _count(gateway, "keys") == 1
    assert await _identity_works(gateway, new)
    await gateway.clock.advance(61)
    assert not await _identity_works(gateway, old)
    assert await _identity_works(gateway, new)


async def test_a_key_rotated_without_grace_loses_its_old_secret_at_once(gateway: Gateway) -> None:
    await gateway.management.users.create(OWNER, UserSpec("u"))
    row, old = await gateway.management.keys.create(OWNER, KeySpec("u"))

    _, new = await gateway.management.keys.rotate(OWNER, row.id, grace_s=0)

    assert not await _identity_works(gateway, old)
    assert await _identity_works(gateway, new)
    assert await _count(gateway, "keys") == 1


async def test_every_secret_of_a_rotated_key_means_the_same_key_with_the_same_budget(gateway: Gateway) -> None:
    await gateway.management.users.create(OWNER, UserSpec("u"))
    budget = Budget(PeriodKind.DAILY, None, NanoUsd(5))
    row, first = await gateway.management.keys.create(OWNER, KeySpec("u", budgets=(budget,)))
    _, second = await gateway.management.keys.rotate(OWNER, row.id, grace_s=600)
    _, third = await gateway.management.keys.rotate(OWNER, row.id, grace_s=60)

    identities = [await _identity(gateway, secret) for secret in (first, second, third)]

    assert [identity.key and (identity.key.id, identity.key.budgets) for identity in identities if identity] == [
        (row.id, (budget,))
    ] * 3
    ends = [identity.key.expires_at for identity in identities if identity and identity.key]
    assert ends == [gateway.clock.now() + timedelta(seconds=60)] * 2 + [
        None
    ]  # the second rotation ended the first's grace


async def test_a_budget_of_a_holder_who_may_be_calling_opens_when_every_process_knows_of_it(gateway: Gateway) -> None:
    """One that was made with its holder opens at once: nobody calls for a holder without knowing his budgets."""
    daily, total = Budget(PeriodKind.DAILY, None, NanoUsd(5)), Budget(PeriodKind.TOTAL, None, NanoUsd(50))
    await gateway.management.users.create(OWNER, UserSpec("u", budgets=(daily,)))
    _, secret = await gateway.management.keys.create(OWNER, KeySpec("u"))
    first = await _identity(gateway, secret)
    await gateway.management.users.patch(OWNER, "u", {"budgets": (daily, total)})
    second = await _identity(gateway, secret)

    assert first is not None
    assert second is not None
    (with_user,), (kept, late) = first.user.budgets, second.user.budgets
    now_ms = await _database_ms(gateway)
    assert kept.opened_ms == with_user.opened_ms <= now_ms
    assert with_user.opened_ms + UNAWARE_MS <= late.opened_ms <= now_ms + UNAWARE_MS


async def _database_ms(gateway: Gateway) -> int:
    async with gateway.engine.connect() as connection:
        return int((await connection.execute(text("SELECT extract(epoch FROM now()) * 1000"))).scalar_one())


async def test_a_grace_lasts_no_longer_than_its_key(gateway: Gateway) -> None:
    await gateway.management.users.create(OWNER, UserSpec("u"))
    ends_at = gateway.clock.now() + timedelta(seconds=30)
    row, old = await gateway.management.keys.create(OWNER, KeySpec("u", expires_at=ends_at))
    await gateway.management.keys.rotate(OWNER, row.id, grace_s=60)
    assert await _identity_works(gateway, old)

    await gateway.management.keys.revoke(OWNER, row.id)
    assert not await _identity_works(gateway, old)
    await gateway.clock.advance(31)
    assert not await _identity_works(gateway, old)

    await gateway.management.keys.delete(OWNER, row.id)
    assert await _count(gateway, "former_credentials") == 0


async def test_rotating_without_grace_ends_every_secret_of_before(gateway: Gateway) -> None:
    await gateway.management.users.create(OWNER, UserSpec("u"))
    row, first = await gateway.management.keys.create(OWNER, KeySpec("u"))
    _, second = await gateway.management.keys.rotate(OWNER, row.id, grace_s=600)
    _, third = await gateway.management.keys.rotate(OWNER, row.id, grace_s=0)

    assert [await _identity_works(gateway, secret) for secret in (first, second, third)] == [False, False, True]


async def test_a_revoked_key_stays_revoked_and_cannot_be_rotated_back(gateway: Gateway) -> None:
    await gateway.management.users.create(OWNER, UserSpec("u"))
    row, secret = await gateway.management.keys.create(OWNER, KeySpec("u"))
    await gateway.management.keys.revoke(OWNER, row.id)

    assert (await gateway.management.keys.revoke(OWNER, row.id)).status_at(gateway.clock.now()) == "revoked"
    assert not await _identity_works(gateway, secret)
    with pytest.raises(Conflict):
        await gateway.management.keys.rotate(OWNER, row.id, grace_s=60)


async def test_a_patch_changes_only_what_it_names(gateway: Gateway) -> None:
    await gateway.management.users.create(OWNER, UserSpec("u"))
    budget = Budget(PeriodKind.DAILY, None, NanoUsd(5))
    spec = KeySpec("u", "ci", ("a",), datetime(2027, 1, 1, tzinfo=UTC), ("10.0.0.0/8",), limits=(), budgets=(budget,))
    row, _ = await gateway.management.keys.create(OWNER, spec)

    await gateway.management.keys.patch(OWNER, row.id, KeyChanges(name="renamed"))

    assert (await gateway.management.keys.get(row.id)).spec == replace(spec, name="renamed")


async def test_an_apps_old_secret_ends_when_its_grace_does(gateway: Gateway) -> None:
    await gateway.management.apps.create(OWNER, AppSpec("crm"))

    await gateway.management.apps.rotate_secret(OWNER, "crm", grace_s=60)

    stored = await gateway.rows("SELECT expires_at FROM app_secrets ORDER BY expires_at NULLS LAST")
    assert [row["expires_at"] for row in stored] == [gateway.clock.now() + timedelta(seconds=60), None]


@pytest.mark.parametrize(
    "spec",
    [
        UserSpec(""),
        UserSpec("with space"),
        UserSpec("a\x00b"),
        UserSpec("ü"),
        UserSpec("x" * 201),
        UserSpec("u", email="nobody"),
        UserSpec("u", name="a\nb"),
        UserSpec("u", name="\ud800"),
        UserSpec("u", limits=(Limit(LimitKind.REQUESTS, 1, 0),)),
        UserSpec("u", limits=(Limit(LimitKind.REQUESTS, -1, 60),)),
        UserSpec("u", limits=(Limit(LimitKind.CONCURRENCY, 1, 60),)),
        UserSpec("u", limits=(Limit(LimitKind.TOKENS, 1, 60), Limit(LimitKind.TOKENS, 2, 60))),
        UserSpec("u", budgets=(Budget(PeriodKind.DAILY, None, None),)),
        UserSpec("u", budgets=(Budget(PeriodKind.DAILY, NanoUsd(2), NanoUsd(1)),)),
        UserSpec("u", budgets=(Budget(PeriodKind.DAILY, None, NanoUsd(9_000_000_000_000_001)),)),
        UserSpec("u", budgets=(Budget(PeriodKind.DAILY, None, NanoUsd(1)), Budget(PeriodKind.DAILY, NanoUsd(1), None))),
    ],
)
async def test_a_user_that_makes_no_sense_is_refused(gateway: Gateway, spec: UserSpec) -> None:
    with pytest.raises(InvalidRequest):
        await gateway.management.users.create(OWNER, spec)


# ── Models and endpoints ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_price_edit_adds_a_row_and_changes_none(gateway: Gateway) -> None:
    models = gateway.management.models
    await models.create(OWNER, ModelSpec("m", price=_price(1)))
    await gateway.clock.advance(1)
    await models.patch(OWNER, "m", {"price": _price(2)})
    await models.patch(OWNER, "m", {"max_output_tokens": 5})
    await gateway.clock.advance(1)
    await models.patch(OWNER, "m", {"price": None})

    history = await gateway.rows("SELECT rates->>'input' AS input FROM prices ORDER BY valid_from")
    assert [row["input"] for row in history] == ["1", "2", None]
    assert (await models.get("m")).spec.price is None


async def test_a_model_made_anew_costs_what_is_said_now_and_not_what_one_of_its_name_did(gateway: Gateway) -> None:
    models = gateway.management.models
    await models.create(OWNER, ModelSpec("m", price=_price(1)))
    await gateway.clock.advance(1)
    await models.delete(OWNER, "m", force=False)

    await models.create(OWNER, ModelSpec("m"))

    assert (await models.get("m")).spec.price is None
    assert [row["input"] for row in await gateway.rows("SELECT rates->>'input' AS input FROM prices")] == ["1", None]


async def test_names_and_aliases_are_unique_among_all_models(gateway: Gateway) -> None:
    models = gateway.management.models
    await models.create(OWNER, ModelSpec("a", aliases=("b",)))

    for spec in (ModelSpec("a"), ModelSpec("b"), ModelSpec("c", aliases=("a",)), ModelSpec("c", aliases=("b",))):
        with pytest.raises(Conflict):
            await models.create(OWNER, spec)
    with pytest.raises(InvalidRequest):
        await models.create(OWNER, ModelSpec("c", fallbacks=("nowhere",)))
    await models.patch(OWNER, "a", {"aliases": ("b", "c")})


async def test_a_model_in_use_is_deleted_only_by_force_and_then_leaves_no_trace_in_others(gateway: Gateway) -> None:
    models, endpoints = gateway.management.models, gateway.management.endpoints
    await models.create(OWNER, ModelSpec("m"))
    await models.create(OWNER, ModelSpec("other", fallbacks=("m",)))
    endpoint = await endpoints.create(OWNER, OPENAI, NewCredential(None))

    with pytest.raises(InUse, match=f"endpoint {endpoint.id}, the fallbacks of 'other'"):
        await models.delete(OWNER, "m", force=False)
    await models.delete(OWNER, "m", force=True)

    assert (await models.get("other")).spec.fallbacks == ()
    assert await _count(gateway, "endpoints") == 0


async def test_an_upstream_credential_is_sealed_for_its_endpoint_and_host_and_nowhere_in_clear(
    gateway: Gateway,
) -> None:
    await gateway.management.models.create(OWNER, ModelSpec("m"))
    row = await gateway.management.endpoints.create(OWNER, OPENAI, NewCredential(SECRET))

    (stored,) = await gateway.rows("SELECT * FROM endpoints")
    sealed = stored["credential_sealed"]
    assert SECRET.encode() not in sealed
    assert gateway.sealer.open(sealed, endpoint_id=row.id, host="api.example.com") == SECRET
    assert row.credential_last4 == "1234"
    trail = await gateway.rows("SELECT before, after FROM audit_log")
    assert SECRET not in json.dumps([dict(entry) for entry in trail])


async def test_a_stored_credential_goes_to_no_other_host(gateway: Gateway) -> None:
    await gateway.management.models.create(OWNER, ModelSpec("m"))
    endpoints = gateway.management.endpoints
    row = await endpoints.create(OWNER, OPENAI, NewCredential(SECRET))

    with pytest.raises(InvalidRequest) as refusal:
        await endpoints.patch(OWNER, row.id, EndpointChanges(api_base="https://evil.example.net/v1"))
    assert refusal.value.param == "api_key"
    await endpoints.patch(OWNER, row.id, EndpointChanges(api_base="https://api.example.com/v2"))
    await endpoints.patch(
        OWNER, row.id, EndpointChanges(api_base="https://new.example.net/v1"), NewCredential("another-secret-5678")
    )

    (stored,) = await gateway.rows("SELECT * FROM endpoints")
    opened = gateway.sealer.open(stored["credential_sealed"], endpoint_id=row.id, host="new.example.net")
    assert opened == "another-secret-5678"


@pytest.mark.parametrize("base", ["https://169.254.169.254/latest", "http://localhost/v1", "file:///etc/passwd"])
async def test_an_endpoint_that_must_not_be_dialled_is_not_saved(gateway: Gateway, base: str) -> None:
    await gateway.management.models.create(OWNER, ModelSpec("m"))

    with pytest.raises(InvalidRequest):
        await gateway.management.endpoints.create(OWNER, replace(OPENAI, api_base=base), NewCredential(None))

    assert await _count(gateway, "endpoints") == 0


# ── Administrators ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_last_owner_cannot_be_deleted_revoked_demoted_or_made_to_expire(engine: AsyncEngine) -> None:
    admins = open_gateway(engine, admin_token=None).management.admins
    row, _ = await admins.create(OWNER, AdminSpec("Ada", Role.OWNER))

    for attempt in (
        admins.delete(OWNER, row.id),
        admins.revoke(OWNER, row.id),
        admins.patch(OWNER, row.id, {"role": Role.ADMIN}),
        admins.patch(OWNER, row.id, {"expires_at": datetime(2027, 1, 1, tzinfo=UTC)}),
    ):
        with pytest.raises(Conflict):
            await attempt
    await admins.create(OWNER, AdminSpec("Eve", Role.OWNER))
    await admins.delete(OWNER, row.id)


async def test_an_admin_hands_out_no_more_than_he_has(gateway: Gateway) -> None:
    admin = Actor("admin", Role.ADMIN)
    owner_row, _ = await gateway.management.admins.create(OWNER, AdminSpec("Ada", Role.OWNER))
    viewer_row, _ = await gateway.management.admins.create(admin, AdminSpec("Vic", Role.VIEWER))

    for attempt in (
        gateway.management.admins.create(admin, AdminSpec("Eve", Role.OWNER)),
        gateway.management.admins.patch(admin, viewer_row.id, {"role": Role.OWNER}),
        gateway.management.admins.revoke(admin, owner_row.id),
        gateway.management.admins.delete(admin, owner_row.id),
    ):
        with pytest.raises(Forbidden):
            await attempt


# ── The first start ───────────────────────────────────────────────────────────────────────────────────────────────────

NO_UPSTREAM = FirstModel("gpt-4o-mini", "https://api.openai.com/v1", None)


async def test_the_first_embedded_start_makes_a_demo_model_and_a_key_that_works_and_a_later_one_nothing(
    gateway: Gateway,
) -> None:
    made = await bootstrap(gateway.management, NO_UPSTREAM, is_embedded=True)
    again = await bootstrap(gateway.management, NO_UPSTREAM, is_embedded=True)

    assert made.model == "demo"
    assert made.demo_key is not None
    assert await _identity_works(gateway, made.demo_key)
    (endpoint,) = (await gateway.management.endpoints.page(ListQuery())).items
    assert (endpoint.spec.provider, endpoint.spec.model) == (ProviderKind.DEMO, "demo")
    assert (again.model, again.demo_key) == (None, None)


async def test_a_first_start_with_a_provider_key_registers_the_default_model_and_makes_no_user(
    gateway: Gateway,
) -> None:
    made = await bootstrap(gateway.management, replace(NO_UPSTREAM, api_key=SECRET), is_embedded=False)

    (endpoint,) = (await gateway.management.endpoints.page(ListQuery())).items
    assert made.model == endpoint.spec.model == "gpt-4o-mini"
    assert endpoint.spec.api_base == "https://api.openai.com/v1"
    assert await _count(gateway, "users") == 0


async def test_processes_that_start_at_once_bootstrap_once(gateway: Gateway) -> None:
    made = await asyncio.gather(*(bootstrap(gateway.management, NO_UPSTREAM, is_embedded=True) for _ in range(4)))

    assert len([each for each in made if each.demo_key]) == 1
    assert await _count(gateway, "endpoints") == 1


async def test_a_first_model_that_must_not_be_dialled_leaves_nothing_behind(gateway: Gateway) -> None:
    first = FirstModel("m", "http://169.254.169.254/v1", SECRET)

    with pytest.raises(GatewayError):
        await bootstrap(gateway.management, first, is_embedded=False)

    assert await _count(gateway, "models") == 0


async def test_the_demo_server_is_registered_once_and_followed_to_its_new_port(engine: AsyncEngine) -> None:
    gateway = open_gateway(engine, private_hosts="loopback")

    await register_demo_server(gateway.management, "smollm2", "http://127.0.0.1:41000/v1", "first-key-1111")
    await register_demo_server(gateway.management, "smollm2", "http://127.0.0.1:42000/v1", "second-key-2222")

    (endpoint,) = (await gateway.management.endpoints.page(ListQuery())).items
    assert endpoint.spec.api_base == "http://127.0.0.1:42000/v1"
    assert endpoint.credential_last4 == "2222"
