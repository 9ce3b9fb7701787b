//! Fields of a response's head for the record.

use std::collections::BTreeMap;

use reqwest::header::{CONTENT_TYPE, HeaderMap, LOCATION};

/// Maximum size of a response head, in bytes.
pub(crate) const MAX_HEAD: usize = 64 * 1024;
/// Maximum number of headers in a response head.
pub(crate) const MAX_HEADERS: usize = 500;
/// Failure detail for a larger head.
pub(crate) const HEAD_TOO_LARGE: &str = "the response's head is too large: more than 64 KiB or 500 headers";

/// The headers to record: those that identify the responder or say what to do.
const KEPT: [&str; 10] = [
    "allow",
    "cf-ray",
    "location",
    "request-id",
    "retry-after",
    "server",
    "via",
    "www-authenticate",
    "x-amzn-requestid",
    "x-request-id",
];
/// Maximum length of a recorded value, in bytes.
const VALUE_KEPT: usize = 256;

/// Returns the size of a head with these headers in bytes, without its first line.
pub(crate) fn head_size(headers: &HeaderMap) -> usize {
    // Each header has a colon, a space and a line end.
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

/// Returns the response's `Content-Type` for the record.
pub(crate) fn content_type(headers: &HeaderMap) -> Option<String> {
    headers.get(CONTENT_TYPE).map(|value| kept(value.as_bytes()))
}

/// Returns the headers to record. Several values of one name are joined by commas.
pub(crate) fn kept_headers(headers: &HeaderMap) -> BTreeMap<String, String> {
    let values = |name: &str| {
        let values = headers.get_all(name).iter().map(|value| kept(value.as_bytes()));
        let joined = values.collect::<Vec<_>>().join(", ");
        (!joined.is_empty()).then(|| kept(joined.as_bytes()))
    };
    let found = KEPT.iter().filter_map(|name| Some(((*name).to_owned(), values(name)?)));
    let found = found.map(|(name, value)| {
        // A redirect's query and user may be secret; that it leads to a login page is not.
        let value = if name == LOCATION.as_str() { without_secrets(&value) } else { value };
        (name, value)
    });
    found.collect()
}

/// Returns a URL without user, password and query.
fn without_secrets(url: &str) -> String {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    let (url, query) = url.split_at(end);
    let query = if query.is_empty() { "" } else { "?…" };
    let Some((scheme, rest)) = url.split_once("//") else { return format!("{url}{query}") };
    let authority_end = rest.find('/').unwrap_or(rest.len());
    let host = rest[..authority_end].rfind('@').map_or(0, |at| at + 1);
    format!("{scheme}//{}{query}", &rest[host..])
}

/// Returns a value as recorded: shortened and without control characters, such as NUL, which PostgreSQL
/// refuses.
fn kept(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(value);
    let text = text.replace(char::is_control, " ");
    text[..text.floor_char_boundary(VALUE_KEPT)].trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_kept_without_user_and_query() {
        for (location, kept) in [
            ("https://user:pw@example.com:8443/a?b#c", "https://example.com:8443/a?…"),
            ("https://user@example.com", "https://example.com"),
            ("//user@example.com/a@b", "//example.com/a@b"),
            ("/a/@b?c", "/a/@b?…"),
            ("a@b", "a@b"),
        ] {
            assert_eq!(without_secrets(location), kept);
        }
    }

    fn headers(given: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn selected_headers_are_kept_short_and_without_the_query_of_a_location() {
        let long = "é".repeat(1_000);
        let kept = kept_headers(&headers(&[
            ("location", "https://example.com/login?token=secret"),
            ("server", "a\tb"),
            ("retry-after", "1"),
            ("retry-after", "30"),
            ("via", &long),
            ("set-cookie", "session=secret"),
        ]));
        let kept: Vec<_> = kept.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(
            kept,
            [
                ("location", "https://example.com/login?…"),
                ("retry-after", "1, 30"),
                ("server", "a b"),
                ("via", "é".repeat(VALUE_KEPT / 2).as_str()),
            ]
        );
    }
}
