//! What a node says of itself in a keep-alive.
//!
//! Nodes of the first version send an empty keep-alive and refuse any other, so that this body is optional
//! on both sides: who was refused with it says it again without. What later versions put behind these
//! fields is skipped, so that the next field needs no such dance.

use std::time::Duration;

use bytes::{BufMut, BytesMut};

use super::millis;
use crate::raft::codec::{Decoder, Malformed};
use crate::raft::status::ClockOffset;

/// What a node says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Greeting {
    /// The highest format of commands that it understands.
    pub(crate) format: u8,
    /// How its clock stands to that of the leader that it says this to, as it measured it; nothing
    /// before its first measurement.
    pub(crate) measured: Option<ClockOffset>,
}

impl Greeting {
    /// Bytes: the format, whether there is a measurement, the offset, the round trip in milliseconds.
    pub(super) fn encode(&self, out: &mut BytesMut) {
        out.put_u8(self.format);
        out.put_u8(u8::from(self.measured.is_some()));
        out.put_i64_le(self.measured.map_or(0, |measured| measured.ahead_ms));
        out.put_u32_le(self.measured.map_or(0, |measured| millis(measured.round_trip)));
    }

    pub(super) fn decode(decoder: &mut Decoder) -> Result<Option<Self>, Malformed> {
        if decoder.is_empty() {
            return Ok(None);
        }
        let (format, is_measured) = (decoder.u8()?, decoder.flag()?);
        let ahead_ms = i64::from_le_bytes(decoder.array()?);
        let round_trip = Duration::from_millis(decoder.u32()?.into());
        Ok(Some(Self { format, measured: is_measured.then_some(ClockOffset { ahead_ms, round_trip }) }))
    }
}
