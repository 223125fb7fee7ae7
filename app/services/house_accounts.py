"""On whose account the gateway itself makes calls: nobody's who pays. Limits and budgets of the *model* hold for them all the same."""

from __future__ import annotations

from typing import Final

from app.domain.identity import HOUSE_PREFIX, Identity, PaymentStatus, User


def _account(name: str) -> Identity:
    return Identity(User(HOUSE_PREFIX + name, PaymentStatus.ACTIVE, None))


CHECKS: Final = _account("checks")
"""Paid health checks."""
SHADOWS: Final = _account("shadows")
"""Calls that are sent to another model beside the one that answers."""
