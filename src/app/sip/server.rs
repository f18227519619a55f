//! The server side of a request: which transaction it belongs to, and what goes back (RFC 3261 section 17.2, RFC 6026).

use xxhash_rust::xxh3::Xxh3;

use super::run::{Came, Ctx, Run};
use super::state::{Exchange, Hop, NEVER, Repeat, Server, ServerState, Verb};
use super::timing::{GIVE_UP, T2, T4};
use crate::types::Endpoint;
use crate::wire::sip::{HeaderName, Message, Method, Via};

/// What names a request's transaction (RFC 3261 section 17.2.3): branch and sent-by of its topmost Via. Of a sender that
/// makes no such branches: the whole Via, the Request-URI and the From tag. And the CSeq number, which an ACK and a
/// CANCEL share with their INVITE.
pub(super) fn id(message: &Message<'_>) -> u64 {
    let mut hash = Xxh3::new();
    let mut part = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u32).to_be_bytes());
        hash.update(bytes);
    };
    part(&message.cseq().map_or(0, |cseq| cseq.number).to_be_bytes());
    let via = message.via();
    match via.as_ref().and_then(|via| Some((via.transaction()?, via.host, via.port_or_default()))) {
        Some((branch, host, port)) => {
            part(branch);
            part(&host.bytes().to_ascii_lowercase());
            part(&port.to_be_bytes());
        }
        None => {
            part(message.values(HeaderName::Via).next().unwrap_or_default());
            part(message.uri().unwrap_or_default());
            part(message.from().and_then(|from| from.tag()).unwrap_or_default());
        }
    }
    hash.digest()
}

/// Where responses go (RFC 3261 section 18.2.2, RFC 3581 section 4): to the address that the request came from, never
/// to another that it names, at the port that it came from if that is asked for.
pub(super) fn response_hop(via: Option<&Via<'_>>, came: Came) -> Hop {
    let port = match via {
        Some(via) if !via.wants_rport() => via.port_or_default(),
        _ => came.source.port,
    };
    Hop::new(Endpoint { ip: came.source.ip, port }, came.endpoint)
}

impl Server {
    pub(super) fn new(id: u64, to: Hop) -> Server {
        Server {
            id,
            to,
            state: ServerState::Proceeding,
            reply: Box::default(),
            repeat: Repeat::OFF,
            until: NEVER,
        }
    }

    /// Sends a provisional response and keeps it.
    pub(super) fn provisional(&mut self, run: &mut Run<'_, impl Ctx>, bytes: Vec<u8>) {
        run.send(self.to, &bytes);
        self.reply = bytes.into_boxed_slice();
    }

    /// Sends a final response: a 2xx to an INVITE is repeated by whoever made it, another is repeated here until its
    /// ACK comes.
    pub(super) fn conclude(&mut self, run: &mut Run<'_, impl Ctx>, verb: Verb, code: u16, bytes: Vec<u8>) {
        let now = run.now();
        run.send(self.to, &bytes);
        self.reply = bytes.into_boxed_slice();
        self.until = now.saturating_add(GIVE_UP);
        (self.state, self.repeat) = match verb {
            Verb::Invite if code < 300 => (ServerState::Accepted, Repeat::OFF),
            Verb::Invite => (ServerState::Completed, Repeat::start(now)),
            _ => (ServerState::Completed, Repeat::OFF),
        };
    }

    /// Refuses a request that nothing was said to yet. Timer G (RFC 3261 section 17.2.1) would repeat an INVITE's refusal
    /// to a source that may be forged; so the INVITE, which is repeated until something is said, draws it again.
    pub(super) fn refuse(&mut self, run: &mut Run<'_, impl Ctx>, code: u16, bytes: Vec<u8>) {
        self.conclude(run, Verb::Invite, code, bytes);
        self.repeat = Repeat::OFF;
    }

    /// Whether the 2xx that it sent was this one: that of the same dialog.
    pub(super) fn has_said(&self, accepted: &Message<'_>) -> bool {
        let tag = |message: &Message<'_>| message.to().and_then(|to| to.tag()).map(<[u8]>::to_vec);
        self.state == ServerState::Accepted
            && Message::parse(&self.reply).is_ok_and(|reply| tag(&reply) == tag(accepted))
    }

    /// The request came again.
    pub(super) fn again(&mut self, run: &mut Run<'_, impl Ctx>) {
        let answers = matches!(self.state, ServerState::Proceeding | ServerState::Completed);
        if answers && !self.reply.is_empty() {
            run.send(self.to, &self.reply);
        }
    }

    /// The ACK to a response above 299 came.
    pub(super) fn acknowledged(&mut self, now: u64) {
        if self.state == ServerState::Completed {
            self.state = ServerState::Confirmed;
            self.reply = Box::default();
            self.repeat.stop();
            self.until = now.saturating_add(T4);
        }
    }

    /// Ends without a response.
    pub(super) fn abandon(&mut self, now: u64) {
        self.state = ServerState::Completed;
        self.repeat.stop();
        self.until = now;
    }

    /// Does what is due.
    pub(super) fn tick(&mut self, run: &mut Run<'_, impl Ctx>) {
        let now = run.now();
        if self.until > now && self.repeat.is_due(now, T2) {
            run.send(self.to, &self.reply);
        }
    }

    pub(super) fn is_over(&self, now: u64) -> bool {
        self.state != ServerState::Proceeding && self.until <= now
    }
}

impl Exchange {
    /// Whether a request of that method, whose transaction is `id`, belongs to it.
    pub(super) fn is_of(&self, id: u64, method: Method<'_>) -> bool {
        let same = self.server.as_ref().is_some_and(|server| server.id == id);
        same && match method {
            Method::Ack => self.verb == Verb::Invite,
            Method::Cancel => true,
            method => self.verb == Verb::of(method),
        }
    }
}
