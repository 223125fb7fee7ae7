"""Commands on what can be called: models, their prices, and the endpoints that serve them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, TypedDict

from app.domain.access import Actor
from app.domain.breaker import BreakerRules
from app.domain.budget import Budget
from app.domain.catalog import HealthCheck, ProviderKind, Shadow, Sticky, Strategy, Timeouts
from app.domain.egress import EgressPolicy, checked_url, host_of
from app.domain.limits import Limit
from app.domain.pricing import Price
from app.exceptions import Conflict, InUse, InvalidRequest
from app.services.command import (
    ANY_VERSION,
    Command,
    Commands,
    Expected,
    Part,
    missing,
    new_id,
    patched,
    require_version,
)
from app.services.management_rules import (
    require_budgets,
    require_limits,
    require_model_name,
    require_no_fallback_cycle,
    require_price,
    require_text,
    require_texts,
)
from app.storage.management_ports import (
    EndpointRow,
    EndpointSpec,
    ListQuery,
    ManagementReader,
    ModelRow,
    ModelSpec,
    Page,
    SealedCredential,
    Sealer,
)

PUBLIC_BASES: Final = {
    ProviderKind.OPENAI: "https://api.openai.com/v1",
    ProviderKind.ANTHROPIC: "https://api.anthropic.com/v1",
}
"""Where a native provider lives when the administrator names no address."""

MAX_CREDENTIAL_LENGTH: Final = 20_000
"""Service-account files of some clouds are credentials of several kilobytes."""
SHORTEST_SHOWN: Final = 8
"""Of a shorter credential, four characters would be most of it."""


# ── Models ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class ModelChanges(TypedDict, total=False):
    aliases: tuple[str, ...]
    strategy: Strategy
    fallbacks: tuple[str, ...]
    sticky: Sticky | None
    max_retries: int | None
    shadow: Shadow | None
    context_window: int | None
    max_output_tokens: int | None
    price: Price | None
    limits: tuple[Limit, ...]
    budgets: tuple[Budget, ...]


@dataclass(frozen=True, slots=True)
class ModelCommands:
    commands: Commands

    async def get(self, name: str) -> ModelRow:
        async with self.commands.reading() as reader:
            return await existing_model(reader, name, "name")

    async def page(self, query: ListQuery) -> Page[ModelRow]:
        async with self.commands.reading() as reader:
            return await reader.models(query)

    async def create(self, actor: Actor, spec: ModelSpec) -> ModelRow:
        async with self.commands.opened(actor) as command:
            names = await command.tx.models_behind(_names_in(spec))
            if spec.name in names:
                raise Conflict(f"The name '{spec.name[:100]}' is taken already.", param="name")
            _require_valid_model(spec, names)
            require_no_fallback_cycle(spec.name, spec.fallbacks, await command.tx.fallbacks_of_models())
            await command.tx.insert_model(spec, command.now)
            # Prices outlive their model: what one of this name cost before it was deleted is no price of this one.
            left = await existing_model(command.tx, spec.name, "name")
            await _store_price(command, spec.name, None, old=left.spec.price, new=spec.price)
            await command.audit("model.create", spec.name, after=spec)
            await command.announce("catalog", spec.name)
            return ModelRow(spec, 0, command.now, command.now)

    async def patch(
        self, actor: Actor, name: str, changes: ModelChanges, *, expected: Expected = ANY_VERSION
    ) -> ModelRow:
        async with self.commands.opened(actor) as command:
            row = await existing_model(command.tx, name, "name")
            require_version(row.spec, expected)
            spec = replace(row.spec, **changes)
            _require_valid_model(spec, await command.tx.models_behind(_names_in(spec)))
            require_no_fallback_cycle(spec.name, spec.fallbacks, await command.tx.fallbacks_of_models())
            await command.tx.update_model(spec, command.now)
            await _store_price(command, name, None, old=row.spec.price, new=spec.price)
            await command.audit("model.update", name, before=row.spec, after=spec)
            await command.announce("catalog", name)
            return replace(row, spec=spec, updated_at=command.now)

    async def delete(self, actor: Actor, name: str, *, force: bool, expected: Expected = ANY_VERSION) -> None:
        """Delete a model, its endpoints with it. Refused (`in_use`) while something uses it, unless forced."""
        async with self.commands.opened(actor) as command:
            row = await existing_model(command.tx, name, "name")
            require_version(row.spec, expected)
            served_by = await command.tx.endpoints_of(name)
            fallback_of = await command.tx.models_falling_back_to(name)
            shadow_of = await command.tx.models_shadowed_by(name)
            overflow_of = await command.tx.keys_overflowing_to(name)
            if not force and (served_by or fallback_of or shadow_of or overflow_of):
                raise InUse(_uses_of_model(name, served_by, fallback_of, shadow_of, overflow_of), param="name")
            await command.tx.delete_model(name)
            gone = {"model": row.spec, "endpoints": [each.spec for each in served_by], "fallback_of": fallback_of}
            gone["shadow_of"] = shadow_of
            await command.audit("model.delete", name, before=gone)
            await command.announce_all("catalog", [*dict.fromkeys(fallback_of + shadow_of), name])


async def existing_model(reader: ManagementReader, name: str, param: str) -> ModelRow:
    row = await reader.model(name)
    if row is None:
        raise missing("model", param)
    return row


def _uses_of_model(
    name: str, served_by: list[EndpointRow], fallback_of: list[str], shadow_of: list[str], overflow_of: list[str]
) -> str:
    uses = [f"endpoint {each.id}" for each in served_by] + [f"the fallbacks of '{each}'" for each in fallback_of]
    uses += [f"the shadow of '{each}'" for each in shadow_of] + [f"the overflow of key {each}" for each in overflow_of]
    shown = ", ".join(uses[:10]) + (", …" if len(uses) > 10 else "")
    return f"The model '{name}' is in use by {shown}. Delete these first, or repeat with ?force=true."


def _names_in(spec: ModelSpec) -> list[str]:
    """Every name that a model goes by or leads to."""
    shadows = () if spec.shadow is None else (spec.shadow.model,)
    return [spec.name, *spec.aliases, *spec.fallbacks, *shadows]


def _require_valid_model(spec: ModelSpec, names: dict[str, str]) -> None:
    require_model_name(spec.name, "name")
    require_texts(spec.aliases, "aliases")
    require_texts(spec.fallbacks, "fallbacks")
    for index, alias in enumerate(spec.aliases):
        require_model_name(alias, f"aliases[{index}]")
        if alias == spec.name or names.get(alias, spec.name) != spec.name:
            raise Conflict(f"The alias '{alias[:100]}' is taken already.", param=f"aliases[{index}]")
    for index, fallback in enumerate(spec.fallbacks):
        if names.get(fallback) != fallback or fallback == spec.name:
            raise InvalidRequest(
                f"'fallbacks[{index}]': there is no other model '{fallback[:100]}'.", param=f"fallbacks[{index}]"
            )
    shadow = spec.shadow
    if shadow is not None and (names.get(shadow.model) != shadow.model or shadow.model == spec.name):
        raise InvalidRequest(f"'shadow.model': there is no other model '{shadow.model[:100]}'.", param="shadow.model")
    require_limits(spec.limits)
    require_budgets(spec.budgets)
    require_price(spec.price)


async def _store_price(
    command: Command, model: str, endpoint_id: str | None, *, old: Price | None, new: Price | None
) -> None:
    """Add a row to the history when the price differs; rows are never changed, so no past record's price is."""
    if (old and replace(old, id="")) != (new and replace(new, id="")):
        await command.tx.add_price(new_id(), model, endpoint_id, new, command.now)


# ── Endpoints ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class EndpointChanges(TypedDict, total=False):
    provider: ProviderKind
    upstream_model: str
    api_base: str
    weight: int
    priority: int
    max_concurrency: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    timeouts: Timeouts | Part
    health_check: HealthCheck | Part
    breaker: BreakerRules | Part
    price: Price | None


@dataclass(frozen=True, slots=True)
class NewCredential:
    """A credential as it arrives with a command; None inside takes the stored one away."""

    secret: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class EndpointCommands:
    commands: Commands
    sealer: Sealer
    egress: EgressPolicy

    async def get(self, endpoint_id: str) -> EndpointRow:
        async with self.commands.reading() as reader:
            return await existing_endpoint(reader, endpoint_id)

    async def page(self, query: ListQuery) -> Page[EndpointRow]:
        async with self.commands.reading() as reader:
            return await reader.endpoints(query)

    async def create(self, actor: Actor, spec: EndpointSpec, credential: NewCredential) -> EndpointRow:
        spec = self.checked(spec)
        endpoint_id = new_id()
        sealed = self._sealed(endpoint_id, spec, credential)
        async with self.commands.opened(actor) as command:
            await existing_model(command.tx, spec.model, "model")
            _require_some_weight(spec, await command.tx.endpoints_of(spec.model))
            await command.tx.insert_endpoint(endpoint_id, spec, sealed, command.now)
            await _store_price(command, spec.model, endpoint_id, old=None, new=spec.price)
            after = {"endpoint": spec, "credential": _shown(sealed)}
            await command.audit("endpoint.create", endpoint_id, after=after)
            await command.announce("catalog", endpoint_id)
            return EndpointRow(endpoint_id, spec, _shown(sealed), command.now, command.now)

    async def patch(
        self,
        actor: Actor,
        endpoint_id: str,
        changes: EndpointChanges,
        credential: NewCredential | None = None,
        *,
        expected: Expected = ANY_VERSION,
    ) -> EndpointRow:
        """Change an endpoint. Its stored credential goes only to the host it was given for: another host needs it anew."""
        async with self.commands.opened(actor) as command:
            row = await existing_endpoint(command.tx, endpoint_id)
            require_version(row.spec, expected)
            spec = self.checked(patched(row.spec, changes))
            has_credential = row.credential_last4 is not None
            if credential is None and has_credential and not _goes_to_same_place(row.spec, spec):
                raise InvalidRequest("Another host needs its api_key: send 'api_key' along.", param="api_key")
            others = [each for each in await command.tx.endpoints_of(spec.model) if each.id != endpoint_id]
            _require_some_weight(spec, others)
            await command.tx.update_endpoint(endpoint_id, spec, command.now)
            last4 = row.credential_last4
            if credential is not None:
                sealed = self._sealed(endpoint_id, spec, credential)
                await command.tx.set_endpoint_credential(endpoint_id, sealed)
                last4 = _shown(sealed)
            await _store_price(command, spec.model, endpoint_id, old=row.spec.price, new=spec.price)
            before = {"endpoint": row.spec, "credential": row.credential_last4}
            await command.audit(
                "endpoint.update", endpoint_id, before=before, after={"endpoint": spec, "credential": last4}
            )
            await command.announce("catalog", endpoint_id)
            return replace(row, spec=spec, credential_last4=last4, updated_at=command.now)

    async def drain(self, actor: Actor, endpoint_id: str, *, draining: bool) -> EndpointRow:
        """Send no new calls to the endpoint (or again); calls in flight finish."""
        async with self.commands.opened(actor) as command:
            row = await existing_endpoint(command.tx, endpoint_id)
            if row.spec.is_draining == draining:
                return row
            spec = replace(row.spec, is_draining=draining)
            await command.tx.update_endpoint(endpoint_id, spec, command.now)
            before, after = {"is_draining": not draining}, {"is_draining": draining}
            await command.audit("endpoint.drain", endpoint_id, before=before, after=after)
            await command.announce("catalog", endpoint_id)
            return replace(row, spec=spec, updated_at=command.now)

    async def reset(self, actor: Actor, endpoint_id: str) -> EndpointRow:
        """Write down that somebody had the endpoint's failures forgotten. Nothing that is configured changes."""
        async with self.commands.opened(actor) as command:
            row = await existing_endpoint(command.tx, endpoint_id)
            await command.audit("endpoint.reset", endpoint_id)
            return row

    async def delete(self, actor: Actor, endpoint_id: str, *, force: bool, expected: Expected = ANY_VERSION) -> None:
        """Delete an endpoint. Refused (`in_use`) when its model has no other, unless forced."""
        async with self.commands.opened(actor) as command:
            row = await existing_endpoint(command.tx, endpoint_id)
            require_version(row.spec, expected)
            if not force and len(await command.tx.endpoints_of(row.spec.model)) == 1:
                raise InUse(
                    f"This is the last endpoint of the model '{row.spec.model}'. Add another one first, or repeat with "
                    "?force=true.",
                    param="id",
                )
            await command.tx.delete_endpoint(endpoint_id)
            await command.audit("endpoint.delete", endpoint_id, before=row.spec)
            await command.announce("catalog", endpoint_id)

    def checked(self, spec: EndpointSpec) -> EndpointSpec:
        """The spec as it would be stored. Raises: InvalidRequest."""
        require_model_name(spec.upstream_model, "upstream_model")
        require_price(spec.price)
        if spec.provider is ProviderKind.DEMO:
            if spec.api_base:
                raise InvalidRequest("'api_base' has no meaning for the provider 'demo'.", param="api_base")
            return spec
        base = spec.api_base or PUBLIC_BASES.get(spec.provider, "")
        return replace(spec, api_base=checked_url(base, self.egress).text if base else "")

    def _sealed(self, endpoint_id: str, spec: EndpointSpec, credential: NewCredential) -> SealedCredential | None:
        secret = credential.secret
        if not secret:
            return None
        require_text(secret, "api_key", max_length=MAX_CREDENTIAL_LENGTH)
        sealed = self.sealer.seal(secret, endpoint_id=endpoint_id, host=host_of(spec.api_base))
        return SealedCredential(sealed, secret[-4:] if len(secret) >= SHORTEST_SHOWN else "")


async def existing_endpoint(reader: ManagementReader, endpoint_id: str) -> EndpointRow:
    row = await reader.endpoint(endpoint_id)
    if row is None:
        raise missing("endpoint", "id")
    return row


def _require_some_weight(spec: EndpointSpec, others: list[EndpointRow]) -> None:
    if not spec.weight and not any(other.spec.weight for other in others):
        raise InvalidRequest(
            f"'weight' may not be 0: no endpoint of the model '{spec.model[:100]}' would have any.", param="weight"
        )


def _goes_to_same_place(old: EndpointSpec, new: EndpointSpec) -> bool:
    """The same host, and not in clear where it was encrypted before."""
    is_downgraded = old.api_base.startswith("https:") and new.api_base.startswith("http:")
    return host_of(old.api_base) == host_of(new.api_base) and not is_downgraded


def _shown(credential: SealedCredential | None) -> str | None:
    return None if credential is None else credential.last4
