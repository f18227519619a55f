//! From flags and environment to checked settings. Every problem is found and named, not only the first.

use super::media;
use super::table::{Scope, Setting, Settings, TABLE};
use crate::types::NodeId;
use crate::wire::seal::{ClusterKey, MAX_KEY_BYTES};
use std::fmt;
use std::io::Read;
use std::net::IpAddr;
use std::path::Path;

/// `TANDEM_*` variables that are no settings: they steer tests, benches and the simulator.
const NOT_SETTINGS: [&str; 2] = ["TANDEM_SIM_", "TANDEM_TEST_"];

/// Where a value came from.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// Nobody said anything.
    Default,
    /// An environment variable.
    Env,
    /// A flag; it wins over the environment.
    Flag,
}

impl Source {
    /// `default`, `env` or `flag`.
    pub const fn name(self) -> &'static str {
        match self {
            Source::Default => "default",
            Source::Env => "env",
            Source::Flag => "flag",
        }
    }
}

/// A setting's value and where it came from.
pub struct Value {
    /// The row of the table.
    pub setting: &'static Setting,
    /// As it was written.
    pub given: String,
    /// Who said so.
    pub source: Source,
}

/// One thing wrong with the settings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SettingError(String);

impl fmt::Display for SettingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Everything wrong with the settings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadSettings(pub Vec<SettingError>);

impl fmt::Display for BadSettings {
    /// One line, problems separated by " | ".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if i == 0 { "" } else { " | " })?;
        }
        Ok(())
    }
}

impl std::error::Error for BadSettings {}

/// What [`resolve`] found.
pub struct Resolved {
    /// Every setting in the table's order.
    pub values: Vec<Value>,
    /// The settings, or all that is wrong with them.
    pub settings: Result<Settings, BadSettings>,
}

impl Resolved {
    /// The effective value of a row in its canonical form; as it was given if the settings are bad.
    pub fn effective(&self, value: &Value) -> String {
        match &self.settings {
            Ok(settings) => (value.setting.show)(settings),
            Err(_) if value.setting.scope == Scope::Secret && !value.given.is_empty() => "(secret)".into(),
            Err(_) => value.given.clone(),
        }
    }

    /// The environment that gives another `tandem` process the same settings: what was not left at its default.
    pub fn environment(&self) -> Vec<(String, String)> {
        let said = self.values.iter().filter(|value| value.source != Source::Default);
        said.map(|value| (value.setting.variable(), value.given.clone())).collect()
    }
}

/// As [`resolve`], with the environment of this process.
pub fn resolve_from_environment(flags: &[(String, String)]) -> Resolved {
    let text = |os: std::ffi::OsString| os.to_string_lossy().into_owned();
    resolve(flags, std::env::vars_os().map(|(name, value)| (text(name), text(value))))
}

/// Reads `flags` ((name without `TANDEM_`, value)) and `environment` ((variable, value), of which those that
/// begin with `TANDEM_` are looked at). Flags win. An empty variable counts as one that is not there. The file
/// named by `CLUSTER_KEY_FILE` is read.
pub fn resolve(
    flags: &[(String, String)],
    environment: impl IntoIterator<Item = (String, String)>,
) -> Resolved {
    let mut errors = Vec::new();
    let environment: Vec<_> =
        environment.into_iter().filter(|(name, _)| name.starts_with("TANDEM_")).collect();
    for (variable, _) in &environment {
        let known = TABLE.iter().any(|setting| setting.variable() == *variable);
        if !known && !NOT_SETTINGS.iter().any(|prefix| variable.starts_with(prefix)) {
            errors.push(SettingError(unknown(variable)));
        }
    }
    for (name, _) in flags {
        if !TABLE.iter().any(|setting| setting.name == *name) {
            errors.push(SettingError(unknown(&format!("TANDEM_{name}"))));
        }
    }

    let mut settings = Settings::defaults();
    let mut values = Vec::new();
    for setting in TABLE {
        let value = value_of(setting, flags, &environment);
        if value.source != Source::Default
            && let Err(why) = (setting.set)(&mut settings, &value.given)
        {
            errors.push(refused(&value, &why));
        }
        values.push(value);
    }
    if errors.is_empty() {
        check_together(&mut settings, &values, &mut errors);
    }
    let settings = if errors.is_empty() { Ok(settings) } else { Err(BadSettings(errors)) };
    Resolved { values, settings }
}

fn value_of(setting: &'static Setting, flags: &[(String, String)], env: &[(String, String)]) -> Value {
    let flag = flags.iter().rev().find(|(name, _)| name == setting.name).map(|(_, value)| value);
    let variable = setting.variable();
    let env = env.iter().find(|(name, value)| *name == variable && !value.is_empty()).map(|(_, value)| value);
    let (given, source) = match (flag, env) {
        (Some(flag), _) => (flag.as_str(), Source::Flag),
        (None, Some(env)) => (env.as_str(), Source::Env),
        (None, None) => (setting.default, Source::Default),
    };
    Value { setting, given: given.into(), source }
}

fn refused(value: &Value, why: &str) -> SettingError {
    let Value { setting, given, source } = value;
    let given = if setting.scope == Scope::Secret { "(secret)" } else { given };
    let said = match source {
        Source::Default => " (default)".into(),
        Source::Env => String::new(),
        Source::Flag => format!(" (--{})", setting.flag()),
    };
    SettingError(format!("TANDEM_{}={given}{said}: {why}; accepted: {}", setting.name, setting.accepts))
}

fn unknown(variable: &str) -> String {
    let nearest = TABLE.iter().map(Setting::variable).min_by_key(|known| distance(variable, known));
    let nearest = nearest.unwrap_or_default();
    format!("{variable} is no setting; the nearest one is {nearest} (`tandem config` lists them all)")
}

/// How many letters have to be put in, taken out or changed to turn one name into another (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

/// A witness, and a node that holds calls on the same host, where there is more than one host: the death of that host
/// would take two votes.
fn witness_beside_a_holder(settings: &Settings) -> Option<(NodeId, NodeId)> {
    let host = |id: NodeId| settings.nodes.get(id).map(|node| node.host.as_str());
    let holders = || settings.nodes.iter().filter(|n| !settings.witness.contains(&n.id));
    settings.witness.iter().find_map(|witness| {
        let beside = holders().find(|n| Some(n.host.as_str()) == host(*witness))?;
        let several = settings.nodes.iter().any(|n| n.host != beside.host);
        several.then_some((*witness, beside.id))
    })
}

/// What no row can check alone; also puts the values that depend on others in place.
fn check_together(settings: &mut Settings, values: &[Value], errors: &mut Vec<SettingError>) {
    let mut refuse = |name: &str, why: &str| {
        let value = values.iter().find(|value| value.setting.name == name).expect("a row of the table");
        errors.push(refused(value, why));
    };
    let lowest = settings.nodes.iter().next().expect("at least one node").id;
    if settings.nodes.get(settings.node).is_none() {
        refuse("NODE", "not in TANDEM_NODES");
    }
    if settings.owner == NodeId(0) {
        settings.owner = lowest;
    } else if settings.nodes.get(settings.owner).is_none() {
        refuse("OWNER", "not in TANDEM_NODES");
    }
    if let Some(stranger) = settings.witness.iter().find(|id| settings.nodes.get(**id).is_none()) {
        refuse("WITNESS", &format!("node {} is not in TANDEM_NODES", stranger.0));
    } else if settings.witness.contains(&settings.owner) {
        refuse(
            "WITNESS",
            &format!("node {} is to hold the service addresses (TANDEM_OWNER)", settings.owner.0),
        );
    }
    if settings.voters.is_empty() {
        settings.voters = voters(settings);
    } else if let Some(stranger) = settings.voters.iter().find(|id| settings.nodes.get(**id).is_none()) {
        refuse("VOTERS", &format!("node {} is not in TANDEM_NODES", stranger.0));
    } else if settings.voters.len() == 2 || settings.voters.len() > 5 {
        refuse("VOTERS", "two voters stop when one of them does, and more than five gain nothing");
    } else if let Some(idle) = settings.witness.iter().find(|id| !settings.voters.contains(id)) {
        refuse(
            "VOTERS",
            &format!("node {} is a witness (TANDEM_WITNESS), which does nothing but vote", idle.0),
        );
    }
    if let Some((witness, other)) = witness_beside_a_holder(settings) {
        let why = format!(
            "node {} shares a host with node {}, and dies with it: a witness is a third machine",
            witness.0, other.0
        );
        refuse("WITNESS", &why);
    }
    if settings.lease.0 < settings.beat.0.saturating_mul(5) {
        refuse("LEASE", "less than five times TANDEM_BEAT: every late beat would end it");
    }
    if settings.dead_after.0 <= settings.lease.0 + settings.lease.0 / 50 {
        refuse("DEAD_AFTER", "not more than TANDEM_LEASE: the lease must have run out by then");
    }
    if settings.evict_after <= settings.dead_after {
        refuse("EVICT_AFTER", "not more than TANDEM_DEAD_AFTER");
    }
    if settings.commit > settings.r {
        refuse("COMMIT", &format!("more than TANDEM_R, which is {}", settings.r));
    }
    settings.r =
        settings.r.min(settings.nodes.count() - settings.witness.len().min(settings.nodes.count() - 1));
    settings.commit = if settings.commit == 0 { settings.r / 2 + 1 } else { settings.commit.min(settings.r) };
    if settings.suspect_after.0 < settings.beat.0.saturating_mul(2) {
        refuse("SUSPECT_AFTER", "less than twice TANDEM_BEAT: every late beat would look like a death");
    }
    if let Some(why) = port_clash(settings) {
        refuse("NODES", &why);
    }
    if let Err((name, why)) = media::settle(settings) {
        refuse(name, &why);
    }
    if (1..90_000_000_000).contains(&settings.session_expires.0) {
        refuse("SESSION_EXPIRES", "less than the 90s that RFC 4028 allows");
    }
    if settings.cluster_key.is_some() && settings.cluster_key_file.is_some() {
        refuse("CLUSTER_KEY_FILE", "TANDEM_CLUSTER_KEY is set too: which one holds");
    } else if let Some(file) = &settings.cluster_key_file {
        match read_key(file) {
            Ok(key) => settings.cluster_key = Some(key),
            Err(why) => refuse("CLUSTER_KEY_FILE", &why),
        }
    }
    let outside = settings.nodes.iter().find(|node| !is_loopback(node.address.ip()));
    if let (None, Some(node), None) = (&settings.cluster_key, outside, &settings.cluster_key_file) {
        errors.push(SettingError(format!(
            "TANDEM_CLUSTER_KEY is not set, and node {} is at {}, which is not loopback: nodes talk over a network \
             only under a key; make one with `openssl rand -hex 32` and give the same TANDEM_CLUSTER_KEY or \
             TANDEM_CLUSTER_KEY_FILE to every node",
            node.id.0, node.address
        )));
    }
}

/// The voters if nobody named any. Two would stop when one does, so of two nodes one votes alone.
fn voters(settings: &Settings) -> Vec<NodeId> {
    let nodes: Vec<_> = settings.nodes.iter().collect();
    if nodes.len() < 3 {
        return nodes.iter().take(1).map(|node| node.id).collect();
    }
    // Witnesses vote before all others: it is what they are there for.
    let mut voters: Vec<NodeId> = settings.witness.iter().copied().take(1).collect();
    let mut hosts: Vec<&str> =
        voters.iter().filter_map(|id| Some(settings.nodes.get(*id)?.host.as_str())).collect();
    for new_hosts in [true, false] {
        for node in &nodes {
            let new = !hosts.contains(&node.host.as_str());
            if voters.len() < 3 && !voters.contains(&node.id) && new == new_hosts {
                voters.push(node.id);
                hosts.push(&node.host);
            }
        }
    }
    voters.sort_unstable();
    voters
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// Each node needs its port and one more a shard, which nobody else on that address may have.
fn port_clash(settings: &Settings) -> Option<String> {
    let mut taken: Vec<(IpAddr, u32, u32, String)> = Vec::new();
    let nodes = settings.nodes.iter();
    let ranges = nodes.map(|node| {
        let first = u32::from(node.address.port());
        (node.address.ip(), first, first + u32::from(settings.shards), format!("node {}", node.id.0))
    });
    let services = settings.service.iter();
    let services =
        services.map(|s| (s.ip(), u32::from(s.port()), u32::from(s.port()), format!("service {s}")));
    for (ip, first, last, who) in ranges.chain(services) {
        if last > 65_535 {
            return Some(format!(
                "{who} needs ports {first} to {last}, one a shard and one more, and 65535 is the last"
            ));
        }
        if let Some((_, _, _, other)) = taken.iter().find(|t| t.0 == ip && t.1 <= last && first <= t.2) {
            return Some(format!("ports {first} to {last} of {who} at {ip} clash with those of {other}"));
        }
        taken.push((ip, first, last, who));
    }
    None
}

/// The key in a file: hexadecimal digits if there is nothing else in it, else its bytes as they are.
fn read_key(file: &Path) -> Result<ClusterKey, String> {
    let mut bytes = Vec::new();
    std::fs::File::open(file)
        .and_then(|f| f.take(2 * MAX_KEY_BYTES as u64 + 2).read_to_end(&mut bytes))
        .map_err(|e| format!("cannot be read: {e}"))?;
    let text = std::str::from_utf8(&bytes).ok().map(str::trim);
    let hex = text.filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()));
    hex.map_or_else(|| ClusterKey::from_bytes(&bytes), ClusterKey::from_hex).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Show;

    const THREE: &str = "1@a=127.0.0.1:7100,2@b=127.0.0.1:7200,3@c=127.0.0.1:7300";

    fn with_env(env: &[(&str, &str)]) -> Resolved {
        resolve(&[], env.iter().map(|(n, v)| (n.to_string(), v.to_string())))
    }

    /// All that is wrong, as one text.
    fn wrong(pairs: &[(&str, &str)]) -> String {
        Settings::from_pairs(pairs).map_or_else(|bad| bad.to_string(), |_| String::from("nothing"))
    }

    #[test]
    fn defaults_hold_and_every_default_and_canonical_form_reads_back() {
        let resolved = with_env(&[]);
        let settings = resolved.settings.as_ref().unwrap();
        assert_eq!((settings.r, settings.commit, settings.owner), (1, 1, NodeId(1)), "capped at one node");
        for value in resolved.values.iter().filter(|value| value.setting.scope != Scope::Secret) {
            let shown = resolved.effective(value);
            let mut again = settings.clone();
            (value.setting.set)(&mut again, &shown).unwrap();
            assert_eq!((value.setting.show)(&again), shown, "{}", value.setting.name);
        }
    }

    #[test]
    fn flags_win_over_variables_and_empty_variables_are_none() {
        let env = [("TANDEM_SLOTS", "64"), ("TANDEM_MTU", "9000"), ("TANDEM_R", ""), ("PATH", "/bin")];
        let env = env.map(|(n, v)| (n.to_string(), v.to_string()));
        let resolved = resolve(&[("SLOTS".into(), "128".into())], env);
        let source = |name| resolved.values.iter().find(|v| v.setting.name == name).unwrap().source;
        assert_eq!(
            (source("SLOTS"), source("MTU"), source("R")),
            (Source::Flag, Source::Env, Source::Default)
        );
        let settings = resolved.settings.as_ref().unwrap();
        assert_eq!((settings.slots, settings.mtu), (128, 9000));
        let pairs = [("TANDEM_SLOTS", "128"), ("TANDEM_MTU", "9000")];
        assert_eq!(resolved.environment(), pairs.map(|(n, v)| (n.to_string(), v.to_string())));
    }

    #[test]
    fn errors_name_the_variable_the_value_and_what_is_accepted() {
        let bad = with_env(&[("TANDEM_R", "9"), ("TANDEM_BEAT", "1")]).settings.unwrap_err().to_string();
        assert!(bad.contains("TANDEM_R=9: not from 1 to 7; accepted: 1 to 7"), "{bad}");
        assert!(bad.contains(" | TANDEM_BEAT=1: its unit is none of"), "every problem is named: {bad}");
        assert!(wrong(&[("R", "x")]).starts_with("TANDEM_R=x (--r): not a whole number"));
        let bad = with_env(&[("TANDEM_SLOT", "1")]).settings.unwrap_err().to_string();
        assert!(bad.contains("TANDEM_SLOT is no setting; the nearest one is TANDEM_SLOTS"), "{bad}");
        assert!(with_env(&[("TANDEM_SIM_SEED", "1")]).settings.is_ok());
    }

    #[test]
    fn what_depends_on_each_other_is_checked() {
        let three = ("NODES", THREE);
        let settings =
            Settings::from_pairs(&[three, ("OWNER", "2"), ("NODE", "3"), ("SHARDS", "4")]).unwrap();
        assert_eq!((settings.r, settings.commit, settings.owner), (3, 2, NodeId(2)));
        assert_eq!(settings.me().address.port(), 7300);
        assert_eq!(settings.shard_address(NodeId(2), 3).unwrap().port(), 7204);
        assert_eq!(settings.peers().count(), 2);
        assert_eq!(settings.max_datagram(), 1472);
        for (pair, part) in [
            (("NODE", "4"), "TANDEM_NODE=4 (--node): not in TANDEM_NODES"),
            (("OWNER", "9"), "TANDEM_OWNER=9"),
            (("COMMIT", "4"), "more than TANDEM_R, which is 3"),
            (("SUSPECT_AFTER", "1ms"), "less than twice TANDEM_BEAT"),
            (("SHARDS", "100"), "clash with those of node 1"),
            (("SERVICE", "127.0.0.1:7201"), "clash with those of node 2"),
            (("MULTICAST_GROUP", "10.0.0.0:1"), "not a multicast address"),
            (("LOG", "tandem=loud"), "TANDEM_LOG=tandem=loud"),
            (("VOTERS", "1,2"), "two voters stop when one of them does"),
            (("VOTERS", "1,2,9"), "node 9 is not in TANDEM_NODES"),
            (("WITNESS", "9"), "node 9 is not in TANDEM_NODES"),
            (("WITNESS", "1"), "node 1 is to hold the service addresses"),
        ] {
            let said = wrong(&[three, pair]);
            assert!(said.contains(part), "{pair:?}: {said}");
        }
        assert!(wrong(&[("NODES", "1@a=127.0.0.1:65535")]).contains("65535 is the last"));
    }

    #[test]
    fn a_witness_is_a_third_machine_and_votes() {
        let nodes = "1@a=127.0.0.1:7100,2@b=127.0.0.1:7200,3@a=127.0.0.1:7300,4@c=127.0.0.1:7400";
        let with = |pairs: &[(&str, &str)]| {
            let pairs: Vec<_> = [("NODES", nodes)].iter().chain(pairs).copied().collect();
            Settings::from_pairs(&pairs).map(|s| s.voters).map_err(|_| wrong(&pairs))
        };
        let said = with(&[("WITNESS", "3")]).unwrap_err();
        assert!(said.contains("node 3 shares a host with node 1, and dies with it"), "{said}");
        let said = with(&[("WITNESS", "4"), ("VOTERS", "1,2,3")]).unwrap_err();
        assert!(said.contains("node 4 is a witness (TANDEM_WITNESS), which does nothing but vote"), "{said}");
        assert_eq!(with(&[("WITNESS", "4"), ("VOTERS", "1,2,4")]).unwrap(), [1, 2, 4].map(NodeId));
        assert!(with(&[("WITNESS", "4")]).unwrap().contains(&NodeId(4)));
        // On one host, as in a trial, there is nothing to spread.
        let one = "1@a=127.0.0.1:7100,2@a=127.0.0.1:7200,3@a=127.0.0.1:7300";
        assert!(Settings::from_pairs(&[("NODES", one), ("WITNESS", "3")]).is_ok());
    }

    #[test]
    fn no_key_no_network() {
        let far = ("NODES", "1@a=127.0.0.1:7100,2@b=10.0.0.2:7100");
        let said = wrong(&[far]);
        assert!(
            said.contains("node 2 is at 10.0.0.2:7100") && said.contains("openssl rand -hex 32"),
            "{said}"
        );
        let key = ("CLUSTER_KEY", "000102030405060708090a0b0c0d0e0f");
        let settings = Settings::from_pairs(&[far, key]).unwrap();
        assert_ne!(settings.hash_seed(), Settings::from_pairs(&[]).unwrap().hash_seed());
        let said = wrong(&[("CLUSTER_KEY", "5ec3e7")]);
        assert!(said.contains("TANDEM_CLUSTER_KEY=(secret)") && !said.contains("5ec3e7"), "{said}");
    }

    #[test]
    fn keys_are_read_from_files() {
        let dir = std::env::temp_dir().join(format!("tandem-key-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.join(name);
            std::fs::write(&path, bytes).unwrap();
            path.show()
        };
        let seed = |pairs: &[(&str, &str)]| Settings::from_pairs(pairs).unwrap().hash_seed();
        let hex = file("hex", b"000102030405060708090a0b0c0d0e0f\n");
        let raw = file("raw", &(0..16).collect::<Vec<u8>>());
        let (short, long) = (file("short", b"xyz"), file("long", &[b'x'; 10_000]));
        let given = ("CLUSTER_KEY", "000102030405060708090A0B0C0D0E0F");
        assert_eq!(seed(&[("CLUSTER_KEY_FILE", &hex)]), seed(&[given]));
        assert_eq!(seed(&[("CLUSTER_KEY_FILE", &raw)]), seed(&[given]));
        assert!(wrong(&[("CLUSTER_KEY_FILE", &hex), given]).contains("which one holds"));
        assert!(wrong(&[("CLUSTER_KEY_FILE", &short)]).contains("at least 16 bytes"));
        assert!(wrong(&[("CLUSTER_KEY_FILE", &long)]).contains("at most 4096 bytes"));
        assert!(wrong(&[("CLUSTER_KEY_FILE", "/no/such")]).contains("cannot be read"));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
