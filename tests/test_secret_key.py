"""What stands under one SECRET_KEY follows to the next: digests at their next use, sealed credentials by one command (T155)."""

# ruff: noqa: F811 - fixtures are imported by name and asked for by name

from __future__ import annotations

import hashlib
from datetime import UTC
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.domain.access import Actor, Role
from app.domain.catalog import ProviderKind
from app.domain.identity import AppCredential
from app.exceptions import DependencyUnavailable, Forbidden, InvalidApiKey, SecretKeyMismatch
from app.services.admin_access import AdminAccess
from app.services.api_key import digest_of, fingerprint_of, imported_digest, pepper_of
from app.services.identities import Identities
from app.services.manage_catalog import NewCredential
from app.services.secret_key import SecretKeyCommands, SecretKeys
from app.storage.management_ports import AdminSpec, AppSpec, AuditQuery, EndpointSpec, KeySpec, ModelSpec, UserSpec
from app.storage.sealing import Sealer, host_of
from app.storage.sql_identity import SqlKeyStore
from app.storage.sql_management import SqlManagement
from app.storage.sql_secret_key import SqlSecretKey
from tests.admin_fixtures import (
    SECRET_KEY,
    Gateway,
    database,  # noqa: F401
    engine,  # noqa: F401
    gateway,  # noqa: F401
    postgres_url,  # noqa: F401
    template,  # noqa: F401
)

OWNER = Actor("owner", Role.OWNER)
NEW = "the-secret-key-of-after-0123456789abcdefghijklmn"
OTHER = "a-third-secret-key-0123456789abcdefghijklmnopqrs"
KEYS = SecretKeys(fingerprint_of(NEW), [fingerprint_of(SECRET_KEY)])


async def no_user(oid: str, app_id: str) -> None:
    raise AssertionError(f"{app_id} creates {oid}")


async def nothing_to_store(oid: str) -> None:
    raise AssertionError(f"{oid} has paid")


def identities(gateway: Gateway, store: SqlSecretKey, secret_key: str = NEW, **options: Any) -> Identities:
    async def redigest(old: bytes, new: bytes) -> None:
        await store.redigest(old, new, fingerprint=fingerprint_of(secret_key))

    given: dict[str, Any] = {"older_peppers": [pepper_of(SECRET_KEY)], "redigest": redigest} | options
    return Identities(
        store=SqlKeyStore(gateway.engine, clock=gateway.clock, zone=UTC),
        pepper=pepper_of(secret_key),
        clock=gateway.clock,
        zone=UTC,
        on_expired=lambda _: None,
        until_stored=nothing_to_store,
        create_user=no_user,
        **given,
    )


@pytest.fixture
async def store(gateway: Gateway) -> SqlSecretKey:
    store = SqlSecretKey(gateway.engine, Sealer(NEW, SECRET_KEY))
    await store.claim(fingerprint_of(SECRET_KEY))
    return store


def rotation(gateway: Gateway) -> SecretKeyCommands:
    return SecretKeyCommands(gateway.management.admins.commands, Sealer(NEW, SECRET_KEY), KEYS)


async def a_key(gateway: Gateway) -> tuple[str, str]:
    if not await gateway.rows("SELECT 1 FROM users"):
        await gateway.management.users.create(OWNER, UserSpec("u"))
    row, secret = await gateway.management.keys.create(OWNER, KeySpec("u"))
    return row.id, secret


async def test_a_digest_follows_at_its_next_use_and_not_before_all_processes_know_the_new_key(
    gateway: Gateway, store: SqlSecretKey
) -> None:
    key_id, secret = await a_key(gateway)
    old, new = digest_of(secret, pepper_of(SECRET_KEY)), digest_of(secret, pepper_of(NEW))
    both = identities(gateway, store)

    assert (await both.of_key(secret, address=None)).user.oid == "u"
    assert (await gateway.rows("SELECT digest FROM keys"))[0]["digest"] == old, "others may know only the old one"

    assert (await rotation(gateway).rotate(OWNER)).unused_keys == 1
    await gateway.clock.advance(1)
    both.forget_all()
    await both.of_key(secret, address=None)
    assert (await gateway.rows("SELECT digest FROM keys"))[0]["digest"] == new
    await both.write_used()
    assert (await rotation(gateway).rotate(OWNER)).unused_keys == 0

    alone = identities(gateway, store, older_peppers=[], redigest=None)
    assert (await alone.of_key(secret, address=None)).key is not None
    with pytest.raises(InvalidApiKey):
        await identities(gateway, store, SECRET_KEY, older_peppers=[]).of_key(secret, address=None)
    assert key_id


async def test_secrets_of_apps_and_administrators_follow_too(gateway: Gateway, store: SqlSecretKey) -> None:
    await gateway.management.users.create(OWNER, UserSpec("u"))
    _, app_secret = await gateway.management.apps.create(OWNER, AppSpec("crm"))
    _, token = await gateway.management.admins.create(OWNER, AdminSpec("ada", Role.ADMIN))
    await rotation(gateway).rotate(OWNER)
    shown = AppCredential(secret=app_secret, app_id="crm", user_oid="u")

    async def redigest(old: bytes, new: bytes) -> None:
        await store.redigest(old, new, fingerprint=fingerprint_of(NEW))

    management = SqlManagement(gateway.engine)
    both = AdminAccess(management, gateway.clock, pepper_of(NEW), None, (pepper_of(SECRET_KEY),), redigest)
    assert (await identities(gateway, store).of_app(shown, address=None)).app is not None
    assert (await both.identify(f"Bearer {token}", address=None)).name == "ada"

    alone = AdminAccess(management, gateway.clock, pepper_of(NEW), None)
    assert (await alone.identify(f"Bearer {token}", address=None)).name == "ada"
    app = (await identities(gateway, store, older_peppers=[]).of_app(shown, address=None)).app
    assert app is not None


async def test_credentials_are_sealed_anew_once_and_the_old_key_then_opens_nothing(
    gateway: Gateway, store: SqlSecretKey
) -> None:
    await gateway.management.models.create(OWNER, ModelSpec("m"))
    spec = EndpointSpec("m", ProviderKind.OPENAI, upstream_model="m", api_base="https://api.example.com/v1")
    made = await gateway.management.endpoints.create(OWNER, spec, NewCredential("sk-upstream-secret-1234"))
    lost = await gateway.management.endpoints.create(OWNER, spec, NewCredential("sk-upstream-secret-5678"))
    await gateway.execute(f"UPDATE endpoints SET credential_sealed = '\\x00' WHERE id = '{lost.id}'")

    first, second = await rotation(gateway).rotate(OWNER), await rotation(gateway).rotate(OWNER)

    assert (first.endpoints, first.left_out) == (1, (lost.id,))
    assert second.left_out == (lost.id,)
    (row,) = await gateway.rows("SELECT credential_sealed AS sealed FROM endpoints WHERE id = :id", id=made.id)
    host = host_of("https://api.example.com/v1")
    assert Sealer(NEW).open(row["sealed"], endpoint_id=made.id, host=host) == "sk-upstream-secret-1234"
    with pytest.raises(Exception, match="another SECRET_KEY"):
        Sealer(SECRET_KEY).open(row["sealed"], endpoint_id=made.id, host=host)
    entries = (await gateway.audit.page(AuditQuery(action="secret_key.rotate"))).items
    assert len(entries) == 1, "the second time there was nothing to do"
    assert ("secret_key", "SECRET_KEY") in [(kind, ref) for _, kind, ref in gateway.published.messages]
    with pytest.raises(Forbidden):
        await rotation(gateway).rotate(Actor("vera", Role.VIEWER))


async def test_a_call_goes_on_when_its_digest_cannot_follow_now(gateway: Gateway, store: SqlSecretKey) -> None:
    _, secret = await a_key(gateway)
    await rotation(gateway).rotate(OWNER)
    tries = 0

    async def away(old: bytes, new: bytes) -> None:
        nonlocal tries
        tries += 1
        raise DependencyUnavailable("database")

    both = identities(gateway, store, redigest=away)
    for _ in range(2):
        assert (await both.of_key(secret, address=None)).user.oid == "u"

    assert tries == 2, "it is tried again at the next use"


async def test_a_database_that_belongs_to_another_key_is_not_worked_on(gateway: Gateway, store: SqlSecretKey) -> None:
    with pytest.raises(SecretKeyMismatch, match="SECRET_KEY_PREVIOUS"):
        await SecretKeys(fingerprint_of(OTHER), ()).settle(store)
    await KEYS.settle(store)
    await SecretKeys(fingerprint_of(SECRET_KEY), ()).settle(store)
    foreign = SecretKeys(fingerprint_of(OTHER), [fingerprint_of(NEW)])
    with pytest.raises(SecretKeyMismatch):
        await SecretKeyCommands(gateway.management.admins.commands, Sealer(OTHER, NEW), foreign).rotate(OWNER)


async def test_on_a_first_start_the_database_comes_to_belong_to_the_key(engine: AsyncEngine) -> None:
    store = SqlSecretKey(engine, Sealer(NEW))
    assert await store.belongs_to() is None

    await SecretKeys(fingerprint_of(NEW), ()).settle(store)

    assert await store.belongs_to() == fingerprint_of(NEW)


async def test_credentials_that_no_key_of_ours_opens_tell_of_another_key_before_the_first_fingerprint(
    gateway: Gateway,
) -> None:
    await gateway.management.models.create(OWNER, ModelSpec("m"))
    spec = EndpointSpec("m", ProviderKind.OPENAI, upstream_model="m", api_base="https://api.example.com/v1")
    await gateway.management.endpoints.create(OWNER, spec, NewCredential("sk-upstream-secret-1234"))

    with pytest.raises(SecretKeyMismatch):
        await SecretKeys(fingerprint_of(OTHER), ()).settle(SqlSecretKey(gateway.engine, Sealer(OTHER)))
    await SecretKeys(fingerprint_of(NEW), ()).settle(SqlSecretKey(gateway.engine, Sealer(NEW, SECRET_KEY)))


async def test_a_key_of_another_gateway_is_known_only_where_that_is_wanted(
    gateway: Gateway, store: SqlSecretKey
) -> None:
    _, ours = await a_key(gateway)
    secret = "sk-litellm-1234567890"
    digest = imported_digest(hashlib.sha256(secret.encode()).digest(), pepper_of(SECRET_KEY))
    (row,) = await gateway.rows("UPDATE keys SET digest = :digest RETURNING id", digest=digest)
    assert row

    wanted = identities(gateway, store, SECRET_KEY, older_peppers=[], accepts_imported=True)
    assert (await wanted.of_key(secret, address=None)).user.oid == "u"
    for other in (secret[:-1], f" {secret}", f"{secret}\n", "sk-" + "x" * 300, "sk-ключ-123456", ours, ours[:-1] + "x"):
        with pytest.raises(InvalidApiKey):
            await wanted.of_key(other, address=None)
    with pytest.raises(InvalidApiKey):
        await identities(gateway, store, SECRET_KEY, older_peppers=[]).of_key(secret, address=None)
    rotated = identities(gateway, store, accepts_imported=True)
    assert (await rotated.of_key(secret, address=None)).user.oid == "u", "and it follows SECRET_KEY like any other"
