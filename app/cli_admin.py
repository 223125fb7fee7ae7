"""Administration from a shell: the same commands as the admin API's, straight to the database, no gateway needed.

Attached to `python -m app` by `register`. With `--json` a command prints what the API would have answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from app.exceptions import GatewayError, InvalidRequest, SettingsError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from app.config import Settings
    from app.container import Container
    from app.embedded import Servers

Body = TypeVar("Body", bound="BaseModel")
Json = Annotated[bool, typer.Option("--json", help="Print what the API would answer.")]
Models = Annotated[list[str] | None, typer.Option("--model", help="A model it may use; repeat for more. Default: all.")]


def register(cli: typer.Typer) -> None:
    """Add the commands to the command line."""
    commands: dict[str, Callable[..., None]] = {
        "sync-expiry": sync_expiry,
        "create-user": create_user,
        "create-key": create_key,
        "list-keys": list_keys,
        "revoke-key": revoke_key,
        "create-app": create_app,
        "list-apps": list_apps,
        "rotate-app-secret": rotate_app_secret,
        "switch-app": switch_app,
        "create-admin": create_admin,
        "erase-user-content": erase_user_content,
        "rotate-secret-key": rotate_secret_key,
        "import-litellm": import_from_litellm,
        "add-model": add_model,
        "add-endpoint": add_endpoint,
    }
    for name, command in commands.items():
        cli.command(name)(command)


# ── Commands ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def sync_expiry(as_json: Json = False) -> None:
    """Block every user whose paid time is over; the gateway does it by itself once a day."""
    from app.domain.identity import payment_day
    from app.models.schemas import BulkExpiryView

    async def run(services: Container) -> None:
        settings, now = services.settings, services.clock.now()
        today = payment_day(now, settings.budget_zone, settings.payment_grace_days)
        expiry = await services.management.users.sync_all_expiries(_actor(), today)
        timestamp = now.replace(tzinfo=None).isoformat(timespec="microseconds")
        view = BulkExpiryView(checked=expiry.checked, expired=len(expiry.expired), timestamp=timestamp)
        _say(view, f"{view.checked} users checked, {view.expired} expired.", as_json)

    _run(run)


def create_user(
    user_oid: Annotated[str, typer.Argument(help="The account's id.")],
    email: Annotated[str | None, typer.Option()] = None,
    name: Annotated[str | None, typer.Option()] = None,
    valid_until: Annotated[str | None, typer.Option(help="The last paid day (2026-12-31). Default: no end.")] = None,
    as_json: Json = False,
) -> None:
    """Register a user: the account that pays."""
    from app.models.schemas import UserCreate, UserView

    until = None if valid_until is None else _day(valid_until)
    body = _checked(UserCreate, user_oid=user_oid, email=email, name=name, payment_valid_until=until)

    async def run(services: Container) -> None:
        row = await services.management.users.create(_actor(), body.spec(services.management.users.defaults))
        _say(UserView.of(row), f"User {row.spec.oid} is registered.", as_json)

    _run(run)


def create_key(
    user_oid: Annotated[str, typer.Argument(help="Whose key it is.")],
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    models: Models = None,
    requests_per_minute: Annotated[int | None, typer.Option(help="Default: the settings'.")] = None,
    monthly_budget_usd: Annotated[str | None, typer.Option(help="A hard limit, such as 10 or 0.50.")] = None,
    as_json: Json = False,
) -> None:
    """Make an API key and print it, once."""
    from app.models.schemas import KeyCreate, KeyCreated

    fields: dict[str, Any] = {"user_oid": user_oid, "name": name, "allowed_models": models or ["*"]}
    if requests_per_minute is not None:
        fields["limits"] = [{"kind": "requests", "limit": requests_per_minute, "window_seconds": 60}]
    if monthly_budget_usd is not None:
        fields["budgets"] = [{"period": "monthly", "hard_limit_usd": monthly_budget_usd}]
    body = _checked(KeyCreate, **fields)

    async def run(services: Container) -> None:
        row, secret = await services.management.keys.create(_actor(), body.spec())
        _say(KeyCreated.with_secret(row, secret, services.clock.now()), secret, as_json)

    _run(run)


def list_keys(
    user_oid: Annotated[str | None, typer.Option(help="Only this user's.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 50,
    as_json: Json = False,
) -> None:
    """The newest keys, one a line: id, prefix, status, owner, name."""
    from app.models.schemas import KeyView
    from app.storage.management_ports import ListQuery

    async def run(services: Container) -> None:
        page = await services.management.keys.page(ListQuery(limit=limit, user_oid=user_oid))
        for row in page.items:
            view = KeyView.of(row, services.clock.now())
            line = f"{view.id}  {view.key_prefix}…{view.last4}  {view.status:8}  {view.user_oid}  {view.name}"
            _say(view, line, as_json)

    _run(run)


def revoke_key(key_id: Annotated[str, typer.Argument(help="As list-keys shows it.")], as_json: Json = False) -> None:
    """Refuse a key from now on, for good."""
    from app.models.schemas import KeyView

    async def run(services: Container) -> None:
        row = await services.management.keys.revoke(_actor(), key_id)
        _say(KeyView.of(row, services.clock.now()), f"Key {row.id} is revoked.", as_json)

    _run(run)


def create_app(
    app_id: Annotated[str, typer.Argument(help="What it sends as X-App-Id.")],
    name: Annotated[str, typer.Option()] = "",
    models: Models = None,
    auto_create_users: Annotated[bool, typer.Option(help="Create users it names for the first time.")] = False,
    own_secret_only: Annotated[bool, typer.Option(help="Do not take GATEWAY_SHARED_SECRET from it.")] = False,
    networks: Annotated[
        list[str] | None, typer.Option("--network", help="An address or network it calls from; repeat for more.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Register an internal application and print its secret, once."""
    from app.models.schemas import AppCreate, AppCreated

    body = _checked(
        AppCreate,
        app_id=app_id,
        name=name,
        allowed_models=models or ["*"],
        auto_create_users=auto_create_users,
        own_secret_only=own_secret_only,
        allowed_networks=networks or [],
    )

    async def run(services: Container) -> None:
        row, secret = await services.management.apps.create(_actor(), body.spec())
        _say(AppCreated.with_secret(row, secret), secret, as_json)

    _run(run)


def list_apps(limit: Annotated[int, typer.Option(min=1, max=200)] = 50, as_json: Json = False) -> None:
    """The newest apps, one a line: id, whether it is active, the end of its newest secret, name."""
    from app.models.schemas import AppView
    from app.storage.management_ports import ListQuery

    async def run(services: Container) -> None:
        for row in (await services.management.apps.page(ListQuery(limit=limit))).items:
            spec = row.spec
            state = "active" if spec.is_active else "inactive"
            _say(AppView.of(row), f"{spec.app_id}  {state:8}  …{row.secret_last4 or ''}  {spec.name}", as_json)

    _run(run)


def rotate_app_secret(
    app_id: Annotated[str, typer.Argument(help="As list-apps shows it.")],
    grace_seconds: Annotated[int, typer.Option(help="How long the old one stays valid.", min=0, max=2_592_000)] = 0,
    as_json: Json = False,
) -> None:
    """Give an app a new secret and print it, once."""
    from app.models.schemas import AppCreated

    async def run(services: Container) -> None:
        row, secret = await services.management.apps.rotate_secret(_actor(), app_id, grace_s=grace_seconds)
        _say(AppCreated.with_secret(row, secret), secret, as_json)

    _run(run)


def switch_app(
    app_id: Annotated[str, typer.Argument(help="As list-apps shows it.")],
    active: Annotated[bool, typer.Option("--on/--off", help="Whether it may call.")],
    as_json: Json = False,
) -> None:
    """Let an app call, or refuse it from now on."""
    from app.models.schemas import AppView

    async def run(services: Container) -> None:
        row = await services.management.apps.patch(_actor(), app_id, {"is_active": active})
        _say(AppView.of(row), f"App {app_id} is {'active' if active else 'inactive'}.", as_json)

    _run(run)


def create_admin(
    name: Annotated[str, typer.Argument(help="Who it is.")],
    role: Annotated[str, typer.Option(help="owner, admin, billing or viewer.")] = "admin",
    as_json: Json = False,
) -> None:
    """Make an administrator and print the token, once."""
    from app.models.schemas import AdminCreate, AdminCreated

    body = _checked(AdminCreate, name=name, role=role)

    async def run(services: Container) -> None:
        row, secret = await services.management.admins.create(_actor(), body.spec())
        _say(AdminCreated.with_secret(row, secret, services.clock.now()), secret, as_json)

    _run(run)


def erase_user_content(
    user_oid: Annotated[str, typer.Argument(help="Whose prompts and answers to delete.")], as_json: Json = False
) -> None:
    """Delete what was kept of a user's prompts and answers; the ledger keeps what the calls cost."""
    from app.routers.management import ErasedView

    async def run(services: Container) -> None:
        erased = await services.call_contents.erase(_actor(), user_oid)
        _say(ErasedView(user_oid=user_oid, erased=erased), f"The content of {erased} calls is erased.", as_json)

    _run(run)


def rotate_secret_key(as_json: Json = False) -> None:
    """Seal all credentials under SECRET_KEY, once every process knows it and SECRET_KEY_PREVIOUS; then tell when that may go."""
    from app.models.schemas import ResealedView

    async def run(services: Container) -> None:
        done = await services.management.secret_key.rotate(_actor())
        lines = [f"Sealed under SECRET_KEY: the credentials of {done.endpoints} endpoints."]
        if done.left_out:
            lines.append(f"Opened by neither key, and so left as they are: {', '.join(done.left_out)}.")
        lines.append(
            f"{done.unused_keys} active keys were not used since: keep SECRET_KEY_PREVIOUS until they were, or are revoked."
            if done.unused_keys
            else "Every active key was used since: SECRET_KEY_PREVIOUS may go, once apps and administrators were here, too."
        )
        _say(ResealedView.of(done), "\n".join(lines), as_json)

    _run(run)


def import_from_litellm(
    config: Annotated[Path, typer.Argument(help="The proxy's config.yaml.", exists=True, dir_okay=False)],
    tables: Annotated[
        list[Path] | None,
        typer.Option(help="An export of its database, JSON or CSV; repeat for more.", exists=True, dir_okay=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be created, and create nothing.")] = False,
    resolve_env: Annotated[
        bool, typer.Option("--resolve-env", help="Take os.environ/… from this process's environment.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Create a LiteLLM proxy's models, endpoints, users, keys, limits and budgets here. To repeat it creates nothing twice."""
    from app.import_litellm.command import import_litellm, planned, told

    plan = planned(config, tables or [], now=datetime.now(UTC), resolves_env=resolve_env)
    failed = 0

    async def run(services: Container) -> None:
        nonlocal failed
        report = await import_litellm(services, plan, is_dry=dry_run)
        failed = report.failed
        typer.echo(told(report, as_json=as_json))

    _run(run)
    if failed:
        raise typer.Exit(1)


def add_model(
    name: Annotated[str, typer.Argument(help="What clients ask for.")],
    aliases: Annotated[list[str] | None, typer.Option("--alias", help="Another name; repeat for more.")] = None,
    strategy: Annotated[str, typer.Option(help="round_robin, least_busy, latency or cost.")] = "round_robin",
    input_usd_per_mtok: Annotated[str | None, typer.Option(help="Default: from the price map.")] = None,
    output_usd_per_mtok: Annotated[str | None, typer.Option()] = None,
    as_json: Json = False,
) -> None:
    """Register a model. It can be called once it has an endpoint (add-endpoint)."""
    from app.models.schemas import ModelCreate, ModelView

    fields: dict[str, Any] = {"name": name, "aliases": aliases or [], "strategy": strategy}
    if input_usd_per_mtok is not None or output_usd_per_mtok is not None:
        fields["price"] = {
            "input_usd_per_mtok": input_usd_per_mtok or "0",
            "output_usd_per_mtok": output_usd_per_mtok or "0",
        }
    body = _checked(ModelCreate, **fields)

    async def run(services: Container) -> None:
        row = await services.management.models.create(_actor(), body.spec())
        _say(ModelView.of(row), f"Model {row.spec.name} is registered.", as_json)

    _run(run)


def add_endpoint(
    model: Annotated[str, typer.Argument(help="The model that it serves.")],
    provider: Annotated[str, typer.Option(help="openai, anthropic, litellm or demo.")] = "openai",
    upstream_model: Annotated[str | None, typer.Option(help="Its name at the provider. Default: the same.")] = None,
    api_base: Annotated[str | None, typer.Option(help="Default: the provider's public address.")] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="UPSTREAM_API_KEY", show_envvar=True, help="The credential; asked for with '-'."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Register an upstream of a model. Its credential is stored encrypted."""
    from app.models.schemas import EndpointCreate, EndpointView

    if api_key == "-":
        api_key = typer.prompt("API key", hide_input=True)
    body = _checked(
        EndpointCreate,
        model=model,
        provider=provider,
        upstream_model=upstream_model,
        api_base=api_base,
        api_key=api_key,
    )

    async def run(services: Container) -> None:
        row = await services.management.endpoints.create(_actor(), body.spec(), body.credential())
        _say(EndpointView.of(row, "closed"), f"Endpoint {row.id} of {row.spec.model} is registered.", as_json)

    _run(run)


# ── Around them ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _actor() -> Any:
    from app.domain.access import Actor, Role

    return Actor("command line", Role.OWNER)


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise InvalidRequest("--valid-until is not a day such as 2026-12-31.") from None


def _checked(shape: type[Body], /, **fields: Any) -> Body:
    """Read the options as the API reads a body. Raises: InvalidRequest with one line for the operator."""
    from pydantic import ValidationError

    from app.models.field_path import path_of

    try:
        return shape.model_validate(fields)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        where = path_of(fault["loc"])
        raise InvalidRequest(f"{where}: {fault['msg'].removeprefix('Value error, ')}.", param=where) from None


def _say(view: BaseModel, line: str, as_json: bool) -> None:
    typer.echo(view.model_dump_json() if as_json else line)


def _run(command: Callable[[Container], Coroutine[Any, Any, None]]) -> None:
    """Run one command with its services. Raises: SettingsError, GatewayError, each one line for the operator."""

    async def with_services(settings: Settings) -> GatewayError | None:
        async with _services(settings) as container:
            try:
                await command(container)
            except GatewayError as error:  # carried out by hand: the task group around would wrap it
                return error
        return None

    with ExitStack() as running:
        refusal = asyncio.run(with_services(_settings(running)))
    if refusal is not None:
        raise refusal


@asynccontextmanager
async def _services(settings: Settings) -> AsyncIterator[Container]:
    from app.main import wire
    from app.storage.migrate import migrate

    process = wire(settings)
    try:
        async with process.stores.redis.pumping():
            await migrate(settings.database_url, lambda line: typer.echo(line, err=True))
            await process.secrets.keys.settle(process.secrets.store)
            yield process.container
    finally:
        await process.stores.engine.dispose()


def _settings(running: ExitStack) -> Settings:
    """The settings as the gateway has them; in embedded mode those of the servers in the data folder."""
    from app.config import export_settings, load_settings, require_cluster_settings
    from app.serve import Secrets

    settings = load_settings()
    if settings.database_url or settings.redis_url:
        require_cluster_settings(settings)
        return settings
    servers = _embedded(settings, running)
    kept = Secrets.of(settings.data_dir)
    export_settings(
        DATABASE_URL=servers.database_url,
        REDIS_URL=servers.redis_url,
        SECRET_KEY=settings.secret_key.get_secret_value() or kept.secret_key,
        ADMIN_TOKEN=settings.admin_token.get_secret_value() or kept.admin_token,
        GATEWAY_EMBEDDED="true",
    )
    return load_settings()


def _embedded(settings: Settings, running: ExitStack) -> Servers:
    """The servers of a gateway that runs on this data folder, or our own for as long as the command takes."""
    from app.embedded import EmbeddedError, EmbeddedServers, running_servers

    try:
        return running_servers(settings.data_dir) or running.enter_context(EmbeddedServers(settings.data_dir))
    except EmbeddedError as error:
        raise SettingsError(str(error)) from None
