//! `maillage hospital` and `maillage policy`: what the mesh agrees on for its waiting room.

use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Value, json};

use super::{Context, Repeatable, age_note, body};
use crate::client::segment;
use crate::output::{Table, field, items};

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
    /// Your name
    #[arg(long, env = "USER", hide_env_values = true, value_name = "NAME")]
    user: Option<String>,
    #[command(flatten)]
    repeatable: Repeatable,
}

/// The policy's own members, without the answer's age.
const POLICY: [&str; 5] =
    ["kept_for_territory", "kept_for_department", "kept_for_region", "kept_for_experts", "critical_seconds"];

pub(super) async fn policy(context: &Context, command: PolicyCommand) -> anyhow::Result<()> {
    let client = context.client()?;
    match command {
        PolicyCommand::Show => {
            let policy = client.get("/api/v1/policy").await?;
            context.print(&policy, |policy| {
                let lines = POLICY.map(|name| format!("{name:<20} {}\n", field(policy, &[name])));
                lines.concat() + &age_note(policy)
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

impl PolicyArgs {
    /// The policy `now`, with what is given in its place.
    fn over(&self, now: &Value) -> Value {
        let given = [
            self.kept_for_territory.map(Value::from),
            self.kept_for_department.map(Value::from),
            self.kept_for_region.map(Value::from),
            self.kept_for_experts.map(Value::from),
            self.critical_seconds.map(Value::from),
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
            "kept_for_experts": 0.25, "critical_seconds": 900,
        });
        assert_eq!(
            set.over(&now),
            json!({
                "kept_for_territory": 0.1, "kept_for_department": 0.2, "kept_for_region": 0.5,
                "kept_for_experts": 0.25, "critical_seconds": 60,
            })
        );
    }
}
