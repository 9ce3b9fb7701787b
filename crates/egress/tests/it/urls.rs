use std::fmt::Write as _;

use egress::{Policy, TargetUrl, normalize_host};
use proptest::prelude::*;

const URLS: &str = include_str!("../urls.txt");

struct Line<'a> {
    verdict: &'a str,
    expected: &'a str,
    url: String,
}

fn lines() -> impl Iterator<Item = Line<'static>> {
    let lines = URLS.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| {
        let mut columns = line.split('\t');
        let mut next = || columns.next().unwrap_or_else(|| panic!("three columns: {line}"));
        Line { verdict: next(), expected: next(), url: unescaped(next()) }
    })
}

/// Decodes the Rust escapes in a URL of the table.
fn unescaped(text: &str) -> String {
    let mut url = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        url.push_str(before);
        let (char, length) = match after.chars().next() {
            Some('\\') => ('\\', 1),
            Some('0') => ('\0', 1),
            Some('t') => ('\t', 1),
            Some('n') => ('\n', 1),
            Some('r') => ('\r', 1),
            _ => {
                let (code, _) = after.strip_prefix("u{").and_then(|code| code.split_once('}')).expect(text);
                (char::from_u32(u32::from_str_radix(code, 16).unwrap()).expect(text), code.len() + 3)
            }
        };
        url.push(char);
        rest = &after[length..];
    }
    url + rest
}

fn judged(url: &str) -> (&'static str, String) {
    let target = match TargetUrl::parse_new(url) {
        Ok(target) => target,
        Err(error) => return ("invalid", format!("{error:?}")),
    };
    match Policy::default().judge_url(&target) {
        Ok(()) => ("accepted", target.url().to_string()),
        Err(refused) => ("blocked", refused.to_string()),
    }
}

#[test]
fn each_tricky_url_is_accepted_in_its_normalised_form_or_refused_for_the_listed_reason() {
    let mut wrong = String::new();
    for Line { verdict, expected, url } in lines() {
        let (is, shows) = judged(&url);
        if (is, &*shows) != (verdict, expected) {
            writeln!(wrong, "{url:?}\n    expected {verdict} {expected}\n    found    {is} {shows}").unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(lines().count() >= 300);
}

/// Checks that the stored form of `url` is ASCII, parses to the same target again, and is left unchanged by
/// the HTTP client.
fn require_stored_form(url: &str) {
    let Ok(target) = TargetUrl::parse_new(url) else { return };
    let stored = target.url().as_str();
    assert!(stored.is_ascii() && stored.len() <= 2048, "{stored}");
    assert_eq!(TargetUrl::parse_new(stored).as_ref(), Ok(&target), "{stored}");
    assert_eq!(stored.parse::<http::Uri>().unwrap(), stored);
    assert_eq!(normalize_host(target.host_str()).as_deref(), Ok(target.host_str()), "{stored}");
}

#[test]
fn the_stored_form_of_each_tricky_url_is_sent_unchanged() {
    lines().for_each(|line| require_stored_form(&line.url));
}

proptest! {
    #[test]
    fn the_stored_form_of_any_url_is_sent_unchanged(
        host in "[a-zé漢0-9._%。-]{1,12}",
        rest in "(:[0-9]{0,5})?([/?]\\PC{0,20})?",
    ) {
        require_stored_form(&format!("https://{host}{rest}"));
    }
}

/// Such rows must stay callable.
#[test]
fn urls_recorded_under_looser_rules_still_parse() {
    for (url, read) in [
        ("http:example.com/hook", "http://example.com/hook"),
        ("https:\\\\example.com\\hook", "https://example.com/hook"),
        ("https://@example.com/", "https://example.com/"),
        ("https://Example.com:443/é", "https://example.com/%C3%A9"),
    ] {
        assert_eq!(TargetUrl::parse(url).unwrap().url().as_str(), read);
    }
    let grown = format!("https://example.com/{}", "é".repeat(2028));
    assert!(TargetUrl::parse(&grown).is_ok());
}
