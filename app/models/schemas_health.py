"""What the health routes answer."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class EndpointCounts(BaseModel):
    healthy: int
    unhealthy: int


class HealthView(BaseModel):
    status: Literal["ok", "degraded", "down"]
    version: str
    database: Literal["ok", "down"]
    redis: Literal["ok", "down"]
    endpoints: EndpointCounts


class LiveView(BaseModel):
    status: Literal["ok", "starting"]
