//! Reads of the replicated state, each answered with how old it may be.
//!
//! A read is local, at once, whatever the state of the mesh. With `fresh=true` it is linearizable: it
//! shows every command committed before the request, or fails when no quorum can vouch for that.

use std::time::Duration;

use axum::Json;
use axum::http::HeaderValue;
use axum::response::{IntoResponse, Response};
use maillage_consensus::View;
use maillage_consensus::machine::ApplyError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::app::App;
use super::problem::Problem;

/// The header that repeats `age_ms`, for clients that read no body: `never`, or milliseconds.
const AGE_HEADER: &str = "x-maillage-age-ms";

/// Whether a read must be fresh.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
pub(crate) struct FreshQuery {
    /// Whether every earlier command must be visible.
    #[serde(default)]
    pub(crate) fresh: bool,
}

/// What was read, and how old it may be.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Read{T}")]
pub(crate) struct Read<T> {
    /// Milliseconds since a quorum last confirmed this node's state; `None` if never since its start.
    age_ms: Option<u64>,
    /// Whether every command committed before the request is visible.
    fresh: bool,
    #[serde(flatten)]
    value: T,
}

impl App {
    /// Reads the replicated state.
    ///
    /// # Errors
    /// The state cannot be read, or not freshly.
    pub(crate) async fn read<T>(
        &self,
        fresh: bool,
        read: impl FnOnce(&View<'_>) -> Result<T, ApplyError>,
    ) -> Result<Read<T>, Problem> {
        if fresh {
            self.node.linearize().await?;
        }
        let value = self.node.read(read)?;
        Ok(Read { age_ms: self.node.age().map(milliseconds), fresh, value })
    }
}

impl<T> Read<T> {
    /// What was read.
    pub(crate) fn value(&self) -> &T {
        &self.value
    }

    /// The same freshness for a value made of this one.
    ///
    /// # Errors
    /// What `make` gives.
    pub(crate) fn try_map<U>(self, make: impl FnOnce(T) -> Result<U, Problem>) -> Result<Read<U>, Problem> {
        Ok(Read { age_ms: self.age_ms, fresh: self.fresh, value: make(self.value)? })
    }
}

impl<T: Serialize> IntoResponse for Read<T> {
    fn into_response(self) -> Response {
        let age = self.age_ms.map_or(HeaderValue::from_static("never"), HeaderValue::from);
        let mut response = Json(self).into_response();
        response.headers_mut().insert(AGE_HEADER, age);
        response
    }
}

/// Adds the age of what this node reads to an answer whose body has no place for it.
pub(crate) fn aged(mut response: Response, app: &App) -> Response {
    let age = app.node.age().map_or(HeaderValue::from_static("never"), |age| milliseconds(age).into());
    response.headers_mut().insert(AGE_HEADER, age);
    response
}

/// A duration in whole milliseconds.
pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_read_says_its_age_in_body_and_header() {
        let read = Read { age_ms: Some(120), fresh: true, value: json!({ "exams": [] }) };
        assert_eq!(serde_json::to_value(&read).expect("json"), json!({ "age_ms": 120, "fresh": true, "exams": [] }));
        assert_eq!(read.into_response().headers()[AGE_HEADER], "120");
        let never = Read { age_ms: None, fresh: false, value: json!({}) };
        assert_eq!(serde_json::to_value(&never).expect("json"), json!({ "age_ms": null, "fresh": false }));
        assert_eq!(never.into_response().headers()[AGE_HEADER], "never");
    }
}
