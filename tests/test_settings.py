"""Settings: read from the environment and `.env`, refused in one line that names the variable and never shows a secret."""

from __future__ import annotations

import os
import subprocess
import sys
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from app.config import MIN_SECRET_BYTES, SAMPLE_SECRETS, Settings, load_settings, require_cluster_settings
from app.exceptions import SettingsError
from app.wiring.from_settings import require_usable
from tests.kit.clients import REPO_ROOT

GOOD = "x7" * 20
CLUSTER = {
    "DATABASE_URL": "postgresql://gateway:hunter2@127.0.0.1:1/gateway",
    "REDIS_URL": "redis://127.0.0.1:1/0",
    "SECRET_KEY": GOOD,
    "ADMIN_TOKEN": GOOD,
}
SECRETS = ["SECRET_KEY", "ADMIN_TOKEN", "GATEWAY_SHARED_SECRET", "METRICS_TOKEN", "ALERT_WEBHOOK_SECRET"]

MALFORMED = [
    ("DATABASE_URL", "mysql://root:hunter2@db/x"),
    ("DATABASE_URL", "hunter2"),
    ("DATABASE_URL", "postgresql://"),
    ("REDIS_URL", "http://:hunter2@cache"),
    ("REDIS_URL", "hunter2"),
    ("REDIS_CLUSTER", "perhaps"),
    ("RATE_LIMIT_REQUESTS_PER_MINUTE", "99999999999999999999"),
    ("RATE_LIMIT_TOKENS_PER_MINUTE", "99999999999999999999"),
    ("LOG_RETENTION_DAYS", "99999999999"),
    ("LEDGER_RETENTION_DAYS", "99999999999"),
    ("MAX_REQUEST_BYTES", "99999999999999999999"),
    ("SHUTDOWN_GRACE_SECONDS", "1e300"),
    ("WRITE_STALL_SECONDS", "1e300"),
    ("DATABASE_POOL_SIZE", "0"),
    ("DATABASE_POOL_SIZE", "many"),
    ("SECRET_KEY", "with a space hunter2 hunter2 hunter2 hunter2"),
    ("ADMIN_TOKEN", "hunter2\nhunter2hunter2hunter2hunter2hunter2"),
    ("GATEWAY_SHARED_SECRET", "hunter2"),
    ("METRICS_TOKEN", "hunter2"),
    ("LLM_API_KEY", "sk-hunter2 oops"),
    ("DEFAULT_MODEL", "m" * 201),
    ("LLM_API_BASE", "ftp://example.com"),
    ("LLM_API_BASE", "https://me:hunter2@example.com/v1"),
    ("LLM_API_BASE", "https://me:hunter2℀@example.com/v1"),
    ("LLM_API_BASE", "https://[hunter2]/v1"),
    ("LLM_API_BASE", "https://[::1/v1"),
    ("LLM_API_BASE", ""),
    ("RATE_LIMIT_REQUESTS_PER_MINUTE", "-1"),
    ("RATE_LIMIT_TOKENS_PER_MINUTE", "1.5"),
    ("BUDGET_TIMEZONE", "Mars/Olympus"),
    ("BUDGET_TIMEZONE", ""),
    ("BUDGET_TIMEZONE", "/etc/passwd"),
    ("BUDGET_TIMEZONE", "../UTC"),
    ("BUDGET_TIMEZONE", "Europe"),
    ("RESERVATION_LEASE_SECONDS", "1"),
    ("REDIS_TIMEOUT_MS", "5"),
    ("ON_REDIS_DOWN", "panic"),
    ("LOG_RETENTION_DAYS", "0"),
    ("LOG_CONTENT", "some"),
    ("LOG_CONTENT_MAX_BYTES", "-1"),
    ("LOG_LEVEL", "loud"),
    ("HOST", ""),
    ("PORT", "http"),
    ("PORT", "0"),
    ("PORT", "65536"),
    ("PORT", ""),
    ("PORT", "9" * 5_000),
    ("WORKERS", "0"),
    ("MAX_REQUEST_BYTES", "20MiB"),
    ("REQUEST_BODY_TIMEOUT_SECONDS", "0"),
    ("REQUEST_BODY_TIMEOUT_SECONDS", "nan"),
    ("SHUTDOWN_GRACE_SECONDS", "-1"),
    ("SHUTDOWN_GRACE_SECONDS", "inf"),
    ("TRUSTED_PROXIES", "10.0.0.0/8, nonsense"),
    ("TRUSTED_PROXIES", "10.0.0.0/99"),
    ("DOCS_ENABLED", "si"),
    ("GATEWAY_EMBEDDED", "hm"),
]


def refusal(**environment: str) -> str:
    with pytest.raises(SettingsError) as told:
        load_settings(environment)
    return str(told.value)


@pytest.mark.parametrize(("name", "value"), MALFORMED, ids=[f"{name}={value[:20]!r}" for name, value in MALFORMED])
def test_a_malformed_value_is_refused_in_one_line_that_names_it_and_shows_an_example(name: str, value: str) -> None:
    line = refusal(**{name: value})

    assert line.startswith(f"{name} ")
    assert "\n" not in line
    assert "Example" in line or "Set it to" in line
    assert len(line) < 300
    assert "hunter2" not in line


NEEDED_BY_OTHERS = {
    "REDIS_URL": "redis://localhost",
    "ALERT_WEBHOOK_SECRET": GOOD,
    "PUBLIC_URL": "https://gateway.example.com",
    "OIDC_CLIENT_ID": "gateway",
    "OIDC_ROLE_MAP": "llm-team=admin",
}
"""What some settings cannot do without."""


def test_every_setting_has_an_example_that_would_be_accepted() -> None:
    for name, field in Settings.model_fields.items():
        assert field.examples, name
        if field.annotation is not SecretStr:
            variable = str(field.validation_alias or name).upper()
            load_settings(NEEDED_BY_OTHERS | {variable: str(field.examples[0])})


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("sample", sorted(SAMPLE_SECRETS))
def test_a_secret_that_still_has_its_sample_value_is_refused(name: str, sample: str) -> None:
    """T013."""
    for written in (sample, sample.upper()):
        line = refusal(**{name: written})

        assert line.startswith(f"{name} still has its sample value")
        assert written not in line


@pytest.mark.parametrize("name", SECRETS)
def test_an_empty_secret_is_refused_and_an_absent_one_is_not(name: str) -> None:
    """T013."""
    assert refusal(**{name: ""}).startswith(f"{name} is empty")
    load_settings({})


@pytest.mark.parametrize("name", SECRETS)
@given(
    secret=st.text(
        st.characters(min_codepoint=0x21, max_codepoint=0x17F, exclude_categories=["Cc", "Zs"]), min_size=1, max_size=40
    )
)
def test_a_secret_is_measured_in_bytes_and_never_shown(name: str, secret: str) -> None:
    """T013."""
    if len(secret.encode()) >= MIN_SECRET_BYTES:
        load_settings({name: secret})
    else:
        line = refusal(**{name: secret})
        assert line.startswith(f"{name} ")
        # It says one of two sentences whatever the secret is, so it shows none.
        assert line in (refusal(**{name: "x"}), refusal(**{name: "changeme"}))


@given(st.text(max_size=40))
def test_any_text_is_a_time_zone_or_is_refused_in_one_line(text: str) -> None:
    line = ""
    try:
        assert load_settings({"BUDGET_TIMEZONE": text}).budget_zone.key == text
    except SettingsError as error:
        line = str(error)

    assert "\n" not in line


@given(st.text(max_size=60))
def test_any_text_is_an_api_base_or_is_refused_without_being_shown(text: str) -> None:
    line = ""
    try:
        load_settings({"LLM_API_BASE": text})
    except SettingsError as error:
        line = str(error)

    assert "\n" not in line
    assert len(text) < 12 or text not in line


def test_the_defaults_need_nothing_from_anybody() -> None:
    settings = load_settings({})

    assert (settings.host, settings.port, settings.workers) == ("0.0.0.0", 8000, 1)
    assert (settings.rate_limit_requests_per_minute, settings.log_retention_days) == (60, 90)
    assert settings.max_request_bytes == 20 * 1024 * 1024
    assert (settings.budget_zone.key, settings.log_content, settings.on_redis_down) == ("UTC", "full", "local")


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg"])
def test_every_usual_form_of_a_postgresql_url_is_understood(scheme: str) -> None:
    settings = load_settings({"DATABASE_URL": f"{scheme}://u:p@db:5432/g?ssl=require"})

    assert settings.database_url == "postgresql+asyncpg://u:p@db:5432/g?ssl=require"


def test_trusted_proxies_are_addresses_and_networks() -> None:
    settings = load_settings({"TRUSTED_PROXIES": " 10.1.2.3/8, 127.0.0.1 ,::1,"})

    assert settings.trusted_proxies == (ip_network("10.0.0.0/8"), ip_network("127.0.0.1"), ip_network("::1"))


def test_secrets_do_not_show_in_the_settings_repr() -> None:
    settings = load_settings({**CLUSTER, "LLM_API_KEY": "sk-hunter2hunter2"})

    assert GOOD not in repr(settings)
    assert "sk-hunter2" not in repr(settings)


@pytest.mark.parametrize("missing", sorted(CLUSTER))
def test_the_manual_path_names_what_is_missing(missing: str) -> None:
    settings = load_settings({name: value for name, value in CLUSTER.items() if name != missing})

    with pytest.raises(SettingsError, match=f"^{missing} is not set") as told:
        require_cluster_settings(settings)

    assert "hunter2" not in str(told.value)
    if missing.endswith("URL"):
        assert "python -m app serve" in str(told.value)


def test_with_everything_set_the_manual_path_is_open() -> None:
    require_cluster_settings(load_settings(CLUSTER))


# Where values come from. `.env` is looked for in the working directory, so these change to one of their own.


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [*os.environ]:
        if name.lower() in Settings.model_fields or name == "GATEWAY_EMBEDDED":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_dot_env_is_read_from_the_working_directory(folder: Path) -> None:
    (folder / ".env").write_text("PORT=8123\nDEFAULT_MODEL=modèle\nSOMETHING_ELSE=ignored\n", encoding="utf-8")

    settings = load_settings()

    assert (settings.port, settings.default_model) == (8123, "modèle")


def test_the_environment_comes_before_dot_env(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ".env").write_text("PORT=8123\nWORKERS=3\n")
    monkeypatch.setenv("PORT", "9123")

    settings = load_settings()

    assert (settings.port, settings.workers) == (9123, 3)


def test_a_fault_in_dot_env_is_told_like_any_other(folder: Path) -> None:
    (folder / ".env").write_text("PORT=http\n")

    with pytest.raises(SettingsError, match=r"^PORT "):
        load_settings()


def test_a_dot_env_that_is_no_utf8_text_is_refused_in_one_line(folder: Path) -> None:
    (folder / ".env").write_bytes(b"PORT=8\xff\xfe\n")

    with pytest.raises(SettingsError, match=r"^\.env is not a UTF-8 text file\.$"):
        load_settings()


def test_the_sample_file_copied_as_it_is_changes_nothing(folder: Path) -> None:
    (folder / ".env").write_text((REPO_ROOT / ".env.example").read_text(encoding="utf-8"), encoding="utf-8")

    assert load_settings() == load_settings({})


# Whole processes: the refusal is all they say.

UVICORN = ["-m", "uvicorn", "app.main:app", "--host", "127.0.0.1", "--port", "0"]
SERVE = ["-m", "app", "serve"]


def said_by(command: list[str], cwd: Path, environment: dict[str, str]) -> tuple[int, list[str]]:
    """Exit status and all lines of a start that is to be refused."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**kept, "PYTHONPATH": str(REPO_ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, (done.stdout + done.stderr).splitlines()


@pytest.mark.parametrize(
    ("command", "environment", "names"),
    [
        pytest.param(UVICORN, {}, "DATABASE_URL", id="uvicorn, nothing set"),
        pytest.param(UVICORN, {**CLUSTER, "REDIS_URL": ""}, "REDIS_URL", id="uvicorn, one URL"),
        pytest.param(UVICORN, {**CLUSTER, "PORT": "hunter2"}, "PORT", id="uvicorn, PORT"),
        pytest.param(UVICORN, {**CLUSTER, "SECRET_KEY": "hunter2"}, "SECRET_KEY", id="uvicorn, short secret"),
        pytest.param(
            UVICORN, {**CLUSTER, "UPSTREAM_PRIVATE_HOSTS": "//"}, "UPSTREAM_PRIVATE_HOSTS", id="uvicorn, hosts"
        ),
        pytest.param(
            UVICORN,
            {**CLUSTER, "REDIS_CLUSTER": "true", "REDIS_URL": "unix:///tmp/valkey.sock"},
            "REDIS_URL",
            id="uvicorn, cluster by a socket",
        ),
        pytest.param(SERVE, {"REDIS_CLUSTER": "true"}, "REDIS_CLUSTER", id="serve, cluster without its address"),
        pytest.param(SERVE, {"WORKERS": "hunter2"}, "WORKERS", id="serve, WORKERS"),
        pytest.param(SERVE, {"UPSTREAM_PRIVATE_HOSTS": "//"}, "UPSTREAM_PRIVATE_HOSTS", id="serve, hosts"),
        pytest.param(SERVE, {"ADMIN_TOKEN": "change-me"}, "ADMIN_TOKEN", id="serve, sample secret"),
        pytest.param(SERVE, {"DATABASE_URL": CLUSTER["DATABASE_URL"]}, "REDIS_URL", id="serve, one URL"),
    ],
)
def test_a_process_that_cannot_start_says_one_line_and_ends_with_a_status(
    tmp_path: Path, command: list[str], environment: dict[str, str], names: str
) -> None:
    """T013."""
    status, lines = said_by(command, tmp_path, environment)

    assert status not in (0, None)
    assert len(lines) == 1, lines
    assert names in lines[0]
    assert "hunter2" not in lines[0]
    assert not any(tmp_path.iterdir()), "a start that was refused leaves nothing behind"


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({"UPSTREAM_PRIVATE_HOSTS": "10.0.0.0/99"}, "UPSTREAM_PRIVATE_HOSTS"),
        ({"UPSTREAM_CA_FILES": "llm.corp.example=/nowhere/ca.pem"}, "UPSTREAM_CA_FILES"),
        ({"ALERT_WEBHOOK_URL": "http://169.254.169.254/", "ALERT_WEBHOOK_SECRET": "w" * 40}, "ALERT_WEBHOOK_URL"),
        ({"AUDIT_ANCHOR": "http://169.254.169.254/", "ALERT_WEBHOOK_SECRET": "w" * 40}, "AUDIT_ANCHOR"),
        ({"LLM_API_KEY": "sk-x", "LLM_API_BASE": "http://169.254.169.254/v1"}, "LLM_API_BASE"),
        ({"LLM_API_KEY": "sk-x", "DEFAULT_MODEL": "*"}, "DEFAULT_MODEL"),
        ({"REDIS_URL": "redis://localhost:six/0"}, "REDIS_URL"),
        (
            {
                "OIDC_ISSUER": "https://login.example.com",
                "OIDC_CLIENT_ID": "x",
                "PUBLIC_URL": "https://gateway.example.com",
                "OIDC_ROLE_MAP": "everybody=emperor",
            },
            "OIDC_ROLE_MAP",
        ),
    ],
)
def test_every_setting_is_judged_before_anything_is_started(environment: dict[str, str], names: str) -> None:
    with pytest.raises(SettingsError, match=names):
        require_usable(load_settings({**CLUSTER, **environment}))


def test_settings_that_can_be_used_pass() -> None:
    require_usable(load_settings(CLUSTER))
    require_usable(load_settings({}))


@pytest.mark.parametrize(
    ("url", "read"),
    [
        ("postgresql://u:p@h:5432/g?sslmode=require", "postgresql+asyncpg://u:p@h:5432/g?ssl=require"),
        ("postgres://u:p?[#@h/g", "postgresql+asyncpg://u:p?[#@h/g"),
        ("postgresql://u@[::1]:5432/g", "postgresql+asyncpg://u@[::1]:5432/g"),
        ("postgresql://u:p@/x?host=/run/pg&port=5433", "postgresql+asyncpg://u:p@/x?host=/run/pg&port=5433"),
    ],
)
def test_database_urls_are_read_as_other_programs_write_them(url: str, read: str) -> None:
    assert load_settings({"DATABASE_URL": url}).database_url == read


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hunter2@h:port/g",
        "postgresql://u:hunter2@h:0/g",
        "postgresql://u:hunter2@h:65536/g",
        "postgresql://u:hunter2@h:99999999999999999999/g",
        "postgresql://u:hunter2@::1/g",
        "postgresql://u:hunter2@h/g?password=hunter2",
        "postgresql://u:hunter2@h/g?hunter2=1",
    ],
)
def test_a_database_url_that_its_driver_would_choke_on_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(SettingsError, match="DATABASE_URL") as told:
        load_settings({"DATABASE_URL": url})
    assert "hunter2" not in str(told.value)
    assert "\n" not in str(told.value)


def test_a_process_reads_dot_env_where_it_is_started(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PORT=hunter2\n")

    status, lines = said_by(UVICORN, tmp_path, {})

    assert status != 0
    assert len(lines) == 1
    assert "PORT" in lines[0]


@pytest.mark.parametrize("level", ["debug", " Info ", "WARNING"])
def test_the_log_level_may_be_written_as_people_write_it(level: str) -> None:
    assert load_settings({"LOG_LEVEL": level}).log_level == level.strip().upper()
