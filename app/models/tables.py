"""The schema, as SQLAlchemy Core tables. Statements over them stand in `app/storage`; Alembic's migrations create them.

Money is BIGINT nanodollars, prices are BIGINT picodollars inside `prices.rates`, times are TIMESTAMPTZ in UTC.
The ledger (`usage_records`), its bodies (`usage_content`) and the refusals are partitioned by month of `created_at`,
which is the time inside the UUIDv7 `request_id`: the pair is unique because the id alone is.
"""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    false,
    func,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID

from app.domain.histogram import BUCKETS

SCHEMA_REVISION = "0016"
"""The newest migration. A process whose database says otherwise migrates (or waits for the one that does)."""

MAX_NAME_CHARS = 200
"""Of a user's oid, an app's id and a model's name. The ledger cuts what callers send to this length (a row of an index
has to fit a third of a page), so no holder may have a longer name."""

DEAR_NANOUSD = 10_000_000
"""From a cent on a call is found by what it cost. Of cheaper ones there are so many that a few are met soon."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _created_at() -> Column[object]:
    return Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now())


def _updated_at() -> Column[object]:
    return Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now())


def _named_within(column: str) -> CheckConstraint:
    return CheckConstraint(f"char_length({column}) <= {MAX_NAME_CHARS}", name=f"{column}_length")


def _texts(name: str, default: str = "{}") -> Column[object]:
    return Column(name, ARRAY(Text), nullable=False, server_default=text(f"'{default}'"))


# ── Configuration ─────────────────────────────────────────────────────────────────────────────────────────────────────

config_revision = Table(
    "config_revision",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("revision", BigInteger, nullable=False),
    CheckConstraint("id = 1", name="single_row"),
)
"""One row. A change of configuration raises `revision` in its own transaction; the row lock puts changes in order."""

config_changes = Table(
    "config_changes",
    metadata,
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", Text, nullable=False),  # user | key | app | admin | catalog
    Column("ref", Text, nullable=False),  # the object's id: what to drop from memory
    Column("changed_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)
"""What each revision changed, without a gap. Kept for a day: who is further behind reads all anew."""

users = Table(
    "users",
    metadata,
    Column("oid", Text, primary_key=True),
    Column("email", Text),
    Column("name", Text),
    Column("payment_status", Text, nullable=False, server_default="active"),
    Column("payment_valid_until", Date),
    Column("log_content", Text),
    _created_at(),
    _updated_at(),
    CheckConstraint("log_content IN ('full', 'metadata')", name="log_content"),
    CheckConstraint("payment_status IN ('active', 'trial', 'expired', 'suspended')", name="payment_status"),
    _named_within("oid"),
    Index("ix_users_payment_valid_until", "payment_valid_until"),
    Index("ix_users_created_at_oid", "created_at", "oid"),
)

keys = Table(
    "keys",
    metadata,
    Column("id", UUID(as_uuid=False), primary_key=True),
    Column("user_oid", Text, ForeignKey("users.oid", ondelete="CASCADE"), nullable=False),
    Column("name", Text, nullable=False, server_default=""),
    Column("digest", LargeBinary, nullable=False),  # HMAC-SHA-256 of the key under a pepper that is not in the database
    Column("key_prefix", Text, nullable=False),
    Column("last4", Text, nullable=False),
    Column("status", Text, nullable=False, server_default="active"),
    _texts("allowed_models", "{*}"),
    _texts("allowed_ips"),
    Column("log_content", Text),
    Column("has_own_limits", Boolean, nullable=False, server_default=false()),  # false: the settings' defaults hold
    Column("labels", JSONB, nullable=False, server_default=text("'{}'")),
    Column("overflow", JSONB, nullable=False, server_default=text("'{}'")),
    Column("expires_at", DateTime(timezone=True)),
    Column("revoked_at", DateTime(timezone=True)),
    Column("last_used_at", DateTime(timezone=True)),
    _created_at(),
    _updated_at(),
    UniqueConstraint("digest"),
    CheckConstraint("status IN ('active', 'revoked')", name="status"),
    CheckConstraint("log_content IN ('full', 'metadata')", name="log_content"),
    Index("ix_keys_user_oid", "user_oid"),
    Index("ix_keys_created_at_id", "created_at", "id"),
    Index("ix_keys_name_id", "name", "id"),
    Index("ix_keys_labels", "labels", postgresql_using="gin"),
)

USER_WORDS = r"lower(users.oid || E'\n' || coalesce(users.email, '') || E'\n' || coalesce(users.name, ''))"
KEY_WORDS = r"lower(keys.name || E'\n' || keys.user_oid || E'\n' || keys.key_prefix || E'\n' || keys.last4 || E'\n' || keys.labels::text)"
"""What the lists are searched in, to the letter as migration 0008 indexes it where there are trigrams."""
KEY_END = "coalesce(keys.expires_at, TIMESTAMPTZ '9999-12-31 00:00:00+00')"
USER_PAID_UNTIL = "coalesce(users.payment_valid_until, DATE 'infinity')"
"""What the lists are sorted by, as migration 0011 indexes it: never null, the endless last."""

deleted_users = Table(
    "deleted_users",
    metadata,
    Column("oid", Text, primary_key=True),
    Column("deleted_at", DateTime(timezone=True), nullable=False),
)
"""When a user of this oid was last deleted: calls of before were made by that one, whoever has the oid now."""

repeatable_requests = Table(
    "repeatable_requests",
    metadata,
    Column("actor", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("request_digest", LargeBinary, nullable=False),
    Column("begun_at", DateTime(timezone=True), nullable=False),
    Column("status", SmallInteger),  # null: being worked on, or its process died of it
    Column("answer_sealed", LargeBinary),  # sealed, because answers hold secrets
    Index("ix_repeatable_requests_begun_at", "begun_at"),
)
"""Requests of the admin API that were sent with an `Idempotency-Key`."""

former_credentials = Table(
    "former_credentials",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("key_id", UUID(as_uuid=False), ForeignKey("keys.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("key_prefix", Text, nullable=False),
    Column("last4", Text, nullable=False),
    Column("expires_at", DateTime(timezone=True), nullable=False),
)
"""Secrets that a key had before it was rotated: each still resolves to that key, to its limits and to what it has spent."""

apps = Table(
    "apps",
    metadata,
    Column("app_id", Text, primary_key=True),
    Column("name", Text, nullable=False, server_default=""),
    Column("is_active", Boolean, nullable=False, server_default=true()),
    _texts("allowed_models", "{*}"),
    _texts("allowed_networks"),
    Column("own_secret_only", Boolean, nullable=False, server_default=false()),
    Column("auto_create_users", Boolean, nullable=False, server_default=false()),
    Column("log_content", Text),
    _created_at(),
    _updated_at(),
    _named_within("app_id"),
)

app_secrets = Table(
    "app_secrets",
    metadata,
    Column("id", UUID(as_uuid=False), primary_key=True),
    Column("app_id", Text, ForeignKey("apps.app_id", ondelete="CASCADE"), nullable=False, index=True),
    Column("digest", LargeBinary, nullable=False),
    Column("last4", Text, nullable=False),
    Column("expires_at", DateTime(timezone=True)),
    _created_at(),
)

admins = Table(
    "admins",
    metadata,
    Column("id", UUID(as_uuid=False), primary_key=True),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("token_digest", LargeBinary, nullable=False),
    Column("last4", Text, nullable=False),
    Column("expires_at", DateTime(timezone=True)),
    Column("revoked_at", DateTime(timezone=True)),
    Column("last_used_at", DateTime(timezone=True)),
    _created_at(),
    _updated_at(),
    UniqueConstraint("token_digest"),
    CheckConstraint("role IN ('owner', 'admin', 'billing', 'viewer')", name="role"),
)

secret_key = Table(
    "secret_key",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("set_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint("id = 1", name="single_row"),
)
"""One row: which SECRET_KEY digests and sealed credentials belong to. A process with another one refuses to work on them."""

admin_sessions = Table(
    "admin_sessions",
    metadata,
    Column(
        "id", UUID(as_uuid=False), primary_key=True
    ),  # what lists and the trail name it by; the cookie is another secret
    Column("digest", LargeBinary, nullable=False),  # HMAC-SHA-256 of the cookie, under the pepper
    Column("kind", Text, nullable=False),
    Column("admin_id", UUID(as_uuid=False), ForeignKey("admins.id", ondelete="CASCADE"), index=True),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("origin", LargeBinary),  # digest of the setting it hangs on, for sessions without a row in admins
    Column("address", Text),
    Column("user_agent", Text, nullable=False, server_default=""),
    Column("opened_at", DateTime(timezone=True), nullable=False),
    Column("last_seen_at", DateTime(timezone=True), nullable=False),
    Column("expires_at", DateTime(timezone=True), nullable=False, index=True),
    UniqueConstraint("digest"),
    CheckConstraint("kind IN ('token', 'setting', 'sso')", name="kind"),
    CheckConstraint("role IN ('owner', 'admin', 'billing', 'viewer')", name="role"),
)
"""The dashboard's sessions. What a row says is checked again at each use: whoever lost his right loses it at once."""

sign_in_failures = Table(
    "sign_in_failures",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    Column("network", Text, nullable=False),  # an IPv4 address or an IPv6 /64
    Column("account", Text, nullable=False),  # what was signed in to: "token" or "sso"
    Column("at", DateTime(timezone=True), nullable=False, index=True),
    Index("ix_sign_in_failures_bucket", "network", "account", "at"),
)
"""Failed sign-ins of the last minute, at most ten for each network and account; in SQL, so that a restart forgives nothing."""

models = Table(
    "models",
    metadata,
    Column("name", Text, primary_key=True),
    _texts("aliases"),
    Column("strategy", Text, nullable=False, server_default="round_robin"),
    _texts("fallbacks"),
    Column("sticky", Text),
    Column("max_retries", SmallInteger),
    Column("shadow", JSONB),
    Column("context_window", Integer),
    Column("max_output_tokens", Integer),
    _created_at(),
    _updated_at(),
    CheckConstraint("strategy IN ('round_robin', 'least_busy', 'latency', 'cost')", name="strategy"),
    CheckConstraint("sticky IN ('user', 'prompt')", name="sticky"),
    CheckConstraint("max_retries >= 0", name="max_retries"),
    _named_within("name"),
)

endpoints = Table(
    "endpoints",
    metadata,
    Column("id", UUID(as_uuid=False), primary_key=True),
    Column(
        "model", Text, ForeignKey("models.name", ondelete="CASCADE", onupdate="CASCADE"), nullable=False, index=True
    ),
    Column("provider", Text, nullable=False),
    Column("upstream_model", Text, nullable=False),
    Column("api_base", Text, nullable=False, server_default=""),
    Column("credential_sealed", LargeBinary),  # AES-256-GCM, bound to this endpoint's id and host
    Column("credential_last4", Text),
    Column("weight", Integer, nullable=False, server_default="1"),
    Column("priority", Integer, nullable=False, server_default="0"),
    Column("max_concurrency", Integer),
    Column("requests_per_minute", Integer),
    Column("tokens_per_minute", Integer),
    Column("timeouts", JSONB, nullable=False, server_default=text("'{}'")),
    Column("health_check", JSONB, nullable=False, server_default=text("'{}'")),
    Column("breaker", JSONB, nullable=False, server_default=text("'{}'")),
    Column("is_draining", Boolean, nullable=False, server_default=false()),
    _created_at(),
    _updated_at(),
    CheckConstraint("provider IN ('openai', 'anthropic', 'litellm', 'demo')", name="provider"),
    CheckConstraint("weight >= 0", name="weight"),
)

prices = Table(
    "prices",
    metadata,
    Column("id", UUID(as_uuid=False), primary_key=True),
    Column("model", Text, nullable=False),
    Column("endpoint_id", UUID(as_uuid=False)),
    Column("rates", JSONB),  # picodollars per unit as integers; NULL: back to the price map
    Column("valid_from", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Index("ix_prices_model_valid_from", "model", "endpoint_id", "valid_from"),
)
"""Append-only history: the newest row of a model (or of one of its endpoints) holds. No foreign key, to outlive both."""


def _holder_columns() -> list[Column[object]]:
    return [
        Column("key_id", UUID(as_uuid=False), ForeignKey("keys.id", ondelete="CASCADE"), index=True),
        Column("user_oid", Text, ForeignKey("users.oid", ondelete="CASCADE"), index=True),
        Column("app_id", Text, ForeignKey("apps.app_id", ondelete="CASCADE"), index=True),
        Column("model", Text, ForeignKey("models.name", ondelete="CASCADE", onupdate="CASCADE"), index=True),
    ]


def _one_holder() -> CheckConstraint:
    return CheckConstraint("num_nonnulls(key_id, user_oid, app_id, model) = 1", name="one_holder")


limits = Table(
    "limits",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    *_holder_columns(),
    Column("kind", Text, nullable=False),
    Column("limit", BigInteger, nullable=False),
    Column("window_seconds", Integer, nullable=False),
    _one_holder(),
    CheckConstraint("kind IN ('requests', 'tokens', 'concurrency')", name="kind"),
    CheckConstraint('"limit" >= 0', name="limit"),
)

budgets = Table(
    "budgets",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    *_holder_columns(),
    Column("period", Text, nullable=False),
    Column("soft_limit_nanousd", BigInteger),
    Column("hard_limit_nanousd", BigInteger),
    Column("reserve", Text, nullable=False, server_default="worst_case"),
    Column("opened_ms", BigInteger, nullable=False, server_default="0"),
    _one_holder(),
    CheckConstraint("period IN ('daily', 'weekly', 'monthly', 'total')", name="period"),
    CheckConstraint("reserve IN ('worst_case', 'expected')", name="reserve"),
    CheckConstraint("hard_limit_nanousd >= 0 AND hard_limit_nanousd <= 9000000000000000", name="hard_limit"),
    CheckConstraint("soft_limit_nanousd >= 0 AND soft_limit_nanousd <= 9000000000000000", name="soft_limit"),
)

# ── The ledger ────────────────────────────────────────────────────────────────────────────────────────────────────────

usage_records = Table(
    "usage_records",
    metadata,
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("request_id", UUID(as_uuid=False), nullable=False),
    Column("client_request_id", Text),
    Column("user_oid", Text, nullable=False),
    Column("key_id", UUID(as_uuid=False)),
    Column("app_id", Text),
    Column("requested_model", Text, nullable=False),
    Column("served_model", Text, nullable=False),
    Column("endpoint_id", UUID(as_uuid=False)),
    Column("provider", Text),
    Column("dialect", Text, nullable=False),
    Column("is_stream", Boolean, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("http_status", SmallInteger, nullable=False),
    Column("error_code", Text),
    Column("error_reason", Text),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("usage_quality", Text, nullable=False),
    Column("cost_nanousd", BigInteger, nullable=False),
    Column("price_id", Text),
    Column("first_token_ms", Integer),
    Column("duration_ms", Integer, nullable=False),
    Column("attempts", SmallInteger, nullable=False),
    Column("detail", JSONB, nullable=False),  # attempts in full, limits, budgets, candidates, price, arithmetic
    PrimaryKeyConstraint("created_at", "request_id"),
    CheckConstraint("cost_nanousd >= 0", name="cost"),
    Index("ix_usage_records_request_id", "request_id"),
    Index(
        "ix_usage_records_client_request_id",
        *("client_request_id", "created_at", "request_id"),
        postgresql_where=text("client_request_id IS NOT NULL"),
    ),
    Index("ix_usage_records_user", "user_oid", "created_at", "request_id"),
    Index("ix_usage_records_key", "key_id", "created_at", "request_id"),
    Index("ix_usage_records_model", "requested_model", "created_at", "request_id"),
    Index(
        "ix_usage_records_app",
        *("app_id", "created_at", "request_id"),
        postgresql_where=text("app_id IS NOT NULL"),
    ),
    Index(
        "ix_usage_records_outcome",  # failures are few and searched for often
        *("outcome", "created_at", "request_id"),
        postgresql_where=text("outcome <> 'ok'"),
    ),
    Index(
        "ix_usage_records_cost",  # dear ones alone: an index of all would be a tenth of what writing a record costs
        "cost_nanousd",
        postgresql_where=text(f"cost_nanousd >= {DEAR_NANOUSD}"),
    ),
    postgresql_partition_by="RANGE (created_at)",
)
"""One row per call that was admitted; append-only."""

refused_calls = Table(
    "refused_calls",
    metadata,
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("request_id", UUID(as_uuid=False), nullable=False),
    Column("client_request_id", Text),
    Column("user_oid", Text, nullable=False),
    Column("key_id", UUID(as_uuid=False)),
    Column("app_id", Text),
    Column("requested_model", Text, nullable=False),
    Column("dialect", Text, nullable=False),
    Column("is_stream", Boolean, nullable=False),
    Column("http_status", SmallInteger, nullable=False),
    Column("error_code", Text),
    Column("error_reason", Text),
    Column("duration_ms", Integer, nullable=False),
    Column("detail", JSONB, nullable=False),
    PrimaryKeyConstraint("created_at", "request_id"),
    Index("ix_refused_calls_request_id", "request_id"),
    Index(
        "ix_refused_calls_client_request_id",
        *("client_request_id", "created_at", "request_id"),
        postgresql_where=text("client_request_id IS NOT NULL"),
    ),
    Index("ix_refused_calls_user", "user_oid", "created_at", "request_id"),
    Index("ix_refused_calls_key", "key_id", "created_at", "request_id"),
    Index("ix_refused_calls_model", "requested_model", "created_at", "request_id"),
    Index(
        "ix_refused_calls_app",
        *("app_id", "created_at", "request_id"),
        postgresql_where=text("app_id IS NOT NULL"),
    ),
    postgresql_partition_by="RANGE (created_at)",
)
"""Calls of a known identity that were refused before any upstream; they cost nothing and are no part of the ledger."""

usage_content = Table(
    "usage_content",
    metadata,
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("request_id", UUID(as_uuid=False), nullable=False),
    Column("user_oid", Text, nullable=False),
    Column("request_body", LargeBinary, nullable=False),  # zlib
    Column("response_body", LargeBinary, nullable=False),  # zlib
    Column("is_truncated", Boolean, nullable=False),
    PrimaryKeyConstraint("created_at", "request_id"),
    Index("ix_usage_content_user", "user_oid"),
    postgresql_partition_by="RANGE (created_at)",
)

PARTITIONED = (usage_records, refused_calls, usage_content)

usage_rollups = Table(
    "usage_rollups",
    metadata,
    Column("hour", DateTime(timezone=True), nullable=False),
    Column("user_oid", Text, nullable=False),
    Column("key_id", Text, nullable=False),  # "" for none, as in the next columns: part of the primary key
    Column("app_id", Text, nullable=False),
    Column("model", Text, nullable=False),  # the model that served
    Column("endpoint_id", Text, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("cost_nanousd", BigInteger, nullable=False),
    PrimaryKeyConstraint("hour", "user_oid", "key_id", "app_id", "model", "endpoint_id"),
    Index("ix_usage_rollups_user", "user_oid", "hour"),
    Index("ix_usage_rollups_key", "key_id", "hour"),
    Index("ix_usage_rollups_app", "app_id", "hour"),
    Index("ix_usage_rollups_model", "model", "hour"),
)
"""Sums of the ledger by hour (UTC), written in the transaction that writes its rows."""

day_rollups = Table(
    "day_rollups",
    metadata,
    Column("day", DateTime(timezone=True), nullable=False),
    *(Column(name, Text, nullable=False) for name in ("user_oid", "key_id", "app_id")),
    *(
        Column(name, BigInteger, nullable=False)
        for name in (
            *("requests", "errors", "prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens"),
            "cost_nanousd",
        )
    ),
    PrimaryKeyConstraint("day", "user_oid", "key_id", "app_id"),
    Index("ix_day_rollups_user", "user_oid", "day"),
    Index("ix_day_rollups_key", "key_id", "day"),
    Index("ix_day_rollups_app", "app_id", "day"),
)
"""The same by day (UTC), user, key and app, so that the dearest of a month are told at once. No budget is read from it."""

refusal_rollups = Table(
    "refusal_rollups",
    metadata,
    Column("hour", DateTime(timezone=True), nullable=False),
    Column("error_code", Text, nullable=False),  # "" for none
    Column("http_status", SmallInteger, nullable=False),
    Column("requests", BigInteger, nullable=False),
    PrimaryKeyConstraint("hour", "error_code", "http_status"),
)
"""How many calls were refused, by hour (UTC) and reason: outside of all other sums, as the refused calls are."""

DURATION_COUNTS = tuple(f"duration_{bucket}" for bucket in range(BUCKETS))
FIRST_TOKEN_COUNTS = tuple(f"first_token_{bucket}" for bucket in range(BUCKETS))
"""Calls by how long they took, in the buckets of `app.domain.histogram`."""

endpoint_rollups = Table(
    "endpoint_rollups",
    metadata,
    Column("hour", DateTime(timezone=True), nullable=False),
    Column("model", Text, nullable=False),
    Column("endpoint_id", Text, nullable=False),  # "" for none
    *(
        Column(name, BigInteger, nullable=False)
        for name in (
            *("requests", "errors", "prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens"),
            "cost_nanousd",
        )
    ),
    *(Column(name, BigInteger, nullable=False) for name in (*DURATION_COUNTS, *FIRST_TOKEN_COUNTS)),
    PrimaryKeyConstraint("hour", "model", "endpoint_id"),
    Index("ix_endpoint_rollups_endpoint", "endpoint_id", "hour"),
)
"""The same by hour, model and endpoint alone, with latencies: few rows, so that any range of the overview is read at once.
Durations are those of calls that went well, first tokens those of their streams."""

# ── Alerts ────────────────────────────────────────────────────────────────────────────────────────────────────────────

budget_alerts = Table(
    "budget_alerts",
    metadata,
    Column("id", UUID(as_uuid=False), primary_key=True),
    _created_at(),
    Column("scope", Text, nullable=False),
    Column("scope_id", Text, nullable=False),
    Column("period_kind", Text, nullable=False),
    Column("period", Text, nullable=False),  # its name, such as "monthly:2026-11-01"
    Column("side", Text, nullable=False),
    Column("percent", SmallInteger, nullable=False),
    Column("limit_nanousd", BigInteger, nullable=False),
    Column("spent_nanousd", BigInteger, nullable=False),
    UniqueConstraint("scope", "scope_id", "period", "side", "percent", name="uq_budget_alerts_threshold"),
    CheckConstraint("scope IN ('key', 'user', 'app', 'model')", name="scope"),
    CheckConstraint("side IN ('hard', 'soft')", name="side"),
    Index("ix_budget_alerts_newest", "created_at", "id"),
)
"""One row per threshold that a holder's budget has passed in a period. No foreign key: an alert outlives what it was about."""

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("alert_id", UUID(as_uuid=False), ForeignKey("budget_alerts.id", ondelete="CASCADE"), primary_key=True),
    _created_at(),
    Column("state", Text, nullable=False, server_default="pending"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("next_attempt_at", DateTime(timezone=True), nullable=False),
    Column("last_attempt_at", DateTime(timezone=True)),
    Column("last_status", SmallInteger),
    Column("last_error", Text),
    CheckConstraint("state IN ('pending', 'delivered', 'failed')", name="state"),
    Index("ix_webhook_deliveries_due", "next_attempt_at", postgresql_where=text("state = 'pending'")),
)
"""The outbox: written with the alert, emptied by whoever is elected to."""

# ── Endpoints ─────────────────────────────────────────────────────────────────────────────────────────────────────────

endpoint_events = Table(
    "endpoint_events",
    metadata,
    Column("id", UUID(as_uuid=False), primary_key=True),
    Column("at", DateTime(timezone=True), nullable=False),
    Column("endpoint_id", UUID(as_uuid=False), nullable=False),
    Column("model", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("reason", Text),
    Column("message", Text),
    Column("upstream_status", SmallInteger),
    Column("open_ms", BigInteger),
    Column("process", Text, nullable=False, server_default=""),
    Column("once", Text),
    UniqueConstraint("once"),
    Index("ix_endpoint_events_newest", "endpoint_id", "at", "id"),
    Index("ix_endpoint_events_at", "at"),
)
"""What happened to endpoints. No foreign key: it is asked about most when the endpoint is gone."""

# ── The trail ─────────────────────────────────────────────────────────────────────────────────────────────────────────

audit_log = Table(
    "audit_log",
    metadata,
    Column(
        "id", BigInteger, primary_key=True, autoincrement=False
    ),  # gapless: given under the config_revision row's lock
    Column("at", DateTime(timezone=True), nullable=False),
    Column("actor", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("address", Text),
    Column("action", Text, nullable=False),
    Column("object_kind", Text, nullable=False),
    Column("object_id", Text, nullable=False),
    Column("before", JSONB),
    Column("after", JSONB),
    Column("previous_hash", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Index("ix_audit_log_object", "object_kind", "object_id", "id"),
    Index("ix_audit_log_actor", "actor", "id"),
    Index("ix_audit_log_action", "action", "id"),
    Index("ix_audit_log_at", "at"),
    Index("ix_audit_log_changes", "id", postgresql_where=text("object_kind <> 'session'")),  # sign-ins are most of it
)
"""Who changed what; each row's hash covers the row before it. Triggers refuse every change of a row and every deletion."""

audit_head = Table(
    "audit_head",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("last_id", BigInteger, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    CheckConstraint("id = 1", name="single_row"),
)
"""The newest row of the trail, written by a trigger: a trail whose last rows were taken away no longer reaches it."""
