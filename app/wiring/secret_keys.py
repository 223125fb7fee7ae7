"""`SECRET_KEY`, the one in use and the one before it, as what is made of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from app.config import Settings
from app.services.api_key import fingerprint_of, pepper_of
from app.services.secret_key import SecretKeys
from app.storage.sealing import Sealer
from app.storage.sql_secret_key import SqlSecretKey
from app.wiring.stores import Stores


@dataclass(frozen=True, slots=True)
class Secrets:
    keys: SecretKeys
    store: SqlSecretKey
    sealer: Sealer
    pepper: bytes = field(repr=False)
    older_peppers: tuple[bytes, ...] = field(repr=False)

    async def redigest(self, old: bytes, new: bytes) -> None:
        """A credential was shown that the key before this one digested: from now on the present one does."""
        await self.store.redigest(old, new, fingerprint=self.keys.current)


def secrets_of(settings: Settings, stores: Stores) -> Secrets:
    secret_key = settings.secret_key.get_secret_value()
    older_keys = [each for each in (settings.secret_key_previous.get_secret_value(),) if each]
    sealer = Sealer(secret_key, *older_keys)
    return Secrets(
        keys=SecretKeys(fingerprint_of(secret_key), [fingerprint_of(each) for each in older_keys]),
        store=SqlSecretKey(stores.engine, sealer),
        sealer=sealer,
        pepper=pepper_of(secret_key),
        older_peppers=tuple(pepper_of(each) for each in older_keys),
    )
