//! What commands print: one JSON document, or text and tables made safe for a terminal.
//!
//! Nearly all that is printed came over a network, and names of patients and sites may hold
//! anything. A terminal obeys control characters (it can be made to rewrite what is on screen, or to
//! type), and bidirectional ones reorder it; [`clean`] shows each as `\u{fffd}`. Tables are plain
//! columns, for eyes and `awk`.

use std::io::{self, Write};

use serde_json::Value;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// One JSON document on standard output, and nothing else there.
    Json,
}

/// Standard output could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output: {0}")]
pub(crate) struct Unwritable(pub(crate) io::Error);

/// Prints `value` as JSON, or what `text` makes of it.
///
/// # Errors
/// [`Unwritable`], which is not an error of the command when the reader went away.
pub(crate) fn print(format: Format, value: &Value, text: impl FnOnce(&Value) -> String) -> Result<(), Unwritable> {
    match format {
        Format::Table => write_out(&text(value)),
        Format::Json => write_out(&format!("{}\n", json(value, true))),
    }
}

/// Writes text as it is, at once.
///
/// # Errors
/// [`Unwritable`].
pub(crate) fn write_out(text: &str) -> Result<(), Unwritable> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(Unwritable)
}

/// JSON that is safe on a terminal too: what serde_json leaves as it is (RFC 8259 asks to escape
/// only below U+0020) is escaped when [`clean`] would replace it. Such characters occur in strings only.
pub(crate) fn json(value: &Value, pretty: bool) -> String {
    let text = if pretty { format!("{value:#}") } else { value.to_string() };
    if !text.chars().any(|c| c != '\n' && is_unsafe(c)) {
        return text;
    }
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c != '\n' && is_unsafe(c) {
            // All of them lie in the basic plane: one escape of four digits.
            safe.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            safe.push(c);
        }
    }
    safe
}

/// The text on one line, without anything that a terminal would obey.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if is_unsafe(c) { '\u{fffd}' } else { c }).collect()
}

/// Controls (C0, DEL, C1) and the characters that reorder or break lines (Unicode UAX #9, UAX #14).
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The field at a path of keys as text for a table; `-` when it is missing, null or empty.
pub(crate) fn field(value: &Value, path: &[&str]) -> String {
    let found = path.iter().try_fold(value, |value, key| value.get(key));
    let text = match found {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => clean(text),
        Some(Value::Bool(true)) => "yes".to_owned(),
        Some(Value::Bool(false)) => "no".to_owned(),
        Some(Value::Array(items)) => items.iter().map(|item| field(item, &[])).collect::<Vec<_>>().join(" "),
        Some(other) => clean(&other.to_string()),
    };
    if text.is_empty() { "-".to_owned() } else { text }
}

/// The number at a path of keys.
pub(crate) fn number(value: &Value, path: &[&str]) -> Option<u64> {
    path.iter().try_fold(value, |value, key| value.get(key))?.as_u64()
}

/// The items of a list: the value itself, or the array under `key` of an object.
pub(crate) fn items<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    let list = value.as_array().or_else(|| value.get(key)?.as_array());
    list.map_or(&[], Vec::as_slice)
}

/// A number of bytes in binary units, as tools on this system print it.
pub(crate) fn bytes(count: Option<u64>) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let Some(count) = count else { return "-".to_owned() };
    if count < 1024 {
        return format!("{count} B");
    }
    let (mut tenths, mut unit) = (u128::from(count) * 10 / 1024, 0);
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// A time in the two units that matter.
pub(crate) fn duration_ms(milliseconds: Option<u64>) -> String {
    let Some(milliseconds) = milliseconds else { return "-".to_owned() };
    let seconds = milliseconds / 1000;
    match seconds {
        0 => format!("{milliseconds} ms"),
        1..60 => format!("{seconds}.{} s", milliseconds % 1000 / 100),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// Rows under headings, padded with spaces.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings and no row.
    pub(crate) fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|heading| (*heading).to_owned()).collect()] }
    }

    /// Appends a row. Cells are cleaned; missing ones are empty, surplus ones stand without heading.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| clean(&cell)).collect());
    }

    /// The lines, each ending with a newline; `empty` instead when there is no row.
    pub(crate) fn render(&self, empty: &str) -> String {
        if self.rows.len() == 1 {
            return format!("{empty}\n");
        }
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}  "));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_pads_its_columns() {
        let mut table = Table::new(&["ID", "PATIENT", "AGE"]);
        table.row(["1".to_owned(), "Dupont^Zoé".to_owned(), "44".to_owned()]);
        table.row(["1234".to_owned(), "-".to_owned()]);
        expect![[r#"
            ID    PATIENT     AGE
            1     Dupont^Zoé  44
            1234  -
        "#]]
        .assert_eq(&table.render("nothing"));
        assert_eq!(Table::new(&["ID"]).render("no exams"), "no exams\n");
    }

    #[test]
    fn nothing_from_the_network_reaches_the_terminal_as_a_control() {
        let hostile = "A\u{1b}[2J\u{7}B\u{9b}31m\u{202e}C\nD\u{7f}\u{2028}E";
        let mut table = Table::new(&["NAME"]);
        table.row([field(&json!({ "name": hostile }), &["name"])]);
        table.row([hostile.to_owned()]);
        expect![[r#"
            NAME
            A�[2J�B�31m�C�D��E
            A�[2J�B�31m�C�D��E
        "#]]
        .assert_eq(&table.render(""));
    }

    #[test]
    fn json_is_escaped_and_says_the_same() {
        let value = json!({ "name": "A\u{1b}[2J\u{9b}31m\u{202e}C\n\u{7f}", "plain": "Zoé" });
        for pretty in [true, false] {
            let text = json(&value, pretty);
            assert!(!text.chars().any(|c| c != '\n' && is_unsafe(c)), "{text:?}");
            assert_eq!(serde_json::from_str::<Value>(&text).expect("still JSON"), value);
        }
        assert!(json(&value, false).contains("Zoé"));
    }

    #[test]
    fn missing_fields_are_a_dash() {
        let value = json!({ "a": { "b": 3, "c": null, "d": "", "e": true, "f": ["x", "y"], "g": [] } });
        let get = |path: &[&str]| field(&value, path);
        assert_eq!(
            [
                &["a", "b"][..],
                &["a", "c"],
                &["a", "d"],
                &["a", "e"],
                &["a", "f"],
                &["a", "g"],
                &["x"],
                &["a", "b", "c"]
            ]
            .map(get),
            ["3", "-", "-", "yes", "x y", "-", "-", "-"]
        );
    }

    #[test]
    fn quantities_are_short() {
        let sizes = [0, 1023, 1024, 1536, 210 << 20, u64::MAX].map(|size| bytes(Some(size)));
        assert_eq!(sizes, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "210.0 MiB", "16383.9 PiB"]);
        let times = [0, 999, 1500, 61_000, 3_661_000, 90_000_000].map(|time| duration_ms(Some(time)));
        assert_eq!(times, ["0 ms", "999 ms", "1.5 s", "1 min 1 s", "1 h 1 min", "1 d 1 h"]);
    }
}
