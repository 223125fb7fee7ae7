"""House rules that neither ruff nor import-linter can state: which construct may stand in which file, and why.

Every rule is a row in `RULES`. Run by `make check`; prints `file:line: rule (reason)`, ends with 1 if it found anything.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOOK_IN = ("app/**/*.py", "migrations/**/*.py", "*.py")
Test = Callable[[ast.AST], bool]


@dataclass(frozen=True, slots=True)
class Rule:
    """A construct, the files that may hold it, and the reason, which is what the reader of a finding is told."""

    construct: str
    is_it: Test
    allowed_in: tuple[str, ...]
    reason: str
    within: tuple[str, ...] = ("*",)


def main() -> int:
    """Check every file of the product."""
    findings = [finding for path in product_files() for finding in check(path)]
    findings += replaced_structs(product_files())
    print("\n".join(findings) or f"house rules: kept ({len(RULES) + 1} rules)")
    return 1 if findings else 0


def product_files() -> Iterator[Path]:
    """The files that rules apply to; tests and tools may do as they like."""
    for pattern in LOOK_IN:
        yield from sorted(ROOT.glob(pattern))


def check(path: Path) -> Iterator[str]:
    """All findings of one file."""
    name = path.relative_to(ROOT).as_posix()
    applying = [rule for rule in RULES if stands_in(name, rule.within) and not stands_in(name, rule.allowed_in)]
    for node in ast.walk(ast.parse(path.read_text(), filename=name)):
        for rule in applying:
            if rule.is_it(node):
                yield f"{name}:{getattr(node, 'lineno', 0)}: {rule.construct} is not for this file ({rule.reason})"


def stands_in(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a file's path fits one of the patterns; `*` crosses folders."""
    return any(fnmatch(name, pattern) for pattern in patterns)


def replaced_structs(paths: Iterable[Path]) -> Iterator[str]:
    """Where `dataclasses.replace` is given a msgspec struct: the types allow it, and it fails when it runs.

    What a value is, is told by its annotation in the function, by the class it was made of there, or by its name as an attribute, where
    every class that declares one of that name says it is a struct.
    """
    trees = {path: ast.parse(path.read_text()) for path in paths}
    classes = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    structs = {"Struct"}
    while more := {each.name for each in classes if not structs.isdisjoint(names_in(*each.bases))} - structs:
        structs |= more
    kinds: dict[str, list[bool]] = {}
    for field in (field for each in classes for field in each.body):
        match field:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):
                kinds.setdefault(name, []).append(not structs.isdisjoint(names_in(annotation)))
    fields = {name for name, are_structs in kinds.items() if all(are_structs)}
    for path, tree in trees.items():
        if not any(uses("dataclasses.replace")(node) for node in ast.walk(tree)):
            continue
        for line in sorted({line for node in ast.walk(tree) for line in _replaced_in(node, structs, fields)}):
            name = path.relative_to(ROOT).as_posix()
            yield f"{name}:{line}: dataclasses.replace of a struct (it fails when it runs: msgspec.structs.replace does it)"


def _replaced_in(function: ast.AST, structs: set[str], fields: set[str]) -> Iterator[int]:
    if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    known = {
        each.arg for each in ast.walk(function) if isinstance(each, ast.arg) and structs & names_in(each.annotation)
    }
    for node in ast.walk(function):
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation) if structs & names_in(annotation):
                known.add(name)
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(func=made_of)) if structs & names_in(made_of):
                known.add(name)
    for node in ast.walk(function):
        match node:
            case ast.Call(
                func=ast.Name(id="replace") | ast.Attribute(value=ast.Name(id="dataclasses"), attr="replace")
            ):
                match node.args[:1]:
                    case [ast.Name(id=name)] if name in known:
                        yield node.lineno
                    case [ast.Attribute(attr=name)] if name in fields:
                        yield node.lineno


def names_in(*expressions: ast.expr | None) -> set[str]:
    """The names that stand in these: `Call` and `None` in `domain.Call | None`."""
    nodes = [node for each in expressions if each is not None for node in ast.walk(each)]
    return {node.id for node in nodes if isinstance(node, ast.Name)} | {
        node.attr for node in nodes if isinstance(node, ast.Attribute)
    }


# How to recognise a construct.


def imports(*modules: str) -> Test:
    """`import m`, `import m.x`, `from m import x`, `from m.x import y`."""

    def is_it(node: ast.AST) -> bool:
        match node:
            case ast.Import(names=names):
                named = [alias.name for alias in names]
            case ast.ImportFrom(module=str(module), level=0):
                named = [module]
            case _:
                return False
        return any(name == module or name.startswith(f"{module}.") for name in named for module in modules)

    return is_it


def uses(*dotted: str) -> Test:
    """The name as written (`os.environ`), or imported from its module (`from os import environ`)."""

    def is_it(node: ast.AST) -> bool:
        match node:
            case ast.Attribute():
                return ast.unparse(node) in dotted
            case ast.ImportFrom(module=str(module), names=names):
                return any(f"{module}.{alias.name}" in dotted for alias in names)
            case _:
                return False

    return is_it


def calls(*names: str) -> Test:
    """A call of a plain name, or of an attribute so named: `text(…)`, `sa.text(…)`."""

    def is_it(node: ast.AST) -> bool:
        match node:
            case ast.Call(func=ast.Name(id=name)) | ast.Call(func=ast.Attribute(attr=name)):
                return name in names
            case _:
                return False

    return is_it


def any_of(*tests: Test) -> Test:
    """Whether one of the tests says yes."""
    return lambda node: any(test(node) for test in tests)


def names_anything(name: str) -> Test:
    """The name itself, however it got here."""

    def is_it(node: ast.AST) -> bool:
        match node:
            case ast.Name(id=found) | ast.Attribute(attr=found) | ast.alias(name=found):
                return found == name
            case _:
                return False

    return is_it


SQL_FILES = ("app/storage/*", "app/models/tables.py", "app/database.py", "migrations/*")

JUDGE = ("app/torture/*", "app/bench/*")
"""It proves the gateway from outside, so it looks into the stores with its own eyes and not through the code that it judges."""

RULES = (
    Rule(
        "the environment",
        any_of(uses("os.environ", "os.environb", "os.getenv", "os.putenv"), calls("load_dotenv", "dotenv_values")),
        ("app/config.py",),
        "only config.py reads it: every setting is typed, checked and documented in one place",
    ),
    Rule(
        "import litellm",
        imports("litellm"),
        ("app/providers/litellm.py",),
        "it takes seconds and 180 MB, so one file imports it, lazily",
    ),
    Rule(
        "SQLAlchemy",
        imports("sqlalchemy", "asyncpg", "alembic"),
        (*SQL_FILES, "app/cli.py", *JUDGE),
        "only storage holds SQL; services speak to ports",
    ),
    Rule(
        "SQL text",
        any_of(uses("sqlalchemy.text", "sa.text"), calls("exec_driver_sql")),
        SQL_FILES,
        "only storage holds SQL",
    ),
    Rule(
        "the Redis client",
        imports("redis", "hiredis"),
        ("app/storage/*", "app/redis_client.py", "app/redis_cluster.py", *JUDGE),
        "counters are a port; what stands behind it is storage's business",
    ),
    Rule(
        "BaseHTTPMiddleware",
        names_anything("BaseHTTPMiddleware"),
        (),
        "it costs more than a whole call and loses context variables: pure ASGI only",
    ),
    Rule(
        "create_task",
        any_of(uses("asyncio.create_task", "asyncio.ensure_future"), calls("ensure_future")),
        # Reading ahead of one call: the task is awaited by the same call, in the same function's finally.
        ("app/routers/streaming.py", "app/providers/*", "app/storage/*", "app/redis_client.py", *JUDGE),
        "background tasks belong to a task group that someone awaits; nothing is fired and forgotten",
    ),
    Rule(
        "the clock or chance",
        any_of(imports("time", "random", "secrets"), uses("datetime.now", "datetime.utcnow", "datetime.datetime.now")),
        (),
        "in the domain and the dialects time and randomness come in as arguments",
        within=("app/domain/*", "app/dialects/*"),
    ),
)


if __name__ == "__main__":
    sys.exit(main())
