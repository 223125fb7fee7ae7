"""Where an endpoint's operations are, and how each kind of upstream takes its credential."""

from __future__ import annotations

import pytest

from app.domain.catalog import ProviderKind
from app.providers.addresses import AZURE_API_VERSION, address_of
from tests.calls import an_endpoint

CHAT = "/chat/completions"
VERSION = f"api-version={AZURE_API_VERSION}"


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("https://api.openai.com/v1", "https://api.openai.com/v1/chat/completions"),
        ("http://localhost:8080/v1/", "http://localhost:8080/v1/chat/completions"),
        ("https://openai.azure.com.evil.example/v1", "https://openai.azure.com.evil.example/v1/chat/completions"),
    ],
)
def test_most_upstreams_take_a_bearer_below_their_base(base: str, url: str) -> None:
    address = address_of(an_endpoint(api_base=base), CHAT)
    assert (address.url, dict(address.credential("k"))) == (url, {"Authorization": "Bearer k"})


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("https://r.openai.azure.com", f"https://r.openai.azure.com/openai/deployments/d%2F1{CHAT}?{VERSION}"),
        ("https://r.openai.azure.com/openai", f"https://r.openai.azure.com/openai/deployments/d%2F1{CHAT}?{VERSION}"),
        (
            "https://r.openai.azure.com/openai/deployments/other",
            f"https://r.openai.azure.com/openai/deployments/other{CHAT}?{VERSION}",
        ),
        (
            "https://r.openai.azure.com?api-version=2025-04-01-preview",
            f"https://r.openai.azure.com/openai/deployments/d%2F1{CHAT}?api-version=2025-04-01-preview",
        ),
        (
            "http://proxy:8080/azure?api-version=v7",
            f"http://proxy:8080/azure/openai/deployments/d%2F1{CHAT}?api-version=v7",
        ),
        ("https://r.openai.azure.com/openai/v1", f"https://r.openai.azure.com/openai/v1{CHAT}"),
        ("https://r.services.ai.azure.com/models", f"https://r.services.ai.azure.com/models{CHAT}?{VERSION}"),
    ],
)
def test_azure_names_the_deployment_in_the_path_and_takes_its_own_header(base: str, url: str) -> None:
    address = address_of(an_endpoint(api_base=base, upstream_model="d/1"), CHAT)
    assert (address.url, dict(address.credential("k"))) == (url, {"api-key": "k"})


def test_azures_models_are_listed_by_the_resource() -> None:
    for base in ("https://r.openai.azure.com", "https://r.openai.azure.com/openai/deployments/d"):
        url = address_of(an_endpoint(api_base=base), "/models").url
        assert url == f"https://r.openai.azure.com/openai/models?{VERSION}"


@pytest.mark.parametrize("base", ["https://api.anthropic.com", "https://api.anthropic.com/v1", "https://x.test/v1/"])
def test_anthropics_protocol_has_its_own_header(base: str) -> None:
    address = address_of(an_endpoint(api_base=base, provider=ProviderKind.ANTHROPIC), "/messages")
    assert address.url.endswith("/v1/messages")
    assert dict(address.credential("k")) == {"x-api-key": "k"}


def test_an_endpoint_without_a_credential_sends_none() -> None:
    assert dict(address_of(an_endpoint(), CHAT).credential(None)) == {}
