//! What the control keeps for one peer: how far the two have joined, and the round-trip time.

use super::delegate::Delegate;
use super::{ControlConfig, Disagreement, HELLO_EVERY};
use crate::types::{Boot, Nanos, NodeId};
use crate::wire::beat::{ACCEPTED, Beat, Hello, HelloRefused, write_beat, write_hello, write_hello_refused};

/// Settings of this name and a node's id say where that node is.
const NODE_PREFIX: &str = "NODES.";

/// The newest beat of the peer.
#[derive(Copy, Clone, Debug)]
struct Heard {
    sequence: u64,
    sent: u64,
    at: Nanos,
}

/// One life of a peer.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) node: NodeId,
    /// None until it was heard.
    pub(super) boot: Option<Boot>,
    /// Its settings agree with ours.
    pub(super) joined: bool,
    /// Its newest beat says that it has accepted this life of ours.
    pub(super) accepts_us: bool,
    /// A settings hash of its, and whether the settings behind it agree with ours.
    pub(super) judged: Option<(u64, bool)>,
    pub(super) refused: Option<Disagreement>,
    pub(super) rtt: Option<Nanos>,
    /// It says that it has not heard us for too long.
    pub(super) deaf: bool,
    pub(super) beat_due: bool,
    pub(super) refusal_due: bool,
    /// What the council keeps for it.
    pub(super) delegate: Delegate,
    heard: Option<Heard>,
    sequence: u64,
    next_hello: Nanos,
}

impl Peer {
    pub(super) fn new(node: NodeId) -> Peer {
        Peer {
            node,
            boot: None,
            joined: false,
            accepts_us: false,
            judged: None,
            refused: None,
            rtt: None,
            deaf: false,
            beat_due: false,
            refusal_due: false,
            delegate: Delegate::default(),
            heard: None,
            sequence: 0,
            next_hello: Nanos::ZERO,
        }
    }

    /// A life of the peer that was not heard before: nothing of the last one holds. Our own beats count on, since it
    /// may have heard some of them.
    pub(super) fn begin(&mut self, boot: Boot) {
        *self = Peer { boot: Some(boot), beat_due: true, sequence: self.sequence, ..Peer::new(self.node) };
    }

    /// When its newest beat came.
    pub(super) fn heard_at(&self) -> Nanos {
        self.heard.map_or(Nanos::ZERO, |heard| heard.at)
    }

    /// The number of its newest beat: the one that our next beat echoes.
    pub(super) fn heard_sequence(&self) -> u64 {
        self.heard.map_or(0, |heard| heard.sequence)
    }

    /// Whether settings with this hash agree with ours: as its hello was judged, or else if the hash is ours; and
    /// neither side has refused the other.
    pub(super) fn judged_as(&self, hash: u64, ours: u64) -> bool {
        let agrees = match self.judged {
            Some((judged, agrees)) if judged == hash => agrees,
            _ => hash == ours,
        };
        agrees && self.refused.is_none()
    }

    /// Takes the round-trip time and the acceptance from a beat, and whether the peer has heard us within `limit`.
    /// Older beats than the newest heard say nothing: false.
    pub(super) fn on_beat(&mut self, now: Nanos, our_boot: Boot, limit: Nanos, beat: &Beat) -> bool {
        if self.heard.is_some_and(|heard| heard.sequence >= beat.sequence.get()) {
            return false;
        }
        self.heard = Some(Heard { sequence: beat.sequence.get(), sent: beat.sent.get(), at: now });
        if beat.echo_boot.get() != our_boot.0 {
            (self.accepts_us, self.deaf) = (false, false);
            return true;
        }
        self.deaf = Nanos(beat.echo_delay.get()) > limit;
        self.accepts_us = beat.flags.get() & ACCEPTED != 0;
        // Our own clock at both ends (RFC 6298, section 2: gain 1/8).
        let sample = now.since(Nanos(beat.echo_sent.get())).since(Nanos(beat.echo_delay.get()));
        self.rtt = Some(self.rtt.map_or(sample, |rtt| rtt - Nanos(rtt.0 / 8) + Nanos(sample.0 / 8)));
        true
    }

    /// Writes the datagram that is due: a hello if the peer has not accepted the last, a refusal if it was not
    /// accepted, and always a beat.
    pub(super) fn write(
        &mut self,
        now: Nanos,
        config: &ControlConfig,
        stalls: impl Iterator<Item = u16>,
        out: &mut Vec<u8>,
    ) {
        if !(self.joined && self.accepts_us) && now >= self.next_hello {
            self.next_hello = now + HELLO_EVERY;
            write_hello(out, config.settings_hash, &config.settings);
        }
        if let (true, Some(differs)) = (self.refusal_due, &self.refused) {
            write_hello_refused(out, &disagreement_frame(differs));
        }
        self.sequence += 1;
        let heard = self.heard.unwrap_or(Heard { sequence: 0, sent: 0, at: now });
        let beat = Beat {
            sequence: self.sequence.into(),
            sent: now.0.into(),
            settings: config.settings_hash.into(),
            echo_boot: self.boot.filter(|_| self.heard.is_some()).map_or(0, |boot| boot.0).into(),
            echo_sequence: heard.sequence.into(),
            echo_sent: heard.sent.into(),
            echo_delay: now.since(heard.at).0.into(),
            flags: if self.joined { ACCEPTED } else { 0 }.into(),
            workers: 0.into(),
        };
        write_beat(out, beat, stalls);
        self.beat_due = false;
        self.refusal_due = false;
    }
}

/// What is told to a peer that does not join.
fn disagreement_frame(differs: &Disagreement) -> HelloRefused<'_> {
    HelloRefused { name: &differs.name, ours: differs.ours.as_deref(), theirs: differs.theirs.as_deref() }
}

/// The first setting, in this node's order, in which a greeting differs from `ours`.
pub(super) fn disagreement(ours: &[(String, String)], hello: Hello<'_>) -> Option<Disagreement> {
    // A cluster grows by nodes that some know and others do not, yet.
    let grows = |name: &str| name.starts_with(NODE_PREFIX);
    for (name, value) in ours {
        let theirs = hello.pairs().find(|pair| pair.0 == name).map(|pair| pair.1);
        if theirs != Some(value) && !(theirs.is_none() && grows(name)) {
            let theirs = theirs.map(str::to_owned);
            return Some(Disagreement { name: name.clone(), ours: Some(value.clone()), theirs });
        }
    }
    let unknown = |pair: &(&str, &str)| ours.iter().all(|own| own.0 != pair.0) && !grows(pair.0);
    let (name, value) = hello.pairs().find(unknown)?;
    Some(Disagreement { name: name.to_owned(), ours: None, theirs: Some(value.to_owned()) })
}
