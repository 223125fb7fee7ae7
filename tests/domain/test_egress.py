"""Where the gateway may connect to: the class of every spelling of an address, and what the setting can and cannot allow."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.egress import LAPTOP, NOTHING_PRIVATE, EgressPolicy, Reach, Verdict, checked_url, reach_of, verdict
from app.exceptions import InvalidRequest

EVERYTHING = EgressPolicy.parse("loopback, private, 0.0.0.0/0, ::/0, metadata.google.internal, *.internal, *.com")

NEVER = [
    *("https://169.254.169.254/latest", "https://168.63.129.16", "https://100.100.100.200", "https://0.0.0.0"),
    *("https://[fe80::1]", "https://[fd00:ec2::254]", "https://[::]", "https://224.0.0.1", "https://255.255.255.255"),
    *("https://metadata.google.internal", "https://METADATA.google.internal.", "https://metadata"),
    *("https://[::ffff:169.254.169.254]", "https://[64:ff9b::a9fe:a9fe]", "https://[2002:a9fe:a9fe::1]"),
    *("https://2852039166", "https://0xa9fea9fe", "https://0251.0376.0251.0376", "https://169.254.43518"),
]
MALFORMED = [
    *(
        "file:///etc/passwd",
        "gopher://example.com",
        "ftp://example.com",
        "//example.com",
        "example.com",
        "",
        "https://",
    ),
    *("https://user:pass@example.com", "https://user@example.com", "https://example.com:22", "https://example.com:0"),
    *("https://example.com:99999", "https://example.com:6379", "https://example.com#x", "https://example.com/?key=1"),
    *("https://exa mple.com", "https://example.com\\@evil.com", "https://example.com\n", "https://ex\x00ample.com"),
    *(
        "https://１２７.0.0.1",
        "https://exämple.com",
        "https://[::1",
        "https://[::1]evil.com",
        "https://[fe80::1%25eth0]",
    ),
    *(
        "https://256.256.256.256",
        "https://1.2.3.4.5",
        "https://0x",
        "https://a..b",
        "https://-a.com",
        "https://%31.com",
    ),
    *(
        "https://example.com?api-version=",
        "https://example.com?api-version=1&key=2",
        "https://example.com?api-version=a b",
    ),
    "https://example.com/" + "a" * 10_000,
]
LOOPBACK = [
    *(
        "http://localhost:11434/v1",
        "https://localhost",
        "https://a.localhost",
        "https://127.0.0.1",
        "https://127.9.9.9",
    ),
    *("https://[::1]", "https://[::ffff:127.0.0.1]", "https://2130706433", "https://0x7f000001", "https://0177.1"),
    *("https://127.1", "https://[::127.0.0.1]", "https://[64:ff9b::7f00:1]", "https://localhost."),
]
PRIVATE = [
    *("https://10.0.0.1", "https://172.16.9.9", "https://192.168.1.1", "https://100.64.0.1", "https://[fd12::1]"),
    *(
        "http://10.0.0.1:8080/v1",
        "https://vllm",
        "http://ollama:11434",
        "https://llm.internal",
        "https://[2002:a00:1::]",
    ),
]


@pytest.mark.parametrize("url", NEVER)
def test_link_local_metadata_and_reserved_addresses_are_refused_whatever_the_setting(url: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        checked_url(url, EVERYTHING)

    assert refusal.value.param == "api_base"
    assert "never allowed" in refusal.value.message


@pytest.mark.parametrize("url", MALFORMED)
def test_what_is_no_plain_http_url_is_refused_whatever_the_setting(url: str) -> None:
    with pytest.raises(InvalidRequest):
        checked_url(url, EVERYTHING)


@pytest.mark.parametrize("url", LOOPBACK)
def test_loopback_is_refused_unless_the_setting_allows_it(url: str) -> None:
    with pytest.raises(InvalidRequest):
        checked_url(url, NOTHING_PRIVATE)
    with pytest.raises(InvalidRequest):
        checked_url(url, EgressPolicy.parse("private"))
    checked_url(url, EgressPolicy.parse("loopback"))


@pytest.mark.parametrize("url", PRIVATE)
def test_private_places_are_refused_unless_the_setting_allows_them(url: str) -> None:
    with pytest.raises(InvalidRequest):
        checked_url(url, NOTHING_PRIVATE)
    with pytest.raises(InvalidRequest):
        checked_url(url, EgressPolicy.parse("loopback"))
    checked_url(url, EgressPolicy.parse("private"))


def test_public_https_is_allowed_and_public_http_only_where_listed() -> None:
    assert checked_url("https://api.openai.com/v1", NOTHING_PRIVATE).text == "https://api.openai.com/v1"
    for policy in (NOTHING_PRIVATE, LAPTOP):
        with pytest.raises(InvalidRequest):
            checked_url("http://api.openai.com/v1", policy)
    checked_url("http://llm.example.com/v1", EgressPolicy.parse("llm.example.com"))


def test_a_url_is_stored_in_its_plain_spelling() -> None:
    assert checked_url("HTTPS://API.OpenAI.com:443/v1/", NOTHING_PRIVATE).text == "https://api.openai.com/v1"
    assert checked_url("http://0x7f.1:8080/", LAPTOP).text == "http://127.0.0.1:8080"
    assert checked_url("https://[0:0::1]:8443/v1", LAPTOP).text == "https://[::1]:8443/v1"


def test_listed_names_suffixes_and_networks_are_allowed_and_their_neighbours_are_not() -> None:
    policy = EgressPolicy.parse("llm.internal *.corp.example.com, 10.1.0.0/16")

    assert verdict("10.9.0.1", "llm.internal", policy) is Verdict.ALLOWED
    assert verdict("10.9.0.1", "a.b.corp.example.com", policy) is Verdict.ALLOWED
    assert verdict("10.1.2.3", "anything.example.org", policy) is Verdict.ALLOWED
    assert verdict("::ffff:10.1.2.3", "anything.example.org", policy) is Verdict.ALLOWED
    assert verdict("10.9.0.1", "corp.example.com.evil.org", policy) is Verdict.NOT_LISTED
    assert verdict("10.2.0.1", "anything.example.org", policy) is Verdict.NOT_LISTED
    assert verdict("169.254.169.254", "llm.internal", policy) is Verdict.NEVER


def test_a_name_that_resolves_to_a_private_address_is_stopped_when_it_is_dialled() -> None:
    checked_url("https://rebinding.example.com", NOTHING_PRIVATE)

    for address in ("127.0.0.1", "10.0.0.1", "::1", "fd00::1", "::ffff:192.168.0.1"):
        assert verdict(address, "rebinding.example.com", NOTHING_PRIVATE) is Verdict.NOT_LISTED
    assert verdict("no address", "rebinding.example.com", EVERYTHING) is Verdict.NEVER


@pytest.mark.parametrize("value", ["http://a", "a/b", "10.0.0.0/99", "a b$c", "*", "-a"])
def test_a_setting_that_cannot_be_read_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="neither a host name"):
        EgressPolicy.parse(value)


@given(
    st.ip_addresses(v=4), st.sampled_from(["::ffff:{}", "64:ff9b::{}", "::ffff:0:{}", "2002:{hex}::1", "fe81::5efe:{}"])
)
def test_an_address_inside_another_is_never_judged_milder_than_alone(inner: IPv4Address, form: str) -> None:
    number = f"{int(inner):08x}"
    outer = ip_address(form.format(inner, hex=f"{number[:4]}:{number[4:]}"))

    badness = list(Reach)
    assert badness.index(reach_of(outer)) >= badness.index(reach_of(inner))


@given(st.ip_addresses(v=4))
def test_every_spelling_of_an_address_is_judged_like_its_usual_one(ip: IPv4Address) -> None:
    number = int(ip)
    first, second, third, fourth = ip.packed
    spellings = [
        *(str(number), f"0x{number:x}", f"{first}.{number & 0xFFFFFF}", f"{first}.{second}.{number & 0xFFFF}"),
        *(f"0{first:o}.0{second:o}.0{third:o}.0{fourth:o}", f"0x{first:x}.{second}.0{third:o}.{fourth}", f"{ip}."),
    ]
    for policy in (NOTHING_PRIVATE, LAPTOP):
        assert len({_outcome(f"https://{spelling}", policy) for spelling in [str(ip), *spellings]}) == 1


@given(st.ip_addresses())
def test_what_a_saved_url_may_name_may_also_be_dialled(ip: IPv4Address | IPv6Address) -> None:
    host = f"[{ip}]" if ip.version == 6 else str(ip)
    for policy in (NOTHING_PRIVATE, LAPTOP, EVERYTHING):
        is_savable = _outcome(f"https://{host}", policy) is not None
        assert is_savable == policy.allows_address(str(ip), ip)


@given(
    st.sampled_from(["169.254.0.0/16", "fe80::/10", "224.0.0.0/4", "ff00::/8", "0.0.0.0/8", "240.0.0.0/4"]).flatmap(
        lambda network: st.ip_addresses(network=network)
    )
)
def test_the_widest_setting_still_refuses_what_is_never_allowed(ip: IPv4Address | IPv6Address) -> None:
    assert verdict(ip, "metadata.google.internal", EVERYTHING) is Verdict.NEVER


@given(st.text(max_size=60))
def test_no_text_makes_the_check_fail_in_any_other_way_than_by_refusing(text: str) -> None:
    for url in (text, f"https://{text}", f"https://example.com:{text}", f"https://[{text}]/"):
        _outcome(url, EVERYTHING)


def _outcome(url: str, policy: EgressPolicy) -> str | None:
    try:
        return checked_url(url, policy).text
    except InvalidRequest:
        return None


def test_azures_api_version_is_the_one_query_that_a_base_may_hold() -> None:
    url = checked_url("https://R.openai.azure.com/?api-version=2024-10-21", NOTHING_PRIVATE)
    assert url.text == "https://r.openai.azure.com?api-version=2024-10-21"
