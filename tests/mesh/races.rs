//! Two centres ask for the same exam at the same moment, a thousand times.

use std::time::Duration;

use maillage_tests::exams::ready;
use maillage_tests::{Answer, Http};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::life::refused;
use crate::mesh;

const RACES: usize = 1_000;
/// What stays unknown for so long will not become known.
const RESOLVED_WITHIN: Duration = Duration::from_secs(40);

/// A certain answer: what a change of leader left open is asked again, as the same command.
async fn ask(http: Http, path: &str, body: &Value) -> Answer {
    let (key, since) = (Uuid::new_v4().to_string(), Instant::now());
    loop {
        match http.try_post(path, body, Some(&key)).await {
            Ok(answer) if !matches!(answer.status, 503 | 504) => return answer,
            Ok(_) | Err(_) => {}
        }
        assert!(since.elapsed() < RESOLVED_WITHIN, "{path}: no certain answer");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_thousand_races_for_one_exam_have_one_winner_each() {
    let mesh = mesh(3).await;
    let [here, one, other] = &mesh.sites[..] else { panic!("three sites") };
    let (mut greatest, mut wins) = (0, [0; 2]);
    for race in 0..RACES {
        let added = ask(here.http(), "/api/v1/exams", &ready(&format!("R{race}"))).await.expect(201).json();
        let path = format!("/api/v1/exams/{}/claim", added["id"]);
        let bodies = [json!({ "user": "dr-a" }), json!({ "user": "dr-b" })];
        let (first, second) = tokio::join!(ask(one.http(), &path, &bodies[0]), ask(other.http(), &path, &bodies[1]));
        let (winner, granted, lost) = if first.status == 200 { (0, first, second) } else { (1, second, first) };
        let granted = granted.expect(200).json();
        refused(&lost, 409, "conflict");
        assert_eq!(lost.json()["holder"]["user"], bodies[winner]["user"], "the second is told who holds it");
        let token = granted["token"].as_u64().expect("a token");
        assert!(token > greatest, "tokens rise");
        (greatest, wins[winner]) = (token, wins[winner] + 1);
    }
    let status = here.http().json("/api/v1/status?fresh=true").await;
    assert_eq!(status["queue"]["claimed"], json!(RACES), "{status}");
    println!("{} and {} of {RACES} races won", wins[0], wins[1]);
}
