"""SPECIFICATION.md says what the code says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_what_the_code_says_by_itself_stands_in_the_specification() -> None:
    """Settings, endpoints, fields, errors, tables, metrics, commands: all of them."""
    checked = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "specification.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_part_that_is_written_by_the_code_is_there() -> None:
    text = (ROOT / "SPECIFICATION.md").read_text()
    for part in ("endpoints", "rights", "schemas", "errors", "settings", "commands", "tables", "metrics"):
        begins, ends = text.index(f"<!-- begin: {part} -->"), text.index(f"<!-- end: {part} -->")
        assert text[begins:ends].count("\n|") > 3, part
