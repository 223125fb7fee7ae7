"""Secrets that people paste into prompts, made unreadable before a body is kept."""

from __future__ import annotations

import re
from typing import Final

MASK: Final = b"[secret masked]"
"""Plain ASCII without quotes or backslashes: a JSON body stays one."""

_START: Final = rb"(?<![A-Za-z0-9])"

_SECRETS: Final = re.compile(
    b"|".join(
        _START + pattern
        for pattern in (
            rb"sk-[A-Za-z0-9_-]{10,}",  # OpenAI, Anthropic, DeepSeek, this gateway's own …
            rb"ag-(?:admin|app|owner)-[A-Za-z0-9_-]{10,}",
            rb"AIza[A-Za-z0-9_-]{20,}",  # Google
            rb"gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}",
            rb"glpat-[A-Za-z0-9_-]{16,}|xox[abeoprs]-[A-Za-z0-9-]{10,}|hf_[A-Za-z0-9]{20,}|gsk_[A-Za-z0-9]{20,}",
            rb"(?:AKIA|ASIA)[A-Z0-9]{16}",  # Amazon
            rb"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",  # a signed token
        )
    )
)
_BEARER: Final = re.compile(_START + rb"(bearer\s+)[A-Za-z0-9._~+/=-]{10,}", re.IGNORECASE)
_PRIVATE_KEY: Final = re.compile(rb"-----BEGIN ([A-Z ]{0,30})PRIVATE KEY-----.{1,20000}?-----END", re.DOTALL)
_HINTS: Final = (
    b"sk-",
    b"ag-",
    b"AIza",
    b"gh",
    b"github_pat_",
    b"glpat-",
    b"xox",
    b"hf_",
    b"gsk_",
    b"AKIA",
    b"ASIA",
    b"eyJ",
)


def mask_secrets(body: bytes) -> bytes:
    """The body with every pattern of a credential replaced by `MASK`. Linear in its length."""
    if any(hint in body for hint in _HINTS):
        body = _SECRETS.sub(MASK, body)
    if b"PRIVATE KEY-----" in body:
        body = _PRIVATE_KEY.sub(MASK, body)
    return _BEARER.sub(rb"\1" + MASK, body)
