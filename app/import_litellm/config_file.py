"""A LiteLLM proxy's config.yaml, as models and endpoints of ours.

References to the environment (`os.environ/OPENAI_API_KEY`) are followed only when the operator asks for it: the file may come from
somewhere else, and must not choose which of our secrets are sent to which address.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any, Final

import yaml

from app.import_litellm.plan import Body, Plan, whole

MAX_BYTES: Final = 10 * 1024 * 1024
REFERENCE: Final = "os.environ/"
NATIVE: Final = {"openai": "openai", "anthropic": "anthropic"}
OPENAI_LIKE: Final = frozenset(
    {"custom_openai", "openai_like", "hosted_vllm", "lm_studio", "litellm_proxy", "text-completion-openai"}
)
"""What LiteLLM calls servers that speak OpenAI's protocol at an address of their own."""
STRATEGIES: Final = {
    "simple-shuffle": "round_robin",
    "least-busy": "least_busy",
    "usage-based-routing": "least_busy",
    "usage-based-routing-v2": "least_busy",
    "latency-based-routing": "latency",
    "cost-based-routing": "cost",
}
CARRIED: Final = frozenset(
    {
        *("model", "api_key", "api_base", "base_url", "custom_llm_provider", "litellm_credential_name"),
        *("rpm", "tpm", "max_parallel_requests", "weight", "order", "timeout", "stream_timeout"),
        *("input_cost_per_token", "output_cost_per_token"),
    }
)
WITHOUT_MEANING: Final = frozenset(
    {"max_retries", "num_retries", "drop_params", "cooldown_time", "use_in_pass_through"}
)
"""Set here for a whole model, or done by itself."""
SETTINGS_CARRIED: Final = frozenset(
    {
        *("fallbacks", "context_window_fallbacks", "content_policy_fallbacks", "default_fallbacks"),
        *("model_group_alias", "routing_strategy", "num_retries"),
    }
)

Resolve = Callable[[str], str | None]
"""The value of a variable of the environment, where following references was asked for."""


class ConfigUnreadable(Exception):
    """The file is no LiteLLM configuration; the message is one line for the operator."""


@dataclass(frozen=True, slots=True)
class _Reading:
    plan: Plan
    resolve: Resolve | None
    credentials: Mapping[str, Body] = field(repr=False)

    def secret(self, value: object, model: str, param: str) -> str | None:
        """A value that may be a reference."""
        text = str(value)
        if not text.startswith(REFERENCE):
            return text
        variable = text.removeprefix(REFERENCE)
        found = None if self.resolve is None else self.resolve(variable)
        if found is None:
            why = "follow it with --resolve-env" if self.resolve is None else "it is not set"
            self.plan.note(
                "endpoint", model, f"'{param}' stands in the environment as {variable[:100]}: {why}, or set it here"
            )
        return found


def read_config(text: str, plan: Plan, resolve: Resolve | None) -> None:
    """Add what the file describes to the plan. Raises: ConfigUnreadable."""
    config = _parsed(text)
    credentials = {
        str(each.get("credential_name")): _mapping(each.get("credential_values"))
        for each in _mappings(config.get("credential_list"))
    }
    reading = _Reading(plan, resolve, credentials)
    deployments: defaultdict[str, list[Body]] = defaultdict(list)
    for entry in _mappings(config.get("model_list")):
        name = entry.get("model_name")
        if not isinstance(name, str) or not name:
            plan.note("model", "", "an entry of model_list has no model_name")
        elif "*" in name:
            plan.note("model", name, "a name with * stands for many: register each model by its own name")
        else:
            deployments[name].append(entry)
    settings = {**_mapping(config.get("litellm_settings")), **_mapping(config.get("router_settings"))}
    _models(deployments, settings, plan)
    for name, entries in deployments.items():
        for entry in entries:
            _endpoint(name, entry, entries, reading)
    _note_the_rest(config, settings, plan)


def _parsed(text: str) -> Body:
    if len(text) > MAX_BYTES:
        raise ConfigUnreadable("the file is larger than any configuration")
    try:
        config = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" near line {mark.line + 1}" if mark is not None else ""
        raise ConfigUnreadable(f"it is no YAML{where}") from None
    if not isinstance(config, dict) or not (
        "model_list" in config or "litellm_settings" in config or "router_settings" in config
    ):
        raise ConfigUnreadable("it has no model_list, litellm_settings or router_settings")
    return config


# ── Models ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _models(deployments: Mapping[str, list[Body]], settings: Body, plan: Plan) -> None:
    strategy = STRATEGIES.get(str(settings.get("routing_strategy", "simple-shuffle")))
    if strategy is None:
        plan.note(
            "setting", "routing_strategy", f"'{settings['routing_strategy']}' is not known here; models take turns"
        )
    aliases = _aliases(deployments, settings, plan)
    fallbacks = _fallbacks(deployments, settings, plan)
    for name, entries in deployments.items():
        body: Body = {
            "name": name,
            "aliases": aliases.get(name, []),
            "strategy": strategy or "round_robin",
            "fallbacks": fallbacks.get(name, []),
        }
        retries = settings.get("num_retries")
        if isinstance(retries, int) and not isinstance(retries, bool) and 0 <= retries <= 10:
            body["max_retries"] = retries
        information = _mapping(entries[0].get("model_info"))
        for ours, theirs in (("context_window", "max_input_tokens"), ("max_output_tokens", "max_output_tokens")):
            value = information.get(theirs)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                body[ours] = value
        plan.models.append(body)


def _aliases(deployments: Mapping[str, list[Body]], settings: Body, plan: Plan) -> dict[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for alias, target in _mapping(settings.get("model_group_alias")).items():
        name = target.get("model") if isinstance(target, dict) else target
        if name in deployments and alias not in deployments:
            found[str(name)].append(str(alias))
        else:
            plan.note("alias", alias, f"it leads to '{name}', which is no model of the file")
    return found


def _fallbacks(deployments: Mapping[str, list[Body]], settings: Body, plan: Plan) -> dict[str, list[str]]:
    """All three kinds become one list: a model's fallbacks are tried when it fails, and when it refuses a prompt."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for kind in ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks"):
        for pairs in _mappings(settings.get(kind)):
            for name, others in pairs.items():
                _add_fallbacks(found[str(name)], str(name), _texts(others), deployments, plan)
    for name in deployments if settings.get("default_fallbacks") else ():
        others = [each for each in _texts(settings["default_fallbacks"]) if each != name]
        _add_fallbacks(found[name], name, others, deployments, plan)
    return found


def _add_fallbacks(
    found: list[str], name: str, others: Iterable[str], deployments: Mapping[str, list[Body]], plan: Plan
) -> None:
    for other in others:
        if name not in deployments or other not in deployments or other == name:
            plan.note("fallback", f"{name} to {other}", "one of them is no model of the file")
        elif other not in found:
            found.append(other)


# ── Endpoints ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _endpoint(name: str, entry: Body, siblings: list[Body], reading: _Reading) -> None:
    params = _mapping(entry.get("litellm_params"))
    shared = reading.credentials.get(str(params.get("litellm_credential_name")), {})
    params = {**shared, **params}
    upstream = params.get("model")
    if not isinstance(upstream, str) or not upstream:
        reading.plan.note("endpoint", name, "litellm_params names no model")
        return
    body: Body = {"model": name, **_provider(upstream, params)}
    base = params.get("api_base") or params.get("base_url")
    if base:
        body["api_base"] = reading.secret(base, name, "api_base")
    if params.get("api_key"):
        body["api_key"] = reading.secret(params["api_key"], name, "api_key")
    body |= _numbers(name, params, siblings, reading.plan)
    price = _price(name, params, _mapping(entry.get("model_info")), reading.plan)
    if price:
        body["price"] = price
    for param in sorted(set(params) - CARRIED - WITHOUT_MEANING):
        reading.plan.note("endpoint", name, f"'{str(param)[:100]}' has no counterpart here")
    reading.plan.endpoints.append({field: value for field, value in body.items() if value is not None})


def _provider(upstream: str, params: Body) -> Body:
    """Which of our providers speaks to it, and what it is called there."""
    prefix, separator, rest = upstream.partition("/")
    given = params.get("custom_llm_provider")
    prefix, rest = (str(given), upstream) if given else (prefix if separator else "", rest if separator else upstream)
    has_base = bool(params.get("api_base") or params.get("base_url"))
    if prefix in NATIVE:
        return {"provider": NATIVE[prefix], "upstream_model": rest}
    if prefix in OPENAI_LIKE and has_base:
        return {"provider": "openai", "upstream_model": rest}
    if not prefix:
        if rest.startswith("claude"):
            return {"provider": "anthropic", "upstream_model": rest}
        return {"provider": "openai", "upstream_model": rest}
    return {"provider": "litellm", "upstream_model": f"{prefix}/{rest}"}


def _numbers(name: str, params: Body, siblings: list[Body], plan: Plan) -> Body:
    body: Body = {}
    for ours, theirs in (
        ("requests_per_minute", "rpm"),
        ("tokens_per_minute", "tpm"),
        ("max_concurrency", "max_parallel_requests"),
        ("weight", "weight"),
    ):
        if params.get(theirs) is not None:
            try:
                body[ours] = whole(params[theirs])
            except ValueError as error:
                plan.note("endpoint", name, f"'{theirs}': {error}")
    if params.get("order") is not None:  # theirs counts upwards from the first one asked, ours downwards
        orders = [_mapping(each.get("litellm_params")).get("order") for each in siblings]
        numbers = [order for order in orders if isinstance(order, int)]
        if isinstance(params["order"], int) and numbers:
            body["priority"] = max(numbers) - params["order"]
    timeouts = {
        ours: float(params[theirs])
        for ours, theirs in (("total_seconds", "timeout"), ("first_token_seconds", "stream_timeout"))
        if isinstance(params.get(theirs), int | float) and not isinstance(params.get(theirs), bool)
    }
    if timeouts:
        body["timeouts"] = timeouts
    return body


def _price(name: str, params: Body, information: Body, plan: Plan) -> Body | None:
    """Per token there, per million tokens here."""
    found: Body = {}
    for ours, theirs in (
        ("input_usd_per_mtok", "input_cost_per_token"),
        ("output_usd_per_mtok", "output_cost_per_token"),
        ("cached_input_usd_per_mtok", "cache_read_input_token_cost"),
    ):
        value = params.get(theirs, information.get(theirs))
        if value is not None:
            try:
                found[ours] = format((Decimal(str(value)) * 1_000_000).normalize(), "f")
            except InvalidOperation:
                plan.note("price", name, f"'{theirs}' is no number")
    if found and "input_usd_per_mtok" in found:
        return {"output_usd_per_mtok": "0", **found}
    if found:
        plan.note("price", name, "an output price without an input price; the price map's holds")
    return None


# ── What has no counterpart ───────────────────────────────────────────────────────────────────────────────────────────


def _note_the_rest(config: Body, settings: Body, plan: Plan) -> None:
    for setting in sorted(map(str, set(settings) - SETTINGS_CARRIED)):
        plan.note("setting", setting, "it has no counterpart here, or is a setting of this gateway's own environment")
    general = _mapping(config.get("general_settings"))
    if "master_key" in general:
        plan.note("setting", "master_key", "administrators have tokens of their own here: python -m app create-admin")
    for setting in sorted(map(str, set(general) - {"master_key"})):
        plan.note("setting", setting, "it has no counterpart here, or is a setting of this gateway's own environment")
    known = {"model_list", "litellm_settings", "router_settings", "general_settings", "credential_list"}
    for section in sorted(map(str, set(config) - known)):
        plan.note("section", section, "it has no counterpart here")


def _mapping(value: object) -> Body:
    return value if isinstance(value, dict) else {}


def _mappings(value: object) -> list[Body]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []
