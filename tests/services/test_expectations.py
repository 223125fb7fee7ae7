"""What a process learns of the length of answers."""

from __future__ import annotations

from app.domain.call import Meter, Outcome
from app.domain.pricing import Usage
from app.services.expectations import USEFUL_TOKENS, Expectations
from tests.services.metered import a_call, a_meter, a_model

MODEL = a_model("llama")


def settled(tokens: int, *, user: str = "u", outcome: Outcome = Outcome.OK) -> Meter:
    meter = a_meter(user=user, model=MODEL)
    meter.outcome, meter.usage = outcome, Usage(10, tokens)
    return meter


def learned(*meters: Meter) -> Expectations:
    expectations = Expectations()
    for meter in meters:
        expectations.learn(meter)
    return expectations


def test_a_holder_of_whom_nothing_is_known_gets_a_useful_answer() -> None:
    assert Expectations().floor_tokens(a_meter(), MODEL) == USEFUL_TOKENS


def test_it_learns_per_holder_and_model() -> None:
    expectations = learned(*(settled(200, user="long") for _ in range(30)))
    assert expectations.floor_tokens(a_meter(user="long"), MODEL) == 200
    assert expectations.floor_tokens(a_meter(user="other"), MODEL) == USEFUL_TOKENS


def test_never_more_than_the_call_may_produce() -> None:
    expectations = learned(settled(5_000))
    assert expectations.floor_tokens(a_meter(most_tokens=50), MODEL) == 50


def test_every_choice_needs_as_much() -> None:
    call = a_call(n=3)
    assert Expectations().floor_tokens(a_meter(call), MODEL) == 3 * USEFUL_TOKENS


def test_only_whole_answers_teach() -> None:
    broken = [
        settled(9_000, outcome=outcome) for outcome in (Outcome.TRUNCATED, Outcome.CLIENT_CANCELLED, Outcome.LOST)
    ]
    assert learned(*broken).floor_tokens(a_meter(most_tokens=99_999), MODEL) == USEFUL_TOKENS


def test_an_answer_that_was_cut_short_wanted_more() -> None:
    cut = settled(100)
    cut.finish_reason, cut.capped_max_tokens = "length", 100
    assert learned(cut).floor_tokens(a_meter(most_tokens=99_999), MODEL) == 400


def test_a_habit_that_changes_is_followed() -> None:
    expectations = learned(*(settled(1_000) for _ in range(64)), *(settled(10) for _ in range(70)))
    assert expectations.floor_tokens(a_meter(), MODEL) == 10


def test_memory_is_bounded_and_forgets_the_longest_unused() -> None:
    expectations = Expectations(max_kinds=2)
    for user in ("a", "b", "a", "c"):
        expectations.learn(settled(500, user=user))
    floors = {user: expectations.floor_tokens(a_meter(user=user), MODEL) for user in "abc"}
    assert floors["b"] == USEFUL_TOKENS
    assert floors["a"] > USEFUL_TOKENS
    assert floors["c"] > USEFUL_TOKENS
