"""The house of the end-to-end tests, behind the shipped nginx."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.e2e.conftest import house as house
from tests.e2e.conftest import stores as stores
from tests.e2e.house import House
from tests.kit.ear import Ear
from tests.kit.front import Front


@pytest.fixture
async def ear() -> AsyncIterator[Ear]:
    async with Ear() as listening:
        yield listening


@pytest.fixture
async def front_of_ear(ear: Ear) -> AsyncIterator[Front]:
    async with Front([ear.port]) as front:
        yield front


@pytest.fixture
async def front(house: House) -> AsyncIterator[Front]:
    async with Front([house.gateway.port]) as standing:
        yield standing
