//! What must hold once a run is over, seen from both ends of every call.

use std::collections::{BTreeMap, BTreeSet};

use super::agent::MS;
use super::conversation::Conversation;
use super::script::Answer;
use super::{ADDRESSES, Counts, World};

/// What a call's packets may be on their way when an owner dies.
const UNDER_WAY: u64 = 15 * MS;
/// How long what a death has left undone may still come twice.
const AFTERMATH: u64 = 2_000 * MS;

impl World {
    /// Judges everything.
    pub(super) fn judge(&mut self) {
        let mut faults = self.cluster.judge();
        let mut counts = std::mem::take(&mut self.counts);
        for (number, call) in self.calls.iter().enumerate() {
            let mut found = Vec::new();
            judge_ends(call, &mut found);
            self.judge_repeats(number, call, &mut found);
            self.judge_media(call, &mut counts, &mut found);
            faults.extend(found.into_iter().map(|fault| format!("{}: {fault}", call.call_id)));
            counts.calls += 1;
            counts.answered += u64::from(call.code == 200);
            counts.resent += call.ends.iter().map(|end| end.resent.len() as u64).sum::<u64>();
        }
        counts.sip_lost += self.lost.len() as u64;
        self.counts = counts;
        self.judge_records(&mut faults);
        self.faults.append(&mut faults);
    }

    /// Nobody sends again what was not lost, and nothing comes twice for no reason.
    fn judge_repeats(&self, number: usize, call: &Conversation, found: &mut Vec<String>) {
        let resent: Vec<u64> = call.ends.iter().flat_map(|end| end.resent.iter().copied()).collect();
        let lost: Vec<u64> = self.lost.iter().filter(|(_, of)| *of == number).map(|(at, _)| *at).collect();
        for at in &resent {
            if self.peer_loss == 0 && !lost.iter().any(|lost| lost <= at && at - lost < 40_000 * MS) {
                found.push(format!("something was sent again at {} ms though nothing was lost", at / MS));
            }
        }
        for (at, what) in call.ends.iter().flat_map(|end| &end.doubles) {
            let near = |when: &u64| when <= at && at - when < AFTERMATH;
            if !resent.iter().any(near) && !self.deaths.iter().any(near) && !lost.iter().any(near) {
                found.push(format!("{what} came twice at {} ms", at / MS));
            }
        }
    }

    fn judge_media(&self, call: &Conversation, counts: &mut Counts, found: &mut Vec<String>) {
        let address = self.cluster.slot_of(&call.call_id) % ADDRESSES;
        let outages: Vec<_> = self.outages.iter().filter(|outage| outage.address == address).collect();
        for (end, media) in call.media.iter().enumerate() {
            found.extend(media.faults.iter().cloned());
            counts.media += media.got.len() as u64;
            let sent = &call.media[1 - end].sent;
            let mut seen = BTreeSet::new();
            let mut last = None;
            for (packet, at) in &media.got {
                let near = |death: &u64| death <= at && at - death < AFTERMATH;
                if (!seen.insert(*packet) || last.is_some_and(|last| last > *packet))
                    && !self.deaths.iter().any(near)
                {
                    found.push(format!("media packet {packet} came out of order or twice to end {end}"));
                }
                last = last.max(Some(*packet));
            }
            // What was sent before the other end was ready to listen, or as the call ended, is nobody's loss.
            let end_of_talk = call.talk.1.saturating_sub(UNDER_WAY);
            let Some(first) = seen.first().copied() else {
                if sent.iter().any(|at| *at < end_of_talk && outages.is_empty()) && sent.len() > 3 {
                    found.push(format!("no media came to end {end}, {} packets were sent", sent.len()));
                }
                continue;
            };
            for (packet, at) in sent.iter().enumerate().skip(first as usize) {
                if seen.contains(&(packet as u64)) || *at >= end_of_talk {
                    continue;
                }
                counts.media_lost += 1;
                let excused = |o: &&super::Outage| {
                    o.from.saturating_sub(UNDER_WAY) <= *at && *at <= o.to.saturating_add(UNDER_WAY)
                };
                if !outages.iter().any(excused) {
                    found.push(format!(
                        "media packet {packet}, sent at {} ms, never came to end {end}",
                        at / MS
                    ));
                }
            }
        }
    }

    /// One record a call; copies are the same bytes, and only a death makes them.
    fn judge_records(&mut self, faults: &mut Vec<String>) {
        let mut records: BTreeMap<String, Vec<&[u8]>> = BTreeMap::new();
        for line in &self.records {
            let call_id = serde_json::from_slice::<serde_json::Value>(line)
                .ok()
                .and_then(|record| Some(String::from(record.get("call_id")?.as_str()?)));
            match call_id {
                Some(call_id) => records.entry(call_id).or_default().push(line),
                None => faults.push(format!("no record: {:?}", String::from_utf8_lossy(line))),
            }
        }
        for call in &self.calls {
            let lines = records.get(&call.call_id).map(Vec::as_slice).unwrap_or_default();
            self.counts.records_again += lines.len().saturating_sub(1) as u64;
            let different: BTreeSet<&&[u8]> = lines.iter().collect();
            if different.len() != 1 || lines.len() > 1 && self.deaths.is_empty() {
                let text: Vec<_> = lines.iter().map(|line| String::from_utf8_lossy(line)).collect();
                faults.push(format!("{}: {} records: {text:#?}", call.call_id, lines.len()));
            } else if let Err(why) = judge_record(call, lines[0]) {
                faults.push(format!("{}: {why}: {}", call.call_id, String::from_utf8_lossy(lines[0])));
            }
        }
    }
}

/// The record says what happened.
fn judge_record(call: &Conversation, line: &[u8]) -> Result<(), String> {
    let record: serde_json::Value = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let outcome = record["outcome"].as_str().unwrap_or_default();
    let expected: &[&str] = match call.script.answer {
        Answer::Accept => &["answered"],
        Answer::Refuse(486) => &["busy"],
        // By whether the ringing was lost on the wire.
        Answer::Refuse(480) => &["no_answer", "refused"],
        Answer::Refuse(500) => &["failed"],
        Answer::Refuse(_) => &["refused"],
        Answer::Cancel if call.code == 500 => &["failed"],
        Answer::Cancel => &["cancelled"],
        Answer::Never => &["no_answer", "timeout", "cancelled"],
    };
    if !expected.contains(&outcome) {
        return Err(format!("outcome {outcome}, expected {expected:?}"));
    }
    if record["code"].as_u64() != Some(call.code.into()) {
        return Err(format!("code is not {}", call.code));
    }
    if call.script.answer == Answer::Accept {
        let (end, _, _) = call.script.acts[call.script.acts.len() - 1];
        let by = ["caller", "callee"][end];
        if record["ended_by"] != by || record["cause"] != "bye" {
            return Err(format!("it was ended by the {by}'s BYE"));
        }
    }
    Ok(())
}

/// The call went as it was written.
fn judge_ends(call: &Conversation, found: &mut Vec<String>) {
    found.extend(call.faults.iter().cloned());
    for (name, agent) in ["caller", "callee", "first target"].iter().zip(call.ends.iter().chain(&call.first))
    {
        found.extend(agent.faults.iter().map(|fault| format!("{name}: {fault}")));
    }
    if !call.expects().contains(&call.code) {
        found.push(format!("the caller heard {}, expected {:?}", call.code, call.expects()));
    }
    if !call.is_over() {
        found.push(format!("it is not over: {:?}\n{:?}", call.log, call.script));
    }
}
