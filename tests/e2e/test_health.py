"""What probes, people and browsers meet first: health, the front door, the documentation."""

from __future__ import annotations

import json

import pytest

from app import __version__
from tests.e2e.house import ADMIN_TOKEN, House, error_of
from tests.kit import raw_http
from tests.kit.processes import GatewayProcess
from tests.kit.raw_http import RawResponse

PAGES = ("/docs", "/redoc", "/openapi.json")


async def get(house: House, path: str, method: str = "GET") -> RawResponse:
    return await raw_http.call(house.gateway.port, method, path)


async def test_health_tells_the_state_of_every_part_and_names_nothing(house: House) -> None:
    answer = await get(house, "/health")

    assert answer.status == 200
    assert answer.header("content-type") == "application/json"
    health = json.loads(answer.body)
    assert set(health) == {"status", "version", "database", "redis", "endpoints"}
    assert (health["version"], health["database"], health["redis"]) == (__version__, "ok", "ok")
    # Endpoints of other tests may be unwell, which is what `degraded` says.
    assert health["status"] == ("ok" if health["endpoints"]["unhealthy"] == 0 else "degraded")
    assert set(health["endpoints"]) == {"healthy", "unhealthy"}
    assert health["endpoints"]["healthy"] >= 1


async def test_health_names_the_endpoints_for_administrators_only(house: House) -> None:
    """T018."""
    model = await house.model()
    for token in (ADMIN_TOKEN, await house.key(), "nonsense"):
        answer = await raw_http.call(house.gateway.port, "GET", "/health", headers={"Authorization": f"Bearer {token}"})
        assert answer.status == 200
        items = json.loads(answer.body)["endpoints"].get("items")
        if token == ADMIN_TOKEN:
            (named,) = [item for item in items if item["model"] == model]
            assert (named["provider"], named["state"]) == ("openai", "closed")
            assert house.upstream.base_url not in answer.text
        else:
            assert items is None
            assert model not in answer.text


async def test_live_and_ready_answer_200_while_all_is_well(house: House) -> None:
    for path in ("/health/live", "/health/ready"):
        answer = await get(house, path)
        assert (answer.status, answer.json()) == (200, {"status": "ok"})
        assert answer.header("x-request-id")


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
async def test_health_is_for_reading_only(house: House, path: str) -> None:
    answer = await get(house, path, "POST")
    assert (answer.status, error_of(answer)["code"]) == (405, "method_not_allowed")
    assert "GET" in (answer.header("allow") or "")


async def test_the_front_door_answers_probes_without_a_body(house: House) -> None:
    head, body = await get(house, "/", "HEAD"), await get(house, "/")

    assert (head.status, head.body) == (200, b"")
    assert body.status == 200
    assert head.header("content-length") == body.header("content-length") == str(len(body.body))
    assert json.loads(body.body)["health"] == "/health"


async def test_what_does_not_exist_is_a_404_in_the_one_shape_of_errors(house: House) -> None:
    for path in ("/nothing", "/v1/nothing", "/.env", "/health/", "/static/../config.py", "//health"):
        answer = await get(house, path)
        assert (answer.status, error_of(answer)["code"]) == (404, "not_found"), path


async def test_the_documentation_is_there_and_its_pages_may_load_nothing_from_elsewhere(house: House) -> None:
    for path in ("/docs", "/redoc"):
        answer = await get(house, path)
        assert answer.status == 200
        assert (answer.header("content-type") or "").startswith("text/html")
        policy = answer.header("content-security-policy") or ""
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "http" not in policy
        assert answer.header("x-content-type-options") == "nosniff"
        assert answer.header("x-frame-options") == "DENY"
        assert answer.header("referrer-policy") == "no-referrer"
        assert "https://" not in answer.text


async def test_the_document_describes_both_planes(house: House) -> None:
    answer = await get(house, "/openapi.json")

    assert answer.status == 200
    document = json.loads(answer.body)
    assert document["openapi"].startswith("3.1")
    assert document["info"]["version"] == __version__
    for path in ("/v1/chat/completions", "/v1/models", "/admin/api/keys", "/health"):
        assert path in document["paths"]


async def test_no_answer_names_the_server_software_or_lets_a_browser_guess_its_type(house: House) -> None:
    for path in ("/", "/health", "/docs", "/v1/models", "/admin/api/keys", "/nothing"):
        answer = await get(house, path)
        assert answer.header("x-powered-by") is None, path
        assert "python" not in (answer.header("server") or "").lower(), path
        assert len(answer.all("x-request-id")) == 1, path
        assert len(answer.all("content-type")) == 1, path


async def test_documentation_can_be_switched_off_and_everything_else_stays(house: House) -> None:
    async with GatewayProcess(house.env | {"DOCS_ENABLED": "false"}, name="undocumented") as gateway:
        for path in PAGES:
            answer = await raw_http.call(gateway.port, "GET", path)
            assert (answer.status, error_of(answer)["code"]) == (404, "not_found"), path
        assert (await raw_http.call(gateway.port, "GET", "/health")).status == 200
