"""What every operation of the data plane says alike in `/openapi.json`: refusals, credentials, references."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

CALLING = "Calling models"
OWN = "Your own usage"

REFUSALS: tuple[tuple[str, str], ...] = (
    ("400", "`invalid_json`, `invalid_request`, `missing_required_parameter`, `param_not_allowed`, "
            "`context_length_exceeded`, `ambiguous_credentials`. `param` names the field."),
    ("401", "`invalid_api_key`: missing, unknown, malformed, expired and revoked credentials answer alike."),
    ("402", "`budget_exceeded`: a hard budget cannot pay for the request."),
    ("403", "`payment_expired`, `user_suspended`, `model_not_allowed`, `app_inactive`, `ip_not_allowed`."),
    ("404", "`model_not_found`, `not_found`."),
    ("415", "`unsupported_media_type`: the body is not of the kind that this operation takes."),
    ("429", "`rate_limit_exceeded`; `type` is `requests`, `tokens`, `concurrency` or `budget_reserved`."),
    ("502", "`upstream_error`: every endpoint of the model was tried."),
    ("503", "`no_healthy_endpoint`, `dependency_unavailable`; with `Retry-After`."),
    ("504", "`upstream_timeout`."),
)  # fmt: skip


def answered(description: str, name: str) -> Json:
    return {
        "description": description,
        "headers": {"x-request-id": ref("headers", "x-request-id")},
        "content": {"application/json": {"schema": schema(name)}},
    }


def refused(*statuses: str, shape: str = "GatewayError") -> Json:
    def refusal(status: str, description: str) -> Json:
        names = ("x-request-id", "retry-after") if status in ("429", "503") else ("x-request-id",)
        return {
            "description": description,
            "headers": {name: ref("headers", name) for name in names},
            "content": {"application/json": {"schema": schema(shape)}},
        }

    return {status: refusal(status, description) for status, description in REFUSALS if status in statuses}


def in_path(name: str, description: str, **more: str) -> Json:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": {"type": "string", **more},
    }


def security() -> list[Json]:
    internal_app: Json = {"gatewaySecret": [], "appId": [], "userOid": []}
    return [{"bearer": []}, {"xApiKey": []}, {"apiKey": []}, internal_app]


def object_of(properties: Json, *required: str) -> Json:
    return {"type": "object", "properties": properties, **({"required": list(required)} if required else {})}


def list_of(items: Json) -> Json:
    return {"type": "array", "items": items}


def integer() -> Json:
    return {"type": "integer"}


def schema(name: str) -> Json:
    return ref("schemas", name)


def ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}
