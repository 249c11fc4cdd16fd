//! Times in answers: RFC 3339, UTC, milliseconds.

use std::time::{SystemTime, UNIX_EPOCH};

/// The form of times in answers, as a regular expression.
pub(super) const PATTERN: &str = r"^[0-9]{4,}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z$";
/// And of those that [`parse`] reads.
pub(super) const GIVEN_PATTERN: &str =
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,3})?Z$";

const DAY_MS: u64 = 86_400_000;

/// A time given in milliseconds since 1970.
pub(super) fn rfc3339(millis: u64) -> String {
    let (year, month, day) = civil_date(millis / DAY_MS);
    let ms = millis % DAY_MS;
    let (hours, minutes, seconds) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}.{:03}Z", ms % 1000)
}

/// A time of the system's clock; one before 1970 counts as 1970.
pub(crate) fn rfc3339_system(time: SystemTime) -> String {
    let millis = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    rfc3339(u64::try_from(millis).unwrap_or(u64::MAX))
}

/// The milliseconds since 1970 of a time as [`rfc3339`] tells it, to the second or with up to three digits after it; in UTC, from
/// 1970 to 9999.
pub(crate) fn parse(text: &str) -> Option<u64> {
    let number = |range: std::ops::Range<usize>| {
        let digits = text.get(range).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
        digits.parse::<u64>().ok()
    };
    let fraction = text.get(19..)?.strip_suffix('Z')?;
    let ms = match fraction.strip_prefix('.') {
        Some(digits) if (1..=3).contains(&digits.len()) => {
            number(20..20 + digits.len())? * 10u64.pow(3 - digits.len() as u32)
        }
        None if fraction.is_empty() => 0,
        _ => return None,
    };
    let day = days(number(0..4)?, number(5..7)?, number(8..10)?)?;
    let of_day = number(11..13)? * 3_600_000 + number(14..16)? * 60_000 + number(17..19)? * 1000 + ms;
    // Whatever is out of range, or written otherwise, does not come back as it was.
    let millis = day.checked_mul(DAY_MS)?.checked_add(of_day)?;
    (rfc3339(millis)[..19] == text[..19]).then_some(millis)
}

/// The days from 1970-01-01 to a date: Hinnant's `days_from_civil`.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    let year = year.checked_sub(u64::from(month <= 2))?;
    let (era, year_of_era) = (year / 400, year % 400);
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day.checked_sub(1)?;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (era * 146_097 + day_of_era).checked_sub(719_468)
}

/// The date so many days after 1970-01-01: Hinnant's `civil_from_days`, for days that are not negative.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_told() {
        for millis in [0, 1, 951_782_399_999, 951_782_400_000, 4_107_542_399_123, 253_402_300_799_999] {
            assert_eq!(parse(&rfc3339(millis)), Some(millis), "{}", rfc3339(millis));
        }
        assert_eq!(parse("1970-01-01T00:00:01Z"), Some(1000));
        assert_eq!(parse("1970-01-01T00:00:01.5Z"), Some(1500));
        let bad = [
            "",
            "Z",
            "1970-01-01",
            "1969-12-31T23:59:59.999Z",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-01-00T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:60:00Z",
            "2026-01-01T00:00:60Z",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00.1234Z",
            "2026-01-01T00:00:00+00:00",
            "2026-01-01 00:00:00Z",
            "+026-01-01T00:00:00Z",
            "2026-01-01T00:00:00.é",
        ];
        for bad in bad {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_782_399_999), "2000-02-28T23:59:59.999Z");
        assert_eq!(rfc3339(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(rfc3339(1_763_821_265_432), "2025-11-22T14:21:05.432Z");
        rfc3339((1 << 48) - 1);
    }
}
