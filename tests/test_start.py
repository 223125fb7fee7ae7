"""What a start loads: nothing that the running configuration does not need."""

from __future__ import annotations

import subprocess
import sys

from tests.kit.clients import REPO_ROOT

NEEDED_LATER = (
    "aiohttp",
    "litellm",
    "alembic",
    "authlib",
    "httpx",
    "opentelemetry.exporter",
    "yaml",
    "rich.live",
)
"""A provider that needs translating, a migration, single sign-on, traces, an import: each when it comes."""


def test_the_application_is_imported_without_what_only_some_installations_need() -> None:
    looked = f"import app.main, sys; print([name for name in {NEEDED_LATER!r} if name in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", looked], cwd=REPO_ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.strip() == "[]"
