//! Decoding of the start of a response body to text for the record.

use std::io::Read;

use encoding_rs::{Encoding, UTF_8};
use engine::{BODY_KEPT, kept_body};
use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap};

/// Maximum number of decoded bytes of a body. In no charset does [`BODY_KEPT`] need more.
const DECODED: u64 = 4 * BODY_KEPT as u64;

/// Maximum length of an unknown coding's name in the record, in bytes.
const CODING_SHOWN: usize = 32;

/// Returns the start of the body as text, by its `Content-Encoding` and charset. `body` may be truncated
/// anywhere.
pub(crate) fn text(headers: &HeaderMap, body: &[u8]) -> String {
    if body.is_empty() {
        return String::new();
    }
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let coding = header(CONTENT_ENCODING).trim().to_ascii_lowercase();
    let decoded = match coding.as_str() {
        "" | "identity" => return decode(header(CONTENT_TYPE), body),
        "gzip" | "x-gzip" => inflate(MultiGzDecoder::new(body)),
        // Some receivers send zlib, as RFC 9110 requires, others raw deflate.
        "deflate" => inflate(ZlibDecoder::new(body)).or_else(|| inflate(DeflateDecoder::new(body))),
        _ => None,
    };
    match decoded {
        Some(decoded) => decode(header(CONTENT_TYPE), &decoded),
        None => {
            let coding = &coding[..coding.floor_char_boundary(CODING_SHOWN)];
            format!("({} bytes with Content-Encoding: {coding})", body.len())
        }
    }
}

/// Decompresses as much of the input as possible. `None`: nothing could be decompressed.
fn inflate(decoder: impl Read) -> Option<Vec<u8>> {
    let mut decoded = Vec::new();
    // Truncated input ends with an error; the bytes before it are good.
    let _ = decoder.take(DECODED).read_to_end(&mut decoded);
    (!decoded.is_empty()).then_some(decoded)
}

fn decode(content_type: &str, body: &[u8]) -> String {
    let named = charset(content_type).and_then(|label| Encoding::for_label(label.as_bytes()));
    let (encoding, mark) = Encoding::for_bom(body).unwrap_or((named.unwrap_or(UTF_8), 0));
    let body = &body[mark..];
    if encoding == UTF_8 {
        return kept_body(body);
    }
    let start = &body[..body.len().min(DECODED as usize)];
    kept_body(encoding.decode_without_bom_handling(start).0.as_bytes())
}

/// Returns the parameter `charset` of a media type (RFC 9110, section 8.3.1).
fn charset(content_type: &str) -> Option<&str> {
    content_type.split(';').skip(1).find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("charset").then(|| value.trim().trim_matches('"'))
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

    use super::*;

    fn headers(content_type: &str, coding: &str) -> HeaderMap {
        let given = [(CONTENT_TYPE, content_type), (CONTENT_ENCODING, coding)];
        let given = given.into_iter().filter(|(_, value)| !value.is_empty());
        given.map(|(name, value)| (name, value.parse().unwrap())).collect()
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_body_is_decoded_by_its_charset() {
        for (content_type, body, expected) in [
            ("text/plain", "Fehler: zu groß".as_bytes(), "Fehler: zu groß"),
            ("text/plain; charset=iso-8859-1", b"zu gro\xdf".as_slice(), "zu groß"),
            ("text/html; boundary=x; Charset=\"windows-1252\"", b"\x80 5", "€ 5"),
            ("text/plain; charset=Shift_JIS", b"\x83\x47\x83\x89\x81\x5b", "エラー"),
            ("text/plain; charset=utf-16", b"o\0k\0", "ok"),
            // The byte order mark takes precedence.
            ("text/plain; charset=iso-8859-1", b"\xef\xbb\xbf\xc3\x9f", "ß"),
            ("text/plain; charset=no-such-charset", b"a\xffb", "a\u{fffd}b"),
            ("", b"a\0b", "ab"),
        ] {
            assert_eq!(text(&headers(content_type, ""), body), expected, "{content_type}");
        }
    }

    #[test]
    fn a_compressed_body_is_decoded_as_far_as_it_was_received() {
        let long = "no such run. ".repeat(10_000);
        let whole = gzip(long.as_bytes());
        let cut = &whole[..whole.len() / 2];
        for body in [whole.as_slice(), cut] {
            let read = text(&headers("text/plain", "gzip"), body);
            assert_eq!(read, long[..BODY_KEPT]);
        }
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
        zlib.write_all(b"no such run").unwrap();
        let mut bare = DeflateEncoder::new(Vec::new(), Compression::default());
        bare.write_all(b"no such run").unwrap();
        for body in [zlib.finish().unwrap(), bare.finish().unwrap()] {
            assert_eq!(text(&headers("", "deflate"), &body), "no such run");
        }
        let latin = gzip(b"zu gro\xdf");
        assert_eq!(text(&headers("text/plain; charset=latin1", "x-gzip"), &latin), "zu groß");
    }

    #[test]
    fn a_body_that_cannot_be_decompressed_is_described() {
        assert_eq!(text(&headers("", "zstd"), b"\x28\xb5\x2f"), "(3 bytes with Content-Encoding: zstd)");
        assert_eq!(text(&headers("", "gzip"), b"no gzip"), "(7 bytes with Content-Encoding: gzip)");
        assert_eq!(text(&headers("", "gzip"), b""), "");
        let long = text(&headers("", &"z".repeat(60_000)), b"x");
        assert_eq!(long, format!("(1 bytes with Content-Encoding: {})", "z".repeat(CODING_SHOWN)));
    }

    #[test]
    fn a_decompression_bomb_is_truncated() {
        let bomb = gzip(&vec![b'0'; 50 << 20]);
        assert_eq!(text(&headers("", "gzip"), &bomb).len(), BODY_KEPT);
    }
}
