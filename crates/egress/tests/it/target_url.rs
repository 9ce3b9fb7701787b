use contracts::MAX_URL_CHARS;
use egress::{TargetUrl, TargetUrlError};
use proptest::prelude::*;

fn parse(text: &str) -> Result<String, TargetUrlError> {
    TargetUrl::parse(text).map(|target| target.url().to_string())
}

#[test]
fn http_and_https_urls_are_accepted_unchanged() {
    for text in ["https://example.com/cb?run=1&x=%20", "http://example.com:8080/a/b", "http://[2600::1]:99/"]
    {
        assert_eq!(parse(text).as_deref(), Ok(text));
    }
}

#[test]
fn urls_that_the_contract_rules_out_are_refused() {
    for text in
        ["", "/cb", "example.com/cb", "https://", "https:///", "http://example.com:99999/", "http://[::1/"]
    {
        assert!(matches!(parse(text), Err(TargetUrlError::Syntax(_))), "{text}");
    }
    for (text, error) in [
        ("ftp://example.com/", TargetUrlError::Scheme("ftp".into())),
        ("file:///etc/passwd", TargetUrlError::Scheme("file".into())),
        ("data:text/plain,x", TargetUrlError::Scheme("data".into())),
        ("https://user@example.com/", TargetUrlError::Userinfo),
        ("https://user:pass@example.com/", TargetUrlError::Userinfo),
        ("https://:pass@example.com/", TargetUrlError::Userinfo),
        ("https://example.com/#top", TargetUrlError::Fragment),
        ("https://example.com/#", TargetUrlError::Fragment),
        (" https://example.com/", TargetUrlError::Whitespace),
        ("https://example.com/\n", TargetUrlError::Whitespace),
        ("https://exam\tple.com/", TargetUrlError::Whitespace),
        ("https://example.com/a b", TargetUrlError::Whitespace),
        ("https://example.com/\0", TargetUrlError::Whitespace),
        ("https://example.com/\u{2028}", TargetUrlError::Whitespace),
    ] {
        assert_eq!(parse(text), Err(error), "{text:?}");
    }
}

#[test]
fn the_length_limit_counts_characters() {
    let of_length = |n: usize| format!("https://example.com/{}", "é".repeat(n - 20));
    assert!(parse(&of_length(MAX_URL_CHARS)).is_ok());
    assert_eq!(parse(&of_length(MAX_URL_CHARS + 1)), Err(TargetUrlError::TooLong));
}

#[test]
fn the_origin_always_includes_the_port() {
    for (text, origin, host) in [
        ("https://Example.com/cb?x=1", "https://example.com:443", "example.com"),
        ("http://example.com", "http://example.com:80", "example.com"),
        ("https://example.com:8443/", "https://example.com:8443", "example.com"),
        ("http://[2600::0001]/", "http://[2600::1]:80", "[2600::1]"),
        ("http://2130706433/", "http://127.0.0.1:80", "127.0.0.1"),
        ("https://bücher.example/", "https://xn--bcher-kva.example:443", "xn--bcher-kva.example"),
    ] {
        let target = TargetUrl::parse(text).unwrap();
        assert_eq!((target.origin().as_str(), target.host_str()), (origin, host));
        assert_eq!(target.host().to_string(), host);
    }
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_or_the_accessors_panic(rest in "\\PC{0,40}") {
        if let Ok(target) = TargetUrl::parse(&format!("http://{rest}")) {
            prop_assert!(target.origin().starts_with("http://"));
            let again = TargetUrl::parse(target.url().as_str());
            prop_assert_eq!(again.map(|t| t.origin()), Ok(target.origin()));
        }
    }
}
