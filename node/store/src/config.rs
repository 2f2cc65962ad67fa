//! What may be set about a store, with the reasons for the defaults.

/// How a store uses its disk and memory. Sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// A pack that reached this size is sealed and the next one begun. 1 GiB: a day of a busy site is
    /// some hundred files, and a pack is scanned in a second.
    pub pack_bytes: u64,
    /// How much is zeroed ahead of the writer while it is idle, so that the fdatasync behind the next
    /// acknowledgements has no file metadata to write (0.35 ms beside 0.8 ms for 0.5 MB). Also how much
    /// is written between two looks at the free space.
    pub extent_bytes: u64,
    /// Free space below which nothing more is taken in: the queue and its log need room to go on
    /// when images have filled the volume.
    pub reserve_bytes: u64,
    /// Bytes that callers may have waiting for the writer; beyond it they wait (back-pressure).
    pub queue_bytes: u64,
    /// Bytes that share one write and one fsync at most: bounds how long the first of them waits.
    pub group_bytes: u64,
    /// Bytes that may wait to be cut and coded after they were acknowledged; beyond it senders wait for the coder.
    /// With 0 nothing lands. 1 GiB: some seconds of the coder's work behind a burst of a dozen senders.
    pub landing_bytes: u64,
    /// Sealed packs kept open for reading, for a node must stay far below its limit of descriptors.
    pub open_files: usize,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            pack_bytes: 1 << 30,
            extent_bytes: 16 << 20,
            reserve_bytes: 1 << 30,
            queue_bytes: 64 << 20,
            group_bytes: 16 << 20,
            landing_bytes: 1 << 30,
            open_files: 128,
        }
    }
}
