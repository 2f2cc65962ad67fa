//! What a store tells its node without being asked.

use crate::hash::Hash;

/// Something that happened to what is stored. Receivers that lag lose events; the state behind them
/// stays visible in [`crate::Store::bad_chunks`] and [`crate::Store::held`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreEvent {
    /// A chunk or manifest was found damaged and is served no more: fetch it from another node and
    /// put it again.
    Quarantined(Hash),
    /// A quarantined chunk was written anew.
    Repaired(Hash),
    /// A study manifest is no longer held completely.
    HoldLost(Hash),
    /// A damaged index was made anew. What is held may be less than it was.
    Mended,
    /// Writing failed for good; the text says why. A human must look.
    WriterFailed(String),
    /// There is no room for images.
    Full,
    /// There is room again.
    RoomAgain,
}
