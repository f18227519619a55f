//! The keeper of a slot: the call that takes the cluster's notices and, on one slot of each service address, pings.
//!
//! | notice | what it says | what the keeper does |
//! |---|---|---|
//! | `R` text | a route file | these are the slot's routes from now on |
//! | `H` address, ` reset`, ` up IP:PORT`, ` down IP:PORT` ... | verdicts on targets by the keeper that pings for that address | believes them if the slot is carried by that address |
//! | `T` | master or owner became another | counts it |
//!
//! Slot s, where s is less than the number of service addresses, is carried by address s; its keeper asks every target
//! for OPTIONS (RFC 3261 section 11) at the route file's interval and says `H` when one changes, to the keepers of all
//! slots that its node owns: those of its address are among them. A ping is sent again as any request over UDP (section
//! 17.1.2) until it is answered or has failed. Every final answer but 408 and 503 is one of a target that lives.
//!
//! A notice can be lost when its node dies. So, a little after a takeover and with new routes, the whole truth is said
//! again.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::health::{SlotChange, SlotState, Verdict, read_verdicts, verdicts_text};
use super::routes::{Pings, RouteCache};
use crate::app::classify::KeyExtractor;
use crate::app::{BadSnapshot, Context, Inbound, TimerId};
use crate::types::{CallKey, Endpoint, LocalId, Nanos, Slot};
use crate::wire::sip::scan::StartLine;
use crate::wire::sip::{Method, Request, summary};

/// The notice of a route file: this byte, then its canonical text.
pub const ROUTES: u8 = b'R';
/// The notice of verdicts on targets.
pub const HEALTH: u8 = b'H';
/// The notice of a takeover.
pub const TAKEOVER: u8 = b'T';

/// The keeper's only timer.
const NEXT: TimerId = TimerId(0);
/// How long a request is waited for before it is sent again at first (RFC 3261: T1), and at most (T2).
const T1: Nanos = Nanos::from_millis(500);
const T2: Nanos = Nanos::from_secs(4);
/// How long after a takeover the verdicts are said again: not while calls need the log most.
const ANNOUNCE_AFTER: Nanos = Nanos::from_secs(1);
/// What a branch begins with (RFC 3261 section 8.1.1.7).
const COOKIE: &str = "z9hG4bK";
/// The form of [`Keeper`]'s snapshot.
const FORM: u16 = 1;

/// A service address as the keeper uses it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PingFrom {
    /// Its first endpoint.
    pub local: LocalId,
    /// How that endpoint is named to others: HOST:PORT.
    pub host: String,
}

/// What keepers know; the same on every node.
#[derive(Clone, Debug)]
pub struct KeeperSetup {
    /// Names the call of a datagram.
    pub keys: KeyExtractor,
    /// How many slots there are.
    pub slots: u16,
    /// The service addresses in order.
    pub addresses: Vec<PingFrom>,
    /// The route files in use.
    pub routes: RouteCache,
}

/// Where a target's ping stands.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Ping {
    ip: [u8; 16],
    port: u16,
    down: bool,
    /// Pings in a row that spoke against `down`.
    contrary: u8,
    /// When it wants to be looked at.
    due: u64,
    asked: Option<Asked>,
}

/// A ping that is not answered yet.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Asked {
    branch: u64,
    cseq: u32,
    first: u64,
    /// How long after this time it is sent again.
    wait: u64,
}

impl Ping {
    fn target(&self) -> Endpoint {
        Endpoint { ip: self.ip, port: self.port }
    }

    /// Notes whether a ping was answered; the verdict, if that makes one.
    fn judge(&mut self, answered: bool, pings: Pings) -> Option<Verdict> {
        self.asked = None;
        if answered != self.down {
            self.contrary = 0;
            return None;
        }
        self.contrary = self.contrary.saturating_add(1);
        if self.contrary < if self.down { pings.up_after } else { pings.down_after } {
            return None;
        }
        self.contrary = 0;
        self.down = !self.down;
        Some(if self.down { Verdict::Down(self.target()) } else { Verdict::Up(self.target()) })
    }
}

/// The state of a keeper.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Keeper {
    /// The Call-ID of its pings, which hashes to its slot; empty until it has pinged.
    call_id: String,
    tag: u64,
    cseq: u32,
    /// By target.
    pings: Vec<Ping>,
    /// When the verdicts are to be said again.
    announce: Option<u64>,
}

impl Keeper {
    /// Takes a notice or the answer to a ping.
    pub fn on_packet<S, C>(
        &mut self,
        setup: &KeeperSetup,
        ctx: &mut impl Context<Shared = S, Change = C>,
        packet: &Inbound<'_>,
    ) where
        S: AsRef<SlotState>,
        C: From<SlotChange>,
    {
        if packet.local != LocalId::NOTICE {
            return self.on_answer(ctx, packet);
        }
        let Some((kind, body)) = packet.payload.split_first() else { return };
        let Ok(text) = std::str::from_utf8(body) else { return };
        match *kind {
            ROUTES => self.on_routes(setup, ctx, text),
            HEALTH => {
                let (address, verdicts) = text.split_once(' ').unwrap_or((text, ""));
                let carries = address.parse() == Ok(carrier(setup, ctx.place().1));
                if let (true, Some(verdicts)) = (carries, read_verdicts(verdicts)) {
                    ctx.change(SlotChange::Verdicts(verdicts).into());
                }
            }
            TAKEOVER => {
                ctx.change(SlotChange::Takeover.into());
                if !self.pings.is_empty() {
                    self.announce = Some((ctx.now() + ANNOUNCE_AFTER).0);
                    self.set_timer(ctx);
                }
            }
            _ => {}
        }
    }

    /// Does what is due.
    pub fn on_timer<S, C>(&mut self, setup: &KeeperSetup, ctx: &mut impl Context<Shared = S, Change = C>)
    where
        S: AsRef<SlotState>,
    {
        let (Some(pings), now) = (ctx.shared().as_ref().routes().pings(), ctx.now()) else { return };
        let mut verdicts = Vec::new();
        if self.announce.is_some_and(|at| at <= now.0) {
            verdicts = self.announcement();
        }
        for index in 0..self.pings.len() {
            if self.pings[index].due <= now.0 {
                verdicts.extend(self.look_at(index, pings, setup, ctx));
            }
        }
        say(ctx, &verdicts);
        self.set_timer(ctx);
    }

    /// Everything that is known, for those who missed some of it.
    fn announcement(&mut self) -> Vec<Verdict> {
        self.announce = None;
        let down = self.pings.iter().filter(|ping| ping.down);
        std::iter::once(Verdict::Reset).chain(down.map(|ping| Verdict::Down(ping.target()))).collect()
    }

    /// Takes new routes. A text that cannot be read changes nothing: whoever sends one has read it before.
    fn on_routes<S, C>(
        &mut self,
        setup: &KeeperSetup,
        ctx: &mut impl Context<Shared = S, Change = C>,
        text: &str,
    ) where
        C: From<SlotChange>,
    {
        let Ok(routes) = setup.routes.get(text) else { return };
        ctx.change(SlotChange::Routes(routes.clone()).into());
        let slot = ctx.place().1;
        let known = std::mem::take(&mut self.pings);
        let pings = routes.pings().filter(|_| usize::from(slot) < setup.addresses.len());
        if let Some(pings) = pings.filter(|_| self.has_call_id(setup, ctx)) {
            let (now, count) = (ctx.now(), routes.targets().len().max(1) as u64);
            for (index, target) in routes.targets().iter().enumerate() {
                let kept = known.binary_search_by_key(target, Ping::target).ok().map(|at| known[at]);
                // The first pings are spread over the interval, and so are all that follow.
                let due = now.0.saturating_add(pings.interval.0 / count * index as u64);
                let Endpoint { ip, port } = *target;
                self.pings.push(kept.unwrap_or(Ping {
                    ip,
                    port,
                    down: false,
                    contrary: 0,
                    due,
                    asked: None,
                }));
            }
            self.announce = (!known.is_empty()).then_some((now + ANNOUNCE_AFTER).0);
        } else {
            self.announce = None;
        }
        self.set_timer(ctx);
    }

    /// Finds a Call-ID whose answers come to this slot, once. False if there is none, which happens to nobody.
    fn has_call_id<S, C>(
        &mut self,
        setup: &KeeperSetup,
        ctx: &mut impl Context<Shared = S, Change = C>,
    ) -> bool
    where
        C: From<SlotChange>,
    {
        if !self.call_id.is_empty() {
            return true;
        }
        let (slot, base) = (Slot(ctx.place().1), ctx.random());
        let host = &setup.addresses[usize::from(slot.0)].host;
        for suffix in 0..u64::from(setup.slots) * 64 {
            let call_id = format!("{base:016x}-{suffix}@{host}");
            let found = ping_key(setup, &call_id).filter(|key| key.slot(setup.slots) == slot);
            if let Some(key) = found {
                (self.call_id, self.tag) = (call_id, ctx.random());
                ctx.change(SlotChange::Pings(key).into());
                return true;
            }
        }
        false
    }

    /// Asks a target, asks it again, or gives this ping up.
    fn look_at<S, C>(
        &mut self,
        index: usize,
        pings: Pings,
        setup: &KeeperSetup,
        ctx: &mut impl Context<Shared = S, Change = C>,
    ) -> Option<Verdict> {
        let now = ctx.now();
        let ping = &mut self.pings[index];
        let asked = match ping.asked {
            Some(asked) if now.0 >= asked.first.saturating_add(pings.timeout.0) => {
                ping.due = asked.first.saturating_add(pings.interval.0).max(now.0 + 1);
                return ping.judge(false, pings);
            }
            Some(asked) => Asked { wait: asked.wait.saturating_mul(2).min(T2.0), ..asked },
            None => {
                self.cseq = self.cseq % (i32::MAX as u32) + 1;
                Asked { branch: ctx.random(), cseq: self.cseq, first: now.0, wait: T1.0 }
            }
        };
        ping.asked = Some(asked);
        ping.due = now.0.saturating_add(asked.wait).min(asked.first.saturating_add(pings.timeout.0));
        let to = ping.target();
        let from = setup.addresses.get(usize::from(ctx.place().1))?;
        ctx.send(from.local, to, &[&self.options(&from.host, to, asked)]);
        None
    }

    /// The ping's bytes; the same when it is sent again.
    fn options(&self, host: &str, to: Endpoint, asked: Asked) -> Vec<u8> {
        let uri = format!("sip:{}", SocketAddr::from(to));
        let via = format!("SIP/2.0/UDP {host};branch={COOKIE}{:016x};rport", asked.branch);
        let from = format!("<sip:ping@{host}>;tag={:016x}", self.tag);

        Request {
            method: Method::Options,
            uri: uri.as_bytes(),
            via: via.as_bytes(),
            from: from.as_bytes(),
            to: format!("<{uri}>").as_bytes(),
            call_id: self.call_id.as_bytes(),
            cseq: asked.cseq,
        }
        .build(&[], b"")
    }

    /// An answer counts if it names the ping's branch and comes from the target's address.
    fn on_answer<S, C>(&mut self, ctx: &mut impl Context<Shared = S, Change = C>, packet: &Inbound<'_>)
    where
        S: AsRef<SlotState>,
    {
        let Some(pings) = ctx.shared().as_ref().routes().pings() else { return };
        let Some(answer) = summary(packet.payload) else { return };
        let StartLine::Response { status: status @ 200.. } = answer.start else { return };
        let branch = answer.branch.and_then(|branch| branch.strip_prefix(COOKIE.as_bytes()));
        let branch = branch.and_then(|hex| u64::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        let meant =
            |ping: &&mut Ping| ping.asked.map(|asked| asked.branch) == branch && ping.ip == packet.source.ip;
        let Some(ping) = branch.and_then(|_| self.pings.iter_mut().find(meant)) else { return };
        let first = ping.asked.map_or(ctx.now().0, |asked| asked.first);
        ping.due = first.saturating_add(pings.interval.0);
        let verdict = ping.judge(!matches!(status, 408 | 503), pings);
        say(ctx, verdict.as_slice());
        self.set_timer(ctx);
    }

    fn set_timer<S, C>(&self, ctx: &mut impl Context<Shared = S, Change = C>) {
        let due = self.pings.iter().map(|ping| ping.due).chain(self.announce).min();
        ctx.set_timer(NEXT, due.map_or(Nanos::MAX, Nanos));
    }

    /// Appends the state to `out`; returns the version of the form.
    pub fn snapshot(&self, out: &mut Vec<u8>) -> u16 {
        // Writing to memory cannot fail; a state of no bytes would be refused on the other side.
        out.extend_from_slice(&postcard::to_stdvec(self).unwrap_or_default());
        FORM
    }

    /// Reads back what `snapshot` wrote.
    ///
    /// # Errors
    /// [`BadSnapshot`] for another version or damaged bytes.
    pub fn restore(version: u16, bytes: &[u8]) -> Result<Keeper, BadSnapshot> {
        match postcard::take_from_bytes(bytes) {
            Ok((keeper, [])) if version == FORM => Ok(keeper),
            _ => Err(BadSnapshot { version, bytes: bytes.len() }),
        }
    }
}

/// The number of the service address that carries `slot`.
fn carrier(setup: &KeeperSetup, slot: u16) -> u16 {
    slot % (setup.addresses.len().max(1) as u16)
}

/// The call that answers to a ping classify to.
fn ping_key(setup: &KeeperSetup, call_id: &str) -> Option<CallKey> {
    let skeleton = format!("OPTIONS sip:p SIP/2.0\r\nCall-ID: {call_id}\r\n\r\n");
    let nobody = Endpoint { ip: [0; 16], port: 0 };
    let packet = Inbound { source: nobody, local: LocalId::endpoint(0), payload: skeleton.as_bytes() };
    setup.keys.key(&packet).ok()
}

/// Tells the slots of this address.
fn say<S, C>(ctx: &mut impl Context<Shared = S, Change = C>, verdicts: &[Verdict]) {
    if !verdicts.is_empty() {
        let text = format!("{}{}", ctx.place().1, verdicts_text(verdicts));
        let nobody = Endpoint { ip: [0; 16], port: 0 };
        ctx.send(LocalId::NOTICE, nobody, &[&[HEALTH], text.as_bytes()]);
    }
}

#[cfg(test)]
mod tests;
