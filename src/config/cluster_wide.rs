//! What all nodes must agree on, in a form small enough for the greeting between nodes.

use super::table::{Scope, Settings, TABLE};
use std::fmt;
use xxhash_rust::xxh3::xxh3_64;

/// Longer values are cut here and completed by their hash, so that a greeting fits into a datagram.
const MAX_SHOWN: usize = 100;

/// The cluster-wide settings of one node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterWide {
    /// (name without `TANDEM_`, canonical value, at most 120 bytes), in the table's order.
    pub pairs: Vec<(&'static str, String)>,
    /// A hash of all names and values: equal on nodes that agree. The same in every build.
    pub hash: u64,
}

/// One setting in which two nodes differ.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Disagreement {
    /// The setting, without `TANDEM_`.
    pub name: String,
    /// This node's value; none if this build does not know the setting.
    pub ours: Option<String>,
    /// The other node's value; none if its build does not know the setting.
    pub theirs: Option<String>,
}

impl fmt::Display for Disagreement {
    /// Reads as in "node 3 `has TANDEM_R=2, this node has 3`".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Disagreement { name, ours, theirs } = self;
        match (ours, theirs) {
            (Some(ours), Some(theirs)) => write!(f, "has TANDEM_{name}={theirs}, this node has {ours}"),
            (None, Some(theirs)) => write!(f, "has TANDEM_{name}={theirs}, which this node does not know"),
            (ours, None) => {
                write!(
                    f,
                    "does not know TANDEM_{name}, this node has {}",
                    ours.as_deref().unwrap_or("it not")
                )
            }
        }
    }
}

impl ClusterWide {
    pub(super) fn of(settings: &Settings) -> ClusterWide {
        let rows = TABLE.iter().filter(|setting| setting.scope == Scope::Cluster);
        let pairs: Vec<_> = rows.map(|row| (row.name, shortened((row.show)(settings)))).collect();
        let mut text = String::new();
        for (name, value) in &pairs {
            text.extend([name, "=", value, "\n"]);
        }
        ClusterWide { pairs, hash: xxh3_64(text.as_bytes()) }
    }

    /// In what another node differs, given its pairs; each value is compared, order is not.
    pub fn disagreements<'a>(
        &self,
        theirs: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Vec<Disagreement> {
        let mut missing: Vec<_> = self.pairs.iter().collect();
        let mut found = Vec::new();
        for (name, value) in theirs {
            let place = missing.iter().position(|(our_name, _)| *our_name == name);
            let ours = place.map(|i| missing.remove(i).1.clone());
            if ours.as_deref() != Some(value) {
                found.push(Disagreement { name: name.into(), ours, theirs: Some(value.into()) });
            }
        }
        let unsaid = missing.into_iter();
        found.extend(unsaid.map(|(name, value)| Disagreement {
            name: (*name).into(),
            ours: Some(value.clone()),
            theirs: None,
        }));
        found
    }
}

fn shortened(value: String) -> String {
    if value.len() <= MAX_SHOWN {
        return value;
    }
    let hash = xxh3_64(value.as_bytes());
    let start: String = value.chars().take(MAX_SHOWN).collect();
    format!("{start}...{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        Settings::from_pairs(pairs).unwrap()
    }

    #[test]
    fn disagreement_names_the_setting_and_both_values() {
        let three = "1@a=127.0.0.1:7100,2@b=127.0.0.1:7200,3@c=127.0.0.1:7300";
        let ours = settings(&[("NODES", three), ("SHARDS", "2")]).cluster_wide();
        let same = settings(&[("NODES", three), ("SHARDS", "2"), ("NODE", "3"), ("LOG", "warn")]);
        assert_eq!(ours, same.cluster_wide(), "what each node has of its own does not count");
        let other = settings(&[("NODES", three), ("SHARDS", "2"), ("R", "2"), ("CALL_IDLE", "300s")]);
        let other = other.cluster_wide();
        assert_ne!(ours.hash, other.hash);
        let pairs = || other.pairs.iter().map(|(name, value)| (*name, value.as_str()));
        let found = ours.disagreements(pairs());
        assert_eq!(found.len(), 1, "5m and 300s are the same: {found:?}");
        assert_eq!(found[0].to_string(), "has TANDEM_R=2, this node has 3");
        let found = ours.disagreements(pairs().filter(|(name, _)| *name != "R").chain([("NEW", "1")]));
        let said: Vec<_> = found.iter().map(Disagreement::to_string).collect();
        assert_eq!(
            said,
            ["has TANDEM_NEW=1, which this node does not know", "does not know TANDEM_R, this node has 3"]
        );
    }

    #[test]
    fn a_greeting_stays_small_and_still_tells_long_values_apart() {
        let nodes = |last_port: u16| {
            let port = |id: u16| if id == 62 { last_port } else { 7000 };
            let node = |id: u16| format!("{id}@a-rather-long-host-name-{id}=127.0.0.{id}:{}", port(id));
            (1..=62).map(node).collect::<Vec<_>>().join(",")
        };
        let (one, other) = (nodes(7100), nodes(7101));
        let of = |nodes: &str| settings(&[("NODES", nodes), ("SHARDS", "2")]).cluster_wide();
        assert_ne!(of(&one).hash, of(&other).hash);
        let bytes: usize = of(&one).pairs.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        assert!(bytes < 1000, "{bytes} bytes");
    }
}
