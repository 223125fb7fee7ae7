"""Pages of a list by the place of the last row shown instead of an offset: page 1,000 costs what page 1 does."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Generic, TypeVar

import msgspec
from sqlalchemy import ColumnElement, Select, Uuid, literal, tuple_

from app.exceptions import InvalidRequest
from app.storage.management_ports import ListQuery, Page
from app.storage.sql_rows import is_uuid

T = TypeVar("T")
Value = datetime | date | str
MAX_CURSOR_LENGTH = 1_200
"""A value and an id of at most 200 characters each, which in base64 of UTF-8 stay below this."""
NEVER, NO_DAY = datetime(9999, 12, 31, tzinfo=UTC), date(9999, 12, 31)
"""What stands for an absent time or day where rows are put in order: the end of all. The driver takes the last day for infinity."""


@dataclass(frozen=True, slots=True)
class Order(Generic[T]):
    """One way to put a list in order: by a value of each row, never null, and by its id where values are equal."""

    value: ColumnElement[Any]
    place: Callable[[T], Value]
    type: type[Value]


def encode_cursor(at: datetime, ident: str) -> str:
    return _encoded((at, ident))


def decode_cursor(cursor: str) -> tuple[datetime, str]:
    """Raises: InvalidRequest for anything that `encode_cursor` did not write."""
    at, ident = _decoded(cursor, tuple[datetime, str])
    if at.tzinfo is None:
        raise _unknown_cursor()
    return at, ident


def after(
    statement: Select[Any], cursor: str | None, at: ColumnElement[datetime], ident: ColumnElement[str], limit: int
) -> Select[Any]:
    """The statement for one page, the newest first, and one row more, which tells whether there is a next page."""
    if cursor is not None:
        # Typed like the columns: PostgreSQL compares a uuid with a uuid and with nothing else.
        seen_at, seen = decode_cursor(cursor)
        statement = statement.where(tuple_(at, ident) < tuple_(literal(seen_at, at.type), _ident(seen, ident)))
    return statement.order_by(at.desc(), ident.desc()).limit(limit + 1)


def page_of(rows: Sequence[T], limit: int, place: Callable[[T], tuple[datetime, str]]) -> Page[T]:
    items = list(rows[:limit])
    return Page(items, encode_cursor(*place(items[-1])) if len(rows) > limit else None)


def sorted_after(
    statement: Select[Any], query: ListQuery, orders: Mapping[str, Order[T]], ident: ColumnElement[str]
) -> Select[Any]:
    """As `after`, in the order that the query asks for.

    Raises: InvalidRequest for an order that the list does not have, or a cursor that it did not give for this order.
    """
    name, is_descending = _order_of(query, orders)
    order = orders[name]
    if query.cursor is not None:
        value, seen = _place_in(query.cursor, query.sort, order)
        place = tuple_(literal(value, order.value.type), _ident(seen, ident))
        here = tuple_(order.value, ident)
        statement = statement.where(here < place if is_descending else here > place)
    if is_descending:
        return statement.order_by(order.value.desc(), ident.desc()).limit(query.limit + 1)
    return statement.order_by(order.value, ident).limit(query.limit + 1)


def sorted_page_of(
    rows: Sequence[T], query: ListQuery, orders: Mapping[str, Order[T]], ident: Callable[[T], str]
) -> Page[T]:
    items = list(rows[: query.limit])
    if len(rows) <= query.limit:
        return Page(items, None)
    name, _ = _order_of(query, orders)
    place = (orders[name].place(items[-1]), ident(items[-1]))
    return Page(items, _encoded(place if query.sort is None else (query.sort, *place)))


def _order_of(query: ListQuery, orders: Mapping[str, Order[T]]) -> tuple[str, bool]:
    if query.sort is None:
        return "created_at", True
    name = query.sort.removeprefix("-")
    if name not in orders:
        raise InvalidRequest(f"'sort' is one of {', '.join(orders)}, with a minus in front to turn it.", param="sort")
    return name, query.sort.startswith("-")


def _place_in(cursor: str, sort: str | None, order: Order[Any]) -> tuple[Value, str]:
    if sort is None:
        return decode_cursor(cursor)
    shape = tuple[str, order.type, str]  # type: ignore[name-defined]
    sorted_by, value, ident = _decoded(cursor, shape)
    if sorted_by != sort or (isinstance(value, datetime) and value.tzinfo is None):
        raise _unknown_cursor()
    return value, ident


def _ident(seen: str, ident: ColumnElement[str]) -> ColumnElement[Any]:
    if isinstance(ident.type, Uuid) and not is_uuid(seen):
        raise _unknown_cursor()
    return literal(seen, ident.type)


def _encoded(place: tuple[Value, ...]) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode("ascii").rstrip("=")


def _decoded(cursor: str, shape: Any) -> Any:
    try:
        if len(cursor) > MAX_CURSOR_LENGTH:
            raise ValueError(cursor)
        packed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        place = msgspec.json.decode(packed, type=shape)
        if any("\x00" in each for each in place if isinstance(each, str)):
            raise ValueError(cursor)
    except (ValueError, binascii.Error, msgspec.MsgspecError):
        raise _unknown_cursor() from None
    return place


def _unknown_cursor() -> InvalidRequest:
    return InvalidRequest("'cursor' is not one that this list gave.", param="cursor")
