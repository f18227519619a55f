//! Looks at the nodes of a cluster beside the load, so that the load never waits for an answer.

use crate::cli::local::LocalCluster;
use crate::cli::status::{self, Picture};
use crate::types::{Nanos, NodeId};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often the nodes are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long one may take to answer.
const PATIENCE: Nanos = Nanos::from_millis(200);

/// What was seen of all lives of all nodes.
#[derive(Default)]
pub(super) struct Seen {
    /// The newest look.
    pub(super) picture: Option<Picture>,
    /// How many looks there were.
    pub(super) looks: u64,
    /// The newest answer of each node that answered the newest look.
    pub(super) answers: Vec<(NodeId, Value)>,
    /// The last answer of each life, and the CPU time it had used when it was first seen, in us.
    lives: BTreeMap<(u16, u64), (Value, u64)>,
}

impl Seen {
    fn take(&mut self, picture: Picture, answers: Vec<Value>) {
        // Processes that were there at the first look had their time before the load too.
        let first = self.looks == 0;
        self.looks += 1;
        self.picture = Some(picture);
        self.answers.clear();
        for answer in answers {
            let Some(node) = answer["node"].as_u64().and_then(|id| u16::try_from(id).ok()) else { continue };
            self.answers.push((NodeId(node), answer.clone()));
            let before = if first { cpu(&answer) } else { 0 };
            let life = (node, answer["boot"].as_u64().unwrap_or(0));
            self.lives.entry(life).or_insert((Value::Null, before)).0 = answer;
        }
    }

    /// The sum of one engine counter over all shards of all lives, as far as it was seen.
    pub(super) fn sum(&self, name: &str) -> u64 {
        let shards = self.lives.values().filter_map(|(last, _)| last["shards"].as_array()).flatten();
        shards.filter_map(|shard| shard["engine"][name].as_u64()).sum()
    }

    /// CPU time of all lives since the first look, in us.
    pub(super) fn cpu_us(&self) -> u64 {
        self.lives.values().map(|(last, before)| cpu(last).saturating_sub(*before)).sum()
    }
}

fn cpu(answer: &Value) -> u64 {
    answer["cpu_us"].as_u64().unwrap_or(0)
}

/// A thread that looks.
pub(super) struct Scout {
    seen: Arc<Mutex<Seen>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Scout {
    /// Has looked once when it returns.
    pub(super) fn start(cluster: &LocalCluster) -> std::io::Result<Scout> {
        let (seen, over) = (Arc::<Mutex<Seen>>::default(), Arc::<AtomicBool>::default());
        let settings = cluster.settings.clone();
        let addresses = status::addresses(&settings);
        let look = move |seen: &Mutex<Seen>| {
            let asked = status::ask_all(&settings, &addresses, PATIENCE);
            let picture = Picture::new(&settings, &asked.answers, None);
            lock(seen).take(picture, asked.answers);
        };
        look(&seen);
        let (mine, ended) = (seen.clone(), over.clone());
        let thread = std::thread::Builder::new().name("scout".into()).spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                std::thread::sleep(LOOK_EVERY);
                look(&mine);
            }
        })?;
        Ok(Scout { seen, over, thread: Some(thread) })
    }

    pub(super) fn seen(&self) -> MutexGuard<'_, Seen> {
        lock(&self.seen)
    }
}

impl Drop for Scout {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // One that panicked has said so.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;
    use serde_json::json;

    #[test]
    fn what_a_dead_life_did_still_counts() {
        let settings = Settings::from_pairs(&[]).unwrap();
        let answer = |boot: u64, cpu: u64, released: u64| {
            let shards = json!([{ "engine": { "released": released } }]);
            json!({ "node": 1, "boot": boot, "cpu_us": cpu, "shards": shards })
        };
        let mut seen = Seen::default();
        for answer in [answer(7, 100, 0), answer(7, 150, 5), answer(8, 20, 1), answer(8, 30, 2)] {
            let picture = Picture::new(&settings, std::slice::from_ref(&answer), None);
            seen.take(picture, vec![answer]);
        }
        assert_eq!((seen.sum("released"), seen.cpu_us(), seen.looks), (7, 80, 4));
        assert_eq!(seen.answers.len(), 1);
    }
}
