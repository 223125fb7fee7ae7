"""Where callers come from, as far as their failures are counted together."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address, ip_network


def network_of(address: str | None) -> str:
    """What failed sign-ins are counted by: an IPv4 address, or the /64 that one holder of IPv6 has all addresses of."""
    try:
        given = ip_address((address or "").partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(given, IPv6Address):
        if given.ipv4_mapped is not None:
            return str(given.ipv4_mapped)
        return str(ip_network((given, 64), strict=False))
    return str(given)
