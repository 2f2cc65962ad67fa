//! Command sets, PS3.7 section 6.3 and annex E: always implicit VR little endian, group 0000 only.

use bytes::{BufMut, BytesMut};
use dicom_core::Tag;
use thiserror::Error;

use super::status::StoreStatus;
use crate::ae_title::AeTitle;
use crate::element::{Coding, header};
use crate::uid::{Uid, UidError};

/// Most bytes of a command set; a C-STORE-RQ with all its elements takes some 400.
pub const COMMAND_LEN_MAX: usize = 16 << 10;

/// C-STORE-RQ as a command field.
pub const C_STORE_RQ: u16 = 0x0001;
/// C-STORE-RSP as a command field.
pub const C_STORE_RSP: u16 = 0x8001;
/// C-ECHO-RQ as a command field.
pub const C_ECHO_RQ: u16 = 0x0030;
/// C-ECHO-RSP as a command field.
pub const C_ECHO_RSP: u16 = 0x8030;
/// C-FIND-RQ as a command field.
pub const C_FIND_RQ: u16 = 0x0020;
/// N-EVENT-REPORT-RQ as a command field.
pub const N_EVENT_REPORT_RQ: u16 = 0x0100;
/// N-GET-RQ as a command field.
pub const N_GET_RQ: u16 = 0x0110;
/// N-SET-RQ as a command field.
pub const N_SET_RQ: u16 = 0x0120;
/// N-ACTION-RQ as a command field.
pub const N_ACTION_RQ: u16 = 0x0130;
/// N-CREATE-RQ as a command field.
pub const N_CREATE_RQ: u16 = 0x0140;
/// N-DELETE-RQ as a command field.
pub const N_DELETE_RQ: u16 = 0x0150;
/// C-CANCEL-RQ as a command field.
pub const C_CANCEL_RQ: u16 = 0x0FFF;
/// Set in the command field of every response.
pub const RESPONSE: u16 = 0x8000;

/// Command Data Set Type (0000,0800) that says "no data set follows"; any other says one does.
const NO_DATA_SET: u16 = 0x0101;
/// Any value other than [`NO_DATA_SET`].
const DATA_SET: u16 = 0x0000;
/// Priority (0000,0700): medium.
const MEDIUM: u16 = 0;

const AFFECTED_SOP_CLASS: Tag = Tag(0x0000, 0x0002);
const REQUESTED_SOP_CLASS: Tag = Tag(0x0000, 0x0003);
const COMMAND_FIELD: Tag = Tag(0x0000, 0x0100);
const MESSAGE_ID: Tag = Tag(0x0000, 0x0110);
const MESSAGE_ID_RESPONDED: Tag = Tag(0x0000, 0x0120);
const PRIORITY: Tag = Tag(0x0000, 0x0700);
const DATA_SET_TYPE: Tag = Tag(0x0000, 0x0800);
const STATUS: Tag = Tag(0x0000, 0x0900);
const ERROR_COMMENT: Tag = Tag(0x0000, 0x0902);
const AFFECTED_SOP_INSTANCE: Tag = Tag(0x0000, 0x1000);
const REQUESTED_SOP_INSTANCE: Tag = Tag(0x0000, 0x1001);
const EVENT_TYPE: Tag = Tag(0x0000, 0x1002);
const ATTRIBUTE_LIST: Tag = Tag(0x0000, 0x1005);
const ACTION_TYPE: Tag = Tag(0x0000, 0x1008);
const MOVE_ORIGINATOR: Tag = Tag(0x0000, 0x1030);
const MOVE_ORIGINATOR_MESSAGE: Tag = Tag(0x0000, 0x1031);

/// A command set. What a command lacks is `None`; what it has beyond this is passed over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Command {
    /// Command Field.
    pub field: u16,
    /// Message ID of a request.
    pub message_id: Option<u16>,
    /// Message ID Being Responded To.
    pub responds_to: Option<u16>,
    /// Whether a data set follows.
    pub has_data_set: bool,
    /// Affected SOP Class UID.
    pub sop_class: Option<Uid>,
    /// Affected SOP Instance UID; what is wrong with it, if anything.
    pub sop_instance: Option<Result<Uid, UidError>>,
    /// Requested SOP Class UID, of the operations on an instance that exists.
    pub requested_class: Option<Uid>,
    /// Requested SOP Instance UID; what is wrong with it, if anything.
    pub requested_instance: Option<Result<Uid, UidError>>,
    /// Event Type ID.
    pub event_type: Option<u16>,
    /// Action Type ID.
    pub action_type: Option<u16>,
    /// Attribute Identifier List: what an N-GET asks for; none is all.
    pub attributes: Vec<Tag>,
    /// Status of a response.
    pub status: Option<u16>,
    /// Error Comment of a response.
    pub comment: Option<String>,
    /// Move Originator Application Entity Title.
    pub move_originator: Option<AeTitle>,
    /// Move Originator Message ID.
    pub move_originator_message: Option<u16>,
}

/// Why bytes are no command set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CommandError {
    /// A length that goes beyond the end, or a wrong one.
    #[error("command set is broken")]
    Broken,
    /// An element of another group.
    #[error("command set has an element of another group")]
    Group,
    /// No command field or no data set type.
    #[error("command set lacks an element")]
    Missing,
}

impl Command {
    /// Decodes a command set.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, CommandError> {
        let (mut field, mut data_set_type) = (None, None);
        let mut command = Self::default();
        let mut at = 0;
        while at < bytes.len() {
            let header = header(bytes, at, Coding::ImplicitLe).map_err(|_| CommandError::Broken)?;
            if header.tag.group() != 0x0000 {
                return Err(CommandError::Group);
            }
            let length = usize::try_from(header.length).map_err(|_| CommandError::Broken)?;
            let value = bytes[at + header.len..].get(..length).ok_or(CommandError::Broken)?;
            at += header.len + length;
            match header.tag {
                COMMAND_FIELD => field = number(value)?,
                DATA_SET_TYPE => data_set_type = number(value)?,
                MESSAGE_ID => command.message_id = number(value)?,
                MESSAGE_ID_RESPONDED => command.responds_to = number(value)?,
                STATUS => command.status = number(value)?,
                AFFECTED_SOP_CLASS => command.sop_class = Uid::from_padded(value).ok(),
                AFFECTED_SOP_INSTANCE => command.sop_instance = Some(Uid::from_padded(value)),
                REQUESTED_SOP_CLASS => command.requested_class = Uid::from_padded(value).ok(),
                REQUESTED_SOP_INSTANCE => command.requested_instance = Some(Uid::from_padded(value)),
                EVENT_TYPE => command.event_type = number(value)?,
                ACTION_TYPE => command.action_type = number(value)?,
                ATTRIBUTE_LIST => command.attributes = tags(value)?,
                ERROR_COMMENT => command.comment = Some(String::from_utf8_lossy(value).trim().to_owned()),
                MOVE_ORIGINATOR => command.move_originator = AeTitle::from_padded(value).ok(),
                MOVE_ORIGINATOR_MESSAGE => command.move_originator_message = number(value)?,
                _ => {}
            }
        }
        command.field = field.ok_or(CommandError::Missing)?;
        command.has_data_set = data_set_type.ok_or(CommandError::Missing)? != NO_DATA_SET;
        Ok(command)
    }

    /// A C-ECHO-RQ.
    pub fn echo(message_id: u16) -> Self {
        let sop_class = Some(Uid::VERIFICATION);
        Self { field: C_ECHO_RQ, message_id: Some(message_id), sop_class, ..Self::default() }
    }

    /// An N-EVENT-REPORT-RQ of an instance.
    pub fn event_report(sop_class: Uid, sop_instance: Uid, event_type: u16) -> Self {
        Self {
            field: N_EVENT_REPORT_RQ,
            sop_class: Some(sop_class),
            sop_instance: Some(Ok(sop_instance)),
            event_type: Some(event_type),
            ..Self::default()
        }
    }

    /// A C-STORE-RQ.
    pub fn store(message_id: u16, sop_class: Uid, sop_instance: Uid) -> Self {
        Self {
            field: C_STORE_RQ,
            message_id: Some(message_id),
            has_data_set: true,
            sop_class: Some(sop_class),
            sop_instance: Some(Ok(sop_instance)),
            ..Self::default()
        }
    }

    /// The response to this request.
    pub fn respond(&self, status: &StoreStatus) -> Self {
        Self {
            field: self.field | RESPONSE,
            responds_to: Some(self.message_id.unwrap_or(0)),
            sop_class: self.sop_class.clone().or_else(|| self.requested_class.clone()),
            // A broken one is not sent back.
            sop_instance: self.sop_instance.clone().or_else(|| self.requested_instance.clone()).filter(Result::is_ok),
            event_type: self.event_type,
            action_type: self.action_type,
            status: Some(status.code()),
            comment: Some(status.comment().to_owned()).filter(|comment| !comment.is_empty()),
            ..Self::default()
        }
    }

    /// Encodes the command set, elements in ascending order, group length first.
    pub fn encode(&self) -> BytesMut {
        let mut out = BytesMut::with_capacity(512);
        put(&mut out, Tag(0x0000, 0x0000), &[0; 4]);
        let body = out.len();
        if let Some(uid) = &self.sop_class {
            put_text(&mut out, AFFECTED_SOP_CLASS, uid.as_str(), 0);
        }
        if let Some(uid) = &self.requested_class {
            put_text(&mut out, REQUESTED_SOP_CLASS, uid.as_str(), 0);
        }
        put(&mut out, COMMAND_FIELD, &self.field.to_le_bytes());
        put_number(&mut out, MESSAGE_ID, self.message_id);
        put_number(&mut out, MESSAGE_ID_RESPONDED, self.responds_to);
        if matches!(self.field, C_STORE_RQ | C_FIND_RQ) {
            put(&mut out, PRIORITY, &MEDIUM.to_le_bytes());
        }
        let data_set_type = if self.has_data_set { DATA_SET } else { NO_DATA_SET };
        put(&mut out, DATA_SET_TYPE, &data_set_type.to_le_bytes());
        put_number(&mut out, STATUS, self.status);
        if let Some(comment) = &self.comment {
            put_text(&mut out, ERROR_COMMENT, comment, b' ');
        }
        if let Some(Ok(uid)) = &self.sop_instance {
            put_text(&mut out, AFFECTED_SOP_INSTANCE, uid.as_str(), 0);
        }
        if let Some(Ok(uid)) = &self.requested_instance {
            put_text(&mut out, REQUESTED_SOP_INSTANCE, uid.as_str(), 0);
        }
        put_number(&mut out, EVENT_TYPE, self.event_type);
        if !self.attributes.is_empty() {
            let list: Vec<u8> = self.attributes.iter().flat_map(|tag| tag_bytes(*tag)).collect();
            put(&mut out, ATTRIBUTE_LIST, &list);
        }
        put_number(&mut out, ACTION_TYPE, self.action_type);
        if let Some(originator) = &self.move_originator {
            put_text(&mut out, MOVE_ORIGINATOR, originator.as_str(), b' ');
        }
        put_number(&mut out, MOVE_ORIGINATOR_MESSAGE, self.move_originator_message);
        let length = u32::try_from(out.len() - body).unwrap_or(u32::MAX);
        out[body - 4..body].copy_from_slice(&length.to_le_bytes());
        out
    }
}

fn number(value: &[u8]) -> Result<Option<u16>, CommandError> {
    match *value {
        [a, b] => Ok(Some(u16::from_le_bytes([a, b]))),
        [] => Ok(None),
        _ => Err(CommandError::Broken),
    }
}

/// A list of tags, VR AT.
fn tags(value: &[u8]) -> Result<Vec<Tag>, CommandError> {
    let (pairs, rest) = value.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(CommandError::Broken);
    }
    Ok(pairs.iter().map(|[a, b, c, d]| Tag(u16::from_le_bytes([*a, *b]), u16::from_le_bytes([*c, *d]))).collect())
}

fn tag_bytes(tag: Tag) -> [u8; 4] {
    let ([a, b], [c, d]) = (tag.group().to_le_bytes(), tag.element().to_le_bytes());
    [a, b, c, d]
}

fn put_number(out: &mut BytesMut, tag: Tag, number: Option<u16>) {
    if let Some(number) = number {
        put(out, tag, &number.to_le_bytes());
    }
}

fn put_text(out: &mut BytesMut, tag: Tag, text: &str, padding: u8) {
    let mut value = text.as_bytes().to_vec();
    if value.len() % 2 == 1 {
        value.push(padding);
    }
    put(out, tag, &value);
}

fn put(out: &mut BytesMut, tag: Tag, value: &[u8]) {
    out.put_u16_le(tag.group());
    out.put_u16_le(tag.element());
    out.put_u32_le(u32::try_from(value.len()).unwrap_or(u32::MAX));
    out.put_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(text: &str) -> Uid {
        Uid::parse(text).expect("a uid")
    }

    #[test]
    fn commands_read_back_as_written() {
        let store = Command {
            move_originator: Some(AeTitle::parse("PACS").expect("a title")),
            move_originator_message: Some(7),
            ..Command::store(3, Uid::CT_IMAGE_STORAGE, uid("1.2.3"))
        };
        let refused = store.respond(&StoreStatus::out_of_resources("disk is full"));
        let echo = Command::echo(9);
        let get = Command {
            field: N_GET_RQ,
            message_id: Some(4),
            requested_class: Some(uid("1.2.4")),
            requested_instance: Some(Ok(uid("1.2.5"))),
            attributes: vec![Tag(0x0074, 0x1000), Tag(0x0010, 0x0020)],
            ..Command::default()
        };
        let event = Command { message_id: Some(5), ..Command::event_report(uid("1.2.4"), uid("1.2.5"), 3) };
        assert_eq!(get.respond(&StoreStatus::SUCCESS).sop_instance, Some(Ok(uid("1.2.5"))));
        assert_eq!(event.respond(&StoreStatus::SUCCESS).event_type, Some(3));
        for command in [get, event, store, refused, echo.respond(&StoreStatus::SUCCESS), echo] {
            assert_eq!(Command::decode(&command.encode()), Ok(command));
        }
    }

    #[test]
    fn an_invalid_instance_uid_is_kept_as_such_and_not_echoed() {
        let mut bytes = Command::store(1, Uid::CT_IMAGE_STORAGE, uid("1.2.33")).encode();
        let at = bytes.windows(6).position(|window| window == b"1.2.33").expect("the uid");
        bytes[at..at + 6].copy_from_slice(b"../../");
        let command = Command::decode(&bytes).expect("decodes");
        assert_eq!(command.sop_instance, Some(Err(UidError::Character)));
        assert_eq!(command.respond(&StoreStatus::SUCCESS).sop_instance, None);
    }

    #[test]
    fn a_length_beyond_the_end_is_refused() {
        let mut bytes = Command::echo(1).encode();
        bytes.truncate(bytes.len() - 1);
        assert_eq!(Command::decode(&bytes), Err(CommandError::Broken));
        assert_eq!(Command::decode(&[8, 0, 0x18, 0, 0, 0, 0, 0]), Err(CommandError::Group));
        assert_eq!(Command::decode(&[]), Err(CommandError::Missing));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = Command::decode(&bytes);
        }
    }
}
