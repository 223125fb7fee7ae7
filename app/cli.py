"""`python -m app`: start the gateway, and the operator's commands.

Imports what it needs inside each command: `--help` should not wait for a web framework.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from app import __version__, cli_admin
from app.exceptions import GatewayError, SettingsError

cli = typer.Typer(
    name="antigravity",
    help="Antigravity LLM Gateway.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
cli_admin.register(cli)


def _tell_version(is_asked: bool) -> None:
    if is_asked:
        print(f"Antigravity LLM Gateway {__version__}")
        raise typer.Exit


@cli.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_tell_version)
    ] = False,
) -> None:
    """Antigravity LLM Gateway."""


@cli.command()
def serve(
    demo: Annotated[bool, typer.Option("--demo", help="Also start a small language model of its own.")] = False,
) -> None:
    """Start the gateway; without DATABASE_URL and REDIS_URL it brings its own PostgreSQL and Valkey."""
    from app.serve import serve as run

    run(with_demo_model=demo)


@cli.command()
def migrate(
    grant_to: Annotated[
        str | None, typer.Option(help="A role that may then use the tables: the gateway's, when another one owns them.")
    ] = None,
) -> None:
    """Create or upgrade the tables of DATABASE_URL."""
    from app.diagnostics import create_missing_tables

    raise typer.Exit(create_missing_tables(grant_to=grant_to))


@cli.command()
def maintain() -> None:
    """Make the months to come and drop those that are over (LOG_RETENTION_DAYS); needs the owner of the tables."""
    from app.diagnostics import maintain as run

    raise typer.Exit(run())


@cli.command()
def backup(file: Annotated[Path, typer.Argument(help="Where to; a file that is there is not replaced.")]) -> None:
    """Write everything in PostgreSQL to a file that pg_restore reads. Calls go on meanwhile."""
    from app.backup import backup as run

    raise typer.Exit(run(file))


@cli.command("list-tables")
def list_tables() -> None:
    """Tables with row counts and sizes, and whether the schema is the newest."""
    from app.diagnostics import list_tables as run

    raise typer.Exit(run())


@cli.command("diagnose-keys")
def diagnose_keys(
    key: Annotated[str | None, typer.Option(help="One key, by its secret.")] = None,
    id: Annotated[str | None, typer.Option(help="One key, by its id.")] = None,
    app: Annotated[str | None, typer.Option(help="A registered app, by its id.")] = None,
    user: Annotated[str | None, typer.Option(help="The user that the app would name.")] = None,
) -> None:
    """Keys with owner, status, limits and spend, and why a request with one (or of an app) would be refused now."""
    from app.diagnostics import diagnose_keys as run

    raise typer.Exit(run(key=key, key_id=id, app_id=app, user_oid=user))


@cli.command()
def torture(
    duration: Annotated[float | None, typer.Option(help="Seconds under load. [default: 120]", min=5.0)] = None,
    short: Annotated[bool, typer.Option("--short", help="25 seconds.")] = False,
    processes: Annotated[int, typer.Option(help="Gateway processes.", min=1, max=16)] = 3,
    clients: Annotated[int, typer.Option(help="Clients that call at the same time.", min=1, max=1000)] = 60,
    seed: Annotated[int, typer.Option(help="The same seed gives the same schedule of faults.")] = 1,
    faults: Annotated[
        str,
        typer.Option(help="all, none, or some of: kill,pause,drain,flush,redis,postgres,upstream,disconnect."),
    ] = "all",
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON.")] = False,
) -> None:
    """Prove that limits hold, money is exact and no record is lost, while everything fails. Needs nothing, touches nothing of yours."""
    from app.torture.command import torture as run

    seconds = duration or (25.0 if short else 120.0)
    raise typer.Exit(
        run(duration_s=seconds, processes=processes, clients=clients, seed=seed, faults=faults, as_json=as_json)
    )


@cli.command()
def bench(
    short: Annotated[bool, typer.Option("--short", help="One round of seconds instead of three.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print every figure as JSON.")] = False,
    workers: Annotated[
        str, typer.Option(help="WORKERS of the gateway that is measured; several (1,2) for one gateway each.")
    ] = "1",
    against: Annotated[
        str | None,
        typer.Option(help="Another gateway, running: http://HOST:PORT. Its model must lead to --upstream-port."),
    ] = None,
    against_key: Annotated[str, typer.Option(help="A key of it.")] = "none",
    against_model: Annotated[str, typer.Option(help="What it calls the model.")] = "bench",
    beside: Annotated[
        Path | None, typer.Option(help="Another checkout of this repository, run the same way: before and after.")
    ] = None,
    upstream_port: Annotated[int, typer.Option(help="Where the scripted upstream listens; 0: anywhere.")] = 0,
    rounds: Annotated[int | None, typer.Option(help="Rounds. [default: 3]", min=1)] = None,
    only: Annotated[str | None, typer.Option(help="Some of: unary,stream,paced,latency.")] = None,
) -> None:
    """Measure what a call costs, beside nginx and other gateways, in one interleaved run. Needs nothing, touches nothing of yours."""
    from app.bench.command import bench as run
    from app.bench.plan import Against

    other = Against(against, against_key, against_model) if against else None
    status = run(
        is_short=short,
        as_json=as_json,
        workers=workers,
        against=other,
        beside=beside,
        upstream_port=upstream_port,
        rounds=rounds,
        only=only,
    )
    raise typer.Exit(status)


@cli.command("verify-ledger")
def verify_ledger(
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as one JSON object.")] = False,
) -> None:
    """Sum up everything again and name each drift: rollups, bills, budget counters, reservations. Exit status 1 if there is one."""
    from app.proofs import verify_ledger as run

    raise typer.Exit(run(as_json=as_json))


@cli.command("verify-audit")
def verify_audit(
    anchors: Annotated[Path | None, typer.Option(help="A file of AUDIT_ANCHOR to compare with.", exists=True)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as one JSON object.")] = False,
) -> None:
    """Recompute the audit trail's chain of hashes. Exit status 1 if a row was changed, removed or moved."""
    from app.proofs import verify_audit as run

    raise typer.Exit(run(anchors=anchors, as_json=as_json))


def main() -> None:
    """Run a command. What an operator can mend is told in one line, without a traceback."""
    try:
        cli()
    except (SettingsError, GatewayError) as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
