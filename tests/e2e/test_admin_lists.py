"""Lists page by keyset: every row once, whatever the type of its id."""

from __future__ import annotations

import pytest

from tests.e2e.house import House


@pytest.mark.parametrize(
    ("resource", "ident"), [("users", "user_oid"), ("keys", "id"), ("endpoints", "id"), ("models", "name")]
)
async def test_a_list_is_paged_through_without_repeats_or_gaps(house: House, resource: str, ident: str) -> None:
    model = await house.model(endpoints=2)
    for _ in range(2):
        await house.key()
    whole = (await house.admin("GET", f"{resource}?limit=200", expect=200))["items"]

    found, cursor = [], ""
    while True:
        page = await house.admin("GET", f"{resource}?limit=1{cursor}", expect=200)
        found += [item[ident] for item in page["items"]]
        if page["next_cursor"] is None or len(found) > len(whole):
            break
        cursor = f"&cursor={page['next_cursor']}"

    assert len(set(found)) == len(found)
    assert set(found) >= {item[ident] for item in whole}
    assert model in found or resource != "models"
