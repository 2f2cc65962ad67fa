//! Durations as people type them: `90s`, `30m`, `1h`, `2d`.

/// Seconds of a whole number with its unit.
///
/// # Errors
/// What is wrong, for the usage message.
pub(super) fn parse_seconds(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let scale = match unit {
        "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err("must be a whole number with a unit: 90s, 30m, 1h or 2d".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "must start with a whole number: 90s, 30m, 1h or 2d".to_owned())?;
    number.checked_mul(scale).filter(|seconds| *seconds > 0).ok_or_else(|| "must be more than nothing".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_numbers_with_units() {
        for (text, seconds) in [("90s", 90), ("30m", 1800), ("30min", 1800), ("1h", 3600), ("2d", 172_800)] {
            assert_eq!(parse_seconds(text), Ok(seconds));
        }
        for text in ["", "1", "h", "-1h", "1.5h", "0s", "1 h", "99999999999999999999s", "18446744073709551615d", "1é"]
        {
            assert!(parse_seconds(text).is_err(), "{text:?}");
        }
    }
}
