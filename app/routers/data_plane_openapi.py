"""What `/openapi.json` says about the data plane, written by hand.

Those routes are plain ASGI endpoints below FastAPI (its machinery costs as much CPU as the rest of a proxied call), so nothing
derives their description. Described is what the gateway itself reads, promises and answers; other members of a request go to
the model untouched, which is why the request schemas are open.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

_CALLING = "Calling models"
_OWN = "Your own usage"

_REFUSALS: tuple[tuple[str, str], ...] = (
    ("400", "`invalid_json`, `invalid_request`, `missing_required_parameter`, `param_not_allowed`, "
            "`context_length_exceeded`, `ambiguous_credentials`. `param` names the field."),
    ("401", "`invalid_api_key`: missing, unknown, malformed, expired and revoked credentials answer alike."),
    ("402", "`budget_exceeded`: a hard budget cannot pay for the request."),
    ("403", "`payment_expired`, `user_suspended`, `model_not_allowed`, `app_inactive`, `ip_not_allowed`."),
    ("404", "`model_not_found`, `not_found`."),
    ("429", "`rate_limit_exceeded`; `type` is `requests`, `tokens`, `concurrency` or `budget_reserved`."),
    ("502", "`upstream_error`: every endpoint of the model was tried."),
    ("503", "`no_healthy_endpoint`, `dependency_unavailable`; with `Retry-After`."),
    ("504", "`upstream_timeout`."),
)  # fmt: skip


def data_plane_openapi() -> Json:
    """Paths, components and tags of the data plane, in OpenAPI 3.1; a fresh value at every call."""
    return {
        "tags": [
            {"name": _CALLING, "description": "OpenAI-compatible. Every path is served with and without `/v1`."},
            {"name": _OWN, "description": "What this credential may use and has used."},
        ],
        "paths": {
            "/v1/chat/completions": {"post": _chat_completions()},
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


def _chat_completions() -> Json:
    headers = (
        "x-request-id", "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests",
        "x-gateway-model", "x-gateway-endpoint", "x-gateway-attempts", "x-gateway-cost-usd",
        "x-gateway-budget-remaining-usd",
    )  # fmt: skip
    answer = {
        "description": "The model's answer; with `stream: true` as server-sent events, ended by `data: [DONE]`. A failure "
        'after the first content ends the stream with one `data: {"error": …}` event.',
        "headers": {name: _ref("headers", name) for name in headers},
        "content": {
            "application/json": {"schema": _schema("ChatCompletion")},
            "text/event-stream": {"schema": _schema("ChatCompletionChunk")},
        },
    }
    return {
        "tags": [_CALLING],
        "operationId": "createChatCompletion",
        "summary": "Ask a model",
        "description": "OpenAI's chat completions. Members not listed here go to the model as they are; names that would steer "
        "the gateway (`api_base`, `api_key`, prices, callbacks …) are refused with `param_not_allowed`.",
        "security": _security(),
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": _schema("ChatCompletionRequest"),
                    "example": {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]},
                }
            },
        },
        "responses": {"200": answer, **_refused("400", "401", "402", "403", "404", "429", "502", "503", "504")},
    }


def _list_models() -> Json:
    return {
        "tags": [_CALLING],
        "operationId": "listModels",
        "summary": "List the models this credential may use",
        "security": _security(),
        "responses": {"200": _answered("The models.", "ModelList"), **_refused("401", "403", "503")},
    }


def _retrieve_model() -> Json:
    return {
        "tags": [_CALLING],
        "operationId": "retrieveModel",
        "summary": "Describe one model",
        "security": _security(),
        "parameters": [_in_path("id", "The model's name or one of its aliases.")],
        "responses": {"200": _answered("The model.", "Model"), **_refused("401", "403", "404", "503")},
    }


def _retrieve_usage() -> Json:
    return {
        "tags": [_OWN],
        "operationId": "retrieveUsage",
        "summary": "Show the record of one of your requests",
        "description": "The record is there as soon as the answer has ended. Another caller's request answers 404.",
        "security": _security(),
        "parameters": [_in_path("request_id", "What `x-request-id` of the answer said.", format="uuid")],
        "responses": {"200": _answered("The record.", "UsageRecord"), **_refused("401", "403", "404", "503")},
    }


def _retrieve_me() -> Json:
    return {
        "tags": [_OWN],
        "operationId": "retrieveMe",
        "summary": "Show your limits and budgets, and what is left of them",
        "description": "What cannot be said now, because a store is away, is null.",
        "security": _security(),
        "responses": {"200": _answered("Where you stand.", "Me"), **_refused("401", "403", "503")},
    }


def _answered(description: str, schema: str) -> Json:
    return {
        "description": description,
        "headers": {"x-request-id": _ref("headers", "x-request-id")},
        "content": {"application/json": {"schema": _schema(schema)}},
    }


def _refused(*statuses: str) -> Json:
    def refusal(status: str, description: str) -> Json:
        names = ("x-request-id", "retry-after") if status in ("429", "503") else ("x-request-id",)
        return {
            "description": description,
            "headers": {name: _ref("headers", name) for name in names},
            "content": {"application/json": {"schema": _schema("GatewayError")}},
        }

    return {status: refusal(status, description) for status, description in _REFUSALS if status in statuses}


def _in_path(name: str, description: str, **schema: str) -> Json:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": {"type": "string", **schema},
    }


# ── Credentials ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _security() -> list[Json]:
    internal_app: Json = {"gatewaySecret": [], "appId": [], "userOid": []}
    return [{"bearer": []}, {"xApiKey": []}, {"apiKey": []}, internal_app]


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
        "ChatMessage": _chat_message(),
        "ChatCompletionRequest": _chat_completion_request(),
        "ChatCompletion": _chat_completion(),
        "ChatCompletionChunk": _chat_completion_chunk(),
        "TokenUsage": _token_usage(),
        "Model": _model(),
        "ModelList": _object({"object": {"const": "list"}, "data": _list_of(_schema("Model"))}, "object", "data"),
        "UsageRecord": _usage_record(),
        "Me": _me(),
        "GatewayError": _gateway_error(),
    }


def _chat_message() -> Json:
    content = {
        "description": "Text, or a list of parts (text, image, audio).",
        "type": ["string", "array", "null"],
        "items": {},
    }
    roles = ["system", "developer", "user", "assistant", "tool", "function"]
    return _object({"role": {"type": "string", "enum": roles}, "content": content}, "role")


def _chat_completion_request() -> Json:
    properties = {
        "model": {"type": "string", "description": "A name from `GET /v1/models`."},
        "messages": {**_list_of(_schema("ChatMessage")), "minItems": 1},
        "stream": {"type": "boolean", "default": False},
        "stream_options": _object({"include_usage": {"type": "boolean"}}),
        "max_tokens": {"type": "integer", "minimum": 1},
        "max_completion_tokens": {"type": "integer", "minimum": 1},
        "n": {"type": "integer", "minimum": 1, "default": 1},
        "temperature": {"type": "number", "minimum": 0, "maximum": 2},
        "top_p": {"type": "number", "minimum": 0, "maximum": 1},
        "stop": {"type": ["string", "array", "null"], "items": {"type": "string"}},
        "tools": _list_of({"type": "object"}),
        "tool_choice": {"type": ["string", "object"]},
        "response_format": {"type": "object"},
    }
    return _object(properties, "model", "messages")


def _chat_completion() -> Json:
    choice = _object(
        {"index": _integer(), "message": _schema("ChatMessage"), "finish_reason": {"type": ["string", "null"]}},
        "index", "message",
    )  # fmt: skip
    properties = {**_answer_head("chat.completion"), "choices": _list_of(choice), "usage": _schema("TokenUsage")}
    return _object(properties, "id", "object", "created", "model", "choices")


def _chat_completion_chunk() -> Json:
    choice = _object(
        {"index": _integer(), "delta": {"type": "object"}, "finish_reason": {"type": ["string", "null"]}},
        "index",
        "delta",
    )
    properties = {
        **_answer_head("chat.completion.chunk"),
        "choices": _list_of(choice),
        "usage": {
            "anyOf": [_schema("TokenUsage"), {"type": "null"}],
            "description": "Only where `include_usage` asks.",
        },
    }
    return _object(properties, "id", "object", "created", "model", "choices")


def _answer_head(kind: str) -> Json:
    return {"id": {"type": "string"}, "object": {"const": kind}, "created": _integer(), "model": {"type": "string"}}


def _token_usage() -> Json:
    properties = {
        "prompt_tokens": _integer(),
        "completion_tokens": _integer(),
        "total_tokens": _integer(),
        "prompt_tokens_details": _object({"cached_tokens": _integer()}),
        "completion_tokens_details": _object({"reasoning_tokens": _integer()}),
    }
    return _object(properties, "prompt_tokens", "completion_tokens", "total_tokens")


def _model() -> Json:
    properties = {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": _integer(),
        "owned_by": {"type": "string"},
    }
    return _object(properties, *properties)


def _usage_record() -> Json:
    text, count = {"type": "string"}, _integer()
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
        "attempt_details": _list_of({"type": "object"}),
        "arithmetic": {**_list_of({"type": "object"}), "description": "The cost's factors; their sum is the cost."},
    }
    return _object(properties, "request_id", "created_at", "requested_model", "outcome", "http_status", "cost_usd")


def _me() -> Json:
    text, maybe_text = {"type": "string"}, {"type": ["string", "null"]}
    maybe_time = {"type": ["string", "null"], "format": "date-time"}
    maybe_usd = {**maybe_text, "description": "USD, a decimal with nine digits.", "examples": ["7.500000000"]}
    holder = {"scope": {"type": "string", "enum": ["key", "user", "app"]}, "holder": text}
    reset = {"reset_after_seconds": {"type": ["number", "null"]}, "resets_at": maybe_time}
    limit = {
        **holder,
        "kind": {"type": "string", "enum": ["requests", "tokens", "concurrency"]},
        "limit": _integer(),
        "window_seconds": _integer(),
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
        "allowed_models": {**_list_of(text), "description": "Names, or `*` alone."},
        "limits": _list_of(_object(limit, *limit)),
        "budgets": _list_of(_object(budget, *budget)),
        "spent_this_month": _object(month, *month),
    }
    return _object(properties, *properties)


def _gateway_error() -> Json:
    error = _object(
        {
            "message": {"type": "string"},
            "type": {"type": "string"},
            "param": {"type": ["string", "null"]},
            "code": {"type": "string"},
            "request_id": {"type": "string"},
        },
        "message", "type", "param", "code", "request_id",
    )  # fmt: skip
    return _object({"error": error}, "error")


def _headers() -> Json:
    text: Json = {"type": "string"}
    return {
        "x-request-id": {"description": "Quote it to the operator; the key of the record.", "schema": text},
        "x-ratelimit-limit-requests": {"description": "Requests per window.", "schema": _integer()},
        "x-ratelimit-remaining-requests": {"description": "What is left of it.", "schema": _integer()},
        "x-ratelimit-reset-requests": {"description": "When all of it is back.", "schema": text},
        "x-gateway-model": {"description": "The model that answered.", "schema": text},
        "x-gateway-endpoint": {"description": "The endpoint that answered.", "schema": text},
        "x-gateway-attempts": {"description": "How many endpoints were tried.", "schema": _integer()},
        "x-gateway-cost-usd": {"description": "What the call cost; not on streams.", "schema": text},
        "x-gateway-budget-remaining-usd": {"description": "What the tightest budget still pays for.", "schema": text},
        "retry-after": {"description": "Seconds until a repeat can succeed.", "schema": _integer()},
    }


def _object(properties: Json, *required: str) -> Json:
    return {"type": "object", "properties": properties, **({"required": list(required)} if required else {})}


def _list_of(items: Json) -> Json:
    return {"type": "array", "items": items}


def _integer() -> Json:
    return {"type": "integer"}


def _schema(name: str) -> Json:
    return _ref("schemas", name)


def _ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}
