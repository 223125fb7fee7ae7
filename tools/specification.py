"""Writes into SPECIFICATION.md what the code says by itself: settings, endpoints, errors, tables, metrics, commands.

    python tools/specification.py            write the parts between their marks
    python tools/specification.py --check    say which parts are not what the code says; ends with 1 if there are any

What stands between `<!-- begin: NAME -->` and `<!-- end: NAME -->` is written here; everything else by people.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SPECIFICATION = ROOT / "SPECIFICATION.md"
MARK = re.compile(r"(<!-- begin: (\w+) -->\n).*?(<!-- end: \2 -->)", re.DOTALL)
METHODS = ("get", "put", "post", "patch", "delete")


def main(arguments: Sequence[str]) -> int:
    sys.path.insert(0, str(ROOT))
    text = SPECIFICATION.read_text()
    written = MARK.sub(lambda found: f"{found[1]}{PARTS[found[2]]()}\n{found[3]}", text)
    if "--check" not in arguments:
        SPECIFICATION.write_text(written)
        return 0
    stale = [
        ours[2]
        for ours, theirs in zip(MARK.finditer(text), MARK.finditer(written), strict=True)
        if ours[0] != theirs[0]
    ]
    if stale:
        print(f"SPECIFICATION.md is behind the code in: {', '.join(stale)}. Run: python tools/specification.py")
    return 1 if stale else 0


def table(head: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows)])


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|") or "–"


def code(text: object) -> str:
    return f"`{text}`" if str(text) else ""


# ── Parts ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def settings() -> str:
    from pydantic import SecretStr

    from app.config import Settings

    def rows() -> Iterator[Sequence[str]]:
        for name, field in Settings.model_fields.items():
            default = field.get_default()
            shown = "" if isinstance(default, SecretStr) or default in ("", ()) else str(default)
            if isinstance(default, bool):
                shown = shown.lower()
            example = str((field.examples or [""])[0])
            bounds = ", ".join(_bound(each) for each in field.metadata if _bound(each))
            kind = "secret" if field.annotation is SecretStr else _type_name(field.annotation)
            yield code(str(field.validation_alias or name).upper()), kind, bounds, code(shown), example

    return table(("variable", "type", "bounds", "default", "example"), list(rows()))


def _bound(constraint: object) -> str:
    words = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥", "max_length": "length ≤"}
    return ", ".join(
        f"{word} {getattr(constraint, name)}"
        for name, word in words.items()
        if getattr(constraint, name, None) is not None
    )


def _type_name(annotation: Any) -> str:
    text = getattr(annotation, "__name__", str(annotation))
    if getattr(annotation, "__args__", None) and "Literal" in str(annotation):
        return " or ".join(map(str, annotation.__args__))
    values = getattr(annotation, "__members__", None)
    if values:
        return " or ".join(str(member.value) for member in values.values())
    return {"str": "text", "int": "number", "float": "number", "bool": "true or false", "Path": "folder"}.get(
        text, "list"
    )


def openapi() -> dict[str, Any]:
    """The document that a gateway serves, from an application that connects to nothing."""
    from app.config import load_settings
    from app.main import create_app

    secret = "0123456789abcdef" * 3
    url = "postgresql://nobody@127.0.0.1:1/none"
    app: Any = create_app(
        load_settings(
            {
                "DATABASE_URL": url,
                "REDIS_URL": "redis://127.0.0.1:1/0",
                "SECRET_KEY": secret,
                "ADMIN_TOKEN": secret[::-1],
            }
        )
    )
    while not hasattr(app, "openapi"):
        app = getattr(app, "_app", None) or app.app
    document: dict[str, Any] = app.openapi()
    return document


def endpoints() -> str:
    from app.routers.docs import data_plane_openapi

    document = openapi()
    paths: dict[str, Any] = {**data_plane_openapi()["paths"], **document["paths"]}

    def rows() -> Iterator[Sequence[str]]:
        for path, operations in paths.items():
            for method in METHODS:
                if method in operations:
                    described = operations[method]
                    statuses = ", ".join(sorted(described.get("responses", {})))
                    does = described.get("description") or described.get("summary", "")
                    yield code(f"{method.upper()} {path}"), does.split("\n\n")[0], statuses

    return table(("endpoint", "does", "answers"), sorted(set(map(tuple, rows()))))


def schemas() -> str:
    from app.routers.docs import data_plane_openapi

    own = data_plane_openapi()["components"].get("schemas", {})
    found: dict[str, Any] = {**openapi()["components"]["schemas"], **own}
    parts = []
    for name in sorted(found):
        properties = found[name].get("properties")
        if not properties:
            continue
        required = set(found[name].get("required", ()))
        fields = [
            (code(field), _schema_type(shape), "yes" if field in required else "no", shape.get("description", ""))
            for field, shape in properties.items()
        ]
        parts.append(f"#### {name}\n\n{table(('field', 'type', 'required', 'meaning'), fields)}")
    return "\n\n".join(parts)


def _schema_type(shape: dict[str, Any]) -> str:
    if "$ref" in shape:
        return str(shape["$ref"]).rsplit("/", 1)[1]
    for key in ("anyOf", "oneOf"):
        if key in shape:
            return " or ".join(_schema_type(each) for each in shape[key])
    if "enum" in shape:
        return " or ".join(code(each) for each in shape["enum"])
    if "const" in shape:
        return code(shape["const"])
    kind = shape.get("type", "anything")
    if kind == "array":
        return f"list of {_schema_type(shape.get('items', {}))}"
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def errors() -> str:
    from app import exceptions
    from app.exceptions import GatewayError

    classes = [each for _, each in inspect.getmembers(exceptions, inspect.isclass) if issubclass(each, GatewayError)]
    rows = {(str(each.status), code(each.code), code(each.type), _should_retry(each)) for each in classes}
    return table(("status", "code", "type", "`x-should-retry`"), sorted(rows))


def _should_retry(error: Any) -> str:
    return {None: "", False: "false", True: "true"}[error.should_retry]


def tables() -> str:
    from app.models.tables import SCHEMA_REVISION, metadata

    parts = [f"Revision {code(SCHEMA_REVISION)}."]
    for each in sorted(metadata.tables.values(), key=lambda found: found.name):
        rows = [
            (
                code(column.name),
                str(column.type).lower(),
                "no" if column.nullable else "yes",
                ", ".join(
                    [
                        *(["key"] if column.primary_key else []),
                        *(f"→ {code(key.target_fullname)}" for key in sorted(column.foreign_keys, key=str)),
                    ]
                ),
            )
            for column in each.columns
        ]
        kind = each.dialect_options["postgresql"].get("partition_by")
        parts.append(
            f"#### {each.name}\n\n"
            + (f"Partitioned by {code(kind)}, a month each.\n\n" if kind else "")
            + table(("column", "type", "required", "is"), rows)
        )
    return "\n\n".join(parts)


def metrics() -> str:
    from app.telemetry import metrics as registry

    rows = [
        (code(family.name), family.kind, ", ".join(map(code, family.labels)), family.help)
        for family in registry.snapshot()
    ]
    return table(("metric", "kind", "labels", "meaning"), rows)


def commands() -> str:
    from typer.main import get_command

    from app.cli import cli

    found: dict[str, Any] = get_command(cli).commands  # type: ignore[attr-defined]
    rows = [(code(f"python -m app {name}"), command.help.split("\n\n")[0]) for name, command in sorted(found.items())]
    return table(("command", "does"), rows)


def rights() -> str:
    from app.routers.rights import PREFIX, RIGHTS

    rows = []
    for route, right in RIGHTS.items():
        method, _, path = route.partition(" ")
        rows.append((code(f"{method} {PREFIX}{path.replace(':path', '')}"), right.name.lower()))
    return table(("route", "right"), rows)


PARTS: dict[str, Callable[[], str]] = {
    part.__name__: part for part in (settings, endpoints, schemas, errors, tables, metrics, commands, rights)
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
