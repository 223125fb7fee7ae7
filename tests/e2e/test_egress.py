"""What leaves this process and what does not: a gateway among planted proxies, credentials and certificates, and with short patience."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.house import House, Json, error_of, request_id_of
from tests.e2e.test_hot_path import chat_request
from tests.kit.certificates import Certificate, make_certificate
from tests.kit.processes import GatewayProcess
from tests.kit.raw_http import RawConnection
from tests.kit.scenario import Scenario
from tests.kit.upstream import ScriptedUpstream

STALL_S = 1.0


@pytest.fixture
async def planted(house: House, tmp_path: Path) -> AsyncIterator[tuple[House, ScriptedUpstream, Certificate]]:
    """A gateway whose surroundings would lead it astray; the upstream that they lead to; a certificate it trusts for 127.0.0.1."""
    own = make_certificate(tmp_path)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login planted password planted\n")
    async with ScriptedUpstream() as trap:
        proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"), trap.base_url)
        env = {
            **house.env,
            **proxies,
            "NETRC": str(tmp_path / "netrc"),
            "SSL_CERT_FILE": str(tmp_path / "nothing.pem"),
            "OPENAI_API_KEY": "sk-planted",
            "OPENAI_BASE_URL": trap.base_url,
            "UPSTREAM_CA_FILES": f"127.0.0.1={own.certificate}",
            "WRITE_STALL_SECONDS": str(STALL_S),
        }
        async with GatewayProcess(env) as gateway:
            yield replace(house, gateway=gateway), trap, own


async def test_t043_t085_only_our_own_configuration_says_where_a_call_goes_and_whom_it_trusts(
    planted: tuple[House, ScriptedUpstream, Certificate], tmp_path: Path
) -> None:
    house, trap, own = planted
    key, plain = await house.key(), await house.model()
    async with (
        ScriptedUpstream(tls=own.server_context()) as trusted,
        ScriptedUpstream(tls=make_certificate(tmp_path).server_context()) as stranger,
    ):
        secure, refused = await house.model(endpoints=0), await house.model(endpoints=0)
        await house.endpoint(secure, api_base=trusted.base_url)
        bad = await house.endpoint(refused, api_base=stranger.base_url)

        assert (await house.chat(key, plain)).status == 200
        assert (await house.chat(key, secure)).status == 200
        answer = await house.chat(key, refused)
        assert (answer.status, error_of(answer)["code"]) == (502, "upstream_error")
        record = await house.record(request_id_of(answer))
        assert record["attempt_details"][0]["reason"] == "tls_certificate"
        assert stranger.invoice().lines == ()
        assert [alert["type"] for alert in await alerts_of(house, bad)] == ["endpoint_certificate_refused"]
        assert trusted.invoice().lines[0].credential == "sk-upstream-key-of-the-tests"
    assert trap.invoice().connections_accepted == 0


async def alerts_of(house: House, endpoint_id: str) -> list[Json]:
    """Once there are any."""
    async with asyncio.timeout(20):
        while True:
            listed = (await house.admin("GET", "alerts?limit=200", expect=200))["items"]
            if found := [alert for alert in listed if alert.get("endpoint_id") == endpoint_id]:
                return found
            await asyncio.sleep(0.05)


async def test_t083_a_caller_who_takes_nothing_is_cut_off_and_billed_for_what_was_sent(
    planted: tuple[House, ScriptedUpstream, Certificate],
) -> None:
    house, _, _ = planted
    size = 24 << 20
    key, quick = await house.key(), await house.model()
    slow = await house.model(Scenario(text="x" * size, chunks=size // 4096, completion_tokens=6000))
    async with RawConnection(house.gateway.port, receive_buffer_bytes=4096) as connection:
        await connection.send(chat_request(key, slow, stream=True))
        request_id = (await connection.response_head()).header("x-request-id")

        record = await house.record(request_id or "", within_s=30)  # written once the caller was given up

    assert (record["outcome"], record["error_reason"]) == ("client_cancelled", "write_stalled")
    assert record["completion_tokens"] > 0
    assert (await house.upstream.settled(model=slow)).lines[0].outcome == "client_hung_up"
    assert (await house.chat(key, quick)).status == 200
