//! `maillage status`: the mesh, the queue and the storage on one screen, once or live.

use std::io::{self, IsTerminal};
use std::time::Duration;

use clap::Args;
use hyper::Method;
use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::{Context, age_note, sites};
use crate::client::{Client, Incoming};
use crate::output::{bytes, clean, duration_ms, field, items, json, number, write_out};

const PATH: &str = "/api/v1/status";
const EVENTS: &str = "/api/v1/events";
/// Without an event the screen is renewed this often: ages and round trips change by themselves.
const RENEW: Duration = Duration::from_secs(2);
/// Events come in bursts; the screen need not follow each.
const SETTLE: Duration = Duration::from_millis(200);
/// Clears the screen and goes to its corner (ECMA-48: ED, CUP).
const CLEAR: &str = "\u{1b}[2J\u{1b}[H";

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Renew it whenever something changes; with `-o json`, a document a line
    #[arg(long)]
    watch: bool,
}

pub(super) async fn run(context: &Context, args: StatusArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    // The first answer decides whether there is a node to watch.
    let status = client.get(PATH).await?;
    if !args.watch {
        return Ok(context.print(&status, screen)?);
    }
    show(context, Ok(&status))?;
    let mut events = None;
    loop {
        wait(&client, &mut events).await;
        // A node that restarts is what one watches for: going on is the point.
        match client.get(PATH).await {
            Ok(status) => show(context, Ok(&status))?,
            Err(error) => show(context, Err(&error.to_string()))?,
        }
    }
}

/// Until something happens, or for [`RENEW`].
async fn wait(client: &Client, events: &mut Option<Incoming>) {
    if events.is_none() {
        *events = client.stream(Method::GET, EVENTS, "text/event-stream").await.ok();
    }
    let Some(stream) = events else { return sleep(RENEW).await };
    let event = async {
        // A block of lines ends with an empty one; comments only keep the stream alive.
        while let Ok(Some(line)) = stream.next_line().await {
            if line.starts_with("data:") {
                return true;
            }
        }
        false
    };
    match timeout(RENEW, event).await {
        Ok(true) => sleep(SETTLE).await,
        Ok(false) => {
            *events = None;
            sleep(RENEW).await;
        }
        Err(_) => {}
    }
}

fn show(context: &Context, status: Result<&Value, &str>) -> anyhow::Result<()> {
    let text = match (context.is_json(), status) {
        (true, Ok(status)) => format!("{}\n", json(status, false)),
        (true, Err(error)) => format!("{}\n", json(&serde_json::json!({ "error": error }), false)),
        (false, status) => {
            let text = status.map_or_else(|error| format!("error: {}\n", clean(error)), screen);
            if io::stdout().is_terminal() { format!("{CLEAR}{text}") } else { format!("{text}\n") }
        }
    };
    Ok(write_out(&text)?)
}

/// The whole screen.
fn screen(status: &Value) -> String {
    let get = |path: &[&str]| field(status, path);
    let mut text = format!(
        "mesh     {} ({})\nsite     {} {}, zone {}, version {}\n",
        get(&["mesh", "name"]),
        get(&["mesh", "id"]).chars().take(ID_SHOWN).collect::<String>(),
        get(&["site", "id"]),
        get(&["site", "name"]),
        get(&["site", "zone"]),
        get(&["version"]),
    );
    text.push_str(&format!("quorum   {}\n", quorum(status)));
    text.push_str(&format!(
        "raft     {}, term {}, committed {}, applied {}, leader {}\n",
        get(&["role"]),
        get(&["term"]),
        get(&["committed"]),
        get(&["applied"]),
        get(&["leader"]),
    ));
    let queue = |name: &str| field(status, &["queue", name]);
    text.push_str(&format!(
        "queue    {} waiting ({} overdue, oldest urgent {}), {} claimed, {} requested, {} unsolicited; \
         {} reported, {} cancelled\n",
        queue("waiting"),
        queue("overdue"),
        duration_ms(number(status, &["queue", "oldest_urgent_ms"])),
        queue("claimed"),
        queue("requested"),
        queue("unsolicited"),
        queue("reported"),
        queue("cancelled"),
    ));
    let storage = |name: &str| field(status, &["storage", name]);
    text.push_str(&format!(
        "storage  {} in {} chunks and {} packs, {} free, {} damaged\n",
        bytes(number(status, &["storage", "bytes"])),
        storage("chunks"),
        storage("packs"),
        bytes(number(status, &["storage", "free_bytes"])),
        storage("bad"),
    ));
    let scrub = |path: &[&str]| field(&status["scrub"], path);
    text.push_str(&format!(
        "scrub    {}; last read as a whole {}, {} damaged then\n",
        scrub(&["state"]),
        scrub(&["last", "ended_at"]),
        scrub(&["last", "found"]),
    ));
    text.push_str(&format!(
        "versions format {} of {}; clock {} ms ahead, {} allowed; {}\n",
        get(&["format", "mesh"]),
        get(&["format", "known"]),
        get(&["clock", "ahead_ms"]),
        get(&["clock", "bound_ms"]),
        match items(&status["audit"], "disagreeing") {
            [] => "no site disagrees".to_owned(),
            _ => format!("DISAGREEMENT WITH {}", get(&["audit", "disagreeing"])),
        },
    ));
    text.push_str(&format!(
        "copies   {} studies below two sites, {} below the copies wanted\n\n",
        storage("under_two_sites"),
        storage("under_wanted"),
    ));
    text.push_str(&sites::table(items(&status["peers"], "")).render("no sites"));
    let warnings = items(&status["warnings"], "");
    if !warnings.is_empty() {
        text.push('\n');
    }
    for warning in warnings {
        text.push_str(&warning_lines(warning));
    }
    text + &age_note(status)
}

/// Digits of the mesh's id on the screen: enough to tell two meshes of one name apart.
const ID_SHOWN: usize = 12;

/// A warning, and under it the command that helps.
pub(super) fn warning_lines(warning: &Value) -> String {
    let mut text = format!("warning: {}\n", field(warning, &["what"]));
    match field(warning, &["command"]).as_str() {
        "-" => {}
        command => text.push_str(&format!("         `{command}`\n")),
    }
    text
}

fn quorum(status: &Value) -> String {
    let get = |name: &str| field(status, &["quorum", name]);
    let (alive, needed) = (number(status, &["quorum", "alive"]), number(status, &["quorum", "needed"]));
    let counts = format!("{} of {} voters answer, {} needed", get("alive"), get("voters"), get("needed"));
    match (alive, needed, number(status, &["quorum", "tolerates"])) {
        (Some(alive), Some(needed), _) if alive < needed => format!("LOST: {counts}"),
        (.., Some(0)) => format!("{counts}: bears no further failure"),
        (.., Some(1)) => format!("{counts}: bears 1 more failure"),
        (.., Some(more)) => format!("{counts}: bears {more} more failures"),
        _ => counts,
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    pub(in crate::cli) fn example() -> Value {
        json!({
            "mesh": { "name": "ouest", "id": "abababababababababab" },
            "site": { "id": 3, "name": "rennes", "zone": "bretagne" },
            "version": "0.1.0", "role": "follower", "term": 4, "leader": "lyon", "committed": 1234, "applied": 1233,
            "quorum": { "voters": 3, "needed": 2, "alive": 3, "tolerates": 1 }, "age_ms": 80,
            "format": { "mesh": 2, "advertised": 2, "known": 2 }, "audit": { "disagreeing": [] },
            "clock": { "ahead_ms": -12, "round_trip_ms": 3, "bound_ms": 5000, "off": false },
            "queue": { "requested": 5, "waiting": 12, "claimed": 3, "reported": 100, "cancelled": 2, "unsolicited": 1,
                       "overdue": 2, "oldest_urgent_ms": 250_000 },
            "storage": { "bytes": 220_200_960_u64, "chunks": 800, "packs": 2, "free_bytes": 107_374_182_400_u64, "bad": 0,
                         "under_two_sites": 1, "under_wanted": 4 },
            "scrub": { "state": "resting", "last": { "ended_at": "2026-11-28T03:00:00.000Z", "found": 0 } },
            "peers": [
                { "site": 3, "name": "rennes", "zone": "bretagne", "role": "follower", "state": "up", "rtt_ms": null,
                  "lag": 1, "session_open": true, "version": "0.1.0", "addresses": ["192.0.2.3:7400"] },
                { "site": 1, "name": "ly\u{1b}[31mon", "zone": "rhone", "role": "leader", "state": "up", "rtt_ms": 0.42,
                  "lag": 0, "session_open": true, "version": "0.1.0", "addresses": ["192.0.2.1:7400", "[2001:db8::1]:7400"] },
                { "site": 2, "name": "cloud", "state": "down", "rtt_ms": 31, "session_open": false },
            ],
            "warnings": [{ "what": "1 study is on one site only", "command": "maillage study list" }, { "what": "odd" }],
        })
    }

    #[test]
    fn all_is_on_one_screen() {
        expect![[r#"
            mesh     ouest (abababababab)
            site     3 rennes, zone bretagne, version 0.1.0
            quorum   3 of 3 voters answer, 2 needed: bears 1 more failure
            raft     follower, term 4, committed 1234, applied 1233, leader lyon
            queue    12 waiting (2 overdue, oldest urgent 4 min 10 s), 3 claimed, 5 requested, 1 unsolicited; 100 reported, 2 cancelled
            storage  210.0 MiB in 800 chunks and 2 packs, 100.0 GiB free, 0 damaged
            scrub    resting; last read as a whole 2026-11-28T03:00:00.000Z, 0 damaged then
            versions format 2 of 2; clock -12 ms ahead, 5000 allowed; no site disagrees
            copies   1 studies below two sites, 4 below the copies wanted

            SITE  NAME       ZONE      ROLE      STATE  RTT     LAG  SESSION  VERSION  ADDRESSES
            3     rennes     bretagne  follower  up     -       1    open     0.1.0    192.0.2.3:7400
            1     ly�[31mon  rhone     leader    up     0.4 ms  0    open     0.1.0    192.0.2.1:7400 [2001:db8::1]:7400
            2     cloud      -         -         down   31 ms   -    closed   -        -

            warning: 1 study is on one site only
                     `maillage study list`
            warning: odd
        "#]].assert_eq(&screen(&example()));
    }

    #[test]
    fn a_lost_quorum_is_said_and_so_is_the_age() {
        let mut status = example();
        status["quorum"] = json!({ "voters": 3, "needed": 2, "alive": 1, "tolerates": 0 });
        status["age_ms"] = json!(65_000);
        let screen = screen(&status);
        assert!(screen.contains("quorum   LOST: 1 of 3 voters answer, 2 needed\n"), "{screen}");
        assert!(screen.ends_with("note: as of 1 min 5 s ago; no quorum has confirmed it since\n"), "{screen}");
    }

    #[test]
    fn an_answer_of_another_version_is_shown_as_far_as_it_goes() {
        expect![[r#"
            mesh     - (-)
            site     - -, zone -, version -
            quorum   - of - voters answer, - needed
            raft     -, term -, committed -, applied -, leader -
            queue    - waiting (- overdue, oldest urgent -), - claimed, - requested, - unsolicited; - reported, - cancelled
            storage  - in - chunks and - packs, - free, - damaged
            scrub    -; last read as a whole -, - damaged then
            versions format - of -; clock - ms ahead, - allowed; no site disagrees
            copies   - studies below two sites, - below the copies wanted

            no sites
        "#]].assert_eq(&screen(&json!({ "mesh": 3, "peers": {}, "warnings": null })));
    }
}
