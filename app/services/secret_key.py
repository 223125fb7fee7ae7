"""`SECRET_KEY`, and following it from one to the next.

What the database holds of credentials stands under one `SECRET_KEY`: sealed by it, or digested under its pepper. The database knows
which by a fingerprint, so a process that was given another one, say after a restore elsewhere, refuses instead of calling every key
unknown. To change it without a refused request:

1. Give every process the new one as `SECRET_KEY` and the old one as `SECRET_KEY_PREVIOUS`, one process after the other. Each opens and
   recognises what stands under either. Nothing that is stored changes yet, so those with the old one alone go on as well.
2. `python -m app rotate-secret-key`: all sealed credentials are sealed anew, and the database belongs to the new one. From then on each
   digest follows at its next use: only then is the credential itself at hand.
3. Once the command says that no key waits any more (it may be run again), leave `SECRET_KEY_PREVIOUS` out. The old one opens nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from app.domain.access import Actor, Right
from app.exceptions import Forbidden, SecretKeyMismatch
from app.services.command import Commands
from app.storage.management_ports import Resealed, Sealer


class SecretKeyStore(Protocol):
    async def belongs_to(self) -> bytes | None:
        """The fingerprint that the database belongs to; None before the first start has finished."""
        ...

    async def claim(self, fingerprint: bytes) -> None:
        """Let the database belong to this one, unless it belongs to another already."""
        ...

    async def opens_what_is_sealed(self) -> bool:
        """False when there are credentials and this process can open none of them."""
        ...


@dataclass(frozen=True, slots=True)
class SecretKeys:
    """This process's fingerprints: of `SECRET_KEY`, and of those before it that it still knows."""

    current: bytes = field(repr=False)
    older: Sequence[bytes] = field(repr=False)

    def require_known(self, belongs_to: bytes | None) -> None:
        """Raises: SecretKeyMismatch."""
        if belongs_to not in (None, self.current, *self.older):
            raise SecretKeyMismatch

    async def settle(self, store: SecretKeyStore) -> bool:
        """On a first start, let the database belong to this key. Returns whether it does, or still belongs to the one before.

        Raises: SecretKeyMismatch.
        """
        belongs_to = await store.belongs_to()
        if belongs_to is None:
            if not await store.opens_what_is_sealed():
                raise SecretKeyMismatch
            await store.claim(self.current)
            belongs_to = await store.belongs_to()
        self.require_known(belongs_to)
        return belongs_to == self.current


@dataclass(frozen=True, slots=True)
class SecretKeyCommands:
    commands: Commands
    sealer: Sealer
    keys: SecretKeys

    async def rotate(self, actor: Actor) -> Resealed:
        """Seal all credentials under the present key. To repeat it changes nothing; what it returns tells when the old one may go.

        Raises: SecretKeyMismatch when the database belongs to a key that this process does not know.
        """
        if not actor.may(Right.CONFIGURE):
            raise Forbidden
        async with self.commands.opened(actor) as command:
            before = await command.tx.belongs_to()
            self.keys.require_known(before)
            resealed = await command.tx.reseal(self.sealer, self.keys.current, command.now)
            if before != self.keys.current:
                shown = {"endpoints": resealed.endpoints, "left_out": list(resealed.left_out)}
                await command.audit("secret_key.rotate", "SECRET_KEY", after=shown)
                await command.announce("secret_key", "SECRET_KEY")
            return resealed
