"""The first steps from a shell: the same commands and the same refusals as over HTTP."""

# ruff: noqa: F811 - fixtures are imported by name and asked for by name

from __future__ import annotations

import json

import pytest
from typer import Typer
from typer.testing import CliRunner

from app import cli_admin
from app.exceptions import Conflict, InvalidRequest, NotFound
from app.services.api_key import digest_of, pepper_of
from tests.admin_fixtures import ADMIN_TOKEN, SECRET_KEY, database, postgres_url, template  # noqa: F401

cli = Typer()
cli_admin.register(cli)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, database: str, redis_url: str) -> None:
    settings = {"DATABASE_URL": database, "REDIS_URL": redis_url, "SECRET_KEY": SECRET_KEY, "ADMIN_TOKEN": ADMIN_TOKEN}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


def _run(*arguments: str) -> str:
    result = CliRunner().invoke(cli, list(arguments))
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_the_first_steps_lead_to_a_key_with_what_was_asked_for() -> None:
    _run("create-user", "u", "--email", "u@example.com", "--valid-until", "2030-01-31")
    _run("add-model", "m", "--alias", "m-latest", "--input-usd-per-mtok", "2.50")
    endpoint = json.loads(_run("add-endpoint", "m", "--provider", "openai", "--api-key", "sk-upstream-1234", "--json"))
    made = json.loads(_run("create-key", "u", "--name", "ci", "--model", "m", "--monthly-budget-usd", "10", "--json"))

    assert digest_of(made["key"], pepper_of(SECRET_KEY)) is not None
    assert (made["allowed_models"], made["budgets"][0]["hard_limit_usd"]) == (["m"], "10")
    assert (endpoint["credential"], endpoint["api_base"]) == ("…1234", "https://api.openai.com/v1")
    assert made["key"] not in _run("list-keys")


def test_a_secret_is_printed_alone_so_that_a_script_can_take_it() -> None:
    _run("create-user", "u")

    assert _run("create-key", "u").startswith("sk-ag-")
    assert _run("create-app", "crm").startswith("ag-app-")
    assert _run("create-admin", "Ada", "--role", "viewer").startswith("ag-admin-")


def test_a_revoked_key_is_listed_as_revoked() -> None:
    _run("create-user", "u")
    key = json.loads(_run("create-key", "u", "--json"))

    _run("revoke-key", key["id"])

    assert json.loads(_run("list-keys", "--user-oid", "u", "--json"))["status"] == "revoked"


def test_an_app_is_listed_rotated_and_switched_off() -> None:
    first = _run("create-app", "crm", "--own-secret-only", "--network", "10.0.0.0/8").strip()
    second = json.loads(_run("rotate-app-secret", "crm", "--grace-seconds", "60", "--json"))
    _run("switch-app", "crm", "--off")

    (line,) = _run("list-apps").splitlines()
    shown = json.loads(_run("list-apps", "--json"))
    assert (shown["is_active"], shown["own_secret_only"], shown["allowed_networks"]) == (False, True, ["10.0.0.0/8"])
    assert "inactive" in line
    assert second["secret"] != first
    assert not [secret for secret in (first, second["secret"]) if secret in line]
    assert "active" in _run("switch-app", "crm", "--on")
    with pytest.raises(NotFound):
        _run("switch-app", "erp", "--off")


def test_what_the_api_refuses_is_refused_here_with_one_line() -> None:
    _run("create-user", "u")
    _run("add-model", "m")

    with pytest.raises(Conflict, match="There is a user 'u' already"):
        _run("create-user", "u")
    with pytest.raises(NotFound):
        _run("create-key", "nobody")
    with pytest.raises(InvalidRequest, match="hard_limit_usd"):
        _run("create-key", "u", "--monthly-budget-usd", "0.1e-12")
    with pytest.raises(InvalidRequest, match="valid-until"):
        _run("create-user", "v", "--valid-until", "tomorrow")
    with pytest.raises(InvalidRequest, match="never allowed"):
        _run("add-endpoint", "m", "--api-base", "http://169.254.169.254/v1")
