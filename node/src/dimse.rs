//! What this node offers and calls by DIMSE besides storage: the Unified Procedure Step service class
//! (PS3.4 annex CC), and the reports to its subscribers; and how peers are called.

mod call;
mod identifier;
mod notify;
mod status;
mod ups;

use crate::config::{Config, DicomPeer};

pub(crate) use call::call;
pub(crate) use notify::run as notify;
pub(crate) use ups::Steps;

/// The peer with a title, if this node may call it.
fn peer<'c>(config: &'c Config, aet: &str) -> Option<&'c DicomPeer> {
    config.dicom.peers.iter().find(|peer| peer.ae_title.as_str() == aet)
}
