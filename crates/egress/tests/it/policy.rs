use std::net::{IpAddr, Ipv4Addr};

use egress::{Policy, TargetUrl};
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
fn the_first_and_the_last_address_of_each_range_are_refused_by_its_name() {
    for (first, last, name) in [
        ("0.0.0.0", "0.255.255.255", "this network"),
        ("10.0.0.0", "10.255.255.255", "private network"),
        ("100.64.0.0", "100.127.255.255", "carrier-grade NAT"),
        ("127.0.0.0", "127.255.255.255", "loopback"),
        ("168.63.129.16", "100.100.100.200", "cloud metadata"),
        ("169.254.0.0", "169.254.255.255", "link-local and cloud metadata"),
        ("172.16.0.0", "172.31.255.255", "private network"),
        ("192.0.0.0", "192.0.0.255", "protocol assignments"),
        ("192.0.2.0", "192.0.2.255", "documentation"),
        ("192.31.196.0", "192.31.196.255", "AS112 anycast"),
        ("192.52.193.0", "192.52.193.255", "AMT anycast"),
        ("192.88.99.0", "192.88.99.255", "6to4 relay anycast"),
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
        ("100:0:0:1::", "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "not global unicast"),
        ("2001::", "2001:0:ffff:ffff:ffff:ffff:ffff:ffff", "Teredo"),
        ("2001:1::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", "protocol assignments"),
        ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "documentation"),
        ("2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "6to4"),
        ("2620:4f:8000::", "2620:4f:8000:ffff:ffff:ffff:ffff:ffff", "AS112 anycast"),
        ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", "documentation"),
        ("4000::", "fbff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "not global unicast"),
        ("fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "private network"),
        ("fd00:ec2::254", "fd20:ce::254", "cloud metadata"),
        ("fe00::", "fe7f:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "not global unicast"),
        ("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "link-local"),
        ("fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "not global unicast"),
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
fn the_addresses_next_to_each_range_are_let_through() {
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
fn names_that_must_be_resolved_first_pass_the_judgement_of_the_url() {
    for url in
        ["https://example.com/", "http://localhost.example.com/", "http://notlocalhost/", "http://8.8.8.8/"]
    {
        assert_eq!(judge_url(&Policy::default(), url), Ok(()), "{url}");
    }
}

#[test]
fn a_refusal_says_what_and_why() {
    let policy = Policy::default();
    assert_eq!(judge(&policy, "10.0.0.7").unwrap_err(), "address 10.0.0.7 is refused: private network");
    assert_eq!(
        judge_url(&policy, "http://x.localhost/").unwrap_err(),
        "host x.localhost is refused: loopback"
    );
}

#[test]
fn opened_ranges_and_nothing_else_are_let_through() {
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
fn localhost_is_let_through_once_loopback_is_opened() {
    for (opened, allowed) in [("127.0.0.0/8", true), ("::1/128", true), ("10.0.0.0/8", false)] {
        assert_eq!(judge_url(&opening(&[opened]), "http://localhost:9000/").is_ok(), allowed, "{opened}");
    }
}

#[test]
fn opening_all_of_ipv6_does_not_open_mapped_ipv4() {
    let policy = opening(&["::/0"]);
    assert_eq!(judge(&policy, "::1"), Ok(()));
    assert!(judge(&policy, "::ffff:127.0.0.1").is_err());
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
