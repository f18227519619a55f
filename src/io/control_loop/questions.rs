//! What operators' tools ask a node, and its answers: most need the shards' own, which get some time for them.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use crossbeam::channel::{self, Receiver, Sender};
use serde_json::{Value, json};

use super::{ControlCore, ControlLoop};
use crate::io::cells::NodeCells;
use crate::io::operator::{self, DIGESTS, DRAIN, RELOAD, STATUS};
use crate::io::peer::seal_into;
use crate::io::reload::Ask;
use crate::io::shard_loop::{Question, Subject};
use crate::io::sys_send::Sent;
use crate::types::{Boot, Nanos, Now};
use crate::wire::datagram::{Kind, destination};

/// Questions answered at once; further ones are dropped, and asked again by the tool.
pub(super) const MAX_QUESTIONS: usize = 8;
/// How long a shard may take to answer a question.
const ANSWER_WITHIN: Nanos = Nanos::from_millis(80);

/// How long the routes may take to be read.
const RELOAD_WITHIN: Nanos = Nanos::from_secs(2);

/// The tool that asks.
#[derive(Copy, Clone, PartialEq, Eq)]
pub(super) struct Asker {
    pub(super) address: SocketAddr,
    pub(super) boot: Boot,
    /// Of its question.
    pub(super) number: u64,
}

/// A question that is being answered.
pub(super) struct Pending {
    pub(super) asker: Asker,
    pub(super) until: Nanos,
    about: About,
}

enum About {
    /// Every shard is asked.
    Shards { reports: Receiver<Value>, answers: Vec<Value> },
    /// It is answered.
    Said(Value),
    /// The routes are being read.
    Reload(Receiver<Value>),
}

/// Begins to answer the question `name`; `None` if there is no such question.
pub(super) fn take_question(
    name: &str,
    asker: Asker,
    now: Now,
    core: &mut impl ControlCore,
    (shards, reload): (&[Sender<Question>], &Sender<Ask>),
    cells: &NodeCells,
) -> Option<Pending> {
    let of_shards = |subject| {
        let reports = ask_shards(shards, cells, subject);
        About::Shards { reports, answers: Vec::new() }
    };
    let about = match name {
        STATUS => of_shards(Subject::Status),
        DIGESTS => of_shards(Subject::Digests),
        // A tool that has missed the answer asks again: to drain twice is to drain.
        DRAIN => About::Said(match core.drain(now) {
            Ok(()) => json!({ "accepted": true }),
            Err(why) => json!({ "accepted": false, "why": why }),
        }),
        RELOAD => {
            let (reply, answer) = channel::bounded(1);
            reload.try_send(Some(reply)).ok()?;
            About::Reload(answer)
        }
        _ => return None,
    };
    let within = if matches!(about, About::Reload(_)) { RELOAD_WITHIN } else { ANSWER_WITHIN };
    Some(Pending { asker, until: now.mono + within, about })
}

/// Asks every shard; returns where the answers come.
fn ask_shards(shards: &[Sender<Question>], cells: &NodeCells, subject: Subject) -> Receiver<Value> {
    let (reply, reports) = channel::bounded(shards.len());
    for (shard, cell) in shards.iter().zip(&cells.shards) {
        // A shard whose questions pile up is stuck: its report will be missing.
        let _ = shard.try_send(Question { subject, reply: reply.clone() });
        cell.wake();
    }
    reports
}

impl<C: ControlCore> ControlLoop<C> {
    /// Answers the questions for which every shard has reported, or that have waited long enough.
    pub(super) fn answer(&mut self, now: Now) {
        let mut index = 0;
        while index < self.pending.len() {
            let pending = &mut self.pending[index];
            if let About::Shards { reports, answers } = &mut pending.about {
                answers.extend(reports.try_iter());
                if answers.len() < self.shards.len() && now.mono < pending.until {
                    index += 1;
                    continue;
                }
            }
            if let About::Reload(answer) = &pending.about {
                match answer.try_recv() {
                    Ok(answer) => pending.about = About::Said(answer),
                    Err(_) if now.mono < pending.until => {
                        index += 1;
                        continue;
                    }
                    Err(_) => {
                        let why = "the routes are still being read: ask again";
                        pending.about = About::Said(json!({ "accepted": false, "why": why }));
                    }
                }
            }
            let pending = self.pending.swap_remove(index);
            self.write_answer(pending);
        }
    }

    fn write_answer(&mut self, pending: Pending) {
        let answer = match pending.about {
            About::Said(verdict) => verdict,
            About::Reload(_) => return,
            About::Shards { mut answers, .. } => {
                answers.sort_by_key(|report| report["shard"].as_u64());
                let mut report = self.report();
                report["shards_silent"] = self.shards.len().saturating_sub(answers.len()).into();
                report["shards"] = Value::Array(answers);
                report
            }
        };
        let (asker, json) = (pending.asker, answer.to_string());
        for part in operator::write_answer(asker.number, json.as_bytes()) {
            let (sealer, to) = (&mut self.beats.sealer, destination(asker.boot));
            self.answers.push_with(Some(asker.address), 0, part.len() + 64, |arena| {
                seal_into(arena, sealer, Kind::Control, to, &part);
            });
        }
        // A part the kernel does not take is lost, and the tool asks again.
        while let Sent::Refused(_) = self.answers.send(self.door.as_fd()) {
            self.answers.skip();
        }
        self.answers.clear();
    }
}
