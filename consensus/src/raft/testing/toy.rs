//! A machine that counts commands, each once, and remembers their values.

use bytes::Bytes;
use maillage_host::UnixMillis;
use maillage_host::engine::Reader;

use crate::machine::{ApplyError, Machine, Proposer, StampError};
use crate::transaction::Transaction;

/// A value that begins with this is of a version that this machine does not know.
pub(crate) const UNKNOWN: u8 = 0xff;

pub(crate) struct Toy;

/// A command: an id by which it is recognised when it comes again, and a value.
pub(crate) fn toy_command(id: u64, value: &[u8]) -> Bytes {
    [&id.to_be_bytes(), value].concat().into()
}

impl Machine for Toy {
    fn stamp(
        &self,
        _state: &dyn Reader,
        command: &[u8],
        _from: Proposer,
        now: UnixMillis,
    ) -> Result<Vec<u8>, StampError> {
        if command.len() < 8 {
            return Err(StampError::Invalid("no id".to_owned()));
        }
        let mut stamped = command[..8].to_vec();
        stamped.extend_from_slice(&now.0.to_be_bytes());
        stamped.extend_from_slice(&command[8..]);
        Ok(stamped)
    }

    /// The outcome is the place of the command in the order of those applied.
    fn apply(&self, transaction: &mut Transaction<'_>, index: u64, command: &[u8]) -> Result<Vec<u8>, ApplyError> {
        let (id, value) = (&command[..8], &command[16..]);
        let done = [b"d", id].concat();
        if let Some(outcome) = transaction.get(&done)? {
            return Ok(outcome);
        }
        let count = match transaction.get(b"n")? {
            Some(bytes) => u64::from_be_bytes(bytes.try_into().expect("eight bytes")),
            None => 0,
        };
        let outcome = (count + 1).to_be_bytes().to_vec();
        transaction.put(*b"n", outcome.clone());
        if value.first() == Some(&UNKNOWN) {
            // After a write, so that the tests see it undone.
            return Err(ApplyError::Unknown { index, detail: "of the future".to_owned() });
        }
        transaction.put(done, outcome.clone());
        transaction.put([b"v", outcome.as_slice()].concat(), value);
        Ok(outcome)
    }
}
