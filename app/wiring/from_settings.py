"""What the settings decide: policies, defaults, and the adapters that only some installations have."""

from __future__ import annotations

import ssl
from pathlib import Path
from uuid import uuid4

from app.clock import Clock
from app.config import Settings
from app.domain.budget import Budget, PeriodKind
from app.domain.egress import LAPTOP, EgressPolicy, checked_url
from app.domain.limits import Limit, LimitKind
from app.domain.money import usd_to_nano
from app.domain.sso import RolePolicy
from app.exceptions import CallerError, SettingsError
from app.middleware.admin_session import SIGN_IN
from app.providers.oidc import OidcClient, OidcProvider
from app.providers.transport import Transport, tls_trusting
from app.providers.webhook import Webhook
from app.redis_client import open_redis
from app.services.admin_sessions import AdminSessions
from app.services.audit_anchor import Keep
from app.services.bootstrap import FirstModel
from app.services.management_rules import require_model_name
from app.services.single_sign_on import SingleSignOn
from app.storage.anchor_file import AnchorFile
from app.storage.management_ports import UserSpec


def require_usable(settings: Settings) -> None:
    """Judge what `load_settings` cannot, as it knows no more than values: for a start that is refused before it has begun anything.

    Raises: SettingsError.
    """
    egress_policy(settings)
    private_authorities(settings)
    role_policy(settings)
    if settings.redis_url:
        open_redis(settings.redis_url, timeout_ms=settings.redis_timeout_ms, is_cluster=settings.redis_cluster)
    if settings.alert_webhook_url:
        _require_address(settings.alert_webhook_url, "ALERT_WEBHOOK_URL", settings)
    if "://" in settings.audit_anchor:
        _require_address(settings.audit_anchor, "AUDIT_ANCHOR", settings)
    first = first_model(settings)
    if first.api_key is not None:
        _require_address(first.api_base, "LLM_API_BASE", settings, example="https://api.openai.com/v1")
        try:
            require_model_name(first.name, "DEFAULT_MODEL")
        except CallerError as error:
            raise SettingsError(f"{error.message} Example: DEFAULT_MODEL=gpt-4o-mini") from None


def private_authorities(settings: Settings) -> dict[str, ssl.SSLContext]:
    """By host, what its certificates are checked against in place of the system's authorities. Raises: SettingsError."""
    try:
        return {host: tls_trusting(path) for host, path in settings.upstream_ca_files}
    except OSError as fault:
        raise SettingsError(
            "UPSTREAM_CA_FILES names a file that cannot be read as certificates "
            f"({'it holds none' if isinstance(fault, ssl.SSLError) else fault.strerror}). "
            "Set it to host=file, for example llm.corp.example=/etc/ssl/corp-ca.pem."
        ) from None


def egress_policy(settings: Settings) -> EgressPolicy:
    """What endpoints may point to. Raises: SettingsError."""
    if not settings.upstream_private_hosts:
        return LAPTOP if settings.is_embedded else EgressPolicy()
    try:
        return EgressPolicy.parse(settings.upstream_private_hosts)
    except ValueError as error:
        raise SettingsError(
            f"UPSTREAM_PRIVATE_HOSTS is not usable: {error}. Example: UPSTREAM_PRIVATE_HOSTS=loopback, 10.0.0.0/8"
        ) from None


def webhook_of(settings: Settings, transport: Transport, clock: Clock) -> Webhook | None:
    """The sender of alerts, where one is configured. Raises: SettingsError for an address that no endpoint could have either."""
    url = settings.alert_webhook_url
    return _webhook_to(url, "ALERT_WEBHOOK_URL", settings, transport, clock) if url else None


def sso_origin(settings: Settings) -> str | None:
    """What sessions from single sign-on hang on: with another provider or role map they end."""
    if not settings.oidc_issuer:
        return None
    policy = (settings.oidc_role_claim, settings.oidc_role_map, settings.oidc_email_domains)
    return "\n".join((settings.oidc_issuer, settings.oidc_client_id, *policy))


def role_policy(settings: Settings) -> RolePolicy | None:
    """Who may sign in by single sign-on, and as what; None where nobody may. Raises: SettingsError."""
    if not settings.oidc_issuer:
        return None
    try:
        return RolePolicy.parse(
            claim=settings.oidc_role_claim,
            role_map=settings.oidc_role_map,
            email_domains=settings.oidc_email_domains,
        )
    except ValueError as error:
        raise SettingsError(
            f"OIDC_ROLE_MAP is not usable: {error}. Example: OIDC_ROLE_MAP=llm-owners=owner, llm-team=admin"
        ) from None


def single_sign_on_of(settings: Settings, sessions: AdminSessions, clock: Clock) -> SingleSignOn | None:
    """Single sign-on, where it is configured. Raises: SettingsError."""
    origin = sso_origin(settings)
    if origin is None:
        return None
    policy = role_policy(settings)
    if policy is None:
        return None
    client = OidcClient(
        issuer=settings.oidc_issuer,
        client_id=settings.oidc_client_id,
        client_secret=settings.oidc_client_secret.get_secret_value(),
        scopes=settings.oidc_scopes,
        redirect_uri=f"{settings.public_url}{SIGN_IN}/sso/callback",
        role_claim=settings.oidc_role_claim,
    )
    secrets = (settings.secret_key.get_secret_value(), settings.secret_key_previous.get_secret_value())
    return SingleSignOn(
        provider=OidcProvider(client, clock),
        policy=policy,
        sessions=sessions,
        clock=clock,
        origin=origin,
        secret_keys=tuple(each for each in secrets if each),
    )


def anchor_keeper(settings: Settings, transport: Transport, clock: Clock) -> Keep | None:
    """Where anchors of the audit trail go besides the log. Raises: SettingsError."""
    place = settings.audit_anchor
    if not place:
        return None
    if "://" not in place:
        return AnchorFile(Path(place)).keep
    webhook = _webhook_to(place, "AUDIT_ANCHOR", settings, transport, clock)

    async def keep(line: bytes) -> bool:
        return (await webhook.send(str(uuid4()), line)).error is None

    return keep


def _webhook_to(url: str, setting: str, settings: Settings, transport: Transport, clock: Clock) -> Webhook:
    _require_address(url, setting, settings)
    return Webhook(transport, clock, url=url, secret=settings.alert_webhook_secret.get_secret_value().encode())


def _require_address(
    url: str, setting: str, settings: Settings, *, example: str = "https://hooks.example.com/alerts"
) -> None:
    """Raises: SettingsError for an address that no endpoint could have either."""
    try:
        checked_url(url.partition("?")[0], egress_policy(settings), param=setting)
    except CallerError as error:
        raise SettingsError(f"{error.message} Example: {setting}={example}") from None


def default_limits(settings: Settings) -> tuple[Limit, ...]:
    """The limits of keys without their own; 0 means none."""
    limits = []
    if settings.rate_limit_requests_per_minute:
        limits.append(Limit(LimitKind.REQUESTS, settings.rate_limit_requests_per_minute, 60))
    if settings.rate_limit_tokens_per_minute:
        limits.append(Limit(LimitKind.TOKENS, settings.rate_limit_tokens_per_minute, 60))
    return tuple(limits)


def default_user(settings: Settings) -> UserSpec:
    """What users get for whom no limits or budgets are given; 0 and an empty amount mean none."""
    limits = []
    if settings.user_requests_per_minute:
        limits.append(Limit(LimitKind.REQUESTS, settings.user_requests_per_minute, 60))
    if settings.user_tokens_per_minute:
        limits.append(Limit(LimitKind.TOKENS, settings.user_tokens_per_minute, 60))
    amounts = (
        (PeriodKind.DAILY, settings.user_daily_budget_usd),
        (PeriodKind.MONTHLY, settings.user_monthly_budget_usd),
    )
    budgets = [Budget(period, None, usd_to_nano(amount)) for period, amount in amounts if amount]
    return UserSpec("", limits=tuple(limits), budgets=tuple(budgets))


def first_model(settings: Settings) -> FirstModel:
    return FirstModel(settings.default_model, settings.llm_api_base, settings.llm_api_key.get_secret_value() or None)
