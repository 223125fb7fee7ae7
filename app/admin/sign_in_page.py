"""The pages that nobody needs to be signed in for: signing in, and being refused."""

from __future__ import annotations

from functools import cache
from http import HTTPStatus
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from app.exceptions import GatewayError

TEMPLATES = Path(__file__).resolve().parent / "templates"


@cache
def _environment() -> Environment:
    return Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)


def sign_in_page(*, next_path: str, fault: str | None, has_sso: bool, is_unencrypted: bool) -> bytes:
    """`fault` says why the last try did not succeed; `is_unencrypted` warns of a connection on which no session can be kept."""
    page = _environment().get_template("sign_in.html")
    return page.render(next_path=next_path, fault=fault, has_sso=has_sso, is_unencrypted=is_unencrypted).encode()


def refused_page(error: GatewayError, request_id: str) -> bytes:
    page = _environment().get_template("refused.html")
    title = HTTPStatus(error.status).phrase
    return page.render(status=error.status, title=title, message=error.message, request_id=request_id).encode()
