//! Our side of ICE: a lite agent for each party that does ICE, which answers its checks and follows its nominations.
//!
//! A party is asked by names of ours in every description it gets. They are the same for all its m-lines and for the
//! whole call, until it begins anew with names of its own that it did not have before: then ours are of the next
//! generation. Only who has read such a description can sign a check, so what a check says of where the party is needs
//! no further proof; and once the party has nominated a pair, nothing else is believed that did not check.
//!
//! A check that proves nothing is dropped and counted, never answered: an open port tells strangers nothing, and makes
//! nothing of forged sources. One that does is a sign of life (RFC 7675: who checks is there, and consents), also to
//! whoever ends calls that are silent: a party that is muted or sends no noise is not gone.
//!
//! Sources: RFC 8445 (sections 2.5, 7.3 and 9), RFC 8839 (in descriptions), RFC 8489 (STUN).

use ring::hmac;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::line::{Leg, Line, Place};
use super::nomination::Nominations;
use super::ports::Reservation;
use super::relay::{Dropped, Relay};
use super::{Media, Offer, Side};
use crate::types::{Endpoint, Nanos};
use crate::wire::sdp::describe::IceNames;
use crate::wire::sdp::rewrite::Credentials;
use crate::wire::stun::{Check, Outcome};

/// The sources of checks that are remembered of one component.
const MAX_CHECKED: usize = 4;

/// Characters of ICE, 6 bits each (RFC 8839 section 5.4).
const CHARACTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// What all our agents of a call have in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ours {
    secret: [u8; 16],
    /// The newest generation of names of any party.
    newest: u32,
    /// By side: it was offered ICE, and did not answer with it.
    declined: [bool; 2],
}

impl Ours {
    fn new(secret: [u8; 16]) -> Ours {
        Ours { secret, newest: 0, declined: [false; 2] }
    }

    /// What side number `side` is shown: 48 bits of a name and 144 of a password, of which neither tells another.
    fn credentials(&self, side: usize, generation: u32) -> Credentials {
        let [g0, g1, g2, g3] = generation.to_be_bytes();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.secret);
        let tag = hmac::sign(&key, &[side as u8, g0, g1, g2, g3]);
        let mut text = [0; 32];
        for (three, four) in tag.as_ref().chunks_exact(3).zip(text.chunks_exact_mut(4)) {
            let bits = three.iter().fold(0, |bits, byte| (bits << 8) | usize::from(*byte));
            for (at, character) in four.iter_mut().enumerate() {
                *character = CHARACTERS[(bits >> (18 - 6 * at)) & 63];
            }
        }
        let mut credentials = Credentials { ufrag: [0; 8], pwd: [0; 24] };
        credentials.ufrag.copy_from_slice(&text[..8]);
        credentials.pwd.copy_from_slice(&text[8..]);
        credentials
    }
}

/// What a party's description says of its side of ICE.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Theirs {
    /// A hash of its `ice-ufrag`, which its checks name.
    party: u64,
    /// A hash of that and its password: another one is another beginning (RFC 8445 section 9).
    names: u64,
    /// Which generation of our names goes with it.
    pub generation: u32,
}

impl Theirs {
    /// What a description says, of the first generation until it is known better.
    pub(super) fn new(names: &IceNames<'_>) -> Theirs {
        let both = [names.ufrag, b":", names.pwd].concat();
        Theirs { party: xxh3_64(names.ufrag), names: xxh3_64(&both), generation: 0 }
    }
}

/// What a description means to an agent.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Met {
    /// It has found no way yet.
    Unknown,
    /// The way it has found holds.
    Same,
    /// The party begins anew, and stays where it is until it nominates a pair again.
    Again,
    /// It is of somebody else, who was shown the same offer: another branch of a fork.
    Another,
}

/// Our agent for one side of an m-line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Agent {
    /// The generation of the names that the side was shown.
    generation: u32,
    /// Whose checks it has taken, or expects: [`Theirs::party`].
    party: Option<u64>,
    /// By component (media, RTCP): where valid checks came from, the newest last.
    checked: [Vec<Place>; 2],
    /// By component: the sources that were nominated.
    nominated: [Nominations; 2],
}

impl Agent {
    pub(super) fn new(generation: u32) -> Agent {
        Agent { generation, party: None, checked: Default::default(), nominated: Default::default() }
    }

    /// Where the side has nominated media, or RTCP (`component` 1), to be.
    pub(super) fn nominated(&self, component: usize) -> Option<Place> {
        self.nominated.get(component).and_then(Nominations::used)
    }

    /// Whether a source has proven to be the side's.
    pub(super) fn knows(&self, component: usize, source: Place) -> bool {
        self.nominated(component) == Some(source)
            || self.checked.get(component).is_some_and(|checked| checked.contains(&source))
    }

    /// Forgets what checks told, but not what the side was shown.
    pub(super) fn forget(&mut self) {
        *self = Agent::new(self.generation);
    }

    /// Takes in a description of its side.
    pub(super) fn meets(&mut self, theirs: &Theirs) -> Met {
        let found = self.nominated(0).is_some();
        let met = if self.generation != theirs.generation {
            *self = Agent::new(theirs.generation);
            if found { Met::Again } else { Met::Unknown }
        } else if self.party.is_some_and(|party| party != theirs.party) {
            self.forget();
            Met::Another
        } else if found {
            Met::Same
        } else {
            Met::Unknown
        };
        self.party = Some(theirs.party);
        met
    }

    /// Media has come from a source that the side has proven to be its own. Whether it is to be sent to another from now
    /// on.
    pub(super) fn hear(&mut self, source: Place) -> bool {
        self.nominated[0].hear(source)
    }

    /// Takes in the source of a valid check of `party`, of what priority it is if it was nominated.
    fn take(&mut self, component: usize, source: Place, party: u64, (now, nominated): (Nanos, Option<u32>)) {
        if self.party.is_some_and(|known| known != party) {
            self.forget();
        }
        self.party = Some(party);
        if let Some(checked) = self.checked.get_mut(component)
            && !checked.contains(&source)
        {
            if checked.len() >= MAX_CHECKED {
                checked.remove(0);
            }
            checked.push(source);
        }
        if let Some(nominations) = self.nominated.get_mut(component) {
            nominations.check(now, nominated.map(|priority| (source, priority)));
        }
    }
}

impl Leg {
    /// Takes in a valid check that came from `source`. Media goes where the side has nominated it to go (see
    /// [`Nominations`]); until then where the first check came from, if nothing else has come yet.
    fn checked(&mut self, component: usize, source: Place, party: u64, said: (Nanos, Option<u32>)) {
        let Some(agent) = &mut self.ice else { return };
        let before = agent.nominated(0);
        agent.take(component, source, party, said);
        let now = agent.nominated(0);
        if now != before || component == 0 && now == Some(source) && said.1.is_some() {
            self.follow_nomination();
        } else if component == 0 && now.is_none() && self.latch.media.port == 0 {
            self.follow(source);
        }
    }

    /// Media goes where the side's agent has nominated it to go.
    pub(super) fn follow_nomination(&mut self) {
        if let Some(place) = self.ice.as_ref().and_then(|agent| agent.nominated(0)) {
            self.follow(place);
        }
    }

    fn follow(&mut self, place: Place) {
        if self.latch.media.ip != place.ip {
            self.latch.rtcp = 0;
        }
        (self.latch.media, self.latch.settled, self.latch.pinned) = (place, true, false);
    }
}

impl Media {
    /// Answers a check that came to the media port of side number `from` of an m-line, or to the port beside it.
    pub(super) fn check(
        &mut self,
        (n, from): (usize, usize),
        port: u16,
        source: Endpoint,
        now: Nanos,
        payload: &[u8],
    ) -> Relay {
        let refused = Relay::Drop(Dropped::Stun);
        let Some(Line { terms, legs }) = self.lines.get_mut(n) else { return refused };
        let leg = &mut legs[from];
        let (Some(ours), Some(agent)) = (&self.ice, &leg.ice) else { return refused };
        let Some(check) = Check::read(payload) else { return refused };
        let Credentials { ufrag, pwd } = ours.credentials(from, agent.generation);
        if check.asked() != ufrag || !check.is_signed_with(&pwd) {
            return refused;
        }
        let outcome = if !check.is_understood() {
            Outcome::UnknownAttributes
        } else if check.controlled {
            Outcome::RoleConflict
        } else {
            // A fork's other branches are answered too, so that they are ready when theirs is the answer that holds.
            let party = xxh3_64(check.asker());
            if terms.ends[from].ice().map_or(!terms.live, |theirs| theirs.party == party) {
                leg.last = leg.last.max(now.0);
                let nominated = check.nominates.then_some(check.priority);
                leg.checked(usize::from(port & 1), source.into(), party, (now, nominated));
            }
            Outcome::Success(source.into())
        };
        Relay::Answer { port, to: source, bytes: check.answer(outcome, &pwd) }
    }

    /// The generation of the names that a side was shown last.
    fn generation(&self, side: usize) -> u32 {
        let shown = self.lines.iter().filter_map(|line| line.legs[side].ice.as_ref());
        shown.map(|agent| agent.generation).max().unwrap_or(0)
    }

    /// Works out which generation of our names an offer of `side` is to be answered with: where it has other names than
    /// before it begins anew, and so do we.
    pub(super) fn date(&mut self, side: Side, offer: &mut Offer, ports: &mut Reservation<'_>) {
        let (side, current) = (side.index(), self.generation(side.index()));
        let lines = &self.lines;
        let held = |n: usize| lines.get(n).filter(|line| line.terms.live)?.terms.ends[side].ice();
        let restarts = |n: usize, theirs: &Theirs| held(n).is_some_and(|old| old.names != theirs.names);
        let mut offered = offer.lines.iter().enumerate();
        let restarted = offered.any(|(n, (.., end))| end.ice().is_some_and(|theirs| restarts(n, theirs)));
        let next = if restarted {
            let ours = self.ice.get_or_insert_with(|| Box::new(Ours::new(ports.secret())));
            ours.newest = ours.newest.saturating_add(1);
            ours.newest
        } else {
            current
        };
        for (n, (.., end)) in offer.lines.iter_mut().enumerate() {
            if let Some(theirs) = end.ice_mut() {
                let kept = held(n).filter(|old| old.names == theirs.names);
                theirs.generation = kept.map_or(next, |old| old.generation);
            }
        }
    }

    /// Which generation of our names an answer of `side` goes with: those it was shown in the offer.
    pub(super) fn answered_generation(&self, side: Side, n: usize) -> u32 {
        let agent = self.lines.get(n).and_then(|line| line.legs[side.index()].ice.as_ref());
        agent.map_or(0, |agent| agent.generation)
    }

    /// What an offer shows `to` of our side of m-line `n`, if it shows one: it does if `to` does ICE, or may for all
    /// that is known, and who offers does (`wanted`). Who does not leaves the lines alone (RFC 8839 section 4.2.5).
    pub(super) fn show(
        &mut self,
        to: Side,
        n: usize,
        wanted: bool,
        ports: &mut Reservation<'_>,
    ) -> Option<Credentials> {
        let side = to.index();
        let does = |line: &Line| line.terms.live && line.terms.ends[side].ice().is_some();
        let declined = self.ice.as_ref().is_some_and(|ours| ours.declined[side]);
        if !self.lines.iter().any(does) && (declined || !wanted) {
            return None;
        }
        let current = self.generation(side);
        let agent =
            self.lines.get_mut(n)?.legs[side].ice.get_or_insert_with(|| Box::new(Agent::new(current)));
        let generation = agent.generation;
        Some(self.credentials(to, generation, ports))
    }

    /// Our names for a side.
    pub(super) fn credentials(
        &mut self,
        side: Side,
        generation: u32,
        ports: &mut Reservation<'_>,
    ) -> Credentials {
        let ours = self.ice.get_or_insert_with(|| Box::new(Ours::new(ports.secret())));
        ours.credentials(side.index(), generation)
    }

    /// A side has answered what it was shown: whether it takes ICE.
    pub(super) fn decided(&mut self, side: Side) {
        let side = side.index();
        let Some(ours) = &mut self.ice else { return };
        let mut shown = self.lines.iter().filter(|line| line.terms.live && line.legs[side].ice.is_some());
        if let Some(first) = shown.next() {
            let does = |line: &Line| line.terms.ends[side].ice().is_some();
            ours.declined[side] = !does(first) && !shown.any(does);
        }
    }

    /// Nothing is agreed on: whoever answers next may be another.
    pub(super) fn ask_again(&mut self) {
        if let Some(ours) = self.ice.as_mut().filter(|_| !self.lines.iter().any(|line| line.terms.live)) {
            ours.declined = [false; 2];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_of_the_right_length_and_tell_nothing_of_each_other() {
        let (ours, others) = (Ours::new([7; 16]), Ours::new([8; 16]));
        let all = [
            ours.credentials(0, 0),
            ours.credentials(1, 0),
            ours.credentials(0, 1),
            others.credentials(0, 0),
        ];
        assert_eq!(all[0], Ours::new([7; 16]).credentials(0, 0));
        for Credentials { ufrag, pwd } in &all {
            assert!(ufrag.iter().chain(pwd).all(|b| CHARACTERS.contains(b)));
        }
        let ufrags: BTreeSet<_> = all.iter().map(|c| c.ufrag).collect();
        let pwds: BTreeSet<_> = all.iter().map(|c| c.pwd).collect();
        assert_eq!((ufrags.len(), pwds.len()), (4, 4));
    }

    #[test]
    fn an_agent_remembers_few_sources_and_of_one_party() {
        let at = |port: u16| Place { ip: [1; 16], port };
        let mut agent = Agent::new(3);
        for port in 1..=6 {
            agent.take(0, at(port), 9, (Nanos::ZERO, (port == 1).then_some(1)));
            agent.take(0, at(port), 9, (Nanos::ZERO, None));
        }
        assert_eq!(agent.checked[0], [at(3), at(4), at(5), at(6)]);
        assert!(agent.knows(0, at(1)), "nominated");
        assert!(!agent.knows(0, at(2)) && !agent.knows(1, at(6)));
        agent.take(1, at(2), 8, (Nanos::ZERO, None));
        assert_eq!((agent.nominated(0), agent.knows(0, at(6)), agent.knows(1, at(2))), (None, false, true));
        assert_eq!(agent.generation, 3);
    }
}
