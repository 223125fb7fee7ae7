"""Pages of a list, newest first, by the place of the last row shown instead of an offset: page 1,000 costs what page 1 does."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import msgspec
from sqlalchemy import ColumnElement, Select, literal, tuple_

from app.exceptions import InvalidRequest
from app.storage.management_ports import Page

T = TypeVar("T")
MAX_CURSOR_LENGTH = 600
"""A time and an id of at most 200 characters, which in base64 of UTF-8 stay below this."""


def encode_cursor(at: datetime, ident: str) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode((at, ident))).decode("ascii").rstrip("=")


def decode_cursor(cursor: str) -> tuple[datetime, str]:
    """Raises: InvalidRequest for anything that `encode_cursor` did not write."""
    try:
        if len(cursor) > MAX_CURSOR_LENGTH:
            raise ValueError(cursor)
        packed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        at, ident = msgspec.json.decode(packed, type=tuple[datetime, str])
        if at.tzinfo is None or "\x00" in ident:
            raise ValueError(cursor)
    except (ValueError, binascii.Error, msgspec.MsgspecError):
        raise InvalidRequest("'cursor' is not one that this list gave.", param="cursor") from None
    return at, ident


def after(
    statement: Select[Any], cursor: str | None, at: ColumnElement[datetime], ident: ColumnElement[str], limit: int
) -> Select[Any]:
    """The statement for one page and one row more, which tells whether there is a next page."""
    if cursor is not None:
        # Typed like the columns: PostgreSQL compares a uuid with a uuid and with nothing else.
        seen_at, seen = decode_cursor(cursor)
        statement = statement.where(tuple_(at, ident) < tuple_(literal(seen_at, at.type), literal(seen, ident.type)))
    return statement.order_by(at.desc(), ident.desc()).limit(limit + 1)


def page_of(rows: Sequence[T], limit: int, place: Callable[[T], tuple[datetime, str]]) -> Page[T]:
    items = list(rows[:limit])
    return Page(items, encode_cursor(*place(items[-1])) if len(rows) > limit else None)
