//! Compares the default policy with Python's `ipaddress`, called by tests/differential.py. Needs python3.

use std::io::{BufReader, ErrorKind, Read as _};
use std::net::{IpAddr, Ipv6Addr};
use std::process::{Command, Stdio};

use egress::Policy;
use ipnet::IpNet;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/differential.py");
/// Number of addresses to compare, unless `EGRESS_ADDRESSES` is set.
const ADDRESSES: &str = "500000";

/// Blocks refused although some Python version calls them global, with the reason.
const REFUSED_ALTHOUGH_GLOBAL: &[(&str, &str)] = &[
    ("168.63.129.16/32", "Azure's metadata service in public space"),
    ("192.0.0.0/24", "private to Python in parts only, and its anycast services are the nearest network's"),
    ("192.31.196.0/24", "AS112: the nearest network's"),
    ("192.52.193.0/24", "AMT: the nearest network's"),
    ("192.88.99.0/24", "6to4 relays: the nearest network's"),
    ("192.175.48.0/24", "AS112: the nearest network's"),
    ("224.0.0.0/4", "multicast, of which Python says so elsewhere"),
    ("::/3", "outside global unicast; private to Python only where registered"),
    ("4000::/2", "outside global unicast; private to Python only where registered"),
    ("8000::/1", "outside global unicast; private to Python only where registered"),
    (
        "2001::/23",
        "newer versions except anycast services and ORCHIDv2, which are the nearest network's or no hosts",
    ),
    ("2002::/16", "6to4: calls the IPv4 address within; global to older versions"),
    ("2620:4f:8000::/48", "AS112: the nearest network's"),
    ("3fff::/20", "documentation; global to older versions"),
];

/// Blocks let through although some Python version doesn't call them global, with the reason.
const CALLED_ALTHOUGH_NOT_GLOBAL: &[(&str, &str)] =
    &[("::ffff:0:0/96", "IPv4-mapped, judged as the IPv4 address; private to older versions, all of it")];

fn nets(documented: &[(&str, &str)]) -> Vec<IpNet> {
    documented.iter().map(|(net, _)| net.parse().unwrap()).collect()
}

#[test]
fn the_default_policy_agrees_with_python_except_for_documented_blocks() {
    let count = std::env::var("EGRESS_ADDRESSES");
    let mut child = Command::new("python3")
        .args([SCRIPT, count.as_deref().unwrap_or(ADDRESSES)])
        .stdout(Stdio::piped())
        .spawn()
        .expect("this test compares with CPython: install python3");
    let mut out = BufReader::new(child.stdout.take().expect("stdout is piped"));
    let (refused, called) = (nets(REFUSED_ALTHOUGH_GLOBAL), nets(CALLED_ALTHOUGH_NOT_GLOBAL));
    let policy = Policy::default();
    let (mut compared, mut differing, mut undocumented) = (0, 0, Vec::new());
    let mut record = [0; 17];
    loop {
        match out.read_exact(&mut record) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
            Err(error) => panic!("python3: {error}"),
        }
        let [flags, octets @ ..] = record;
        let (address, is_global) = (Ipv6Addr::from(octets), flags & 1 == 1);
        let address = if flags & 2 == 2 { IpAddr::V6(address).to_canonical() } else { IpAddr::V6(address) };
        let may_be_called = policy.judge_address(address).is_ok();
        if may_be_called != is_global {
            differing += 1;
            let documented = if is_global { &refused } else { &called };
            if !documented.iter().any(|net| net.contains(&address)) {
                undocumented.push((address, is_global));
            }
        }
        compared += 1;
    }
    assert!(child.wait().expect("python3 was started").success(), "differential.py failed");
    let sample = &undocumented[..undocumented.len().min(10)];
    assert!(sample.is_empty(), "{} of {compared} addresses differ: {sample:?}", undocumented.len());
    assert!(
        compared >= 500_000 && differing > 0,
        "{compared} addresses compared, {differing} differ as documented"
    );
}
