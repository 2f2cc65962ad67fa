//! What stands between a browser on the same machine or network and the API: `Host` and `Origin`
//! checks, and the security headers of every answer.
//!
//! The local API has no users yet: whoever can connect may act. A page of another site, opened in a
//! browser that can connect, must not be able to, whether directly (cross-site request forgery: the
//! `Origin` check) or by making its own name resolve to this node (DNS rebinding: the `Host` check).
//! The unix socket needs neither: no browser reaches it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::problem::Problem;
use crate::metrics::Metrics;

/// Nothing may be loaded, run, framed or sent anywhere but what this node serves itself.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; \
     connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The names under which the node answers on TCP.
#[derive(Debug, Clone)]
pub(crate) struct AllowedHosts {
    names: Arc<[String]>,
    any_address: bool,
}

impl AllowedHosts {
    /// `names` without ports, as the configuration gives them. A node that listens on every interface
    /// also answers under any literal IP address: rebinding needs a name.
    pub(crate) fn new(listen: SocketAddr, names: &[String]) -> Self {
        let names = names.iter().map(|name| bare_host(name).to_ascii_lowercase()).collect();
        Self { names, any_address: listen.ip().is_unspecified() }
    }

    fn allow(&self, authority: &str) -> bool {
        let Ok(authority) = authority.parse::<Authority>() else { return false };
        if authority.as_str().contains('@') {
            return false;
        }
        let host = bare_host(authority.host()).to_ascii_lowercase();
        self.names.contains(&host) || (self.any_address && host.parse::<IpAddr>().is_ok())
    }
}

/// A host without the brackets of an IPv6 literal and without the root's dot.
fn bare_host(host: &str) -> &str {
    let host = host.strip_suffix('.').unwrap_or(host);
    host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(host)
}

/// The check's state.
#[derive(Debug, Clone)]
pub(crate) struct Guard {
    /// The node's names.
    pub(crate) hosts: AllowedHosts,
    /// Where refusals are counted.
    pub(crate) metrics: Metrics,
}

/// Refuses what does not come from this node's own pages or from a program that is no browser.
pub(crate) async fn check_source(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let verdict = check_host(&guard.hosts, request.uri(), request.headers())
        .and_then(|()| check_origin(request.method(), request.headers()));
    match verdict {
        Ok(()) => next.run(request).await,
        Err(problem) => {
            guard.metrics.rejected("http", problem.code());
            problem.into_response()
        }
    }
}

fn check_host(hosts: &AllowedHosts, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
    let mut given = headers.get_all(header::HOST).iter();
    let host = given.next().and_then(|host| host.to_str().ok());
    let (Some(host), None) = (host, given.next()) else {
        return Err(Problem::invalid("exactly one host header is needed"));
    };
    let target = uri.authority().map_or(host, Authority::as_str);
    if hosts.allow(host) && hosts.allow(target) {
        return Ok(());
    }
    Err(Problem::wrong_host("add the name to [http] allowed_hosts if it is this node's"))
}

fn check_origin(method: &Method, headers: &HeaderMap) -> Result<(), Problem> {
    if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) {
        return Ok(());
    }
    let refused = Err(Problem::cross_site("only this node's own pages may send this"));
    // "same-site" is not enough: another port of localhost is the same site.
    if headers.get_all(SEC_FETCH_SITE).iter().any(|site| site != "same-origin" && site != "none") {
        return refused;
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let same_origin = |origin: &HeaderValue| {
        let authority = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
        authority.is_some_and(|(scheme, authority)| {
            matches!(scheme, "http" | "https") && authority.eq_ignore_ascii_case(host)
        })
    };
    if headers.get_all(header::ORIGIN).iter().all(same_origin) { Ok(()) } else { refused }
}

/// Adds the security headers to an answer of any kind.
pub(crate) async fn secure(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::StatusCode;
    use axum::routing::get;
    use axum::{Router, middleware};
    use tower::ServiceExt as _;

    use super::*;

    async fn answer(listen: &str, method: &str, headers: &[(&str, &str)]) -> Response {
        let mut config = crate::config::Config::default().http;
        config.listen = listen.parse().expect("an address");
        config.allowed_hosts = vec!["Node.Example.".to_owned()];
        let hosts = AllowedHosts::new(config.listen, &config.hosts());
        let guard = Guard { hosts, metrics: Metrics::new() };
        let router = Router::new()
            .route("/", get(async || "read").post(async || "written"))
            .layer(middleware::from_fn_with_state(guard, check_source))
            .layer(middleware::from_fn(secure));
        let mut request = Request::builder().method(method).uri("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        router.oneshot(request.body(Body::empty()).expect("a request")).await.expect("an answer")
    }

    async fn status(method: &str, headers: &[(&str, &str)]) -> u16 {
        answer("127.0.0.1:7480", method, headers).await.status().as_u16()
    }

    #[tokio::test]
    async fn only_the_nodes_own_names_are_answered() {
        for host in ["localhost:7480", "127.0.0.1", "[::1]:7480", "LOCALHOST", "node.example:7480", "node.example."] {
            assert_eq!(status("GET", &[("host", host)]).await, 200, "{host}");
        }
        for host in
            ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:7480", "user@localhost", "10.0.0.1", ""]
        {
            assert_eq!(status("GET", &[("host", host)]).await, 421, "{host}");
        }
        assert_eq!(status("GET", &[]).await, 400);
        assert_eq!(status("GET", &[("host", "localhost"), ("host", "evil.example")]).await, 400);
    }

    #[tokio::test]
    async fn a_node_on_every_interface_answers_to_addresses_but_not_to_strange_names() {
        let code = async |host| answer("0.0.0.0:7480", "GET", &[("host", host)]).await.status();
        assert_eq!(code("192.168.1.7:7480").await, StatusCode::OK);
        assert_eq!(code("[fe80::1]:7480").await, StatusCode::OK);
        assert_eq!(code("evil.example:7480").await, StatusCode::MISDIRECTED_REQUEST);
    }

    #[tokio::test]
    async fn writes_from_other_sites_are_refused() {
        let host = ("host", "localhost:7480");
        for headers in [
            vec![host, ("origin", "http://evil.example")],
            vec![host, ("origin", "http://localhost:9999")],
            vec![host, ("origin", "null")],
            vec![host, ("origin", "localhost:7480")],
            vec![host, ("sec-fetch-site", "cross-site")],
            vec![host, ("sec-fetch-site", "same-site"), ("origin", "http://localhost:7480")],
            vec![host, ("origin", "http://localhost:7480"), ("origin", "http://evil.example")],
        ] {
            assert_eq!(status("POST", &headers).await, 403, "{headers:?}");
            assert_eq!(status("GET", &headers).await, 200, "reading is the browser's to guard: {headers:?}");
        }
    }

    #[tokio::test]
    async fn own_pages_and_programs_may_write() {
        let host = ("host", "localhost:7480");
        for headers in [
            vec![host],
            vec![host, ("origin", "http://localhost:7480"), ("sec-fetch-site", "same-origin")],
            vec![host, ("sec-fetch-site", "none")],
        ] {
            assert_eq!(status("POST", &headers).await, 200, "{headers:?}");
        }
    }

    #[tokio::test]
    async fn every_answer_carries_the_security_headers_refusals_too() {
        for headers in [[("host", "localhost")], [("host", "evil.example")]] {
            let answer = answer("127.0.0.1:7480", "GET", &headers).await;
            let header = |name| answer.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
            assert!(header("content-security-policy").expect("a policy").starts_with("default-src 'none';"));
            assert_eq!(header("x-content-type-options"), Some("nosniff"));
            assert_eq!(header("referrer-policy"), Some("no-referrer"));
            assert_eq!(header("cache-control"), Some("no-store"));
            assert_eq!(header("access-control-allow-origin"), None);
        }
    }
}
