"""A LiteLLM proxy's configuration and accounts come over whole, twice is once, and what cannot come is told."""

# ruff: noqa: F811 - fixtures are imported by name and asked for by name

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from typer import Typer
from typer.testing import CliRunner, Result

from app import cli_admin
from app.domain.access import Actor, Role
from app.import_litellm.config_file import ConfigUnreadable, read_config
from app.import_litellm.plan import Allowance as Given
from app.import_litellm.plan import Plan, budgets_of, dollars, limits_of, moment
from app.import_litellm.tables import plan_accounts, read_tables
from app.services.api_key import imported_digest, pepper_of
from tests.admin_fixtures import ADMIN_TOKEN, SECRET_KEY, database, postgres_url, template  # noqa: F401
from tests.kit.clock import START

CONFIG = Path(__file__).resolve().parent / "config.yaml"
OWNER = Actor("owner", Role.OWNER)
SECRET = "sk-from-litellm-0123456789"

cli = Typer()
cli_admin.register(cli)


def sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


EXPORT: dict[str, list[dict[str, Any]]] = {
    "LiteLLM_BudgetTable": [{"budget_id": "b1", "max_budget": 12.5, "budget_duration": "30d", "rpm_limit": 30}],
    "LiteLLM_UserTable": [
        {
            "user_id": "ada", "user_email": "ada@example.com", "user_alias": "Ada", "user_role": "internal_user",
            "max_budget": 100.0, "budget_duration": "30d", "tpm_limit": 5000, "spend": 3.5, "models": [],
        },
        {"user_id": "has space", "user_email": None, "user_role": "internal_user"},
        {"user_id": "bob", "user_email": "no address", "user_role": "internal_user"},
    ],
    "LiteLLM_TeamTable": [
        {
            "team_id": "search", "team_alias": "Search", "max_budget": 50, "budget_duration": "7d",
            "models": ["gpt-4o"], "blocked": False,
        }
    ],
    "LiteLLM_VerificationToken": [
        {
            "token": sha256(SECRET), "key_name": "sk-...6789", "key_alias": "ci", "user_id": "ada", "models": [],
            "expires": "2099-01-01T00:00:00", "budget_id": "b1", "max_parallel_requests": 4, "spend": 1.25,
        },
        {
            "token": sha256("sk-team"), "key_alias": "team key", "user_id": "ada", "team_id": "search",
            "models": ["all-team-models"], "max_budget": 90, "budget_duration": "90d", "metadata": {"a": 1},
        },
        {"token": sha256("sk-blocked"), "key_alias": "blocked", "blocked": True, "models": ["gpt-4o", "gone"]},
        {"token": sha256("sk-old"), "key_alias": "old", "expires": "2020-01-01T00:00:00Z"},
        {"token": sha256("sk-nobody"), "key_alias": "of nobody", "user_id": "unknown", "models": ["all-proxy-models"]},
    ],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, database: str, redis_url: str) -> None:
    settings = {"DATABASE_URL": database, "REDIS_URL": redis_url, "SECRET_KEY": SECRET_KEY, "ADMIN_TOKEN": ADMIN_TOKEN}
    for name, value in {**settings, "OPENAI_API_KEY": "sk-of-this-machine-0000"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)


@pytest.fixture
def export(tmp_path: Path) -> Path:
    path = tmp_path / "export.json"
    path.write_text(json.dumps(EXPORT))
    return path


def run(*arguments: str, fails: bool = False) -> Any:
    result: Result = CliRunner().invoke(cli, ["import-litellm", *arguments, "--json"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == int(fails), result.stdout
    return json.loads(result.stdout)


def notes_of(report: Any) -> set[tuple[str, str]]:
    return {(note["what"], note["name"]) for note in report["notes"]}


async def rows(url: str, sql: str) -> list[dict[str, Any]]:
    from app.database import open_engine

    engine = open_engine(url)
    try:
        async with engine.connect() as connection:
            return [dict(row) for row in (await connection.exec_driver_sql(sql)).mappings()]
    finally:
        await engine.dispose()


def listed(url: str, sql: str) -> list[dict[str, Any]]:
    import asyncio

    return asyncio.run(rows(url, sql))


def test_a_proxys_models_endpoints_and_accounts_come_over_and_twice_is_once(database: str, export: Path) -> None:
    dry = run(str(CONFIG), "--tables", str(export), "--dry-run", fails=True)
    assert listed(database, "SELECT 1 FROM models UNION ALL SELECT 1 FROM users UNION ALL SELECT 1 FROM keys") == []

    first = run(str(CONFIG), "--tables", str(export), fails=True)
    second = run(str(CONFIG), "--tables", str(export), fails=True)

    assert {kind: dry[kind] for kind in ("models", "endpoints", "keys")} == {
        kind: first[kind] for kind in ("models", "endpoints", "keys")
    }
    assert first["models"] == {"created": 5, "there already": 0, "failed": 0}
    assert first["endpoints"] == {"created": 6, "there already": 0, "failed": 1}, "link-local is refused"
    assert first["users"] == {"created": 4, "there already": 0, "failed": 1}, "bob's address is none"
    assert first["keys"] == {"created": 4, "there already": 0, "failed": 0}
    for kind in ("models", "endpoints", "users", "keys"):
        assert second[kind]["created"] == 0
        assert second[kind]["there already"] == first[kind]["created"]
    models = {row["name"]: row for row in listed(database, "SELECT * FROM models")}
    assert models["gpt-4o"]["aliases"] == ["gpt-4"]
    assert (models["gpt-4o"]["strategy"], models["gpt-4o"]["fallbacks"]) == ("latency", ["claude-sonnet"])
    assert models["gpt-4o"]["context_window"] == 128000
    endpoints = listed(database, "SELECT * FROM endpoints ORDER BY model, provider, credential_last4")
    assert [(row["model"], row["provider"], row["upstream_model"], row["credential_last4"]) for row in endpoints] == [
        ("claude-sonnet", "anthropic", "claude-sonnet-4-5", "4321"),
        ("gemini", "litellm", "gemini/gemini-2.5-pro", None),
        ("gpt-4o", "litellm", "azure/gpt-4o-eu", "1234"),
        ("gpt-4o", "openai", "gpt-4o", None),
        ("local-llama", "openai", "meta-llama/Llama-3.3-70B-Instruct", "5678"),
        ("local-llama", "openai", "meta-llama/Llama-3.3-70B-Instruct", "here"),
    ]
    azure, openai = endpoints[2], endpoints[3]
    assert (azure["priority"], openai["priority"], openai["weight"]) == (0, 1, 3)
    assert (openai["requests_per_minute"], openai["tokens_per_minute"]) == (600, 100000)
    (price,) = listed(database, "SELECT rates FROM prices WHERE endpoint_id IS NOT NULL")
    assert (price["rates"]["input"], price["rates"]["output"]) == (200_000, 600_000)


def test_limits_budgets_and_digests_of_keys_come_over(database: str, export: Path) -> None:
    report = run(str(CONFIG), "--tables", str(export), fails=True)

    found = {row["name"]: row for row in listed(database, "SELECT * FROM keys")}
    ci = found["ci"]
    assert ci["digest"] == imported_digest(hashlib.sha256(SECRET.encode()).digest(), pepper_of(SECRET_KEY))
    assert (ci["user_oid"], ci["last4"], ci["allowed_models"], ci["expires_at"].year) == ("ada", "6789", ["*"], 2099)
    limits = listed(database, f"SELECT kind, \"limit\" FROM limits WHERE key_id = '{ci['id']}' ORDER BY kind")
    assert limits == [{"kind": "concurrency", "limit": 4}, {"kind": "requests", "limit": 30}]
    (budget,) = listed(database, f"SELECT period, hard_limit_nanousd AS hard FROM budgets WHERE key_id = '{ci['id']}'")
    assert budget == {"period": "monthly", "hard": 12_500_000_000}
    team = found["team key"]
    assert (team["user_oid"], team["allowed_models"]) == ("team:search", ["gpt-4o"])
    assert found["blocked"]["status"] == "revoked"
    assert found["of nobody"]["user_oid"] == "unknown"
    users = {row["oid"] for row in listed(database, "SELECT oid FROM users")}
    assert users == {"ada", "team:search", "litellm", "unknown"}
    assert notes_of(report) >= {
        ("key", "old"),
        ("key", "blocked"),
        ("key", "team key"),
        ("user", "has space"),
        ("user", "unknown"),
        ("user", "bob"),
        ("spend", ""),
        ("keys", ""),
    }


def test_what_has_no_counterpart_is_told_and_no_secret_is(export: Path) -> None:
    report = run(str(CONFIG), "--tables", str(export), fails=True)

    assert notes_of(report) >= {
        ("model", "bedrock/*"),
        ("endpoint", "link-local"),
        ("endpoint", "gpt-4o"),
        ("fallback", "gpt-4o to no-such-model"),
        ("alias", "lost"),
        ("setting", "callbacks"),
        ("setting", "master_key"),
        ("setting", "database_url"),
    }
    shown = json.dumps(report)
    for secret in (
        "plain-azure-key",
        "sk-ant-literal",
        "stolen-key",
        "sk-1234",
        "litellm:secret",
        "sk-of-this-machine",
    ):
        assert secret not in shown


def test_the_environment_is_read_only_when_asked_for(database: str) -> None:
    asked = run(str(CONFIG), "--resolve-env", fails=True)

    (openai,) = listed(database, "SELECT credential_last4 FROM endpoints WHERE upstream_model = 'gpt-4o'")
    assert openai["credential_last4"] == "0000"
    assert any("GEMINI_API_KEY: it is not set" in note["why"] for note in asked["notes"])


def test_the_report_for_people_names_counts_and_what_was_left(export: Path) -> None:
    result = CliRunner().invoke(cli, ["import-litellm", str(CONFIG), "--tables", str(export), "--dry-run"])

    assert "Models     5 would be created, 0 there already, 0 failed" in result.stdout
    assert "Not carried over, or not exactly:" in result.stdout


# ── Files ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "text",
    ["", "just text", "- a\n- b", "{", "a: !!python/object/apply:os.system ['true']", "other: 1", "model_list: [\x00]"],
)
def test_a_file_that_is_no_configuration_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigUnreadable, match=r"^[^\n]+$"):
        read_config(text, Plan(), None)


@pytest.mark.parametrize(
    "text",
    [
        "model_list: 1",
        "model_list: [1, null, {}, {model_name: 3}, {model_name: a}, {model_name: b, litellm_params: {model: 7}}]",
        "litellm_settings: {fallbacks: {a: b}}",
        "router_settings: {model_group_alias: [a], routing_strategy: {a: b}}",
        "model_list: [{model_name: a, litellm_params: {model: x, rpm: many, weight: -1, order: first, timeout: true}}]",
        "model_list: [{model_name: a, litellm_params: {model: x, input_cost_per_token: dear}}]",
    ],
)
def test_whatever_stands_in_it_is_told_and_never_breaks_the_reading(text: str) -> None:
    plan = Plan()
    read_config(text, plan, None)
    assert all(note.why for note in plan.notes)


def test_an_export_may_be_csv_with_postgresqls_own_arrays(tmp_path: Path) -> None:
    (tmp_path / "LiteLLM_VerificationToken.csv").write_text(
        "token,key_name,key_alias,user_id,models,max_budget,blocked,expires,spend\n"
        f'{sha256("sk-1")},sk-...abcd,one,ada,"{{gpt-4o,claude}}",10,f,,0.5\n'
        f"{sha256('sk-2')},,two,,{{}},,t,2099-01-01 00:00:00,0\n"
    )
    (tmp_path / "anything.csv").write_text("user_id,user_email,user_role\nada,ada@example.com,internal_user\n")
    plan = Plan()

    plan_accounts(read_tables(sorted(tmp_path.glob("*.csv"))), plan, START)

    assert [user["user_oid"] for user in plan.users] == ["ada", "litellm"]
    one, two = plan.keys
    assert (one.body["allowed_models"], one.last4, one.is_revoked) == (["gpt-4o", "claude"], "abcd", False)
    assert one.body["budgets"] == [{"period": "total", "hard_limit_usd": "10"}]
    assert (two.body["allowed_models"], two.body["user_oid"], two.is_revoked) == (["*"], "litellm", True)


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.json", "{"), ("a.json", "1"), ("a.json", '[{"x": 1}]'), ("a.csv", "x,y\n1,2\n"), ("a.json", "[]")],
)
def test_an_export_that_is_none_is_refused_by_its_name(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigUnreadable, match=name):
        read_tables([path])


def test_amounts_are_exact_and_nonsense_is_refused() -> None:
    assert [dollars(value) for value in (0.1, 100.0, "12.50", 1e-9, 3)] == ["0.1", "100", "12.5", "0.000000001", "3"]
    for wrong in ("nan", "inf", -1, "ten"):
        with pytest.raises(ValueError, match="amount"):
            dollars(wrong)
    assert limits_of(Given(rpm_limit="60.0")) == [{"kind": "requests", "limit": 60, "window_seconds": 60}]
    for no_count in (1.5, -1, "many"):
        with pytest.raises(ValueError, match=r"."):
            limits_of(Given(tpm_limit=no_count))
    assert budgets_of(Given()) == []
    assert budgets_of(Given(max_budget=1, budget_duration="90d"))[0]["period"] == "total"
    assert moment("2026-01-01 00:00:00.123+00") is not None
