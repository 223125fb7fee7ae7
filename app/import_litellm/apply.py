"""Creating what a plan holds, and telling what became of it. To do it twice creates nothing twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from app.domain.access import Actor
from app.exceptions import CallerError, Conflict, GatewayError, NotFound
from app.import_litellm.plan import Body, Note, Plan, PlannedKey
from app.models.field_path import path_of
from app.models.schemas import EndpointCreate, KeyCreate, ModelCreate, UserCreate
from app.services.management import Management
from app.storage.management_ports import EndpointSpec, ListQuery

Shape = TypeVar("Shape", bound=BaseModel)

Place = tuple[str, str, str, str]
"""Where an endpoint leads: its model, provider, the model there, and the address."""

CREATED, THERE, FAILED = "created", "there already", "failed"


@dataclass(slots=True)
class Report:
    is_dry: bool
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)

    @property
    def failed(self) -> int:
        return sum(counter[FAILED] for counter in self.counts.values())

    def as_mapping(self) -> dict[str, Any]:
        kinds = {
            kind: {name: counter[name] for name in (CREATED, THERE, FAILED)} for kind, counter in self.counts.items()
        }
        return {"dry_run": self.is_dry, **kinds, "notes": [asdict(note) for note in self.notes]}


@dataclass(frozen=True, slots=True)
class Import:
    """One run over one plan. A dry one looks what is there and checks each body, and changes nothing."""

    management: Management
    actor: Actor
    report: Report
    seen: Counter[Place] = field(default_factory=Counter)
    made: Counter[Place] = field(default_factory=Counter)

    async def run(self, plan: Plan) -> Report:
        self.report.notes += plan.notes
        # Models first without their fallbacks, which may be models that come later.
        for body in plan.models:
            await self._each("models", body["name"], body, self._model)
        for body in plan.models:
            if body.get("fallbacks") and not self.report.is_dry:
                await self._fallbacks(body)
        for body in plan.endpoints:
            await self._each("endpoints", body["model"], body, self._endpoint)
        for body in plan.users:
            await self._each("users", body["user_oid"], body, self._user)
        for key in plan.keys:
            await self._each("keys", key.body["name"], key, self._key)
        return self.report

    async def _each(self, kind: str, name: str, item: Any, create: Callable[[Any], Awaitable[bool]]) -> None:
        """Create one, and count it. What the API would refuse is told and left out."""
        counter = self.report.counts.setdefault(kind, Counter())
        try:
            counter[CREATED if await create(item) else THERE] += 1
        except (GatewayError, ValidationError) as error:
            if getattr(error, "status", 400) >= 500:
                raise
            counter[FAILED] += 1
            self.report.notes.append(Note(kind.removesuffix("s"), name, f"not created: {_reason(error)}"))

    async def _model(self, body: Body) -> bool:
        spec = ModelCreate.model_validate({**body, "fallbacks": []}).spec()
        if await _is_there(self.management.models.get, spec.name):
            return False
        if not self.report.is_dry:
            await self.management.models.create(self.actor, spec)
        return True

    async def _fallbacks(self, body: Body) -> None:
        """Where the model has none yet. A circle of fallbacks, which LiteLLM allows, is told and left out."""
        try:
            row = await self.management.models.get(body["name"])
            if not row.spec.fallbacks:
                await self.management.models.patch(self.actor, body["name"], {"fallbacks": tuple(body["fallbacks"])})
        except CallerError as error:
            self.report.notes.append(Note("fallbacks", body["name"], f"left out: {error.message}"))

    async def _endpoint(self, body: Body) -> bool:
        read = EndpointCreate.model_validate(body)
        spec = self.management.endpoints.checked(read.spec())
        place = _place(spec)
        self.seen[place] += 1
        if await self._endpoints_at(place) - self.made[place] >= self.seen[place]:
            return False
        if not self.report.is_dry:
            await self.management.endpoints.create(self.actor, spec, read.credential())
            self.made[place] += 1
        return True

    async def _endpoints_at(self, place: Place) -> int:
        """How many there are: a model may have several with the same address and different credentials."""
        found, cursor = 0, None
        while True:
            page = await self.management.endpoints.page(ListQuery(limit=200, cursor=cursor, model=place[0]))
            found += sum(_place(row.spec) == place for row in page.items)
            cursor = page.next_cursor
            if cursor is None:
                return found

    async def _user(self, body: Body) -> bool:
        read = UserCreate.model_validate(body)
        spec = read.spec(self.management.users.defaults)
        if await _is_there(self.management.users.get, spec.oid):
            return False
        if not self.report.is_dry:
            await self.management.users.create(self.actor, spec)
        return True

    async def _key(self, key: PlannedKey) -> bool:
        spec = KeyCreate.model_validate(key.body).spec()
        imports = self.management.imports
        if await imports.has_key(key.sha256):
            return False
        if not self.report.is_dry:
            try:
                key_id = await imports.key(self.actor, spec, sha256=key.sha256, last4=key.last4)
            except Conflict:
                return False
            if key.is_revoked:
                await self.management.keys.revoke(self.actor, key_id)
        return True


def _place(spec: EndpointSpec) -> Place:
    return spec.model, spec.provider.value, spec.upstream_model, spec.api_base.rstrip("/")


async def _is_there(get: Callable[[str], Awaitable[object]], name: str) -> bool:
    try:
        await get(name)
    except NotFound:
        return False
    return True


def _reason(error: GatewayError | ValidationError) -> str:
    """Without the value at fault, which may be a credential."""
    if isinstance(error, GatewayError):
        return error.message
    fault = error.errors(include_input=False, include_url=False)[0]
    return f"'{path_of(fault['loc'])}': {fault['msg'].removeprefix('Value error, ')}"
