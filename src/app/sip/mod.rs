//! SIP calls: a transaction-stateful, record-routing proxy that anchors media, one deterministic state machine a call.
//!
//! One call is all that has one Call-ID, and its media. Where things are:
//!
//! | file | what |
//! |---|---|
//! | `config`, `shared` | what is told at the start; what the calls of a slot share |
//! | `state`, `snapshot` | a call's state, and its form as bytes |
//! | `request`, `acks`, `response` | what comes in (RFC 3261 sections 16 and 9) |
//! | `routing`, `forward` | where a request goes, and what goes on |
//! | `server`, `client`, `timing`, `tick` | transactions and time (section 17) |
//! | `dialog`, `session`, `bodies` | dialogs (section 12), session timers (RFC 4028), offers and answers |
//! | `ending`, `story`, `cdr` | calls that the proxy ends, and what is recorded of a call |
//! | `routes`, `health`, `keeper` | where calls go, which targets live, and who tells |
//! | `admission` | what an ingress asks before there is a call |

pub mod cdr;
pub mod config;
pub mod health;
pub mod keeper;
pub mod routes;
pub mod shared;

mod acks;
mod admission;
mod bodies;
mod client;
mod dialog;
mod ending;
mod figures;
mod forward;
mod request;
mod response;
mod routing;
mod run;
mod server;
mod session;
mod snapshot;
mod state;
mod story;
mod tick;
mod timing;

#[cfg(test)]
mod tests;

use self::config::SipConfig;
use self::keeper::{Keeper, KeeperSetup, PingFrom};
use self::routes::RouteCache;
use self::run::{Came, Run};
use self::shared::{Change, Lost, Shared};
use self::state::State;
use crate::app::classify::{KeyExtractor, KeyRule};
use crate::app::media::Relay;
use crate::app::{BadSnapshot, CallApp, Context, Figure, Inbound, TimerId, Unclassified};
use crate::types::{CallKey, LocalId, Nanos, Slot};
use crate::wire::sip::check::{Verdict, judge};
use crate::wire::sip::{Reason, Start};

/// The SIP application.
#[derive(Clone, Debug)]
pub struct Sip {
    config: SipConfig,
    keys: KeyExtractor,
    keeper: KeeperSetup,
}

/// The state of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call(Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// One with a Call-ID.
    Proxied(Box<State>),
    /// The slot's keeper.
    Keeper(Box<Keeper>),
}

impl Sip {
    /// The application with this configuration.
    pub fn new(config: SipConfig) -> Sip {
        let keys = KeyExtractor { rule: KeyRule::Sip, seed: config.seed };
        let addresses = config.endpoints.iter().map(|endpoint| endpoint.address).max().map_or(0, |a| a + 1);
        let first = |address: u16| config.endpoints.iter().position(|endpoint| endpoint.address == address);
        let from = |address: u16| {
            let number = first(address).unwrap_or(0);
            let host = config.endpoints.get(number).map(config::ServiceEndpoint::sent_by);
            PingFrom { local: LocalId::endpoint(number as u16), host: host.unwrap_or_default() }
        };
        let keeper = KeeperSetup {
            keys,
            slots: config.slots,
            addresses: (0..addresses).map(from).collect(),
            routes: RouteCache::default(),
        };
        Sip { config, keys, keeper }
    }

    /// What it was made with.
    pub fn config(&self) -> &SipConfig {
        &self.config
    }

    /// The slot that a key belongs to.
    fn slot(&self, key: CallKey) -> Slot {
        key.slot(self.config.slots.max(1))
    }

    fn on_media(&self, state: &mut State, ctx: &mut impl run::Ctx, packet: &Inbound<'_>) {
        let slot = Slot(ctx.place().1);
        let Some((_, setup)) = self.config.media_setup(slot) else { return };
        let LocalId { endpoint, port } = packet.local;
        match state.media.on_packet(ctx.now(), port, packet.source, packet.payload, &setup) {
            Relay::Forward { port, to, .. } => {
                ctx.send(LocalId::media(endpoint, port), to, &[packet.payload]);
            }
            Relay::Answer { port, to, bytes } => ctx.send(LocalId::media(endpoint, port), to, &[&bytes]),
            Relay::Drop(reason) => ctx.change(Change::Lost(Lost::Media(reason))),
        }
    }

    fn on_sip(&self, state: &mut State, ctx: &mut impl run::Ctx, packet: &Inbound<'_>) {
        let came = Came { source: packet.source, endpoint: packet.local.endpoint };
        let mut run = Run::new(&self.config, ctx);
        let too_long = packet.payload.len() > self.config.max_bytes;
        match if too_long { Verdict::Drop(Reason::TooLong) } else { judge(packet.payload) } {
            Verdict::Drop(reason) => run.lose(Lost::Malformed(reason)),
            Verdict::Refuse(message, refusal) => request::refuse(&mut run, &message, came, refusal),
            Verdict::Pass(message) if message.headers().count() > self.config.max_headers => {
                run.lose(Lost::Malformed(Reason::TooManyHeaders));
                if message.is_answerable() {
                    request::refuse(&mut run, &message, came, Reason::TooManyHeaders.into());
                }
            }
            Verdict::Pass(message) => match message.start() {
                Start::Request { .. } => state.on_request(&mut run, &message, came),
                Start::Response { .. } => state.on_response(&mut run, &message, came),
            },
        }
        state.finish(&mut run);
    }
}

impl CallApp for Sip {
    type Call = Call;
    type Shared = Shared;
    type Change = Change;

    fn classify(&self, packet: &Inbound<'_>) -> Result<CallKey, Unclassified> {
        match packet.local.port {
            0 => self.keys.key(packet),
            _ => admission::media_key(&self.config, packet.local).ok_or(Unclassified::NoKey),
        }
    }

    fn opens(&self, packet: &Inbound<'_>) -> bool {
        admission::opens(packet)
    }

    fn refuse(&self, packet: &Inbound<'_>, retry_after_secs: u32, out: &mut Vec<u8>) -> bool {
        admission::refuse(&self.config, packet, retry_after_secs, out)
    }

    fn resolve(&self, shared: &Shared, key: CallKey, packet: &Inbound<'_>) -> Option<CallKey> {
        let slot = self.slot(key);
        match packet.local {
            LocalId::NOTICE => Some(key),
            LocalId { port: 0, .. } if shared.slot.is_ping(key) => Some(CallKey::keeper(slot)),
            LocalId { port: 0, .. } => Some(key),
            LocalId { port, .. } => {
                let media = self.config.media.as_ref()?;
                shared.ports.owner(&media.ports, slot, port)
            }
        }
    }

    fn open(&self, key: CallKey, _: Nanos) -> Call {
        Call(if key == CallKey::keeper(self.slot(key)) {
            Kind::Keeper(Box::default())
        } else {
            Kind::Proxied(Box::default())
        })
    }

    fn on_packet(
        &self,
        call: &mut Call,
        ctx: &mut impl Context<Shared = Shared, Change = Change>,
        packet: &Inbound<'_>,
    ) {
        match &mut call.0 {
            Kind::Keeper(keeper) => keeper.on_packet(&self.keeper, ctx, packet),
            Kind::Proxied(state) if packet.local.port != 0 => self.on_media(state, ctx, packet),
            Kind::Proxied(state) => self.on_sip(state, ctx, packet),
        }
    }

    fn on_timer(
        &self,
        call: &mut Call,
        ctx: &mut impl Context<Shared = Shared, Change = Change>,
        _: TimerId,
    ) {
        match &mut call.0 {
            Kind::Keeper(keeper) => keeper.on_timer(&self.keeper, ctx),
            Kind::Proxied(state) => {
                let mut run = Run::new(&self.config, ctx);
                state.on_time(&mut run);
                state.finish(&mut run);
            }
        }
    }

    fn apply(&self, shared: &mut Shared, change: Change) {
        shared.apply(change);
    }

    fn on_end(&self, shared: &mut Shared, key: CallKey) {
        shared.ports.end(key);
    }

    fn figures(&self, shared: &Shared, now: Nanos, tell: &mut dyn FnMut(&'static str, Figure)) {
        figures::tell(shared, now, tell);
    }

    fn snapshot_shared(&self, shared: &Shared, out: &mut Vec<u8>) -> u16 {
        snapshot::write_shared(shared, out)
    }

    fn restore_shared(&self, version: u16, bytes: &[u8]) -> Result<Shared, BadSnapshot> {
        snapshot::read_shared(&self.keeper.routes, version, bytes)
    }

    fn snapshot(&self, call: &Call, out: &mut Vec<u8>) -> u16 {
        snapshot::write(call, out)
    }

    fn restore(&self, version: u16, bytes: &[u8]) -> Result<Call, BadSnapshot> {
        snapshot::read(version, bytes)
    }
}
