"""Thresholds of budgets, and the signature of what is told of them."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.alerts import passed, signature, thresholds_of
from app.domain.budget import Budget, PeriodKind
from app.domain.money import NanoUsd

USD = 10**9
DOCUMENT = Path(__file__).parents[2] / "docs" / "alerts.md"


def budget(*, hard: int | None = None, soft: int | None = None) -> Budget:
    return Budget(PeriodKind.MONTHLY, None if soft is None else NanoUsd(soft), None if hard is None else NanoUsd(hard))


def names(of: Budget, spent: int, but: tuple[str, ...] = ()) -> list[str]:
    return [threshold.name for threshold in passed(of, spent, but=but)]


@pytest.mark.parametrize(
    ("spent", "expected"),
    [
        (0, []),
        (5 * USD - 1, []),
        (5 * USD, ["hard:50"]),
        (8 * USD - 1, ["hard:50", "soft:100"]),
        (8 * USD, ["hard:50", "hard:80", "soft:100"]),
        (10 * USD - 1, ["hard:50", "hard:80", "soft:100"]),
        (10 * USD, ["hard:50", "hard:80", "hard:100", "soft:100"]),
    ],
)
def test_a_threshold_is_passed_at_its_own_nanodollar(spent: int, expected: list[str]) -> None:
    assert names(budget(hard=10 * USD, soft=7 * USD), spent) == expected


def test_what_has_had_its_alert_is_not_named_again() -> None:
    assert names(budget(hard=10 * USD), 9 * USD, ("hard:50",)) == ["hard:80"]


def test_a_limit_of_zero_or_none_has_no_thresholds() -> None:
    assert thresholds_of(budget(hard=0, soft=0)) == thresholds_of(budget()) == []


@given(st.integers(1, 9 * 10**15), st.integers(0, 10**16))
def test_percents_are_exact_at_any_size(hard: int, spent: int) -> None:
    found = {threshold.percent for threshold in passed(budget(hard=hard), spent)}
    assert found == {percent for percent in (50, 80, 100) if Fraction(spent, hard) >= Fraction(percent, 100)}


def test_the_signature_covers_the_time_and_the_body() -> None:
    secret, body = b"s" * 32, b'{"a":1}'
    expected = hmac.new(secret, b'1790000000.{"a":1}', hashlib.sha256).hexdigest()

    assert signature(body, secret=secret, at_s=1_790_000_000) == f"t=1790000000,v1={expected}"
    assert signature(body, secret=secret, at_s=1_790_000_001).partition("v1=")[2] != expected


def test_the_receivers_check_in_the_documentation_takes_ours_and_nothing_else() -> None:
    (source,) = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    told: dict[str, Callable[[str, bytes, str], bool]] = {}
    exec(source, told)
    is_ours, secret, body, now = told["is_ours"], "s" * 32, b'{"a":1}', int(time.time())
    header = signature(body, secret=secret.encode(), at_s=now)

    assert is_ours(header, body, secret)
    assert not is_ours(header, body + b" ", secret)
    assert not is_ours(header, body, "t" * 32)
    assert not is_ours(header.replace(str(now), str(now + 1)), body, secret)
    assert not is_ours(signature(body, secret=secret.encode(), at_s=now - 3600), body, secret)
