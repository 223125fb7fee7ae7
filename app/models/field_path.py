"""How a field inside a body is named where it is refused: as code would reach it, `limits[0].kind`; on the data plane as well."""

from __future__ import annotations

from collections.abc import Sequence


def path_of(location: Sequence[int | str]) -> str:
    """Of a place as Pydantic tells it."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return path.removeprefix(".")
