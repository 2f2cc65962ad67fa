//! What a DICOMweb client accepts (PS3.18 sections 8.7.3 to 8.7.5), and in which framing it is answered.
//!
//! Nothing is transcoded here, so a client that names transfer syntaxes must name the stored one, or
//! `*`. A range that names none is taken to accept what is stored: the standard would have Explicit
//! VR Little Endian implied, but every client in use expects the stored one.

use std::collections::BTreeSet;

use super::media::MediaType;

/// How instances are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// `multipart/related; type="application/dicom"`.
    Multipart,
    /// One `application/dicom`, without multipart.
    Single,
}

/// Nothing that the client accepts can be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAcceptable {
    /// `Accept` cannot be read.
    #[error("the accept header is malformed")]
    Malformed,
    /// No range is one of ours.
    #[error("offered are multipart/related; type=\"application/dicom\", and for a single instance application/dicom")]
    MediaType,
    /// The framing fits, the transfer syntax does not.
    #[error("stored in transfer syntax {0}, and nothing is transcoded; accept it or transfer-syntax=*")]
    TransferSyntax(String),
}

/// Chooses a framing for instances that are stored in the transfer syntaxes `stored`. `accept` is
/// the whole header, `None` when there was none.
///
/// # Errors
/// [`NotAcceptable`], a 406.
pub(crate) fn negotiate(
    accept: Option<&str>,
    one_instance: bool,
    stored: &BTreeSet<String>,
) -> Result<Framing, NotAcceptable> {
    let Some(accept) = accept.filter(|accept| !accept.trim().is_empty()) else { return Ok(Framing::Multipart) };
    let ranges = MediaType::list(accept).ok_or(NotAcceptable::Malformed)?;
    let mut best: Option<(u16, Framing)> = None;
    let mut lacking = None;
    for framing in [Framing::Multipart, Framing::Single] {
        if framing == Framing::Single && !one_instance {
            continue;
        }
        let fitting: Vec<&MediaType> =
            ranges.iter().filter(|range| range.weight() > 0 && fits(range, framing)).collect();
        let Some(weight) = fitting.iter().map(|range| range.weight()).max() else { continue };
        if let Some(missing) = stored.iter().find(|uid| !fitting.iter().any(|range| takes(range, uid))) {
            lacking = Some(missing.clone());
        } else if best.is_none_or(|(least, _)| weight > least) {
            best = Some((weight, framing));
        }
    }
    match (best, lacking) {
        (Some((_, framing)), _) => Ok(framing),
        (None, Some(uid)) => Err(NotAcceptable::TransferSyntax(uid)),
        (None, None) => Err(NotAcceptable::MediaType),
    }
}

fn fits(range: &MediaType, framing: Framing) -> bool {
    match (range.essence.as_str(), framing) {
        ("multipart/related", Framing::Multipart) => {
            range.parameter("type").is_none_or(|kind| kind.eq_ignore_ascii_case("application/dicom"))
        }
        ("*/*" | "multipart/*", Framing::Multipart) | ("application/dicom" | "application/*", Framing::Single) => true,
        _ => false,
    }
}

fn takes(range: &MediaType, transfer_syntax: &str) -> bool {
    range.parameter("transfer-syntax").is_none_or(|wanted| wanted == "*" || wanted == transfer_syntax)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPLICIT: &str = "1.2.840.10008.1.2.1";
    const JPEG: &str = "1.2.840.10008.1.2.4.70";

    fn check(accept: &str, one: bool, stored: &[&str]) -> Result<Framing, NotAcceptable> {
        let stored = stored.iter().map(|&uid| uid.to_owned()).collect();
        negotiate(Some(accept), one, &stored)
    }

    #[test]
    fn multipart_is_answered_when_accepted_or_unsaid() {
        for accept in [
            "multipart/related; type=\"application/dicom\"",
            "multipart/related; type=application/dicom; transfer-syntax=*",
            "multipart/related",
            "*/*",
            "text/html, multipart/*;q=0.1",
            "",
        ] {
            assert_eq!(check(accept, false, &[EXPLICIT, JPEG]), Ok(Framing::Multipart), "{accept}");
        }
        assert_eq!(negotiate(None, true, &BTreeSet::new()), Ok(Framing::Multipart));
    }

    #[test]
    fn one_instance_may_come_alone_and_a_study_may_not() {
        assert_eq!(check("application/dicom", true, &[EXPLICIT]), Ok(Framing::Single));
        assert_eq!(check("application/dicom", false, &[EXPLICIT]), Err(NotAcceptable::MediaType));
        assert_eq!(check("application/dicom, multipart/related;q=0.5", true, &[EXPLICIT]), Ok(Framing::Single));
        assert_eq!(check("application/dicom;q=0.2, */*;q=0.5", true, &[EXPLICIT]), Ok(Framing::Multipart));
    }

    #[test]
    fn a_transfer_syntax_that_is_not_stored_is_refused() {
        let explicit = format!("multipart/related; type=\"application/dicom\"; transfer-syntax={EXPLICIT}");
        assert_eq!(check(&explicit, false, &[EXPLICIT]), Ok(Framing::Multipart));
        assert_eq!(check(&explicit, false, &[JPEG]), Err(NotAcceptable::TransferSyntax(JPEG.to_owned())));
        assert_eq!(check(&explicit, false, &[EXPLICIT, JPEG]), Err(NotAcceptable::TransferSyntax(JPEG.to_owned())));
        let both = format!("{explicit}, multipart/related; type=\"application/dicom\"; transfer-syntax={JPEG}; q=0.5");
        assert_eq!(check(&both, false, &[EXPLICIT, JPEG]), Ok(Framing::Multipart), "ranges add up");
    }

    #[test]
    fn other_media_types_are_refused() {
        for accept in ["application/dicom+json", "multipart/related; type=\"image/jpeg\"", "*/*;q=0"] {
            assert_eq!(check(accept, true, &[EXPLICIT]), Err(NotAcceptable::MediaType), "{accept}");
        }
        assert_eq!(check("nonsense", true, &[EXPLICIT]), Err(NotAcceptable::Malformed));
    }
}
