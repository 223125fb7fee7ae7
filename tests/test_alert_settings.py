"""The settings of the webhook: refused at the start, in one line, rather than found out at the first alert."""

from __future__ import annotations

import pytest

from app.clock import SystemClock
from app.config import load_settings
from app.exceptions import SettingsError
from app.providers.transport import Transport
from app.wiring.from_settings import egress_policy, webhook_of

SECRET = "webhook-secret-for-tests-0123456789abcdefghij"
URL = "https://hooks.example.com/services/T0/B0?token=abc"


def open_webhook(**environment: str) -> object:
    settings = load_settings(environment)
    return webhook_of(settings, Transport(egress_policy(settings)), SystemClock())


def test_none_is_configured_by_default() -> None:
    assert open_webhook() is None


def test_an_address_and_a_strong_secret_are_all_it_needs() -> None:
    assert open_webhook(ALERT_WEBHOOK_URL=URL, ALERT_WEBHOOK_SECRET=SECRET) is not None


def test_a_host_inside_needs_leave() -> None:
    inside = {"ALERT_WEBHOOK_URL": "http://127.0.0.1:9009/x", "ALERT_WEBHOOK_SECRET": SECRET}

    assert open_webhook(**inside, UPSTREAM_PRIVATE_HOSTS="loopback") is not None


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"ALERT_WEBHOOK_URL": URL}, "ALERT_WEBHOOK_SECRET"),
        ({"ALERT_WEBHOOK_URL": URL, "ALERT_WEBHOOK_SECRET": ""}, "ALERT_WEBHOOK_SECRET"),
        ({"ALERT_WEBHOOK_URL": URL, "ALERT_WEBHOOK_SECRET": "short"}, "ALERT_WEBHOOK_SECRET"),
        ({"ALERT_WEBHOOK_URL": URL, "ALERT_WEBHOOK_SECRET": "change-me"}, "ALERT_WEBHOOK_SECRET"),
        ({"ALERT_WEBHOOK_URL": "hooks.example.com", "ALERT_WEBHOOK_SECRET": SECRET}, "ALERT_WEBHOOK_URL"),
        ({"ALERT_WEBHOOK_URL": "ftp://hooks.example.com", "ALERT_WEBHOOK_SECRET": SECRET}, "ALERT_WEBHOOK_URL"),
        (
            {"ALERT_WEBHOOK_URL": "https://u:pass@hooks.example.com", "ALERT_WEBHOOK_SECRET": SECRET},
            "ALERT_WEBHOOK_URL",
        ),
        ({"ALERT_WEBHOOK_URL": "https://hooks.example.com/\r\nx", "ALERT_WEBHOOK_SECRET": SECRET}, "ALERT_WEBHOOK_URL"),
        ({"ALERT_WEBHOOK_URL": "http://hooks.example.com/", "ALERT_WEBHOOK_SECRET": SECRET}, "ALERT_WEBHOOK_URL"),
        ({"ALERT_WEBHOOK_URL": "http://127.0.0.1:9009/", "ALERT_WEBHOOK_SECRET": SECRET}, "ALERT_WEBHOOK_URL"),
        ({"ALERT_WEBHOOK_URL": "http://169.254.169.254/", "ALERT_WEBHOOK_SECRET": SECRET}, "ALERT_WEBHOOK_URL"),
    ],
)
def test_what_cannot_be_used_stops_the_start_with_one_line(environment: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError) as refused:
        open_webhook(**environment)

    said = str(refused.value)
    assert named in said
    assert "\n" not in said
    assert not any(part in said for part in ("pass@", "token=abc", SECRET))
