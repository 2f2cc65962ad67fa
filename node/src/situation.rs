//! Where this site's readers are, as its configuration says: the mesh keeps exams for the nearer ones first.

use maillage_consensus::Outcome;
use maillage_consensus::command::Command;
use maillage_consensus::ids::{CommandId, Name};
use maillage_consensus::order::Place;

use crate::config::Site;
use crate::node::Node;

/// The format that has a word for it.
const FORMAT: u8 = 2;

/// Tells the mesh where this site is, when it knows otherwise. False: to be tried again.
pub(crate) async fn propose_if_changed(node: &Node) -> bool {
    let place = place(&node.config().site);
    let Ok((known, format)) = node.read(|view| Ok((view.situation(node.site())?.place, view.format()?))) else {
        return false;
    };
    if known == place {
        return true;
    }
    if format < FORMAT {
        return false;
    }
    match node.command(CommandId::random(), Name::default(), Command::Situate { place }).await {
        Ok(Outcome::Done) => {
            tracing::info!("the mesh knows where this site is");
            true
        }
        Ok(other) => {
            tracing::warn!(?other, "the mesh does not take where this site is");
            true
        }
        Err(_) => false,
    }
}

/// The configuration is checked before: nothing is cut off here.
fn place(site: &Site) -> Place {
    let Site { territory, department, region } = site;
    Place { territory: Name::fitted(territory), department: Name::fitted(department), region: Name::fitted(region) }
}
