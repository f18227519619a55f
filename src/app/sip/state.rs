//! The state of one call: its transactions, its dialogs, its media, and what its record will say.
//!
//! All of it is plain data: times are logical, in ns; nothing is kept that a timer or a message to come does not need.

use serde::{Deserialize, Serialize};

use super::story::Story;
use crate::app::media::{Media, Side};
use crate::types::{Endpoint, LocalId};
use crate::wire::sip::Method;

/// "Never", as a time.
pub(super) const NEVER: u64 = u64::MAX;

/// A neighbour: its address, and the service endpoint that it is spoken to from.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hop {
    pub ip: [u8; 16],
    pub port: u16,
    /// The number of the service endpoint.
    pub endpoint: u16,
}

impl Hop {
    pub(super) fn new(to: Endpoint, endpoint: u16) -> Hop {
        Hop { ip: to.ip, port: to.port, endpoint }
    }

    pub(super) fn to(&self) -> Endpoint {
        Endpoint { ip: self.ip, port: self.port }
    }

    pub(super) fn local(&self) -> LocalId {
        LocalId::endpoint(self.endpoint)
    }
}

/// The methods that a proxy must tell apart.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Verb {
    Invite,
    Bye,
    Update,
    Prack,
    Other,
}

impl Verb {
    pub(super) fn of(method: Method<'_>) -> Verb {
        match method {
            Method::Invite => Verb::Invite,
            Method::Bye => Verb::Bye,
            Method::Update => Verb::Update,
            Method::Prack => Verb::Prack,
            _ => Verb::Other,
        }
    }
}

/// A message that is sent again and again until something comes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Repeat {
    /// When next; never: not any more.
    pub at: u64,
    /// The time between the last two, in ns.
    pub interval: u64,
}

/// Where a server transaction is (RFC 3261 section 17.2, RFC 6026).
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ServerState {
    /// No final response yet.
    Proceeding,
    /// A final response other than 2xx to an INVITE was sent, or any to another request.
    Completed,
    /// That response to an INVITE is acknowledged.
    Confirmed,
    /// A 2xx to an INVITE was sent.
    Accepted,
}

/// The side of a request that it came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Server {
    /// Names the transaction ([`super::server::id`]).
    pub id: u64,
    /// Where responses go.
    pub to: Hop,
    pub state: ServerState,
    /// The last response; empty before the first.
    pub reply: Box<[u8]>,
    /// Timer G.
    pub repeat: Repeat,
    /// Timer H, I, J or L.
    pub until: u64,
}

/// Where a client transaction is (RFC 3261 section 17.1, RFC 6026).
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ClientState {
    /// Nothing came back yet.
    Calling,
    /// A provisional response did.
    Proceeding,
    /// A final response did: other than 2xx, if it is an INVITE.
    Completed,
    /// A 2xx to an INVITE did.
    Accepted,
}

/// The CANCEL of a client transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Cancel {
    No,
    /// To be sent as soon as a provisional response has come (RFC 3261 section 9.1).
    Wanted,
    /// Sent; repeated until it is answered. Timer F of it, which ends the wait for the INVITE's response too.
    Sent(Repeat),
}

/// The side of a request that it went to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Client {
    /// Names the transaction: the first half of the branch.
    pub branch: u64,
    pub to: Hop,
    pub state: ClientState,
    /// The request as sent; after a final response the ACK to it; empty if neither is needed any more.
    pub sent: Box<[u8]>,
    /// Timer A or E.
    pub repeat: Repeat,
    /// When it was first sent.
    pub began: u64,
    /// Timer B, C, D, F, K or M; while it is silent, when the next target is tried, if there is one.
    pub until: u64,
    pub cancel: Cancel,
    /// What its CANCEL says of why (RFC 3326), if anything.
    pub reason: Box<[u8]>,
    /// A hash of the last response, to know it again.
    pub last: u64,
}

/// What the session descriptions of an INVITE have come to.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Bodies {
    /// None is looked at.
    None,
    /// The request holds an offer.
    Offered,
    /// It holds none: a response will.
    Late,
    /// A response did.
    LateOffered,
    /// All is said: further descriptions belong to others.
    Settled,
}

/// What a request says of session timers (RFC 4028).
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Refresh {
    /// Whether its sender knows them.
    pub supported: bool,
    /// The Session-Expires it was sent on with, in s; 0 for none.
    pub interval: u32,
}

/// A request on its way through, with both its transactions; or one of our own, with only one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Exchange {
    pub verb: Verb,
    /// The request as it came; empty once nothing has to be made of it any more.
    pub request: Box<[u8]>,
    /// Where it came from, as seen.
    pub source: Hop,
    /// None for our own.
    pub server: Option<Server>,
    /// The last one is current; those before it were given up.
    pub clients: Vec<Client>,
    /// Where it can go if the current one fails, the best last.
    pub targets: Vec<Hop>,
    /// Who sent it, if that is one of the two.
    pub from: Option<Side>,
    pub bodies: Bodies,
    pub refresh: Refresh,
    /// It is within a dialog.
    pub within: bool,
    /// The caller has cancelled it.
    pub cancelled: bool,
    /// It rang too long.
    pub expired: bool,
    /// It has been through here before: dialog and media are the other exchange's.
    pub spiral: bool,
}

/// Where a dialog is.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum DialogState {
    Early,
    Confirmed,
    /// A BYE is under way.
    Ending,
}

/// One side of a dialog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Party {
    /// Its From or To value, with the tag.
    pub name: Box<[u8]>,
    /// Its remote target: the URI of its last Contact; empty if it never sent one.
    pub contact: Box<[u8]>,
    /// The Route values between here and it, joined by commas.
    pub routes: Box<[u8]>,
    /// The highest CSeq number it has used.
    pub cseq: u32,
    /// Where its last message came from.
    pub seen: Hop,
}

/// A dialog that an INVITE began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Dialog {
    pub state: DialogState,
    /// By [`Side`].
    pub parties: [Party; 2],
    /// When it was answered.
    pub answered: u64,
    /// When the session ends unless it is refreshed.
    pub expires: u64,
}

/// One call: all that has its Call-ID.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    pub call_id: Box<[u8]>,
    pub exchanges: Vec<Exchange>,
    pub dialogs: Vec<Dialog>,
    pub media: Media,
    /// Of the INVITE that began it, until its record is written.
    pub story: Option<Box<Story>>,
    /// When silence of the media is looked at next.
    pub listen: u64,
    /// What the call's timer is set to; 0 before it was ever set.
    pub armed: u64,
}

impl State {
    /// The bytes of messages kept.
    pub(super) fn stored(&self) -> usize {
        self.exchanges.iter().map(Exchange::stored).sum()
    }

    /// The exchange and client transaction that a branch of ours names.
    pub(super) fn client(&self, branch: u64) -> Option<(usize, usize)> {
        self.exchanges.iter().enumerate().find_map(|(e, exchange)| {
            Some((e, exchange.clients.iter().position(|client| client.branch == branch)?))
        })
    }
}

impl Exchange {
    /// One of our own.
    pub(super) fn own(verb: Verb, client: Client) -> Exchange {
        Exchange {
            verb,
            request: Box::default(),
            source: client.to,
            server: None,
            clients: vec![client],
            targets: Vec::new(),
            from: None,
            bodies: Bodies::None,
            refresh: Refresh::default(),
            within: true,
            cancelled: false,
            expired: false,
            spiral: false,
        }
    }

    fn stored(&self) -> usize {
        let clients: usize = self.clients.iter().map(|client| client.sent.len() + client.reason.len()).sum();
        self.request.len() + clients + self.server.as_ref().map_or(0, |server| server.reply.len())
    }

    /// Whether it has a final response, or needs none.
    pub(super) fn is_answered(&self) -> bool {
        match &self.server {
            Some(server) => server.state != ServerState::Proceeding,
            None => self.clients.iter().all(|client| client.state == ClientState::Completed),
        }
    }

    /// Nothing has to be made of the request any more.
    pub(super) fn forget_request(&mut self) {
        self.request = Box::default();
        self.targets = Vec::new();
    }
}

impl Repeat {
    /// Not at all.
    pub(super) const OFF: Repeat = Repeat { at: NEVER, interval: 0 };
}
