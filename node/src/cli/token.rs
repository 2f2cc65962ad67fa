//! `maillage token`: who may join.

use clap::Subcommand;
use hyper::Method;
use serde_json::json;

use super::{Context, Repeatable, age_note, lifetime, prompt};
use crate::client::segment;
use crate::output::{Table, field, items};

const PATH: &str = "/admin/v1/tokens";

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Make a token that lets one site join, once
    Create {
        /// How long it is good: 30m, 1h, 2d
        #[arg(long, default_value = "1h", value_name = "TIME", value_parser = lifetime::parse_seconds)]
        lifetime: u64,
        /// For a hospital's gateway, which is given the reports of each --hospital
        #[arg(long, requires = "hospitals")]
        gateway: bool,
        /// A hospital of the gateway, by the name that its requests bear (Institution Name)
        #[arg(long = "hospital", value_name = "NAME", requires = "gateway")]
        hospitals: Vec<String>,
        #[command(flatten)]
        repeatable: Repeatable,
    },
    /// Tokens made, used or not, without their secrets
    List,
    /// Make a token useless
    Revoke {
        /// Its key, as `token list` shows it
        key: String,
        #[command(flatten)]
        repeatable: Repeatable,
    },
}

pub(super) async fn run(context: &Context, command: TokenCommand) -> anyhow::Result<()> {
    let client = context.client()?;
    match command {
        TokenCommand::Create { lifetime, gateway, hospitals, repeatable } => {
            let mut body = json!({ "lifetime_s": lifetime });
            if gateway {
                body["gateway_of"] = json!(hospitals);
            }
            let join = if gateway { "maillage join TOKEN --gateway" } else { "maillage join TOKEN" };
            let made = client.command(Method::POST, PATH, Some(&body), repeatable.id()).await?;
            context.print(&made, |made| {
                // The token alone on its line: it is made to be copied.
                format!(
                    "{}\nkey      {}\nexpires  {}\nnext     `{join}` on the new site, before then\n",
                    field(made, &["token"]),
                    field(made, &["key"]),
                    field(made, &["expires_at"])
                )
            })?;
        }
        TokenCommand::List => {
            let tokens = client.get(PATH).await?;
            context.print(&tokens, |tokens| {
                let mut table = Table::new(&["KEY", "FOR", "VALID", "CREATED", "EXPIRES", "USED BY", "REVOKED"]);
                for token in items(tokens, "tokens") {
                    let column = |name: &str| field(token, &[name]);
                    table.row(["key", "role", "valid", "created_at", "expires_at", "used_by", "revoked"].map(column));
                }
                table.render("no tokens") + &age_note(tokens)
            })?;
        }
        TokenCommand::Revoke { key, repeatable } => {
            prompt::confirm(context, &format!("Revoke the token {key}?")).await?;
            let path = format!("{PATH}/{}", segment(&key));
            let done = client.command(Method::DELETE, &path, None, repeatable.id()).await?;
            context.print(&done, |_| "revoked\n".to_owned())?;
        }
    }
    Ok(())
}
