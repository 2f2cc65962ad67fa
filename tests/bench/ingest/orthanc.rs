//! Orthanc with its default settings, files synced, on directories and ports of its own.

use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use serde_json::json;

use super::{Nagle, Sender, is_whole};
use crate::http;
use crate::lab::Lab;
use crate::process::{Server, free_address};
use crate::study::Study;

/// Seconds until Orthanc has confirmed the study.
pub(super) async fn measure(
    lab: &Lab,
    study: &Study,
    program: &Path,
    sender: Sender<'_>,
    nagle: Nagle,
) -> anyhow::Result<f64> {
    let dir = lab.dir("orthanc")?;
    let (web, dicom) = (free_address()?, free_address()?);
    let config = dir.path().join("orthanc.json");
    let settings = json!({
        "Name": "bench",
        "StorageDirectory": dir.path().join("storage"),
        "IndexDirectory": dir.path().join("index"),
        "HttpPort": web.port(),
        "DicomPort": dicom.port(),
        "RemoteAccessAllowed": false,
        "AuthenticationEnabled": false,
        "SyncStorageArea": true,
        "Plugins": [],
    });
    std::fs::write(&config, settings.to_string())?;
    let mut command = Command::new(program);
    command.arg(&config);
    nagle.apply(&mut command);
    let mut server = Server::start("Orthanc", &mut command, &dir.path().join("log"))?;
    server.ready(async || http::answers(web, "/system").await).await?;
    lab.quiet().await?;
    let seconds = sender.send(study, dicom).await?;
    let counts = http::get(web, "/statistics").await.context("Orthanc's statistics")?;
    is_whole(study, counts["CountInstances"].as_u64().unwrap_or(0))?;
    Ok(seconds)
}
