//! One pass over the elements of a data set, within bounds, without recursion.
//!
//! The only loop in this crate that follows lengths which a stranger declared. It allocates nothing
//! by them: the one thing that grows is a stack of at most two frames a nesting level. Values are
//! lent to a [`Visit`] as slices.

use dicom_core::dictionary::{DataDictionary, DataDictionaryEntry, VirtualVr};
use dicom_core::{Tag, VR};
use dicom_dictionary_std::StandardDataDictionary;

use crate::element::{Coding, Header, ITEM, ITEM_DELIMITER, SEQUENCE_DELIMITER, UNDEFINED, header};
use crate::prescan::{DEPTH_MAX, ELEMENTS_MAX};
use crate::rejection::Rejection;

/// Pixel Data, PS3.3 section C.7.6.3.
pub(crate) const PIXEL_DATA: Tag = Tag(0x7FE0, 0x0010);
/// Float Pixel Data and Double Float Pixel Data, PS3.3 sections C.7.6.24 and C.7.6.25.
pub(crate) const FLOAT_PIXEL_DATA: Tag = Tag(0x7FE0, 0x0008);
pub(crate) const DOUBLE_PIXEL_DATA: Tag = Tag(0x7FE0, 0x0009);

/// An element as a visitor sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Element<'a> {
    pub(crate) tag: Tag,
    pub(crate) vr: Option<[u8; 2]>,
    pub(crate) coding: Coding,
    /// The innermost sequence that holds the element; `None` at the top level.
    pub(crate) parent: Option<Tag>,
    pub(crate) depth: usize,
    pub(crate) content: Content<'a>,
}

/// What an element holds.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Content<'a> {
    Value(&'a [u8]),
    /// A sequence; its items' elements are visited next.
    Sequence,
    /// Encapsulated pixels: the number of items, the offset table among them.
    Fragments(usize),
}

impl<'a> Element<'a> {
    /// The value, unless the element is a sequence or encapsulated.
    pub(crate) fn value(&self) -> Option<&'a [u8]> {
        match self.content {
            Content::Value(value) => Some(value),
            _ => None,
        }
    }
}

/// Takes the elements of a walk in the order of their bytes.
pub(crate) trait Visit {
    /// Called for each element. An error ends the walk.
    fn element(&mut self, element: &Element<'_>) -> Result<(), Rejection>;
}

/// What a whole walk found.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Walked {
    pub(crate) elements: usize,
    pub(crate) top_level: usize,
    /// Where the first pixel element of the top level begins.
    pub(crate) pixel_offset: Option<usize>,
    pub(crate) out_of_order: bool,
    pub(crate) repeated_tag: bool,
    pub(crate) odd_length: bool,
    pub(crate) trailing_zeros: bool,
}

/// Walks all of `bytes`.
pub(crate) fn walk(
    bytes: &[u8],
    coding: Coding,
    encapsulated: bool,
    visit: &mut dyn Visit,
) -> Result<Walked, Rejection> {
    let root = Frame { kind: Kind::Elements, end: Some(bytes.len()), limit: bytes.len(), coding, parent: None };
    let mut walk =
        Walk { bytes, encapsulated, at: 0, frames: vec![root], depth: 0, last: None, walked: Walked::default() };
    walk.run(visit)?;
    Ok(walk.walked)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Holds elements: the data set itself, or an item.
    Elements,
    /// Holds items.
    Sequence,
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    kind: Kind,
    /// Where it ends, when its length is defined.
    end: Option<usize>,
    /// Where it must have ended: the innermost defined end.
    limit: usize,
    coding: Coding,
    parent: Option<Tag>,
}

struct Walk<'a> {
    bytes: &'a [u8],
    encapsulated: bool,
    at: usize,
    frames: Vec<Frame>,
    depth: usize,
    last: Option<Tag>,
    walked: Walked,
}

impl Walk<'_> {
    fn run(&mut self, visit: &mut dyn Visit) -> Result<(), Rejection> {
        while let Some(&frame) = self.frames.last() {
            if frame.end == Some(self.at) {
                self.pop();
            } else if frame.kind == Kind::Sequence {
                self.item(frame)?;
            } else if self.depth == 0 && self.only_zeros_follow() {
                // Padding to a block size, as some archives leave it.
                self.walked.trailing_zeros = true;
                self.pop();
            } else {
                self.element(frame, visit)?;
            }
        }
        Ok(())
    }

    fn pop(&mut self) {
        if let Some(Frame { kind: Kind::Sequence, .. }) = self.frames.pop() {
            self.depth -= 1;
        }
    }

    fn only_zeros_follow(&self) -> bool {
        let rest = &self.bytes[self.at..];
        // Eight zeros would be a command group length: never legal here, so the whole rest is read
        // at most once.
        rest.iter().take(8).all(|&byte| byte == 0) && rest.iter().all(|&byte| byte == 0)
    }

    fn header(&mut self, frame: Frame) -> Result<Header, Rejection> {
        self.walked.elements += 1;
        if self.walked.elements > ELEMENTS_MAX {
            return Err(Rejection::TooManyElements);
        }
        header(&self.bytes[..frame.limit], self.at, frame.coding)
    }

    /// Where a value of the declared length ends, if it ends in time.
    fn end_of(&self, header: &Header, limit: usize) -> Result<usize, Rejection> {
        let left = limit - (self.at + header.len);
        match usize::try_from(header.length) {
            Ok(length) if length <= left => Ok(self.at + header.len + length),
            _ => Err(Rejection::LengthBeyondEnd { tag: header.tag, offset: self.at, declared: header.length, left }),
        }
    }

    fn item(&mut self, sequence: Frame) -> Result<(), Rejection> {
        let header = self.header(sequence)?;
        let unexpected = Rejection::UnexpectedTag { tag: header.tag, offset: self.at };
        match header.tag {
            ITEM => {
                let end = if header.length == UNDEFINED { None } else { Some(self.end_of(&header, sequence.limit)?) };
                self.at += header.len;
                let limit = end.unwrap_or(sequence.limit);
                self.frames.push(Frame { kind: Kind::Elements, end, limit, ..sequence });
            }
            SEQUENCE_DELIMITER if sequence.end.is_none() && header.length == 0 => {
                self.at += header.len;
                self.pop();
            }
            _ => return Err(unexpected),
        }
        Ok(())
    }

    fn element(&mut self, frame: Frame, visit: &mut dyn Visit) -> Result<(), Rejection> {
        let header = self.header(frame)?;
        let Header { tag, vr, length, .. } = header;
        if tag == ITEM_DELIMITER && frame.end.is_none() && length == 0 {
            self.at += header.len;
            self.pop();
            return Ok(());
        }
        // Groups below 0004 are commands and file meta information: after our own file header they
        // would be read as part of it.
        if tag.group() == 0xFFFE || (self.depth == 0 && tag.group() < 0x0004) {
            return Err(Rejection::UnexpectedTag { tag, offset: self.at });
        }
        if self.depth == 0 {
            self.note_top_level(tag);
        }
        let mut element = Element {
            tag,
            vr,
            coding: frame.coding,
            parent: frame.parent,
            depth: self.depth,
            content: Content::Sequence,
        };
        if let Some(inner) = self.sequence_coding(&header, frame.coding)? {
            visit.element(&element)?;
            return self.enter(&header, frame, inner);
        }
        if length == UNDEFINED {
            element.content = Content::Fragments(self.fragments(&header, frame)?);
            return visit.element(&element);
        }
        let end = self.end_of(&header, frame.limit)?;
        self.walked.odd_length |= length % 2 == 1;
        element.content = Content::Value(&self.bytes[self.at + header.len..end]);
        self.at = end;
        visit.element(&element)
    }

    fn note_top_level(&mut self, tag: Tag) {
        self.walked.top_level += 1;
        self.walked.out_of_order |= self.last.is_some_and(|last| tag < last);
        self.walked.repeated_tag |= self.last == Some(tag);
        self.last = Some(tag);
        if matches!(tag, PIXEL_DATA | FLOAT_PIXEL_DATA | DOUBLE_PIXEL_DATA) {
            self.walked.pixel_offset.get_or_insert(self.at);
        }
    }

    /// The coding inside, if the element is a sequence; an error if its length is undefined and it
    /// can be neither a sequence nor encapsulated pixels.
    fn sequence_coding(&self, header: &Header, coding: Coding) -> Result<Option<Coding>, Rejection> {
        let undefined = header.length == UNDEFINED;
        let refused = Rejection::UndefinedLength { tag: header.tag, offset: self.at };
        match header.vr.as_ref() {
            Some(b"SQ") => Ok(Some(coding)),
            _ if header.tag == PIXEL_DATA && undefined => {
                if self.encapsulated && header.vr.is_some() {
                    Ok(None)
                } else {
                    Err(refused)
                }
            }
            // Unknown with an undefined length is an implicit VR sequence, PS3.5 section 6.2.2.
            Some(b"UN") if undefined => Ok(Some(Coding::ImplicitLe)),
            Some(_) if undefined => Err(refused),
            Some(_) => Ok(None),
            None => match dictionary_vr(header.tag) {
                Some(VR::SQ) => Ok(Some(coding)),
                Some(VR::UN) | None if undefined => Ok(Some(coding)),
                Some(_) if undefined => Err(refused),
                _ => Ok(None),
            },
        }
    }

    fn enter(&mut self, header: &Header, frame: Frame, coding: Coding) -> Result<(), Rejection> {
        if self.depth == DEPTH_MAX {
            return Err(Rejection::TooDeep { offset: self.at });
        }
        let end = if header.length == UNDEFINED { None } else { Some(self.end_of(header, frame.limit)?) };
        self.at += header.len;
        self.depth += 1;
        let limit = end.unwrap_or(frame.limit);
        self.frames.push(Frame { kind: Kind::Sequence, end, limit, coding, parent: Some(header.tag) });
        Ok(())
    }

    /// Passes the items of encapsulated pixels, PS3.5 annex A.4, and counts them.
    fn fragments(&mut self, pixels: &Header, frame: Frame) -> Result<usize, Rejection> {
        self.at += pixels.len;
        let mut count = 0;
        loop {
            let header = self.header(frame)?;
            match header.tag {
                ITEM if header.length == UNDEFINED => {
                    return Err(Rejection::UndefinedLength { tag: ITEM, offset: self.at });
                }
                ITEM => {
                    self.at = self.end_of(&header, frame.limit)?;
                    count += 1;
                }
                SEQUENCE_DELIMITER if header.length == 0 => {
                    self.at += header.len;
                    return Ok(count);
                }
                tag => return Err(Rejection::UnexpectedTag { tag, offset: self.at }),
            }
        }
    }
}

/// The VR that the dictionary gives a tag, when it is one; private tags have none.
fn dictionary_vr(tag: Tag) -> Option<VR> {
    match StandardDataDictionary.by_tag(tag)?.vr() {
        VirtualVr::Exact(vr) => Some(vr),
        // Pixel-dependent representations: never a sequence.
        _ => Some(VR::OW),
    }
}
