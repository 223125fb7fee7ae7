"""The first schema: configuration, the ledger and the audit trail.

Revision: 0001, the first.
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

CONFIGURATION = """
CREATE TABLE config_revision (
    id SMALLINT NOT NULL,
    revision BIGINT NOT NULL,
    CONSTRAINT pk_config_revision PRIMARY KEY (id),
    CONSTRAINT ck_config_revision_single_row CHECK (id = 1)
);
INSERT INTO config_revision (id, revision) VALUES (1, 1);
CREATE TABLE config_changes (
    revision BIGINT NOT NULL,
    kind TEXT NOT NULL,
    ref TEXT NOT NULL,
    changed_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    CONSTRAINT pk_config_changes PRIMARY KEY (revision)
);
CREATE TABLE users (
    oid TEXT NOT NULL,
    email TEXT,
    name TEXT,
    payment_status TEXT DEFAULT 'active' NOT NULL,
    payment_valid_until DATE,
    created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    updated_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    CONSTRAINT pk_users PRIMARY KEY (oid),
    CONSTRAINT ck_users_payment_status CHECK (payment_status IN ('active', 'trial', 'expired', 'suspended')),
    CONSTRAINT ck_users_oid_length CHECK (char_length(oid) <= 200)
);
CREATE INDEX ix_users_created_at_oid ON users (created_at, oid);
CREATE INDEX ix_users_payment_valid_until ON users (payment_valid_until);
CREATE TABLE keys (
    id UUID NOT NULL,
    user_oid TEXT NOT NULL,
    name TEXT DEFAULT '' NOT NULL,
    digest BYTEA NOT NULL,
    key_prefix TEXT NOT NULL,
    last4 TEXT NOT NULL,
    status TEXT DEFAULT 'active' NOT NULL,
    allowed_models TEXT[] DEFAULT '{*}' NOT NULL,
    allowed_ips TEXT[] DEFAULT '{}' NOT NULL,
    log_content TEXT,
    has_own_limits BOOLEAN DEFAULT false NOT NULL,
    overflow JSONB DEFAULT '{}' NOT NULL,
    expires_at TIMESTAMPTZ,
    revoked_at TIMESTAMPTZ,
    last_used_at TIMESTAMPTZ,
    created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    updated_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    CONSTRAINT pk_keys PRIMARY KEY (id),
    CONSTRAINT uq_keys_digest UNIQUE (digest),
    CONSTRAINT ck_keys_status CHECK (status IN ('active', 'revoked')),
    CONSTRAINT ck_keys_log_content CHECK (log_content IN ('full', 'metadata')),
    CONSTRAINT fk_keys_user_oid FOREIGN KEY(user_oid) REFERENCES users (oid) ON DELETE CASCADE
);
CREATE INDEX ix_keys_created_at_id ON keys (created_at, id);
CREATE INDEX ix_keys_user_oid ON keys (user_oid);
CREATE TABLE apps (
    app_id TEXT NOT NULL,
    name TEXT DEFAULT '' NOT NULL,
    is_active BOOLEAN DEFAULT true NOT NULL,
    allowed_models TEXT[] DEFAULT '{*}' NOT NULL,
    allowed_networks TEXT[] DEFAULT '{}' NOT NULL,
    own_secret_only BOOLEAN DEFAULT false NOT NULL,
    auto_create_users BOOLEAN DEFAULT false NOT NULL,
    log_content TEXT,
    created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    updated_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    CONSTRAINT pk_apps PRIMARY KEY (app_id),
    CONSTRAINT ck_apps_app_id_length CHECK (char_length(app_id) <= 200)
);
CREATE TABLE app_secrets (
    id UUID NOT NULL,
    app_id TEXT NOT NULL,
    digest BYTEA NOT NULL,
    last4 TEXT NOT NULL,
    expires_at TIMESTAMPTZ,
    created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    CONSTRAINT pk_app_secrets PRIMARY KEY (id),
    CONSTRAINT fk_app_secrets_app_id FOREIGN KEY(app_id) REFERENCES apps (app_id) ON DELETE CASCADE
);
CREATE INDEX ix_app_secrets_app_id ON app_secrets (app_id);
CREATE TABLE admins (
    id UUID NOT NULL,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    token_digest BYTEA NOT NULL,
    last4 TEXT NOT NULL,
    expires_at TIMESTAMPTZ,
    revoked_at TIMESTAMPTZ,
    last_used_at TIMESTAMPTZ,
    created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    updated_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    CONSTRAINT pk_admins PRIMARY KEY (id),
    CONSTRAINT uq_admins_token_digest UNIQUE (token_digest),
    CONSTRAINT ck_admins_role CHECK (role IN ('owner', 'admin', 'billing', 'viewer'))
);
CREATE TABLE models (
    name TEXT NOT NULL,
    aliases TEXT[] DEFAULT '{}' NOT NULL,
    strategy TEXT DEFAULT 'round_robin' NOT NULL,
    fallbacks TEXT[] DEFAULT '{}' NOT NULL,
    context_window INTEGER,
    max_output_tokens INTEGER,
    created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    updated_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    CONSTRAINT pk_models PRIMARY KEY (name),
    CONSTRAINT ck_models_strategy CHECK (strategy IN ('round_robin', 'least_busy', 'latency', 'cost')),
    CONSTRAINT ck_models_name_length CHECK (char_length(name) <= 200)
);
CREATE TABLE endpoints (
    id UUID NOT NULL,
    model TEXT NOT NULL,
    provider TEXT NOT NULL,
    upstream_model TEXT NOT NULL,
    api_base TEXT DEFAULT '' NOT NULL,
    credential_sealed BYTEA,
    credential_last4 TEXT,
    weight INTEGER DEFAULT '1' NOT NULL,
    priority INTEGER DEFAULT '0' NOT NULL,
    max_concurrency INTEGER,
    requests_per_minute INTEGER,
    tokens_per_minute INTEGER,
    timeouts JSONB DEFAULT '{}' NOT NULL,
    health_check JSONB DEFAULT '{}' NOT NULL,
    is_draining BOOLEAN DEFAULT false NOT NULL,
    created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    updated_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    CONSTRAINT pk_endpoints PRIMARY KEY (id),
    CONSTRAINT ck_endpoints_provider CHECK (provider IN ('openai', 'anthropic', 'litellm', 'demo')),
    CONSTRAINT ck_endpoints_weight CHECK (weight >= 0),
    CONSTRAINT fk_endpoints_model FOREIGN KEY(model) REFERENCES models (name) ON DELETE CASCADE ON UPDATE CASCADE
);
CREATE INDEX ix_endpoints_model ON endpoints (model);
CREATE TABLE prices (
    id UUID NOT NULL,
    model TEXT NOT NULL,
    endpoint_id UUID,
    rates JSONB,
    valid_from TIMESTAMPTZ DEFAULT now() NOT NULL,
    CONSTRAINT pk_prices PRIMARY KEY (id)
);
CREATE INDEX ix_prices_model_valid_from ON prices (model, endpoint_id, valid_from);
CREATE TABLE limits (
    id BIGSERIAL NOT NULL,
    key_id UUID,
    user_oid TEXT,
    app_id TEXT,
    model TEXT,
    kind TEXT NOT NULL,
    "limit" BIGINT NOT NULL,
    window_seconds INTEGER NOT NULL,
    CONSTRAINT pk_limits PRIMARY KEY (id),
    CONSTRAINT ck_limits_one_holder CHECK (num_nonnulls(key_id, user_oid, app_id, model) = 1),
    CONSTRAINT ck_limits_kind CHECK (kind IN ('requests', 'tokens', 'concurrency')),
    CONSTRAINT ck_limits_limit CHECK ("limit" >= 0),
    CONSTRAINT fk_limits_key_id FOREIGN KEY(key_id) REFERENCES keys (id) ON DELETE CASCADE,
    CONSTRAINT fk_limits_user_oid FOREIGN KEY(user_oid) REFERENCES users (oid) ON DELETE CASCADE,
    CONSTRAINT fk_limits_app_id FOREIGN KEY(app_id) REFERENCES apps (app_id) ON DELETE CASCADE,
    CONSTRAINT fk_limits_model FOREIGN KEY(model) REFERENCES models (name) ON DELETE CASCADE ON UPDATE CASCADE
);
CREATE INDEX ix_limits_app_id ON limits (app_id);
CREATE INDEX ix_limits_key_id ON limits (key_id);
CREATE INDEX ix_limits_model ON limits (model);
CREATE INDEX ix_limits_user_oid ON limits (user_oid);
CREATE TABLE budgets (
    id BIGSERIAL NOT NULL,
    key_id UUID,
    user_oid TEXT,
    app_id TEXT,
    model TEXT,
    period TEXT NOT NULL,
    soft_limit_nanousd BIGINT,
    hard_limit_nanousd BIGINT,
    reserve TEXT DEFAULT 'worst_case' NOT NULL,
    CONSTRAINT pk_budgets PRIMARY KEY (id),
    CONSTRAINT ck_budgets_one_holder CHECK (num_nonnulls(key_id, user_oid, app_id, model) = 1),
    CONSTRAINT ck_budgets_period CHECK (period IN ('daily', 'weekly', 'monthly', 'total')),
    CONSTRAINT ck_budgets_reserve CHECK (reserve IN ('worst_case', 'expected')),
    CONSTRAINT ck_budgets_hard_limit CHECK (hard_limit_nanousd >= 0 AND hard_limit_nanousd <= 9000000000000000),
    CONSTRAINT ck_budgets_soft_limit CHECK (soft_limit_nanousd >= 0 AND soft_limit_nanousd <= 9000000000000000),
    CONSTRAINT fk_budgets_key_id FOREIGN KEY(key_id) REFERENCES keys (id) ON DELETE CASCADE,
    CONSTRAINT fk_budgets_user_oid FOREIGN KEY(user_oid) REFERENCES users (oid) ON DELETE CASCADE,
    CONSTRAINT fk_budgets_app_id FOREIGN KEY(app_id) REFERENCES apps (app_id) ON DELETE CASCADE,
    CONSTRAINT fk_budgets_model FOREIGN KEY(model) REFERENCES models (name) ON DELETE CASCADE ON UPDATE CASCADE
);
CREATE INDEX ix_budgets_app_id ON budgets (app_id);
CREATE INDEX ix_budgets_key_id ON budgets (key_id);
CREATE INDEX ix_budgets_model ON budgets (model);
CREATE INDEX ix_budgets_user_oid ON budgets (user_oid);
"""

LEDGER = """
CREATE TABLE usage_records (
    created_at TIMESTAMPTZ NOT NULL,
    request_id UUID NOT NULL,
    client_request_id TEXT,
    user_oid TEXT NOT NULL,
    key_id UUID,
    app_id TEXT,
    requested_model TEXT NOT NULL,
    served_model TEXT NOT NULL,
    endpoint_id UUID,
    provider TEXT,
    dialect TEXT NOT NULL,
    is_stream BOOLEAN NOT NULL,
    outcome TEXT NOT NULL,
    http_status SMALLINT NOT NULL,
    error_code TEXT,
    error_reason TEXT,
    prompt_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL,
    reasoning_tokens BIGINT NOT NULL,
    usage_quality TEXT NOT NULL,
    cost_nanousd BIGINT NOT NULL,
    price_id TEXT,
    first_token_ms INTEGER,
    duration_ms INTEGER NOT NULL,
    attempts SMALLINT NOT NULL,
    detail JSONB NOT NULL,
    CONSTRAINT pk_usage_records PRIMARY KEY (created_at, request_id),
    CONSTRAINT ck_usage_records_cost CHECK (cost_nanousd >= 0)
)
 PARTITION BY RANGE (created_at);
CREATE INDEX ix_usage_records_app ON usage_records (app_id, created_at, request_id) WHERE app_id IS NOT NULL;
CREATE INDEX ix_usage_records_key ON usage_records (key_id, created_at, request_id);
CREATE INDEX ix_usage_records_model ON usage_records (requested_model, created_at, request_id);
CREATE INDEX ix_usage_records_outcome ON usage_records (outcome, created_at, request_id) WHERE outcome <> 'ok';
CREATE INDEX ix_usage_records_request_id ON usage_records (request_id);
CREATE INDEX ix_usage_records_user ON usage_records (user_oid, created_at, request_id);
CREATE TABLE refused_calls (
    created_at TIMESTAMPTZ NOT NULL,
    request_id UUID NOT NULL,
    client_request_id TEXT,
    user_oid TEXT NOT NULL,
    key_id UUID,
    app_id TEXT,
    requested_model TEXT NOT NULL,
    dialect TEXT NOT NULL,
    is_stream BOOLEAN NOT NULL,
    http_status SMALLINT NOT NULL,
    error_code TEXT,
    error_reason TEXT,
    duration_ms INTEGER NOT NULL,
    detail JSONB NOT NULL,
    CONSTRAINT pk_refused_calls PRIMARY KEY (created_at, request_id)
)
 PARTITION BY RANGE (created_at);
CREATE INDEX ix_refused_calls_app ON refused_calls (app_id, created_at, request_id) WHERE app_id IS NOT NULL;
CREATE INDEX ix_refused_calls_key ON refused_calls (key_id, created_at, request_id);
CREATE INDEX ix_refused_calls_model ON refused_calls (requested_model, created_at, request_id);
CREATE INDEX ix_refused_calls_request_id ON refused_calls (request_id);
CREATE INDEX ix_refused_calls_user ON refused_calls (user_oid, created_at, request_id);
CREATE TABLE usage_content (
    created_at TIMESTAMPTZ NOT NULL,
    request_id UUID NOT NULL,
    user_oid TEXT NOT NULL,
    request_body BYTEA NOT NULL,
    response_body BYTEA NOT NULL,
    is_truncated BOOLEAN NOT NULL,
    CONSTRAINT pk_usage_content PRIMARY KEY (created_at, request_id)
)
 PARTITION BY RANGE (created_at);
CREATE INDEX ix_usage_content_user ON usage_content (user_oid);
CREATE TABLE usage_rollups (
    hour TIMESTAMPTZ NOT NULL,
    user_oid TEXT NOT NULL,
    key_id TEXT NOT NULL,
    app_id TEXT NOT NULL,
    model TEXT NOT NULL,
    endpoint_id TEXT NOT NULL,
    requests BIGINT NOT NULL,
    errors BIGINT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL,
    reasoning_tokens BIGINT NOT NULL,
    cost_nanousd BIGINT NOT NULL,
    CONSTRAINT pk_usage_rollups PRIMARY KEY (hour, user_oid, key_id, app_id, model, endpoint_id)
);
CREATE INDEX ix_usage_rollups_app ON usage_rollups (app_id, hour);
CREATE INDEX ix_usage_rollups_key ON usage_rollups (key_id, hour);
CREATE INDEX ix_usage_rollups_model ON usage_rollups (model, hour);
CREATE INDEX ix_usage_rollups_user ON usage_rollups (user_oid, hour);
"""

TRAIL = """
CREATE TABLE audit_log (
    id BIGINT NOT NULL,
    at TIMESTAMPTZ NOT NULL,
    actor TEXT NOT NULL,
    role TEXT NOT NULL,
    address TEXT,
    action TEXT NOT NULL,
    object_kind TEXT NOT NULL,
    object_id TEXT NOT NULL,
    before JSONB,
    after JSONB,
    previous_hash BYTEA NOT NULL,
    hash BYTEA NOT NULL,
    CONSTRAINT pk_audit_log PRIMARY KEY (id)
);
CREATE INDEX ix_audit_log_actor ON audit_log (actor, id);
CREATE INDEX ix_audit_log_object ON audit_log (object_kind, object_id, id);
"""

TABLES = (
    "limits",
    "budgets",
    "keys",
    "endpoints",
    "app_secrets",
    "users",
    "usage_rollups",
    "usage_records",
    "usage_content",
    "refused_calls",
    "prices",
    "models",
    "config_revision",
    "config_changes",
    "audit_log",
    "apps",
    "admins",
)


def upgrade() -> None:
    for group in (CONFIGURATION, LEDGER, TRAIL):
        for statement in group.split(";\n"):
            if statement.strip():
                op.execute(statement)


def downgrade() -> None:
    """Drops everything, the ledger too. Partitions go with their tables."""
    for table in TABLES:
        op.execute(f"DROP TABLE {table}")
