//! `maillage config`: works without a node, and with a configuration that does not.

use clap::Subcommand;
use serde_json::{Value, json};

use super::Context;
use crate::config::{ConfigError, Loaded, template};
use crate::output::{Table, write_out};

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Print a file with every setting, its meaning and its default
    Template,
    /// Find all mistakes: exit code 0 when there are none, 2 otherwise
    Check,
    /// Print every value and where it came from
    Show,
}

pub(super) fn run(context: &Context, command: ConfigCommand) -> anyhow::Result<()> {
    match command {
        ConfigCommand::Template if context.is_json() => {
            context.print(&json!({ "template": template() }), |_| String::new())?;
        }
        ConfigCommand::Template => write_out(&template())?,
        ConfigCommand::Check => check(context)?,
        ConfigCommand::Show => show(context)?,
    }
    Ok(())
}

fn check(context: &Context) -> anyhow::Result<()> {
    let loaded = context.load();
    let problems: Vec<String> = loaded.problems.iter().map(ToString::to_string).collect();
    let file = loaded.file.as_ref().map(|path| path.display().to_string());
    let value = json!({ "ok": problems.is_empty(), "file": file, "problems": problems });
    if context.is_json() || problems.is_empty() {
        context.print(&value, |_| {
            format!("the configuration is good ({})\n", file.unwrap_or_else(|| "no file, only defaults".to_owned()))
        })?;
    }
    loaded.checked()?;
    Ok(())
}

fn show(context: &Context) -> anyhow::Result<()> {
    let loaded = context.load();
    context.print(&values(&loaded)?, |_| {
        let mut table = Table::new(&["SETTING", "VALUE", "FROM"]);
        // As in the file: in its order and its notation.
        for (setting, value, origin) in loaded.values() {
            table.row([setting.name(), value.to_string(), origin.to_string()]);
        }
        table.render("")
    })?;
    if loaded.problems.is_empty() { Ok(()) } else { Err(ConfigError(loaded.problems).into()) }
}

/// `section.key` to its value and origin.
fn values(loaded: &Loaded) -> anyhow::Result<Value> {
    let mut all = serde_json::Map::new();
    for (setting, value, origin) in loaded.values() {
        let entry = json!({
            "value": serde_json::to_value(value)?,
            "from": origin.to_string(),
            "env": setting.variable(),
        });
        all.insert(setting.name(), entry);
    }
    Ok(Value::Object(all))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    #[test]
    fn every_setting_is_shown_with_its_origin() {
        let environment = vec![("MAILLAGE__MESH__LISTEN".into(), "192.0.2.1:7000".into())];
        let loaded = load(&Sources { file: None, candidates: Vec::new(), environment });
        let shown = values(&loaded).expect("values");
        assert_eq!(shown.as_object().expect("an object").len(), loaded.values().count());
        assert_eq!(
            shown["mesh.listen"],
            json!({ "value": "192.0.2.1:7000", "from": "env MAILLAGE__MESH__LISTEN", "env": "MAILLAGE__MESH__LISTEN" })
        );
        assert_eq!(shown["mesh.announce"]["value"], json!(["192.0.2.1:7000"]), "derived values are shown");
        assert_eq!(
            shown["storage.copies"],
            json!({ "value": 3, "from": "default", "env": "MAILLAGE__STORAGE__COPIES" })
        );
    }
}
