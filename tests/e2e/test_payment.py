"""The owner's payment status is looked at on every call."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tests.e2e.house import House, error_of


def day(offset: int) -> str:
    return (datetime.now(UTC).date() + timedelta(days=offset)).isoformat()


async def test_a_user_may_call_through_the_last_day_he_paid_for(house: House) -> None:
    """T009: valid through its last day."""
    model = await house.model()
    for last_day, status in ((day(-1), 403), (day(0), 200), (day(1), 200)):
        key = await house.key(await house.user(payment_valid_until=last_day))
        answer = await house.chat(key, model)
        assert answer.status == status, last_day


async def test_an_expired_user_is_refused_and_his_stored_status_becomes_expired(house: House) -> None:
    user = await house.user(payment_status="active", payment_valid_until=day(-1))
    answer = await house.chat(await house.key(user), await house.model())

    assert (answer.status, error_of(answer)["code"]) == (403, "payment_expired")
    assert answer.header("x-should-retry") == "false"
    assert (await house.admin("GET", f"users/{user}"))["payment_status"] == "expired"


async def test_paying_again_restores_access_at_once(house: House) -> None:
    """T010."""
    user, model = await house.user(payment_valid_until=day(-1)), await house.model()
    key = await house.key(user)
    assert (await house.chat(key, model)).status == 403

    await house.admin(
        "PATCH", f"users/{user}", {"payment_valid_until": day(30), "payment_status": "active"}, expect=200
    )

    assert (await house.chat(key, model)).status == 200


async def test_a_suspended_user_and_a_revoked_or_expired_key_are_refused_at_once(house: House) -> None:
    model = await house.model()
    user = await house.user()
    made = await house.admin("POST", "keys", {"user_oid": user, "limits": []}, expect=201)
    assert (await house.chat(made["key"], model)).status == 200

    await house.admin("PATCH", f"users/{user}", {"payment_status": "suspended"}, expect=200)
    suspended = await house.chat(made["key"], model)
    assert (suspended.status, error_of(suspended)["code"]) == (403, "user_suspended")

    await house.admin("PATCH", f"users/{user}", {"payment_status": "active"}, expect=200)
    await house.admin("POST", f"keys/{made['id']}/revoke", expect=200)
    revoked = await house.chat(made["key"], model)
    assert (revoked.status, error_of(revoked)["code"]) == (401, "invalid_api_key")

    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    expired = await house.chat(await house.key(user, expires_at=past), model)
    assert expired.status == 401


async def test_deleting_a_user_deletes_his_keys_and_keeps_his_records(house: House) -> None:
    user, model = await house.user(), await house.model()
    key = await house.key(user)
    answer = await house.chat(key, model)
    await house.record(answer.header("x-request-id") or "")

    await house.admin("DELETE", f"users/{user}")

    assert (await house.chat(key, model)).status == 401
    assert (await house.admin("GET", f"users/{user}")).get("error", {}).get("code") == "not_found"
    record = await house.record(answer.header("x-request-id") or "")
    assert record["user_oid"] == user


async def test_the_bulk_sync_reports_what_it_did(house: House) -> None:
    user = await house.user(payment_valid_until=day(-2))
    report = await house.admin("POST", "users/sync/bulk-expiry", expect=200)
    assert set(report) == {"checked", "expired", "timestamp"}
    assert report["expired"] >= 1
    assert (await house.admin("GET", f"users/{user}"))["payment_status"] == "expired"
    one = await house.admin("POST", f"users/{user}/sync-expiry", expect=200)
    assert set(one) == {"user_oid", "email", "payment_valid_until", "payment_status", "synced"}
