"""Upstream garbage is never passed off as a success."""

from __future__ import annotations

import json
import time

import pytest

from tests.e2e.house import House, error_of, request_id_of
from tests.e2e.test_chat import streamed
from tests.kit.raw_http import SseEvent
from tests.kit.scenario import Scenario
from tests.kit.stalls import stalled_s

BAD_UNARY = {
    "html": Scenario(raw_body="<html>502 Bad Gateway</html>", content_type="text/html"),
    "empty": Scenario(raw_body=""),
    "truncated": Scenario(raw_body='{"choices":[{"mess'),
    "array": Scenario(raw_body="[]"),
    "no-choices": Scenario(raw_body='{"id":"x"}'),
    "no-choice": Scenario(raw_body='{"choices":[]}'),
    "cut": Scenario(lying_content_length=500),
    "closed": Scenario(accept_and_close=True),
    "reset": Scenario(accept_and_reset=True),
    "redirect": Scenario(redirect_location="http://127.0.0.1:1/"),
    "500": Scenario(status=500, echo_credentials=True),
    "401": Scenario(status=401, echo_credentials=True),
    "429": Scenario(status=429, retry_after="7"),
}


@pytest.mark.parametrize("name", BAD_UNARY)
async def test_a_bad_answer_is_a_502_and_costs_no_more_than_its_upstream_bills(house: House, name: str) -> None:
    """T041, T064, T068, T069."""
    key, model = await house.key(), await house.model(BAD_UNARY[name])

    answer = await house.chat(key, model)

    assert answer.status in (502, 503), answer.text
    assert error_of(answer)["code"] in (
        "upstream_error",
        "upstream_bad_response",
        "upstream_truncated",
        "no_healthy_endpoint",
    )
    assert "sk-upstream-key" not in answer.text
    assert "127.0.0.1" not in answer.text
    record = await house.record(request_id_of(answer))
    # An answer that broke off in its middle was worked on: its upstream bills the prompt. Nobody pays for what is no answer.
    assert (record["outcome"], record["cost_usd"] != "0.000000000") == ("upstream_error", name == "cut")
    assert "sk-upstream-key" not in json.dumps(record)


@pytest.mark.parametrize("status", [400, 404, 413, 422])
async def test_the_callers_own_fault_comes_back_with_its_status_and_is_not_tried_elsewhere(
    house: House, status: int
) -> None:
    """T063."""
    scenario = Scenario(status=status, error_message="Invalid value for 'temperature'", error_code="invalid_value")
    key, model = await house.key(), await house.model(scenario, endpoints=2)

    answer = await house.chat(key, model)

    assert answer.status == status
    assert error_of(answer)["message"] == "Invalid value for 'temperature'"
    assert len([line for line in (await house.upstream.invoice()).lines if line.model == model]) == 1


CUT = {
    "closed": Scenario(chunks=10, close_after_chunks=4, framing="close"),
    "aborted": Scenario(chunks=10, close_after_chunks=4),
    "reset": Scenario(chunks=10, reset_after_chunks=4, gap_ms=10),
    "half-event": Scenario(chunks=10, close_after_chunks=4, half_event=True, framing="close"),
    "error-event": Scenario(chunks=10, error_event_after_chunks=4),
}


@pytest.mark.parametrize("name", CUT)
async def test_a_stream_that_just_stops_ends_with_an_error_event_and_is_billed_as_delivered(
    house: House, name: str
) -> None:
    """T070, T073: its chunks, then one error event; no finish reason, no done marker."""
    key, model = await house.key(), await house.model(CUT[name])

    events = await streamed(house, key, model)

    *chunks, last = events
    assert json.loads(last.data)["error"]["code"] in ("upstream_truncated", "upstream_error")
    assert len(_contents(chunks)) == 4
    assert not any(event.is_done_marker for event in events)
    record = await house.record(json.loads(last.data)["error"]["request_id"])
    assert record["outcome"] in ("truncated", "upstream_error")
    assert record["usage_quality"] == "partial"
    assert record["cost_usd"] > "0.000000000"


EMPTY_STREAM = {
    "closed": Scenario(chunks=0, close_after_chunks=0, framing="close"),
    "comments": Scenario(comments_every_ms=5, comments_count=3),
    "html": Scenario(raw_body="<html></html>", content_type="text/html"),
    "first-error": Scenario(error_event_after_chunks=0),
}


@pytest.mark.parametrize("name", EMPTY_STREAM)
async def test_a_stream_without_a_first_event_keeps_its_true_status(house: House, name: str) -> None:
    """T071, T072: nothing was sent yet, so it is a real 502, never an empty 200."""
    key, model = await house.key(), await house.model(EMPTY_STREAM[name])

    answer = await house.chat(key, model, stream=True)

    assert answer.status in (500, 502, 503)
    error_of(answer)


async def test_a_silent_upstream_is_given_up_at_the_first_token_deadline(house: House) -> None:
    """T074."""
    key, model = await house.key(), await house.model(Scenario(hang_before_headers=True), endpoints=0)
    timeouts = {"connect_seconds": 1, "first_token_seconds": 0.5, "between_tokens_seconds": 0.5, "total_seconds": 5}
    await house.endpoint(model, timeouts=timeouts)

    began = time.monotonic()
    answer = await house.chat(key, model, stream=True)
    paused_ms = 1000 * stalled_s(began)

    assert (answer.status, error_of(answer)["code"]) == (504, "upstream_timeout")
    record = await house.record(request_id_of(answer))
    assert record["outcome"] == "timeout"
    assert 450 <= record["duration_ms"] <= 3000 + paused_ms


async def test_a_stream_that_stalls_is_ended_at_the_between_tokens_deadline(house: House) -> None:
    """T075."""
    key, model = await house.key(), await house.model(Scenario(stall_after_chunks=3), endpoints=0)
    timeouts = {"connect_seconds": 5, "first_token_seconds": 8, "between_tokens_seconds": 0.5, "total_seconds": 30}
    await house.endpoint(model, timeouts=timeouts)

    events = await streamed(house, key, model)

    assert json.loads(events[-1].data)["error"]["code"] == "upstream_timeout"
    record = await house.record(json.loads(events[-1].data)["error"]["request_id"])
    assert (record["outcome"], record["usage_quality"]) == ("timeout", "partial")


def _contents(events: list[SseEvent]) -> list[str]:
    deltas = [choice["delta"] for event in events for choice in json.loads(event.data)["choices"]]
    return [delta["content"] for delta in deltas if delta.get("content")]
