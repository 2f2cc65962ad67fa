//! Times as the interfaces write them: RFC 3339, UTC, to the millisecond.

use maillage_consensus::command::UnixMillisField;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};
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

/// A moment, in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct At(pub(crate) UnixMillisField);

impl Serialize for At {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&rfc3339(self.0))
    }
}

impl JsonSchema for At {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "At".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "date-time" })
    }
}

/// The moment that a person or a program means: RFC 3339, or so long before `now` (`90s`, `30m`, `24h`, `7d`).
///
/// # Errors
/// What is wrong, for people.
pub(crate) fn moment(text: &str, now: UnixMillisField) -> Result<UnixMillisField, String> {
    if let Some(ago_ms) = ago_ms(text) {
        return Ok(UnixMillisField(now.0.saturating_sub(ago_ms)));
    }
    let date = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| {
        format!("{text:?} is neither a time (2026-01-02T03:04:05Z) nor so long ago (90s, 30m, 24h, 7d)")
    })?;
    u64::try_from(date.unix_timestamp_nanos() / 1_000_000).map(UnixMillisField).map_err(|_| "before 1970".to_owned())
}

fn ago_ms(text: &str) -> Option<u64> {
    let unit = text.chars().next_back()?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return None,
    };
    let number = text.strip_suffix(unit)?;
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| number.parse::<u64>().ok()?.checked_mul(seconds * 1000)).flatten()
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

    #[test]
    fn a_moment_is_a_time_or_so_long_ago() {
        let now = UnixMillisField(1_767_323_045_678);
        for (text, ms) in [
            ("90s", now.0 - 90_000),
            ("24h", now.0 - 24 * 3_600_000),
            ("7d", now.0 - 7 * 86_400_000),
            ("99999999d", 0),
            ("2026-01-02T03:04:05.678Z", now.0),
            ("2026-01-02T04:04:05.678+01:00", now.0),
        ] {
            assert_eq!(moment(text, now), Ok(UnixMillisField(ms)), "{text}");
        }
        for text in
            ["", "h", "1.5h", "-1h", "24", "yesterday", "2026-01-02", "1960-01-01T00:00:00Z", "99999999999999999999h"]
        {
            assert!(moment(text, now).is_err(), "{text:?}");
        }
    }
}
