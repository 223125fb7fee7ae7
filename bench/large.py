"""A large ledger, written by SQL: 500 users, 2,000 keys, 12 endpoints, and so many records, summed as the drainer does."""

from __future__ import annotations

import importlib.util
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg

from app.database import open_engine
from app.storage.sql_usage import SqlUsageStore

USERS, KEYS, MODELS = 500, 2_000, 6
DAYS = 30
"""Over which the records are spread, unless told otherwise."""
CALLS_FOR_ONE_REFUSED = 10
BODY_BYTES = 512
"""Of each prompt and of each answer, as kept."""

CONFIGURATION = (
    "INSERT INTO users (oid, email, name) SELECT 'user-' || n, 'user-' || n || '@example.com', 'User ' || n "
    f"FROM generate_series(1, {USERS}) AS n",
    "INSERT INTO keys (id, user_oid, name, digest, key_prefix, last4) SELECT lpad(to_hex(n), 32, '0')::uuid, "
    f"'user-' || (n % {USERS} + 1), 'key ' || n, decode(md5(n::text) || md5('k' || n), 'hex'), 'sk-ag-' || n, '0000' "
    f"FROM generate_series(1, {KEYS}) AS n",
    "INSERT INTO budgets (key_id, period, soft_limit_nanousd, hard_limit_nanousd) "
    "SELECT id, 'monthly', 8000000000, 10000000000 FROM keys",
    f"INSERT INTO models (name) SELECT 'model-' || n FROM generate_series(1, {MODELS}) AS n",
    "INSERT INTO endpoints (id, model, provider, upstream_model, api_base) SELECT lpad(to_hex(n + 65536), 32, '0')::uuid, "
    f"'model-' || (n % {MODELS} + 1), 'demo', 'upstream-' || n, '' FROM generate_series(1, {2 * MODELS}) AS n",
)
CONFIGURED = f"""
WITH changed AS (UPDATE config_revision SET revision = revision + {MODELS} RETURNING revision)
INSERT INTO config_changes (revision, kind, ref) SELECT revision - {MODELS} + n, 'catalog', 'model-' || n
FROM changed, generate_series(1, {MODELS}) AS n
"""
"""What a command of the administrator's notes, so that gateways which run already know the models."""
RECORDS = """
INSERT INTO usage_records (created_at, request_id, user_oid, key_id, requested_model, served_model, endpoint_id, provider,
  dialect, is_stream, outcome, http_status, prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, usage_quality,
  cost_nanousd, price_id, first_token_ms, duration_ms, attempts, detail)
SELECT at, (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(md5(n::text), 1, 3) || '8'
    || substr(md5(n::text), 4, 15))::uuid,
  'user-' || (k % {users} + 1), lpad(to_hex(k), 32, '0')::uuid, 'model-' || m, 'model-' || m,
  lpad(to_hex(e + 65536), 32, '0')::uuid, 'openai', 'chat', n % 3 > 0, CASE WHEN n % 50 = 0 THEN 'upstream_error' ELSE 'ok' END,
  CASE WHEN n % 50 = 0 THEN 502 ELSE 200 END, 200 + n % 1900, 20 + n % 600, 0, 0, 'exact', 100000 + n % 9000000, 'map:x',
  120 + (n % 900)::int, 300 + (n % 4000)::int, 1, '{{}}'::jsonb
FROM (SELECT n, now() - (n::float8 / {rows}) * interval '{days} days' AS at, (n * 7919 % {keys} + 1)::int AS k,
        (n * 31 % {endpoints} + 1)::int AS e, ((n * 31 % {endpoints} + 1) % {models} + 1)::int AS m
      FROM generate_series({first}::bigint, {last}::bigint) AS n) AS made
"""
ROLLUPS = """
INSERT INTO usage_rollups SELECT date_trunc('hour', created_at), user_oid, key_id::text, '', served_model, endpoint_id::text, count(*),
  count(*) FILTER (WHERE outcome <> 'ok'), sum(prompt_tokens)::bigint, sum(completion_tokens)::bigint, 0, 0, sum(cost_nanousd)::bigint
FROM usage_records GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY 1, 2, 3, 4, 5, 6
"""
SUMMED_BY = ("0003_endpoint_rollups", "0014_day_rollups")
"""Migrations whose statement for an older ledger makes the other sums."""
COUNTED_BY = "0016_refusals_and_costs"
CONTENTS = f"""
INSERT INTO usage_content (created_at, request_id, user_oid, request_body, response_body, is_truncated)
SELECT created_at, request_id, user_oid, body, body, false
FROM (SELECT created_at, request_id, user_oid, decode(repeat(md5(request_id::text), {BODY_BYTES // 16}), 'hex') AS body
      FROM usage_records) AS made
"""
REFUSALS = f"""
INSERT INTO refused_calls (created_at, request_id, user_oid, key_id, requested_model, dialect, is_stream, http_status, error_code,
  error_reason, duration_ms, detail)
SELECT created_at, ('f' || substr(request_id::text, 2))::uuid, user_oid, key_id, requested_model, dialect, is_stream, 429,
  'rate_limit_exceeded', 'requests', 1, '{{}}'::jsonb
FROM usage_records WHERE duration_ms % {CALLS_FOR_ONE_REFUSED} = 0
"""


async def fill(database_url: str, rows: int, *, days: int = DAYS, has_more: bool = False, batch: int = 500_000) -> None:
    """Write users, keys, models and that many records, and sum them; `has_more`: bodies of all, and refused calls beside them."""
    connection = await asyncpg.connect(database_url)
    try:
        for statement in CONFIGURATION:
            await connection.execute(statement)
        await connection.execute(CONFIGURED)
        await _make_partitions(database_url, days)
        for first in range(1, rows + 1, batch):
            last = min(first + batch - 1, rows)
            numbers = {"users": USERS, "keys": KEYS, "models": MODELS, "endpoints": 2 * MODELS, "days": days}
            await connection.execute(RECORDS.format(rows=rows, first=first, last=last, **numbers))
        for statement in (ROLLUPS, *map(_fill_of, SUMMED_BY), *((CONTENTS, REFUSALS) if has_more else ())):
            await connection.execute(statement)
        if has_more and await connection.fetchval("SELECT to_regclass('refusal_rollups')"):  # not in a schema before it
            await connection.execute(_fill_of(COUNTED_BY))
        await connection.execute("VACUUM (ANALYZE)")
    finally:
        await connection.close()


async def filled_with(database_url: str) -> int:
    """How many records are there already."""
    connection = await asyncpg.connect(database_url)
    try:
        return int(await connection.fetchval("SELECT count(*) FROM usage_records"))
    finally:
        await connection.close()


async def _make_partitions(database_url: str, days: int) -> None:
    engine = open_engine(database_url.replace("postgresql://", "postgresql+asyncpg://"))
    now = datetime.now(UTC)
    # A step shorter than any month meets all of them.
    await SqlUsageStore(engine).ensure_partitions(*(now - timedelta(days=day) for day in (*range(0, days, 15), days)))
    await engine.dispose()


def _fill_of(migration: str) -> str:
    path = Path(__file__).resolve().parent.parent / "migrations" / "versions" / f"{migration}.py"
    spec = importlib.util.spec_from_file_location("fill", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.FILL)
