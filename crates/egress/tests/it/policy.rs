use std::net::{IpAddr, Ipv4Addr};

use egress::{Nat64Prefix, Nat64PrefixError, Policy, PortRange, PortRangeError, Refused, Rules, TargetUrl};
use proptest::prelude::*;

fn judge(policy: &Policy, address: &str) -> Result<(), String> {
    policy.judge_address(address.parse().unwrap()).map_err(|refused| refused.to_string())
}

fn judge_url(policy: &Policy, url: &str) -> Result<(), String> {
    policy.judge_url(&TargetUrl::parse(url).unwrap()).map_err(|refused| refused.to_string())
}

fn opening(ranges: &[&str]) -> Policy {
    Policy::new(ranges.iter().map(|range| range.parse().unwrap()).collect())
}

#[test]
fn the_first_and_last_address_of_each_block_are_refused_with_the_narrowest_blocks_name() {
    for (first, last, name) in [
        ("0.0.0.0", "0.0.0.0", "this host"),
        ("0.0.0.1", "0.255.255.255", "this network"),
        ("10.0.0.0", "10.255.255.255", "private network"),
        ("100.64.0.0", "100.127.255.255", "carrier-grade NAT"),
        ("127.0.0.0", "127.255.255.255", "loopback"),
        ("168.63.129.16", "100.100.100.200", "cloud metadata"),
        ("169.254.0.0", "169.254.255.255", "link-local"),
        ("169.254.169.254", "192.0.0.192", "cloud metadata"),
        ("172.16.0.0", "172.31.255.255", "private network"),
        ("192.0.0.0", "192.0.0.7", "IPv4 service continuity"),
        ("192.0.0.8", "192.0.0.8", "dummy address"),
        ("192.0.0.9", "192.0.0.9", "PCP anycast"),
        ("192.0.0.10", "192.0.0.10", "TURN anycast"),
        ("192.0.0.11", "192.0.0.255", "protocol assignments"),
        ("192.0.0.170", "192.0.0.171", "NAT64 discovery"),
        ("192.0.2.0", "192.0.2.255", "documentation"),
        ("192.31.196.0", "192.31.196.255", "AS112 anycast"),
        ("192.52.193.0", "192.52.193.255", "AMT anycast"),
        ("192.88.99.0", "192.88.99.255", "6to4 relay anycast"),
        ("192.88.99.2", "192.88.99.2", "6a44 relay anycast"),
        ("192.168.0.0", "192.168.255.255", "private network"),
        ("192.175.48.0", "192.175.48.255", "AS112 anycast"),
        ("198.18.0.0", "198.19.255.255", "benchmarking"),
        ("198.51.100.0", "198.51.100.255", "documentation"),
        ("203.0.113.0", "203.0.113.255", "documentation"),
        ("224.0.0.0", "239.255.255.255", "multicast"),
        ("240.0.0.0", "255.255.255.254", "reserved"),
        ("255.255.255.255", "::ffff:255.255.255.255", "broadcast"),
        ("::", "::", "unspecified"),
        ("::1", "::1", "loopback"),
        ("::2", "::255.255.255.255", "IPv4-compatible"),
        ("::fffe:0:0", "64:ff9a:ffff::", "not global unicast"),
        ("64:ff9b::", "64:ff9b::255.255.255.255", "NAT64"),
        ("64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff", "NAT64"),
        ("100::", "100::ffff:ffff:ffff:ffff", "discard only"),
        ("100:0:0:1::", "100::1:ffff:ffff:ffff:ffff", "dummy prefix"),
        ("100:0:0:2::", "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "not global unicast"),
        ("2001::", "2001:0:ffff:ffff:ffff:ffff:ffff:ffff", "Teredo"),
        ("2001:1::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", "protocol assignments"),
        ("2001:1::1", "2001:1::1", "PCP anycast"),
        ("2001:1::2", "2001:1::2", "TURN anycast"),
        ("2001:1::3", "2001:1::3", "service registration anycast"),
        ("2001:2::", "2001:2:0:ffff:ffff:ffff:ffff:ffff", "benchmarking"),
        ("2001:3::", "2001:3:ffff:ffff:ffff:ffff:ffff:ffff", "AMT anycast"),
        ("2001:4:112::", "2001:4:112:ffff:ffff:ffff:ffff:ffff", "AS112 anycast"),
        ("2001:10::", "2001:1f:ffff:ffff:ffff:ffff:ffff:ffff", "ORCHID"),
        ("2001:20::", "2001:2f:ffff:ffff:ffff:ffff:ffff:ffff", "ORCHIDv2"),
        ("2001:30::", "2001:3f:ffff:ffff:ffff:ffff:ffff:ffff", "drone remote identification"),
        ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "documentation"),
        ("2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "6to4"),
        ("2620:4f:8000::", "2620:4f:8000:ffff:ffff:ffff:ffff:ffff", "AS112 anycast"),
        ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", "documentation"),
        ("4000::", "5eff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "not global unicast"),
        ("5f00::", "5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "segment routing"),
        ("5f01::", "fbff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "not global unicast"),
        ("fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "private network"),
        ("fd00:ec2::254", "fd20:ce::254", "cloud metadata"),
        ("fe00::", "fe7f:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "not global unicast"),
        ("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "link-local"),
        ("fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "site-local"),
        ("ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "multicast"),
    ] {
        for address in [first, last] {
            let address: IpAddr = address.parse().unwrap();
            let refused = judge(&Policy::default(), &address.to_string());
            assert_eq!(refused, Err(format!("address {address} is refused: {name}")));
        }
    }
}

#[test]
fn the_addresses_adjacent_to_each_block_are_let_through() {
    for address in [
        "1.0.0.0",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "168.63.129.15",
        "168.63.129.17",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "191.255.255.255",
        "192.0.1.0",
        "192.0.1.255",
        "192.0.3.0",
        "192.31.195.255",
        "192.31.197.0",
        "192.52.192.255",
        "192.52.194.0",
        "192.88.98.255",
        "192.88.100.0",
        "192.167.255.255",
        "192.169.0.0",
        "192.175.47.255",
        "192.175.49.0",
        "198.17.255.255",
        "198.20.0.0",
        "198.51.99.255",
        "198.51.101.0",
        "203.0.112.255",
        "203.0.114.0",
        "223.255.255.255",
        "2000::",
        "2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "2001:200::",
        "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff",
        "2001:db9::",
        "2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "2003::",
        "2620:4f:7fff:ffff:ffff:ffff:ffff:ffff",
        "2620:4f:8001::",
        "3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "3fff:1000::",
        "3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    ] {
        assert_eq!(judge(&Policy::default(), address), Ok(()), "{address}");
    }
}

#[test]
fn every_spelling_of_a_refused_address_is_refused() {
    for url in [
        "http://127.0.0.1/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://127.0.0.1./",
        "http://%31%32%37.0.0.1/",
        "http://①②⑦.0.0.1/",
        "http://127。0。0。1/",
        "http://[::1]/",
        "http://[0:0:0:0:0:0:0:1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[::127.0.0.1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/",
        "http://0/",
        "http://[::]/",
        "https://169.254.169.254/latest/meta-data/",
        "http://localhost/",
        "http://LOCALHOST:8080/",
        "http://localhost./",
        "http://ｌｏｃａｌｈｏｓｔ/",
        "http://callbacks.localhost/",
        "http://callbacks.localhost./",
    ] {
        assert!(judge_url(&Policy::default(), url).is_err(), "{url}");
    }
}

#[test]
fn names_that_need_resolving_pass_judge_url() {
    for url in
        ["https://example.com/", "http://localhost.example.com/", "http://notlocalhost/", "http://8.8.8.8/"]
    {
        assert_eq!(judge_url(&Policy::default(), url), Ok(()), "{url}");
    }
}

#[test]
fn a_refusal_names_the_target_and_the_reason() {
    let policy = Policy::default();
    assert_eq!(judge(&policy, "10.0.0.7").unwrap_err(), "address 10.0.0.7 is refused: private network");
    assert_eq!(
        judge_url(&policy, "http://x.localhost/").unwrap_err(),
        "host x.localhost is refused: loopback"
    );
}

#[test]
fn only_allowed_ranges_are_let_through() {
    let policy = opening(&["10.1.0.0/16", "fd12::/16"]);
    for (address, allowed) in [
        ("10.1.2.3", true),
        ("::ffff:10.1.2.3", true),
        ("::10.1.2.3", false),
        ("64:ff9b::10.1.2.3", false),
        ("10.2.0.0", false),
        ("fd12::1", true),
        ("fd13::1", false),
        ("127.0.0.1", false),
    ] {
        assert_eq!(judge(&policy, address).is_ok(), allowed, "{address}");
    }
}

#[test]
fn localhost_is_let_through_if_loopback_is_allowed() {
    for (opened, allowed) in [("127.0.0.0/8", true), ("::1/128", true), ("10.0.0.0/8", false)] {
        assert_eq!(judge_url(&opening(&[opened]), "http://localhost:9000/").is_ok(), allowed, "{opened}");
    }
}

#[test]
fn allowing_all_of_ipv6_does_not_allow_mapped_ipv4() {
    let policy = opening(&["::/0"]);
    assert_eq!(judge(&policy, "::1"), Ok(()));
    assert!(judge(&policy, "::ffff:127.0.0.1").is_err());
}

#[test]
fn denied_ranges_are_refused_whether_public_or_allowed() {
    let ranges = |ranges: &[&str]| ranges.iter().map(|range| range.parse().unwrap()).collect();
    let policy = Policy::from(Rules {
        allow: ranges(&["10.0.0.0/8", "fd00::/8"]),
        deny: ranges(&["10.9.0.0/16", "8.8.8.0/24", "::ffff:9.9.9.0/120", "2600:1::/32", "fd00:1::/32"]),
        ..Rules::default()
    });
    for (address, allowed) in [
        ("10.8.255.255", true),
        ("10.9.0.0", false),
        ("::ffff:10.9.0.0", false),
        ("8.8.8.8", false),
        ("::ffff:8.8.8.8", false),
        ("8.8.4.4", true),
        ("9.9.9.9", false),
        ("9.9.8.255", true),
        ("2600:1::1", false),
        ("2600:2::1", true),
        ("fd00:1::1", false),
        ("fd00:2::1", true),
    ] {
        let denied = Err(format!("address {address} is refused: denied by this installation"));
        assert_eq!(judge(&policy, address), if allowed { Ok(()) } else { denied }, "{address}");
    }
}

#[test]
fn localhost_is_refused_if_loopback_is_both_allowed_and_denied() {
    let loopback = || vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
    let policy = Policy::from(Rules { allow: loopback(), deny: loopback(), ..Rules::default() });
    assert!(judge_url(&policy, "http://localhost:9000/").is_err());
}

#[test]
fn allowed_ranges_name_the_refused_blocks_that_they_open() {
    let opened = |allow: &[&str], deny: &[&str]| {
        let parsed = |ranges: &[&str]| ranges.iter().map(|range| range.parse().unwrap()).collect();
        let rules = Rules { allow: parsed(allow), deny: parsed(deny), ..Rules::default() };
        let opened = Policy::from(rules).opened();
        opened.iter().map(|(net, blocks)| format!("{net}: {}", blocks.join(", "))).collect::<Vec<_>>()
    };
    assert_eq!(
        opened(&["10.1.2.0/24", "::1/128"], &[]),
        ["10.1.2.0/24: private network", "::1/128: loopback"]
    );
    assert_eq!(opened(&["169.254.0.0/16"], &[]), ["169.254.0.0/16: cloud metadata, link-local"]);
    assert_eq!(opened(&["::ffff:10.0.0.0/104"], &[]), ["10.0.0.0/8: private network"]);
    assert!(opened(&["0.0.0.0/0"], &[])[0].contains("loopback"));
    assert_eq!(opened(&["93.184.216.0/24"], &[]), <[&str; 0]>::default());
    assert_eq!(opened(&["10.1.2.0/24"], &["10.0.0.0/8"]), <[&str; 0]>::default());
}

#[test]
fn ports_are_refused_unless_they_are_in_a_range() {
    let some = ["25".parse().unwrap(), "8000-8002".parse().unwrap()];
    let some = Policy::from(Rules { ports: some.to_vec(), ..Rules::default() });
    let default = Policy::default();
    for (policy, url, refused) in [
        (&default, "http://example.com/", None),
        (&default, "https://example.com/", None),
        (&default, "http://example.com:443/", None),
        (&default, "http://example.com:1024/", None),
        (&default, "http://example.com:65535/", None),
        (&default, "http://example.com:0/", Some(0)),
        (&default, "http://example.com:22/", Some(22)),
        (&default, "http://example.com:79/", Some(79)),
        (&default, "https://example.com:444/", Some(444)),
        (&default, "https://8.8.8.8:1023/", Some(1023)),
        (&some, "http://example.com:25/", None),
        (&some, "http://example.com:8000/", None),
        (&some, "http://example.com:8002/", None),
        (&some, "http://example.com:8003/", Some(8003)),
        (&some, "http://example.com/", Some(80)),
        (&some, "https://example.com/", Some(443)),
    ] {
        let judged = policy.judge_url(&TargetUrl::parse(url).unwrap());
        assert_eq!(judged.err(), refused.map(Refused::Port), "{url}");
    }
    assert_eq!(Refused::Port(22).to_string(), "port 22 is refused");
}

#[test]
fn a_port_range_is_one_port_or_two_in_order() {
    for (text, shown) in [("80", "80"), ("1024-65535", "1024-65535"), (" 1 - 2 ", "1-2"), ("7-7", "7")] {
        assert_eq!(text.parse::<PortRange>().unwrap().to_string(), shown);
    }
    for text in ["", "0", "0-80", "443-80", "65536", "1-65536", "-1", "80-", "-", "http", "80,443", "1-2-3"] {
        assert_eq!(text.parse::<PortRange>(), Err(PortRangeError), "{text}");
    }
}

#[test]
fn plain_http_is_refused_where_only_https_may_be_called() {
    let policy = Policy::from(Rules { https_only: true, ..Rules::default() });
    let refused = Err("http is refused: only https may be called".to_owned());
    assert_eq!(judge_url(&policy, "http://example.com:8443/"), refused);
    assert_eq!(judge_url(&policy, "https://example.com:8443/"), Ok(()));
}

/// RFC 6052, section 2.4: 192.0.2.33 under a prefix of each length.
#[test]
fn an_address_in_a_nat64_prefix_is_judged_as_the_embedded_ipv4_address() {
    for (prefix, documentation, public, loopback) in [
        ("2001:db8::/32", "2001:db8:c000:221::", "2001:db8:808:808::", "2001:db8:7f00:1::"),
        ("2001:db8:100::/40", "2001:db8:1c0:2:21::", "2001:db8:108:808:8::", "2001:db8:17f:0:1::"),
        (
            "2001:db8:122::/48",
            "2001:db8:122:c000:2:2100::",
            "2001:db8:122:808:8:800::",
            "2001:db8:122:7f00:0:100::",
        ),
        (
            "2001:db8:122:300::/56",
            "2001:db8:122:3c0:0:221::",
            "2001:db8:122:308:8:808::",
            "2001:db8:122:37f:0:1::",
        ),
        (
            "2001:db8:122:344::/64",
            "2001:db8:122:344:c0:2:2100::",
            "2001:db8:122:344:8:808:800::",
            "2001:db8:122:344:7f:0:100::",
        ),
        (
            "2001:db8:122:344::/96",
            "2001:db8:122:344::192.0.2.33",
            "2001:db8:122:344::8.8.8.8",
            "2001:db8:122:344::127.0.0.1",
        ),
        ("64:ff9b::/96", "64:ff9b::192.0.2.33", "64:ff9b::8.8.8.8", "64:ff9b::127.0.0.1"),
        ("64:ff9b:1::/48", "64:ff9b:1:c000:2:2100::", "64:ff9b:1:808:8:800::", "64:ff9b:1:7f00:0:100::"),
        ("fd00:64::/96", "fd00:64::192.0.2.33", "fd00:64::8.8.8.8", "fd00:64::127.0.0.1"),
    ] {
        let policy = Policy::from(Rules { nat64: vec![prefix.parse().unwrap()], ..Rules::default() });
        let refused = |address: &str, name| {
            let address: IpAddr = address.parse().unwrap();
            Err(format!("address {address} is refused: {name}"))
        };
        assert_eq!(judge(&policy, documentation), refused(documentation, "documentation"), "{prefix}");
        assert_eq!(judge(&policy, loopback), refused(loopback, "loopback"), "{prefix}");
        assert_eq!(judge(&policy, public), Ok(()), "{prefix}");
        assert!(judge(&Policy::default(), public).is_err(), "{prefix}");
    }
}

#[test]
fn an_address_in_a_nat64_prefix_with_reserved_bits_set_is_refused() {
    let policy = Policy::from(Rules { nat64: vec!["2600:64::/32".parse().unwrap()], ..Rules::default() });
    assert_eq!(judge(&policy, "2600:64:808:808::"), Ok(()));
    assert_eq!(
        judge(&policy, "2600:64:808:808:100::"),
        Err("address 2600:64:808:808:100:: is refused: NAT64".into())
    );
}

#[test]
fn allow_and_deny_apply_to_the_address_embedded_by_nat64() {
    let policy = Policy::from(Rules {
        allow: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
        deny: vec!["8.8.8.8/32".parse().unwrap(), "2600:64::9.0.0.0/104".parse().unwrap()],
        nat64: vec!["2600:64::/96".parse().unwrap(), "fd00:64::/96".parse().unwrap()],
        ..Rules::default()
    });
    for (address, allowed) in [
        ("2600:64::10.0.0.1", true),
        ("2600:64::8.8.8.8", false),
        ("2600:64::8.8.4.4", true),
        ("2600:64::9.9.9.9", false), // in a denied range itself
        ("9.9.9.9", true),
        ("fd00:64::127.0.0.1", false),
        ("fd00:65::127.0.0.1", true),
    ] {
        assert_eq!(judge(&policy, address).is_ok(), allowed, "{address}");
    }
}

#[test]
fn an_address_in_overlapping_nat64_prefixes_is_refused_if_one_of_them_refuses_it() {
    let nat64 = vec!["2600:64::/32".parse().unwrap(), "2600:64:808:808::/96".parse().unwrap()];
    let policy = Policy::from(Rules { nat64, ..Rules::default() });
    assert_eq!(judge(&policy, "2600:64:808:808::8.8.8.8"), Ok(()));
    assert!(judge(&policy, "2600:64:808:808::127.0.0.1").is_err());
    let nat64 = vec!["2600:64::/32".parse().unwrap(), "2600:64:7f00:1::/96".parse().unwrap()];
    assert!(judge(&Policy::from(Rules { nat64, ..Rules::default() }), "2600:64:7f00:1::8.8.8.8").is_err());
}

#[test]
fn a_nat64_prefix_needs_one_of_six_lengths_and_zero_reserved_bits() {
    for (text, error) in [
        ("2001:db8::/33", Nat64PrefixError::Length),
        ("2001:db8::/0", Nat64PrefixError::Length),
        ("2001:db8::/128", Nat64PrefixError::Length),
        ("2001:db8:0:0:100::/96", Nat64PrefixError::ReservedBits),
        ("2001:db8::", Nat64PrefixError::Syntax),
        ("10.0.0.0/32", Nat64PrefixError::Syntax),
        ("2001:db8::/129", Nat64PrefixError::Syntax),
        ("", Nat64PrefixError::Syntax),
    ] {
        assert_eq!(text.parse::<Nat64Prefix>(), Err(error), "{text}");
    }
    let kept: Nat64Prefix = "2001:db8::ffff:1/64".parse().unwrap();
    assert_eq!(kept.to_string(), "2001:db8::/64", "bits after the prefix are dropped");
}

proptest! {
    #[test]
    fn an_ipv4_mapped_address_is_judged_exactly_like_its_ipv4(bits: u32, opened: u32, prefix in 0u8..=32) {
        let ipv4 = Ipv4Addr::from_bits(bits);
        let opened = ipnet::Ipv4Net::new(Ipv4Addr::from_bits(opened), prefix).unwrap();
        for policy in [Policy::default(), Policy::new(vec![opened.into()])] {
            let plain = policy.judge_address(ipv4.into());
            let mapped = policy.judge_address(ipv4.to_ipv6_mapped().into());
            prop_assert_eq!(plain.is_ok(), mapped.is_ok());
        }
    }

    #[test]
    fn an_address_and_its_url_are_judged_alike(bits: u128, v4: u32) {
        for address in [IpAddr::from(bits.to_be_bytes()), IpAddr::from(v4.to_be_bytes())] {
            let url = match address {
                IpAddr::V4(v4) => format!("https://{v4}/"),
                IpAddr::V6(v6) => format!("https://[{v6}]/"),
            };
            let policy = Policy::default();
            prop_assert_eq!(policy.judge_url(&TargetUrl::parse(&url).unwrap()), policy.judge_address(address));
        }
    }
}
