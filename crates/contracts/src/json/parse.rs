//! The JSON parser: RFC 8259, with the restrictions of contract section 2.

use super::{Json, JsonError, JsonFault, Object, plain_run};

/// The most digits of an integer, without its sign: CPython's default limit
/// (`sys.int_info.default_max_str_digits`).
const MAX_DIGITS: usize = 4_300;

impl Json {
    /// Parses a whole document whose arrays and objects are nested at most `max_depth` deep.
    pub fn parse(text: &[u8], max_depth: usize) -> Result<Json, JsonError> {
        let text = std::str::from_utf8(text)
            .map_err(|error| JsonError { fault: JsonFault::Utf8, offset: error.valid_up_to() })?;
        let mut parser = Parser { text, at: 0, depth_left: max_depth };
        let json = parser.value()?;
        parser.skip_whitespace();
        match parser.peek() {
            None => Ok(json),
            Some(_) => parser.fail(JsonFault::Trailing),
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth_left: usize,
}

impl Parser<'_> {
    fn value(&mut self) -> Result<Json, JsonError> {
        self.skip_whitespace();
        match self.peek() {
            Some(b'{') => self.nested(Self::object),
            Some(b'[') => self.nested(Self::array),
            Some(b'"') => self.string().map(Json::String),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b'n') => self.literal("null", Json::Null),
            Some(b't') => self.literal("true", Json::Bool(true)),
            Some(b'f') => self.literal("false", Json::Bool(false)),
            _ if ["NaN", "Infinity"].iter().any(|word| self.rest().starts_with(word)) => {
                self.fail(JsonFault::NotFinite)
            }
            _ => self.fail(JsonFault::Value),
        }
    }

    fn literal(&mut self, word: &str, json: Json) -> Result<Json, JsonError> {
        if !self.rest().starts_with(word) {
            return self.fail(JsonFault::Value);
        }
        self.at += word.len();
        Ok(json)
    }

    /// Skips the opening bracket and parses the contents, one level deeper.
    fn nested(&mut self, inside: fn(&mut Self) -> Result<Json, JsonError>) -> Result<Json, JsonError> {
        let Some(depth_left) = self.depth_left.checked_sub(1) else {
            return self.fail(JsonFault::Depth);
        };
        self.at += 1;
        self.depth_left = depth_left;
        let json = inside(self)?;
        self.depth_left += 1;
        Ok(json)
    }

    fn array(&mut self) -> Result<Json, JsonError> {
        let mut items = Vec::new();
        self.skip_whitespace();
        if self.take(b']') {
            return Ok(Json::Array(items));
        }
        loop {
            items.push(self.value()?);
            if self.ends(b']')? {
                return Ok(Json::Array(items));
            }
        }
    }

    fn object(&mut self) -> Result<Json, JsonError> {
        let mut members = Object::new();
        self.skip_whitespace();
        if self.take(b'}') {
            return Ok(Json::Object(members));
        }
        loop {
            self.skip_whitespace();
            if self.peek() != Some(b'"') {
                return self.fail(JsonFault::Key);
            }
            let key = self.string()?;
            self.skip_whitespace();
            if !self.take(b':') {
                return self.fail(JsonFault::Colon);
            }
            members.insert(key, self.value()?);
            if self.ends(b'}')? {
                return Ok(Json::Object(members));
            }
        }
    }

    /// Consumes the separator after an item: returns true for `closing`, false for a comma.
    fn ends(&mut self, closing: u8) -> Result<bool, JsonError> {
        self.skip_whitespace();
        if self.take(closing) {
            Ok(true)
        } else if self.take(b',') {
            Ok(false)
        } else {
            self.fail(JsonFault::Comma)
        }
    }

    fn number(&mut self) -> Result<Json, JsonError> {
        let start = self.at;
        let negative = self.take(b'-');
        if negative && self.rest().starts_with("Infinity") {
            return fail_at(start, JsonFault::NotFinite);
        }
        let leading_zero = self.peek() == Some(b'0');
        let digits = self.digits()?;
        if leading_zero && digits > 1 {
            return fail_at(start, JsonFault::Number);
        }
        let mut float = false;
        if self.take(b'.') {
            float = true;
            self.digits()?;
        }
        if self.take(b'e') || self.take(b'E') {
            float = true;
            let _signed = self.take(b'+') || self.take(b'-');
            self.digits()?;
        }
        let text = &self.text[start..self.at];
        if float {
            return match text.parse::<f64>() {
                Ok(number) if number.is_finite() => Ok(Json::Float(number)),
                _ => fail_at(start, JsonFault::NotFinite),
            };
        }
        if digits > MAX_DIGITS {
            return fail_at(start, JsonFault::Digits);
        }
        Ok(Json::Int(if leading_zero { "0" } else { text }.to_owned()))
    }

    /// Consumes one or more digits and returns their number.
    fn digits(&mut self) -> Result<usize, JsonError> {
        let digits = plain_run(self.rest().as_bytes(), |byte| !byte.is_ascii_digit());
        if digits == 0 {
            return self.fail(JsonFault::Number);
        }
        self.at += digits;
        Ok(digits)
    }

    fn string(&mut self) -> Result<String, JsonError> {
        self.at += 1;
        let mut string = String::new();
        loop {
            let plain =
                plain_run(self.rest().as_bytes(), |byte| byte == b'"' || byte == b'\\' || byte < 0x20);
            string.push_str(&self.rest()[..plain]);
            self.at += plain;
            match self.peek() {
                None => return self.fail(JsonFault::Unterminated),
                Some(b'"') => {
                    self.at += 1;
                    return Ok(string);
                }
                Some(b'\\') => string.push(self.escape()?),
                Some(_) => return self.fail(JsonFault::Control),
            }
        }
    }

    fn escape(&mut self) -> Result<char, JsonError> {
        let start = self.at;
        let escaped = match self.text.as_bytes().get(start + 1) {
            Some(byte @ (b'"' | b'\\' | b'/')) => char::from(*byte),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                let first = self.code_unit()?;
                let second = if matches!(first, 0xD800..0xDC00) && self.rest().starts_with("\\u") {
                    Some(self.code_unit()?)
                } else {
                    None
                };
                let decoded = char::decode_utf16(std::iter::once(first).chain(second)).next();
                let Some(Ok(decoded)) = decoded else { return fail_at(start, JsonFault::Surrogate) };
                return Ok(decoded);
            }
            _ => return self.fail(JsonFault::Escape),
        };
        self.at += 2;
        Ok(escaped)
    }

    /// Consumes `\uXXXX` and returns its code unit.
    fn code_unit(&mut self) -> Result<u16, JsonError> {
        let digits = self.text.get(self.at + 2..self.at + 6).unwrap_or_default();
        // from_str_radix alone would also accept a sign
        if digits.len() != 4 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return self.fail(JsonFault::Escape);
        }
        let Ok(unit) = u16::from_str_radix(digits, 16) else { return self.fail(JsonFault::Escape) };
        self.at += 6;
        Ok(unit)
    }

    fn skip_whitespace(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn fail<T>(&self, fault: JsonFault) -> Result<T, JsonError> {
        fail_at(self.at, fault)
    }
}

fn fail_at<T>(offset: usize, fault: JsonFault) -> Result<T, JsonError> {
    Err(JsonError { fault, offset })
}
