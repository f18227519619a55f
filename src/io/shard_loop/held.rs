//! Which service endpoints this shard has sockets on: those whose address the newest map gives to this life of this
//! node, from the time on at which it has a lease. Also what the shard tells the control about the map.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use mio::unix::SourceFd;
use mio::{Interest, Token};

use super::{FIRST_SOCKET, ShardCore, ShardLoop};
use crate::engine::ShardReport;
use crate::io::client::ClientSocket;
use crate::io::sys_time;
use crate::proto::map::ClusterMap;
use crate::types::{LocalId, Nanos, Now};

/// How soon an endpoint that somebody has is tried again.
const BIND_AGAIN: Nanos = Nanos::from_millis(100);
/// How often the log is told of it.
const COMPLAIN_EVERY: Nanos = Nanos::from_secs(10);
/// How long the socket of a lost endpoint is still read: others will not hear at once where it is now.
pub(in crate::io) const LINGER: Nanos = Nanos::from_millis(50);
/// How often a socket is read at most before it is closed.
const LAST_ROUNDS: u32 = 64;
/// How often the control is told how things stand, at most.
const REPORT_EVERY: Nanos = Nanos::from_millis(1);

/// What the loop knows of the map and the lease, and what it has made of them.
#[derive(Default)]
pub(super) struct Held {
    map: Option<Arc<ClusterMap>>,
    seen: u32,
    lease: Nanos,
    /// Endpoints to bind or to close, and when.
    due: Vec<(LocalId, Nanos)>,
    /// No complaint about endpoints before then.
    quiet_until: Nanos,
    report: ShardReport,
    reported: Nanos,
    /// When the control is told of what has changed since then.
    report_at: Option<Nanos>,
}

impl Held {
    /// When the loop must turn even if nothing arrives.
    pub(super) fn next_timeout(&self) -> Nanos {
        let due = self.due.iter().map(|(_, at)| *at);
        due.chain(self.report_at).min().unwrap_or(Nanos::MAX)
    }
}

impl<C: ShardCore> ShardLoop<C> {
    /// Takes news of the map and the lease, and opens and closes endpoints by them.
    pub(super) fn follow_map(&mut self, now: Now) -> io::Result<()> {
        let mut is_news = false;
        loop {
            // Before the map: a lease that is read here belongs to the map that is taken next, or to the one before.
            self.follow_lease(now);
            let Some(map) = self.parts.cells.take_map(&mut self.held.seen) else { break };
            is_news = true;
            self.core.on_map(now, map.clone());
            let owned = |slot| map.owns(map.address_of(slot), self.parts.node, self.parts.boot);
            self.parts.outgoing.records.iter_mut().for_each(|records| records.forget(owned));
            self.drop_overtaken(&map);
            self.held.map = Some(map);
            self.plan(now.mono);
        }
        if !is_news && self.held.due.iter().all(|(_, at)| *at > now.mono) {
            return Ok(());
        }
        let (due, later) = self.held.due.iter().partition(|(_, at)| *at <= now.mono);
        self.held.due = later;
        let due: Vec<(LocalId, Nanos)> = due;
        for (local, _) in due {
            match self.is_held(local) {
                true => self.open(now, local)?,
                false => self.close(now, local)?,
            }
        }
        let bound = |local: u16| {
            !self.is_held(LocalId::endpoint(local)) || self.socket_of(LocalId::endpoint(local)).is_some()
        };
        if (0..self.parts.endpoints.len() as u16).all(bound) {
            self.parts.cells.shards[usize::from(self.parts.shard)].set_followed(self.held.seen);
        }
        Ok(())
    }

    fn follow_lease(&mut self, now: Now) {
        let lease = self.parts.cells.lease_until();
        if lease != self.held.lease {
            let (had, has) = (self.held.lease > now.mono, lease > now.mono);
            self.held.lease = lease;
            self.core.on_lease(now, lease);
            if has && !had {
                self.plan(now.mono);
            }
        }
    }

    /// What was held back in this turn leaves in the next, and that comes with the lease: which may just have come.
    pub(super) fn note_lease(&self) {
        let (cells, shard) = (&self.parts.cells, usize::from(self.parts.shard));
        let now = sys_time::mono();
        let leaseless = self.held.lease.min(cells.lease_until()) <= now;
        cells.shards[shard].set_leaseless(leaseless);
        if leaseless && cells.lease_until() > now {
            cells.shards[shard].wake();
        }
    }

    /// Replies that wait for an address that has got another term are out of date, even if it is this node's again.
    fn drop_overtaken(&mut self, map: &ClusterMap) {
        let Some(before) = self.held.map.take() else { return };
        for local in (0..self.parts.endpoints.len() as u16).map(LocalId::endpoint) {
            let term = |map: &ClusterMap| {
                let address = map.endpoints.get(usize::from(local.endpoint))?;
                map.addresses.get(usize::from(*address)).map(|address| address.term)
            };
            if term(&before) != term(map) {
                self.parts.outgoing.drop_waiting(local);
            }
        }
    }

    /// Puts down what is to be opened and closed.
    fn plan(&mut self, now: Nanos) {
        self.held.due.clear();
        self.plan_media(now);
        for local in (0..self.parts.endpoints.len() as u16).map(LocalId::endpoint) {
            let (held, open) = (self.is_held(local), self.socket_of(local).is_some());
            if held && !open && self.held.lease > now {
                self.held.due.push((local, now));
            } else if !held && open {
                self.held.due.push((local, now + LINGER));
            }
        }
    }

    fn plan_media(&mut self, now: Nanos) {
        let Some(map) = &self.held.map else { return };
        for (address, number) in (0..map.addresses.len()).zip(0_u16..) {
            let held = map.owns(address, self.parts.node, self.parts.boot);
            let (media, core) = (&mut self.parts.outgoing.media, &self.core);
            match held {
                true if self.held.lease > now => media.open_all(number, now, |local| core.has_call(local)),
                true => {}
                false => media.close_all(number, now + LINGER),
            }
        }
    }

    fn is_held(&self, local: LocalId) -> bool {
        self.held.map.as_ref().is_some_and(|map| {
            let address = map.endpoints.get(usize::from(local.endpoint));
            address.is_some_and(|at| map.owns(usize::from(*at), self.parts.node, self.parts.boot))
        })
    }

    fn socket_of(&self, local: LocalId) -> Option<&ClientSocket> {
        self.parts.outgoing.clients.get(usize::from(local.endpoint)).and_then(Option::as_ref)
    }

    /// Binds an endpoint; tries again later if somebody else has it.
    fn open(&mut self, now: Now, local: LocalId) -> io::Result<()> {
        if self.socket_of(local).is_some() {
            return Ok(());
        }
        let (endpoint, wanted) = (self.parts.endpoints[usize::from(local.endpoint)], self.parts.buffers);
        match ClientSocket::bind(local, endpoint, wanted) {
            Ok((socket, granted)) => {
                if granted.recv < wanted.recv || granted.send < wanted.send {
                    let (recv, send) = (granted.recv, granted.send);
                    tracing::warn!(%endpoint, recv, send, "the kernel grants smaller buffers than TANDEM_RCVBUF and _SNDBUF: raise net.core.rmem_max and wmem_max");
                }
                tracing::info!(%endpoint, shard = self.parts.shard, "service endpoint open");
                let fd = socket.fd();
                self.parts.outgoing.clients[usize::from(local.endpoint)] = Some(socket);
                self.watch(local, fd)
            }
            Err(error) => {
                if now.mono >= self.held.quiet_until {
                    self.held.quiet_until = now.mono + COMPLAIN_EVERY;
                    tracing::error!(%endpoint, %error, "this service endpoint cannot be bound: stop the process that has it; tried again every 100 ms");
                }
                self.held.due.push((local, now.mono + BIND_AGAIN));
                Ok(())
            }
        }
    }

    fn watch(&mut self, local: LocalId, fd: RawFd) -> io::Result<()> {
        let place = self.place(local);
        let registry = self.parts.poll.registry();
        registry.register(&mut SourceFd(&fd), Token(FIRST_SOCKET + place), Interest::READABLE)?;
        let watched = &mut self.sockets[place];
        (watched.fd, watched.readable, watched.wants_write) = (fd, true, false);
        Ok(())
    }

    /// Closes an endpoint once it was read dry.
    fn close(&mut self, now: Now, local: LocalId) -> io::Result<()> {
        if self.socket_of(local).is_none() {
            return Ok(());
        }
        let place = self.place(local);
        let mut rounds = 0..LAST_ROUNDS;
        while self.receive_client(now, usize::from(local.endpoint)) && rounds.next().is_some() {}
        let watched = &mut self.sockets[place];
        self.parts.poll.registry().deregister(&mut SourceFd(&watched.fd))?;
        (watched.fd, watched.readable, watched.wants_write) = (-1, false, false);
        self.parts.outgoing.close(local);
        Ok(())
    }

    /// The place of an endpoint among the sockets: the endpoints are the last of them.
    fn place(&self, local: LocalId) -> usize {
        self.sockets.len() - self.parts.endpoints.len() + usize::from(local.endpoint)
    }

    /// Tells the control how things stand, if they have changed.
    pub(super) fn publish(&mut self, now: Now) {
        self.held.report_at = None;
        let report = self.core.report();
        if *report == self.held.report {
            return;
        }
        let next = self.held.reported + REPORT_EVERY;
        if now.mono < next {
            self.held.report_at = Some(next);
            return;
        }
        self.held.reported = now.mono;
        self.held.report.clone_from(report);
        self.parts.cells.shards[usize::from(self.parts.shard)].set_report(report.clone());
    }
}
