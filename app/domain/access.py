"""Who administers, and what a role may do."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Role(StrEnum):
    OWNER = "owner"
    ADMIN = "admin"
    BILLING = "billing"
    VIEWER = "viewer"


class Right(StrEnum):
    """What a route of the admin API asks of its caller."""

    READ = "read"
    """See everything but secrets."""
    BILL = "bill"
    """Change users: who they are and what they have paid for."""
    BUDGET = "budget"
    """Change budgets; any other field of the same object needs CONFIGURE."""
    CONFIGURE = "configure"
    """Change everything."""
    READ_CONTENT = "read_content"
    """See what callers wrote and what models answered; every look is written to the trail."""


_RIGHTS = {
    Role.OWNER: frozenset(Right),
    Role.ADMIN: frozenset(Right),
    Role.BILLING: frozenset({Right.READ, Right.BILL, Right.BUDGET}),
    Role.VIEWER: frozenset({Right.READ}),
}


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, as the audit trail names him."""

    name: str
    role: Role
    address: str | None = None
    expires_at: datetime | None = None
    """When his own right ends: he gives nobody a longer one."""
    admin_id: str | None = None
    """His row, where he has one: names may be shared."""

    def may(self, right: Right) -> bool:
        return right in _RIGHTS[self.role]

    @property
    def key(self) -> str:
        """What is kept for him alone is kept under this."""
        return self.admin_id or self.name


BOOTSTRAP = "ADMIN_TOKEN"
"""The name of the owner whose token is a setting, not a row."""
NOBODY = "nobody"
"""The name in the trail of whoever could not say who he is."""
SSO_PREFIX = "sso:"
"""What the names of people from single sign-on begin with in the trail, so that no row of ours can pass for one of them."""
COMMAND_LINE = "command line"
FIRST_START = "first start"
GATEWAY = "gateway"
APP_PREFIX = "app "
"""What the names of apps begin with, where they create a user whom they are the first to name."""

RESERVED_NAMES = frozenset({BOOTSTRAP.lower(), NOBODY, COMMAND_LINE, FIRST_START, GATEWAY, APP_PREFIX.strip()})


def is_reserved_name(name: str) -> bool:
    """Whether an administrator of this name would pass for somebody else in the audit trail."""
    seen = "".join(each for each in unicodedata.normalize("NFKC", name) if unicodedata.category(each) != "Cf")
    plain = " ".join(seen.casefold().split())
    return plain in RESERVED_NAMES or plain.startswith((SSO_PREFIX, APP_PREFIX))
