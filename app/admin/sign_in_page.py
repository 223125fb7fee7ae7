"""The pages that nobody needs to be signed in for: signing in, and being refused."""

from __future__ import annotations

from http import HTTPStatus

from app.admin.looks import render
from app.exceptions import GatewayError


def sign_in_page(*, next_path: str, fault: str | None, has_sso: bool, is_unencrypted: bool) -> bytes:
    """`fault` says why the last try did not succeed; `is_unencrypted` warns of a connection on which no session can be kept."""
    return render(
        "sign_in.html", next_path=next_path, fault=fault, has_sso=has_sso, is_unencrypted=is_unencrypted
    ).encode()


def refused_page(error: GatewayError, request_id: str) -> bytes:
    title = HTTPStatus(error.status).phrase
    return render(
        "refused.html", status=error.status, title=title, message=error.message, request_id=request_id
    ).encode()
