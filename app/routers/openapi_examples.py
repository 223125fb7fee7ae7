"""An example of every body and every answer in `/openapi.json`, made from their schemas.

A field's own example comes first, then one by its name (ids and times look alike wherever they stand), then what its type says. A test
holds each example against its schema, so none can grow old.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

Schema = Mapping[str, Any]

MAX_DEPTH: Final = 8
"""Nothing of ours is nested deeper; a schema that holds itself ends here."""

BY_NAME: Final[dict[str, Any]] = {
    "id": "01932b7c-8f5e-4c1a-9d3e-5b6a7c8d9e0f",
    "key_id": "01932b7c-8f5e-4c1a-9d3e-5b6a7c8d9e0f",
    "endpoint_id": "01932b80-11aa-4f7b-8c2d-3e4f5a6b7c8d",
    "request_id": "01a20951-38d3-74f5-8511-d41d353492d2",
    "client_request_id": "checkout-42",
    "user_oid": "user-123",
    "app_id": "crm",
    "model": "gpt-4",
    "requested_model": "gpt-4",
    "served_model": "gpt-4",
    "upstream_model": "gpt-4o",
    "fallback_model": "gpt-4o-mini",
    "fallbacks": ["gpt-4o-mini"],
    "aliases": ["gpt-4-latest"],
    "allowed_models": ["*"],
    "allowed_ips": ["10.0.0.0/8"],
    "allowed_networks": ["10.0.0.0/8"],
    "api_base": "https://api.openai.com/v1",
    "api_key": "sk-…",
    "credential": "…x9Zk",
    "last4": "x9Zk",
    "secret_last4": "x9Zk",
    "secret": "ag-app-…",
    "token": "ag-admin-…",
    "email": "user@example.com",
    "provider": "openai",
    "dialect": "chat",
    "outcome": "ok",
    "http_status": 200,
    "payment_valid_until": "2026-12-31",
    "address": "203.0.113.9",
    "actor": "ada",
    "next_cursor": "WyIyMDI2LTExLTI1VDEwOjAwOjAwWiIsInVzZXItMTIzIl0",
    "cost_usd": "0.001234500",
    "spent_usd": "1.250000000",
    "grace_seconds": 3600,
}
BY_SUFFIX: Final = {
    "_usd_per_mtok": "2.5",
    "_usd": "10",
    "_at": "2026-11-25T10:00:00.000000Z",
    "from": "2026-11-01T00:00:00.000000Z",
    "to": "2026-11-30T23:59:59.000000Z",
}
"""Texts only."""
BY_MEDIA: Final = {
    "text/event-stream": 'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n'
    "data: [DONE]\n\n",
    "text/csv": "request_id,created_at,user_oid,cost_usd\r\n01a20951-38d3-74f5-8511-d41d353492d2,2026-11-25T10:00:00.000000Z,"
    "user-123,0.001234500\r\n",
    "application/x-ndjson": '{"request_id":"01a20951-38d3-74f5-8511-d41d353492d2","user_oid":"user-123","cost_usd":"0.001234500"}\n',
    "text/plain": 'gateway_requests_total{model="gpt-4",outcome="ok"} 42\n',
}
BY_FORMAT: Final = {"date-time": "2026-11-25T10:00:00.000000Z", "date": "2026-12-31", "uuid": BY_NAME["id"]}
BY_TYPE: Final[dict[str, Any]] = {"string": "text", "integer": 1, "number": 1.5, "boolean": True, "null": None}


def add_examples(document: dict[str, Any]) -> None:
    """Give every JSON body and answer an example that has none yet."""
    schemas: Mapping[str, Schema] = document.get("components", {}).get("schemas", {})
    for media, content in _contents(document):
        if "example" in content or "examples" in content:
            continue
        if media in BY_MEDIA:
            content["example"] = BY_MEDIA[media]
        elif media == "application/json" and content.get("schema"):
            content["example"] = example_of(content["schema"], schemas)


def example_of(schema: Schema, schemas: Mapping[str, Schema], *, name: str = "", depth: int = 0) -> Any:
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    for given in ("example", "const"):
        if given in schema:
            return schema[given]
    if schema.get("examples"):
        return schema["examples"][0]
    found = _by_name(schema, name)
    if found is not None:
        return found
    if "enum" in schema:
        return schema["enum"][0]
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return _first_of(schema[several], schemas, name, depth)
    if "allOf" in schema:
        return example_of(schema["allOf"][0], schemas, name=name, depth=depth)
    return _by_type(schema, schemas, name, depth)


def _contents(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for operations in document["paths"].values():
        for operation in operations.values():
            if not isinstance(operation, dict):
                continue
            answers = [answer for status, answer in operation["responses"].items() if status.startswith("2")]
            for described in (operation.get("requestBody", {}), *answers):
                yield from described.get("content", {}).items()


def _by_name(schema: Schema, name: str) -> Any:
    """Only where the schema takes it: `limit` is a number here and an object there."""
    value = BY_NAME.get(name) or next((each for suffix, each in BY_SUFFIX.items() if name.endswith(suffix)), None)
    kinds = {"str": "string", "int": "integer", "list": "array"}
    types = {kind for each in (schema, *schema.get("anyOf", ())) for kind in _types(each)}
    return value if kinds.get(type(value).__name__) in types and not _is_closed(schema) else None


def _types(schema: Schema) -> list[str]:
    given = schema.get("type", [])
    return given if isinstance(given, list) else [given]


def _is_closed(schema: Schema) -> bool:
    return "enum" in schema or "format" in schema or any("enum" in each for each in schema.get("anyOf", ()))


def _first_of(several: list[Schema], schemas: Mapping[str, Schema], name: str, depth: int) -> Any:
    """What may be absent is shown as it is when it is there."""
    present = [each for each in several if each.get("type") != "null"]
    return example_of(present[0] if present else several[0], schemas, name=name, depth=depth)


def _by_type(schema: Schema, schemas: Mapping[str, Schema], name: str, depth: int) -> Any:
    match next((kind for kind in _types(schema) if kind != "null"), "null"):
        case "object" if depth < MAX_DEPTH and "properties" in schema:
            return {
                key: example_of(each, schemas, name=key, depth=depth + 1) for key, each in schema["properties"].items()
            }
        case "array" if depth < MAX_DEPTH and schema.get("items"):
            return [example_of(schema["items"], schemas, name=name, depth=depth + 1)]
        case "array":
            return []
        case "string" if "format" in schema:
            return BY_FORMAT.get(schema["format"], "text")
        case "integer" | "number" as kind:
            return max(BY_TYPE[kind], schema.get("minimum", 0))
        case str(kind) if kind in BY_TYPE:
            return BY_TYPE[kind]
        case _:
            return {}
