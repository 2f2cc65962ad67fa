//! Reading the configuration, and remembering where each value came from.
//!
//! In order, later wins: built-in defaults, the file, the environment. Everything wrong is gathered
//! with its file and line, so that `config check` lists it all at once.

#![expect(clippy::disallowed_methods, reason = "read once, before there is a node whose disk could be simulated")]

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::check::{check, meaningless};
use super::settings::{SETTINGS, Setting, Shape};
use super::{Config, Role};

/// What every variable of ours starts with.
const PREFIX: &str = "MAILLAGE__";
/// What a variable ends with that names a file with the value.
const FILE_SUFFIX: &str = "_FILE";

/// Where a configuration may come from.
#[derive(Debug, Clone)]
pub(crate) struct Sources {
    /// A file that must exist.
    pub(crate) file: Option<PathBuf>,
    /// Files of which the first that exists is read when none is required.
    pub(crate) candidates: Vec<PathBuf>,
    /// The environment.
    pub(crate) environment: Vec<(OsString, OsString)>,
}

impl Sources {
    /// The process's: `file` (from `--config`), else `$MAILLAGE_CONFIG`, else `./maillage.toml`,
    /// else `/etc/maillage/maillage.toml`.
    pub(crate) fn of_process(file: Option<PathBuf>) -> Self {
        let named = || std::env::var_os("MAILLAGE_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
        Self {
            file: file.or_else(named),
            candidates: vec![PathBuf::from("maillage.toml"), PathBuf::from("/etc/maillage/maillage.toml")],
            environment: std::env::vars_os().collect(),
        }
    }
}

/// Where one value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Nobody set it.
    Default,
    /// A line of the file, counted from 1.
    File(PathBuf, usize),
    /// A variable.
    Variable(String),
    /// A file that a variable names.
    VariableFile(String, PathBuf),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => write!(f, "env {name}"),
            Self::VariableFile(name, path) => write!(f, "env {name} ({})", path.display()),
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Where; `Default` when it is in no file and no variable.
    pub(crate) origin: Origin,
    /// What.
    pub(crate) message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Default => f.write_str(&self.message),
            origin => write!(f, "{origin}: {}", self.message),
        }
    }
}

/// The configuration cannot be used; all that is wrong with it, a line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(pub(crate) Vec<Problem>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration cannot be used")?;
        for problem in &self.0 {
            write!(f, "\n{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// What was read, good or not.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    config: Config,
    /// The file that was read.
    pub(crate) file: Option<PathBuf>,
    /// One for each of [`SETTINGS`].
    origins: Vec<Origin>,
    /// In the order of the file, then of the environment, then of the settings.
    pub(crate) problems: Vec<Problem>,
}

impl Default for Loaded {
    /// What nobody set.
    fn default() -> Self {
        let origins = vec![Origin::Default; SETTINGS.len()];
        Self { config: Config::default(), file: None, origins, problems: Vec::new() }
    }
}

impl Loaded {
    /// The configuration, if nothing is wrong with it.
    ///
    /// # Errors
    /// All problems at once.
    pub(crate) fn checked(self) -> Result<Config, ConfigError> {
        if self.problems.is_empty() { Ok(self.config) } else { Err(ConfigError(self.problems)) }
    }

    /// Every setting with its value and where that is from.
    pub(crate) fn values(&self) -> impl Iterator<Item = (&'static Setting, toml::Value, &Origin)> {
        SETTINGS.iter().zip(&self.origins).map(|(setting, origin)| (setting, setting.show(&self.config), origin))
    }

    /// Where all state is.
    pub(crate) fn data_dir(&self) -> &Path {
        &self.config.node.data_dir
    }

    /// Takes the node for a gateway, whatever the sources say, and names what makes no sense then.
    pub(crate) fn be_gateway(&mut self) {
        if self.config.node.role != Role::Gateway {
            self.config.node.role = Role::Gateway;
            // That a centre has no use for [gateway] does not hold.
            let of_a_centre = |message: &str| {
                SETTINGS.iter().any(|setting| {
                    let why = meaningless(Role::Centre, setting.section, setting.key);
                    why.is_some_and(|why| message == format!("{}: {why}", setting.name()))
                })
            };
            self.problems.retain(|problem| !of_a_centre(&problem.message));
            refuse_meaningless(self);
        }
    }

    fn is_set(&self, name: &str) -> bool {
        SETTINGS.iter().zip(&self.origins).any(|(setting, origin)| setting.name() == name && *origin != Origin::Default)
    }

    fn problem(&mut self, origin: Origin, message: String) {
        self.problems.push(Problem { origin, message });
    }
}

/// Reads all sources. Problems are in the result: `config check` and `config show` want both.
pub(crate) fn load(sources: &Sources) -> Loaded {
    let mut loaded = Loaded::default();
    if let Some((path, text)) = read_file(sources, &mut loaded) {
        apply_text(&path, &text, &mut loaded);
        loaded.file = Some(path);
    }
    for (name, value) in sorted(&sources.environment) {
        apply_variable(&name, value, &mut loaded);
    }
    complete(loaded)
}

/// The configuration of a text that is in no file.
pub(super) fn of_text(text: &str) -> Loaded {
    let mut loaded = Loaded::default();
    apply_text(Path::new("(text)"), text, &mut loaded);
    complete(loaded)
}

/// Derives what follows from other values, and checks each against the others.
fn complete(mut loaded: Loaded) -> Loaded {
    derive(&mut loaded);
    // What could not be read kept its default, about which cross checks would only confuse.
    let unread: Vec<String> = loaded.problems.iter().map(|problem| problem.message.clone()).collect();
    let is_unread = |name: &str| unread.iter().any(|message| message.starts_with(&format!("{name}:")));
    let mut found = Vec::new();
    check(&loaded.config, &mut |name, message| found.push((name, message)));
    for (name, message) in found.into_iter().filter(|(name, _)| !is_unread(name)) {
        let at = SETTINGS.iter().position(|setting| setting.name() == name);
        let origin = at.and_then(|at| loaded.origins.get(at)).cloned().unwrap_or(Origin::Default);
        loaded.problem(origin, format!("{name}: {message}"));
    }
    refuse_meaningless(&mut loaded);
    loaded
}

/// Refuses what is set and says nothing on a node of this role: its operator means something by it.
fn refuse_meaningless(loaded: &mut Loaded) {
    let role = loaded.config.node.role;
    let set = SETTINGS.iter().zip(loaded.origins.clone()).filter(|(_, origin)| *origin != Origin::Default);
    for (setting, origin) in set {
        // What is written as it is anyway misleads nobody: a template may hold every setting.
        let is_default = setting.show(&loaded.config) == setting.show(&Config::default());
        if let Some(why) = meaningless(role, setting.section, setting.key).filter(|_| !is_default) {
            loaded.problem(origin, format!("{}: {why}", setting.name()));
        }
    }
}

fn read_file(sources: &Sources, loaded: &mut Loaded) -> Option<(PathBuf, String)> {
    let required = sources.file.is_some();
    for path in sources.file.iter().chain(sources.candidates.iter().filter(|_| !required)) {
        match fs::read_to_string(path) {
            Ok(text) => return Some((path.clone(), text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !required => {}
            Err(error) => {
                let message = format!("cannot read the configuration {}: {error}", path.display());
                loaded.problem(Origin::Default, message);
                return None;
            }
        }
    }
    None
}

/// Sorted, so that the same environment gives the same messages.
fn sorted(environment: &[(OsString, OsString)]) -> Vec<(String, &OsStr)> {
    let mut ours: Vec<(String, &OsStr)> = environment
        .iter()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.as_os_str()))
        .filter(|(name, _)| name.starts_with(PREFIX))
        .collect();
    ours.sort_unstable();
    ours
}

fn apply_text(path: &Path, text: &str, loaded: &mut Loaded) {
    let (table, errors) = DeTable::parse_recoverable(text);
    let origin = |span: Range<usize>| Origin::File(path.to_owned(), line_of(text, span.start));
    for error in &errors {
        loaded.problem(origin(error.span().unwrap_or(0..0)), error.message().trim_end().replace('\n', "; "));
    }
    if !errors.is_empty() {
        return;
    }
    let first = loaded.problems.len();
    for (section, value) in table.into_inner() {
        let at = origin(section.span());
        let section = section.into_inner();
        if !SETTINGS.iter().any(|setting| setting.section == section) {
            let known = known(SETTINGS.iter().map(|setting| setting.section));
            loaded.problem(at, format!("unknown section `{section}`; there are {known}"));
            continue;
        }
        match value.into_inner() {
            DeValue::Table(keys) => apply_section(&section, keys, &origin, loaded),
            _ => loaded.problem(at, format!("`{section}` is a section: write `[{section}]`")),
        }
    }
    // The parser hands keys out in alphabetical order; people read files from the top.
    loaded.problems[first..].sort_by_key(|problem| match problem.origin {
        Origin::File(_, line) => line,
        _ => 0,
    });
}

fn apply_section(section: &str, keys: DeTable<'_>, origin: &dyn Fn(Range<usize>) -> Origin, loaded: &mut Loaded) {
    for (key, value) in keys {
        let at = origin(key.span());
        let key = key.into_inner();
        let Some(index) = SETTINGS.iter().position(|setting| setting.section == section && setting.key == key) else {
            let known = known(SETTINGS.iter().filter(|setting| setting.section == section).map(|setting| setting.key));
            loaded.problem(at, format!("unknown key `{key}` in [{section}]; there are {known}"));
            continue;
        };
        let value: Spanned<DeValue<'_>> = value;
        match SETTINGS[index].put(&mut loaded.config, ValueDeserializer::from(value)) {
            Ok(()) => loaded.origins[index] = at,
            Err(error) => {
                let at = error.span().map_or(at, origin);
                loaded.problem(at, format!("{section}.{key}: {}", error.message().trim_end()));
            }
        }
    }
}

fn apply_variable(name: &str, value: &OsStr, loaded: &mut Loaded) {
    let (setting, from_file) = match setting_of(name) {
        Some(index) => (index, false),
        None => match name.strip_suffix(FILE_SUFFIX).and_then(setting_of) {
            Some(index) => (index, true),
            None => {
                let origin = Origin::Variable(name.to_owned());
                return loaded.problem(origin, "unknown setting; `maillage config template` lists them".to_owned());
            }
        },
    };
    let origin = match from_file {
        true => Origin::VariableFile(name.to_owned(), PathBuf::from(value)),
        false => Origin::Variable(name.to_owned()),
    };
    if let Origin::Variable(other) | Origin::VariableFile(other, _) = &loaded.origins[setting] {
        let message = format!("{other} sets the same value: unset one of them");
        return loaded.problem(origin, message);
    }
    let text = match from_file {
        true => fs::read_to_string(Path::new(value)).map_err(|error| format!("cannot read the file: {error}")),
        false => value.to_str().map(str::to_owned).ok_or_else(|| "is not UTF-8".to_owned()),
    };
    // A file's last line ends with a newline, which is no part of the value.
    let applied = text.and_then(|text| put_text(setting, text.trim_end_matches(['\n', '\r']), &mut loaded.config));
    match applied {
        Ok(()) => loaded.origins[setting] = origin,
        Err(message) => loaded.problem(origin, format!("{}: {message}", SETTINGS[setting].name())),
    }
}

fn setting_of(variable: &str) -> Option<usize> {
    SETTINGS.iter().position(|setting| setting.variable() == variable)
}

/// Sets a value from bare text by turning it into TOML first: one set of rules for both.
fn put_text(index: usize, text: &str, config: &mut Config) -> Result<(), String> {
    let setting = &SETTINGS[index];
    let toml = match setting.shape {
        Shape::Text => toml::Value::String(text.to_owned()).to_string(),
        Shape::List if !text.trim_start().starts_with('[') => {
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            toml::Value::Array(parts.map(|part| toml::Value::String(part.to_owned())).collect()).to_string()
        }
        Shape::Bare | Shape::List | Shape::Tables => text.trim().to_owned(),
    };
    ValueDeserializer::parse(&toml)
        .and_then(|value| setting.put(config, value))
        .map_err(|error| error.message().trim_end().replace('\n', "; "))
}

/// Defaults that depend on other values.
fn derive(loaded: &mut Loaded) {
    if !loaded.is_set("node.zone") {
        loaded.config.node.zone = loaded.config.node.name.clone();
    }
    let listen = loaded.config.mesh.listen;
    if !loaded.is_set("mesh.announce") && !listen.ip().is_unspecified() && listen.port() != 0 {
        loaded.config.mesh.announce = vec![listen];
    }
}

fn known<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<&str> = names.collect();
    names.dedup();
    names.join(", ")
}

/// The line, counted from 1, of a byte of the text.
fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests;
