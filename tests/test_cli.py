"""What somebody types who does not know the commands yet. Nothing of it needs a server."""

from __future__ import annotations

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from app import __version__
from app.cli import cli

COMMANDS = sorted(get_command(cli).commands)  # type: ignore[attr-defined] # the commands of a group


def test_the_version_is_told() -> None:
    told = CliRunner().invoke(cli, ["--version"])
    assert (told.exit_code, told.stdout.strip()) == (0, f"Antigravity LLM Gateway {__version__}")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    told = CliRunner().invoke(cli, [name, "--help"])
    assert told.exit_code == 0
    assert f" {name} " in told.stdout


@pytest.mark.parametrize(
    "typed", [[], ["nonsense"], ["serve", "--nonsense"], ["create-key"], ["torture", "--duration", "1"], ["backup"]]
)
def test_what_is_no_command_ends_with_status_2_and_says_what_there_is(typed: list[str]) -> None:
    told = CliRunner().invoke(cli, typed)
    assert told.exit_code == 2
    assert "Usage" in told.output
    assert "Traceback" not in told.output
