//! Search queries (PS3.18 section 8.3.4) and attribute matching (PS3.4 section C.2.2.2): single value,
//! list of UIDs, wildcards, ranges of dates and times, sequences, and the empty value.

use dicom_core::Tag;
use dicom_core::dictionary::{DataDictionary as _, DataDictionaryEntry as _};
use dicom_dictionary_std::StandardDataDictionary;
use time::{Date, Month, PrimitiveDateTime, Time};

use super::dataset::{Dataset, text_of};

/// The most keys of a query; each is looked for in every candidate.
pub(crate) const KEYS_MAX: usize = 32;
/// The longest value to match.
pub(crate) const VALUE_MAX: usize = 1024;
/// The most attributes asked for by name.
const FIELDS_MAX: usize = 256;
/// The most results of one answer: some 2 MB.
pub(crate) const RESULTS_MAX: usize = 500;
/// The deepest attribute in sequences.
pub(crate) const PATH_MAX: usize = 4;

/// An attribute, with the sequences that it is in from the outermost.
pub(crate) type Path = Vec<u32>;

/// A query.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Query {
    /// What must match.
    pub(crate) keys: Vec<(Path, String)>,
    /// What is to be returned besides what always is; none: everything.
    pub(crate) fields: Option<Vec<Path>>,
    /// Whether fuzzy matching was asked for, which is not done.
    pub(crate) fuzzy: bool,
    /// At most so many results.
    pub(crate) limit: usize,
    /// So many are left out first.
    pub(crate) offset: usize,
}

impl Query {
    /// Reads the query's pairs.
    ///
    /// # Errors
    /// Which pair makes no sense.
    pub(crate) fn parse(pairs: &[(String, String)]) -> Result<Self, String> {
        let mut query = Self { fields: Some(Vec::new()), limit: RESULTS_MAX, ..Self::default() };
        for (name, value) in pairs {
            match name.as_str() {
                "limit" => query.limit = number(name, value)?.clamp(1, RESULTS_MAX),
                "offset" => query.offset = number(name, value)?,
                "fuzzymatching" => query.fuzzy = flag(name, value)?,
                "includefield" => query.include(value)?,
                // Common to all of DICOMweb (section 8.3.3); answered by the media type alone.
                "accept" | "charset" => {}
                _ => query.keys.push(key(name, value)?),
            }
        }
        if query.keys.len() > KEYS_MAX {
            return Err(format!("at most {KEYS_MAX} attributes may be matched"));
        }
        Ok(query)
    }

    fn include(&mut self, value: &str) -> Result<(), String> {
        for name in value.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            if name == "all" {
                self.fields = None;
                return Ok(());
            }
            let Some(fields) = &mut self.fields else { return Ok(()) };
            if fields.len() == FIELDS_MAX {
                return Err(format!("at most {FIELDS_MAX} fields may be included"));
            }
            fields.push(path(name)?);
        }
        Ok(())
    }

    /// Whether a data set matches every key.
    pub(crate) fn matches(&self, dataset: &Dataset) -> bool {
        self.keys.iter().all(|(path, value)| matches(dataset, path, value))
    }

    /// The value that an attribute must have, when it is asked for one without wildcards.
    pub(crate) fn exactly(&self, path: &[u32]) -> Option<&str> {
        let wanted = self.keys.iter().find(|(own, value)| own == path && !value.is_empty());
        wanted.map(|(_, value)| value.as_str()).filter(|value| !value.contains(['*', '?', '"']))
    }
}

/// A key and its value.
///
/// # Errors
/// The attribute is not known, or the value is too long.
pub(crate) fn key(name: &str, value: &str) -> Result<(Path, String), String> {
    if value.len() > VALUE_MAX {
        return Err(format!("{name}: at most {VALUE_MAX} bytes are matched"));
    }
    Ok((path(name)?, value.to_owned()))
}

fn number(name: &str, value: &str) -> Result<usize, String> {
    value.parse().map_err(|_| format!("{name} must be a whole number"))
}

/// `true` or `false`.
///
/// # Errors
/// Anything else.
pub(crate) fn flag(name: &str, value: &str) -> Result<bool, String> {
    value.parse().map_err(|_| format!("{name} must be true or false"))
}

/// An attribute's path: tags of eight digits or keywords, joined by dots.
fn path(name: &str) -> Result<Path, String> {
    let unknown = || format!("{:?} is no attribute", name.chars().take(64).collect::<String>());
    let path: Option<Path> = name.split('.').map(tag).collect();
    path.filter(|path| path.len() <= PATH_MAX).ok_or_else(unknown)
}

fn tag(name: &str) -> Option<u32> {
    if name.len() == 8 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return u32::from_str_radix(name, 16).ok();
    }
    let Tag(group, element) = StandardDataDictionary.by_name(name)?.tag();
    Some(u32::from(group) << 16 | u32::from(element))
}

fn matches(dataset: &Dataset, path: &[u32], wanted: &str) -> bool {
    match path {
        [] => true,
        [last] => matches_value(dataset, *last, wanted),
        [sequence, rest @ ..] => {
            let items = dataset.items(*sequence);
            // Universal matching holds for what is not there, too.
            wanted.is_empty() || items.iter().any(|item| matches(item, rest, wanted))
        }
    }
}

fn matches_value(dataset: &Dataset, tag: u32, wanted: &str) -> bool {
    let values = dataset.values(tag);
    match wanted {
        "" => return true,
        // Empty Value Matching (PS3.4 section C.2.2.2.7).
        "\"\"" => return values.is_empty(),
        _ => {}
    }
    let vr = dataset.representation(tag);
    values.iter().map(text_of).any(|value| match vr {
        "UI" => wanted.split([',', '\\']).any(|uid| uid.trim() == value),
        "DA" | "DT" => in_range(&value, wanted),
        "PN" => wildcard(&value.to_lowercase(), &wanted.to_lowercase()),
        "SQ" => false,
        _ => wildcard(&value, wanted),
    })
}

/// Whether `text` is what `pattern` says, in which `*` stands for any characters and `?` for one.
fn wildcard(text: &str, pattern: &str) -> bool {
    let (text, pattern): (Vec<char>, Vec<char>) = (text.chars().collect(), pattern.chars().collect());
    let (mut t, mut p, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => {
                t += 1;
                p += 1;
            }
            // The last star takes one character more; only it need be tried again.
            _ => match &mut star {
                Some((at, from)) => {
                    *from += 1;
                    (p, t) = (*at + 1, *from);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// Whether a date or time is within `wanted`: a date or time, `from-`, `-to` or `from-to`.
fn in_range(value: &str, wanted: &str) -> bool {
    let Some((first, last)) = span(value) else { return value == wanted };
    let bound = |text: &str| if text.is_empty() { Some(None) } else { span(text).map(Some) };
    let hyphens = wanted.match_indices('-').map(|(at, _)| at);
    // A hyphen may also begin an offset from UTC: the first that leaves two dates is the range's.
    let range = hyphens.filter_map(|at| Some((bound(&wanted[..at])?, bound(&wanted[at + 1..])?))).next();
    match (span(wanted), range) {
        (Some((from, to)), _) => first >= from && last <= to,
        (None, Some((from, to))) => from.is_none_or(|(from, _)| first >= from) && to.is_none_or(|(_, to)| first <= to),
        (None, None) => false,
    }
}

/// The first and the last millisecond that a date or time of some precision stands for, in UTC:
/// `YYYYMMDD`, `YYYYMMDDHHMMSS.FFFFFF&ZZXX` and any beginning of it from the year on.
fn span(text: &str) -> Option<(i64, i64)> {
    let (local, offset) = split_offset(text)?;
    let (whole, fraction) = local.split_once('.').unwrap_or((local, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || !matches!(whole.len(), 4 | 6 | 8 | 10 | 12 | 14) {
        return None;
    }
    let part = |from: usize, least: u8| whole.get(from..from + 2).map_or(Some(least), |part| part.parse().ok());
    let (year, month) = (whole[..4].parse().ok()?, Month::try_from(part(4, 1)?).ok()?);
    let date = Date::from_calendar_date(year, month, part(6, 1)?).ok()?;
    let millisecond = format!("{:0<3}", &fraction[..fraction.len().min(3)]).parse().ok()?;
    let time = Time::from_hms_milli(part(8, 0)?, part(10, 0)?, part(12, 0)?.min(59), millisecond).ok()?;
    let first = PrimitiveDateTime::new(date, time).assume_utc();
    let days = |days: i64| days * 86_400_000;
    let length = match whole.len() {
        4 => days(i64::from(time::util::days_in_year(year))),
        6 => days(i64::from(month.length(year))),
        8 => days(1),
        10 => 3_600_000,
        12 => 60_000,
        _ if fraction.len() >= 3 => 1,
        _ => 1_000,
    };
    let first = first.unix_timestamp() * 1_000 + i64::from(first.millisecond()) - offset;
    Some((first, first + length - 1))
}

/// A time without its offset from UTC, and the offset in milliseconds.
fn split_offset(text: &str) -> Option<(&str, i64)> {
    let Some(at) = text.rfind(['+', '-']).filter(|at| text.len() - at == 5) else { return Some((text, 0)) };
    let (hours, minutes): (i64, i64) = (text.get(at + 1..at + 3)?.parse().ok()?, text.get(at + 3..)?.parse().ok()?);
    if hours > 14 || minutes > 59 {
        // A year: the second date of a range.
        return None;
    }
    let offset = (hours * 60 + minutes) * 60_000;
    Some((&text[..at], if text[at..].starts_with('-') { -offset } else { offset }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(name: &str, value: &str) -> bool {
        let dataset = json!({
            "00080018": { "vr": "UI", "Value": ["1.2.3"] },
            "00100010": { "vr": "PN", "Value": [{ "Alphabetic": "Doe^Jane" }] },
            "00100020": { "vr": "LO", "Value": ["P1"] },
            "00404005": { "vr": "DT", "Value": ["20261124093000.000+0000"] },
            "00404025": { "vr": "SQ" },
            "00404018": { "vr": "SQ", "Value": [
                { "00080100": { "vr": "SH", "Value": ["110005"] } },
                { "00080100": { "vr": "SH", "Value": ["other"] } },
            ] },
        });
        let dataset = Dataset::parse(dataset.to_string().as_bytes()).expect("a data set");
        let query = Query::parse(&[(name.to_owned(), value.to_owned())]).expect("a query");
        query.matches(&dataset)
    }

    #[test]
    fn values_match_by_the_rules_of_their_representation() {
        for (name, value, matched) in [
            ("00100020", "P1", true),
            ("PatientID", "P1", true),
            ("PatientID", "p1", false),
            ("PatientID", "P", false),
            ("PatientID", "P*", true),
            ("PatientID", "?1", true),
            ("PatientID", "*2*", false),
            ("PatientID", "", true),
            ("PatientID", "\"\"", false),
            ("PatientName", "doe^*", true),
            ("PatientName", "roe*", false),
            ("SOPInstanceUID", "1.2.3", true),
            ("SOPInstanceUID", "1.2.4,1.2.3", true),
            ("SOPInstanceUID", "1.2.*", false),
            ("AccessionNumber", "A1", false),
            ("AccessionNumber", "", true),
            ("ScheduledWorkitemCodeSequence.CodeValue", "110005", true),
            ("00404018.00080100", "other", true),
            ("00404018.00080100", "none", false),
            ("ScheduledStationNameCodeSequence.CodeValue", "x", false),
            ("ScheduledStationNameCodeSequence.CodeValue", "", true),
        ] {
            assert_eq!(check(name, value), matched, "{name}={value}");
        }
    }

    #[test]
    fn dates_and_times_match_by_range_and_precision() {
        for (value, matched) in [
            ("20261124", true),
            ("20261123", false),
            ("2026", true),
            ("20261124093000", true),
            ("20261124103000+0100", true),
            ("20261124093000+0100", false),
            ("20261124-", true),
            ("-20261124", true),
            ("-20261123", false),
            ("20261124093001-", false),
            ("20261101-20261130", true),
            ("20261125-20261130", false),
            ("20261124090000-20261124093000", true),
            ("20261124040000-0500-20261124050000-0500", true),
            ("2025-2027", true),
            ("2027-2028", false),
            ("tomorrow", false),
            ("2026é124", false),
        ] {
            assert_eq!(check("ScheduledProcedureStepStartDateTime", value), matched, "{value}");
        }
    }

    #[test]
    fn queries_are_read_and_what_is_none_is_refused() {
        let parse = |pairs: &[(&str, &str)]| {
            let pairs: Vec<_> = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            Query::parse(&pairs)
        };
        let query =
            parse(&[("limit", "9999"), ("offset", "7"), ("fuzzymatching", "true"), ("includefield", "00741002")])
                .expect("a query");
        assert_eq!((query.limit, query.offset, query.fuzzy), (RESULTS_MAX, 7, true));
        assert_eq!(query.fields, Some(vec![vec![0x0074_1002]]));
        assert_eq!(parse(&[("includefield", "PatientName,all")]).expect("a query").fields, None);
        for pair in [
            ("limit", "-1"),
            ("offset", "x"),
            ("fuzzymatching", "yes"),
            ("Colour", "blue"),
            ("", "x"),
            ("includefield", "Colour"),
            ("0010002", "x"),
            ("00404018..00080100", "x"),
        ] {
            assert!(parse(&[pair]).is_err(), "{pair:?}");
        }
        assert!(parse(&[("PatientID", &"x".repeat(VALUE_MAX + 1))]).is_err());
        assert!(parse(&[("PatientID", "x"); KEYS_MAX + 1]).is_err());
    }

    #[test]
    fn many_stars_cost_no_more_than_their_product() {
        let pattern = "*a".repeat(400) + "b";
        assert!(!wildcard(&"a".repeat(1_000), &pattern));
    }
}
