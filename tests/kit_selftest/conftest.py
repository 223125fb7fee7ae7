"""What the self-tests share: a certificate, and one real PostgreSQL and Valkey per test session (and worker)."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.embedded import EmbeddedServers, Servers
from tests.kit.certificates import Certificate, make_certificate


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def tls_server(certificate: Certificate) -> ssl.SSLContext:
    return certificate.server_context()


@pytest.fixture
def tls_client(certificate: Certificate) -> ssl.SSLContext:
    return certificate.client_context()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder: Path = tmp_path_factory.mktemp("servers")
    with EmbeddedServers(folder, durable=False, on_progress=lambda line: None) as running:
        yield running
