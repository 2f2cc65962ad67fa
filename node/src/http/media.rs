//! Media types as headers write them (RFC 9110 sections 8.3.1 and 12.5.1): what `Accept` and
//! `Content-Type` need here, and no more.
//!
//! Parsing is bounded, allocates in proportion to the header (which the server bounds), and takes
//! quoted parameters as DICOMweb clients write them: `multipart/related; type="application/dicom"`.

/// The most ranges read from one `Accept`; a real client sends a handful.
const RANGES_MAX: usize = 64;
/// The most parameters of one media type.
const PARAMETERS_MAX: usize = 16;

/// A media type or range with its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MediaType {
    /// `type/subtype`, in lower case; either may be `*` in a range.
    pub(crate) essence: String,
    parameters: Vec<(String, String)>,
}

impl MediaType {
    /// Reads one media type; `None` when it is none.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut pieces = split_outside_quotes(text, ';').into_iter();
        let essence = pieces.next()?.trim().to_ascii_lowercase();
        let (kind, subtype) = essence.split_once('/')?;
        if !is_token(kind) || !is_token(subtype) {
            return None;
        }
        let mut parameters = Vec::new();
        for piece in pieces.map(str::trim).filter(|piece| !piece.is_empty()) {
            let (name, value) = piece.split_once('=')?;
            let name = name.trim().to_ascii_lowercase();
            if !is_token(&name) || parameters.len() == PARAMETERS_MAX {
                return None;
            }
            parameters.push((name, unquote(value.trim())?));
        }
        Some(Self { essence, parameters })
    }

    /// Reads a list of ranges; `None` when it is none or too long.
    pub(crate) fn list(text: &str) -> Option<Vec<Self>> {
        let pieces = split_outside_quotes(text, ',');
        if pieces.len() > RANGES_MAX {
            return None;
        }
        pieces.into_iter().filter(|piece| !piece.trim().is_empty()).map(Self::parse).collect()
    }

    /// The value of a parameter, by its name in lower case.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// The weight `q` in thousandths; 1000 when absent, 0 when it is malformed.
    pub(crate) fn weight(&self) -> u16 {
        let Some(text) = self.parameter("q") else { return 1000 };
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        if fraction.len() > 3 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
            return 0;
        }
        let thousandths = format!("{fraction:0<3}").parse().unwrap_or(0);
        match whole {
            "0" => thousandths,
            "1" if thousandths == 0 => 1000,
            _ => 0,
        }
    }
}

fn split_outside_quotes(text: &str, separator: char) -> Vec<&str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |c: char| {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ => return c == separator && !quoted,
        }
        false
    })
    .collect()
}

fn unquote(value: &str) -> Option<String> {
    let Some(inner) = value.strip_prefix('"') else {
        // Slashes and the like are no token characters, but clients leave the quotes out.
        return (!value.is_empty() && !value.contains(['"', ' ', '\t'])).then(|| value.to_owned());
    };
    let mut text = String::new();
    let mut characters = inner.strip_suffix('"')?.chars();
    while let Some(c) = characters.next() {
        match c {
            '\\' => text.push(characters.next()?),
            '"' => return None,
            _ => text.push(c),
        }
    }
    Some(text)
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_hide_separators_and_case_is_folded() {
        let list =
            MediaType::list(r#"Multipart/Related; TYPE="application/dicom;x,y"; q=0.5, */*;q=0"#).expect("a list");
        assert_eq!(list.len(), 2);
        assert_eq!(list[0].essence, "multipart/related");
        assert_eq!(list[0].parameter("type"), Some("application/dicom;x,y"));
        assert_eq!((list[0].weight(), list[1].weight()), (500, 0));
    }

    #[test]
    fn unquoted_slashes_are_tolerated() {
        let media = MediaType::parse("multipart/related; type=application/dicom; transfer-syntax=*").expect("a type");
        assert_eq!(media.parameter("type"), Some("application/dicom"));
        assert_eq!(media.parameter("transfer-syntax"), Some("*"));
    }

    #[test]
    fn what_is_no_media_type_is_refused() {
        for text in
            ["", "dicom", "a/", "/b", "a/b; c", "a/b; c=\"d", "a/b; c=\"d\"e\"", "a b/c", "a/b;=x", "a/b; q=\"\\"]
        {
            assert_eq!(MediaType::parse(text), None, "{text:?}");
        }
        assert_eq!(MediaType::list(&"a/b,".repeat(RANGES_MAX + 1)), None, "too many ranges");
        assert_eq!(MediaType::parse(&format!("a/b{}", ";c=d".repeat(PARAMETERS_MAX + 1))), None);
    }

    #[test]
    fn weights_are_in_thousandths() {
        for (q, weight) in
            [("1", 1000), ("1.000", 1000), ("0.25", 250), ("0", 0), ("1.5", 0), ("2", 0), ("x", 0), ("0.1234", 0)]
        {
            assert_eq!(MediaType::parse(&format!("a/b;q={q}")).expect("a type").weight(), weight, "{q}");
        }
    }
}
