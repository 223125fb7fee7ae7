"""Every setting of the gateway, typed, with its unit in its name. The only file that reads the environment.

Values come from the environment, then from `.env` in the working directory, then from the defaults here. A value that cannot be
used stops the start with one line: the variable, the fault, an example. Secrets are named in such a line, never shown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from enum import StrEnum
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.domain.money import MAX_BUDGET_NANOUSD, usd_to_nano
from app.exceptions import SettingsError

SAMPLE_SECRETS = frozenset(
    {
        "change-me",
        "changeme",
        "change-me-to-a-long-random-value",
        "replace-with-a-long-random-value-of-your-own",
        "your-secret-key-here-at-least-32-bytes",
    }
)
"""The values that `.env.example` and common habits put where a secret belongs; a start with one of them is refused."""

DATABASE_OPTIONS: Mapping[str, str] = {
    "host": "host",
    "port": "port",
    "ssl": "ssl",
    "sslmode": "ssl",
    "target_session_attrs": "target_session_attrs",
}
"""What may stand behind the `?` of `DATABASE_URL`, and what our driver calls it: it refused all else at the first query."""

MIN_SECRET_BYTES = 32
SECRETS = (
    "secret_key",
    "secret_key_previous",
    "admin_token",
    "gateway_shared_secret",
    "metrics_token",
    "alert_webhook_secret",
)
"""Those of our own, which must be strong. The provider's credential is as strong as the provider made it."""


class OnRedisDown(StrEnum):
    LOCAL = "local"
    REFUSE = "refuse"


class Settings(BaseSettings):
    """One field per environment variable of the same name in capitals."""

    model_config = SettingsConfigDict(
        env_file=".env", env_file_encoding="utf-8", extra="ignore", frozen=True, hide_input_in_errors=True
    )

    # Stores
    database_url: str = Field("", examples=["postgresql://gateway:PASSWORD@localhost:5432/gateway"])
    redis_url: str = Field("", examples=["redis://:PASSWORD@localhost:6379/0"])
    redis_cluster: bool = Field(False, examples=["true"])
    database_pool_size: int = Field(5, ge=1, le=100, examples=["5"])
    data_dir: Path = Field(Path("data"), examples=["/var/lib/antigravity"])

    # Secrets
    secret_key: SecretStr = Field(SecretStr(""), examples=["the output of: openssl rand -base64 48"])
    secret_key_previous: SecretStr = Field(SecretStr(""), examples=["the SECRET_KEY of before"])
    admin_token: SecretStr = Field(SecretStr(""), examples=["the output of: openssl rand -base64 48"])
    gateway_shared_secret: SecretStr = Field(SecretStr(""), examples=["the output of: openssl rand -base64 48"])
    metrics_token: SecretStr = Field(SecretStr(""), examples=["the output of: openssl rand -base64 48"])

    # The dashboard
    public_url: str = Field("", max_length=300, examples=["https://gateway.example.com"])
    dashboard_session_idle_minutes: int = Field(60, ge=1, le=1440, examples=["30"])
    dashboard_session_hours: int = Field(12, ge=1, le=720, examples=["8"])
    dashboard_insecure_cookie: bool = Field(False, examples=["true"])

    oidc_issuer: str = Field("", max_length=500, examples=["https://login.example.com/realms/company"])
    oidc_client_id: str = Field("", max_length=300, examples=["antigravity"])
    oidc_client_secret: SecretStr = Field(SecretStr(""), examples=["the secret that the provider gave this client"])
    oidc_scopes: str = Field("openid email profile", max_length=500, examples=["openid email profile groups"])
    oidc_role_claim: str = Field("groups", min_length=1, max_length=200, examples=["realm_access.roles"])
    oidc_role_map: str = Field("", max_length=10_000, examples=["llm-owners=owner, llm-team=admin, finance=billing"])
    oidc_email_domains: str = Field("", max_length=2000, examples=["example.com"])
    accept_litellm_keys: bool = Field(False, examples=["true"])

    # The first model
    default_model: str = Field("gpt-4o-mini", max_length=200, examples=["gpt-4o-mini"])
    llm_api_key: SecretStr = Field(SecretStr(""), examples=["sk-…"])
    llm_api_base: str = Field("https://api.openai.com/v1", examples=["https://api.openai.com/v1"])

    # Limits and money
    rate_limit_requests_per_minute: int = Field(60, ge=0, le=10**9, examples=["60"])
    rate_limit_tokens_per_minute: int = Field(0, ge=0, le=10**12, examples=["100000"])
    user_requests_per_minute: int = Field(0, ge=0, le=10**9, examples=["300"])
    user_tokens_per_minute: int = Field(0, ge=0, le=10**12, examples=["500000"])
    user_daily_budget_usd: str = Field("", examples=["5"])
    user_monthly_budget_usd: str = Field("", examples=["50"])
    payment_grace_days: int = Field(0, ge=0, le=366, examples=["3"])
    budget_timezone: str = Field("UTC", examples=["Europe/Berlin"])
    reservation_lease_seconds: int = Field(60, ge=2, le=600, examples=["60"])
    redis_timeout_ms: int = Field(100, ge=10, le=60_000, examples=["100"])
    on_redis_down: OnRedisDown = Field(OnRedisDown.LOCAL, examples=["local"])

    # Records
    log_retention_days: int = Field(90, ge=1, le=36_500, examples=["90"])
    ledger_retention_days: int = Field(0, ge=0, le=36_500, examples=["730"])
    log_content: Literal["full", "metadata"] = Field("full", examples=["metadata"])
    log_content_max_bytes: int = Field(256 * 1024, ge=0, le=2**30, examples=["262144"])
    log_content_mask_secrets: bool = Field(True, examples=["true"])
    audit_anchor: str = Field("", max_length=2048, examples=["/var/log/antigravity/audit-anchors"])
    otel_exporter_otlp_endpoint: str = Field("", max_length=2048, examples=["http://otel-collector:4318"])
    otel_service_name: str = Field("antigravity-llm-gateway", min_length=1, max_length=200, examples=["antigravity"])
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", examples=["INFO"])

    # Alerts
    alert_webhook_url: str = Field("", max_length=2048, examples=["https://hooks.example.com/antigravity"])
    alert_webhook_secret: SecretStr = Field(SecretStr(""), examples=["the output of: openssl rand -base64 48"])

    # Endpoints
    retry_budget_percent: int = Field(20, ge=0, le=100, examples=["20"])
    max_running_calls: int = Field(4096, ge=1, le=1_000_000, examples=["4096"])
    endpoint_max_in_flight: int = Field(512, ge=1, le=100_000, examples=["512"])

    # The server
    host: str = Field("0.0.0.0", min_length=1, examples=["0.0.0.0"])  # noqa: S104 - a server's default is to be reachable
    port: int = Field(8000, ge=1, le=65535, examples=["8000"])
    workers: int = Field(1, ge=1, le=256, examples=["2"])
    max_request_bytes: int = Field(20 * 1024 * 1024, ge=1024, le=2**30, examples=["20971520"])
    request_body_timeout_seconds: float = Field(30.0, gt=0, le=86_400, allow_inf_nan=False, examples=["30"])
    shutdown_grace_seconds: float = Field(30.0, ge=0, le=86_400, allow_inf_nan=False, examples=["30"])
    shutdown_delay_seconds: float = Field(1.5, ge=0, le=60, allow_inf_nan=False, examples=["1.5"])
    trusted_proxies: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = Field(
        (), examples=["10.0.0.0/8, 127.0.0.1"]
    )
    upstream_private_hosts: str = Field("", examples=["loopback, 10.0.0.0/8, llm.internal"])
    upstream_ca_files: Annotated[tuple[tuple[str, Path], ...], NoDecode] = Field(
        (), examples=["llm.corp.example=/etc/ssl/corp-ca.pem"]
    )
    write_stall_seconds: float = Field(60.0, gt=0, le=86_400, allow_inf_nan=False, examples=["60"])
    docs_enabled: bool = Field(True, examples=["false"])

    is_embedded: bool = Field(False, validation_alias="GATEWAY_EMBEDDED", examples=["true"])
    """Set by `python -m app serve` for its own workers: the two servers are its own children."""

    @field_validator("database_url")
    @classmethod
    def _database(cls, value: str) -> str:
        if not value:
            return ""
        scheme, _, rest = value.partition("://")
        if scheme not in ("postgresql", "postgres", "postgresql+asyncpg") or not rest:
            raise ValueError("is not a PostgreSQL URL")
        return _for_asyncpg(f"postgresql+asyncpg://{rest}")

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: str) -> str:
        if value and value.partition("://")[0] not in ("redis", "rediss", "redis+sentinel", "unix"):
            raise ValueError("is not a Redis URL (redis://, rediss://, redis+sentinel:// or unix://)")
        return value

    @field_validator("llm_api_base")
    @classmethod
    def _api_base(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
        except ValueError:  # its own message would show the value, a password in it included
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise ValueError("is not an http(s) URL without user and password")
        return value

    @field_validator("public_url")
    @classmethod
    def _public_url(cls, value: str) -> str:
        if not value:
            return ""
        parts = urlsplit(cls._api_base(value))
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError("is not an http(s) URL without path, user and password")
        return f"{parts.scheme}://{parts.netloc}"

    @field_validator("oidc_issuer")
    @classmethod
    def _issuer(cls, value: str) -> str:
        if not value:
            return ""
        parts = urlsplit(cls._api_base(value))
        if parts.query or parts.fragment:
            raise ValueError("is not an http(s) URL without query, user and password")
        if parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
            raise ValueError("is not an https URL")
        return value

    @field_validator("alert_webhook_url", "otel_exporter_otlp_endpoint")
    @classmethod
    def _webhook(cls, value: str) -> str:
        if not value:
            return ""
        if not value.isascii() or not value.isprintable() or " " in value:
            raise ValueError("is not an http(s) URL without user and password")
        return cls._api_base(value)

    @field_validator("budget_timezone")
    @classmethod
    def _zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("is not a time zone of the IANA database") from None
        return value

    @field_validator("user_daily_budget_usd", "user_monthly_budget_usd")
    @classmethod
    def _amount(cls, value: str) -> str:
        try:
            if value and not 0 <= usd_to_nano(value) <= MAX_BUDGET_NANOUSD:
                raise ValueError(value)
        except ValueError:
            raise ValueError("is not an amount between 0 and 9000000, in US dollars") from None
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _level(cls, value: Any) -> Any:
        return value.strip().upper() if isinstance(value, str) else value

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _networks(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return tuple(ip_network(item.strip(), strict=False) for item in value.split(",") if item.strip())
        except ValueError:
            raise ValueError("is not a comma-separated list of addresses and networks") from None

    @field_validator("upstream_ca_files", mode="before")
    @classmethod
    def _authorities(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        pairs = [entry.partition("=") for entry in value.split(",") if entry.strip()]
        if not all(host.strip() and path.strip() for host, _, path in pairs):
            raise ValueError("is not a comma-separated list of host=file")
        return tuple((host.strip().lower().strip("[]"), Path(path.strip())) for host, _, path in pairs)

    @field_validator(*SECRETS, "llm_api_key")
    @classmethod
    def _printable(cls, value: SecretStr) -> SecretStr:
        if re.search(r"[\x00-\x20\x7f]", value.get_secret_value()):
            raise ValueError("holds spaces or control characters")
        return value

    @cached_property
    def budget_zone(self) -> ZoneInfo:
        return ZoneInfo(self.budget_timezone)


def _for_asyncpg(url: str) -> str:
    """With the options that libpq's users write as our driver calls them. Raises: ValueError, without a value: it may be a password."""
    head, at, tail = url.rpartition("@")  # a password may hold what elsewhere parts a URL
    place, _, query = tail.partition("?")
    host, colon, port = place.partition("/")[0].rpartition(":")
    if colon and not host.startswith("[") and ":" in host:
        raise ValueError("is not a PostgreSQL URL (an IPv6 address stands in brackets)")
    if colon and not port.endswith("]") and not (port.isascii() and port.isdigit() and 0 < int(port[:9]) < 65536):
        raise ValueError("is not a PostgreSQL URL (its port is no number from 1 to 65535)")
    options = []
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in DATABASE_OPTIONS:
            raise ValueError(f"holds an option that is not known; known are {', '.join(DATABASE_OPTIONS)}")
        options.append((DATABASE_OPTIONS[name], value))
    return f"{head}{at}{place}" + (f"?{urlencode(options, safe='/:')}" if options else "")


def load_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Read and check the settings. Raises: SettingsError, one line for the operator.

    `environment` replaces the process's own (and `.env`) in tests.
    """
    try:
        settings = Settings() if environment is None else Settings.model_validate(_from_mapping(environment))
    except ValidationError as error:
        raise SettingsError(_first_fault(error)) from None
    except UnicodeDecodeError:
        raise SettingsError(".env is not a UTF-8 text file.") from None
    _refuse_weak_secrets(settings)
    if settings.redis_cluster and not settings.redis_url:
        raise SettingsError(f"REDIS_CLUSTER is true and REDIS_URL is not set. Set it to {_example('redis_url')}.")
    for name in ("public_url", "oidc_client_id", "oidc_role_map") if settings.oidc_issuer else ():
        if not getattr(settings, name):
            raise SettingsError(f"{name.upper()} is not set, and OIDC_ISSUER needs it. Set it to {_example(name)}.")
    if (
        settings.audit_anchor.startswith(("http://", "https://"))
        and not settings.alert_webhook_secret.get_secret_value()
    ):
        raise SettingsError(
            "ALERT_WEBHOOK_SECRET is not set, and AUDIT_ANCHOR needs it to sign what it sends to a URL. "
            f"Set it to {_example('alert_webhook_secret')}."
        )
    if 0 < settings.ledger_retention_days < settings.log_retention_days:
        raise SettingsError(
            "LEDGER_RETENTION_DAYS is shorter than LOG_RETENTION_DAYS. Set it to 0 (for ever) or to more days, "
            f"for example {_example('ledger_retention_days')}."
        )
    if settings.alert_webhook_url and not settings.alert_webhook_secret.get_secret_value():
        raise SettingsError(
            "ALERT_WEBHOOK_SECRET is not set, and ALERT_WEBHOOK_URL needs it to sign what it is sent. "
            f"Set it to {_example('alert_webhook_secret')}."
        )
    return settings


def require_cluster_settings(settings: Settings) -> None:
    """What every mode but the embedded default needs from its operator. Raises: SettingsError."""
    for name in ("database_url", "redis_url"):
        if not getattr(settings, name):
            raise SettingsError(
                f"{name.upper()} is not set. Set it (for example {_example(name)}), or start with `python -m app serve`, "
                "which brings its own PostgreSQL and Valkey."
            )
    for name in ("secret_key", "admin_token"):
        if not getattr(settings, name).get_secret_value():
            raise SettingsError(f"{name.upper()} is not set. Set it to {_example(name)}.")


def environment_variable(name: str) -> str | None:
    """A variable that is no setting of ours, for an import whose operator asked for it."""
    return os.environ.get(name)


def export_settings(**values: str) -> None:
    """Put settings into this process's environment, for its workers and for the next `load_settings`."""
    os.environ.update(values)


def withdraw_from_environment(pattern: re.Pattern[str]) -> None:
    """Remove variables that a library would read behind our back, from this process only."""
    for name in [name for name in os.environ if pattern.match(name)]:
        del os.environ[name]


def _refuse_weak_secrets(settings: Settings) -> None:
    for name in SECRETS:
        secret = getattr(settings, name).get_secret_value()
        if not secret:
            if name in settings.model_fields_set:
                raise SettingsError(f"{name.upper()} is empty. Set it to {_example(name)}, or leave it out.")
            continue
        if secret.lower() in SAMPLE_SECRETS:
            raise SettingsError(f"{name.upper()} still has its sample value. Set it to {_example(name)}.")
        if len(secret.encode()) < MIN_SECRET_BYTES:
            raise SettingsError(f"{name.upper()} is shorter than {MIN_SECRET_BYTES} bytes. Set it to {_example(name)}.")


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_input=False, include_url=False)[0]
    name = str(fault["loc"][0]).lower() if fault["loc"] else "settings"
    field = "is_embedded" if name == "gateway_embedded" else name
    message = fault["msg"].removeprefix("Value error, ")
    joined = message if message.startswith(("is ", "holds ")) else f"is not usable: {message[:1].lower()}{message[1:]}"
    return f"{name.upper()} {joined}. Example: {name.upper()}={_example(field)}"


def _example(field: str) -> str:
    examples = Settings.model_fields[field].examples or [""]
    return str(examples[0])


def _from_mapping(environment: Mapping[str, str]) -> dict[str, str]:
    fields = Settings.model_fields
    wanted = {str(field.validation_alias or name).lower(): name for name, field in fields.items()}
    return {
        (key if key == "GATEWAY_EMBEDDED" else wanted[key.lower()]): value
        for key, value in environment.items()
        if key.lower() in wanted
    }
