"""`python -m app`: start the gateway, and the operator's commands.

Imports what it needs inside each command: `--help` should not wait for a web framework.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from app import cli_admin
from app.exceptions import GatewayError, SettingsError

cli = typer.Typer(
    name="antigravity",
    help="Antigravity LLM Gateway.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
cli_admin.register(cli)


@cli.command()
def serve(
    demo: Annotated[bool, typer.Option("--demo", help="Also start a small language model of its own.")] = False,
) -> None:
    """Start the gateway; without DATABASE_URL and REDIS_URL it brings its own PostgreSQL and Valkey."""
    from app.serve import serve as run

    run(with_demo_model=demo)


@cli.command()
def migrate() -> None:
    """Create or upgrade the tables of DATABASE_URL."""
    from app.diagnostics import create_missing_tables

    raise typer.Exit(create_missing_tables())


@cli.command("list-tables")
def list_tables() -> None:
    """Tables with row counts and sizes, and whether the schema is the newest."""
    from app.diagnostics import list_tables as run

    raise typer.Exit(run())


@cli.command("diagnose-keys")
def diagnose_keys(
    key: Annotated[str | None, typer.Option(help="One key, by its secret.")] = None,
    id: Annotated[str | None, typer.Option(help="One key, by its id.")] = None,
) -> None:
    """Keys with owner, status, limits and spend, and why a request with one would be refused now."""
    from app.diagnostics import diagnose_keys as run

    raise typer.Exit(run(key=key, key_id=id))


def main() -> None:
    """Run a command. What an operator can mend is told in one line, without a traceback."""
    try:
        cli()
    except (SettingsError, GatewayError) as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
