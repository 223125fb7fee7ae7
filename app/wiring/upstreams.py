"""The ways out: providers, the catalog of endpoints, and what is known of how they are."""

from __future__ import annotations

from dataclasses import dataclass
from random import random

from app.clock import Clock
from app.config import Settings
from app.domain.catalog import ProviderKind
from app.domain.egress import EgressPolicy
from app.providers.anthropic import AnthropicProvider
from app.providers.base import Provider
from app.providers.demo import DemoProvider
from app.providers.on_demand import OnDemand, Preparable
from app.providers.price_map import PriceMap
from app.providers.relay import OpenAIRelay
from app.providers.transport import Transport
from app.providers.webhook import Webhook
from app.services.catalog import CatalogFollower
from app.services.endpoint_events import EndpointEvents
from app.services.identities import Identities
from app.services.load_balancer import LoadBalancer
from app.storage.redis_endpoint_news import RedisEndpointNews
from app.storage.sealing import Sealer
from app.storage.sql_catalog import SqlCatalogStore
from app.wiring.from_settings import private_authorities, webhook_of
from app.wiring.stores import Stores


@dataclass(frozen=True, slots=True)
class Upstreams:
    transport: Transport
    litellm: OnDemand
    providers: dict[ProviderKind, Provider]
    prices: PriceMap
    catalog: CatalogFollower
    balancer: LoadBalancer
    events: EndpointEvents
    webhook: Webhook | None
    """Where alerts are posted."""


def wire_upstreams(
    settings: Settings, clock: Clock, stores: Stores, sealer: Sealer, egress: EgressPolicy, identities: Identities
) -> Upstreams:
    """Raises: SettingsError."""
    tls_by_host = private_authorities(settings)
    transport = Transport(egress, tls_by_host=tls_by_host)
    webhook = webhook_of(settings, transport, clock)
    events = EndpointEvents(
        store=stores.endpoint_events,
        news=RedisEndpointNews(stores.redis),
        clock=clock,
        process_id=stores.process_id,
        webhook=webhook,
    )
    balancer = LoadBalancer(
        clock, chance=random, on_change=events.changed, max_in_flight=settings.endpoint_max_in_flight
    )
    prices = PriceMap.installed()
    catalog = CatalogFollower(
        store=SqlCatalogStore(stores.engine, sealer=sealer, fallback_price=prices.fallback_price),
        identities=identities,
        on_swap=balancer.follow,
    )

    def with_litellm() -> Preparable:
        """Its adapter brings aiohttp along, and LiteLLM itself a moment later: only where an endpoint needs them."""
        from app.providers.litellm import LiteLLMProvider

        return LiteLLMProvider(egress, clock=clock, tls_by_host=tls_by_host)

    litellm = OnDemand(with_litellm)
    providers: dict[ProviderKind, Provider] = {
        ProviderKind.OPENAI: OpenAIRelay(transport),
        ProviderKind.LITELLM: litellm,
        ProviderKind.ANTHROPIC: AnthropicProvider(transport, litellm),
        ProviderKind.DEMO: DemoProvider(clock=clock),
    }
    return Upstreams(transport, litellm, providers, prices, catalog, balancer, events, webhook)
