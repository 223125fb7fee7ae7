"""T124: no float touches money. The code that computes it, the schema that keeps it, and sums that agree whichever way they are made."""

from __future__ import annotations

import ast
import random
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import ARRAY, BigInteger, Float, Numeric

from app.domain.money import PicoUsd, pico_to_nano_rounded_up
from app.domain.pricing import Price, Rates, Tier, Usage, cost_of
from app.models.tables import metadata
from app.storage.sql_usage import ROLLUP_KEY, SUMS, rollups_of
from tests.storage.records import NOON, a_record

APP = Path(__file__).parents[1] / "app"
MONEY_CODE = (
    "domain/money.py",
    "domain/pricing.py",
    "domain/budget.py",
    "domain/belief.py",
    "services/budget.py",
    "services/recording.py",
    "services/verify_ledger.py",
    "providers/price_map.py",
    "models/money_fields.py",
)
MONEY_WORDS = ("cost", "usd", "price", "spent", "budget", "reserved")
ALLOWED = {
    "isinstance(value, float | bool)",  # money.py: refuses them
}
NO_MONEY = {
    "PAUSE_S = 0.25",
}


def floats_in(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Float literals, the type's name, true division, and what makes a float of an integer."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, float):
            yield node, "a float literal"
        elif isinstance(node, ast.Name) and node.id in ("float", "round"):
            yield node, node.id
        elif isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div):
            yield node, "true division"
        elif isinstance(node, ast.Import | ast.ImportFrom) and "math" in ast.unparse(node).split():
            yield node, "math"


@pytest.mark.parametrize("name", MONEY_CODE)
def test_code_that_computes_money_has_no_float(name: str) -> None:
    source = (APP / name).read_text()
    tree = ast.parse(source)
    allowed = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.expr | ast.stmt) and ast.unparse(node) in ALLOWED | NO_MONEY
        for inner in ast.walk(node)
    }
    in_types = {id(inner) for node in ast.walk(tree) for inner in _annotated(node)}
    found = [
        f"{name}:{getattr(node, 'lineno', '?')}: {what}"
        for node, what in floats_in(tree)
        if id(node) not in allowed and id(node) not in in_types
    ]
    assert found == []


def _annotated(node: ast.AST) -> Iterator[ast.AST]:
    """The types of a pause, which is a time: `Callable[[float], …]`."""
    if isinstance(node, ast.Assign) and ast.unparse(node).startswith("Sleep = "):
        yield from ast.walk(node)


@pytest.mark.parametrize(
    "source",
    ["x = 0.1", "x = a / b", "x /= 2", "x = float(a)", "def f(x: float) -> None: ...", "x = round(a)", "import math"],
)
def test_the_scan_sees_what_it_looks_for(source: str) -> None:
    assert list(floats_in(ast.parse(source)))


def test_nothing_anywhere_is_called_money_and_typed_float() -> None:
    """All of the app: no field, argument or function about money that is annotated as a float."""
    found = []
    for path in APP.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name, annotation = _name_and_type(node)
            about_money = any(word in name.lower().split("_") for word in MONEY_WORDS)
            if about_money and annotation is not None and "float" in ast.unparse(annotation):
                found.append(f"{path.relative_to(APP)}:{name}")
    assert found == []


def _name_and_type(node: ast.AST) -> tuple[str, ast.expr | None]:
    match node:
        case ast.arg(arg=name, annotation=annotation):
            return name, annotation
        case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):
            return name, annotation
        case ast.FunctionDef(name=name, returns=annotation) | ast.AsyncFunctionDef(name=name, returns=annotation):
            return name, annotation
        case _:
            return "", None


def test_the_schema_keeps_no_number_that_is_not_exact() -> None:
    for table in metadata.tables.values():
        for column in table.c:
            kind = column.type.item_type if isinstance(column.type, ARRAY) else column.type
            assert not isinstance(kind, Float | Numeric), f"{table.name}.{column.name}"
            if column.name.endswith("_nanousd"):
                assert isinstance(kind, BigInteger), f"{table.name}.{column.name}"


def test_ten_thousand_calls_sum_up_to_the_same_by_day_key_model_and_in_all() -> None:
    chance = random.Random(124)
    price = Price(
        "p",
        Rates(PicoUsd(1_250_001), PicoUsd(9_999_999), cached_input=PicoUsd(333_333)),
        (Tier(500, Rates(PicoUsd(7), PicoUsd(11))),),
    )
    records = []
    for _ in range(10_000):
        usage = Usage(chance.randrange(1_000), chance.randrange(1_000), cached_tokens=chance.randrange(1_000))
        cost = cost_of(usage, price)
        assert cost.nanousd == pico_to_nano_rounded_up(sum(line.quantity * line.unit_pico for line in cost.lines))
        records.append(
            a_record(
                NOON + timedelta(hours=chance.randrange(200)),
                user_oid=f"u{chance.randrange(9)}",
                served_model=f"m{chance.randrange(5)}",
                cost_nanousd=cost.nanousd,
            )
        )
    total = sum(record.cost_nanousd for record in records)
    rows = rollups_of(records)
    cost_at = len(ROLLUP_KEY) + SUMS.index("cost_nanousd")
    for key_at in range(len(ROLLUP_KEY)):
        sums: Counter[object] = Counter()
        for row in rows:
            amount = row[cost_at]
            assert type(amount) is int
            sums[row[key_at]] += amount
        assert sum(sums.values()) == total
