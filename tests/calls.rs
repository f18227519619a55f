//! Calls under faults: many seeds of the simulator's SIP world.

use tandem::sim::calls::{Counts, run};

/// Seeds of a plain `cargo test`.
const SEEDS: u64 = 150;

fn from_env(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}: give a whole number")))
}

fn replay_command(seed: u64) -> String {
    format!("TANDEM_SIM_SEED={seed} cargo test --test calls replay -- --nocapture")
}

/// Replays the seed TANDEM_SIM_SEED and prints every message.
#[test]
fn replay() {
    let Some(seed) = from_env("TANDEM_SIM_SEED") else { return };
    let outcome = run(seed, true);
    println!("{:#?}", outcome.counts);
    assert!(outcome.faults.is_empty(), "{}", outcome.faults.join("\n"));
}

/// As many seeds as TANDEM_SIM_SEEDS says, from TANDEM_SIM_FIRST on.
#[test]
fn calls_survive() {
    let count = from_env("TANDEM_SIM_SEEDS").unwrap_or(SEEDS);
    let first = from_env("TANDEM_SIM_FIRST").unwrap_or(1);
    let mut counts = Counts::default();
    let mut failing = 0;
    for seed in first..first + count {
        match std::panic::catch_unwind(|| run(seed, false)) {
            Ok(outcome) => {
                counts.add(&outcome.counts);
                if !outcome.faults.is_empty() {
                    failing += 1;
                    println!("seed {seed}:\n  {}\n  {}", outcome.faults.join("\n  "), replay_command(seed));
                }
            }
            Err(_) => {
                failing += 1;
                println!("seed {seed}: something panicked\n  {}", replay_command(seed));
            }
        }
    }
    println!("{counts:#?}");
    assert_eq!(failing, 0, "of {count} seeds");
    assert!(counts.answered > count && counts.owners > count / 4 && counts.returns > count / 4, "{counts:?}");
    assert!(counts.media > counts.media_lost * 20 && counts.sip_lost > 0 && counts.resent > 0, "{counts:?}");
}

/// A run is made of its seed alone.
#[test]
fn a_seed_says_everything() {
    assert_eq!(run(7, false).counts, run(7, false).counts);
}
