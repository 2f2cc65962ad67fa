//! The codec from outside: what goes in comes back, what strangers send never panics, the format stays.

#![expect(clippy::unwrap_used, reason = "a test ends where it fails")]

mod hostile;
mod images;
mod round_trip;
