"""The files under `/static`: known by name from the start, so that no path leads out of the folder, and sent compressed.

A file asked for by its hash (`?v=…`) may be kept for ever; others are revalidated by ETag. Ranges are not served: one is ignored,
as the protocol allows, and a list of them is refused before it is read.
"""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.exceptions import MethodNotAllowed, NotFound, RangesNotServed

STATIC_FOLDER: Final = Path(__file__).resolve().parent / "static"
COMPRESSED: Final = frozenset({".css", ".js", ".svg", ".txt", ".html", ""})
FOR_EVER: Final = "public, max-age=31536000, immutable"


@dataclass(slots=True)
class Asset:
    """One file. Its bytes are read when it is first asked for, and then kept: all of them together are a few megabytes."""

    path: Path
    media_type: str
    digest: str
    _packed: bytes | None = field(default=None, repr=False)

    @property
    def packed(self) -> bytes | None:
        """Compressed; None for what is compressed already."""
        if self.path.suffix not in COMPRESSED:
            return None
        if self._packed is None:
            self._packed = gzip.compress(self.path.read_bytes(), 9, mtime=0)
        return self._packed


def _found() -> dict[str, Asset]:
    names = {path.relative_to(STATIC_FOLDER).as_posix(): path for path in STATIC_FOLDER.rglob("*") if path.is_file()}
    return {
        name: Asset(path, _media_type(path), hashlib.sha256(path.read_bytes()).hexdigest()[:12])
        for name, path in names.items()
        if not any(part.startswith(".") for part in Path(name).parts)
    }


def _media_type(path: Path) -> str:
    if path.suffix == ".js":
        return "text/javascript; charset=utf-8"
    guessed = mimetypes.guess_type(path.name)[0] or "text/plain"
    return f"{guessed}; charset=utf-8" if guessed.startswith("text/") else guessed


_assets: Final = _found()


def asset_url(name: str) -> str:
    """Where a file is, by its content. Raises: KeyError for one that there is not."""
    return f"/static/{name}?v={_assets[name].digest}"


class StaticFiles:
    """An ASGI application, mounted at `/static`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer(Request(scope))(scope, receive, send)

    def _answer(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            raise MethodNotAllowed("GET, HEAD")
        asset = _assets.get(request.scope["path"].removeprefix(request.scope.get("root_path", "")).removeprefix("/"))
        if asset is None:
            raise NotFound("There is nothing here.")
        if "," in request.headers.get("range", ""):
            raise RangesNotServed
        is_versioned = request.scope["query_string"].startswith(b"v=")
        headers = {
            "etag": f'"{asset.digest}"',
            "cache-control": FOR_EVER if is_versioned else "no-cache",
            "vary": "accept-encoding",
            "x-content-type-options": "nosniff",
        }
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        body = asset.packed if "gzip" in request.headers.get("accept-encoding", "") else None
        if body is not None:
            headers["content-encoding"] = "gzip"
        return Response(asset.path.read_bytes() if body is None else body, headers=headers, media_type=asset.media_type)
