//! `maillage placement`, `drain`, `undrain`, and where the copies of a study are: changes of the layout are staged,
//! looked at, and applied by the version that was looked at.

use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Value, json};

use super::{Context, Repeatable, age_note, body, prompt};
use crate::client::{Client, segment};
use crate::output::{Table, bytes, clean, field, items, number};

#[derive(Debug, Subcommand)]
pub(super) enum PlacementCommand {
    /// The layout that holds, and the one that is staged
    Show,
    /// Stage a change; nothing moves before `apply`
    #[command(subcommand)]
    Set(SetCommand),
    /// What the staged layout would move, and what it would make impossible
    Diff,
    /// Let the staged layout hold from now on
    Apply(ApplyArgs),
    /// Drop the staged layout
    Revert(RevertArgs),
    /// Images with too few copies
    Under {
        /// At most so many
        #[arg(long, default_value_t = 100, value_name = "N")]
        limit: usize,
        /// Behind this study
        #[arg(long, value_name = "UID")]
        after: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum SetCommand {
    /// What a site takes; what is not given is as its configuration says
    Site {
        /// Its name
        name: String,
        /// Its share beside other sites': its capacity in GB, say; 0 for no copies
        #[arg(long, value_name = "N")]
        weight: Option<u32>,
        /// What fails together with it
        #[arg(long, value_name = "NAME")]
        zone: Option<String>,
        /// Where it lies, for contracts
        #[arg(long, value_name = "NAME")]
        region: Option<String>,
        #[command(flatten)]
        by: By,
    },
    /// Copies of each image; 0: as many as the mesh was founded with
    Copies {
        /// How many
        copies: u8,
        #[command(flatten)]
        by: By,
    },
    /// Distinct zones that each image needs; 0: two, where there are two
    Zones {
        /// How many
        zones: u8,
        #[command(flatten)]
        by: By,
    },
    /// Which other sites may hold what a site receives
    Contract(Box<ContractArgs>),
    /// End a contract
    NoContract {
        /// Whose: any, site:NAME or territory:NAME
        origin: String,
        #[command(flatten)]
        by: By,
    },
}

#[derive(Debug, Args)]
pub(super) struct ContractArgs {
    /// Whose images: any, site:NAME or territory:NAME; the narrowest that fits counts alone
    origin: String,
    /// The only other sites that may hold them; may be repeated
    #[arg(long, value_name = "NAME", conflicts_with_all = ["all_but", "nobody"])]
    only: Vec<String>,
    /// Sites that may not; may be repeated
    #[arg(long, value_name = "NAME", conflicts_with = "nobody")]
    all_but: Vec<String>,
    /// No other site may
    #[arg(long)]
    nobody: bool,
    /// Only sites in this region may; may be repeated
    #[arg(long, value_name = "NAME")]
    region: Vec<String>,
    /// Copies, when not as the layout says
    #[arg(long, value_name = "N")]
    copies: Option<u8>,
    /// Distinct zones, when not as the layout says
    #[arg(long, value_name = "N")]
    zones: Option<u8>,
    #[command(flatten)]
    by: By,
}

/// Who does it, and under which command id.
#[derive(Debug, Args)]
pub(super) struct By {
    /// Your name
    #[arg(long, env = "USER", hide_env_values = true, value_name = "NAME")]
    user: Option<String>,
    #[command(flatten)]
    repeatable: Repeatable,
}

#[derive(Debug, Args)]
pub(super) struct ApplyArgs {
    /// The staged layout's version, as `diff` shows it
    #[arg(long, value_name = "N")]
    version: u64,
    /// Apply it even if images cannot lie as they have to by it, for this reason
    #[arg(long, value_name = "REASON")]
    force: Option<String>,
    #[command(flatten)]
    by: By,
}

#[derive(Debug, Args)]
pub(super) struct RevertArgs {
    /// The staged layout's version
    #[arg(long, value_name = "N")]
    version: u64,
    #[command(flatten)]
    by: By,
}

#[derive(Debug, Args)]
pub(super) struct DrainArgs {
    /// Which site; else this one
    site: Option<String>,
    /// Why
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Even if images cannot lie as they have to without it; needs a reason
    #[arg(long, requires = "reason")]
    force: bool,
    #[command(flatten)]
    by: By,
}

#[derive(Debug, Args)]
pub(super) struct UndrainArgs {
    /// Which site; else this one
    site: Option<String>,
    /// Why
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    by: By,
}

pub(super) async fn run(context: &Context, command: PlacementCommand) -> anyhow::Result<()> {
    let client = context.client()?;
    match command {
        PlacementCommand::Show => {
            let all = client.get("/api/v1/placement").await?;
            context.print(&all, |all| {
                let staged = match all.get("staged") {
                    Some(staged @ Value::Object(_)) => format!(
                        "\nstaged, and not applied: version {}; `maillage placement diff` shows what would move\n{}",
                        field(staged, &["version"]),
                        layout(staged),
                    ),
                    _ => String::new(),
                };
                let applied = &all["applied"];
                format!("applied: version {}\n{}", field(applied, &["version"]), layout(applied))
                    + &staged
                    + &age_note(all)
            })?;
        }
        PlacementCommand::Set(set) => stage(context, &client, set).await?,
        PlacementCommand::Diff => {
            let diff = client.get_long("/api/v1/placement/diff?fresh=true").await?;
            context.print(&diff, |diff| shown(diff) + &age_note(diff))?;
        }
        PlacementCommand::Apply(args) => {
            let question = format!("Let layout {} hold from now on? Copies move.", args.version);
            prompt::confirm(context, &question).await?;
            let body = body([
                ("version", Some(json!(args.version))),
                ("force", args.force.map(Value::from)),
                ("user", args.by.user.map(Value::from)),
            ]);
            let path = "/api/v1/placement/apply";
            let done = client.command(Method::POST, path, Some(&body), args.by.repeatable.id()).await?;
            context.print(&done, |_| format!("layout {}: applied\n", args.version))?;
        }
        PlacementCommand::Revert(args) => {
            let body = body([("version", Some(json!(args.version))), ("user", args.by.user.map(Value::from))]);
            let path = "/api/v1/placement/revert";
            let done = client.command(Method::POST, path, Some(&body), args.by.repeatable.id()).await?;
            context.print(&done, |_| format!("layout {}: dropped\n", args.version))?;
        }
        PlacementCommand::Under { limit, after } => {
            let after = after.map(|uid| format!("&after={}", segment(&uid))).unwrap_or_default();
            let path = format!("/api/v1/placement/under?limit={limit}{after}");
            let found = client.get_long(&path).await?;
            context.print(&found, |found| {
                let next = match found.get("next").and_then(Value::as_str) {
                    Some(next) => format!("more: --after {}\n", clean(next)),
                    None => String::new(),
                };
                parts(found).render("every image has the copies that it should") + &next + &age_note(found)
            })?;
        }
    }
    Ok(())
}

async fn stage(context: &Context, client: &Client, set: SetCommand) -> anyhow::Result<()> {
    let text = |value: Option<String>| value.map(Value::from);
    let (method, path, body, by) = match set {
        SetCommand::Site { name, weight, zone, region, by } => {
            let path = format!("/api/v1/placement/sites/{}", segment(&name));
            let fields = [("weight", weight.map(Value::from)), ("zone", text(zone)), ("region", text(region))];
            (Method::PUT, path, body(fields), by)
        }
        SetCommand::Copies { copies, by } => {
            (Method::PUT, "/api/v1/placement/copies".to_owned(), json!({ "copies": copies }), by)
        }
        SetCommand::Zones { zones, by } => {
            (Method::PUT, "/api/v1/placement/zones".to_owned(), json!({ "zones": zones }), by)
        }
        SetCommand::Contract(args) => {
            let path = format!("/api/v1/placement/contracts/{}", segment(&args.origin));
            let fields = [
                ("only", Some(json!(args.only))),
                ("all_but", Some(json!(args.all_but))),
                ("nobody", Some(json!(args.nobody))),
                ("regions", Some(json!(args.region))),
                ("copies", args.copies.map(Value::from)),
                ("zones", args.zones.map(Value::from)),
            ];
            (Method::PUT, path, body(fields), args.by)
        }
        SetCommand::NoContract { origin, by } => {
            (Method::POST, format!("/api/v1/placement/contracts/{}/end", segment(&origin)), json!({}), by)
        }
    };
    let mut body = body;
    if let Some(user) = by.user {
        body["user"] = user.into();
    }
    let staged = client.command(method, &path, Some(&body), by.repeatable.id()).await?;
    context.print(&staged, |staged| {
        let version = field(staged, &["version"]);
        format!(
            "staged as version {version}; nothing has moved\n\
             next     `maillage placement diff`, then `maillage placement apply --version {version}`\n"
        )
    })?;
    Ok(())
}

fn layout(layout: &Value) -> String {
    let zones = match number(layout, &["zones"]) {
        Some(0) | None => "two where there are two".to_owned(),
        Some(zones) => zones.to_string(),
    };
    let mut text = format!("copies   {} of each image, in zones: {zones}\n", field(layout, &["copies"]));
    let mut table = Table::new(&["SITE", "NAME", "ZONE", "REGION", "WEIGHT", "TAKES", "DRAINING", "FULL"]);
    for site in items(layout, "sites") {
        let columns = ["site", "name", "zone", "region", "weight", "takes", "draining_since", "full_since"];
        table.row(columns.map(|name| field(site, &[name])));
    }
    text.push_str(&table.render("no sites"));
    if !items(layout, "contracts").is_empty() {
        let mut table = Table::new(&["IMAGES OF", "ONLY AT", "NOT AT", "REGIONS", "COPIES", "ZONES"]);
        for contract in items(layout, "contracts") {
            let only = match contract.get("only") {
                Some(Value::Array(sites)) if sites.is_empty() => "no other site".to_owned(),
                _ => field(contract, &["only"]),
            };
            let [origin, not, regions, copies, zones] =
                ["origin", "all_but", "regions", "copies", "zones"].map(|name| field(contract, &[name]));
            table.row([origin, only, not, regions, copies, zones]);
        }
        text.push_str(&table.render(""));
    }
    text
}

fn shown(diff: &Value) -> String {
    let mut table = Table::new(&["SITE", "NAME", "FETCHES", "BYTES", "GIVES UP", "BYTES"]);
    for site in items(diff, "sites") {
        let column = |name: &str| field(site, &[name]);
        table.row([
            column("site"),
            column("name"),
            column("parts_gained"),
            bytes(number(site, &["bytes_gained"])),
            column("parts_lost"),
            bytes(number(site, &["bytes_lost"])),
        ]);
    }
    let mut text = table.render("nothing would move");
    for one in items(diff, "impossible") {
        let column = |name: &str| field(one, &[name]);
        text.push_str(&format!(
            "impossible: images received at {} could lie at {} sites of the {} that they need, in {} zones of {}\n",
            column("origin"),
            column("copies_possible"),
            column("copies"),
            column("zones_possible"),
            column("zones"),
        ));
    }
    let version = field(diff, &["version"]);
    text + &format!(
        "next     `maillage placement apply --version {version}`, or `maillage placement revert --version {version}`\n"
    )
}

fn parts(found: &Value) -> Table {
    let mut table = Table::new(&["STUDY", "FROM", "BYTES", "WANTED", "COUNT", "HELD AT", "SHOULD BE AT"]);
    for part in items(found, "parts") {
        let column = |name: &str| field(part, &[name]);
        let counted = items(&part["counted"], "").len().to_string();
        let wanted = match part.get("confined").and_then(Value::as_bool) {
            Some(true) => "confined".to_owned(),
            _ => column("wanted"),
        };
        let [study, origin, holders, should] = ["study", "origin", "holders", "should"].map(column);
        table.row([study, origin, bytes(number(part, &["bytes"])), wanted, counted, holders, should]);
    }
    table
}

/// `maillage chunks locate`
pub(super) async fn locate(context: &Context, uid: &str) -> anyhow::Result<()> {
    let path = format!("/api/v1/placement/studies/{}", segment(uid));
    let found = context.client()?.get(&path).await?;
    context.print(&found, |found| parts(found).render("no parts") + &age_note(found))?;
    Ok(())
}

/// The copies of the whole mesh, for `maillage chunks stats`.
pub(super) fn copies(counts: &Value) -> String {
    let column = |name: &str| field(counts, &[name]);
    let size = |name: &str| bytes(number(counts, &[name]));
    format!(
        "mesh     {} parts of studies, {}; {} copies, {}\n\
         under    {} parts with too few copies, {}; {} of them with fewer than two\n\
         over     {} copies too many, {}\n\
         confined {} parts that stay where they were received\n",
        column("parts"),
        size("bytes"),
        column("copies"),
        size("copies_bytes"),
        column("under"),
        size("under_bytes"),
        column("under_two"),
        column("over"),
        size("over_bytes"),
        column("confined"),
    )
}

/// The name of the site that is meant, this one if none is given.
async fn site(client: &Client, named: Option<String>) -> anyhow::Result<String> {
    match named {
        Some(name) => Ok(name),
        None => {
            let status = client.get("/api/v1/status").await?;
            Ok(status["site"]["name"].as_str().map(str::to_owned).unwrap_or_default())
        }
    }
}

pub(super) async fn drain(context: &Context, args: DrainArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let name = site(&client, args.site).await?;
    prompt::confirm(context, &format!("Move all copies away from {}?", clean(&name))).await?;
    let body = body([
        ("reason", args.reason.map(Value::from)),
        ("force", Some(json!(args.force))),
        ("user", args.by.user.map(Value::from)),
    ]);
    let path = format!("/api/v1/placement/sites/{}/drain", segment(&name));
    let done = client.command(Method::POST, &path, Some(&body), args.by.repeatable.id()).await?;
    context.print(&done, |_| {
        let name = clean(&name);
        format!("{name}: draining; `maillage chunks stats` counts what is left to move\n")
    })?;
    Ok(())
}

pub(super) async fn undrain(context: &Context, args: UndrainArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let name = site(&client, args.site).await?;
    let body = body([("reason", args.reason.map(Value::from)), ("user", args.by.user.map(Value::from))]);
    let path = format!("/api/v1/placement/sites/{}/undrain", segment(&name));
    let done = client.command(Method::POST, &path, Some(&body), args.by.repeatable.id()).await?;
    context.print(&done, |_| format!("{}: takes copies again\n", clean(&name)))?;
    Ok(())
}
