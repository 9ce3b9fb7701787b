//! The JSON writer. Its output equals that of CPython's `json.dumps` byte for byte.

use super::{Json, plain_run};
use crate::PayloadFormat;

impl Json {
    /// Returns the document as text.
    pub fn to_text(&self, format: PayloadFormat) -> String {
        let mut out = String::new();
        self.write(format, &mut out);
        out
    }

    /// Appends the document to `out`.
    pub fn write(&self, format: PayloadFormat, out: &mut String) {
        match self {
            Json::Null => out.push_str("null"),
            Json::Bool(true) => out.push_str("true"),
            Json::Bool(false) => out.push_str("false"),
            Json::Int(digits) => out.push_str(digits),
            Json::Float(number) => write_float(*number, out),
            Json::String(text) => write_string(text, format, out),
            Json::Array(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push_str(comma(format));
                    }
                    item.write(format, out);
                }
                out.push(']');
            }
            Json::Object(members) => {
                write_object(members.iter().map(|(key, value)| (key.as_str(), value)), format, out);
            }
        }
    }
}

/// Appends an object with these members. Their keys must be unique.
pub(crate) fn write_object<'a>(
    members: impl IntoIterator<Item = (&'a str, &'a Json)>,
    format: PayloadFormat,
    out: &mut String,
) {
    out.push('{');
    for (index, (key, value)) in members.into_iter().enumerate() {
        if index > 0 {
            out.push_str(comma(format));
        }
        write_string(key, format, out);
        out.push_str(match format {
            PayloadFormat::Python => ": ",
            PayloadFormat::Compact => ":",
        });
        value.write(format, out);
    }
    out.push('}');
}

fn comma(format: PayloadFormat) -> &'static str {
    match format {
        PayloadFormat::Python => ", ",
        PayloadFormat::Compact => ",",
    }
}

/// Appends a float as Python's `repr(float)` does: the fewest digits that parse to the same number, in
/// scientific notation if the exponent is below -4 or above 15, with an exponent of at least two digits.
fn write_float(number: f64, out: &mut String) {
    let scientific = shortest(number);
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |mantissa| ("-", mantissa));
    out.push_str(sign);
    if !(-4..16).contains(&exponent) {
        out.push_str(&format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()));
        return;
    }
    let digits = mantissa.replacen('.', "", 1);
    match usize::try_from(exponent) {
        Err(_) => {
            out.push_str("0.");
            out.extend(std::iter::repeat_n('0', exponent.unsigned_abs() as usize - 1));
            out.push_str(&digits);
        }
        Ok(exponent) => match digits.split_at_checked(exponent + 1) {
            Some((whole, fraction)) => {
                out.push_str(whole);
                out.push('.');
                out.push_str(if fraction.is_empty() { "0" } else { fraction });
            }
            None => {
                out.push_str(&digits);
                out.extend(std::iter::repeat_n('0', exponent + 1 - digits.len()));
                out.push_str(".0");
            }
        },
    }
}

/// Returns the fewest digits that parse to `number`, such as `-1.5e-7`. Halfway between two such texts, such
/// as at 2^-25 = 2.98023223876953125e-8, Rust's shortest form rounds up. Python rounds to an even last digit,
/// as Rust does for a given number of digits.
fn shortest(number: f64) -> String {
    let shortest = format!("{number:e}");
    let digits = shortest.bytes().take_while(|byte| *byte != b'e').filter(u8::is_ascii_digit).count();
    let nearest = format!("{number:.*e}", digits - 1);
    // Below a power of two, floats are closer together: the text nearest to 2^-1017 parses to the float below
    // it.
    if nearest.parse() == Ok(number) { nearest } else { shortest }
}

fn write_string(text: &str, format: PayloadFormat, out: &mut String) {
    let is_ascii_only = format == PayloadFormat::Python;
    let escaped = |byte| byte < 0x20 || byte == b'"' || byte == b'\\' || (is_ascii_only && byte >= 0x7F);
    out.push('"');
    let mut rest = text;
    loop {
        // Never splits a character: of a non-ASCII one, either no byte is escaped or the first one is.
        let (plain, stopped) = rest.split_at(plain_run(rest.as_bytes(), escaped));
        out.push_str(plain);
        let mut chars = stopped.chars();
        match chars.next() {
            None => break,
            Some('"') => out.push_str("\\\""),
            Some('\\') => out.push_str("\\\\"),
            Some('\n') => out.push_str("\\n"),
            Some('\r') => out.push_str("\\r"),
            Some('\t') => out.push_str("\\t"),
            Some('\u{c}') => out.push_str("\\f"),
            Some('\u{8}') => out.push_str("\\b"),
            Some(other) => {
                for unit in other.encode_utf16(&mut [0; 2]) {
                    write_code_unit(*unit, out);
                }
            }
        }
        rest = chars.as_str();
    }
    out.push('"');
}

/// Appends `\uXXXX`. Written by hand because `write!` is several times slower, and a Chinese text consists of
/// such escapes only.
fn write_code_unit(unit: u16, out: &mut String) {
    out.push_str("\\u");
    for shift in [12, 8, 4, 0] {
        out.push(char::from(b"0123456789abcdef"[usize::from(unit >> shift & 0xF)]));
    }
}
