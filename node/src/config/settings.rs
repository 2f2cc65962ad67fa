//! The one table of settings: name, meaning, and how each is put into and shown from [`Config`].
//!
//! Reading files, reading the environment, refusing unknown keys, `config template` and
//! `config show` all walk this table, so that none of them can forget a setting. A new setting is a
//! field of [`Config`], its default, and a line here.

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::de::ValueDeserializer;

use super::{AeTitle, Config};

/// How an environment variable's text becomes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Taken as it is.
    Text,
    /// A number or a truth value.
    Bare,
    /// Texts between commas, or a TOML array.
    List,
    /// A TOML array of inline tables.
    Tables,
}

/// One setting.
pub(crate) struct Setting {
    /// The table it is in.
    pub(crate) section: &'static str,
    /// Its key there.
    pub(crate) key: &'static str,
    /// How it is read from the environment.
    pub(crate) shape: Shape,
    /// What it means: lines for the template.
    doc: &'static str,
    /// What the template shows when the default depends on the machine.
    example: Option<&'static str>,
    put: for<'a> fn(&mut Config, ValueDeserializer<'a>) -> Result<(), toml::de::Error>,
    show: fn(&Config) -> Result<toml::Value, toml::ser::Error>,
}

impl Setting {
    /// The environment variable that sets it.
    pub(crate) fn variable(&self) -> String {
        format!("MAILLAGE__{}__{}", self.section.to_uppercase(), self.key.to_uppercase())
    }

    /// `section.key`
    pub(crate) fn name(&self) -> String {
        format!("{}.{}", self.section, self.key)
    }

    /// Sets it.
    ///
    /// # Errors
    /// A value of another type or out of its type's range, with its place in the text it came from.
    pub(crate) fn put(&self, config: &mut Config, value: ValueDeserializer<'_>) -> Result<(), toml::de::Error> {
        (self.put)(config, value)
    }

    /// Its value, as TOML.
    pub(crate) fn show(&self, config: &Config) -> toml::Value {
        // Only numbers beyond TOML's range fail, and `check` refuses those.
        (self.show)(config).unwrap_or_else(|error| toml::Value::String(error.to_string()))
    }
}

impl std::fmt::Debug for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

fn put<T: DeserializeOwned>(slot: &mut T, value: ValueDeserializer<'_>) -> Result<(), toml::de::Error> {
    *slot = T::deserialize(value)?;
    Ok(())
}

fn show<T: Serialize + ?Sized>(slot: &T) -> Result<toml::Value, toml::ser::Error> {
    toml::Value::try_from(slot)
}

macro_rules! setting {
    ($section:ident.$key:ident, $shape:ident, $example:expr, $doc:expr) => {
        Setting {
            section: stringify!($section),
            key: stringify!($key),
            shape: Shape::$shape,
            doc: $doc,
            example: $example,
            put: |config, value| put(&mut config.$section.$key, value),
            show: |config| show(&config.$section.$key),
        }
    };
}

/// Every setting, in the order of the template.
#[rustfmt::skip] // A table reads best with a row a setting.
pub(crate) static SETTINGS: &[Setting] = &[
    setting!(node.name, Text, Some("\"rennes\""),
        "The site's name, as people see it. Default: this machine's host name."),
    setting!(node.zone, Text, Some("\"rennes\""),
        "What fails together (a building, a power feed): copies go to distinct zones. Default: the name."),
    setting!(node.data_dir, Text, None,
        "Where all state is. Made by `maillage init` or `maillage join`; one process at a time."),
    setting!(node.weight, Bare, None,
        "This site's share of the copies beside other sites': 200 keeps twice as many as 100."),
    setting!(node.role, Text, None,
        "\"centre\", or \"gateway\" for a hospital's: it spools images, sends them, and is given reports."),

    setting!(mesh.listen, Text, None,
        "The one UDP address for everything between sites (QUIC). Open it in the firewall."),
    setting!(mesh.announce, List, None,
        "Where the other sites reach this one, if that is not `listen` (behind NAT, say).\n\
         Default: `listen` if it is one address, else the addresses of the interfaces."),
    setting!(mesh.lan_discovery, Bare, None,
        "Also find members on the local network by multicast DNS."),
    setting!(mesh.congestion, Text, None,
        "By what images are sent to other sites: \"auto\" (the measured line; cubic on local networks),\n\
         \"cubic\" or \"wan\" (the measured line everywhere)."),

    setting!(site.territory, Text, None,
        "Where its readers are: the hospitals' group whose exams they read first. Empty: none.\n\
         The same words as in `maillage hospital set`."),
    setting!(site.department, Text, None,
        "The department: its exams come next."),
    setting!(site.region, Text, None,
        "The region: its exams come after those. What is wider still comes last."),

    setting!(raft.heartbeat_ms, Bare, None,
        "Between two heartbeats of the leader. The same on every site."),
    setting!(raft.election_min_ms, Bare, None,
        "Least silence of the leader before an election: at least 3 heartbeats, and best 10 round trips."),
    setting!(raft.election_max_ms, Bare, None,
        "Greatest such silence. The mesh is without a leader for about twice this when one is lost."),
    setting!(raft.snapshot_every, Bare, None,
        "Log entries between two snapshots."),
    setting!(raft.keep_log, Bare, None,
        "Log entries kept behind a snapshot, for sites that were away for a short while."),
    setting!(raft.session_ttl_s, Bare, None,
        "Silence of a site after which the exams it claimed are free again."),
    setting!(raft.format_max, Bare, None,
        "Highest format of commands that this node says it understands, and uses. The mesh's format rises\n\
         when every site is ready; hold it back with this until an upgrade needs no way back."),
    setting!(raft.clock_offset_max_ms, Bare, None,
        "A leader whose clock is further than this from the median of the others' hands over."),

    setting!(http.listen, Text, None,
        "The worklist page and the HTTP API. It has no users yet: whoever reaches it may use it."),
    setting!(http.allowed_hosts, List, None,
        "Further host names by which browsers address it, without port. Always allowed: localhost,\n\
         127.0.0.1, [::1] and the listening address. Others are refused, against DNS rebinding."),
    setting!(http.trusted_network, Bare, None,
        "Required to listen beyond loopback: says that everybody who can reach it is trusted."),

    setting!(dicom.listen, Text, None,
        "The DICOM service that receives images (C-STORE) and answers C-ECHO."),
    setting!(dicom.ae_title, Text, None,
        "This node's AE title, at most 16 characters."),
    setting!(dicom.check_called, Bare, None,
        "Refuse senders that call another AE title."),
    setting!(dicom.callers, Tables, None,
        "Who may send, by AE title and, if given, from which address or range. Nobody by default.\n\
         callers = [{ ae_title = \"CT1\", address = \"10.1.0.0/16\" }, { ae_title = \"MR1\" }]"),
    setting!(dicom.peers, Tables, None,
        "Whom this node calls, by AE title: those that may be sent reports. Nobody by default.\n\
         peers = [{ ae_title = \"RIS\", host = \"10.1.0.7\", port = 104 }]"),
    setting!(dicom.any_caller, Bare, None,
        "Let anybody send. For tests only."),
    setting!(dicom.max_associations, Bare, None,
        "Associations open at once; further ones are rejected until one ends."),
    setting!(dicom.max_instance_mib, Bare, None,
        "Largest instance that is taken."),
    setting!(dicom.quiet_seconds, Bare, None,
        "A study with no new instance for so long is complete: it goes to the waiting room."),

    setting!(ingest.rate_kib_s, Bare, None,
        "What each sender may send a second: a calling AE title, or an address that uses STOW-RS. Who is\n\
         faster waits for its answers, and is refused while it is more than 16 s ahead. 0: no limit."),
    setting!(ingest.day_mib, Bare, None,
        "What each sender may send a UTC day that is new here, counted since the node started; then it is\n\
         refused. 0: no limit."),
    setting!(ingest.senders, Tables, None,
        "Senders with limits of their own, by AE title (C-STORE) or address (STOW-RS); the first that fits.\n\
         senders = [{ ae_title = \"CT1\", rate_kib_s = 20000 }, { address = \"10.1.0.7\", day_mib = 50000 }]"),

    setting!(storage.reserve_mib, Bare, None,
        "With less free space than this, images are refused; the queue goes on."),
    setting!(storage.copies, Bare, None,
        "Copies of every image in the mesh, 1 to 7. Used by `maillage init` only, then set mesh-wide."),
    setting!(storage.placement_grace_s, Bare, None,
        "Time that a lost site has to come back before its copies are made elsewhere."),
    setting!(storage.surplus_grace_s, Bare, None,
        "Under a layout (`maillage placement`), time that a copy beyond those wanted stays: one that a reader\n\
         fetched, or that was made while its site was away."),
    setting!(storage.wipe_s, Bare, None,
        "After a purge, what this disk still has of the destroyed keys goes in four steps of so many seconds each;\n\
         this begins each ten of them at most, and writes the whole queue once."),
    setting!(storage.copy_mb_s_max, Bare, None,
        "What this site takes in for copies and repairs, in megabytes a second, over a line that readers share:\n\
         what somebody waits for is never slowed. 0: no limit, which a local network needs none of."),
    setting!(storage.commitment_timeout_s, Bare, None,
        "A sender that asks for storage commitment is told within this time; what is not on two zones by\n\
         then has failed, and the sender keeps it."),
    setting!(storage.scrub_mb_s, Bare, None,
        "All that is stored is read and compared once a week, behind everything else, at most so many MB a\n\
         second: damage is found before the images are needed. 0: never."),
    setting!(storage.prefetch_mib_max, Bare, None,
        "Room for images of exams that this site's readers are likely to be given next, and of their priors, beyond\n\
         the copies that belong here. 0 where nobody reads."),

    setting!(gateway.home, Text, None,
        "Of a hospital's gateway: the site that images are sent to while it answers. Empty: any."),
    setting!(gateway.centres, List, None,
        "The only sites that images are sent to, by name: while none of them answers, images wait here. What these\n\
         sites receive lies where their contracts say (`maillage placement set contract`). Empty: any."),
    setting!(gateway.spool_bytes_max, Bare, None,
        "The most bytes that wait here. Beyond it, senders are told to try again later."),
    setting!(gateway.keep_s, Bare, None,
        "For how long images are kept here after two zones of the mesh have them, for storage commitments that\n\
         are asked for late. The oldest go earlier when the spool is nearly full."),

    setting!(audit.syslog, Text, None,
        "Send the whole mesh's audit trail there, as DICOM audit messages: \"udp://HOST:PORT\" or\n\
         \"tcp://HOST:PORT\". One site that does is enough. It names patients by their identifiers."),

    setting!(log.format, Text, None,
        "\"text\" for people, \"json\" for machines. Logs go to standard error."),
    setting!(log.filter, Text, None,
        "What is logged: error, warn, info, debug or trace, also by module: \"info,maillage_transport=debug\"."),
];

/// A TOML file that changes nothing and says everything.
pub(crate) fn template() -> String {
    let defaults = Config::default();
    let mut text = String::from(
        "# Configuration of a Maillage node. Every value shown is the default; uncomment to change it.\n\
         # The environment overrides it: MAILLAGE__SECTION__KEY with the value, or\n\
         # MAILLAGE__SECTION__KEY_FILE with a file that holds it. Unknown keys are refused.\n\
         # `maillage config check` finds mistakes; `maillage config show` says where each value is from.\n",
    );
    let mut section = "";
    for setting in SETTINGS {
        if setting.section != section {
            section = setting.section;
            text.push_str(&format!("\n[{section}]\n"));
        }
        for line in setting.doc.lines() {
            text.push_str(&format!("# {line}\n"));
        }
        let value = setting.example.map_or_else(|| setting.show(&defaults).to_string(), str::to_owned);
        text.push_str(&format!("#{} = {value}\n", setting.key));
    }
    text
}

/// The machine's host name, made fit for a site's name: its first label in lower case, what is
/// neither letter, digit nor hyphen replaced; `node` when nothing is left.
pub(super) fn host_name() -> String {
    cleaned(&rustix::system::uname().nodename().to_string_lossy())
}

pub(super) fn default_ae_title() -> AeTitle {
    AeTitle::parse("MAILLAGE").expect("the default title is a title")
}

fn cleaned(host_name: &str) -> String {
    let label = host_name.split('.').next().unwrap_or_default();
    let fit: String = label
        .chars()
        .take(super::check::NAME_LEN_MAX)
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .collect();
    let fit = fit.trim_matches('-');
    if fit.is_empty() { "node".to_owned() } else { fit.to_owned() }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn a_host_name_becomes_a_site_name() {
        for (host, name) in
            [("Rennes-1.example.org", "rennes-1"), ("salle_3", "salle-3"), ("", "node"), ("---", "node"), ("é", "node")]
        {
            assert_eq!(cleaned(host), name, "{host:?}");
        }
    }

    #[test]
    fn every_section_and_key_is_named_once() {
        let mut names: Vec<String> = SETTINGS.iter().map(Setting::name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn the_template_is_stable() {
        let start: String = template().lines().take(22).map(|line| format!("{line}\n")).collect();
        expect![[r##"
            # Configuration of a Maillage node. Every value shown is the default; uncomment to change it.
            # The environment overrides it: MAILLAGE__SECTION__KEY with the value, or
            # MAILLAGE__SECTION__KEY_FILE with a file that holds it. Unknown keys are refused.
            # `maillage config check` finds mistakes; `maillage config show` says where each value is from.

            [node]
            # The site's name, as people see it. Default: this machine's host name.
            #name = "rennes"
            # What fails together (a building, a power feed): copies go to distinct zones. Default: the name.
            #zone = "rennes"
            # Where all state is. Made by `maillage init` or `maillage join`; one process at a time.
            #data_dir = "/var/lib/maillage"
            # This site's share of the copies beside other sites': 200 keeps twice as many as 100.
            #weight = 100
            # "centre", or "gateway" for a hospital's: it spools images, sends them, and is given reports.
            #role = "centre"

            [mesh]
            # The one UDP address for everything between sites (QUIC). Open it in the firewall.
            #listen = "0.0.0.0:7400"
            # Where the other sites reach this one, if that is not `listen` (behind NAT, say).
            # Default: `listen` if it is one address, else the addresses of the interfaces.
        "##]]
        .assert_eq(&start);
    }
}
