//! What the queue and the worklist need to know of an instance, read from its head.
//!
//! Read with our own bounded walk rather than with `dicom-object`: that one fails a whole data set
//! for one undecodable text, copies every value, and knows no ISO 2022 escapes. A missing or broken
//! UID is a reason to refuse the instance; nothing else is.

pub(crate) mod text;

use dicom_core::Tag;
use dicom_dictionary_std::tags;
use serde::{Deserialize, Serialize};

use crate::element::Coding;
use crate::prescan::coding_of;
use crate::redacted::Redacted;
use crate::rejection::Rejection;
use crate::transfer_syntax::Layout;
use crate::uid::{Uid, UidError};
use crate::walk::{Element, Visit, walk};

use text::Charset;

/// Most bytes of a text that are read: a person name has three groups of 64 characters, of up to
/// four bytes and with escapes. Longer ones are cut and marked by [`Attributes::replaced_text`].
const TEXT_LEN_MAX: usize = 1024;

/// The attributes of an instance. Texts are decoded, with the padding removed and otherwise as
/// sent; absent and empty are the same. All texts are [`Redacted`]: any of them may name a patient,
/// if only because a sender put it into the wrong element.
///
/// A plain struct without a version: whoever stores it versions it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Study Instance UID (0020,000D).
    pub study_uid: Uid,
    /// Series Instance UID (0020,000E).
    pub series_uid: Uid,
    /// SOP Instance UID (0008,0018).
    pub sop_instance_uid: Uid,
    /// SOP Class UID (0008,0016).
    pub sop_class_uid: Uid,
    /// Patient ID (0010,0020).
    pub patient_id: Option<Redacted<String>>,
    /// Issuer of Patient ID (0010,0021).
    pub issuer_of_patient_id: Option<Redacted<String>>,
    /// Patient's Name (0010,0010), with its carets.
    pub patient_name: Option<Redacted<String>>,
    /// Patient's Birth Date (0010,0030), `YYYYMMDD`.
    pub birth_date: Option<Redacted<String>>,
    /// Patient's Sex (0010,0040).
    pub sex: Option<Redacted<String>>,
    /// Accession Number (0008,0050).
    pub accession_number: Option<Redacted<String>>,
    /// Local Namespace Entity ID, else Universal Entity ID, of the first item of Issuer of
    /// Accession Number Sequence (0008,0051).
    pub issuer_of_accession_number: Option<Redacted<String>>,
    /// Modality (0008,0060).
    pub modality: Option<Redacted<String>>,
    /// Study Description (0008,1030).
    pub study_description: Option<Redacted<String>>,
    /// Series Description (0008,103E).
    pub series_description: Option<Redacted<String>>,
    /// Study Date (0008,0020), `YYYYMMDD`.
    pub study_date: Option<Redacted<String>>,
    /// Study Time (0008,0030), `HHMMSS.FFFFFF`, cut anywhere from the right.
    pub study_time: Option<Redacted<String>>,
    /// Series Number (0020,0011).
    pub series_number: Option<i32>,
    /// Instance Number (0020,0013).
    pub instance_number: Option<i32>,
    /// Body Part Examined (0018,0015).
    pub body_part: Option<Redacted<String>>,
    /// Institution Name (0008,0080).
    pub institution: Option<Redacted<String>>,
    /// Referring Physician's Name (0008,0090).
    pub referring_physician: Option<Redacted<String>>,
    /// Requesting Physician (0032,1032).
    pub requesting_physician: Option<Redacted<String>>,
    /// Station Name (0008,1010).
    pub station_name: Option<Redacted<String>>,
    /// Rows (0028,0010).
    pub rows: Option<u16>,
    /// Columns (0028,0011).
    pub columns: Option<u16>,
    /// Number of Frames (0028,0008).
    pub frames: Option<u32>,
    /// Whether some text could not be decoded as its character set says, was cut, or had no
    /// character set that says how: it is then shown with replacements, or by a guess.
    pub replaced_text: bool,
}

/// Reads the attributes from the elements before the pixels: [`crate::prescan::Scan::head`].
/// Bounded by itself too, so a caller that forgot the pre-scan is safe.
///
/// # Errors
/// A UID that is missing or invalid, an element of the identity that is there twice, or a structure
/// that the pre-scan refuses as well.
pub fn read(head: &[u8], transfer_syntax: &Uid) -> Result<Attributes, Rejection> {
    let layout = Layout::of(transfer_syntax);
    let coding = coding_of(layout);
    let mut values = Values { found: Vec::new(), coding, local_issuer_seen: false, replaced: false };
    walk(head, coding, layout == Layout::EncapsulatedLe, &mut values)?;
    values.attributes()
}

/// The places of [`Attributes`] in a data set.
const WANTED: [Tag; 27] = [
    tags::SPECIFIC_CHARACTER_SET,
    tags::SOP_CLASS_UID,
    tags::SOP_INSTANCE_UID,
    tags::STUDY_DATE,
    tags::STUDY_TIME,
    tags::ACCESSION_NUMBER,
    tags::MODALITY,
    tags::INSTITUTION_NAME,
    tags::REFERRING_PHYSICIAN_NAME,
    tags::STATION_NAME,
    tags::STUDY_DESCRIPTION,
    tags::SERIES_DESCRIPTION,
    tags::PATIENT_NAME,
    tags::PATIENT_ID,
    tags::ISSUER_OF_PATIENT_ID,
    tags::PATIENT_BIRTH_DATE,
    tags::PATIENT_SEX,
    tags::BODY_PART_EXAMINED,
    tags::STUDY_INSTANCE_UID,
    tags::SERIES_INSTANCE_UID,
    tags::SERIES_NUMBER,
    tags::INSTANCE_NUMBER,
    tags::NUMBER_OF_FRAMES,
    tags::ROWS,
    tags::COLUMNS,
    tags::REQUESTING_PHYSICIAN,
    // Held under the sequence's own tag; its value is that of the item's entity id.
    tags::ISSUER_OF_ACCESSION_NUMBER_SEQUENCE,
];

/// Those that say whose image it is, or how to read that: two different ones are refused.
const IDENTITY: [Tag; 11] = [
    tags::SPECIFIC_CHARACTER_SET,
    tags::SOP_CLASS_UID,
    tags::SOP_INSTANCE_UID,
    tags::STUDY_INSTANCE_UID,
    tags::SERIES_INSTANCE_UID,
    tags::ACCESSION_NUMBER,
    tags::PATIENT_NAME,
    tags::PATIENT_ID,
    tags::ISSUER_OF_PATIENT_ID,
    tags::PATIENT_BIRTH_DATE,
    tags::PATIENT_SEX,
];

/// Raw values as the walk finds them. Cut at [`TEXT_LEN_MAX`], so at most 27 KiB in all.
#[derive(Debug)]
struct Values {
    found: Vec<(Tag, Vec<u8>)>,
    coding: Coding,
    local_issuer_seen: bool,
    replaced: bool,
}

impl Visit for Values {
    fn element(&mut self, element: &Element<'_>) -> Result<(), Rejection> {
        let Some(value) = element.value() else {
            return Ok(());
        };
        if element.depth == 0 {
            if WANTED.contains(&element.tag) {
                self.keep(element.tag, value)?;
            }
        } else if element.depth == 1 && element.parent == Some(tags::ISSUER_OF_ACCESSION_NUMBER_SEQUENCE) {
            self.keep_issuer(element.tag, value);
        }
        Ok(())
    }
}

impl Values {
    fn keep(&mut self, tag: Tag, value: &[u8]) -> Result<(), Rejection> {
        let value = self.bounded(value);
        match self.raw(tag) {
            None => self.found.push((tag, value)),
            Some(first) if first != value && IDENTITY.contains(&tag) => return Err(Rejection::Duplicate { tag }),
            // The same again, or nothing that decides whose image it is: the first counts.
            Some(_) => {}
        }
        Ok(())
    }

    /// The local entity id wins over the universal one, and the first item over later ones.
    fn keep_issuer(&mut self, tag: Tag, value: &[u8]) {
        let local = tag == tags::LOCAL_NAMESPACE_ENTITY_ID;
        if !(local || tag == tags::UNIVERSAL_ENTITY_ID) || self.local_issuer_seen {
            return;
        }
        let sequence = tags::ISSUER_OF_ACCESSION_NUMBER_SEQUENCE;
        if local {
            self.local_issuer_seen = true;
            self.found.retain(|(found, _)| *found != sequence);
        }
        if self.raw(sequence).is_none() {
            let value = self.bounded(value);
            self.found.push((sequence, value));
        }
    }

    fn bounded(&mut self, value: &[u8]) -> Vec<u8> {
        self.replaced |= value.len() > TEXT_LEN_MAX;
        value[..value.len().min(TEXT_LEN_MAX)].to_vec()
    }

    fn raw(&self, tag: Tag) -> Option<&[u8]> {
        self.found.iter().find(|(found, _)| *found == tag).map(|(_, value)| value.as_slice())
    }

    fn attributes(mut self) -> Result<Attributes, Rejection> {
        let charset = Charset::parse(self.raw(tags::SPECIFIC_CHARACTER_SET).unwrap_or_default());
        Ok(Attributes {
            study_uid: self.uid(tags::STUDY_INSTANCE_UID)?,
            series_uid: self.uid(tags::SERIES_INSTANCE_UID)?,
            sop_instance_uid: self.uid(tags::SOP_INSTANCE_UID)?,
            sop_class_uid: self.uid(tags::SOP_CLASS_UID)?,
            patient_id: self.text(tags::PATIENT_ID, &charset),
            issuer_of_patient_id: self.text(tags::ISSUER_OF_PATIENT_ID, &charset),
            patient_name: self.text(tags::PATIENT_NAME, &charset),
            birth_date: self.text(tags::PATIENT_BIRTH_DATE, &charset),
            sex: self.text(tags::PATIENT_SEX, &charset),
            accession_number: self.text(tags::ACCESSION_NUMBER, &charset),
            issuer_of_accession_number: self.text(tags::ISSUER_OF_ACCESSION_NUMBER_SEQUENCE, &charset),
            modality: self.text(tags::MODALITY, &charset),
            study_description: self.text(tags::STUDY_DESCRIPTION, &charset),
            series_description: self.text(tags::SERIES_DESCRIPTION, &charset),
            study_date: self.text(tags::STUDY_DATE, &charset),
            study_time: self.text(tags::STUDY_TIME, &charset),
            series_number: self.integer(tags::SERIES_NUMBER),
            instance_number: self.integer(tags::INSTANCE_NUMBER),
            body_part: self.text(tags::BODY_PART_EXAMINED, &charset),
            institution: self.text(tags::INSTITUTION_NAME, &charset),
            referring_physician: self.text(tags::REFERRING_PHYSICIAN_NAME, &charset),
            requesting_physician: self.text(tags::REQUESTING_PHYSICIAN, &charset),
            station_name: self.text(tags::STATION_NAME, &charset),
            rows: self.unsigned_short(tags::ROWS),
            columns: self.unsigned_short(tags::COLUMNS),
            frames: self.integer(tags::NUMBER_OF_FRAMES).and_then(|frames| u32::try_from(frames).ok()),
            // Last: the texts above set it.
            replaced_text: self.replaced,
        })
    }

    fn uid(&self, tag: Tag) -> Result<Uid, Rejection> {
        match Uid::from_padded(self.raw(tag).unwrap_or_default()) {
            Err(UidError::Empty) => Err(Rejection::MissingUid { tag }),
            other => other.map_err(|source| Rejection::InvalidUid { tag, source }),
        }
    }

    fn text(&mut self, tag: Tag, charset: &Charset) -> Option<Redacted<String>> {
        let decoded = charset.decode(self.raw(tag)?);
        self.replaced |= decoded.doubtful;
        if decoded.text.is_empty() { None } else { Some(Redacted::new(decoded.text)) }
    }

    /// An integer string, PS3.5 section 6.2; the first value of several.
    fn integer(&self, tag: Tag) -> Option<i32> {
        let text = std::str::from_utf8(self.raw(tag)?).ok()?;
        let first = text.split('\\').next()?.trim_matches([' ', '\0']);
        first.parse().ok()
    }

    fn unsigned_short(&self, tag: Tag) -> Option<u16> {
        let &[a, b] = self.raw(tag)? else {
            return None;
        };
        Some(self.coding.u16([a, b]))
    }
}
