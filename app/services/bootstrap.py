"""The first start: a model to call, and in the embedded default a key to call it with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from app.domain.access import Actor, Role
from app.domain.catalog import ProviderKind
from app.domain.money import PicoUsd
from app.domain.pricing import Price, Rates
from app.exceptions import Conflict, NotFound
from app.services.manage_catalog import EndpointChanges, NewCredential
from app.services.management import Management
from app.storage.management_ports import EndpointSpec, KeySpec, ListQuery, ModelSpec, UserSpec

DEMO_MODEL: Final = "demo"
DEMO_USER: Final = "demo"
FREE: Final = Price("", Rates(input=PicoUsd(0), output=PicoUsd(0)))
"""What runs on this machine costs nobody anything; without a price, hard budgets would refuse it."""
_ACTOR: Final = Actor("first start", Role.OWNER)


@dataclass(frozen=True, slots=True)
class FirstModel:
    """What the settings say about the first model (`DEFAULT_MODEL`, `LLM_API_KEY`, `LLM_API_BASE`)."""

    name: str
    api_base: str
    api_key: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Bootstrapped:
    """What the first start made; all None on any later one."""

    model: str | None = None
    demo_key: str | None = field(default=None, repr=False)
    """For the banner, which shows it once: only its digest is stored."""


async def bootstrap(management: Management, first: FirstModel, *, is_embedded: bool) -> Bootstrapped:
    """Register a model when there is none, and in embedded mode make a demo user with a key when there is no user.

    Safe to call at every start and from every process: each step looks first, and the loser of a race finds it done.

    Raises: InvalidRequest when `LLM_API_BASE` is not an address that the gateway may connect to.
    """
    model = await _first_model(management, first)
    demo_key = await _demo_key(management) if is_embedded else None
    return Bootstrapped(model, demo_key)


async def _first_model(management: Management, first: FirstModel) -> str | None:
    if (await management.models.page(ListQuery(limit=1))).items:
        return None
    name = first.name if first.api_key else DEMO_MODEL
    if first.api_key:
        endpoint = EndpointSpec(name, ProviderKind.OPENAI, upstream_model=name, api_base=first.api_base)
    else:
        endpoint = EndpointSpec(name, ProviderKind.DEMO, upstream_model=DEMO_MODEL)
    management.endpoints.checked(endpoint)  # before the model, which would stay behind without an endpoint
    try:
        await management.models.create(_ACTOR, ModelSpec(name, price=None if first.api_key else FREE))
    except Conflict:
        return None
    await management.endpoints.create(_ACTOR, endpoint, NewCredential(first.api_key))
    return name


async def _demo_key(management: Management) -> str | None:
    if (await management.users.page(ListQuery(limit=1))).items:
        return None
    try:
        await management.users.create(_ACTOR, UserSpec(DEMO_USER, name="Demo"))
    except Conflict:
        return None
    _, secret = await management.keys.create(_ACTOR, KeySpec(DEMO_USER, name="demo"))
    return secret


async def register_demo_server(management: Management, model: str, api_base: str, api_key: str) -> None:
    """Register the language model that runs beside the gateway; on a later start, where it answers now."""
    credential = NewCredential(api_key)
    try:
        await management.models.get(model)
    except NotFound:
        await management.models.create(_ACTOR, ModelSpec(model, price=FREE))
    known = (await management.endpoints.page(ListQuery(limit=1, model=model))).items
    if known:
        changes = EndpointChanges(api_base=api_base)
        await management.endpoints.patch(_ACTOR, known[0].id, changes, credential)
    else:
        spec = EndpointSpec(model, ProviderKind.OPENAI, upstream_model=model, api_base=api_base)
        await management.endpoints.create(_ACTOR, spec, credential)
