//! dcmtk's receiver, as it comes.

use std::path::Path;
use std::process::Command;

use tokio::net::TcpStream;

use super::{Nagle, Sender, is_whole};
use crate::lab::Lab;
use crate::process::{Server, free_address};
use crate::study::Study;

/// Seconds until `storescp` has confirmed the study. It does not sync what it confirms.
pub(super) async fn measure(
    lab: &Lab,
    study: &Study,
    program: &Path,
    sender: Sender<'_>,
    nagle: Nagle,
) -> anyhow::Result<f64> {
    let dir = lab.dir("storescp")?;
    let files = dir.path().join("files");
    std::fs::create_dir(&files)?;
    let address = free_address()?;
    let mut command = Command::new(program);
    command.arg("-od").arg(&files).arg(address.port().to_string());
    nagle.apply(&mut command);
    let mut server = Server::start("storescp", &mut command, &dir.path().join("log"))?;
    server.ready(async || TcpStream::connect(address).await.is_ok()).await?;
    lab.quiet().await?;
    let seconds = sender.send(study, address).await?;
    is_whole(study, std::fs::read_dir(&files)?.count() as u64)?;
    Ok(seconds)
}
