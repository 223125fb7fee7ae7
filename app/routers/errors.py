"""Whatever goes wrong on a FastAPI route, answered in the gateway's one error shape."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from app.domain.ids import RANDOM_BYTES, uuid7
from app.exceptions import (
    GatewayError,
    InternalError,
    InvalidJson,
    InvalidRequest,
    MethodNotAllowed,
    MissingParameter,
    NotFound,
)
from app.middleware.exchange import error_headers
from app.models.field_path import path_of
from app.routers.rights import methods_of
from app.telemetry import logger


def install_error_handlers(app: FastAPI) -> None:
    """`{"error": {"message", "type", "param", "code", "request_id"}}` for everything; FastAPI's own shape never shows."""
    app.add_exception_handler(GatewayError, _on_gateway_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_unexpected)


def error_response(request: Request, error: GatewayError) -> Response:
    request_id = _request_id(request)
    body = {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code,
        "request_id": request_id,
    }
    headers = {name.decode(): value.decode() for name, value in error_headers(error)}
    ids = {"x-request-id": request_id, "request-id": request_id}
    return JSONResponse({"error": body}, status_code=error.status, headers={**headers, **ids})


def invalid_request_of(faults: Sequence[Any]) -> GatewayError:
    """The refusal for what a body or query got wrong: all unknown fields by name, otherwise the first fault.

    The caller's values are never repeated: a field may hold a credential.
    """
    unknown = [_path(fault["loc"]) for fault in faults if fault["type"] == "extra_forbidden"]
    if unknown:
        names = ", ".join(f"'{name[:100]}'" for name in unknown[:20])
        return InvalidRequest(f"Unknown field{'s' if len(unknown) > 1 else ''}: {names}.", param=unknown[0][:200])
    fault = faults[0]
    param = _path(fault["loc"])[:200]
    match fault["type"]:
        case "json_invalid":
            return InvalidJson()
        case "missing" if not param:
            return InvalidRequest("The request needs a JSON body.")
        case "missing":
            return MissingParameter(param)
        case _ if not param:
            return InvalidRequest("The request body must be a JSON object.")
    message = str(fault["msg"]).removeprefix("Value error, ")
    return InvalidRequest(f"'{param}': {message[:1].lower()}{message[1:]}.", param=param)


async def _on_gateway_error(request: Request, error: Exception) -> Response:
    return error_response(request, cast(GatewayError, error))


async def _on_invalid(request: Request, error: Exception) -> Response:
    return error_response(request, invalid_request_of(cast(RequestValidationError, error).errors()))


async def _on_http(request: Request, error: Exception) -> Response:
    http = cast(HTTPException, error)
    match http.status_code:
        case 404:
            shaped: GatewayError = NotFound()
        case 405:
            allowed = methods_of(request.url.path) or [(http.headers or {}).get("Allow", "GET")]
            shaped = MethodNotAllowed(", ".join(allowed))
        case 400:
            shaped = InvalidJson("The request body cannot be read as JSON.")
        case _:
            shaped = InvalidRequest("The request cannot be served.")
            shaped.status = http.status_code
    return error_response(request, shaped)


async def _on_unexpected(request: Request, error: Exception) -> Response:
    logger.error("unexpected_error", request_id=_request_id(request), path=request.url.path, exc_info=error)
    return error_response(request, InternalError())


def _path(location: Sequence[str | int]) -> str:
    """The path of a field as `limits[0].kind`, without FastAPI's word for where it stood (body, query, path)."""
    return path_of(location[1:])


def _request_id(request: Request) -> str:
    state: dict[str, Any] = request.scope.setdefault("state", {})
    if "request_id" not in state:
        state["request_id"] = uuid7(time.time_ns() // 1_000_000, os.urandom(RANDOM_BYTES))
    return str(state["request_id"])
