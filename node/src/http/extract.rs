//! Extractors whose rejections are problems too, and the request's idempotency key.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use maillage_consensus::ids::{CommandId, TextError};
use maillage_dicom::Uid;
use serde::de::DeserializeOwned;

use super::problem::Problem;

/// The header by which a client names its command. A repeat returns the first answer.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Parts of the path.
#[derive(Debug)]
pub(crate) struct UrlPath<T>(pub(crate) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for UrlPath<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path: Result<Path<T>, PathRejection> = Path::from_request_parts(parts, state).await;
        path.map(|Path(path)| Self(path)).map_err(|error| Problem::invalid(format!("address: {error}")))
    }
}

/// The query.
#[derive(Debug)]
pub(crate) struct UrlQuery<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for UrlQuery<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let query: Result<Query<T>, QueryRejection> = Query::from_request_parts(parts, state).await;
        query.map(|Query(query)| Self(query)).map_err(|error| Problem::invalid(format!("query: {error}")))
    }
}

/// The command id that the request names, or a fresh one.
#[derive(Debug)]
pub(crate) struct Idempotency(pub(crate) CommandId);

impl<S: Send + Sync> FromRequestParts<S> for Idempotency {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        command_id(&parts.headers).map(Self)
    }
}

fn command_id(headers: &HeaderMap) -> Result<CommandId, Problem> {
    match headers.get(IDEMPOTENCY_KEY) {
        None => Ok(CommandId::random()),
        Some(key) => parse_command_id(key.to_str().unwrap_or_default()),
    }
}

/// A command id as clients and forms write it.
///
/// # Errors
/// 400.
pub(crate) fn parse_command_id(text: &str) -> Result<CommandId, Problem> {
    text.parse().map(CommandId).map_err(|_| Problem::invalid("the idempotency key must be a UUID"))
}

/// A UID of the path.
///
/// # Errors
/// 400.
pub(crate) fn parse_uid(what: &str, text: &str) -> Result<Uid, Problem> {
    Uid::parse(text).map_err(|error| Problem::invalid(format!("{what}: {error}")))
}

/// A text of the body, or which one is wrong.
///
/// # Errors
/// 400.
pub(crate) fn field<T>(name: &str, text: Result<T, TextError>) -> Result<T, Problem> {
    text.map_err(|error| Problem::invalid(format!("{name}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_uuid_and_without_one_each_command_is_its_own() {
        let headers = |key: &str| {
            HeaderMap::from_iter([("idempotency-key".parse().expect("a name"), key.parse().expect("a value"))])
        };
        let key = "67e55044-10b1-426f-9247-bb680e5fe0c8";
        assert_eq!(command_id(&headers(key)).expect("a key").0.to_string(), key);
        assert_eq!(command_id(&headers("again")).expect_err("no uuid").status().as_u16(), 400);
        assert_ne!(command_id(&HeaderMap::new()), command_id(&HeaderMap::new()));
    }
}
