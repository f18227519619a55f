//! Calls under faults: many seeds of the simulator's SIP world.

use tandem::sim::calls::{Counts, Phase, run};

/// Seeds of a plain `cargo test`.
const SEEDS: u64 = 400;

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

/// Runs `count` seeds from `first` on; how many failed, and what happened in all of them.
fn run_seeds(first: u64, count: u64) -> (u64, Counts) {
    let mut counts = Counts::default();
    let mut failing = 0;
    for seed in (0..count).map(|n| first.wrapping_add(n)) {
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
    (failing, counts)
}

#[test]
fn calls_survive() {
    let (failing, counts) = run_seeds(1, SEEDS);
    assert_eq!(failing, 0, "of {SEEDS} seeds");
    assert!(counts.answered > SEEDS && counts.owners > SEEDS / 4 && counts.returns > SEEDS / 4, "{counts:?}");
    assert!(counts.media > counts.media_lost * 20 && counts.sip_lost > 0 && counts.resent > 0, "{counts:?}");
    for (phase, calls) in Phase::ALL.iter().zip(counts.phases) {
        assert!(calls > 0, "no node died while a call was {phase:?}");
    }
}

/// A long sweep for scripts/sweep: TANDEM_SIM_SEEDS seeds from TANDEM_SIM_FIRST_SEED on.
#[test]
#[ignore = "run by scripts/sweep"]
fn sweep() {
    let count = from_env("TANDEM_SIM_SEEDS").unwrap_or(SEEDS);
    let (failing, _) = run_seeds(from_env("TANDEM_SIM_FIRST_SEED").unwrap_or(1), count);
    println!("seeds {count} failures {failing}");
    assert_eq!(failing, 0, "failing seeds");
}

/// A run is made of its seed alone.
#[test]
fn a_seed_says_everything() {
    assert_eq!(run(7, false).counts, run(7, false).counts);
}
