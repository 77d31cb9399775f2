//! Dates as people and certificates write them, over Unix seconds. UTC only, the Gregorian calendar
//! only.

use std::fmt;

use rustls::pki_types::UnixTime;

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// A second of UTC. Shown as `2026-11-22 16:26:39 UTC`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    /// Since 1970; negative before.
    pub unix_seconds: i64,
}

impl Moment {
    /// What the system clock says, right or wrong.
    pub fn now() -> Self {
        let seconds = match std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |s| -s),
        };
        Self { unix_seconds: seconds }
    }

    /// The same moment as rustls has it.
    pub(super) fn of(time: UnixTime) -> Self {
        Self { unix_seconds: i64::try_from(time.as_secs()).unwrap_or(i64::MAX) }
    }

    /// Reads the `IMF-fixdate` of RFC 9110, section 5.6.7: `Sun, 06 Nov 1994 08:49:37 GMT`. The
    /// obsolete forms are not taken: no server sends them.
    pub fn from_http_date(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if bytes.len() != 29 || !text.is_ascii() || !text.ends_with(" GMT") {
            return None;
        }
        let separators = [(3, b','), (4, b' '), (7, b' '), (11, b' '), (16, b' ')];
        let colons = [(19, b':'), (22, b':')];
        if separators.iter().chain(&colons).any(|&(at, byte)| bytes[at] != byte) {
            return None;
        }
        let month = MONTHS.iter().position(|name| *name == &text[8..11])? as u32 + 1;
        Self::from_parts(
            digits(&bytes[12..16])?,
            month,
            digits(&bytes[5..7])?,
            [digits(&bytes[17..19])?, digits(&bytes[20..22])?, digits(&bytes[23..25])?],
        )
    }

    /// Reads the `UTCTime` (13 bytes) or `GeneralizedTime` (15 bytes) of RFC 5280, section 4.1.2.5.
    pub(super) fn from_certificate(bytes: &[u8]) -> Option<Self> {
        let (year, rest) = match bytes.len() {
            13 => {
                let short = digits(&bytes[..2])?;
                (short + if short < 50 { 2000 } else { 1900 }, &bytes[2..])
            }
            15 => (digits(&bytes[..4])?, &bytes[4..]),
            _ => return None,
        };
        if rest[10] != b'Z' {
            return None;
        }
        let part = |at: usize| digits(&rest[at..at + 2]);
        Self::from_parts(year, part(0)?, part(2)?, [part(4)?, part(6)?, part(8)?])
    }

    fn from_parts(year: u32, month: u32, day: u32, time: [u32; 3]) -> Option<Self> {
        let [hour, minute, second] = time;
        // A leap second, 60, counts as the next one.
        if !(1..=12).contains(&month)
            || !(1..=days_in_month(year, month)).contains(&day)
            || hour > 23
            || minute > 59
            || second > 60
        {
            return None;
        }
        let of_day = i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second);
        Some(Self { unix_seconds: days_before(year, month, day) * 86_400 + of_day })
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of_day = self.unix_seconds.rem_euclid(86_400);
        let (year, month, day) = date_of(self.unix_seconds.div_euclid(86_400));
        let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
    }
}

/// Days from 1970-01-01 to the date.
fn days_before(year: u32, month: u32, day: u32) -> i64 {
    // Years begin in March, so that the leap day comes last.
    let year = i64::from(year) - i64::from(month <= 2);
    let month = i64::from((month + 9) % 12);
    let of_year = (153 * month + 2) / 5 + i64::from(day) - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + of_year
        - 719_468
}

/// The year, month and day so many days after 1970-01-01.
fn date_of(days: i64) -> (i64, i64, i64) {
    let days = days.saturating_add(719_468);
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day)
}

fn days_in_month(year: u32, month: u32) -> u32 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => {
            29
        }
        2 => 28,
        _ => 31,
    }
}

fn digits(bytes: &[u8]) -> Option<u32> {
    bytes.iter().try_fold(0, |sum: u32, byte| {
        byte.is_ascii_digit().then(|| sum * 10 + u32::from(byte - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_dates_are_read() {
        let seconds = |text| Moment::from_http_date(text).map(|at| at.unix_seconds);
        assert_eq!(seconds("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(seconds("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(seconds("Thu, 29 Feb 2024 23:59:60 GMT"), Some(1_709_251_200));
        for bad in [
            "",
            "Sun, 06 Nov 1994 08:49:37 UTC",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "Sun, 31 Feb 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 24:49:37 GMT",
            "Sun, 06 Nov +994 08:49:37 GMT",
            "Sun, 06 Növ 199408:49:37 GMT",
        ] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }

    #[test]
    fn certificate_times_are_read() {
        let shown = |text: &str| Moment::from_certificate(text.as_bytes()).map(|at| at.to_string());
        assert_eq!(shown("491231235959Z").as_deref(), Some("2049-12-31 23:59:59 UTC"));
        assert_eq!(shown("500101000000Z").as_deref(), Some("1950-01-01 00:00:00 UTC"));
        assert_eq!(shown("99991231235959Z").as_deref(), Some("9999-12-31 23:59:59 UTC"));
        assert_eq!(shown("00000101000000Z").as_deref(), Some("0000-01-01 00:00:00 UTC"));
        assert_eq!(shown("4912312359590"), None);
        assert_eq!(shown("491231235959+"), None);
    }

    #[test]
    fn every_day_comes_back() {
        for days in (-719_468..2_932_897).step_by(17) {
            let (year, month, day) = date_of(days);
            assert_eq!(days_before(year as u32, month as u32, day as u32), days);
        }
        for seconds in [i64::MIN, i64::MAX] {
            assert!(!Moment { unix_seconds: seconds }.to_string().is_empty());
        }
    }
}
