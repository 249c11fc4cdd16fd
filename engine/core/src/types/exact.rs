//! Exact sums of finite floating-point numbers.
//!
//! Adding f64 rounds, so that what a sum comes to depends on the order; and what was added cannot be taken away again. Scores
//! are summed by many replicas in any order, and clears take parts of sums. So sums are kept exactly, as fixed-point numbers that
//! hold every f64 (a long accumulator: Kulisch, "Computer Arithmetic and Validity", 2008), and rounded once, when they are read.
//!
//! Invariant: a value has one form, hence one encoding. Its lanes are 32-bit digits, the least one worth 2⁻¹⁰⁷⁴, each
//! in 0..2³², but for the topmost, which carries the sign and is neither 0 (a shorter form would do) nor, below another
//! lane, −1 with that lane's top half set.

use bincode::{Decode, Encode};

use crate::codec::CodecError;

/// The power of two that the least digit counts.
const UNIT_EXPONENT: i32 = -1074;
const DIGIT_BITS: u32 = 32;
/// Digits of the largest finite f64 added up 2⁶⁴ times: 2,098 bits, 64 for the carries, and a sign.
const DIGITS_MAX: usize = 68;

/// A sum, exact. Beyond 2⁶⁴ times the largest f64 it stays at what it was.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Exact {
    /// How many digits below are 0.
    skipped: u8,
    /// Two's complement, little-endian, without needless bytes at its end.
    bytes: Vec<u8>,
}

impl Exact {
    /// A finite number.
    ///
    /// # Panics
    /// If it is infinite or not a number.
    pub fn of(value: f64) -> Self {
        assert!(value.is_finite(), "only finite numbers are summed");
        let bits = value.to_bits();
        let exponent = ((bits >> 52) & 0x7ff) as u32;
        let fraction = bits & ((1 << 52) - 1);
        let (mantissa, shift) =
            if exponent == 0 { (fraction, 0) } else { (fraction | 1 << 52, exponent - 1) };
        let (digit, within) = ((shift / DIGIT_BITS) as usize, shift % DIGIT_BITS);
        let wide = u128::from(mantissa) << within;
        let sign = if value.is_sign_negative() { -1 } else { 1 };
        let lanes = (0..3).map(|lane| sign * i64::from((wide >> (DIGIT_BITS * lane)) as u32)).collect();
        Self::of_lanes(digit, lanes)
    }

    /// The sum of two.
    pub fn plus(&self, other: &Self) -> Self {
        self.combine(other, 1)
    }

    /// The difference.
    pub fn minus(&self, other: &Self) -> Self {
        self.combine(other, -1)
    }

    /// The nearest f64, of two equally near the even one; the largest finite one instead of an infinity.
    pub fn to_f64(&self) -> f64 {
        let (first, mut lanes) = self.lanes();
        let is_negative = lanes.last().is_some_and(|&top| top < 0);
        if is_negative {
            lanes.iter_mut().for_each(|lane| *lane = -*lane);
            normalise(&mut lanes);
        }
        while lanes.last() == Some(&0) {
            lanes.pop();
        }
        let Some(&top) = lanes.last() else { return 0.0 };
        // The highest 64 bits, and whether anything is below.
        let digit =
            |place: i64| usize::try_from(place).ok().and_then(|place| lanes.get(place)).copied().unwrap_or(0);
        let last = lanes.len() as i64 - 1;
        let top_bits = 64 - top.leading_zeros();
        let wide = (u128::from(top as u64) << 64)
            | (u128::from(digit(last - 1) as u64) << 32)
            | u128::from(digit(last - 2) as u64);
        let rest = (0..last - 2).any(|place| digit(place) != 0);
        // `wide` counts units of its own least bit.
        let exponent = UNIT_EXPONENT + (first as i32 + last as i32 - 2) * DIGIT_BITS as i32;
        let bits = 64 + top_bits;
        let rounded = round(wide, rest, bits, exponent);
        let rounded = rounded.min(f64::MAX);
        if is_negative { -rounded } else { rounded }
    }

    /// Checks what a peer sent: that it is the one form of its value.
    pub fn check(&self) -> Result<(), CodecError> {
        let digits = usize::from(self.skipped) + self.bytes.len().div_ceil(4);
        if digits > DIGITS_MAX {
            return Err(CodecError::Malformed(format!("an exact sum of {digits} digits")));
        }
        let (first, lanes) = self.lanes();
        match Self::of_lanes(first, lanes) == *self {
            true => Ok(()),
            false => Err(CodecError::Malformed("an exact sum in another form than its own".into())),
        }
    }

    fn combine(&self, other: &Self, sign: i64) -> Self {
        let ((a_first, a), (b_first, b)) = (self.lanes(), other.lanes());
        let first = a_first.min(b_first);
        let end = (a_first + a.len()).max(b_first + b.len());
        let mut lanes = vec![0i64; end - first + 1];
        a.iter().enumerate().for_each(|(i, lane)| lanes[a_first - first + i] += lane);
        b.iter().enumerate().for_each(|(i, lane)| lanes[b_first - first + i] += sign * lane);
        let sum = Self::of_lanes(first, lanes);
        let digits = usize::from(sum.skipped) + sum.bytes.len().div_ceil(4);
        if digits > DIGITS_MAX { self.clone() } else { sum }
    }

    /// The place of the first digit, and the digits, the last one with the sign.
    fn lanes(&self) -> (usize, Vec<i64>) {
        let mut lanes: Vec<i64> = Vec::with_capacity(self.bytes.len() / 4 + 2);
        for chunk in self.bytes.chunks(4) {
            let mut digit = [0; 4];
            digit[..chunk.len()].copy_from_slice(chunk);
            lanes.push(i64::from(u32::from_le_bytes(digit)));
        }
        if let (Some(last), Some(&byte)) = (lanes.last_mut(), self.bytes.last())
            && byte & 0x80 != 0
        {
            let used = (self.bytes.len() - 1) % 4 + 1;
            *last -= 1 << (8 * used);
        }
        (usize::from(self.skipped), lanes)
    }

    fn of_lanes(first: usize, mut lanes: Vec<i64>) -> Self {
        normalise(&mut lanes);
        let skipped = lanes.iter().take_while(|&&lane| lane == 0).count();
        if skipped == lanes.len() {
            return Self::default();
        }
        let mut bytes = Vec::with_capacity((lanes.len() - skipped) * 4);
        for (i, lane) in lanes.iter().enumerate().skip(skipped) {
            if i + 1 < lanes.len() {
                bytes.extend_from_slice(&(*lane as u32).to_le_bytes());
            } else {
                bytes.extend_from_slice(&lane.to_le_bytes());
            }
        }
        // Bytes that only repeat the sign say nothing.
        while let [.., before, last] = bytes[..]
            && (last == 0 && before & 0x80 == 0 || last == 0xff && before & 0x80 != 0)
        {
            bytes.pop();
        }
        // A place beyond what is ever kept is refused by its length.
        Self { skipped: u8::try_from(first + skipped).unwrap_or(u8::MAX), bytes }
    }
}

/// Carries, so that all lanes but the last are digits.
fn normalise(lanes: &mut [i64]) {
    let mut carry = 0;
    let last = lanes.len().saturating_sub(1);
    for lane in &mut lanes[..last] {
        let full = *lane + carry;
        *lane = full & 0xffff_ffff;
        carry = full >> DIGIT_BITS;
    }
    if let Some(top) = lanes.last_mut() {
        *top += carry;
    }
}

/// `wide`·2^`exponent`, and a bit more if there is a `rest`, rounded. `bits` is how many bits `wide` has.
fn round(wide: u128, rest: bool, bits: u32, exponent: i32) -> f64 {
    // A subnormal has fewer bits than 53, down to its least one.
    let least = UNIT_EXPONENT;
    let drop = (bits as i32 - 53).max(least - exponent).max(0) as u32;
    let kept = (wide >> drop) as u64;
    let dropped = wide & ((1u128 << drop) - 1);
    let half = if drop == 0 { 0 } else { 1u128 << (drop - 1) };
    let up = drop > 0 && (dropped > half || dropped == half && (rest || kept & 1 == 1));
    let kept = kept + u64::from(up);
    scale(kept, exponent + drop as i32)
}

/// `mantissa`·2^`exponent`, which an f64 holds, or infinity.
fn scale(mantissa: u64, exponent: i32) -> f64 {
    let value = mantissa as f64;
    // Two steps, each by a power that an f64 has; the first is exact since the mantissa is no subnormal.
    let first = exponent.clamp(-1000, 1000);
    value * power(first) * power((exponent - first).clamp(-1022, 1023))
}

fn power(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn finite() -> impl Strategy<Value = f64> {
        prop_oneof![
            any::<f64>().prop_filter("finite", |value| value.is_finite()),
            (-1000i32..1000).prop_map(|tenths| f64::from(tenths) / 10.0),
            any::<i32>().prop_map(f64::from),
            prop::sample::select(vec![f64::MAX, f64::MIN, f64::MIN_POSITIVE, 5e-324, -5e-324, 0.0, -0.0]),
        ]
    }

    proptest! {
        #[test]
        fn one_number_is_itself(value in finite()) {
            let exact = Exact::of(value);
            prop_assert_eq!(exact.to_f64(), value);
            prop_assert_eq!(exact.check(), Ok(()));
        }

        #[test]
        fn two_numbers_are_added_as_the_processor_does(a in finite(), b in finite()) {
            prop_assume!((a + b).is_finite() && (a - b).is_finite());
            prop_assert_eq!(Exact::of(a).plus(&Exact::of(b)).to_f64(), a + b);
            prop_assert_eq!(Exact::of(a).minus(&Exact::of(b)).to_f64(), a - b);
        }

        #[test]
        fn order_does_not_matter_and_what_was_added_can_be_taken_away(
            mut values in prop::collection::vec(finite(), 0..12),
            turn in 0usize..12,
        ) {
            let sum = |values: &[f64]| {
                values.iter().fold(Exact::default(), |sum, value| sum.plus(&Exact::of(*value)))
            };
            let all = sum(&values);
            prop_assert_eq!(all.check(), Ok(()));
            let taken = values.iter().fold(all.clone(), |left, value| left.minus(&Exact::of(*value)));
            prop_assert_eq!(taken, Exact::default());
            let turn = turn.min(values.len());
            values.rotate_left(turn);
            prop_assert_eq!(sum(&values), all);
        }

        #[test]
        fn nonsense_is_refused_or_read(skipped: u8, bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let exact = Exact { skipped, bytes };
            if exact.check().is_ok() {
                prop_assert!(exact.to_f64().is_finite());
                prop_assert_eq!(exact.minus(&exact), Exact::default());
            }
        }
    }

    #[test]
    fn sums_beyond_every_number_stay_finite() {
        let mut sum = Exact::of(f64::MAX);
        for _ in 0..80 {
            sum = sum.plus(&sum);
            assert_eq!(sum.to_f64(), f64::MAX);
        }
        assert_eq!(sum.check(), Ok(()));
    }
}
