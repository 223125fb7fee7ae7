"""The catalog as a value: names, aliases, rights and prices."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.domain.catalog import EMPTY, Catalog, Timeouts
from app.exceptions import ModelNotAllowed, ModelNotFound
from tests.calls import PRICE, a_key, a_model, an_app, an_endpoint, an_identity

CATALOG = Catalog.of(
    7,
    [
        a_model("gpt-4", aliases=("smart", "gpt-4-latest")),
        a_model("claude", aliases=("gpt-4",)),
        a_model("demo"),
    ],
)
ANYONE = an_identity()


def only(*models: str) -> frozenset[str]:
    return frozenset(models)


def test_a_model_answers_to_its_name_and_its_aliases() -> None:
    assert [CATALOG.model_for(ANYONE, name).name for name in ("gpt-4", "smart", "gpt-4-latest")] == ["gpt-4"] * 3


def test_a_models_own_name_comes_before_another_ones_alias() -> None:
    assert CATALOG.model_for(ANYONE, "gpt-4").name == "gpt-4"


@pytest.mark.parametrize("name", ["", "GPT-4", "gpt-4 ", "nothing", "x" * 10_000])
def test_an_unknown_name_is_not_found_and_is_not_repeated_at_length(name: str) -> None:
    with pytest.raises(ModelNotFound) as told:
        CATALOG.model_for(ANYONE, name)

    assert len(told.value.message) < 200
    assert told.value.param == "model"


def test_a_model_that_is_not_allowed_is_refused_by_the_name_it_was_asked_for() -> None:
    with pytest.raises(ModelNotAllowed, match="smart"):
        CATALOG.model_for(an_identity(key=a_key(allowed_models=only("demo"))), "smart")


def test_a_model_is_allowed_by_its_own_name_or_by_the_alias_that_is_asked_for() -> None:
    by_name = an_identity(key=a_key(allowed_models=only("gpt-4")))
    by_alias = an_identity(key=a_key(allowed_models=only("smart")))

    assert CATALOG.model_for(by_name, "smart").name == "gpt-4"
    assert CATALOG.model_for(by_alias, "smart").name == "gpt-4"
    with pytest.raises(ModelNotAllowed):
        CATALOG.model_for(by_alias, "gpt-4-latest")


def test_an_app_sees_only_what_it_may_use_in_the_order_of_registration() -> None:
    identity = an_identity(key=None, app=an_app(allowed_models=only("demo", "gpt-4")))

    assert [name for name, _ in CATALOG.visible_to(identity)] == ["gpt-4", "demo"]
    assert [name for name, _ in CATALOG.visible_to(ANYONE)] == ["gpt-4", "claude", "demo"]


def test_who_may_use_an_alias_alone_sees_the_model_by_that() -> None:
    identity = an_identity(key=a_key(allowed_models=only("smart", "demo")))

    assert [(name, model.name) for name, model in CATALOG.visible_to(identity)] == [
        ("smart", "gpt-4"),
        ("demo", "demo"),
    ]


def test_an_endpoints_own_price_comes_before_its_models() -> None:
    dear = an_endpoint("dear", price=PRICE)
    plain = an_endpoint("plain")

    assert a_model("m", dear, plain).price_at(dear) is PRICE
    assert a_model("m", dear, plain).price_at(plain) is None
    assert a_model("m", dear, plain, price=PRICE).price_at(plain) is PRICE


def test_a_catalog_cannot_be_changed_in_place() -> None:
    with pytest.raises(TypeError):
        CATALOG.models["new"] = a_model("new")  # type: ignore[index]
    with pytest.raises(TypeError):
        CATALOG.names["new"] = "demo"  # type: ignore[index]


def test_the_empty_catalog_knows_no_model() -> None:
    assert EMPTY.revision == 0
    with pytest.raises(ModelNotFound):
        EMPTY.model_for(ANYONE, "demo")


def test_an_endpoints_credential_does_not_show_in_its_repr() -> None:
    assert "sk-very-secret" not in repr(a_model("m", an_endpoint(credential="sk-very-secret")))


def test_a_stream_and_a_whole_answer_have_patience_of_their_own() -> None:
    timeouts = Timeouts(first_token_s=7, unary_s=70)

    assert (timeouts.first_byte_s(is_stream=True), timeouts.first_byte_s(is_stream=False)) == (7, 70)


def test_a_renewed_catalog_shares_what_did_not_change() -> None:
    changed, same = replace(CATALOG.models["demo"], aliases=("d",)), replace(CATALOG.models["claude"])

    renewed = CATALOG.renewed(8, [changed, same])

    assert renewed.revision == 8
    assert list(renewed.models) == ["gpt-4", "claude", "demo"]
    assert renewed.models["demo"] is changed
    assert all(renewed.models[name] is CATALOG.models[name] for name in ("gpt-4", "claude"))
    assert renewed.model_for(ANYONE, "d") is changed
    assert "d" not in CATALOG.names


def test_a_renewed_catalog_has_the_models_that_are_left_in_the_order_that_is_told() -> None:
    renewed = CATALOG.renewed(8, [a_model("new")], ["new", "demo", "gpt-4"])

    assert list(renewed.models) == ["new", "demo", "gpt-4"]
    assert dict(renewed.names) == {name: name for name in ("new", "demo", "gpt-4")} | {
        "smart": "gpt-4",
        "gpt-4-latest": "gpt-4",
    }
