//! Times as the interfaces write them: RFC 3339, UTC, to the millisecond.

use maillage_consensus::command::UnixMillisField;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The last millisecond of the year 9999, the last that RFC 3339 can write.
const LAST_MS: u64 = 253_402_300_799_999;

/// `at` in UTC, for example `2026-01-02T03:04:05.678Z`. Times after the year 9999 are that year's last.
pub(crate) fn rfc3339(at: UnixMillisField) -> String {
    date_time(at).format(&Rfc3339).unwrap_or_default()
}

/// `at` as a date and time in UTC.
pub(crate) fn date_time(at: UnixMillisField) -> OffsetDateTime {
    let nanoseconds = i128::from(at.0.min(LAST_MS)) * 1_000_000;
    OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc_and_never_overflow() {
        assert_eq!(rfc3339(UnixMillisField(0)), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(UnixMillisField(1_767_323_045_678)), "2026-01-02T03:04:05.678Z");
        assert_eq!(rfc3339(UnixMillisField(u64::MAX)), "9999-12-31T23:59:59.999Z");
    }
}
