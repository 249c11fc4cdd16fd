//! A zset's scores and what is added to them: finite numbers, of which zero has no sign.

use std::cmp::Ordering;
use std::fmt;

use bincode::de::{BorrowDecoder, Decoder};
use bincode::error::DecodeError;
use bincode::{BorrowDecode, Decode, Encode};

/// A finite number.
#[derive(Clone, Copy, Default, PartialEq, Encode)]
pub struct Score(f64);

/// A number that is infinite, or none at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a score is a finite number")]
pub struct NotFinite;

impl Score {
    /// Takes a finite number. A negative zero becomes zero.
    pub fn new(value: f64) -> Result<Self, NotFinite> {
        if value.is_finite() { Ok(Self(value + 0.0)) } else { Err(NotFinite) }
    }

    /// The number.
    pub fn value(self) -> f64 {
        self.0
    }

    /// Bytes that sort as the numbers do.
    pub fn ordered(self) -> [u8; 8] {
        let bits = self.0.to_bits();
        let ordered = if bits >> 63 == 0 { bits | 1 << 63 } else { !bits };
        ordered.to_be_bytes()
    }

    /// The number of bytes made by [`Self::ordered`]; `None` if they are not.
    pub fn of_ordered(bytes: [u8; 8]) -> Option<Self> {
        let ordered = u64::from_be_bytes(bytes);
        let bits = if ordered >> 63 == 1 { ordered & !(1 << 63) } else { !ordered };
        Self::new(f64::from_bits(bits)).ok()
    }
}

impl Eq for Score {}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Score {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl fmt::Debug for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl<Context> Decode<Context> for Score {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let value = f64::decode(decoder)?;
        let score = Self::new(value).map_err(|error| DecodeError::OtherString(error.to_string()))?;
        // One number, one form.
        match score.0.to_bits() == value.to_bits() {
            true => Ok(score),
            false => Err(DecodeError::Other("a score's zero has no sign")),
        }
    }
}

impl<'de, Context> BorrowDecode<'de, Context> for Score {
    fn borrow_decode<D: BorrowDecoder<'de, Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Self::decode(decoder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    #[test]
    fn bytes_sort_as_numbers_do() {
        let numbers = [f64::MIN, -1.5, -5e-324, 0.0, 5e-324, 0.1, 1.0, 1e300, f64::MAX];
        let scores = numbers.map(|number| Score::new(number).unwrap());
        assert!(scores.is_sorted_by(|a, b| a < b && a.ordered() < b.ordered()));
        for score in scores {
            assert_eq!(Score::of_ordered(score.ordered()), Some(score));
        }
        assert_eq!(Score::of_ordered([0xff; 8]), None);
    }

    #[test]
    fn only_finite_numbers_in_their_one_form_are_read() {
        assert!(Score::new(f64::NAN).is_err() && Score::new(f64::INFINITY).is_err());
        let read = |value: f64| codec::decode::<Score>(1, &codec::encode(1, &value));
        assert_eq!(read(0.5), Ok(Score(0.5)));
        assert!(read(-0.0).is_err() && read(f64::NAN).is_err() && read(f64::NEG_INFINITY).is_err());
        assert_eq!(Score::new(-0.0).unwrap().value().to_bits(), 0);
    }
}
