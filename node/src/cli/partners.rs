//! `maillage hospital` and `maillage policy`: what the mesh agrees on for its waiting room.

use clap::{Args, Subcommand};
use hyper::Method;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Context, Repeatable, age_note, body};
use crate::client::segment;
use crate::output::{Table, duration_ms, field, items, number};

#[derive(Debug, Subcommand)]
pub(super) enum HospitalCommand {
    /// All partner hospitals
    List,
    /// Add a partner hospital, or say anew what it is: what is not given becomes empty
    Set(Box<HospitalArgs>),
}

#[derive(Debug, Args)]
pub(super) struct HospitalArgs {
    /// Its name, as its requests bear it
    name: String,
    /// Its number in the register of establishments
    #[arg(long, value_name = "NUMBER")]
    finess: Option<String>,
    /// The hospitals' group: its readers come first
    #[arg(long, value_name = "NAME")]
    territory: Option<String>,
    /// The department
    #[arg(long, value_name = "NAME")]
    department: Option<String>,
    /// The region
    #[arg(long, value_name = "NAME")]
    region: Option<String>,
    /// A site whose contract covers it; may be repeated; else all
    #[arg(long, value_name = "NAME")]
    site: Vec<String>,
    /// Its requests need a regulator, whatever they say themselves
    #[arg(long)]
    regulate: bool,
    /// For how long its images are kept: 60d, or CT=30d for one modality; may be repeated; else as the policy says
    #[arg(long, value_name = "[MODALITY=]TIME", value_parser = keep)]
    retention: Vec<Keep>,
    /// Your name
    #[arg(long, env = "USER", hide_env_values = true, value_name = "NAME")]
    user: Option<String>,
    #[command(flatten)]
    repeatable: Repeatable,
}

pub(super) async fn hospital(context: &Context, command: HospitalCommand) -> anyhow::Result<()> {
    let client = context.client()?;
    match command {
        HospitalCommand::List => {
            let all = client.get("/api/v1/hospitals").await?;
            context.print(&all, |all| hospitals(all).render("no hospitals") + &age_note(all))?;
        }
        HospitalCommand::Set(hospital) => {
            let path = format!("/api/v1/hospitals/{}", segment(&hospital.name));
            let text = |value: Option<String>| value.map(Value::from);
            let body = body([
                ("finess", text(hospital.finess)),
                ("territory", text(hospital.territory)),
                ("department", text(hospital.department)),
                ("region", text(hospital.region)),
                ("sites", Some(json!(hospital.site))),
                ("regulate", Some(json!(hospital.regulate))),
                ("retention", Some(json!(hospital.retention))),
                ("user", text(hospital.user)),
            ]);
            let done = client.command(Method::PUT, &path, Some(&body), hospital.repeatable.id()).await?;
            context.print(&done, |_| format!("hospital {}: set\n", crate::output::clean(&hospital.name)))?;
        }
    }
    Ok(())
}

fn hospitals(all: &Value) -> Table {
    let mut table = Table::new(&["NAME", "FINESS", "TERRITORY", "DEPARTMENT", "REGION", "SITES", "REGULATED"]);
    for hospital in items(all, "hospitals") {
        let columns = ["name", "finess", "territory", "department", "region", "sites", "regulate"];
        table.row(columns.map(|name| field(hospital, &[name])));
    }
    table
}

#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// What the mesh has agreed on
    Show,
    /// Agree on something else; what is not given stays
    Set(PolicyArgs),
}

/// Shares are of an exam's target, from 0 to 1.
#[derive(Debug, Args)]
#[group(skip)]
pub(super) struct PolicyArgs {
    /// Share of its target for which an exam is kept for its territory
    #[arg(long, value_name = "SHARE")]
    kept_for_territory: Option<f64>,
    /// … for its department
    #[arg(long, value_name = "SHARE")]
    kept_for_department: Option<f64>,
    /// … for its region
    #[arg(long, value_name = "SHARE")]
    kept_for_region: Option<f64>,
    /// … for experts, if it needs one
    #[arg(long, value_name = "SHARE")]
    kept_for_experts: Option<f64>,
    /// Seconds after which a critical result of which nobody was told escalates
    #[arg(long, value_name = "SECONDS")]
    critical_seconds: Option<u64>,
    /// For how long images are kept after the report: 90d, or CT=30d for one modality; replaces all rules; may be
    /// repeated
    #[arg(long, value_name = "[MODALITY=]TIME", value_parser = keep)]
    retention: Vec<Keep>,
    /// For how long at least images are kept of which the report is still to be written or delivered
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    unread: Option<u64>,
    /// Your name
    #[arg(long, env = "USER", hide_env_values = true, value_name = "NAME")]
    user: Option<String>,
    #[command(flatten)]
    repeatable: Repeatable,
}

/// The policy's own members, without the answer's age.
const POLICY: [&str; 7] = [
    "kept_for_territory",
    "kept_for_department",
    "kept_for_region",
    "kept_for_experts",
    "critical_seconds",
    "retention",
    "unread_seconds",
];

/// For how long images of a modality are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Keep {
    /// Empty for all that no other rule names.
    modality: String,
    seconds: u64,
}

/// `90d` or `CT=90d`.
fn keep(text: &str) -> Result<Keep, String> {
    let (modality, time) = text.split_once('=').unwrap_or(("", text));
    Ok(Keep { modality: modality.to_owned(), seconds: seconds(time)? })
}

/// A number of days, hours, minutes or seconds: `90d`, `12h`, `30m`, `20s`.
fn seconds(text: &str) -> Result<u64, String> {
    let unit = match text.chars().last() {
        Some('d') => 24 * 3600,
        Some('h') => 3600,
        Some('m') => 60,
        Some('s') => 1,
        _ => return Err("a number with d, h, m or s behind it".to_owned()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| "a number with d, h, m or s behind it".to_owned())?;
    number.checked_mul(unit).ok_or_else(|| "too long".to_owned())
}

pub(super) async fn policy(context: &Context, command: PolicyCommand) -> anyhow::Result<()> {
    let client = context.client()?;
    match command {
        PolicyCommand::Show => {
            let policy = client.get("/api/v1/policy").await?;
            context.print(&policy, |policy| {
                let shown = |name: &str| match name {
                    "retention" => kept(policy),
                    name => field(policy, &[name]),
                };
                POLICY.map(|name| format!("{name:<20} {}\n", shown(name))).concat() + &age_note(policy)
            })?;
        }
        PolicyCommand::Set(set) => {
            // Freshly: what is not given must stay as everybody knows it.
            let now = client.get("/api/v1/policy?fresh=true").await?;
            let body = body([("policy", Some(set.over(&now))), ("user", set.user.map(Value::from))]);
            let done = client.command(Method::PUT, "/api/v1/policy", Some(&body), set.repeatable.id()).await?;
            context.print(&done, |_| "policy: set\n".to_owned())?;
        }
    }
    Ok(())
}

/// The rules of retention, in a line.
fn kept(of: &Value) -> String {
    let rules = items(of, "retention").iter().map(|rule| {
        let days = number(rule, &["seconds"]).unwrap_or_default();
        let modality = match field(rule, &["modality"]).as_str() {
            "-" | "" => "all".to_owned(),
            modality => modality.to_owned(),
        };
        format!("{modality} {}", duration_ms(Some(days.saturating_mul(1000))))
    });
    let rules: Vec<String> = rules.collect();
    if rules.is_empty() { "-".to_owned() } else { rules.join(", ") }
}

impl PolicyArgs {
    /// The policy `now`, with what is given in its place.
    fn over(&self, now: &Value) -> Value {
        let given = [
            self.kept_for_territory.map(Value::from),
            self.kept_for_department.map(Value::from),
            self.kept_for_region.map(Value::from),
            self.kept_for_experts.map(Value::from),
            self.critical_seconds.map(Value::from),
            (!self.retention.is_empty()).then(|| json!(self.retention)),
            self.unread.map(Value::from),
        ];
        let members = POLICY.into_iter().zip(given);
        members.map(|(name, given)| (name.to_owned(), given.unwrap_or_else(|| now[name].clone()))).collect()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn what_is_not_given_of_a_policy_stays() {
        let line = "maillage policy set --kept-for-region 0.5 --critical-seconds 60 --user ann";
        let cli = Cli::try_parse_from(line.split(' ')).expect("a good line");
        let Command::Policy(PolicyCommand::Set(set)) = cli.command else { panic!("another command") };
        let now = json!({
            "age_ms": 3, "fresh": true, "kept_for_territory": 0.1, "kept_for_department": 0.2, "kept_for_region": 0.3,
            "kept_for_experts": 0.25, "critical_seconds": 900, "unread_seconds": 9,
            "retention": [{ "modality": "CT", "seconds": 5 }],
        });
        assert_eq!(
            set.over(&now),
            json!({
                "kept_for_territory": 0.1, "kept_for_department": 0.2, "kept_for_region": 0.5,
                "kept_for_experts": 0.25, "critical_seconds": 60, "unread_seconds": 9,
                "retention": [{ "modality": "CT", "seconds": 5 }],
            })
        );
        let line = "maillage policy set --retention 60d --retention CT=20s --unread 200d --user ann";
        let cli = Cli::try_parse_from(line.split(' ')).expect("a good line");
        let Command::Policy(PolicyCommand::Set(set)) = cli.command else { panic!("another command") };
        let over = set.over(&now);
        let rules = json!([{ "modality": "", "seconds": 5_184_000 }, { "modality": "CT", "seconds": 20 }]);
        assert_eq!((&over["retention"], &over["unread_seconds"]), (&rules, &json!(17_280_000)));
        assert!(keep("CT=20").is_err() && keep("CT=xd").is_err() && keep("").is_err());
    }
}
