//! The audit trail as the node reads it: verified, described, and told to others in their words.
//!
//! The trail itself is replicated state (`maillage_consensus::audit`); nothing here adds to it. `verify`
//! walks its chain; `describe` adds what an entry names only by number; `class` says what each kind of
//! command is in DICOM's words, which `dicom` (PS3.15 section A.5) and `fhir` (R4 `AuditEvent`) share;
//! `syslog` frames messages, and `forward` sends them to a server without losing its place.

mod class;
mod describe;
mod dicom;
mod fhir;
mod forward;
mod syslog;
mod verify;

pub(crate) use describe::{Described, Names};
pub(crate) use dicom::message as dicom_message;
pub(crate) use fhir::event as fhir_event;
pub(crate) use forward::run as forward;
pub(crate) use syslog::{Target, line as syslog_line};
pub(crate) use verify::verify;
