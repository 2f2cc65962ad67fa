//! The page's style and script, inside the binary, each under its hash as entity tag.

use std::sync::LazyLock;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

const STYLE: &str = include_str!("../static/room.css");
const SCRIPT: &str = include_str!("../static/room.js");

static STYLE_TAG: LazyLock<String> = LazyLock::new(|| tag(STYLE));
static SCRIPT_TAG: LazyLock<String> = LazyLock::new(|| tag(SCRIPT));

fn tag(content: &str) -> String {
    format!("\"{}\"", &blake3::hash(content.as_bytes()).to_hex()[..32])
}

/// `GET /static/room.css`
pub(super) async fn style(headers: HeaderMap) -> Response {
    asset(&headers, STYLE, &STYLE_TAG, "text/css; charset=utf-8")
}

/// `GET /static/room.js`
pub(super) async fn script(headers: HeaderMap) -> Response {
    asset(&headers, SCRIPT, &SCRIPT_TAG, "text/javascript; charset=utf-8")
}

fn asset(headers: &HeaderMap, content: &'static str, tag: &str, kind: &'static str) -> Response {
    let known = headers.get(header::IF_NONE_MATCH).and_then(|known| known.to_str().ok()).unwrap_or_default();
    let known =
        known.split(',').any(|known| matches!(known.trim().trim_start_matches("W/"), own if own == tag || own == "*"));
    let headers = [
        // Asked for at each load, answered without a body: a new version is never mixed with an old page.
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        // Hexadecimal digits in quotes: always a header.
        (header::ETAG, HeaderValue::from_str(tag).unwrap_or(HeaderValue::from_static("\"\""))),
    ];
    if known { (StatusCode::NOT_MODIFIED, headers).into_response() } else { (headers, content).into_response() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_known_version_is_not_sent_again() {
        let first = style(HeaderMap::new()).await;
        assert_eq!(first.status(), StatusCode::OK);
        let tag = first.headers()[header::ETAG].clone();
        let again = style(HeaderMap::from_iter([(header::IF_NONE_MATCH, tag.clone())])).await;
        assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
        let other = script(HeaderMap::from_iter([(header::IF_NONE_MATCH, tag)])).await;
        assert_eq!(other.status(), StatusCode::OK, "another file has another tag");
    }
}
