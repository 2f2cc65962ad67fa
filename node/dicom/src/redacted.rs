//! Values that may identify a patient, kept out of logs by their type.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A value whose `Debug` is empty, and which has no `Display`: to show it, one must ask for it by
/// [`Redacted::expose`] or [`Redacted::display`], at a place that may show patient data.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Redacted<T>(T);

impl<T> Redacted<T> {
    /// Wraps a value.
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// The value itself.
    pub fn expose(&self) -> &T {
        &self.0
    }

    /// The value itself, unwrapped.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T: AsRef<str>> Redacted<T> {
    /// The text as it may be shown to a person: without control characters and without the
    /// invisible marks that reorder or hide text. The original stays in the value. Markup is still
    /// the page's to escape.
    pub fn display(&self) -> String {
        self.0.as_ref().chars().filter(|&c| !c.is_control() && !is_invisible_mark(c)).collect()
    }
}

/// Bidirectional controls (Unicode annex 9), zero-width characters, and the like.
fn is_invisible_mark(c: char) -> bool {
    matches!(c,
        '\u{061C}' | '\u{180E}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}'
        | '\u{2060}'..='\u{206F}' | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFB}' | '\u{E0000}'..='\u{E007F}')
}

impl<T> From<T> for Redacted<T> {
    fn from(value: T) -> Self {
        Self(value)
    }
}

impl<T> fmt::Debug for Redacted<T> {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_is_empty_and_display_is_clean() {
        let name = Redacted::new("DOE\u{202E}^\u{1b}[31mJANE\u{200B}".to_owned());
        assert_eq!(format!("{name:?}"), "");
        assert_eq!(name.display(), "DOE^[31mJANE");
        assert!(name.expose().contains('\u{202E}'), "the original is kept");
    }
}
