//! One run of a handler: what it may use, and the changes of the slot's ports that it gathers.

use xxhash_rust::xxh3::Xxh3;

use super::config::SipConfig;
use super::shared::{Change, Lost, Shared};
use super::state::Hop;
use crate::app::Context;
use crate::app::media::{MediaSetup, PortChange, Reservation};
use crate::types::{Endpoint, Slot};
use crate::wire::sip::{HeaderName, Message, Refusal, Reply};

/// The context of this application.
pub(super) trait Ctx: Context<Shared = Shared, Change = Change> {}

impl<C: Context<Shared = Shared, Change = Change>> Ctx for C {}

/// One run.
pub(super) struct Run<'a, C> {
    pub config: &'a SipConfig,
    pub ctx: &'a mut C,
    ports: Vec<PortChange>,
}

/// Where a message came from.
#[derive(Copy, Clone, Debug)]
pub(super) struct Came {
    pub source: Endpoint,
    /// The service endpoint that it came to.
    pub endpoint: u16,
}

impl Came {
    /// The way back to its sender.
    pub(super) fn hop(self) -> Hop {
        Hop::new(self.source, self.endpoint)
    }
}

impl<'a, C: Ctx> Run<'a, C> {
    pub(super) fn new(config: &'a SipConfig, ctx: &'a mut C) -> Run<'a, C> {
        Run { config, ctx, ports: Vec::new() }
    }

    /// Logical time in ns.
    pub(super) fn now(&self) -> u64 {
        self.ctx.now().0
    }

    pub(super) fn slot(&self) -> Slot {
        Slot(self.ctx.place().1)
    }

    pub(super) fn send(&mut self, hop: Hop, bytes: &[u8]) {
        self.ctx.send(hop.local(), hop.to(), &[bytes]);
    }

    /// Counts a message that came to nothing.
    pub(super) fn lose(&mut self, lost: Lost) {
        self.ctx.change(Change::Lost(lost));
    }

    /// Lets `work` take and give back media ports. `None` if media is not anchored.
    pub(super) fn media<R>(
        &mut self,
        work: impl FnOnce(&MediaSetup, &mut Reservation<'_>) -> R,
    ) -> Option<R> {
        let slot = self.slot();
        let (media, setup) = self.config.media_setup(slot)?;
        let (draw, now, key) = (self.ctx.random(), self.ctx.now(), self.ctx.key());
        let share = &self.ctx.shared().ports;
        let reservation = Reservation::new(&media.ports, share, (slot, key), now, draw);
        let mut reservation = reservation.after(std::mem::take(&mut self.ports));
        let result = work(&setup, &mut reservation);
        self.ports = reservation.into_changes();
        Some(result)
    }

    /// Hands the changes of the ports over.
    pub(super) fn finish(&mut self) {
        for change in self.ports.drain(..) {
            self.ctx.change(Change::Ports(change));
        }
    }

    /// The tag of responses made here to the requests of transaction `id`; the same each time.
    fn tag(&self, id: u64) -> String {
        let mut hash = Xxh3::with_seed(self.config.seed);
        hash.update(&self.ctx.key().0.to_be_bytes());
        hash.update(&id.to_be_bytes());
        format!("{:016x}", hash.digest())
    }

    /// A response made here to the request of transaction `id`.
    pub(super) fn reply(
        &self,
        message: &Message<'_>,
        id: u64,
        source: Endpoint,
        status: Status,
        headers: &[(HeaderName<'_>, &[u8])],
    ) -> Vec<u8> {
        self.finish_reply(Reply::new(message, status.0, status.1.as_bytes()), id, source, headers)
    }

    /// The response to a request that is malformed.
    pub(super) fn refusal(
        &self,
        message: &Message<'_>,
        id: u64,
        source: Endpoint,
        refusal: Refusal,
    ) -> Vec<u8> {
        self.finish_reply(Reply::refuse(message, refusal), id, source, &[])
    }

    fn finish_reply(
        &self,
        reply: Reply<'_>,
        id: u64,
        source: Endpoint,
        headers: &[(HeaderName<'_>, &[u8])],
    ) -> Vec<u8> {
        let tag = self.tag(id);
        let mut reply = reply.seen_from(source.into()).to_tag(tag.as_bytes());
        for (name, value) in headers {
            reply = reply.header(*name, value);
        }
        if let Some(server) = &self.config.server {
            reply = reply.header(HeaderName::Server, server.as_bytes());
        }
        reply.build()
    }
}

/// A status code and its phrase.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Status(pub u16, pub &'static str);

impl Status {
    pub(super) const TRYING: Status = Status(100, "Trying");
    pub(super) const OK: Status = Status(200, "OK");
    pub(super) const BAD_REQUEST: Status = Status(400, "Bad Request");
    pub(super) const FORBIDDEN: Status = Status(403, "Forbidden");
    pub(super) const NOT_FOUND: Status = Status(404, "Not Found");
    pub(super) const TIMEOUT: Status = Status(408, "Request Timeout");
    pub(super) const BAD_SCHEME: Status = Status(416, "Unsupported URI Scheme");
    pub(super) const TOO_SMALL: Status = Status(422, "Session Interval Too Small");
    pub(super) const UNAVAILABLE: Status = Status(480, "Temporarily Unavailable");
    pub(super) const NO_DIALOG: Status = Status(481, "Call/Transaction Does Not Exist");
    pub(super) const LOOP: Status = Status(482, "Loop Detected");
    pub(super) const TERMINATED: Status = Status(487, "Request Terminated");
    pub(super) const NOT_ACCEPTABLE: Status = Status(488, "Not Acceptable Here");
    pub(super) const SERVER_ERROR: Status = Status(500, "Server Internal Error");
    pub(super) const OVERLOADED: Status = Status(503, "Service Unavailable");
}
