//! Meshes of real processes, driven as people and machines drive them, and killed as machines are.
//!
//! One binary: what is slow is starting meshes, and two at a time share the machine. A test's name
//! says what it shows; it shows it through a process' own interfaces, never by looking inside.

use std::path::Path;

use maillage_tests::{Mesh, Settings};

mod api;
mod catching_up;
mod cli;
mod commands;
mod commitment;
mod config;
mod demo;
mod directory;
mod disk;
mod gateway;
mod glass;
mod health;
mod hostile;
mod hostile_dicom;
mod identity;
mod images;
mod ingest;
mod interop;
mod joining;
mod leader;
mod life;
mod matching;
mod page;
mod placement;
mod prefetch;
mod purge;
mod queue;
mod quorum;
mod races;
mod repair;
mod sealed;
mod sessions;
mod trail;
mod ups;
mod upsd;
mod wiped;

/// The program under test.
fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_maillage"))
}

/// A mesh of `n` sites with the usual settings.
async fn mesh(n: usize) -> Mesh {
    Mesh::start(binary(), n, |_| Settings::default()).await
}
