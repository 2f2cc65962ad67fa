//! The client against a socket that answers as told.

use std::sync::Arc;
use std::sync::Mutex;

use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;

use super::*;

/// A node that gives these answers, one a connection (an empty one breaks it), and keeps the requests.
struct Script {
    _directory: TempDir,
    client: Client,
    requests: Arc<Mutex<Vec<String>>>,
}

fn script(answers: Vec<String>) -> Script {
    let directory = tempfile::tempdir().expect("temporary directory");
    let socket = directory.path().join("control.sock");
    let listener = UnixListener::bind(&socket).expect("bind");
    let requests = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&requests);
    maillage_host::spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.expect("accept");
            let mut request = Vec::new();
            while !is_whole(&request) {
                let mut piece = [0; 4096];
                let len = stream.read(&mut piece).await.expect("read");
                assert!(len > 0, "the client left");
                request.extend_from_slice(&piece[..len]);
            }
            seen.lock().expect("lock").push(String::from_utf8(request).expect("text"));
            stream.write_all(answer.as_bytes()).await.expect("write");
        }
    });
    let client = Client { socket, root: directory.path().to_owned() };
    Script { _directory: directory, client, requests }
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let len = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    body.len() >= len
}

fn answer(status: &str, content_type: &str, body: &str) -> String {
    let len = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {len}\r\n\r\n{body}")
}

fn ok(body: &Value) -> String {
    answer("200 OK", "application/json", &body.to_string())
}

fn problem(code: &str) -> String {
    let body = json!({ "title": "no", "status": 409, "detail": "because", "code": code });
    answer("409 Conflict", "application/problem+json", &body.to_string())
}

impl Script {
    async fn command(&self) -> Result<Value, ClientError> {
        self.client.command(Method::POST, "/x", Some(&json!({ "a": 1 })), Uuid::from_u128(7)).await
    }

    fn keys(&self) -> Vec<String> {
        let requests = self.requests.lock().expect("lock");
        let key = |request: &String| {
            Some(request.lines().find_map(|line| line.strip_prefix("idempotency-key: "))?.to_owned())
        };
        requests.iter().filter_map(key).collect()
    }
}

#[tokio::test]
async fn a_command_whose_connection_broke_is_repeated_under_the_same_key() {
    let script = script(vec![String::new(), ok(&json!({ "done": true }))]);
    assert_eq!(script.command().await.expect("the second answer"), json!({ "done": true }));
    assert_eq!(script.keys(), [Uuid::from_u128(7).to_string(), Uuid::from_u128(7).to_string()]);
}

#[tokio::test]
async fn a_command_of_unknown_outcome_is_repeated_once_and_then_reported_with_its_key() {
    let script = script(vec![problem("unknown-outcome"), problem("unknown-outcome")]);
    let error = script.command().await.expect_err("still unknown");
    assert!(matches!(error, ClientError::Unknown { command_id, .. } if command_id == Uuid::from_u128(7)), "{error:?}");
    assert_eq!(script.keys().len(), 2);
}

#[tokio::test]
async fn a_refused_command_is_not_repeated() {
    let script = script(vec![problem("conflict"), ok(&json!({}))]);
    let error = script.command().await.expect_err("refused");
    assert_eq!(error.to_string(), "no: because");
    assert_eq!(error.code(), crate::exit::ExitCode::Conflict);
    assert_eq!(script.keys().len(), 1);
}

#[tokio::test]
async fn a_node_that_went_away_after_the_first_attempt_leaves_the_outcome_unknown() {
    let script = script(vec![String::new()]);
    // The listener is dropped with the script's task, so that the second attempt finds nobody.
    let error = script.command().await.expect_err("gone");
    assert!(matches!(error, ClientError::Unknown { .. }), "{error:?}");
}

#[tokio::test]
async fn no_socket_and_a_dead_one_mean_that_no_node_is_running() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let socket = directory.path().join("control.sock");
    let client = Client { socket: socket.clone(), root: directory.path().to_owned() };
    let is_not_running = async || {
        let error = client.get("/x").await.expect_err("nobody is there");
        assert!(error.to_string().starts_with("no node is running on "), "{error}");
        assert!(error.hint().expect("a hint").contains("maillage serve"));
    };
    is_not_running().await;
    drop(UnixListener::bind(&socket).expect("bind"));
    assert!(socket.exists(), "a killed node leaves its socket");
    is_not_running().await;
}

#[tokio::test]
async fn an_error_that_is_no_problem_document_is_shown_shortened() {
    let long = "x".repeat(10_000);
    let script = script(vec![answer("502 Bad Gateway", "text/html", &long), answer("200 OK", "text/html", "<html>")]);
    let error = script.client.get("/x").await.expect_err("an error").to_string();
    assert!(error.starts_with("the node answered 502 Bad Gateway: xxx") && error.len() < 400, "{error}");
    assert!(matches!(script.client.get("/x").await, Err(ClientError::Unreadable(_))));
}

#[tokio::test]
async fn lines_are_given_out_whole_however_they_come() {
    let body = "data: 1\r\n\n{\"done\":1}\nlast";
    let chunked: String = body.chars().map(|c| format!("1\r\n{c}\r\n")).collect();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let script = script(vec![format!("{head}{chunked}0\r\n\r\n")]);
    let mut stream = script.client.stream(Method::GET, "/x", "text/event-stream").await.expect("a stream");
    let mut lines = Vec::new();
    while let Some(line) = stream.next_line().await.expect("a line") {
        lines.push(line);
    }
    assert_eq!(lines, ["data: 1", "", "{\"done\":1}", "last"]);
    assert_eq!(stream.content_type, "text/event-stream");
}
