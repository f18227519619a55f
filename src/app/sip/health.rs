//! What a slot knows beside its calls: the routes, which targets are down, how often it was taken over.
//!
//! It is part of the slot's shared state. Two things make a target down. The keeper that pings for the slot's service
//! address says so ([`Verdict`]); that holds until it says otherwise. And a call that got no answer from it, or a 503,
//! marks it: for 10 s, then 20 s and so on up to 60 s as long as nothing but failures come, until it answers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::routes::{MAX_TARGETS, RouteCache, Routes};
use crate::app::BadSnapshot;
use crate::types::{CallKey, Endpoint, Nanos};

/// How long a target is down that failed a call for the first time.
pub const FIRST_MARK: Nanos = Nanos::from_secs(10);
/// How long at most.
pub const LONGEST_MARK: Nanos = Nanos::from_secs(60);

/// The form of [`SlotState`]'s snapshot.
const FORM: u16 = 1;

/// What the keeper that pings says of targets.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// All are up but those named next.
    Reset,
    /// It is up.
    Up(Endpoint),
    /// It is down.
    Down(Endpoint),
}

/// The text of verdicts, as in a notice.
pub fn verdicts_text(verdicts: &[Verdict]) -> String {
    let mut text = String::new();
    for verdict in verdicts {
        // Writing to memory cannot fail.
        let _ = match verdict {
            Verdict::Reset => write!(text, " reset"),
            Verdict::Up(target) => write!(text, " up {}", SocketAddr::from(*target)),
            Verdict::Down(target) => write!(text, " down {}", SocketAddr::from(*target)),
        };
    }
    text
}

/// Reads what [`verdicts_text`] wrote. `None` for everything else.
pub fn read_verdicts(text: &str) -> Option<Vec<Verdict>> {
    let mut words = text.split_ascii_whitespace();
    let mut verdicts = Vec::new();
    while let Some(word) = words.next() {
        let mut target = || Some(Endpoint::from(words.next()?.parse::<SocketAddr>().ok()?));
        verdicts.push(match word {
            "reset" => Verdict::Reset,
            "up" => Verdict::Up(target()?),
            "down" => Verdict::Down(target()?),
            _ => return None,
        });
    }
    Some(verdicts)
}

/// A change of [`SlotState`]; handlers hand it to `Context::change`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SlotChange {
    /// These are the routes from now on.
    Routes(Arc<Routes>),
    /// The keeper that pings has spoken.
    Verdicts(Vec<Verdict>),
    /// The slot's master or owner became another.
    Takeover,
    /// A target did not answer a call, or said 503.
    Failed {
        /// It.
        target: Endpoint,
        /// When.
        now: Nanos,
    },
    /// A target answered.
    Answered(Endpoint),
    /// Answers to this call id are the keeper's.
    Pings(CallKey),
}

/// A target that failed calls.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
struct Mark {
    until: Nanos,
    /// How long it is down this time.
    pause: Nanos,
}

/// The state.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SlotState {
    routes: Arc<Routes>,
    down: BTreeSet<Endpoint>,
    marks: BTreeMap<Endpoint, Mark>,
    takeovers: u32,
    pings: Option<CallKey>,
}

impl SlotState {
    /// The routes.
    pub fn routes(&self) -> &Arc<Routes> {
        &self.routes
    }

    /// How often the slot was taken over since its log began.
    pub fn takeovers(&self) -> u32 {
        self.takeovers
    }

    /// The targets that are down at `now`, in order.
    pub fn down(&self, now: Nanos) -> impl Iterator<Item = Endpoint> {
        self.routes.targets().iter().copied().filter(move |target| self.is_down(*target, now))
    }

    /// Whether calls should rather go elsewhere.
    pub fn is_down(&self, target: Endpoint, now: Nanos) -> bool {
        self.down.contains(&target) || self.marks.get(&target).is_some_and(|mark| now < mark.until)
    }

    /// Whether packets that classify to `key` are answers to the keeper's pings.
    pub fn is_ping(&self, key: CallKey) -> bool {
        self.pings == Some(key)
    }

    /// The change when a target timed out or answered 503; none if no rule names it, or if it is marked already.
    pub fn failed(&self, target: Endpoint, now: Nanos) -> Option<SlotChange> {
        let marked = self.marks.get(&target).is_some_and(|mark| now < mark.until);
        (!marked && self.routes.has_target(target)).then_some(SlotChange::Failed { target, now })
    }

    /// The change when a target answered; none if it was not marked.
    pub fn answered(&self, target: Endpoint) -> Option<SlotChange> {
        self.marks.contains_key(&target).then_some(SlotChange::Answered(target))
    }

    /// Makes a change.
    pub fn apply(&mut self, change: SlotChange) {
        match change {
            SlotChange::Routes(routes) => {
                // Who is not pinged any more is not known to be down.
                self.down.retain(|target| routes.pings().is_some() && routes.has_target(*target));
                self.marks.retain(|target, _| routes.has_target(*target));
                self.routes = routes;
            }
            SlotChange::Verdicts(verdicts) => verdicts.into_iter().for_each(|verdict| self.hear(verdict)),
            SlotChange::Takeover => self.takeovers = self.takeovers.saturating_add(1),
            SlotChange::Failed { target, now } => self.mark(target, now),
            SlotChange::Answered(target) => {
                self.marks.remove(&target);
            }
            SlotChange::Pings(key) => self.pings = Some(key),
        }
    }

    fn hear(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Reset => self.down.clear(),
            Verdict::Up(target) => {
                self.down.remove(&target);
            }
            // A target of routes that this slot has not heard of yet is believed; the next routes settle it.
            Verdict::Down(target) if self.routes.pings().is_some() && self.down.len() < MAX_TARGETS => {
                self.down.insert(target);
            }
            Verdict::Down(_) => {}
        }
    }

    fn mark(&mut self, target: Endpoint, now: Nanos) {
        let pause = match self.marks.get(&target) {
            Some(mark) if now < mark.until => return,
            Some(mark) => (mark.pause + mark.pause).min(LONGEST_MARK),
            None => FIRST_MARK,
        };
        if self.routes.has_target(target) {
            self.marks.insert(target, Mark { until: now + pause, pause });
        }
    }

    /// Appends the state to `out`; returns the version of the form.
    pub fn snapshot(&self, out: &mut Vec<u8>) -> u16 {
        let place = |target: &Endpoint| (target.ip, target.port);
        let form = Form {
            routes: self.routes.text(),
            down: self.down.iter().map(place).collect(),
            marks: self.marks.iter().map(|(to, mark)| (place(to), mark.until.0, mark.pause.0)).collect(),
            takeovers: self.takeovers,
            pings: self.pings.map(|key| key.0),
        };
        // Writing to memory cannot fail; a state of no bytes would be refused on the other side.
        out.extend_from_slice(&postcard::to_stdvec(&form).unwrap_or_default());
        FORM
    }

    /// Reads back what `snapshot` wrote.
    ///
    /// # Errors
    /// [`BadSnapshot`] for another version, damaged bytes or routes that cannot be read.
    pub fn restore(cache: &RouteCache, version: u16, bytes: &[u8]) -> Result<SlotState, BadSnapshot> {
        let bad = BadSnapshot { version, bytes: bytes.len() };
        let form = match postcard::take_from_bytes::<Form<'_>>(bytes) {
            Ok((form, [])) if version == FORM => form,
            _ => return Err(bad),
        };
        let target = |(ip, port)| Endpoint { ip, port };
        let mark = |(to, until, pause)| (target(to), Mark { until: Nanos(until), pause: Nanos(pause) });
        Ok(SlotState {
            routes: cache.get(form.routes).map_err(|_| bad)?,
            down: form.down.into_iter().map(target).collect(),
            marks: form.marks.into_iter().map(mark).collect(),
            takeovers: form.takeovers,
            pings: form.pings.map(CallKey),
        })
    }
}

type Place = ([u8; 16], u16);

/// The snapshot of a slot's state.
#[derive(Serialize, Deserialize)]
struct Form<'a> {
    routes: &'a str,
    down: Vec<Place>,
    marks: Vec<(Place, u64, u64)>,
    takeovers: u32,
    pings: Option<u128>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Endpoint {
        Endpoint::from(text.parse::<SocketAddr>().expect("an address"))
    }

    fn secs(seconds: u64) -> Nanos {
        Nanos::from_secs(seconds)
    }

    fn with_routes(cache: &RouteCache, text: &str) -> SlotState {
        let mut state = SlotState::default();
        state.apply(SlotChange::Routes(cache.get(text).expect("routes")));
        state
    }

    const PINGED: &str = "default 10.0.0.1, 10.0.0.2\nping 5s";

    #[test]
    fn marks_double_to_a_minute_and_an_answer_clears_them() {
        let (cache, target) = (RouteCache::default(), at("10.0.0.1:5060"));
        let mut state = with_routes(&cache, "default 10.0.0.1");
        let mut now = secs(100);
        for pause in [10, 20, 40, 60, 60] {
            let change = state.failed(target, now).expect("a change");
            state.apply(change.clone());
            // Calls that fail in the same breath do not count.
            assert_eq!(state.failed(target, now + secs(1)), None);
            state.apply(change);
            assert!(state.is_down(target, now + secs(pause) - Nanos(1)));
            now = now + secs(pause);
            assert!(!state.is_down(target, now), "after {pause} s");
        }
        state.apply(state.answered(target).expect("marked"));
        assert_eq!(state.answered(target), None);
        state.apply(state.failed(target, now).expect("a change"));
        assert!(state.is_down(target, now + secs(9)) && !state.is_down(target, now + secs(10)));
        assert_eq!(state.failed(at("10.9.9.9:5060"), now), None, "no rule names it");
    }

    #[test]
    fn verdicts_hold_until_others_come_or_the_routes_forget_the_target() {
        let cache = RouteCache::default();
        let mut state = with_routes(&cache, PINGED);
        let (one, two) = (at("10.0.0.1:5060"), at("10.0.0.2:5060"));
        state.apply(SlotChange::Verdicts(vec![Verdict::Down(one), Verdict::Down(two), Verdict::Up(one)]));
        assert_eq!(state.down(secs(1)).collect::<Vec<_>>(), [two]);
        state.apply(SlotChange::Verdicts(vec![Verdict::Reset, Verdict::Down(one)]));
        assert_eq!(state.down(secs(1)).collect::<Vec<_>>(), [one]);
        state.apply(SlotChange::Routes(cache.get("default 10.0.0.2\nping 5s").expect("routes")));
        state.apply(SlotChange::Routes(cache.get(PINGED).expect("routes")));
        assert_eq!(state.down(secs(1)).count(), 0, "it was not named for a while");
        state.apply(SlotChange::Verdicts(vec![Verdict::Down(one)]));
        state.apply(SlotChange::Routes(cache.get("default 10.0.0.1").expect("routes")));
        assert_eq!(state.down(secs(1)).count(), 0, "it is not pinged any more");
        state.apply(SlotChange::Verdicts(vec![Verdict::Down(one)]));
        assert_eq!(state.down(secs(1)).count(), 0, "a verdict that came late");
    }

    #[test]
    fn verdicts_are_read_back_and_nothing_else_is() {
        let all = [Verdict::Reset, Verdict::Up(at("[2001:db8::1]:5060")), Verdict::Down(at("10.0.0.1:5070"))];
        let text = verdicts_text(&all);
        assert_eq!(text, " reset up [2001:db8::1]:5060 down 10.0.0.1:5070");
        assert_eq!(read_verdicts(&text).as_deref(), Some(&all[..]));
        for other in ["up", "down x", "sideways 10.0.0.1:1", "up 10.0.0.1"] {
            assert_eq!(read_verdicts(other), None, "{other}");
        }
    }

    #[test]
    fn a_snapshot_holds_everything_and_shares_the_routes() {
        let cache = RouteCache::default();
        let mut state = with_routes(&cache, PINGED);
        state.apply(SlotChange::Verdicts(vec![Verdict::Down(at("10.0.0.1:5060"))]));
        state.apply(SlotChange::Failed { target: at("10.0.0.2:5060"), now: secs(3) });
        state.apply(SlotChange::Takeover);
        state.apply(SlotChange::Pings(CallKey(77)));
        assert!(state.is_ping(CallKey(77)) && !state.is_ping(CallKey(78)) && state.takeovers() == 1);
        let mut bytes = Vec::new();
        let version = state.snapshot(&mut bytes);
        let back = SlotState::restore(&cache, version, &bytes).expect("a snapshot");
        assert_eq!(back, state);
        assert!(Arc::ptr_eq(back.routes(), state.routes()), "one copy");
        let elsewhere = SlotState::restore(&RouteCache::default(), version, &bytes).expect("a snapshot");
        assert_eq!(elsewhere, state);
        let mut again = Vec::new();
        elsewhere.snapshot(&mut again);
        assert_eq!(again, bytes);
        assert!(SlotState::restore(&cache, version + 1, &bytes).is_err());
        (0..bytes.len()).for_each(|len| assert!(SlotState::restore(&cache, version, &bytes[..len]).is_err()));
        bytes.push(0);
        assert!(SlotState::restore(&cache, version, &bytes).is_err(), "more than a snapshot");
    }
}
