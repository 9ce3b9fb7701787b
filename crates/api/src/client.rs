//! The address that a request comes from: the peer's, or behind trusted proxies the client's that they name.
//!
//! A header is believed as far as those who wrote it are trusted: its list is read from its end, and the first address
//! that is no trusted proxy's is the client. What stands before that is the client's own invention.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use actix_web::HttpRequest;
use actix_web::http::header::HeaderMap;
use ipnet::IpNet;

const FORWARDED: &str = "forwarded";
const X_FORWARDED_FOR: &str = "x-forwarded-for";

/// The address of the client of a request.
pub(crate) fn client(request: &HttpRequest, trusted: &[IpNet]) -> IpAddr {
    // A connection that is gone has none.
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
        // A proxy writes one of the two and may pass the other on as the client wrote it: which, nobody knows.
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

/// Whether that is the address of a proxy that is believed.
pub(crate) fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|range| range.contains(&address.to_canonical()))
}

/// All lines of a header, which are one list.
fn lines(headers: &HeaderMap, name: &str) -> Option<String> {
    let lines: Vec<&str> = headers.get_all(name).map(|line| line.to_str().unwrap_or("?")).collect();
    (!lines.is_empty()).then(|| lines.join(","))
}

/// The `for` of each element (RFC 7239 section 4); none where it is hidden, missing or no address.
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

/// The parts between separators that stand in no quotes.
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

/// An address, with or without a port, an IPv6 one with or without brackets.
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
    fn only_a_trusted_proxy_is_believed() {
        let says = [("x-forwarded-for", "203.0.113.7")];
        assert_eq!(client("10.1.2.3", &says), "203.0.113.7");
        assert_eq!(client("::ffff:10.1.2.3", &says), "203.0.113.7");
        assert_eq!(client("2001:db8:1::5", &says), "203.0.113.7");
        assert_eq!(client("192.0.2.1", &says), "192.0.2.1");
        assert_eq!(client("10.1.2.3", &[]), "10.1.2.3");
    }

    #[test]
    fn what_a_client_wrote_itself_is_not_reached() {
        let chain = |list| client("10.0.0.1", &[("x-forwarded-for", list)]);
        assert_eq!(chain("198.51.100.1, 203.0.113.7, 10.0.0.2"), "203.0.113.7");
        assert_eq!(chain("203.0.113.7:4711"), "203.0.113.7");
        assert_eq!(chain("[2001:db8::7]:4711 ,10.0.0.2"), "2001:db8::7");
        assert_eq!(chain("10.0.0.3, 10.0.0.2"), "10.0.0.3", "a client within");
        assert_eq!(chain("203.0.113.7, unknown, 10.0.0.2"), "10.0.0.2");
        assert_eq!(chain("203.0.113.7,,"), "10.0.0.1");
        let lines = [("x-forwarded-for", "198.51.100.1"), ("x-forwarded-for", "203.0.113.7")];
        assert_eq!(client("10.0.0.1", &lines), "203.0.113.7");
    }

    #[test]
    fn the_standard_header_is_read_with_its_quotes() {
        let forwarded = |list| client("10.0.0.1", &[("forwarded", list)]);
        assert_eq!(forwarded("for=203.0.113.7;proto=http;by=10.0.0.1"), "203.0.113.7");
        assert_eq!(forwarded(r#"proto=https; For="[2001:db8::7]:4711", for=10.0.0.2"#), "2001:db8::7");
        assert_eq!(forwarded(r#"for=203.0.113.7;by="a, \"b\", c""#), "203.0.113.7");
        assert_eq!(forwarded("for=198.51.100.1, for=_hidden, for=10.0.0.2"), "10.0.0.2");
        assert_eq!(forwarded("for=unknown"), "10.0.0.1");
        assert_eq!(forwarded("proto=https"), "10.0.0.1");
    }

    #[test]
    fn of_two_headers_neither_is_believed() {
        let both = [("forwarded", "for=198.51.100.1"), ("x-forwarded-for", "203.0.113.7")];
        assert_eq!(client("10.0.0.1", &both), "10.0.0.1");
    }
}
