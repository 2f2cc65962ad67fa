//! The command line: what can be asked, and which file answers it.
//!
//! Commands are thin: they ask the local node over its socket and print the answer. Only those that
//! come before there is a node (`init`, `join`, `serve`, `config`, `demo`) do anything themselves.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};

use crate::config::{self, Config, Loaded, Sources};
use crate::data_dir::DataDir;
use crate::exit::{ExitCode, Failure};
use crate::output::{Format, Unwritable};
use crate::{client, logging, output};

mod audit;
mod claim;
mod configuration;
mod exams;
mod glass;
mod health;
mod integrity;
mod lifetime;
mod partners;
mod placement;
mod prompt;
mod sites;
mod spool;
mod stats;
mod status;
mod study;
mod token;

/// A node of a mesh of reading centres: any centre picks up any exam.
#[derive(Debug, Parser)]
#[command(name = "maillage", version, propagate_version = false, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 ok, 1 error, 2 usage, 3 degraded, 4 no quorum, 5 refused for safety, \
                        6 conflict, 7 corruption.")]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command understands.
#[derive(Debug, Args)]
struct Global {
    /// Configuration; else $MAILLAGE_CONFIG, ./maillage.toml, /etc/maillage/maillage.toml
    #[arg(short, long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How results are printed
    #[arg(short, long, global = true, value_enum, default_value = "table", value_name = "FORMAT")]
    output: Format,
    /// Ask nothing
    #[arg(long, global = true)]
    yes: bool,
    /// Log more to standard error; twice for still more
    #[arg(short, global = true, action = ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make this node the first of a new mesh
    Init {
        /// The mesh's name
        #[arg(long, default_value = "maillage", value_name = "NAME")]
        mesh: String,
    },
    /// Make this node a member of a mesh
    Join {
        /// What `maillage token create` printed on a member; `-` reads it from standard input
        token: String,
        /// As a hospital's gateway; as `node.role = "gateway"` says too
        #[arg(long)]
        gateway: bool,
    },
    /// Run the node until SIGTERM or Ctrl-C
    Serve,
    /// Tokens that let further sites join
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// The mesh, the queue and the storage on one screen
    Status(status::StatusArgs),
    /// Whether all is well, by exit code: 0 yes, 3 degraded
    Health,
    /// The sites of the mesh
    #[command(subcommand)]
    Peers(sites::PeersCommand),
    /// The examinations
    #[command(subcommand, alias = "exam")]
    Exams(exams::ExamsCommand),
    /// The right to read an exam
    #[command(subcommand)]
    Claim(claim::ClaimCommand),
    /// Partner hospitals: where they are, and whose contract covers them
    #[command(subcommand)]
    Hospital(partners::HospitalCommand),
    /// For whom exams are kept, and when critical results escalate
    #[command(subcommand)]
    Policy(partners::PolicyCommand),
    /// Where copies may lie: staged, looked at, applied
    #[command(subcommand)]
    Placement(placement::PlacementCommand),
    /// Move a site's copies elsewhere
    Drain(placement::DrainArgs),
    /// Give a drained site copies again
    Undrain(placement::UndrainArgs),
    /// How long reading takes: exact figures over any period
    Stats(stats::StatsArgs),
    /// What was written while this site was cut off from the quorum
    #[command(subcommand)]
    Outbox(glass::OutboxCommand),
    /// The images
    #[command(subcommand)]
    Study(study::StudyCommand),
    /// Read everything that is stored here and compare hashes, without opening images; also while the node does not run
    Verify,
    /// The same in the background, all the time
    #[command(subcommand)]
    Scrub(integrity::ScrubCommand),
    /// Bring back what is damaged or missing here from the other sites
    Repair {
        /// Of this study only
        #[arg(long, value_name = "UID")]
        study: Option<String>,
    },
    /// What was done, by whom, when and why
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// What happens in the queue, as it happens
    Events(audit::EventsArgs),
    /// The images that a hospital's gateway owes the mesh
    #[command(subcommand)]
    Spool(spool::SpoolCommand),
    /// What this node stores
    #[command(subcommand)]
    Chunks(sites::ChunksCommand),
    /// The configuration
    #[command(subcommand)]
    Config(configuration::ConfigCommand),
    /// Show the main job on a mesh of processes on this machine, some of them killed
    Demo {
        /// Sites, the cloud among them
        #[arg(long, default_value_t = 5, value_name = "N")]
        nodes: usize,
        /// Slices of the CT study
        #[arg(long, default_value_t = 400, value_name = "N")]
        slices: u32,
        /// End after the last step, with a status for scripts
        #[arg(long)]
        exit: bool,
        /// Keep the data and the logs there
        #[arg(long, value_name = "DIR")]
        keep: Option<PathBuf>,
    },
    /// The version
    Version,
}

/// A command that takes effect once however often it is sent.
#[derive(Debug, Clone, Copy, Args)]
struct Repeatable {
    /// Repeat a command whose outcome was unknown: it then answers what the first attempt did
    #[arg(long, value_name = "UUID")]
    command_id: Option<uuid::Uuid>,
}

impl Repeatable {
    fn id(self) -> uuid::Uuid {
        self.command_id.unwrap_or_else(uuid::Uuid::new_v4)
    }
}

/// What the commands have in common once the line is parsed.
#[derive(Debug)]
struct Context {
    global: Global,
}

impl Context {
    fn load(&self) -> Loaded {
        let mut loaded = config::load(&Sources::of_process(self.global.config.clone()));
        // What `join --gateway` said holds, though the configuration is silent.
        if DataDir::at(loaded.data_dir()).is_a_gateways() {
            loaded.be_gateway();
        }
        loaded
    }

    fn config(&self) -> anyhow::Result<Config> {
        Ok(self.load().checked()?)
    }

    fn client(&self) -> anyhow::Result<client::Client> {
        Ok(client::Client::local(&self.config()?)?)
    }

    fn is_json(&self) -> bool {
        self.global.output == Format::Json
    }

    fn print(
        &self,
        value: &serde_json::Value,
        text: impl FnOnce(&serde_json::Value) -> String,
    ) -> Result<(), Unwritable> {
        output::print(self.global.output, value, text)
    }
}

/// Does what the line says.
///
/// # Errors
/// Whatever went wrong, for `exit::report`.
pub(crate) async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let context = Context { global: cli.global };
    let verbosity = context.global.verbose;
    if let Command::Serve = cli.command {
        let config = context.config()?;
        logging::start_for_node(&config.log, verbosity)?;
        crate::serve::run(config).await?;
        return Ok(ExitCode::Ok);
    }
    logging::start_for_command(verbosity)?;
    match cli.command {
        Command::Init { mesh } => init(&context, &mesh)?,
        Command::Join { token, gateway } => join(&context, token, gateway).await?,
        Command::Serve => {}
        Command::Token(command) => token::run(&context, command).await?,
        Command::Status(args) => status::run(&context, args).await?,
        Command::Health => return health::run(&context).await,
        Command::Peers(command) => sites::peers(&context, command).await?,
        Command::Exams(command) => exams::run(&context, command).await?,
        Command::Claim(command) => claim::run(&context, command).await?,
        Command::Hospital(command) => partners::hospital(&context, command).await?,
        Command::Policy(command) => partners::policy(&context, command).await?,
        Command::Placement(command) => placement::run(&context, command).await?,
        Command::Drain(args) => placement::drain(&context, args).await?,
        Command::Undrain(args) => placement::undrain(&context, args).await?,
        Command::Stats(args) => stats::run(&context, args).await?,
        Command::Outbox(command) => glass::outbox(&context, command).await?,
        Command::Study(command) => return study::run(&context, command).await,
        Command::Verify => return integrity::verify(&context).await,
        Command::Scrub(command) => integrity::scrub(&context, command).await?,
        Command::Repair { study } => return integrity::repair(&context, study).await,
        Command::Audit(command) => return audit::run(&context, command).await,
        Command::Events(args) => audit::events(&context, args).await?,
        Command::Spool(command) => spool::run(&context, command).await?,
        Command::Chunks(command) => sites::chunks(&context, command).await?,
        Command::Config(command) => configuration::run(&context, command)?,
        Command::Demo { nodes, slices, exit, keep } => {
            crate::demo::run(crate::demo::DemoArgs { nodes, slices, exit, keep }).await?;
        }
        Command::Version => version(&context)?,
    }
    Ok(ExitCode::Ok)
}

fn init(context: &Context, mesh: &str) -> anyhow::Result<()> {
    let config = context.config()?;
    let report = crate::founding::init(&config, mesh)?;
    let value = serde_json::json!({
        "mesh_id": report.mesh_id,
        "mesh": mesh,
        "site": report.site,
        "peer_id": report.peer_id,
        "data_dir": config.node.data_dir,
    });
    context.print(&value, |value| {
        format!(
            "site {} is ready to found the mesh {} in {}\n\
             peer id  {}\n\
             mesh id  {}\n\
             next     `maillage serve` here, then `maillage token create` for each further site\n",
            output::field(value, &["site"]),
            output::field(value, &["mesh"]),
            output::field(value, &["data_dir"]),
            output::field(value, &["peer_id"]),
            output::field(value, &["mesh_id"]),
        )
    })?;
    Ok(())
}

async fn join(context: &Context, token: String, gateway: bool) -> anyhow::Result<()> {
    let mut loaded = context.load();
    if gateway {
        loaded.be_gateway();
    }
    let config = loaded.checked()?;
    // What is on the command line is seen by every user of the machine; a pipe is not.
    let token = if token == "-" { prompt::read_stdin("the token", TOKEN_LEN_MAX).await? } else { token };
    let report = crate::joining::join(&config, token.trim()).await?;
    let value = serde_json::json!({
        "mesh": report.mesh,
        "site_id": report.site_id,
        "site": report.site,
        "peer_id": report.peer_id,
        "data_dir": config.node.data_dir,
    });
    context.print(&value, |value| {
        format!(
            "site {} joined the mesh {} as number {}\n\
             peer id  {}\n\
             next     `maillage serve`\n",
            output::field(value, &["site"]),
            output::field(value, &["mesh"]),
            output::field(value, &["site_id"]),
            output::field(value, &["peer_id"]),
        )
    })?;
    Ok(())
}

/// Longest join token, in bytes: it names a few members with their addresses.
const TOKEN_LEN_MAX: u64 = 64 << 10;

fn version(context: &Context) -> Result<(), Unwritable> {
    let value = serde_json::json!({ "name": "maillage", "version": env!("CARGO_PKG_VERSION") });
    context.print(&value, |_| format!("maillage {}\n", env!("CARGO_PKG_VERSION")))
}

/// A body without the fields that were not given.
fn body<const N: usize>(fields: [(&str, Option<serde_json::Value>); N]) -> serde_json::Value {
    let given = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    serde_json::Value::Object(given.collect())
}

/// The line that tells how old an answer may be, where that matters.
fn age_note(value: &serde_json::Value) -> String {
    /// Younger than this, an answer is as good as now to a person.
    const AGE_SHOWN_MS: u64 = 5_000;
    match (value.get("age_ms"), output::number(value, &["age_ms"])) {
        (Some(serde_json::Value::Null), _) => {
            "note: no quorum has confirmed this since the node started; it may be old\n".to_owned()
        }
        (_, Some(age)) if age >= AGE_SHOWN_MS => {
            format!("note: as of {} ago; no quorum has confirmed it since\n", output::duration_ms(Some(age)))
        }
        _ => String::new(),
    }
}

/// The failure of a person's choice.
fn declined() -> Failure {
    Failure::new(ExitCode::Refused, "not done, as you answered").with_hint("`--yes` asks nothing")
}

#[cfg(test)]
mod tests;
