"""Who may call: every reason for a refusal, in the order in which they are told."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from ipaddress import IPv4Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.identity import Identity, KeyStatus, Network, PaymentStatus, payment_expired, require_may_call
from app.exceptions import (
    AppInactive,
    GatewayError,
    InvalidApiKey,
    IpNotAllowed,
    PaymentExpired,
    UserSuspended,
)
from tests.calls import NOON, a_key, a_user, an_app, an_identity

TODAY = NOON.date()
YESTERDAY, TOMORROW = TODAY - timedelta(days=1), TODAY + timedelta(days=1)
OFFICE = (ip_network("10.1.0.0/16"), ip_network("2001:db8::/32"))


def refusal(identity: Identity, *, address: str | None = "10.1.2.3", now: datetime = NOON, today: date = TODAY) -> str:
    """The code of the refusal, or "" when the identity may call."""
    try:
        require_may_call(identity, now=now, today=today, address=address)
    except GatewayError as error:
        return error.code
    return ""


def test_an_active_user_with_an_active_key_may_call() -> None:
    assert refusal(an_identity()) == ""
    assert refusal(an_identity(key=None, app=an_app())) == ""
    assert refusal(an_identity(a_user(payment_status=PaymentStatus.TRIAL))) == ""


@pytest.mark.parametrize(
    ("identity", "code"),
    [
        (an_identity(key=a_key(status=KeyStatus.REVOKED)), InvalidApiKey.code),
        (an_identity(key=a_key(expires_at=NOON)), InvalidApiKey.code),
        (an_identity(key=a_key(expires_at=NOON - timedelta(microseconds=1))), InvalidApiKey.code),
        (an_identity(key=a_key(expires_at=NOON + timedelta(microseconds=1))), ""),
        (an_identity(key=None, app=an_app(is_active=False)), AppInactive.code),
        (an_identity(a_user(payment_status=PaymentStatus.SUSPENDED)), UserSuspended.code),
        (an_identity(a_user(payment_status=PaymentStatus.EXPIRED)), PaymentExpired.code),
        (an_identity(a_user(payment_status=PaymentStatus.EXPIRED, payment_valid_until=TOMORROW)), PaymentExpired.code),
        (an_identity(a_user(payment_valid_until=YESTERDAY)), PaymentExpired.code),
        (an_identity(a_user(payment_valid_until=TODAY)), ""),
        (an_identity(a_user(payment_valid_until=TOMORROW)), ""),
        (an_identity(a_user(payment_status=PaymentStatus.TRIAL, payment_valid_until=YESTERDAY)), PaymentExpired.code),
        (an_identity(key=a_key(allowed_networks=(ip_network("192.168.0.0/24"),))), IpNotAllowed.code),
        (an_identity(key=None, app=an_app(allowed_networks=(ip_network("192.168.0.0/24"),))), IpNotAllowed.code),
    ],
)
def test_each_reason_refuses_with_its_own_code(identity: Identity, code: str) -> None:
    assert refusal(identity) == code


def test_of_several_reasons_the_first_is_told() -> None:
    """One reason after the other is mended, and the next comes to light."""
    elsewhere = (ip_network("192.168.0.0/24"),)
    identity = Identity(
        a_user(payment_status=PaymentStatus.SUSPENDED, payment_valid_until=YESTERDAY),
        a_key(status=KeyStatus.REVOKED, allowed_networks=elsewhere),
        an_app(is_active=False),
    )
    told = [refusal(identity)]
    identity = replace(identity, key=a_key(allowed_networks=elsewhere))
    told.append(refusal(identity))
    identity = replace(identity, app=None)
    told.append(refusal(identity))
    identity = replace(identity, user=a_user(payment_valid_until=YESTERDAY))
    told.append(refusal(identity))
    identity = replace(identity, user=a_user())
    told.append(refusal(identity))

    assert told == ["invalid_api_key", "app_inactive", "user_suspended", "payment_expired", "ip_not_allowed"]


@pytest.mark.parametrize(
    ("address", "is_allowed"),
    [
        ("10.1.0.0", True),
        ("10.1.255.255", True),
        ("10.2.0.0", False),
        ("10.0.255.255", False),
        ("2001:db8::1", True),
        ("2001:DB8:ffff::", True),
        ("2001:db9::1", False),
        ("::1", False),
        ("::ffff:10.1.2.3", True),
        ("::ffff:10.2.2.3", False),
        ("", False),
        ("unix:", False),
        ("localhost", False),
        ("10.1.2.3:443", False),
        (None, False),
    ],
)
def test_an_address_is_inside_the_networks_or_the_call_is_refused(address: str | None, is_allowed: bool) -> None:
    identity = an_identity(key=a_key(allowed_networks=OFFICE))

    assert refusal(identity, address=address) == ("" if is_allowed else "ip_not_allowed")


@given(st.ip_addresses(v=4), st.integers(min_value=0, max_value=32), st.ip_addresses(v=4))
def test_an_ipv4_network_holds_exactly_the_addresses_that_share_its_prefix(
    base: IPv4Address, prefix: int, other: IPv4Address
) -> None:
    network: Network = ip_network(f"{base}/{prefix}", strict=False)
    shares_prefix = int(base) >> (32 - prefix) == int(other) >> (32 - prefix)

    told = refusal(an_identity(key=a_key(allowed_networks=(network,))), address=str(other))

    assert told == ("" if shares_prefix else "ip_not_allowed")


@given(st.none() | st.text(max_size=50))
def test_an_address_that_is_none_never_opens_a_network(address: str | None) -> None:
    identity = an_identity(key=a_key(allowed_networks=(ip_network("203.0.113.7/32"),)))

    assert refusal(identity, address=address) == "ip_not_allowed"


def test_without_networks_any_address_may_call() -> None:
    assert refusal(an_identity(), address=None) == ""
    assert refusal(an_identity(), address="203.0.113.9") == ""


@given(st.dates(date(2000, 1, 1), date(2100, 1, 1)), st.dates(date(2000, 1, 1), date(2100, 1, 1)))
def test_paid_time_holds_through_its_last_day(valid_until: date, today: date) -> None:
    """T009."""
    assert payment_expired(a_user(payment_valid_until=valid_until), today) == (today > valid_until)


def test_a_key_expires_at_its_moment_whatever_the_zone_it_was_written_in() -> None:
    expires_at = datetime(2026, 1, 15, 14, 0, tzinfo=UTC)
    identity = an_identity(key=a_key(expires_at=expires_at))

    assert refusal(identity, now=expires_at - timedelta(seconds=1)) == ""
    assert refusal(identity, now=expires_at) == "invalid_api_key"


@pytest.mark.parametrize(
    ("key_models", "app_models", "may"),
    [
        ({"*"}, None, True),
        ({"gpt-4"}, None, True),
        ({"gpt-4o"}, None, False),
        (set(), None, False),
        ({"*"}, {"gpt-4"}, True),
        ({"gpt-4"}, {"other"}, False),
        (None, {"*"}, True),
        (None, {"GPT-4"}, False),
    ],
)
def test_a_model_must_be_allowed_by_every_holder(
    key_models: set[str] | None, app_models: set[str] | None, may: bool
) -> None:
    key = None if key_models is None else a_key(allowed_models=frozenset(key_models))
    app = None if app_models is None else an_app(allowed_models=frozenset(app_models))

    assert an_identity(key=key, app=app).may_use("gpt-4") is may
