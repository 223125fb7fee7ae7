"""Where the gateway may connect to: which URLs an administrator may save, and which addresses may be dialled.

Three classes of address, the worst one winning where an address carries another inside (IPv4-mapped, 6to4, NAT64 …):

* *never*: link-local, cloud metadata, unspecified, multicast, reserved. No setting allows them.
* *loopback* and *private*: only as far as `UPSTREAM_PRIVATE_HOSTS` lists them, by host name, network, or the words
  "loopback" and "private".
* everything else is public.

A name says nothing about the address it will resolve to, so a saved URL is checked again, by `verdict`, for every
address that is dialled.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

from app.exceptions import InvalidRequest

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_URL_LENGTH = 2048
"""What proxies and logs commonly take; no provider's base address comes near it."""


class Verdict(StrEnum):
    """May this address be dialled?"""

    ALLOWED = "allowed"
    NOT_LISTED = "not_listed"
    """Loopback or private, and `UPSTREAM_PRIVATE_HOSTS` does not list it."""
    NEVER = "never"

    @property
    def is_allowed(self) -> bool:
        return self is Verdict.ALLOWED


class Reach(StrEnum):
    """What kind of place an address or a name is, from public to forbidden; a later one is worse."""

    PUBLIC = "public"
    PRIVATE = "private"
    LOOPBACK = "loopback"
    NEVER = "never"


_BADNESS = {Reach.PUBLIC: 0, Reach.PRIVATE: 1, Reach.LOOPBACK: 2, Reach.NEVER: 3}


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ip_network(text) for text in texts)


_NEVER = _networks(
    "0.0.0.0/8",  # "this host": Linux connects 0.0.0.0 to loopback
    "169.254.0.0/16",  # link-local, and with it nearly every cloud's metadata service
    "168.63.129.16/32",  # Azure's platform service
    "100.100.100.200/32",  # Alibaba's metadata
    "192.0.0.192/32",  # Oracle's metadata
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/128",
    "fe80::/10",
    "fd00:ec2::/32",  # Amazon's metadata and time over IPv6
    "fd20:ce::254/128",  # Google's metadata over IPv6
    "fd00:42::42/128",  # Scaleway's metadata over IPv6
    "ff00::/8",
)
_LOOPBACK = _networks("127.0.0.0/8", "::1/128")
_PRIVATE = _networks(
    "10.0.0.0/8",
    "100.64.0.0/10",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "64:ff9b:1::/48",
    "100::/64",
    "2001:db8::/32",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
    "fec0::/10",
)

_NEVER_NAMES = frozenset(
    {
        "metadata",
        "metadata.google.internal",
        "metadata.goog",
        "metadata.azure.internal",
        "metadata.tencentyun.com",
        "metadata.platformequinix.com",
        "instance-data",
        "instance-data.ec2.internal",
    }
)
_LOOPBACK_NAMES = frozenset({"localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"})
_PRIVATE_SUFFIXES = (".internal", ".local", ".localdomain", ".lan", ".home", ".home.arpa", ".corp", ".intranet")

_BROWSERS_BAD_PORTS = (
    *(1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104, 109),
    *(110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515, 526, 530),
    *(531, 532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 3659, 4045, 4190),
    *(5060, 5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080),
)
"""Ports of other protocols, whose servers would read an HTTP request as their own (WHATWG Fetch, "bad port")."""
_STORES_PORTS = (1433, 1521, 3306, 3389, 5432, 5672, 5900, 6379, 9042, 9092, 11211, 16379, 26379, 27017)
"""Databases, queues and remote desktops, for the same reason."""
_NON_HTTP_PORTS = frozenset(_BROWSERS_BAD_PORTS + _STORES_PORTS)

_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*\Z")
_NUMBER = re.compile(r"(0x[0-9a-f]*|[0-9]+)\Z")


# ── Addresses ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def reach_of(ip: Address) -> Reach:
    """The worst class among the address and all addresses it carries inside."""
    return max((_own_reach(each) for each in (ip, *_carried(ip))), key=_BADNESS.__getitem__)


def _own_reach(ip: Address) -> Reach:
    for reach, networks in ((Reach.NEVER, _NEVER), (Reach.LOOPBACK, _LOOPBACK), (Reach.PRIVATE, _PRIVATE)):
        if any(ip in network for network in networks):
            return reach
    return Reach.PUBLIC


def _carried(ip: Address) -> list[IPv4Address]:
    """IPv4 addresses inside an IPv6 one: a translator or tunnel on the way would connect to these."""
    if isinstance(ip, IPv4Address):
        return []
    number = int(ip)
    low = IPv4Address(number & 0xFFFF_FFFF)
    carried: list[IPv4Address] = []
    if number >> 32 in (0xFFFF, 0xFFFF_0000) or number >> 32 == 0x0064_FF9B << 64:
        carried.append(low)  # IPv4-mapped, IPv4-translated (SIIT), NAT64
    if number >> 32 == 0 and number > 1:
        carried.append(low)  # IPv4-compatible
    if number >> 80 == 0x0064_FF9B_0001:
        carried.append(low)  # NAT64 of a local network, with a /96 inside
    if number >> 112 == 0x2002:
        carried.append(IPv4Address((number >> 80) & 0xFFFF_FFFF))  # 6to4
    if number >> 96 == 0x2001_0000:
        carried += [IPv4Address((number >> 64) & 0xFFFF_FFFF), IPv4Address(~number & 0xFFFF_FFFF)]  # Teredo
    if (number >> 32) & 0xFDFF_FFFF == 0x5EFE:
        carried.append(low)  # ISATAP
    return carried


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """What `UPSTREAM_PRIVATE_HOSTS` allows besides public https."""

    hosts: frozenset[str] = frozenset()
    """Host names, and ".suffix" for all names below one."""
    networks: tuple[Network, ...] = field(default=())
    has_loopback: bool = False
    has_private: bool = False

    @classmethod
    def parse(cls, value: str) -> EgressPolicy:
        """Read a list separated by commas or spaces: host names, `*.suffix`, networks, "loopback", "private".

        Raises: ValueError naming the entry that is none of these.
        """
        hosts: set[str] = set()
        networks: list[Network] = []
        words: set[str] = set()
        for entry in re.split(r"[,\s]+", value.strip().lower()):
            if entry in ("", "loopback", "private"):
                words.add(entry)
            elif (network := _network(entry)) is not None:
                networks.append(network)
            elif _NAME.match(entry.removeprefix("*.").removeprefix(".")):
                hosts.add(entry.removeprefix("*") if entry.startswith("*.") else entry)
            else:
                raise ValueError(f"{entry[:80]!r} is neither a host name, a network, 'loopback' nor 'private'")
        return cls(frozenset(hosts), tuple(networks), "loopback" in words, "private" in words)

    def allows_host(self, host: str) -> bool:
        """Is this name listed, itself or by one of its suffixes?"""
        name = _plain(host)
        labels = name.split(".")
        suffixes = ("." + ".".join(labels[index:]) for index in range(1, len(labels)))
        return name in self.hosts or any(suffix in self.hosts for suffix in suffixes)

    def allows_address(self, host: str, ip: Address) -> bool:
        """May this address be dialled for a URL with this host?"""
        return verdict(ip, host, self).is_allowed

    def lists(self, host: str, ip: Address | None) -> bool:
        """Is the place listed by name or network, so that plain http is fine too?"""
        return self.allows_host(host) or (ip is not None and any(ip in network for network in self._spanning(ip)))

    def allows_reach(self, reach: Reach) -> bool:
        return {
            Reach.PUBLIC: True,
            Reach.PRIVATE: self.has_private,
            Reach.LOOPBACK: self.has_loopback,
            Reach.NEVER: False,
        }[reach]

    def _spanning(self, ip: Address) -> list[Network]:
        return [network for network in self.networks if network.version == ip.version]


NOTHING_PRIVATE = EgressPolicy()
"""A cluster's default: public https only."""

LAPTOP = EgressPolicy(has_loopback=True, has_private=True)
"""The embedded default: what runs on this machine and in this house."""


def verdict(ip: Address | str, host: str, policy: EgressPolicy) -> Verdict:
    """May `ip`, which `host` resolved to, be dialled? Text that is no address is never allowed."""
    if isinstance(ip, str):
        try:
            ip = ip_address(ip)
        except ValueError:
            return Verdict.NEVER
    reach = reach_of(ip)
    if reach is Reach.NEVER:
        return Verdict.NEVER
    inner = _carried(ip)
    is_listed = policy.lists(host, ip) or (len(inner) == 1 and policy.lists(host, inner[0]))
    return Verdict.ALLOWED if is_listed or policy.allows_reach(reach) else Verdict.NOT_LISTED


# ── URLs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class UpstreamUrl:
    """A base address as it is stored: lower-case scheme and host, no default port, no trailing slash."""

    scheme: str
    host: str
    port: int
    path: str
    query: str = ""
    """Azure's `api-version=…`, or nothing."""

    @property
    def text(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _DEFAULT_PORTS[self.scheme] else f":{self.port}"
        query = f"?{self.query}" if self.query else ""
        return f"{self.scheme}://{host}{port}{self.path}{query}"


_DEFAULT_PORTS = {"https": 443, "http": 80}


def checked_url(url: str, policy: EgressPolicy, *, param: str = "api_base") -> UpstreamUrl:
    """Read the base address of an upstream and refuse what the gateway would never dial.

    Raises: InvalidRequest, naming `param` and the fault.
    """
    try:
        return _read(url, policy)
    except _Fault as fault:
        raise InvalidRequest(f"'{param}' {fault}.", param=param) from None


def host_of(url: str) -> str:
    """The host of a URL that `checked_url` has let through; "" for none."""
    return (urlsplit(url).hostname or "").lower()


def reach_of_name(host: str) -> Reach:
    """What a name promises by itself; what it resolves to is judged when it is dialled."""
    name = _plain(host)
    if name in _NEVER_NAMES:
        return Reach.NEVER
    if name in _LOOPBACK_NAMES or name.endswith(".localhost"):
        return Reach.LOOPBACK
    if "." not in name or name.endswith(_PRIVATE_SUFFIXES):
        return Reach.PRIVATE
    return Reach.PUBLIC


class _Fault(Exception):
    """What is wrong with a URL, as the rest of a sentence that begins with the field's name."""


def _read(url: str, policy: EgressPolicy) -> UpstreamUrl:
    if len(url) > MAX_URL_LENGTH:
        raise _Fault(f"is longer than {MAX_URL_LENGTH} characters")
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise _Fault("holds a character that no URL may hold (write international host names in their xn-- form)")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _Fault("is not a URL") from None
    scheme = parts.scheme.lower()
    if scheme not in _DEFAULT_PORTS:
        raise _Fault("must begin with https:// (or http:// for a host that UPSTREAM_PRIVATE_HOSTS allows)")
    if "@" in parts.netloc:
        raise _Fault("may not hold a user name or password; give the credential as api_key")
    if "#" in url or ("?" in url and not _API_VERSION.fullmatch(parts.query)):
        raise _Fault("may hold no fragment, and of queries only Azure's api-version")
    if port is None:
        port = _DEFAULT_PORTS[scheme]
    if port == 0 or port in _NON_HTTP_PORTS:
        raise _Fault(f"names the port {port}, which is not one of HTTP")
    host, ip = _host_in(parts.netloc.lower())
    _require_allowed(scheme, host, ip, policy)
    return UpstreamUrl(scheme, host, port, parts.path.rstrip("/"), parts.query)


_API_VERSION = re.compile(r"api-version=[\w.-]{1,40}", re.ASCII)
_NETLOC = re.compile(r"(?:\[(?P<v6>[0-9a-f:.]+)\]|(?P<name>[^\[\]:@%]+))(?::[0-9]*)?\Z")


def _host_in(netloc: str) -> tuple[str, Address | None]:
    """The host, and its address where it is written as one, in any spelling that a resolver would accept."""
    match = _NETLOC.match(netloc)
    if match is None:
        raise _Fault("has no host that can be read")
    try:
        if match["v6"]:
            v6 = IPv6Address(match["v6"])
            return str(v6), v6
        name = _plain(match["name"])
        if _NUMBER.match(name.rpartition(".")[2]):
            v4 = _legacy_ipv4(name)
            return str(v4), v4
    except ValueError:
        raise _Fault("holds an address that cannot be read") from None
    if not _NAME.match(name):
        raise _Fault("has no host that can be read")
    return name, None


def _legacy_ipv4(text: str) -> IPv4Address:
    """An IPv4 address as `inet_aton` and browsers read it: 1 to 4 numbers, decimal, octal (0…) or hexadecimal (0x…)."""
    pieces = text.split(".")
    if len(pieces) > 4 or not all(_NUMBER.match(piece) for piece in pieces):
        raise ValueError(text)
    *bytes_, last = [_legacy_number(piece) for piece in pieces]
    if any(byte > 255 for byte in bytes_) or last >= 256 ** (4 - len(bytes_)):
        raise ValueError(text)
    return IPv4Address(last + sum(byte << (8 * (3 - index)) for index, byte in enumerate(bytes_)))


def _legacy_number(text: str) -> int:
    if len(text) > 16:
        raise ValueError(text)
    if text.startswith("0x"):
        return int(text[2:] or "0", 16)
    return int(text, 8 if len(text) > 1 and text[0] == "0" else 10)


def _require_allowed(scheme: str, host: str, ip: Address | None, policy: EgressPolicy) -> None:
    reach = reach_of(ip) if ip is not None else reach_of_name(host)
    if reach is Reach.NEVER:
        raise _Fault(f"points to '{host}', a link-local, metadata or reserved address, which is never allowed")
    inner = _carried(ip) if ip is not None else []
    if policy.lists(host, ip) or (len(inner) == 1 and policy.lists(host, inner[0])):
        return
    if not policy.allows_reach(reach):
        raise _Fault(f"points to '{host}', a {reach} address that UPSTREAM_PRIVATE_HOSTS does not allow")
    if scheme == "http" and reach is Reach.PUBLIC:
        raise _Fault(f"must begin with https://, unless UPSTREAM_PRIVATE_HOSTS lists '{host}'")


def _network(text: str) -> Network | None:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        return None


def _plain(host: str) -> str:
    return host.lower().removesuffix(".")
