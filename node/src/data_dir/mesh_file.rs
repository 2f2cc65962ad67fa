//! `mesh.json`: which mesh this node belongs to, and whom it last knew in it.
//!
//! The members are replicated state, but reaching them comes before replication: a node that
//! restarts finds its peers from here. It is a hint for dialling, never an authority: what the mesh
//! says replaces it. It also marks that `init` or `join` finished, so it is written last.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use maillage_host::Disk;
use serde::{Deserialize, Serialize};

use super::DataDirError;
use crate::config::Role;
use crate::node::FOUNDER;

/// The format that this version writes and the only one it reads.
pub(crate) const MESH_FILE_FORMAT: u32 = 1;

/// Its name in the data directory.
pub(super) const FILE: &str = "mesh.json";

/// What `mesh.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshFile {
    /// Which layout it has: 1.
    pub format: u32,
    /// The mesh's id, in hexadecimal.
    pub mesh_id: String,
    /// The mesh's name.
    pub mesh_name: String,
    /// This node's id in it.
    pub site_id: u64,
    /// This node's name in it.
    pub site_name: String,
    /// Rises when a mesh is restored or its quorum recovered; older ones are refused.
    pub epoch: u64,
    /// Whether this node has had a part of the mesh's log: one that has lost it since must not vote as
    /// if it had promised nothing.
    pub has_log: bool,
    /// What this node is to the mesh. A file that does not say is a centre's.
    #[serde(default, skip_serializing_if = "Role::is_centre")]
    pub role: Role,
    /// All members as last known.
    pub members: Vec<MeshFileMember>,
}

/// A member as last known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshFileMember {
    /// The libp2p peer id, in base58.
    pub peer_id: String,
    /// Its id in the mesh.
    pub site_id: u64,
    /// Its name.
    pub name: String,
    /// Where it was reached, or said that it can be.
    pub addresses: Vec<SocketAddr>,
}

/// Any version of it: a newer one may have other fields.
#[derive(Deserialize)]
struct Versioned {
    format: u32,
}

impl MeshFile {
    /// What the founder of a new mesh begins with.
    pub fn of_founder(mesh_id: [u8; 32], mesh_name: &str, site_name: &str) -> Self {
        Self {
            format: MESH_FILE_FORMAT,
            mesh_id: data_encoding::HEXLOWER.encode(&mesh_id),
            mesh_name: mesh_name.to_owned(),
            site_id: FOUNDER.0,
            site_name: site_name.to_owned(),
            epoch: 1,
            has_log: false,
            role: Role::Centre,
            members: Vec::new(),
        }
    }

    /// Reads the text of the file at `path`.
    ///
    /// # Errors
    /// [`DataDirError::Newer`], [`DataDirError::Unreadable`].
    pub(super) fn parse(text: &str, path: &Path) -> Result<Self, DataDirError> {
        let path = path.to_owned();
        let unreadable =
            |error: serde_json::Error| DataDirError::Unreadable { path: path.clone(), reason: error.to_string() };
        let Versioned { format } = serde_json::from_str(text).map_err(unreadable)?;
        match format {
            MESH_FILE_FORMAT => serde_json::from_str(text).map_err(unreadable),
            found if found > MESH_FILE_FORMAT => Err(DataDirError::Newer { path, found, known: MESH_FILE_FORMAT }),
            _ => Err(DataDirError::Unreadable { path, reason: "it names no known format".to_owned() }),
        }
    }

    /// Reads the file of a data directory.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub async fn load(disk: &Disk) -> io::Result<Self> {
        let bytes = disk.read(FILE).await?;
        let text = std::str::from_utf8(&bytes).map_err(io::Error::other)?;
        Self::parse(text, Path::new(FILE)).map_err(io::Error::other)
    }

    /// Replaces the file of a data directory: after a crash it is the old or the new, whole.
    ///
    /// # Errors
    /// When it cannot be made durable.
    pub async fn save(&self, disk: &Disk) -> io::Result<()> {
        disk.replace(FILE, self.to_json().into()).await
    }

    /// The text of the file.
    pub(super) fn to_json(&self) -> String {
        // `Value` prints what it holds; keys are sorted, so the same content is the same text.
        format!("{:#}\n", serde_json::json!(self))
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn the_file_of_format_1_is_stable() {
        let member = MeshFileMember {
            peer_id: "12D3KooWExample".to_owned(),
            site_id: 3,
            name: "rennes".to_owned(),
            addresses: vec!["192.0.2.1:7400".parse().expect("an address")],
        };
        let mesh = MeshFile {
            format: MESH_FILE_FORMAT,
            mesh_id: "ab".repeat(32),
            mesh_name: "ouest".to_owned(),
            site_id: 3,
            site_name: "rennes".to_owned(),
            epoch: 1,
            has_log: true,
            role: Role::Centre,
            members: vec![member],
        };
        expect![[r#"
            {
              "epoch": 1,
              "format": 1,
              "has_log": true,
              "members": [
                {
                  "addresses": [
                    "192.0.2.1:7400"
                  ],
                  "name": "rennes",
                  "peer_id": "12D3KooWExample",
                  "site_id": 3
                }
              ],
              "mesh_id": "abababababababababababababababababababababababababababababababab",
              "mesh_name": "ouest",
              "site_id": 3,
              "site_name": "rennes"
            }
        "#]]
        .assert_eq(&mesh.to_json());
        assert_eq!(MeshFile::parse(&mesh.to_json(), Path::new("mesh.json")).expect("read back"), mesh);
        let gateway = MeshFile { role: Role::Gateway, ..mesh };
        assert!(gateway.to_json().contains("\"role\": \"gateway\""));
        assert_eq!(MeshFile::parse(&gateway.to_json(), Path::new("mesh.json")).expect("read back"), gateway);
    }
}
