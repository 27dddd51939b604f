"""Which addresses belong to this machine and to networks of people, and not to a mirror that the site names. Pure.

A name in a playinfo is of the site's hosts, but what the name leads to is said by whoever answers for DNS. So each
address is looked at before a connection to it is begun, and no later answer counts.
"""

from __future__ import annotations

import ipaddress

_PROXIES = ipaddress.IPv6Network("fc00::/18")
"""By these, as by 198.18.0.0/15, proxies of a whole machine answer for every name: they are let through on purpose."""

_OWN_IPV6 = tuple(ipaddress.IPv6Network("fc00::/7").address_exclude(_PROXIES))
"""Everybody's own, as 10.0.0.0/8 is."""

_NETWORKS = _OWN_IPV6 + tuple(
    ipaddress.ip_network(text)
    for text in (
        *("0.0.0.0/8", "127.0.0.0/8", "::/128", "::1/128"),  # this machine
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fec0::/10"),  # at home, in an office
        "100.64.0.0/10",  # behind a provider's NAT, or of a mesh of machines
        *("169.254.0.0/16", "fe80::/10"),  # this cable; a cloud says there what its machines may know
        *("192.0.0.0/24", "224.0.0.0/4", "240.0.0.0/4", "ff00::/8"),  # nobody's own
    )
)


def is_address(host: str) -> bool:
    """Tell whether a host is named by its address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_public(text: str) -> bool:
    """Tell whether an address may be a mirror's; IPv4 that is wrapped in IPv6 counts as what is inside."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        inner = _inner(address)
        if inner is not None and not is_public(str(inner)):
            return False
    return not any(address in network for network in _NETWORKS if network.version == address.version)


_WITH_IPV4_AT_THE_END = tuple(
    ipaddress.IPv6Network(text) for text in ("::/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48")
)
"""As it was written once, and for gateways from IPv6 to IPv4 (RFC 2765, RFC 6052, RFC 8215)."""


def _inner(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if any(address in network for network in _WITH_IPV4_AT_THE_END):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
