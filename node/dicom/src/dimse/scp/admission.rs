//! Who may be connected: bounds on strangers and on associations, in all and by address.
//!
//! A stranger over the bound is not turned away: it displaces the oldest one, of its own address
//! first. So whoever speaks at once gets through, however many silent connections are opened.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use super::{RejectReason, ScpConfig};

/// Associations that may have more memory than others: what they have together stays small beside what the others have.
const FEW: usize = 16;

pub(super) struct Admission {
    negotiating_max: usize,
    negotiating_per_address_max: usize,
    associations_max: usize,
    associations_per_address_max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next_id: u64,
    /// Oldest first.
    strangers: VecDeque<Waiting>,
    associations: usize,
    /// Of them, those that are among few.
    few: usize,
    /// Associations by address; no entry is zero, so it is as small as they are few.
    by_address: HashMap<IpAddr, usize>,
}

struct Waiting {
    id: u64,
    address: IpAddr,
    displaced: CancellationToken,
}

/// A connection that has not been accepted yet.
pub(super) struct Stranger {
    admission: Arc<Admission>,
    id: u64,
    address: IpAddr,
    /// Cancelled when it must go.
    pub(super) displaced: CancellationToken,
}

/// An association's place.
pub(super) struct Place {
    admission: Arc<Admission>,
    address: IpAddr,
    is_one_of_few: bool,
}

impl Admission {
    pub(super) fn new(config: &ScpConfig) -> Arc<Self> {
        Arc::new(Self {
            negotiating_max: config.negotiating_max.max(1),
            negotiating_per_address_max: config.negotiating_per_address_max.max(1),
            associations_max: config.associations_max,
            associations_per_address_max: config.associations_per_address_max,
            state: Mutex::default(),
        })
    }

    /// Takes in a new connection, displacing another one where there are too many.
    pub(super) fn greet(self: &Arc<Self>, address: IpAddr) -> Stranger {
        let mut state = self.lock();
        let of_address = state.strangers.iter().filter(|other| other.address == address).count();
        let oldest = if of_address >= self.negotiating_per_address_max {
            state.strangers.iter().position(|other| other.address == address)
        } else {
            (state.strangers.len() >= self.negotiating_max).then_some(0)
        };
        if let Some(displaced) = oldest.and_then(|oldest| state.strangers.remove(oldest)) {
            displaced.displaced.cancel();
        }
        let id = state.next_id;
        state.next_id += 1;
        let displaced = CancellationToken::new();
        state.strangers.push_back(Waiting { id, address, displaced: displaced.clone() });
        Stranger { admission: Arc::clone(self), id, address, displaced }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stranger {
    /// A place for the association that this connection asked for. It stays a stranger until it is
    /// dropped.
    pub(super) fn place(&self) -> Result<Place, RejectReason> {
        let mut state = self.admission.lock();
        if state.associations >= self.admission.associations_max {
            return Err(RejectReason::Congestion);
        }
        let of_address = state.by_address.get(&self.address).copied().unwrap_or(0);
        if of_address >= self.admission.associations_per_address_max {
            return Err(RejectReason::AddressCongestion);
        }
        state.associations += 1;
        state.by_address.insert(self.address, of_address + 1);
        let is_one_of_few = state.few < FEW;
        state.few += usize::from(is_one_of_few);
        Ok(Place { admission: Arc::clone(&self.admission), address: self.address, is_one_of_few })
    }
}

impl Place {
    /// Whether this association may have more memory, for as long as it lasts: no more than [`FEW`] at once may.
    pub(super) fn is_one_of_few(&self) -> bool {
        self.is_one_of_few
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.admission.lock().strangers.retain(|other| other.id != self.id);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.admission.lock();
        state.associations -= 1;
        state.few -= usize::from(self.is_one_of_few);
        match state.by_address.get_mut(&self.address) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                state.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ae_title::AeTitle;

    fn admission(change: impl FnOnce(&mut ScpConfig)) -> Arc<Admission> {
        let mut config = ScpConfig::new(AeTitle::parse("US").expect("a title"));
        change(&mut config);
        Admission::new(&config)
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn the_oldest_stranger_of_the_same_address_gives_way_first() {
        let admission = admission(|config| {
            config.negotiating_max = 3;
            config.negotiating_per_address_max = 2;
        });
        let quiet = admission.greet(address(1));
        let flood: Vec<_> = (0..3).map(|_| admission.greet(address(2))).collect();
        assert!(!quiet.displaced.is_cancelled());
        assert!(flood[0].displaced.is_cancelled() && !flood[1].displaced.is_cancelled());
        let _third_address = admission.greet(address(3));
        assert!(quiet.displaced.is_cancelled(), "the oldest of all goes when all places are taken");
    }

    #[test]
    fn places_are_bounded_and_come_back() {
        let admission = admission(|config| {
            config.associations_max = 2;
            config.associations_per_address_max = 1;
        });
        let (one, two) = (admission.greet(address(1)), admission.greet(address(2)));
        let first = one.place().expect("a place");
        assert_eq!(one.place().err(), Some(RejectReason::AddressCongestion));
        let second = two.place().expect("a place");
        assert_eq!(admission.greet(address(3)).place().err(), Some(RejectReason::Congestion));
        drop((first, second));
        assert!(admission.lock().by_address.is_empty());
        assert!(one.place().is_ok());
        assert_eq!(admission.lock().few, 0);
    }

    #[test]
    fn only_so_many_at_once_are_among_few() {
        let admission = admission(|config| config.associations_per_address_max = 2 * FEW);
        let one = admission.greet(address(1));
        let mut places: Vec<_> = (0..=FEW).map(|_| one.place().expect("a place")).collect();
        let are_few = |places: &[Place]| places.iter().filter(|place| place.is_one_of_few()).count();
        assert_eq!(are_few(&places), FEW);
        places.remove(0);
        places.push(one.place().expect("a place"));
        assert_eq!(are_few(&places), FEW, "another one is when one of them has gone");
    }
}
