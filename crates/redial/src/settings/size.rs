//! Sizes as they are written in the configuration.

use std::fmt;
use std::str::FromStr;

/// A number of bytes, written without a unit or in KiB or MiB.
#[derive(PartialEq, PartialOrd)]
pub(super) struct Size(pub(super) usize);

impl FromStr for Size {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Size, Self::Err> {
        let end = text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(end);
        let unit = match unit.trim() {
            "" => Some(1),
            "KiB" => Some(1 << 10),
            "MiB" => Some(1 << 20),
            _ => None,
        };
        let bytes =
            digits.parse().ok().zip(unit).and_then(|(count, unit): (usize, usize)| count.checked_mul(unit));
        bytes.map(Size).ok_or("expected a number of bytes, such as 2097152, 512KiB or 2MiB")
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0)
    }
}
