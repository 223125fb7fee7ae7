"""What the health routes answer."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class EndpointHealth(BaseModel):
    id: str
    model: str
    provider: str
    upstream_model: str
    state: str


class EndpointCounts(BaseModel):
    healthy: int
    unhealthy: int
    items: list[EndpointHealth] | None = Field(None, description="Each by name, for administrators only.")


class HealthView(BaseModel):
    status: Literal["ok", "degraded", "down"]
    version: str
    database: Literal["ok", "down"]
    redis: Literal["ok", "down"]
    endpoints: EndpointCounts


class LiveView(BaseModel):
    status: Literal["ok", "starting"]
