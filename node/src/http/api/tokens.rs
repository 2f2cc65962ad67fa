//! `/admin/v1/tokens` and `/admin/v1/gateways`: who joins, and as what, for the sysadmin on this machine.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use maillage_consensus::Outcome;
use maillage_consensus::command::{Command, LIST_MAX};
use maillage_consensus::ids::{Line, Name};
use maillage_consensus::mesh::SiteRole;
use maillage_transport::PeerId;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::exams::unexpected;
use crate::http::app::App;
use crate::http::body::JsonBody;
use crate::http::extract::{Idempotency, UrlPath, UrlQuery};
use crate::http::problem::Problem;
use crate::http::reading::{FreshQuery, Read};
use crate::http::rfc3339::rfc3339;
use crate::roster::{key_of, peer_of};

/// The shortest life of a token, in seconds: time to carry it to the next machine.
const LIFETIME_MIN_S: u64 = 10;
/// The longest, in seconds: a week. A secret that lies about longer is found by others.
const LIFETIME_MAX_S: u64 = 7 * 24 * 3600;

/// `GET /tokens`
pub(super) async fn list(
    State(app): State<App>,
    UrlQuery(query): UrlQuery<FreshQuery>,
) -> Result<Read<Value>, Problem> {
    let now = app.now();
    app.read(query.fresh, |view| {
        let tokens = view.tokens()?.into_iter().map(|token| {
            json!({
                "key": peer_of(&token.key).map(|peer| peer.to_string()),
                "created_at": rfc3339(token.created_at),
                "expires_at": rfc3339(token.expires_at),
                "used_by": token.used_by,
                "revoked": token.revoked,
                "role": if token.role.is_gateway() { "gateway" } else { "centre" },
                "valid": token.is_valid_at(now),
            })
        });
        Ok(json!({ "tokens": tokens.collect::<Vec<_>>() }))
    })
    .await
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateBody {
    lifetime_s: u64,
    /// The hospitals whose gateway joins by it; absent: a centre joins.
    #[serde(default)]
    gateway_of: Option<Vec<String>>,
}

impl CreateBody {
    /// As what a site joins.
    fn role(&self) -> Result<SiteRole, Problem> {
        let Some(names) = &self.gateway_of else { return Ok(SiteRole::Centre) };
        hospitals(names).map(|hospitals| SiteRole::Gateway { hospitals })
    }
}

/// Hospitals by their names.
fn hospitals(names: &[String]) -> Result<Vec<Line>, Problem> {
    if names.is_empty() || names.len() > LIST_MAX {
        return Err(Problem::invalid(format!("a gateway is of 1 to {LIST_MAX} hospitals")));
    }
    let name = |name: &String| Line::filled(name.as_str());
    names.iter().map(name).collect::<Result<_, _>>().map_err(|error| Problem::invalid(format!("hospital: {error}")))
}

/// `POST /tokens`: the one answer that carries the token itself.
pub(super) async fn create(
    State(app): State<App>,
    Idempotency(id): Idempotency,
    JsonBody(body): JsonBody<CreateBody>,
) -> Result<Response, Problem> {
    if !(LIFETIME_MIN_S..=LIFETIME_MAX_S).contains(&body.lifetime_s) {
        return Err(Problem::invalid(format!("lifetime_s: from {LIFETIME_MIN_S} to {LIFETIME_MAX_S}")));
    }
    let role = body.role()?;
    if role.is_gateway() {
        app.need_format(2)?;
    }
    let token = app.node.create_token(id, Name::default(), Duration::from_secs(body.lifetime_s), role).await?;
    let body = json!({ "token": token.text, "key": token.key, "expires_at": rfc3339(token.expires_at) });
    Ok((StatusCode::CREATED, Json(body)).into_response())
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct GatewayBody {
    /// All of them.
    hospitals: Vec<String>,
}

/// `PUT /gateways/{name}`: whose reports a hospital's gateway is given from now on.
pub(super) async fn set_gateway(
    State(app): State<App>,
    UrlPath(name): UrlPath<String>,
    Idempotency(id): Idempotency,
    JsonBody(body): JsonBody<GatewayBody>,
) -> Result<Json<Value>, Problem> {
    app.need_format(2)?;
    let hospitals = hospitals(&body.hospitals)?;
    let sites = app.node.read(|view| view.sites())?;
    let named = sites.iter().find(|site| site.description.name.as_str() == name);
    let gateway = named.ok_or_else(|| Problem::not_found("no site has this name"))?.id;
    match app.command(id, Name::default(), Command::SetGateway { gateway, hospitals }).await? {
        Outcome::Done => Ok(Json(json!({ "done": true, "gateway": name, "hospitals": body.hospitals }))),
        other => Err(unexpected(&other)),
    }
}

/// `DELETE /tokens/{key}`
pub(super) async fn revoke(
    State(app): State<App>,
    UrlPath(key): UrlPath<String>,
    Idempotency(id): Idempotency,
) -> Result<Json<Value>, Problem> {
    let peer: PeerId = key.parse().map_err(|_| Problem::invalid("that is not a token's key"))?;
    match app.command(id, Name::default(), Command::RevokeToken { key: key_of(&peer) }).await? {
        Outcome::Done => Ok(Json(json!({ "done": true, "key": key }))),
        other => Err(unexpected(&other)),
    }
}
