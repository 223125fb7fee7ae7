"""What the company's own sign-in says about somebody, and the role that follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from app.domain.access import SSO_PREFIX, Role

_RANKS: Final = tuple(Role)
"""Owner first: of several groups the highest role counts."""
MAX_NAME_LENGTH: Final = 200


class SsoRefused(Exception):
    """A sign-in that is not let in; the reason is for the log and the audit trail."""

    def __init__(self, reason: str, *, is_known: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_known = is_known
        """The provider vouches for who it is, and he has no role here."""


@dataclass(frozen=True, slots=True)
class RolePolicy:
    """Who gets which role: `groups` maps a value of the claim to a role; `email_domains`, where there are any, must match too."""

    claim: str
    groups: Mapping[str, Role]
    email_domains: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, *, claim: str, role_map: str, email_domains: str) -> RolePolicy:
        """`role_map` is `group=role, group=role`; a group's name may hold `=`. Raises: ValueError, saying what is wrong."""
        groups = {}
        for pair in (each.strip() for each in role_map.split(",")):
            if pair:
                group, separator, role = pair.rpartition("=")
                if not separator or not group.strip():
                    raise ValueError(f"'{pair}' is not group=role")
                if role.strip() not in _RANKS:
                    raise ValueError(f"'{role.strip()}' is none of {', '.join(_RANKS)}")
                groups[group.strip()] = Role(role.strip())
        if not groups:
            raise ValueError("it names no group")
        domains = frozenset(each.strip().lower().removeprefix("@") for each in email_domains.split(",") if each.strip())
        return cls(claim, groups, domains)

    def role_of(self, claims: Mapping[str, object]) -> Role:
        """Raises: SsoRefused."""
        if self.email_domains:
            email = claims.get("email")
            domain = email.rpartition("@")[2].lower() if isinstance(email, str) else ""
            if domain not in self.email_domains or claims.get("email_verified") not in (True, "true"):
                raise SsoRefused("no verified e-mail address of an allowed domain", is_known=True)
        given = {self.groups[value] for value in values_of(claims, self.claim) if value in self.groups}
        role = next((role for role in _RANKS if role in given), None)
        if role is None:
            raise SsoRefused(f"no group in '{self.claim}' that has a role", is_known=True)
        return role


def values_of(claims: Mapping[str, object], claim: str) -> list[str]:
    """A claim as texts: the one of this name, or, where its name has dots, the one at this path (`realm_access.roles`)."""
    found: object = claims.get(claim)
    if found is None:
        found = claims
        for step in claim.split("."):
            found = found.get(step) if isinstance(found, Mapping) else None
    if isinstance(found, str):
        return [found]
    return [each for each in found if isinstance(each, str)] if isinstance(found, list | tuple) else []


def name_of(claims: Mapping[str, object]) -> str:
    """How the audit trail names him: by his address where the provider has verified it, otherwise by what it calls him for good."""
    email, subject = claims.get("email"), claims.get("sub")
    is_vouched = isinstance(email, str) and "@" in email and claims.get("email_verified") in (True, "true")
    name = email if is_vouched else subject
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise SsoRefused("a subject that cannot be named")
    return f"{SSO_PREFIX}{name}"[:MAX_NAME_LENGTH]
