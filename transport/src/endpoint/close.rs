//! The codes with which this endpoint closes connections (QUIC application error codes).

/// A code and what it says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Code(u32, &'static str);

pub(crate) const SHUTDOWN: Code = Code(0, "the node is stopping");
pub(crate) const REMOVED: Code = Code(1, "no longer a member");
pub(crate) const NOT_SERVED: Code = Code(2, "protocol not served");
pub(crate) const REPLACED: Code = Code(3, "too many connections, the oldest goes");
pub(crate) const TOO_SLOW: Code = Code(4, "too slow");

impl Code {
    pub(crate) fn reason(self) -> &'static [u8] {
        self.1.as_bytes()
    }
}

impl From<Code> for quinn::VarInt {
    fn from(code: Code) -> Self {
        Self::from_u32(code.0)
    }
}
