//! What all nodes must agree on, in a form small enough for the greeting between nodes.

use super::table::{Scope, Settings, TABLE};
use xxhash_rust::xxh3::xxh3_64;

/// Longer values are cut here and completed by their hash, so that a greeting fits into a datagram.
const MAX_SHOWN: usize = 100;

/// The cluster-wide settings of one node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterWide {
    /// (name without `TANDEM_`, canonical value, at most 120 bytes), in the table's order, then `NODES.id` for each node.
    pub pairs: Vec<(String, String)>,
    /// A hash of all names and values: equal on nodes that agree. The same in every build.
    pub hash: u64,
}

impl ClusterWide {
    pub(super) fn of(settings: &Settings) -> ClusterWide {
        let rows = TABLE.iter().filter(|setting| setting.scope == Scope::Cluster);
        let mut pairs: Vec<(String, String)> = rows
            .filter(|row| row.name != "NODES")
            .map(|row| (row.name.into(), shortened((row.show)(settings))))
            .collect();
        // Each node by itself: a node that some do not know yet is no disagreement.
        for node in settings.nodes.iter() {
            pairs.push((format!("NODES.{}", node.id.0), format!("{}={}", node.host, node.address)));
        }
        let mut text = String::new();
        for (name, value) in &pairs {
            text.extend([name.as_str(), "=", value, "\n"]);
        }
        ClusterWide { pairs, hash: xxh3_64(text.as_bytes()) }
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
    fn only_what_must_agree_counts_and_in_one_form() {
        let three = "1@a=127.0.0.1:7100,2@b=127.0.0.1:7200,3@c=127.0.0.1:7300";
        let ours = settings(&[("NODES", three), ("SHARDS", "2")]).cluster_wide();
        let same = settings(&[
            ("NODES", three),
            ("SHARDS", "2"),
            ("NODE", "3"),
            ("LOG", "warn"),
            ("CALL_IDLE", "300s"),
        ]);
        assert_eq!(
            ours,
            same.cluster_wide(),
            "5m and 300s are the same, and a node's own settings do not count"
        );
        let other = settings(&[("NODES", three), ("SHARDS", "2"), ("R", "2")]).cluster_wide();
        assert_ne!(ours.hash, other.hash);
        let differing: Vec<_> = ours.pairs.iter().zip(&other.pairs).filter(|(a, b)| a != b).collect();
        let pair = |value: &str| ("R".to_string(), value.to_string());
        assert_eq!(differing, [(&pair("3"), &pair("2"))]);
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
        assert!(bytes < 4_000, "{bytes} bytes");
    }
}
