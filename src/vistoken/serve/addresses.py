"""Which network addresses a stranger may make the server talk to."""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

Resolve = Callable[[str, int], list[str]]
"""Host name and port -> numeric addresses."""

# Addresses that carry another address inside or lead through a gateway: what lies behind cannot
# be judged by looking at them.
_CARRIERS = tuple(
    ip_network(network)
    for network in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "192.88.99.0/24")
)


def is_public(address: str) -> bool:
    """Whether a numeric address belongs to the public internet and to one machine there.

    Args:
        address: IPv4 or IPv6, without or with a scope.
    """
    try:
        found: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    if any(found in network for network in _CARRIERS if network.version == found.version):
        return False
    if isinstance(found, IPv6Address) and found.is_site_local:
        return False
    refused = (
        found.is_private,
        found.is_loopback,
        found.is_link_local,
        found.is_multicast,
        found.is_reserved,
        found.is_unspecified,
    )
    return found.is_global and not any(refused)


def resolve_host(host: str, port: int) -> list[str]:
    """Numeric addresses of a host, by the system's resolver.

    Raises:
        OSError: It has none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    return list(dict.fromkeys(addresses))
