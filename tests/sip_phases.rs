//! A node dies while calls are in every phase there is: each of them ends as it would have.

mod harness;

use harness::cluster::Local;
use harness::parties::{Call, Message, Party, SOON, owner, records, wait_until_open};
use harness::{Folder, Otherwise, sandboxed};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How long an agent waits before it says the same again (T1 of RFC 3261).
const AGAIN: Duration = Duration::from_millis(500);
/// Calls in each phase: they lie in different slots, so that any node is master of some.
const CALLS: usize = 3;
const RINGING: &str = "SIP/2.0 180";
const OK: &str = "SIP/2.0 200";

/// Where a call stands when the node dies.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Phase {
    /// The INVITE is on its way.
    Invited,
    /// It rings.
    Ringing,
    /// It was cancelled, but is not over.
    Cancelled,
    /// It was answered, but the caller has not said ACK.
    Answered,
    /// A re-INVITE has arrived, but is not answered.
    Reinvited,
    /// The BYE is on its way.
    Leaving,
}

const PHASES: [Phase; 6] =
    [Phase::Invited, Phase::Ringing, Phase::Cancelled, Phase::Answered, Phase::Reinvited, Phase::Leaving];

/// Says something until it has an effect: a message at `hearer` that begins with `start` and holds `part`.
fn insist(hearer: &Party, start: &str, part: &str, say: impl Fn()) -> (Message, SocketAddr) {
    let mut heard = Vec::new();
    for _ in 0..8 {
        say();
        match hearer.listen_for(start, part, AGAIN) {
            Ok(found) => return found,
            Err(instead) => heard.extend(instead),
        }
    }
    panic!("no {start:?} with {part:?}, but {heard:#?}")
}

/// A call on its way.
struct Attempt {
    id: String,
    phase: Phase,
    service: SocketAddr,
    alice: Party,
    bob: Party,
    /// The INVITE as it came to the callee.
    invited: Option<(Message, SocketAddr)>,
    /// The 200 as it came to the caller.
    accepted: Option<Message>,
    reinvited: Option<(Message, SocketAddr)>,
}

impl Attempt {
    fn invite(&self) {
        self.alice.invite(self.service, &self.id);
    }

    /// Bob rings.
    fn ring(&mut self) {
        if self.invited.is_none() {
            self.invited = Some(insist(&self.bob, "INVITE ", "", || self.invite()));
        }
        let invited = self.invited.as_ref().unwrap();
        insist(&self.alice, RINGING, "CSeq: 1 INVITE", || self.bob.answer(invited, "180 Ringing", ""));
    }

    /// Bob answers.
    fn pick_up(&mut self) {
        let (invited, body) = (self.invited.as_ref().unwrap(), self.bob.description());
        let (accepted, _) =
            insist(&self.alice, OK, "CSeq: 1 INVITE", || self.bob.answer(invited, "200 OK", &body));
        self.accepted = Some(accepted);
    }

    fn acknowledge(&self, number: u32) {
        let accepted = self.accepted.as_ref().unwrap();
        let part = format!("CSeq: {number} ACK");
        insist(&self.bob, "ACK ", &part, || self.alice.request(self.service, accepted, "ACK", number));
    }

    /// Brings the call to its phase, but for what is to be said at the very last.
    fn prepare(&mut self) {
        if self.phase == Phase::Invited {
            return;
        }
        self.ring();
        match self.phase {
            Phase::Invited | Phase::Ringing => return,
            Phase::Cancelled => {
                let to = format!("<sip:{}@{}>", self.id, self.service);
                let cancel = || self.alice.follow(self.service, &self.id, "CANCEL", &to);
                insist(&self.alice, OK, "CSeq: 1 CANCEL", cancel);
                insist(&self.bob, "CANCEL ", "", || ());
                return;
            }
            Phase::Answered | Phase::Reinvited | Phase::Leaving => self.pick_up(),
        }
        if self.phase != Phase::Answered {
            self.acknowledge(1);
        }
        if self.phase == Phase::Reinvited {
            let (accepted, body) = (self.accepted.as_ref().unwrap(), self.alice.description());
            let again = || self.alice.request_with(self.service, accepted, ("INVITE", 2), &body);
            self.reinvited = Some(insist(&self.bob, "INVITE ", "CSeq: 2 INVITE", again));
        }
    }

    /// Says what is on its way when the node dies.
    fn say_last(&self) {
        match (self.phase, &self.accepted) {
            (Phase::Invited, _) => self.invite(),
            (Phase::Leaving, Some(accepted)) => self.alice.request(self.service, accepted, "BYE", 3),
            _ => {}
        }
    }

    /// Goes on as if nothing had happened; returns the outcome that its record must have.
    fn finish(mut self) -> &'static str {
        match self.phase {
            Phase::Invited => {
                self.ring();
                self.pick_up();
                self.acknowledge(1);
            }
            Phase::Ringing => {
                self.pick_up();
                self.acknowledge(1);
            }
            Phase::Cancelled => {
                let invited = self.invited.as_ref().unwrap();
                let gone = || self.bob.answer(invited, "487 Request Terminated", "");
                insist(&self.bob, "ACK ", "CSeq: 1 ACK", gone);
                let (over, _) = insist(&self.alice, "SIP/2.0 487", "CSeq: 1 INVITE", || ());
                self.alice.follow(self.service, &self.id, "ACK", over.one("To"));
                return "cancelled";
            }
            Phase::Answered => self.acknowledge(1),
            Phase::Reinvited => {
                let (again, body) = (self.reinvited.as_ref().unwrap(), self.bob.description());
                let said = || self.bob.answer(again, "200 OK", &body);
                let (accepted, _) = insist(&self.alice, OK, "CSeq: 2 INVITE", said);
                let first = self.accepted.as_ref().unwrap();
                assert_eq!(accepted.media(), first.media(), "{:?} moved", self.phase);
                self.acknowledge(2);
            }
            Phase::Leaving => {}
        }
        let (invited, accepted) = (self.invited.unwrap(), self.accepted.unwrap());
        let (for_alice, for_bob) = (accepted.media(), invited.0.media());
        let mut call = Call { alice: self.alice, bob: self.bob, accepted, for_alice, for_bob };
        if self.phase != Phase::Leaving {
            // What is sent while the next owner opens its ports is lost.
            let heard = harness::until(SOON, || call.talk(Duration::from_millis(20)) == 2);
            assert!(heard, "{} is silent", self.id);
            let through: usize = (0..10).map(|_| call.talk(SOON)).sum();
            assert_eq!(through, 20, "{} cannot be heard", self.id);
        }
        let (alice, bob) = (&call.alice, &call.bob);
        let leave = || alice.request(self.service, &call.accepted, "BYE", 3);
        let bye = insist(bob, "BYE ", "CSeq: 3 BYE", leave);
        insist(alice, OK, "CSeq: 3 BYE", || bob.answer(&bye, "200 OK", ""));
        "answered"
    }
}

/// Brings calls into every phase, kills the engine of the node that `victim` names, and lets them go on. `own`: settings.
fn survive(victim: fn(&Local) -> u16, own: &[&str]) {
    let parties = || PHASES.iter().flat_map(|phase| (0..CALLS).map(move |n| (*phase, n)));
    let mut all: Vec<(String, Phase, Party)> =
        parties().map(|(phase, n)| (format!("{phase:?}{n}").to_lowercase(), phase, Party::new())).collect();
    let folder = Folder::new();
    let cdr = folder.join("cdr");
    let mut args: Vec<String> = ["--app", "sip", "--shards", "1", "--cdr"].map(String::from).into();
    args.push(cdr.display().to_string());
    args.extend(own.iter().map(|word| (*word).to_owned()));
    for (id, _, bob) in &all {
        args.extend(["--route".to_owned(), format!("user:{id}={}", bob.at())]);
    }
    let cluster = Local::start(&args.iter().map(String::as_str).collect::<Vec<_>>());
    wait_until_open(&cluster);
    let service = cluster.service;
    let mut calls: Vec<Attempt> = all
        .drain(..)
        .map(|(id, phase, bob)| {
            let (invited, accepted, reinvited) = (None, None, None);
            Attempt { id, phase, service, alice: Party::new(), bob, invited, accepted, reinvited }
        })
        .collect();
    calls.iter_mut().for_each(Attempt::prepare);
    let victim = victim(&cluster);
    calls.iter().for_each(Attempt::say_last);
    cluster.nodes.kill_engine(victim);
    let (began, count) = (Instant::now(), calls.len());
    let expected: Vec<(String, &str)> = std::thread::scope(|scope| {
        let calls: Vec<_> =
            calls.into_iter().map(|call| (call.id.clone(), scope.spawn(move || call.finish()))).collect();
        calls.into_iter().map(|(id, call)| (id, call.join().unwrap())).collect()
    });
    println!("node {victim} killed: {count} calls over after {:?}", began.elapsed());
    let records = records(&cdr, count);
    for (id, outcome) in expected {
        let record = records.iter().find(|record| record["call_id"] == *id);
        let record = record.unwrap_or_else(|| panic!("no record of {id}"));
        assert_eq!(record["outcome"], outcome, "{record:#}");
        let cause = if outcome == "cancelled" { "cancel" } else { "bye" };
        assert_eq!((&record["cause"], &record["ended_by"]), (&cause.into(), &"caller".into()), "{record:#}");
    }
    assert!(records.iter().any(|record| record["takeovers"].as_u64() > Some(0)), "nobody noticed");
    cluster.interrupt();
}

/// The node other than the owner that is master of most slots.
fn master(cluster: &Local) -> u16 {
    let (owner, mut found) = (owner(cluster), None);
    harness::until(Duration::from_secs(10), || {
        let all = cluster.nodes.masterships(owner);
        found = all.into_iter().filter(|(id, n)| *id != owner && *n > 0).max_by_key(|(_, n)| *n);
        found.is_some()
    });
    found.expect("a master that is not the owner").0
}

#[test]
fn the_master_dies_in_every_phase() {
    sandboxed("the_master_dies_in_every_phase", &[], Otherwise::RunHere, || survive(master, &[]));
}

#[test]
fn the_owner_dies_in_every_phase() {
    sandboxed("the_owner_dies_in_every_phase", &[], Otherwise::RunHere, || survive(owner, &[]));
}

#[test]
fn the_owner_dies_in_every_phase_of_calls_whose_media_is_steered() {
    let name = "the_owner_dies_in_every_phase_of_calls_whose_media_is_steered";
    sandboxed(name, &[], Otherwise::Skip, || survive(owner, &["--media-steer", "on"]));
}
