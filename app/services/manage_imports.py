"""Keys that another gateway issued. Of them only SHA-256 is known; under our pepper it is looked up like any digest of ours."""

from __future__ import annotations

from dataclasses import dataclass

from app.domain.access import Actor
from app.exceptions import Conflict
from app.services.api_key import imported_digest
from app.services.command import Commands, new_id
from app.services.manage_access import checked_key
from app.services.manage_users import existing_user
from app.storage.management_ports import Credential, KeySpec

IMPORTED_PREFIX = "sk-"


@dataclass(frozen=True, slots=True)
class ImportCommands:
    commands: Commands
    peppers: tuple[bytes, ...]

    async def has_key(self, sha256: bytes) -> bool:
        async with self.commands.reading() as reader:
            return await reader.has_key_with_digest([imported_digest(sha256, pepper) for pepper in self.peppers])

    async def key(self, actor: Actor, spec: KeySpec, *, sha256: bytes, last4: str) -> str:
        """Register a key whose secret nobody here knows; returns its id. Raises: Conflict when it is registered already."""
        digests = [imported_digest(sha256, pepper) for pepper in self.peppers]
        async with self.commands.opened(actor) as command:
            await existing_user(command.tx, spec.user_oid)
            spec = await checked_key(command.tx, spec)
            if await command.tx.has_key_with_digest(digests):
                raise Conflict("This key is registered already.", param="key")
            key_id = new_id()
            await command.tx.insert_key(key_id, spec, Credential(digests[0], IMPORTED_PREFIX, last4), command.now)
            await command.audit("key.import", key_id, after=spec)
            await command.announce("key", key_id)
            return key_id
