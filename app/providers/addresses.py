"""Where an endpoint's operations are, and by which header it takes its credential.

Nearly every upstream appends the operation's path to its base and wants `Authorization: Bearer`. Azure OpenAI wants `api-key` and
names the model in the path: `{base}/openai/deployments/{deployment}/chat/completions?api-version=…`. An endpoint is Azure's when its
host is one of Azure's, or when its `api_base` says an `api-version` (a proxy before Azure, say); `upstream_model` is then the
deployment. Azure's newer base `…/openai/v1` is like everybody else's, but for the header.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote, urlsplit

from app.domain.catalog import Endpoint, ProviderKind

AZURE_API_VERSION = "2024-10-21"
"""Where the base does not say one: the last version that Azure gave out as final for these paths."""
ANTHROPIC_VERSION = "2023-06-01"
"""Sent where the caller names none: the version that every Messages server knows."""
_AZURE_HOSTS = (".openai.azure.com", ".openai.azure.us", ".cognitiveservices.azure.com", ".services.ai.azure.com")
_MAX_KNOWN = 4096


@dataclass(frozen=True, slots=True)
class Address:
    url: str
    key_header: str
    key_prefix: str = ""

    def credential(self, key: str | None) -> Mapping[str, str]:
        return {self.key_header: self.key_prefix + key} if key else {}


def address_of(endpoint: Endpoint, path: str) -> Address:
    """The address of an operation, such as `/chat/completions` or `/models`, at an endpoint."""
    return _address(endpoint.provider, endpoint.api_base, endpoint.upstream_model, path)


@lru_cache(_MAX_KNOWN)
def _address(provider: ProviderKind, api_base: str, upstream_model: str, path: str) -> Address:
    base, _, query = api_base.partition("?")
    base = base.rstrip("/")
    if provider is ProviderKind.ANTHROPIC:
        return Address((base if base.endswith("/v1") else f"{base}/v1") + path, "x-api-key")
    is_azures = (urlsplit(base).hostname or "").endswith(_AZURE_HOSTS)
    if not (query or is_azures):
        return Address(base + path, "Authorization", "Bearer ")
    if base.endswith("/v1"):
        return Address(base + path, "api-key")
    return Address(
        f"{_azure_path(base, upstream_model, path)}?{query or f'api-version={AZURE_API_VERSION}'}", "api-key"
    )


def _azure_path(base: str, deployment: str, path: str) -> str:
    """The base may be that of the resource, of its API, of its model inference, or of one deployment."""
    resource, _, named = base.partition("/openai/deployments/")
    if path == "/models":
        return f"{resource.removesuffix('/openai')}/openai/models"
    if named or base.endswith("/models"):
        return base + path
    return f"{base.removesuffix('/openai')}/openai/deployments/{quote(deployment, safe='')}{path}"
