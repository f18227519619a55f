//! Runs the simulator: many seeds, single faults, and the proof that the checker bites.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tandem::proto::Safeguards;
use tandem::sim::coverage::Coverage;
use tandem::sim::fault::{Fault, Planned, one};
use tandem::sim::layout::OWNER;
use tandem::sim::net::{LinkEffect, LinkFault};
use tandem::sim::scenario::Scenario;
use tandem::sim::world::{Outcome, run};
use tandem::types::{Nanos, NodeId, NodeSet};

const THREADS: u64 = 2;

fn run_seed(seed: u64, tell: bool) -> Outcome {
    run(Scenario::draw(seed), Safeguards::default(), tell)
}

fn replay_command(seed: u64) -> String {
    format!("TANDEM_SIM_SEED={seed} cargo test --release --test sim replay -- --nocapture")
}

/// Runs `count` seeds from `first` on; returns the failing ones, in order, and what happened in all of them.
fn run_seeds(first: u64, count: u64) -> (Vec<u64>, Coverage) {
    let next = AtomicU64::new(0);
    let results = Mutex::new((Vec::new(), Coverage::default()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let mut coverage = Coverage::default();
                let mut failing = Vec::new();
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= count {
                        break;
                    }
                    let seed = first.wrapping_add(n);
                    let caught = std::panic::catch_unwind(|| run_seed(seed, false));
                    let failure = match caught {
                        Ok(outcome) => {
                            coverage.add(&outcome.coverage);
                            outcome.failure
                        }
                        Err(_) => Some("the core panicked".to_string()),
                    };
                    if let Some(what) = failure {
                        println!("seed {seed} failed {what}\n  {}", replay_command(seed));
                        failing.push(seed);
                    }
                }
                let mut results = results.lock().unwrap();
                results.0.extend(failing);
                results.1.add(&coverage);
            });
        }
    });
    let (mut failing, coverage) = results.into_inner().unwrap();
    failing.sort_unstable();
    (failing, coverage)
}

fn print_coverage(coverage: &Coverage) {
    for (name, count) in coverage.rows() {
        println!("{name:>18} {count}");
    }
}

fn from_env(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}: give a whole number")))
}

/// Replays the seed TANDEM_SIM_SEED and prints every event.
#[test]
fn replay() {
    let Some(seed) = from_env("TANDEM_SIM_SEED") else { return };
    let outcome = run_seed(seed, true);
    print_coverage(&outcome.coverage);
    if let Some(what) = outcome.failure {
        panic!("seed {seed} failed {what}");
    }
}

/// Many seeds, TANDEM_SIM_SEEDS of them if that is set; and enough must have gone wrong in them.
#[test]
fn seeds() {
    let count = from_env("TANDEM_SIM_SEEDS").unwrap_or(if cfg!(debug_assertions) { 400 } else { 10_000 });
    let started = Instant::now();
    let (failing, coverage) = run_seeds(0, count);
    print_coverage(&coverage);
    println!("seeds {count} failures {} in {:?}", failing.len(), started.elapsed());
    assert!(failing.is_empty(), "failing seeds: {failing:?}");
    if count >= 400 {
        assert_eventful(count, &coverage);
    }
}

/// A simulation in which nothing happens would pass too: each of these must happen so often in 1,000 seeds.
fn assert_eventful(seeds: u64, happened: &Coverage) {
    let minima = [
        ("replies", happened.released, 300_000),
        ("timers", happened.timers, 200_000),
        ("panics", happened.panics, 1_000),
        ("lost datagrams", happened.lost, 5_000),
        ("duplicated datagrams", happened.duplicated, 1_500),
        ("naks", happened.naks, 1_000),
        ("emits", happened.emits, 1_000),
        ("hedges", happened.hedges, 1_000),
        ("probes", happened.probes, 3_000),
        ("changes of master", happened.master_changes, 150),
        ("crashes", happened.crashes, 80),
        ("kills of masters", happened.master_kills, 20),
        ("restarts with empty memory", happened.restarts, 40),
        ("frozen processes", happened.freezes, 80),
        ("frozen masters", happened.master_freezes, 30),
        ("suspicions", happened.suspicions, 500),
        ("wrong suspicions", happened.wrong_suspicions, 150),
        ("refused packets", happened.refused, 500),
        ("outputs from members that were not master", happened.rescued, 1_000),
        ("outputs that came again", happened.repeated, 2_000),
        ("members given up", happened.demoted, 10),
        ("overflowing receive buffers", happened.overflows, 200),
    ];
    for (what, count, minimum) in minima {
        assert!(count * 1_000 >= minimum * seeds, "only {count} {what} in {seeds} seeds");
    }
}

/// A long sweep for scripts/sweep: TANDEM_SIM_SEEDS seeds from TANDEM_SIM_FIRST_SEED on.
#[test]
#[ignore = "run by scripts/sweep"]
fn sweep() {
    let count = from_env("TANDEM_SIM_SEEDS").unwrap_or(1_000);
    let first = from_env("TANDEM_SIM_FIRST_SEED").unwrap_or(0);
    let (failing, coverage) = run_seeds(first, count);
    print_coverage(&coverage);
    println!("seeds {count} failures {}", failing.len());
    assert!(failing.is_empty(), "failing seeds: {failing:?}");
}

fn planned(from_ms: u64, until_ms: u64, fault: Fault) -> Planned {
    Planned { from: Nanos::from_millis(from_ms), until: Nanos::from_millis(until_ms), fault }
}

fn everywhere(effect: LinkEffect) -> Fault {
    Fault::Link(LinkFault { from: NodeSet(u64::MAX), to: NodeSet(u64::MAX), effect })
}

/// Runs seeds with the same faults each; what happened in all of them.
fn single_fault(seeds: std::ops::Range<u64>, faults: &[Planned]) -> Coverage {
    let mut coverage = Coverage::default();
    for seed in seeds {
        let outcome = run(Scenario::with_faults(seed, false, faults.to_vec()), Safeguards::default(), false);
        assert_eq!(outcome.failure, None, "seed {seed} with {faults:?}");
        coverage.add(&outcome.coverage);
    }
    coverage
}

#[test]
fn a_calm_world_is_served_without_repair() {
    let coverage = single_fault(0..40, &[]);
    assert!(coverage.released > 5_000, "{coverage:?}");
    assert_eq!((coverage.refused, coverage.demoted), (0, 0), "{coverage:?}");
    assert!(
        coverage.naks < coverage.acks / 100,
        "only nodes that have not heard of each other yet: {coverage:?}"
    );
}

#[test]
fn a_lossy_world_loses_nothing() {
    let coverage = single_fault(0..40, &[planned(1, 120, everywhere(LinkEffect::Loss(50)))]);
    assert!(coverage.naks > 100 && coverage.lost > 1_000, "{coverage:?}");
}

#[test]
fn a_wild_network_duplicates_and_reorders_nothing_a_client_sees() {
    let reorder = LinkEffect::Reorder { permille: 300, by: Nanos::from_millis(2) };
    let faults =
        [planned(1, 120, everywhere(LinkEffect::Duplicate(300))), planned(1, 120, everywhere(reorder))];
    let coverage = single_fault(0..40, &faults);
    assert!(coverage.duplicated > 5_000 && coverage.repeated > 50, "{coverage:?}");
}

#[test]
fn a_frozen_owner_and_a_frozen_member_wake_up_and_do_no_harm() {
    for node in [OWNER, NodeId(2), NodeId(3)] {
        let coverage =
            single_fault(0..15, &[planned(20, 60, Fault::Freeze { nodes: one(node), mid: false })]);
        assert_eq!(coverage.freezes, 15);
    }
}

/// The first seed below `bound` in which, with `safeguards`, the checker finds `invariant` broken, and how.
fn first_broken(bound: u64, safeguards: Safeguards, invariant: &str) -> Option<(u64, String)> {
    (0..bound).find_map(|seed| {
        // With a rule switched off the core may also trip over an assertion of its own: not the checker's merit.
        let caught = std::panic::catch_unwind(|| run(Scenario::draw(seed), safeguards, false));
        let what = caught.ok()?.failure?;
        what.contains(invariant).then_some((seed, what))
    })
}

/// Without any one of the rules that make the slot log safe, the checker must find what goes wrong.
#[test]
fn the_checker_bites() {
    let on = Safeguards::default();
    let cases = [
        ("dedupe of entries", Safeguards { dedupe: false, ..on }, "invariant 1"),
        ("dedupe of outputs", Safeguards { dedupe: false, ..on }, "invariant 3"),
        ("commit_wait", Safeguards { commit_wait: false, ..on }, "invariant 2"),
        ("in_order", Safeguards { in_order: false, ..on }, "invariant 1"),
        ("keep_outputs", Safeguards { keep_outputs: false, ..on }, "invariant 6"),
        ("nak", Safeguards { nak: false, ..on }, "invariant 6"),
    ];
    for (name, safeguards, invariant) in cases {
        let Some((seed, what)) = first_broken(500, safeguards, invariant) else {
            panic!("without {name} the checker never finds {invariant} broken")
        };
        println!("without {name}: seed {seed} failed {what}");
        assert_eq!(run_seed(seed, false).failure, None, "seed {seed} with every safeguard on");
    }
}
