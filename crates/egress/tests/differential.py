"""Classifies addresses with is_global of Python's ipaddress, for tests/it/differential.rs to compare with.

Writes 17-byte records to stdout, for as many random addresses as the argument says and for the bounds of all
blocks: a byte that is 1 for a global address and 0 otherwise, then the address. IPv4 is written as
IPv4-mapped, with 2 added to the first byte. Half of the random addresses are IPv4, uniformly distributed; of
the IPv6 ones half lie within a block, a quarter near a bound, a quarter anywhere in global unicast. The
generator is seeded, so all runs are equal.
"""

import sys
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from random import Random

# IANA's special-purpose address registries as of 2025-10-09, and other blocks with a special meaning.
IPV4 = """
    0.0.0.0/8 0.0.0.0/32 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.0.0/29
    192.0.0.8/32 192.0.0.9/32 192.0.0.10/32 192.0.0.170/32 192.0.0.171/32 192.0.2.0/24 192.31.196.0/24 192.52.193.0/24
    192.88.99.0/24 192.88.99.2/32 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24
    240.0.0.0/4 255.255.255.255/32
    224.0.0.0/4 168.63.129.16/32
"""
IPV6 = """
    ::1/128 ::/128 ::ffff:0:0/96 64:ff9b::/96 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001::/23 2001::/32 2001:1::1/128
    2001:1::2/128 2001:1::3/128 2001:2::/48 2001:3::/32 2001:4:112::/48 2001:10::/28 2001:20::/28 2001:30::/28
    2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20 5f00::/16 fc00::/7 fe80::/10
    ::/96 ::/8 2000::/3 fec0::/10 ff00::/8
"""


def bounds(network):
    first, last = int(network.network_address), int(network.broadcast_address)
    return {n for n in (first - 1, first, first + 1, last - 1, last, last + 1) if 0 <= n < 1 << network.max_prefixlen}


def addresses(count):
    random = Random(6890)
    ipv4, ipv6 = [IPv4Network(block) for block in IPV4.split()], [IPv6Network(block) for block in IPV6.split()]
    yield from (IPv4Address(n) for n in sorted(set().union(*map(bounds, ipv4))))
    near = sorted(set().union(*map(bounds, ipv6)))
    yield from map(IPv6Address, near)
    bits, choice = random.getrandbits, random.choice
    within = [(int(block.network_address), 128 - block.prefixlen) for block in ipv6]
    for _ in range(count // 8):
        for _ in range(4):
            yield IPv4Address(bits(32))
        for _ in range(2):
            first, free = choice(within)
            yield IPv6Address(first + bits(free))
        yield IPv6Address((choice(near) + bits(16) - (1 << 15)) % (1 << 128))
        yield IPv6Address((1 << 125) + bits(125))


def main(count):
    write = sys.stdout.buffer.write
    for address in addresses(count):
        number = int(address)
        if address.version == 4:
            write(bytes((2 + address.is_global,)) + (0xFFFF << 32 | number).to_bytes(16, "big"))
        else:
            write(bytes((address.is_global,)) + number.to_bytes(16, "big"))


if __name__ == "__main__":
    main(int(sys.argv[1]))
