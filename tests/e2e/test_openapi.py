"""What `/openapi.json` says is what the gateway does: every path, in the simple cases."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import pytest

from tests.e2e.house import ADMIN_TOKEN, House, Json, error_of, request_id_of, unique
from tests.kit import raw_http
from tests.kit.raw_http import RawResponse

QUERIES = {"/admin/api/usage/summary": "?group_by=model"}
"""Of operations that need one."""
UNKNOWN_ID = "01890a5d-ac96-774b-bcce-b302099a8057"
METHODS = ("get", "put", "post", "patch", "delete")


@dataclass(frozen=True, slots=True)
class Operation:
    method: str
    path: str
    described: Json

    @property
    def is_open(self) -> bool:
        return not self.described.get("security")

    @property
    def is_administration(self) -> bool:
        return self.path.startswith("/admin/")

    @property
    def has_body(self) -> bool:
        return "requestBody" in self.described

    @property
    def parameters(self) -> list[str]:
        return re.findall(r"{(\w+)}", self.path)

    def url(self) -> str:
        """With an id that nothing has in the place of each parameter."""
        return re.sub(r"{\w+}", UNKNOWN_ID, self.path) + QUERIES.get(self.path, "")

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True, slots=True)
class Document:
    whole: Json

    def operations(self) -> Iterator[Operation]:
        for path, operations in self.whole["paths"].items():
            for method in METHODS:
                if method in operations:
                    yield Operation(method.upper(), path, operations[method])

    def operation(self, method: str, path: str) -> Operation:
        return Operation(method, path, self.whole["paths"][path][method.lower()])

    def faults(self, operation: Operation, answer: RawResponse) -> list[str]:
        """How an answer differs from what is documented; empty when it does not."""
        documented = operation.described["responses"].get(str(answer.status))
        if documented is None:
            return [f"{operation}: {answer.status} is not documented: {answer.text[:200]}"]
        content: Json = documented.get("content", {})
        media = (answer.header("content-type") or "").partition(";")[0]
        if not answer.body and not content:
            return []
        if media not in content:
            return [f"{operation}: {answer.status} answers {media!r}, documented is {list(content)}"]
        if media != "application/json":
            return []
        return [f"{operation}: {answer.status}: {fault}" for fault in self._schema_faults(content[media], answer)]

    def _schema_faults(self, content: Json, answer: RawResponse) -> list[str]:
        # It has no types of its own, and those that others wrote are no dependency of ours.
        jsonschema = cast(Any, importlib.import_module("jsonschema"))
        schema = {**content["schema"], "components": self.whole["components"]}
        errors = jsonschema.Draft202012Validator(schema).iter_errors(json.loads(answer.body))
        return [f"{error.json_path}: {error.message[:200]}" for error in errors]


@pytest.fixture
async def document(house: House) -> Document:
    answer = await raw_http.call(house.gateway.port, "GET", "/openapi.json")
    return Document(cast(Json, answer.json()))


async def ask(house: House, operation: Operation, *, token: str | None = None, body: object = None) -> RawResponse:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return await raw_http.call(
        house.gateway.port, operation.method, operation.url(), headers=headers, json_body=body, timeout_s=15
    )


async def test_whoever_has_no_credential_is_answered_as_documented(house: House, document: Document) -> None:
    faults, seen = [], 0
    for operation in document.operations():
        answer = await ask(house, operation, body={} if operation.has_body else None)
        faults += document.faults(operation, answer)
        expected = 200 if operation.is_open else 401
        if answer.status != expected:
            faults.append(f"{operation}: {answer.status} instead of {expected}")
        seen += 1

    assert faults == []
    assert seen > 40


async def test_everything_that_can_be_read_without_an_id_reads_as_documented(house: House, document: Document) -> None:
    key, model = await house.key(budgets=[{"period": "daily", "hard_limit_usd": "1"}]), await house.model()
    await house.admin("POST", "apps", {"app_id": unique("app"), "name": "An app"}, expect=201)
    await house.record(request_id_of(await house.chat(key, model)))
    faults = []
    for operation in document.operations():
        if operation.method == "GET" and not operation.parameters:
            answer = await ask(house, operation, token=ADMIN_TOKEN if operation.is_administration else key)
            faults += document.faults(operation, answer)
            if answer.status != 200:
                faults.append(f"{operation}: {answer.status}: {answer.text[:200]}")

    assert faults == []


async def test_an_id_that_nothing_has_is_answered_as_documented(house: House, document: Document) -> None:
    key = await house.key()
    faults = []
    for operation in document.operations():
        if operation.parameters:
            token = ADMIN_TOKEN if operation.is_administration else key
            answer = await ask(house, operation, token=token, body={} if operation.has_body else None)
            faults += document.faults(operation, answer)
            if answer.status not in (400, 404):
                faults.append(f"{operation}: {answer.status}: {answer.text[:200]}")

    assert faults == []


@pytest.mark.parametrize("body", [{"no_such_field": 1}, [], "text", None])
async def test_a_body_that_is_wrong_is_refused_as_documented(house: House, document: Document, body: object) -> None:
    key = await house.key()
    faults = []
    for operation in document.operations():
        if operation.has_body and not operation.parameters:
            answer = await raw_http.call(
                house.gateway.port,
                operation.method,
                operation.url(),
                headers={
                    "Authorization": f"Bearer {ADMIN_TOKEN if operation.is_administration else key}",
                    "Content-Type": "application/json",
                },
                body=json.dumps(body).encode(),
            )
            faults += document.faults(operation, answer)
            takes_json = "application/json" in operation.described["requestBody"]["content"]
            if answer.status != (400 if takes_json else 415):
                faults.append(f"{operation}: {answer.status}: {answer.text[:200]}")

    assert faults == []


async def test_a_method_that_is_not_documented_is_refused_with_those_that_are(house: House, document: Document) -> None:
    by_path: dict[str, list[Operation]] = {}
    for operation in document.operations():
        by_path.setdefault(operation.url().partition("?")[0], []).append(operation)
    for path, operations in by_path.items():
        answer = await raw_http.call(
            house.gateway.port, "PUT", path, headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}
        )
        assert (answer.status, error_of(answer)["code"]) == (405, "method_not_allowed"), path
        allowed = set((answer.header("allow") or "").replace(" ", "").split(",")) - {"HEAD"}
        # More where a longer path is an id of a shorter one: `sync/bulk-expiry` might be a user's.
        assert allowed >= {operation.method for operation in operations}, path


async def test_what_is_made_changed_and_deleted_is_answered_as_documented(house: House, document: Document) -> None:
    faults = []

    async def did(method: str, path: str, body: object = None, *, query: str = "", **ids: str) -> Json:
        operation = document.operation(method, path)
        answer = await raw_http.call(
            house.gateway.port,
            method,
            path.format(**ids) + query,
            headers={"Authorization": f"Bearer {ADMIN_TOKEN}"},
            json_body=body,
        )
        assert answer.status < 300, answer.text
        faults.extend(document.faults(operation, answer))
        return cast(Json, answer.json()) if answer.body else {}

    api = "/admin/api"
    oid, model, app = unique("user"), unique("model"), unique("app")
    await did("POST", f"{api}/users", {"user_oid": oid, "payment_valid_until": "2099-12-31"})
    await did("PATCH", f"{api}/users/{{user_oid}}", {"email": "ada@example.com"}, user_oid=oid)
    await did("GET", f"{api}/users/{{user_oid}}", user_oid=oid)
    await did("POST", f"{api}/users/{{user_oid}}/sync-expiry", user_oid=oid)
    key = await did("POST", f"{api}/keys", {"user_oid": oid, "budgets": [{"period": "total", "hard_limit_usd": "1"}]})
    for method, path, body in (
        ("GET", "", None), ("PATCH", "", {"name": "ci"}), ("GET", "/usage", None), ("POST", "/rotate", {}),
        ("POST", "/revoke", None), ("DELETE", "", None),
    ):  # fmt: skip
        await did(method, f"{api}/keys/{{key_id}}{path}", body, key_id=key["id"])
    await did("POST", f"{api}/apps", {"app_id": app})
    await did("PATCH", f"{api}/apps/{{app_id}}", {"is_active": False}, app_id=app)
    await did("POST", f"{api}/apps/{{app_id}}/rotate-secret", {}, app_id=app)
    await did("DELETE", f"{api}/apps/{{app_id}}", app_id=app)
    price = {"input_usd_per_mtok": "1", "output_usd_per_mtok": "2"}
    await did("POST", f"{api}/models", {"name": model, "price": price})
    await did("PATCH", f"{api}/models/{{name}}", {"aliases": [f"{model}-latest"]}, name=model)
    endpoint = await did(
        "POST",
        f"{api}/endpoints",
        {"model": model, "provider": "openai", "upstream_model": "m", "api_base": house.upstream.base_url},
    )
    await did("PATCH", f"{api}/endpoints/{{endpoint_id}}", {"weight": 2}, endpoint_id=endpoint["id"])
    await did("POST", f"{api}/endpoints/{{endpoint_id}}/drain", {}, endpoint_id=endpoint["id"])
    await did("GET", f"{api}/endpoints/{{endpoint_id}}", endpoint_id=endpoint["id"])
    await did("DELETE", f"{api}/models/{{name}}", name=model, query="?force=true")
    await did("DELETE", f"{api}/users/{{user_oid}}", user_oid=oid)

    assert faults == []


async def test_a_call_and_its_record_are_answered_as_documented(house: House, document: Document) -> None:
    key, model = await house.key(), await house.model()
    headers = {"Authorization": f"Bearer {key}"}
    chat = document.operation("POST", "/v1/chat/completions")

    unary = await house.chat(key, model)
    stream = await house.chat(key, model, stream=True)
    refused = await house.chat(key, model, api_base="http://x")
    record = await house.record(request_id_of(unary))
    own = await raw_http.call(house.gateway.port, "GET", f"/v1/usage/{record['request_id']}", headers=headers)
    explained = await raw_http.call(
        house.gateway.port,
        "GET",
        f"/admin/api/usage/logs/{record['request_id']}",
        headers={"Authorization": f"Bearer {ADMIN_TOKEN}"},
    )
    one = await raw_http.call(house.gateway.port, "GET", f"/v1/models/{model}", headers=headers)

    assert (unary.status, stream.status, refused.status, own.status, one.status) == (200, 200, 400, 200, 200)
    faults = [fault for answer in (unary, stream, refused) for fault in document.faults(chat, answer)]
    faults += document.faults(document.operation("GET", "/v1/usage/{request_id}"), own)
    faults += document.faults(document.operation("GET", "/admin/api/usage/logs/{request_id}"), explained)
    faults += document.faults(document.operation("GET", "/v1/models/{id}"), one)
    assert faults == []


async def test_the_documents_own_example_works_as_it_stands(house: House, document: Document) -> None:
    chat = document.operation("POST", "/v1/chat/completions")
    example = chat.described["requestBody"]["content"]["application/json"]["example"]
    headers = {"Authorization": f"Bearer {await house.key()}"}
    answer = await raw_http.call(house.gateway.port, chat.method, chat.url(), headers=headers, json_body=example)

    assert answer.status == 200, "the demo model is there where nothing else was registered at the first start"
    assert document.faults(chat, answer) == []
