//! A study is brought here or given up here, never both at once: what arrives while its bytes are being wiped
//! would be told to the mesh as held, and be gone.

use std::sync::PoisonError;

use super::Images;
use super::pull::Arrival;

impl Images {
    /// Something of a study is on its way here, or is being told to the mesh, until this is dropped. None: it is
    /// being given up.
    pub(crate) fn arrive<'a>(&'a self, study: &'a str) -> Option<Arrival<'a>> {
        let arrival = Arrival::begin(self, study);
        let is_leaving = self.0.leaving.lock().unwrap_or_else(PoisonError::into_inner).contains(study);
        (!is_leaving).then_some(arrival)
    }

    /// What is here of a study is being given up, until this is dropped. None: something of it is on its way, or
    /// it is being given up already.
    pub(crate) fn leave(&self, study: &str) -> Option<Leave> {
        let arriving = self.arriving();
        if arriving.contains_key(study) {
            return None;
        }
        // Under the other lock: an arrival either is seen here, or sees this.
        let is_first = self.0.leaving.lock().unwrap_or_else(PoisonError::into_inner).insert(study.to_owned());
        drop(arriving);
        is_first.then(|| Leave { images: self.clone(), study: study.to_owned() })
    }
}

/// See [`Images::leave`].
#[derive(Debug)]
pub(crate) struct Leave {
    images: Images,
    study: String,
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.images.0.leaving.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.study);
    }
}
