//! Address blocks that are refused unless the settings allow them.

use std::net::IpAddr;
use std::sync::LazyLock;

use ipnet::IpNet;

/// All refused blocks with their names. The trailing comment is each block's source.
///
/// "IPv4" and "IPv6" mean IANA's special-purpose address registries as of 2025-10-09. All their blocks are
/// listed, except IPv4-mapped addresses, which are judged as the IPv4 addresses they reach. Blocks that the
/// registries call globally reachable are refused too: they reach a service of the nearest network (AS112,
/// AMT, PCP, relays), which may be ours. IPv6 is an allow-list: everything outside 2000::/3 is refused (RFC
/// 4291, section 2.4).
const BLOCKS: &[(&str, &str)] = &[
    ("0.0.0.0/8", "this network"),                     // IPv4, RFC 791
    ("0.0.0.0/32", "this host"),                       // IPv4, RFC 1122
    ("10.0.0.0/8", "private network"),                 // IPv4, RFC 1918
    ("100.64.0.0/10", "carrier-grade NAT"),            // IPv4, RFC 6598
    ("100.100.100.200/32", "cloud metadata"),          // Alibaba Cloud's documentation
    ("127.0.0.0/8", "loopback"),                       // IPv4, RFC 1122
    ("168.63.129.16/32", "cloud metadata"),            // Azure's documentation; public space
    ("169.254.0.0/16", "link-local"),                  // IPv4, RFC 3927
    ("169.254.169.254/32", "cloud metadata"),          // documentation of AWS and most other clouds
    ("172.16.0.0/12", "private network"),              // IPv4, RFC 1918
    ("192.0.0.0/24", "protocol assignments"),          // IPv4, RFC 6890
    ("192.0.0.0/29", "IPv4 service continuity"),       // IPv4, RFC 7335
    ("192.0.0.8/32", "dummy address"),                 // IPv4, RFC 7600
    ("192.0.0.9/32", "PCP anycast"),                   // IPv4, RFC 7723
    ("192.0.0.10/32", "TURN anycast"),                 // IPv4, RFC 8155
    ("192.0.0.170/31", "NAT64 discovery"),             // IPv4, RFC 8880 and RFC 7050; two entries
    ("192.0.0.192/32", "cloud metadata"),              // Oracle Cloud's documentation
    ("192.0.2.0/24", "documentation"),                 // IPv4, RFC 5737
    ("192.31.196.0/24", "AS112 anycast"),              // IPv4, RFC 7535
    ("192.52.193.0/24", "AMT anycast"),                // IPv4, RFC 7450
    ("192.88.99.0/24", "6to4 relay anycast"),          // IPv4, RFC 7526
    ("192.88.99.2/32", "6a44 relay anycast"),          // IPv4, RFC 6751
    ("192.168.0.0/16", "private network"),             // IPv4, RFC 1918
    ("192.175.48.0/24", "AS112 anycast"),              // IPv4, RFC 7534
    ("198.18.0.0/15", "benchmarking"),                 // IPv4, RFC 2544
    ("198.51.100.0/24", "documentation"),              // IPv4, RFC 5737
    ("203.0.113.0/24", "documentation"),               // IPv4, RFC 5737
    ("224.0.0.0/4", "multicast"),                      // IANA IPv4 address space, RFC 5771
    ("240.0.0.0/4", "reserved"),                       // IPv4, RFC 1112
    ("255.255.255.255/32", "broadcast"),               // IPv4, RFC 8190 and RFC 919
    ("::/3", "not global unicast"),                    // IANA IPv6 address space
    ("::/96", "IPv4-compatible"),                      // RFC 4291; a tunnel may reach the embedded IPv4 one
    ("::/128", "unspecified"),                         // IPv6, RFC 4291
    ("::1/128", "loopback"),                           // IPv6, RFC 4291
    ("64:ff9b::/96", "NAT64"), // IPv6, RFC 6052; a translator may reach the embedded IPv4 address
    ("64:ff9b:1::/48", "NAT64"), // IPv6, RFC 8215; likewise
    ("100::/64", "discard only"), // IPv6, RFC 6666
    ("100:0:0:1::/64", "dummy prefix"), // IPv6, RFC 9780
    ("2001::/23", "protocol assignments"), // IPv6, RFC 2928
    ("2001::/32", "Teredo"),   // IPv6, RFC 4380 and RFC 8190; embeds an IPv4 address
    ("2001:1::1/128", "PCP anycast"), // IPv6, RFC 7723
    ("2001:1::2/128", "TURN anycast"), // IPv6, RFC 8155
    ("2001:1::3/128", "service registration anycast"), // IPv6, RFC 9665
    ("2001:2::/48", "benchmarking"), // IPv6, RFC 5180
    ("2001:3::/32", "AMT anycast"), // IPv6, RFC 7450
    ("2001:4:112::/48", "AS112 anycast"), // IPv6, RFC 7535
    ("2001:10::/28", "ORCHID"), // IPv6, RFC 4843
    ("2001:20::/28", "ORCHIDv2"), // IPv6, RFC 7343
    ("2001:30::/28", "drone remote identification"), // IPv6, RFC 9374
    ("2001:db8::/32", "documentation"), // IPv6, RFC 3849
    ("2002::/16", "6to4"),     // IPv6, RFC 3056; embeds an IPv4 address
    ("2620:4f:8000::/48", "AS112 anycast"), // IPv6, RFC 7534
    ("3fff::/20", "documentation"), // IPv6, RFC 9637
    ("4000::/2", "not global unicast"), // IANA IPv6 address space
    ("5f00::/16", "segment routing"), // IPv6, RFC 9602
    ("8000::/1", "not global unicast"), // IANA IPv6 address space
    ("fc00::/7", "private network"), // IPv6, RFC 4193 and RFC 8190
    ("fd00:ec2::254/128", "cloud metadata"), // AWS's documentation
    ("fd20:ce::254/128", "cloud metadata"), // Google Cloud's documentation
    ("fe80::/10", "link-local"), // IPv6, RFC 4291
    ("fec0::/10", "site-local"), // RFC 3879
    ("ff00::/8", "multicast"), // IANA IPv6 address space, RFC 4291
];

/// [`BLOCKS`], narrowest first.
static BY_LENGTH: LazyLock<Vec<(IpNet, &str)>> = LazyLock::new(|| {
    let parsed = BLOCKS.iter().map(|&(block, name)| (block.parse().expect("BLOCKS holds CIDRs"), name));
    let mut blocks: Vec<(IpNet, &str)> = parsed.collect();
    blocks.sort_by_key(|(block, _)| std::cmp::Reverse(block.prefix_len()));
    blocks
});

/// Returns the name of the narrowest refused block that contains `address`. `None`: the address is public.
pub(crate) fn block_name(address: IpAddr) -> Option<&'static str> {
    BY_LENGTH.iter().find(|(block, _)| block.contains(&address)).map(|&(_, name)| name)
}

/// Returns the names of the refused blocks that `net` overlaps: those inside it, or the narrowest that contains
/// it. Empty: all its addresses are public.
pub(crate) fn block_names(net: &IpNet) -> Vec<&'static str> {
    let mut names: Vec<&'static str> = Vec::new();
    for (_, name) in BY_LENGTH.iter().filter(|(block, _)| net.contains(block)) {
        if !names.contains(name) {
            names.push(name);
        }
    }
    if names.is_empty() {
        names.extend(BY_LENGTH.iter().find(|(block, _)| block.contains(net)).map(|(_, name)| name));
    }
    names
}
