//! `maillage stats`: how long reading takes.

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::{Context, age_note};
use crate::cli::exams::spelled;
use crate::client::with_query;
use crate::output::{Table, duration_ms, field, items, number};

/// Exact figures of final reports, from images received to report.
#[derive(Debug, Args)]
pub(super) struct StatsArgs {
    /// Reports signed from then on: a time (2026-01-02T03:04:05Z), or so long ago (90m, 24h, 7d)
    #[arg(long, default_value = "24h", value_name = "TIME")]
    from: String,
    /// … and before then; else up to now
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// What to group by
    #[arg(long, value_enum, default_value = "all")]
    by: By,
}

/// What to group by.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum By {
    /// Everything together
    All,
    /// The hour at which the images were there, UTC
    Hour,
    /// The hospital
    Hospital,
    /// The modality
    Modality,
    /// The urgency
    Urgency,
    /// The reader
    Reader,
    /// The reading centre
    Centre,
}

pub(super) async fn run(context: &Context, args: StatsArgs) -> anyhow::Result<()> {
    let query = [("from", Some(args.from)), ("to", args.to), ("by", spelled(args.by))];
    let statistics = context.client()?.get(&with_query("/api/v1/statistics", &query)).await?;
    context.print(&statistics, |statistics| {
        let mut text = format!("from {} to {}\n", field(statistics, &["from"]), field(statistics, &["to"]));
        text.push_str(&table(statistics).render("no reports"));
        text + &age_note(statistics)
    })?;
    Ok(())
}

fn table(statistics: &Value) -> Table {
    let by = field(statistics, &["by"]).to_uppercase();
    let mut table = Table::new(&[&by, "REPORTS", "MEAN", "P50", "P90", "P95", "P99", "MAX", "IN TARGET", "MEAN WAIT"]);
    let total = statistics.get("total").filter(|total| total.is_object());
    for line in items(statistics, "groups").iter().chain(total) {
        let time = |name: &str| duration_ms(number(line, &[name]).or_else(|| whole(line.get(name)?.as_f64()?)));
        let group = match field(line, &["group"]).as_str() {
            "-" => "(all)".to_owned(),
            group => group.to_owned(),
        };
        let percent = line.get("within_target_percent").and_then(Value::as_f64).unwrap_or_default();
        table.row([
            group,
            field(line, &["reports"]),
            time("mean_ms"),
            time("p50_ms"),
            time("p90_ms"),
            time("p95_ms"),
            time("p99_ms"),
            time("max_ms"),
            format!("{percent:.1} %"),
            time("mean_wait_ms"),
        ]);
    }
    table
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "casts of floats saturate")]
fn whole(milliseconds: f64) -> Option<u64> {
    milliseconds.is_finite().then_some(milliseconds as u64)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn groups_come_first_and_all_together_last() {
        let figures = |group: &str, reports: u64| {
            json!({
                "group": group, "reports": reports, "mean_ms": 960_000.5, "p50_ms": 900_000, "p90_ms": 1_500_000,
                "p95_ms": 1_600_000, "p99_ms": 1_700_000, "max_ms": 1_700_000, "within_target": 3,
                "within_target_percent": 75.0, "mean_wait_ms": 61_000.0,
            })
        };
        let statistics =
            json!({ "by": "modality", "total": figures("", 4), "groups": [figures("CT", 3), figures("M\u{1b}R", 1)] });
        expect![[r#"
            MODALITY  REPORTS  MEAN        P50         P90         P95          P99          MAX          IN TARGET  MEAN WAIT
            CT        3        16 min 0 s  15 min 0 s  25 min 0 s  26 min 40 s  28 min 20 s  28 min 20 s  75.0 %     1 min 1 s
            M�R       1        16 min 0 s  15 min 0 s  25 min 0 s  26 min 40 s  28 min 20 s  28 min 20 s  75.0 %     1 min 1 s
            (all)     4        16 min 0 s  15 min 0 s  25 min 0 s  26 min 40 s  28 min 20 s  28 min 20 s  75.0 %     1 min 1 s
        "#]]
        .assert_eq(&table(&statistics).render("no reports"));
        assert_eq!(table(&json!({ "by": "all", "total": null, "groups": [] })).render("no reports"), "no reports\n");
    }
}
