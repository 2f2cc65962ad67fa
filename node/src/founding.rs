//! Founding a mesh: `init` makes the identity and names the mesh; the first `serve` founds it.
//!
//! The founding command's id follows from the mesh's, so that a first start that is cut off anywhere
//! is simply repeated.

use maillage_consensus::Outcome;
use maillage_consensus::command::Command;
use maillage_consensus::ids::{CommandId, Name};

use crate::config::{Config, Role};
use crate::data_dir::MeshFile;
use crate::exit::{ExitCode, Failure};
use crate::joining::{describe, prepare};
use crate::node::{FOUNDER, Node};

/// What a finished `init` tells the sysadmin.
#[derive(Debug)]
pub(crate) struct InitReport {
    /// The mesh's identity, in hexadecimal.
    pub(crate) mesh_id: String,
    /// This node's identity.
    pub(crate) peer_id: String,
    /// This site's name.
    pub(crate) site: String,
}

/// Prepares a data directory whose first `serve` founds the mesh `mesh_name`.
///
/// # Errors
/// When the data directory is in use or cannot be written.
pub(crate) fn init(config: &Config, mesh_name: &str) -> anyhow::Result<InitReport> {
    if config.node.role == Role::Gateway {
        let what = "node.role is \"gateway\": a gateway joins a mesh, and founds none";
        return Err(Failure::new(ExitCode::Usage, what).into());
    }
    let mesh_name = Name::filled(mesh_name)?.to_string();
    let (directory, identity) = prepare(&config.node.data_dir)?;
    describe(config, &identity)?;
    let mesh = MeshFile::of_founder(rand::random(), &mesh_name, &config.node.name);
    directory.store_mesh(&mesh)?;
    Ok(InitReport { mesh_id: mesh.mesh_id, peer_id: identity.peer_id().to_string(), site: config.node.name.clone() })
}

/// Founds the mesh, once, when this node is its founder.
///
/// # Errors
/// When Raft cannot start the group or commit the founding.
pub(crate) async fn found(node: &Node) -> anyhow::Result<()> {
    if node.site() != FOUNDER || node.read(|view| view.mesh())?.is_some() {
        return Ok(());
    }
    if !node.group().is_initialized().await {
        node.group().initialize().await?;
    }
    let (mesh, name) = (node.mesh_id(), Name::filled(node.mesh_name())?);
    let (copies, founder) = (node.config().storage.copies, describe(node.config(), node.identity())?);
    // In the words of the first format where it is to be the mesh's: members that know no other then read
    // the log from its beginning.
    let command = match node.config().raft.format_max {
        ..2 => Command::Found { mesh, name, copies, founder },
        format => Command::Establish { mesh, name, copies, founder, format },
    };
    // A sole voter needs one election, no more; the deadline of a command covers it.
    match node.command(founding_id(node), Name::default(), command).await? {
        Outcome::Founded => Ok(()),
        other => anyhow::bail!("found the mesh: {other:?}"),
    }
}

fn founding_id(node: &Node) -> CommandId {
    let digest = blake3::derive_key("maillage 2026-11 founding command id", &node.mesh_id());
    let mut id = [0; 16];
    id.copy_from_slice(&digest[..16]);
    CommandId(uuid::Builder::from_random_bytes(id).into_uuid())
}
