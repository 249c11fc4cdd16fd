//! Amounts as people write them: `1.5 ms`, `100 Mbit/s`, `0.1 %`, `20/s`. Whole numbers come of them, without floats.

/// A number and what stands behind it, the number times `scale`.
fn scaled(text: &str, scale: u64) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number = number.replace('_', "");
    let (whole, part) = number.split_once('.').unwrap_or((&number, ""));
    let mut value = u128::from(whole.parse::<u64>().ok()?) * u128::from(scale);
    let mut weight = scale;
    for digit in part.chars() {
        // What is below the smallest unit is left out.
        weight /= 10;
        value += u128::from(digit.to_digit(10)?) * u128::from(weight);
    }
    Some((u64::try_from(value).ok()?, unit.trim()))
}

fn by_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (_, unit) = scaled(text, 1)?;
    let (_, scale) = units.iter().find(|(name, _)| *name == unit)?;
    Some(scaled(text, *scale)?.0)
}

/// A duration in microseconds.
pub(super) fn duration_us(text: &str) -> Result<u64, String> {
    let units =
        [("us", 1), ("µs", 1), ("ms", 1_000), ("s", 1_000_000), ("min", 60_000_000), ("h", 3_600_000_000)];
    by_unit(text, &units).ok_or_else(|| {
        format!("{text:?} is not a duration: write a number and us, ms, s, min or h, like \"40 ms\"")
    })
}

/// A bandwidth in bytes a second.
pub(super) fn bytes_per_second(text: &str) -> Result<u64, String> {
    let units =
        [("kbit/s", 125), ("Mbit/s", 125_000), ("Gbit/s", 125_000_000), ("kB/s", 1_000), ("MB/s", 1_000_000)];
    by_unit(text, &units).filter(|rate| *rate > 0).ok_or_else(|| {
        format!("{text:?} is not a bandwidth: write a number and kbit/s, Mbit/s, Gbit/s, kB/s or MB/s, like \"100 Mbit/s\"")
    })
}

/// A share in millionths.
pub(super) fn millionths(text: &str) -> Result<u64, String> {
    by_unit(text, &[("%", 10_000)])
        .filter(|share| *share <= 500_000)
        .ok_or_else(|| format!("{text:?} is not a share from 0 to 50 %: write it like \"0.1 %\""))
}

/// A plain number in millionths, at most 1.
pub(super) fn millionth_parts(text: &str) -> Option<u64> {
    let (parts, rest) = scaled(text, 1_000_000)?;
    (rest.is_empty() && parts <= 1_000_000).then_some(parts)
}

/// A rate as operations an hour.
pub(super) fn per_hour(text: &str) -> Result<u64, String> {
    by_unit(text, &[("/s", 3_600), ("/min", 60), ("/h", 1)])
        .ok_or_else(|| format!("{text:?} is not a rate: write a number and /s, /min or /h, like \"20/s\""))
}

/// Microseconds for people.
pub(super) fn shown_us(us: u64) -> String {
    let (scale, unit) = match us {
        0 => return "0 s".into(),
        1..1_000 => return format!("{us} µs"),
        1_000..1_000_000 => (1_000, "ms"),
        1_000_000..120_000_000 => (1_000_000, "s"),
        120_000_000..36_000_000_000 => (60_000_000, "min"),
        _ => (3_600_000_000, "h"),
    };
    let tenths = us * 10 / scale;
    match tenths % 10 {
        0 => format!("{} {unit}", tenths / 10),
        tenth => format!("{}.{tenth} {unit}", tenths / 10),
    }
}

/// Bytes for people.
pub(super) fn shown_bytes(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{} kB", bytes / 1_000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

/// A share of a whole in per cent.
pub(super) fn shown_share(part: u64, whole: u64) -> String {
    if whole == 0 { "–".into() } else { format!("{:.1} %", part as f64 * 100.0 / whole as f64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_exactly() {
        assert_eq!(duration_us("1.5 ms"), Ok(1_500));
        assert_eq!(duration_us("2h"), Ok(7_200_000_000));
        assert_eq!(duration_us("0.0000001 s"), Ok(0));
        assert_eq!(bytes_per_second("100 Mbit/s"), Ok(12_500_000));
        assert_eq!(millionths("0.1 %"), Ok(1_000));
        assert_eq!(per_hour("20/s"), Ok(72_000));
        assert_eq!(per_hour("1.5/min"), Ok(90));
        for wrong in ["", "s", "5", "-1 s", "1..2 s", "1 day", "99999999999999999999 h"] {
            assert!(duration_us(wrong).is_err(), "{wrong}");
        }
        assert!(millionths("51 %").is_err() && bytes_per_second("0 MB/s").is_err());
    }

    #[test]
    fn amounts_are_shown_for_people() {
        let shown = [7, 1_500, 61_000_000, 4_200_000_000, 45_000_000_000].map(shown_us);
        assert_eq!(shown, ["7 µs", "1.5 ms", "61 s", "70 min", "12.5 h"]);
    }
}
