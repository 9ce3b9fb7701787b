//! The address of a request's client: the peer's or, behind trusted proxies, the one they name.
//!
//! A header is trusted only as far as the proxies that wrote it: its list is read from the end, and the first
//! address that is not a trusted proxy's is the client. Earlier entries may be forged by the client.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use actix_web::HttpRequest;
use actix_web::http::header::HeaderMap;
use ipnet::IpNet;

const FORWARDED: &str = "forwarded";
const X_FORWARDED_FOR: &str = "x-forwarded-for";

/// Returns the address of a request's client.
pub(crate) fn client(request: &HttpRequest, trusted: &[IpNet]) -> IpAddr {
    // A closed connection has no address.
    let peer = request.peer_addr().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.ip());
    client_of(peer, request.headers(), trusted)
}

fn client_of(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let mut client = peer.to_canonical();
    if !is_trusted(client, trusted) {
        return client;
    }
    let hops = match (lines(headers, FORWARDED), lines(headers, X_FORWARDED_FOR)) {
        (forwarded, None) => forwarded.map(|list| forwarded_hops(&list)),
        (None, Some(list)) => Some(list.split(',').map(address).collect()),
        // A proxy writes one of the two and may pass on the other as sent by the client. Which one is
        // unknown.
        (Some(_), Some(_)) => None,
    };
    for hop in hops.unwrap_or_default().into_iter().rev() {
        let Some(address) = hop else { break };
        client = address;
        if !is_trusted(address, trusted) {
            break;
        }
    }
    client
}

/// Whether `address` belongs to a trusted proxy.
pub(crate) fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|range| range.contains(&address.to_canonical()))
}

/// Joins all lines of a header into one list.
fn lines(headers: &HeaderMap, name: &str) -> Option<String> {
    let lines: Vec<&str> = headers.get_all(name).map(|line| line.to_str().unwrap_or("?")).collect();
    (!lines.is_empty()).then(|| lines.join(","))
}

/// Returns the `for` of each element (RFC 7239 section 4). `None` if it is hidden, missing or not an address.
fn forwarded_hops(list: &str) -> Vec<Option<IpAddr>> {
    let is_for = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then(|| address(value.trim().trim_matches('"')))?
    };
    unquoted(list, ',')
        .into_iter()
        .map(|element| unquoted(element, ';').into_iter().find_map(is_for))
        .collect()
}

/// Splits `text` at separators outside of quotes.
fn unquoted(text: &str, separator: char) -> Vec<&str> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    text.split(|c: char| {
        let was_escaped = is_escaped;
        is_escaped = is_quoted && !was_escaped && c == '\\';
        if c == '"' && !was_escaped {
            is_quoted = !is_quoted;
        }
        c == separator && !is_quoted
    })
    .collect()
}

/// Parses an address with or without a port. An IPv6 address may be in brackets.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()));
    address.map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};

    use super::*;

    fn client(peer: &str, headers: &[(&str, &str)]) -> String {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        }
        let trusted = ["10.0.0.0/8", "2001:db8:1::/48"].map(|range| range.parse().unwrap());
        client_of(peer.parse().unwrap(), &map, &trusted).to_string()
    }

    #[test]
    fn a_header_is_used_only_if_a_trusted_proxy_sent_it() {
        let says = [("x-forwarded-for", "203.0.113.7")];
        assert_eq!(client("10.1.2.3", &says), "203.0.113.7");
        assert_eq!(client("::ffff:10.1.2.3", &says), "203.0.113.7");
        assert_eq!(client("2001:db8:1::5", &says), "203.0.113.7");
        assert_eq!(client("192.0.2.1", &says), "192.0.2.1");
        assert_eq!(client("10.1.2.3", &[]), "10.1.2.3");
    }

    #[test]
    fn entries_written_by_the_client_are_ignored() {
        let chain = |list| client("10.0.0.1", &[("x-forwarded-for", list)]);
        assert_eq!(chain("198.51.100.1, 203.0.113.7, 10.0.0.2"), "203.0.113.7");
        assert_eq!(chain("203.0.113.7:4711"), "203.0.113.7");
        assert_eq!(chain("[2001:db8::7]:4711 ,10.0.0.2"), "2001:db8::7");
        assert_eq!(chain("10.0.0.3, 10.0.0.2"), "10.0.0.3", "a client inside a trusted range");
        assert_eq!(chain("203.0.113.7, unknown, 10.0.0.2"), "10.0.0.2");
        assert_eq!(chain("203.0.113.7,,"), "10.0.0.1");
        let lines = [("x-forwarded-for", "198.51.100.1"), ("x-forwarded-for", "203.0.113.7")];
        assert_eq!(client("10.0.0.1", &lines), "203.0.113.7");
    }

    #[test]
    fn quoted_strings_in_forwarded_are_parsed() {
        let forwarded = |list| client("10.0.0.1", &[("forwarded", list)]);
        assert_eq!(forwarded("for=203.0.113.7;proto=http;by=10.0.0.1"), "203.0.113.7");
        assert_eq!(forwarded(r#"proto=https; For="[2001:db8::7]:4711", for=10.0.0.2"#), "2001:db8::7");
        assert_eq!(forwarded(r#"for=203.0.113.7;by="a, \"b\", c""#), "203.0.113.7");
        assert_eq!(forwarded("for=198.51.100.1, for=_hidden, for=10.0.0.2"), "10.0.0.2");
        assert_eq!(forwarded("for=unknown"), "10.0.0.1");
        assert_eq!(forwarded("proto=https"), "10.0.0.1");
    }

    #[test]
    fn neither_header_is_used_if_both_are_present() {
        let both = [("forwarded", "for=198.51.100.1"), ("x-forwarded-for", "203.0.113.7")];
        assert_eq!(client("10.0.0.1", &both), "10.0.0.1");
    }
}
