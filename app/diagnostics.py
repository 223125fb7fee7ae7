"""The operator's diagnostics: which tables there are, which keys, and why a request with one of them would be refused now.

Each command returns an exit status: 0 all is well, 1 it is not (the reason stands on the last line). No secret is shown.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, tzinfo

from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.clock import SystemClock
from app.config import Settings, load_settings
from app.database import Engine, open_engine
from app.domain.budget import BudgetClaim, BudgetState, budget_claims_for
from app.domain.identity import OID_PATTERN, Identity, PaymentStatus, User, payment_day, require_may_call
from app.domain.limits import Claim, ClaimState, Limit, LimitKind, Scope, TokenNeed, claims_for
from app.domain.money import NanoUsd, nano_to_usd
from app.embedded import EmbeddedError, EmbeddedServers, running_servers
from app.exceptions import DependencyUnavailable, GatewayError, InvalidApiKey, SettingsError
from app.models.tables import SCHEMA_REVISION
from app.services.api_key import digest_of, imported_digest_of, pepper_of
from app.services.manage_imports import IMPORTED_PREFIX
from app.storage.grants import grant_use
from app.storage.migrate import MigrationFailed, is_current, migrate, schema_state
from app.storage.ports import Counters, UsageStore
from app.storage.retention import Retention, keep_partitions
from app.storage.sql_diagnostics import (
    KeyFound,
    key_count,
    key_with_digests,
    key_with_id,
    missing_tables,
    model_names,
    newest_keys,
    table_sizes,
)
from app.storage.sql_identity import SqlKeyStore
from app.storage.sql_partitions import NotTheOwner
from app.storage.sql_usage import SqlUsageStore

SHOWN_KEYS = 200
"""More are a matter for the dashboard, which can search and page."""

ONE_TOKEN = TokenNeed(prompt=1, most=0, floor=0, is_elastic=False)
"""The least that a request can ask of a limit on tokens."""


# ── Commands ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def create_missing_tables(*, grant_to: str | None = None) -> int:
    """Bring the database's schema up to date, and let another role use it."""

    async def run(target: Target, console: Console) -> int:
        did = await migrate(target.database_url, console.print)
        if not did:
            console.print("Nothing to do: the schema is up to date.")
        async with engine_of(target) as engine:
            await keep_partitions(engine, _retention(target), datetime.now(UTC))
            if grant_to is not None:
                try:
                    await grant_use(engine, grant_to)
                except ValueError as error:
                    console.print(str(error))
                    return 1
                console.print(f"The role {grant_to} may use the tables.")
        return 0

    return command_over(run)


def maintain() -> int:
    """Make the months to come and drop those that are over."""

    async def run(target: Target, console: Console) -> int:
        async with engine_of(target) as engine:
            try:
                made, dropped = await keep_partitions(engine, _retention(target), datetime.now(UTC))
            except NotTheOwner:
                console.print("This role does not own the tables: use the URL of the one that does.")
                return 1
        console.print(f"Made: {', '.join(made) or 'nothing'}. Dropped: {', '.join(dropped) or 'nothing'}.")
        return 0

    return command_over(run)


def list_tables() -> int:
    """Show every table with its rows and size, and the state of the schema."""

    async def run(target: Target, console: Console) -> int:
        async with engine_of(target) as engine:
            return await print_tables(engine, console)

    return command_over(run)


def diagnose_keys(
    *, key: str | None = None, key_id: str | None = None, app_id: str | None = None, user_oid: str | None = None
) -> int:
    """Show keys (one, or the newest), or an app that calls for a user, with what they may and why they would be refused now."""

    async def run(target: Target, console: Console) -> int:
        async with engine_of(target) as engine, _counters(target) as counters:
            question = Question(engine, SqlUsageStore(engine), counters, target, datetime.now(target.zone))
            if app_id is not None:
                return await print_app(question, app_id, user_oid or "", console)
            if key is not None:
                return await print_key_of(question, key, console)
            if key_id is not None:
                return await print_one_key(question, await key_with_id(engine, key_id), console)
            return await print_keys(question, console)

    return command_over(run)


def _retention(target: Target) -> Retention:
    return Retention(target.settings.log_retention_days, target.settings.ledger_retention_days)


@dataclass(frozen=True, slots=True)
class Target:
    """What is diagnosed: the stores of this gateway, and the settings that decide about requests."""

    database_url: str
    redis_url: str
    secret_key: str
    settings: Settings

    @property
    def zone(self) -> tzinfo:
        return self.settings.budget_zone

    @property
    def peppers(self) -> list[bytes]:
        """What digests may stand under: the present one's first, then that of `SECRET_KEY_PREVIOUS`."""
        previous = self.settings.secret_key_previous.get_secret_value()
        return [pepper_of(each) for each in (self.secret_key, previous) if each]

    @property
    def default_limits(self) -> tuple[Limit, ...]:
        """The limits of keys without their own."""
        requests, tokens = self.settings.rate_limit_requests_per_minute, self.settings.rate_limit_tokens_per_minute
        limits = ((LimitKind.REQUESTS, requests), (LimitKind.TOKENS, tokens))
        return tuple(Limit(kind, limit, 60) for kind, limit in limits if limit)


# ── Tables ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def print_tables(engine: Engine, console: Console) -> int:
    state, sizes = await schema_state(engine), await table_sizes(engine)
    shown = Table("table", box=None, pad_edge=False)
    for heading in ("rows", "size", "partitions"):
        shown.add_column(heading, justify="right")
    for size in sizes:
        rows = f"{'~' if size.is_estimate else ''}{size.rows:,}"
        shown.add_row(size.name, rows, _bytes(size.size_bytes), str(size.partitions or ""))
    console.print(shown)
    missing = missing_tables(sizes)
    if missing:
        console.print(f"Missing: {', '.join(missing)}.")
    if not is_current(state) or missing:
        console.print(
            f"Schema: {state or 'never migrated'}, this version needs {SCHEMA_REVISION}. "
            "Run `python create_missing_tables.py`."
        )
        return 1
    newer = " (this version's own is " + SCHEMA_REVISION + ")" if state != SCHEMA_REVISION else ""
    console.print(f"Schema: {state}, up to date{newer}.")
    return 0


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1_000:
            return f"{size:.0f} {unit}"
        size /= 1_000
    return f"{size:,.1f} TB"


# ── Keys ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about keys, and of whom. Without counters only what SQL knows is answered."""

    engine: Engine
    usage: UsageStore
    counters: Counters | None
    target: Target
    now: datetime

    @property
    def payment_day(self) -> date:
        return payment_day(self.now, self.target.zone, self.target.settings.payment_grace_days)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    found: KeyFound
    limits: list[tuple[Claim, ClaimState | None]]
    budgets: list[tuple[BudgetClaim, NanoUsd, BudgetState | None]]
    """Each with what the ledger says was spent in its current period, and the counter's state where there is one."""
    refusals: list[str]
    notes: list[str]


async def diagnose(question: Question, found: KeyFound) -> Diagnosis:
    """Everything that would refuse a request with this key now, in the order in which a request meets it."""
    identity = found.identity
    claims, budgets = _claims(question, identity)
    notes: list[str] = []
    limit_states: Sequence[ClaimState | None] = [None] * len(claims)
    budget_states: Sequence[BudgetState | None] = [None] * len(budgets)
    if question.counters is None:
        notes.append("Limits used up now are not shown: there is no REDIS_URL to ask.")
    else:
        try:
            limit_states = await question.counters.limit_states(claims)
            budget_states = await question.counters.budget_states(budgets)
        except DependencyUnavailable as error:
            notes.append(f"Limits used up now are not shown: {error.message}")
    spent = [await question.usage.spent(claim) for claim in budgets]
    held = list(zip(budgets, spent, budget_states, strict=True))
    limits = list(zip(claims, limit_states, strict=True))
    if identity.allowed_networks:
        networks = ", ".join(str(network) for network in identity.allowed_networks)
        notes.append(f"Requests from elsewhere than {networks} are refused. (403 ip_not_allowed)")
    refusals = [
        *_refused_as_imported(found, question),
        *_refused_as_such(identity, question),
        *_refused_every_model(identity, await model_names(question.engine)),
        *(_used_up(claim, state) for claim, state in limits if _is_used_up(claim, state)),
        *filter(None, (_cannot_pay(*budget) for budget in held)),
    ]
    return Diagnosis(found, limits, held, refusals, notes)


def _claims(question: Question, identity: Identity) -> tuple[list[Claim], list[BudgetClaim]]:
    user, key, app = identity.user, identity.key, identity.app
    claims = claims_for(Scope.USER, user.oid, user.limits, need=ONE_TOKEN)
    holders = [(Scope.USER, user.oid, user.budgets)]
    if key is not None:
        own = question.target.default_limits if key.limits is None else key.limits
        claims += claims_for(Scope.KEY, key.id, own, need=ONE_TOKEN)
        holders.append((Scope.KEY, key.id, key.budgets))
    if app is not None:
        claims += claims_for(Scope.APP, app.id, app.limits, need=ONE_TOKEN)
        holders.append((Scope.APP, app.id, app.budgets))
    budgets = [
        claim
        for scope, holder, held in holders
        for claim in budget_claims_for(
            scope, holder, held, worst_case=NanoUsd(0), now=question.now, zone=question.target.zone
        )
    ]
    return claims, budgets


def _refused_as_imported(found: KeyFound, question: Question) -> Iterator[str]:
    if found.prefix == IMPORTED_PREFIX and not question.target.settings.accept_litellm_keys:
        yield "It was imported, and imported keys are refused unless ACCEPT_LITELLM_KEYS=true. (401 invalid_api_key)"


def _refused_as_such(identity: Identity, question: Question) -> Iterator[str]:
    networks = identity.allowed_networks
    address = str(networks[0].network_address) if networks else None
    try:
        require_may_call(identity, now=question.now, today=question.payment_day, address=address)
    except InvalidApiKey as error:
        is_revoked = identity.key is not None and identity.key.status == "revoked"
        yield f"The key {'is revoked' if is_revoked else 'has expired'}. ({error.status} {error.code})"
    except GatewayError as error:
        yield f"{error.message} ({error.status} {error.code})"


def _refused_every_model(identity: Identity, models: list[tuple[str, tuple[str, ...]]]) -> Iterator[str]:
    if not models:
        yield "No model is registered. (404 model_not_found)"
    elif not any(identity.may_use(name) for model, aliases in models for name in (model, *aliases)):
        yield "None of the registered models is allowed for this key. (403 model_not_allowed)"


def _is_used_up(claim: Claim, state: ClaimState | None) -> bool:
    return claim.limit.limit == 0 or (state is not None and state.remaining < claim.amount)


def _used_up(claim: Claim, state: ClaimState | None) -> str:
    when = f"; all of it is free again in {state.reset_ms / 1000:.0f} s" if state is not None and state.reset_ms else ""
    return f"The {claim.scope}'s limit of {_limit(claim.limit)} is used up{when}. (429 rate_limit_exceeded)"


def _cannot_pay(claim: BudgetClaim, in_ledger: NanoUsd, state: BudgetState | None) -> str | None:
    hard = claim.budget.hard_limit_nanousd
    spent = max(in_ledger, state.spent_nanousd) if state else in_ledger
    if hard is None:
        return None
    if spent >= hard:
        return f"The {claim.scope}'s {claim.budget.period} budget of {_usd(hard)} is spent. (402 budget_exceeded)"
    if state is not None and state.remaining_nanousd == 0:
        return f"The rest of the {claim.scope}'s {claim.budget.period} budget is reserved by running calls. (429)"
    return None


async def print_keys(question: Question, console: Console) -> int:
    found, count = await newest_keys(question.engine, limit=SHOWN_KEYS), await key_count(question.engine)
    shown = Table("key", "id", "name", "owner", "limits", "budgets", "now", box=None, pad_edge=False, expand=False)
    notes: dict[str, None] = {}
    for diagnosis in [await diagnose(question, key) for key in found]:
        notes.update(dict.fromkeys(note for note in diagnosis.notes if "not shown" in note))
        shown.add_row(*map(Text, _row(diagnosis)))
    console.print(shown if found else "There are no keys.")
    if count > len(found):
        console.print(f"These are the newest {len(found)} of {count:,} keys. For another one: --id or --key.")
    for note in notes:
        console.print(note)
    return 0


def _row(diagnosis: Diagnosis) -> tuple[str, ...]:
    identity = diagnosis.found.identity
    key = identity.key
    owner = f"{identity.user.oid} ({identity.user.payment_status})"
    limits = [_limit(claim.limit) for claim, _ in diagnosis.limits] or ["none"]
    budgets = [f"{claim.budget.period}: {_of_budget(claim, spent)}" for claim, spent, _ in diagnosis.budgets]
    return (
        diagnosis.found.shown_as,
        key.id if key else "",
        diagnosis.found.name,
        owner,
        "\n".join(limits),
        "\n".join(budgets) or "none",
        diagnosis.refusals[0] if diagnosis.refusals else "would be served",
    )


async def print_app(question: Question, app_id: str, user_oid: str, console: Console) -> int:
    """An app, and what a call of it for this user would meet; the secret is shown to nobody, so it is taken for right."""
    target = question.target
    store = SqlKeyStore(question.engine, clock=SystemClock(), zone=target.zone)
    found = await store.registered_app(app_id, user_oid)
    if found is None:
        console.print("There is no such app. (401 invalid_api_key)")
        return 1
    secrets = [each for each in found.secrets if each.ends_at is None or each.ends_at > question.now]
    shared = bool(target.settings.gateway_shared_secret.get_secret_value()) and not found.own_secret_only
    taken = f"{len(secrets)} of its own{' and GATEWAY_SHARED_SECRET' if shared else ''}"
    console.print(
        Text(f"App {app_id}: {'active' if found.app.is_active else 'inactive'}; secrets that it takes: {taken}.")
    )
    if not secrets and not shared:
        console.print("Every secret would be refused: rotate it. (401 invalid_api_key)")
    if found.user is None:
        console.print(Text(_of_unknown_user(user_oid, may_create=found.may_create_users)))
    user = found.user or User(user_oid or "(any)", PaymentStatus.ACTIVE, None)
    as_called = KeyFound(Identity(user, app=found.app), app_id, f"app {app_id} for", None, None)
    return await print_one_key(question, as_called, console)


def _of_unknown_user(user_oid: str, *, may_create: bool) -> str:
    if not user_oid:
        return "No user is named (--user): what follows is true of one who is active and has no limits."
    if not OID_PATTERN.fullmatch(user_oid):
        return "This user's id is malformed: 1 to 200 visible ASCII characters without spaces. (400 invalid_request)"
    if may_create:
        return f"There is no user {user_oid} yet: the first call creates one."
    return f"There is no user {user_oid}, and the app may not create users. (403 user_unknown)"


async def print_key_of(question: Question, secret: str, console: Console) -> int:
    """The key with this secret: issued here or imported, its digest under the present `SECRET_KEY` or the one before."""
    target = question.target
    if not target.secret_key:
        console.print("SECRET_KEY is not set, and without it no key can be recognised. Use --id.")
        return 1
    found = [digest_of(secret, pepper) or imported_digest_of(secret, pepper) for pepper in target.peppers]
    digests = [digest for digest in found if digest is not None]
    if not digests:
        console.print("This is not a key of this gateway: its form or its checksum is wrong. (401)")
        return 1
    return await print_one_key(question, await key_with_digests(question.engine, digests), console)


async def print_one_key(question: Question, found: KeyFound | None, console: Console) -> int:
    if found is None:
        console.print("There is no such key. (401 invalid_api_key)")
        return 1
    diagnosis = await diagnose(question, found)
    shown = Table.grid(padding=(0, 2))
    for name, value in _facts(diagnosis):
        shown.add_row(name, Text(value))
    console.print(shown)
    if diagnosis.refusals:
        console.print(f"A request with this {_credential(found)} would be refused now:")
        for refusal in diagnosis.refusals:
            console.print(Text(f"  - {refusal}"))
    else:
        console.print(f"A request with this {_credential(found)} would be served now.")
    for note in diagnosis.notes:
        console.print(Text(note))
    return 0


def _credential(found: KeyFound) -> str:
    return "app" if found.identity.app is not None else "key"


def _facts(diagnosis: Diagnosis) -> Iterator[tuple[str, str]]:
    found, user, key = diagnosis.found, diagnosis.found.identity.user, diagnosis.found.identity.key
    app = found.identity.app
    if app is not None:
        yield "app", f"{app.id}, {'active' if app.is_active else 'inactive'}"
        yield "models", ", ".join(sorted(app.allowed_models)) or "none"
    else:
        yield "key", f"{found.shown_as} {found.name}".rstrip()
    if key is not None:
        yield "id", key.id
        yield "status", f"{key.status}, {f'expires {_time(key.expires_at)}' if key.expires_at else 'no end'}"
        yield "models", ", ".join(sorted(key.allowed_models)) or "none"
        yield "overflow", str(key.overflow.mode)
        yield "last used", _time(found.last_used_at) if found.last_used_at else "never"
    yield "owner", f"{user.oid} {found.email or ''}".rstrip()
    until = f"paid until {user.payment_valid_until}" if user.payment_valid_until else "no end"
    yield "payment", f"{user.payment_status}, {until}"
    for claim, state in diagnosis.limits:
        left = f", {state.remaining} left" if state is not None else ""
        default = " (default)" if key and key.limits is None and claim.scope is Scope.KEY else ""
        yield f"{claim.scope} limit", f"{_limit(claim.limit)}{default}{left}"
    for budget, spent, held in diagnosis.budgets:
        reserved = f", {_usd(held.reserved_nanousd)} reserved" if held is not None else ""
        yield f"{budget.scope} budget", f"{budget.period.name}: {_of_budget(budget, spent)}{reserved}"


def _limit(limit: Limit) -> str:
    if limit.kind is LimitKind.CONCURRENCY:
        return f"{limit.limit} calls at once"
    return f"{limit.limit} {limit.kind} per {limit.window_s} s"


def _of_budget(claim: BudgetClaim, spent: NanoUsd) -> str:
    hard, soft = claim.budget.hard_limit_nanousd, claim.budget.soft_limit_nanousd
    if hard is None:
        return f"{_usd(spent)} spent" + (f", warning at {_usd(soft)}" if soft is not None else "")
    return f"{_usd(spent)} of {_usd(hard)} spent"


def _usd(amount: int) -> str:
    return f"${nano_to_usd(amount).rstrip('0').rstrip('.')}"


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M UTC")


# ── Where the stores are ──────────────────────────────────────────────────────────────────────────────────────────────


def command_over(run: Callable[[Target, Console], Awaitable[int]]) -> int:
    """Find the stores, run, and turn what an operator can mend into one line."""
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())

    async def awaited(target: Target) -> int:
        return await run(target, console)

    try:
        with _target() as target:
            return asyncio.run(awaited(target))
    except (SettingsError, EmbeddedError, MigrationFailed) as error:
        console.print(Text(str(error)))
    except DependencyUnavailable as error:
        console.print(Text(f"{error.message} Is it running, and is DATABASE_URL right?"))
    except KeyboardInterrupt:
        return 130
    return 1


@contextmanager
def _target() -> Iterator[Target]:
    """The stores that the settings name, otherwise those of the data folder: of the gateway that runs there, or started
    for as long as this takes. Raises: SettingsError, EmbeddedError."""
    settings = load_settings()
    secret_key = settings.secret_key.get_secret_value()
    if settings.database_url:
        yield Target(settings.database_url, settings.redis_url, secret_key, settings)
        return
    if not (settings.data_dir / "postgres").is_dir():
        raise SettingsError(
            "DATABASE_URL is not set. Set it (for example postgresql://gateway:PASSWORD@localhost:5432/gateway), or start "
            f"the gateway once with `python -m app serve`, which keeps its own database in {settings.data_dir}/."
        )
    from app.serve import Secrets

    secret_key = secret_key or Secrets.of(settings.data_dir).secret_key
    running = running_servers(settings.data_dir)
    if running is not None:
        yield Target(_normal(running.database_url), running.redis_url, secret_key, settings)
        return
    with EmbeddedServers(settings.data_dir, on_progress=lambda _line: None) as started:
        yield Target(_normal(started.database_url), started.redis_url, secret_key, settings)


def _normal(database_url: str) -> str:
    return database_url.replace("postgresql://", "postgresql+asyncpg://", 1)


@asynccontextmanager
async def engine_of(target: Target) -> AsyncIterator[Engine]:
    engine = open_engine(target.database_url, pool_size=1)
    try:
        yield engine
    finally:
        await engine.dispose()


@asynccontextmanager
async def _counters(target: Target) -> AsyncIterator[Counters | None]:
    if not target.redis_url:
        yield None
        return
    from app.redis_client import open_redis
    from app.storage.redis_counters import RedisCounters

    settings = target.settings
    redis = open_redis(target.redis_url, timeout_ms=settings.redis_timeout_ms, is_cluster=settings.redis_cluster)
    async with redis.pumping():
        yield RedisCounters(redis)
