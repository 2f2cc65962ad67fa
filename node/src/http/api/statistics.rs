//! How long reading takes: exact figures over any period, for quality review.

use std::collections::BTreeMap;
use std::io;

use axum::extract::State;
use maillage_consensus::command::UnixMillisField;
use maillage_consensus::exam::Priority;
use maillage_consensus::ids::SiteId;
use maillage_consensus::statistics::{By, Figures, Summary};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::http::app::App;
use crate::http::extract::UrlQuery;
use crate::http::problem::Problem;
use crate::http::reading::Read;
use crate::http::rfc3339::{At, moment};

/// Which reports, and how they are grouped.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StatisticsQuery {
    /// Final reports signed from then on: RFC 3339, or so long ago (`90m`, `24h`, `7d`). `24h` by default.
    from: Option<String>,
    /// … and before then; up to now by default.
    to: Option<String>,
    /// What to group by, besides all together.
    #[serde(default)]
    #[schemars(schema_with = "crate::http::words::by")]
    by: Option<String>,
    /// Whether every earlier command must be visible.
    #[serde(default)]
    fresh: bool,
}

/// Figures over a period.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Statistics {
    from: At,
    to: At,
    by: &'static str,
    /// All together; null without a report.
    total: Option<GroupLine>,
    /// Each group; empty when everything is asked for together.
    groups: Vec<GroupLine>,
}

/// Figures of a group of final reports. Times are milliseconds from images received to final report.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "Figures")]
struct GroupLine {
    /// Its name; empty for all together.
    group: String,
    reports: u64,
    mean_ms: f64,
    /// Exact percentiles (nearest rank).
    p50_ms: u64,
    p90_ms: u64,
    p95_ms: u64,
    p99_ms: u64,
    max_ms: u64,
    /// Reports within their urgency's target.
    within_target: u64,
    /// The same, in percent of the reports.
    within_target_percent: f64,
    /// From images received to claim.
    mean_wait_ms: f64,
}

impl GroupLine {
    fn new(group: String, figures: &Figures) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "counts of reports are far below 2^52")]
        let percent = match figures.reports {
            0 => 0.0,
            reports => figures.within_target as f64 * 100.0 / reports as f64,
        };
        Self {
            group,
            reports: figures.reports,
            mean_ms: figures.mean_ms,
            p50_ms: figures.p50_ms,
            p90_ms: figures.p90_ms,
            p95_ms: figures.p95_ms,
            p99_ms: figures.p99_ms,
            max_ms: figures.max_ms,
            within_target: figures.within_target,
            within_target_percent: percent,
            mean_wait_ms: figures.mean_wait_ms,
        }
    }
}

/// `GET /statistics?from=&to=&by=`
pub(super) async fn show(
    State(app): State<App>,
    UrlQuery(query): UrlQuery<StatisticsQuery>,
) -> Result<Read<Statistics>, Problem> {
    let by: By = query.by.as_deref().unwrap_or("all").parse().map_err(Problem::invalid)?;
    let now = app.now();
    let read_moment =
        |name: &str, text: &str| moment(text, now).map_err(|error| Problem::invalid(format!("{name}: {error}")));
    let from = read_moment("from", query.from.as_deref().unwrap_or("24h"))?;
    let to = query.to.as_deref().map(|to| read_moment("to", to)).transpose()?;
    let at_once = app.read(query.fresh, |_| Ok(())).await?;
    let node = app.node.clone();
    // A year has some 250,000 reports: they are walked over away from the threads that answer.
    let gathered = maillage_host::offload(move || {
        node.read(|view| {
            // The leader's clock stamps reports, and may be ahead of this node's.
            let latest = now.0.max(view.clock()?.0.saturating_add(1));
            let to = to.unwrap_or(UnixMillisField(latest));
            let (mut total, mut groups) = (Summary::default(), Summary::default());
            view.turnarounds(from, to, &mut |turnaround| {
                total.add(By::All, &turnaround);
                if by != By::All {
                    groups.add(by, &turnaround);
                }
            })?;
            let names = view.sites()?.into_iter().map(|site| (site.id, site.description.name.to_string())).collect();
            Ok((to, total.figures(), lines(groups.figures(), by, &names)))
        })
        .map_err(io::Error::from)
    });
    let (to, total, groups) = gathered.await.map_err(|error| Problem::internal(error.to_string()))?;
    at_once.try_map(|()| {
        let total = total.into_iter().next().map(|(_, figures)| GroupLine::new(String::new(), &figures));
        Ok(Statistics { from: At(from), to: At(to), by: by.as_str(), total, groups })
    })
}

/// The groups under the names that people know, in an order that means something.
fn lines(figures: BTreeMap<String, Figures>, by: By, sites: &BTreeMap<SiteId, String>) -> Vec<GroupLine> {
    let mut lines: Vec<GroupLine> = figures
        .into_iter()
        .map(|(group, figures)| {
            let name = match by {
                By::Centre => group.parse().ok().and_then(|site| sites.get(&site)).cloned(),
                _ => None,
            };
            GroupLine::new(name.unwrap_or(group), &figures)
        })
        .collect();
    match by {
        By::Urgency => lines.sort_by_key(|line| line.group.parse::<Priority>().ok()),
        _ => lines.sort_by(|one, other| one.group.cmp(&other.group)),
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(reports: u64, within_target: u64) -> Figures {
        Figures {
            reports,
            mean_ms: 1.0,
            p50_ms: 1,
            p90_ms: 1,
            p95_ms: 1,
            p99_ms: 1,
            max_ms: 1,
            within_target,
            mean_wait_ms: 1.0,
        }
    }

    #[test]
    fn targets_met_are_in_percent() {
        let percent = |reports, within| GroupLine::new(String::new(), &figures(reports, within)).within_target_percent;
        assert_eq!([percent(0, 0), percent(4, 3), percent(3, 3)], [0.0, 75.0, 100.0]);
    }

    #[test]
    fn centres_have_their_names_and_urgencies_their_order() {
        let groups = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), figures(1, 1))).collect();
        let shown = |names: &[&str], by| {
            let sites = BTreeMap::from([(SiteId(12), "brest".to_owned()), (SiteId(7), "nice".to_owned())]);
            lines(groups(names), by, &sites).into_iter().map(|line| line.group).collect::<Vec<_>>()
        };
        assert_eq!(shown(&["12", "7", "99"], By::Centre), ["99", "brest", "nice"]);
        let urgencies = ["scheduled", "semi-urgent", "urgent", "vital"];
        assert_eq!(shown(&urgencies, By::Urgency), ["vital", "urgent", "semi-urgent", "scheduled"]);
        assert_eq!(shown(&["08", "21"], By::Hour), ["08", "21"]);
    }
}
