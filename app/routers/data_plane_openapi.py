"""What `/openapi.json` says about the data plane, written by hand.

Those routes are plain ASGI endpoints below FastAPI (its machinery costs as much CPU as the rest of a proxied call), so nothing
derives their description. Described is what the gateway itself reads, promises and answers; other members of a request go to
the model untouched, which is why the request schemas are open.
"""

from __future__ import annotations

from app.routers.openapi_calls import call_paths, call_schemas
from app.routers.openapi_shapes import (
    CALLING,
    OWN,
    Json,
    answered,
    in_path,
    integer,
    list_of,
    object_of,
    refused,
    schema,
    security,
)


def data_plane_openapi() -> Json:
    """Paths, components and tags of the data plane, in OpenAPI 3.1; a fresh value at every call."""
    return {
        "tags": [
            {"name": CALLING, "description": "OpenAI-compatible. Every path is served with and without `/v1`."},
            {"name": OWN, "description": "What this credential may use and has used."},
        ],
        "paths": {
            **call_paths(),
            "/v1/models": {"get": _list_models()},
            "/v1/models/{id}": {"get": _retrieve_model()},
            "/v1/me": {"get": _retrieve_me()},
            "/v1/usage/{request_id}": {"get": _retrieve_usage()},
        },
        "components": {
            "securitySchemes": _security_schemes(),
            "schemas": _schemas(),
            "headers": _headers(),
        },
    }


# ── Operations ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _list_models() -> Json:
    return {
        "tags": [CALLING],
        "operationId": "listModels",
        "summary": "List the models this credential may use",
        "security": security(),
        "responses": {"200": answered("The models.", "ModelList"), **refused("401", "403", "503")},
    }


def _retrieve_model() -> Json:
    return {
        "tags": [CALLING],
        "operationId": "retrieveModel",
        "summary": "Describe one model",
        "security": security(),
        "parameters": [in_path("id", "The model's name or one of its aliases.")],
        "responses": {"200": answered("The model.", "Model"), **refused("401", "403", "404", "503")},
    }


def _retrieve_usage() -> Json:
    return {
        "tags": [OWN],
        "operationId": "retrieveUsage",
        "summary": "Show the record of one of your requests",
        "description": "The record is there as soon as the answer has ended. Another caller's request answers 404.",
        "security": security(),
        "parameters": [in_path("request_id", "What `x-request-id` of the answer said.", format="uuid")],
        "responses": {"200": answered("The record.", "UsageRecord"), **refused("401", "403", "404", "503")},
    }


def _retrieve_me() -> Json:
    return {
        "tags": [OWN],
        "operationId": "retrieveMe",
        "summary": "Show your limits and budgets, and what is left of them",
        "description": "What cannot be said now, because a store is away, is null.",
        "security": security(),
        "responses": {"200": answered("Where you stand.", "Me"), **refused("401", "403", "503")},
    }


# ── Credentials ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _security_schemes() -> Json:
    def header(name: str, description: str) -> Json:
        return {"type": "apiKey", "in": "header", "name": name, "description": description}

    return {
        "bearer": {"type": "http", "scheme": "bearer", "description": "A key of this gateway (`sk-…`)."},
        "xApiKey": header("x-api-key", "The same key, as Anthropic's clients send it."),
        "apiKey": header("api-key", "The same key, as Azure's clients send it."),
        "gatewaySecret": header("X-Gateway-Secret", "Internal apps: the shared secret, or the app's own."),
        "appId": header("X-App-Id", "Internal apps: the registered app."),
        "userOid": header("X-User-Oid", "Internal apps: the user on whose behalf the app calls, and who pays."),
    }


# ── Shapes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _schemas() -> Json:
    return {
        **call_schemas(),
        "TokenUsage": _token_usage(),
        "Model": _model(),
        "ModelList": object_of({"object": {"const": "list"}, "data": list_of(schema("Model"))}, "object", "data"),
        "UsageRecord": _usage_record(),
        "Me": _me(),
        "GatewayError": _gateway_error(),
    }


def _token_usage() -> Json:
    properties = {
        "prompt_tokens": integer(),
        "completion_tokens": integer(),
        "total_tokens": integer(),
        "prompt_tokens_details": object_of({"cached_tokens": integer()}),
        "completion_tokens_details": object_of({"reasoning_tokens": integer()}),
    }
    return object_of(properties, "prompt_tokens", "completion_tokens", "total_tokens")


def _model() -> Json:
    properties = {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": integer(),
        "owned_by": {"type": "string"},
    }
    return object_of(properties, *properties)


def _usage_record() -> Json:
    text, count = {"type": "string"}, integer()
    maybe_text, maybe_count = {"type": ["string", "null"]}, {"type": ["integer", "null"]}
    outcomes = ["ok", "client_cancelled", "truncated", "upstream_error", "timeout", "refused", "interrupted", "lost"]
    properties = {
        "request_id": {"type": "string", "format": "uuid"},
        "client_request_id": maybe_text,
        "created_at": {"type": "string", "format": "date-time"},
        "requested_model": text,
        "served_model": maybe_text,
        "dialect": text,
        "is_stream": {"type": "boolean"},
        "outcome": {"type": "string", "enum": outcomes},
        "http_status": count,
        "error_code": maybe_text,
        "prompt_tokens": count,
        "completion_tokens": count,
        "cached_tokens": count,
        "reasoning_tokens": count,
        "usage_quality": {"type": "string", "enum": ["exact", "partial", "estimated"]},
        "cost_usd": {
            "type": "string",
            "description": "A decimal, exact to a billionth of a dollar.",
            "examples": ["0.001234500"],
        },
        "first_token_ms": maybe_count,
        "duration_ms": maybe_count,
        "attempts": count,
        "attempt_details": list_of({"type": "object"}),
        "arithmetic": {**list_of({"type": "object"}), "description": "The cost's factors; their sum is the cost."},
    }
    return object_of(properties, "request_id", "created_at", "requested_model", "outcome", "http_status", "cost_usd")


def _me() -> Json:
    text, maybe_text = {"type": "string"}, {"type": ["string", "null"]}
    maybe_time = {"type": ["string", "null"], "format": "date-time"}
    maybe_usd = {**maybe_text, "description": "USD, a decimal with nine digits.", "examples": ["7.500000000"]}
    holder = {"scope": {"type": "string", "enum": ["key", "user", "app"]}, "holder": text}
    reset = {"reset_after_seconds": {"type": ["number", "null"]}, "resets_at": maybe_time}
    limit = {
        **holder,
        "kind": {"type": "string", "enum": ["requests", "tokens", "concurrency"]},
        "limit": integer(),
        "window_seconds": integer(),
        "remaining": {"type": ["integer", "null"]},
        **reset,
    }
    amounts = ("soft_limit_usd", "hard_limit_usd", "spent_usd", "reserved_usd", "remaining_usd")
    budget = {
        **holder,
        "period": {"type": "string", "enum": ["daily", "weekly", "monthly", "total"]},
        **dict.fromkeys(amounts, maybe_usd),
        **reset,
    }
    moment = {"type": "string", "format": "date-time"}
    month = {"starts_at": moment, "resets_at": moment, "user_usd": maybe_usd, "key_usd": maybe_usd}
    properties = {
        "at": moment,
        "user_oid": text,
        "payment_status": {"type": "string", "enum": ["active", "trial", "expired", "suspended"]},
        "payment_valid_until": {"type": ["string", "null"], "format": "date"},
        "key_id": maybe_text,
        "key_expires_at": maybe_time,
        "app_id": maybe_text,
        "allowed_models": {**list_of(text), "description": "Names, or `*` alone."},
        "limits": list_of(object_of(limit, *limit)),
        "budgets": list_of(object_of(budget, *budget)),
        "spent_this_month": object_of(month, *month),
    }
    return object_of(properties, *properties)


def _gateway_error() -> Json:
    error = object_of(
        {
            "message": {"type": "string"},
            "type": {"type": "string"},
            "param": {"type": ["string", "null"]},
            "code": {"type": "string"},
            "request_id": {"type": "string"},
        },
        "message", "type", "param", "code", "request_id",
    )  # fmt: skip
    return object_of({"error": error}, "error")


def _headers() -> Json:
    text: Json = {"type": "string"}
    return {
        "x-request-id": {"description": "Quote it to the operator; the key of the record.", "schema": text},
        "x-ratelimit-limit-requests": {"description": "Requests per window.", "schema": integer()},
        "x-ratelimit-remaining-requests": {"description": "What is left of it.", "schema": integer()},
        "x-ratelimit-reset-requests": {"description": "When all of it is back.", "schema": text},
        "x-gateway-model": {"description": "The model that answered.", "schema": text},
        "x-gateway-endpoint": {"description": "The endpoint that answered.", "schema": text},
        "x-gateway-attempts": {"description": "How many endpoints were tried.", "schema": integer()},
        "x-gateway-cost-usd": {"description": "What the call cost; not on streams.", "schema": text},
        "x-gateway-budget-remaining-usd": {"description": "What the tightest budget still pays for.", "schema": text},
        "retry-after": {"description": "Seconds until a repeat can succeed.", "schema": integer()},
    }
