"""`/openapi.json` shows an example of everything that is sent and answered, and each is what its schema says."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any, cast

import pytest

from app.config import load_settings
from app.main import create_app
from app.routers.openapi_examples import example_of
from tests.e2e.test_openapi import METHODS

Json = dict[str, Any]


@pytest.fixture(scope="module")
def document() -> Json:
    settings = load_settings(
        {
            "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
            "REDIS_URL": "redis://127.0.0.1:1/0",
            "SECRET_KEY": "a-secret-key-that-only-these-tests-know-0123456789",
            "ADMIN_TOKEN": "an-admin-token-that-only-these-tests-know-0123456789",
        }
    )
    return cast(Json, cast(Any, create_app(settings)._app).openapi())


def contents(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, operations in document["paths"].items():
        for method in METHODS:
            operation = operations.get(method, {"responses": {}})
            answers = {status: each for status, each in operation["responses"].items() if status.startswith("2")}
            for place, described in {"body": operation.get("requestBody", {}), **answers}.items():
                for media, content in described.get("content", {}).items():
                    yield f"{method.upper()} {path} {place}", media, content


def test_every_operation_shows_an_example_of_what_it_takes_and_answers(document: Json) -> None:
    found = list(contents(document))

    assert len(found) > 90
    assert [where for where, _, content in found if not {"example", "examples"} & set(content)] == []


def test_every_example_is_what_its_schema_says(document: Json) -> None:
    validator = cast(Any, importlib.import_module("jsonschema")).Draft202012Validator
    faults = []
    for where, media, content in contents(document):
        if media == "application/json" and content.get("schema"):
            schema = {**content["schema"], "components": document["components"]}
            examples = [each["value"] for each in content.get("examples", {}).values()] or [content["example"]]
            faults += [
                f"{where}: {error.json_path}: {error.message[:200]}"
                for example in examples
                for error in validator(schema).iter_errors(example)
            ]

    assert faults == []


def test_a_schema_that_holds_itself_has_an_example_too() -> None:
    tree: Json = {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#/x/Tree"}}}}

    assert "children" in example_of(tree, {"Tree": tree})
