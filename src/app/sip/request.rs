//! A request comes in (RFC 3261 sections 16.2 to 16.6).

use super::forward::{self, Onward};
use super::routing::{self, Visits, Way};
use super::run::{Came, Ctx, Run, Status};
use super::server::{id, response_hop};
use super::session::{self, Amended, TooSmall};
use super::shared::Lost;
use super::state::{Bodies, Client, DialogState, Exchange, Hop, Refresh, Server, State, Verb};
use super::story::{Cause, Story};
use super::timing::GIVE_UP;
use crate::app::media::Side;
use crate::types::Endpoint;
use crate::wire::sip::check::routable;
use crate::wire::sip::{Address, HeaderName, Message, Method, Reason, Uri};

/// Transactions of a call that may be unfinished at a time.
const MAX_OPEN: usize = 16;
/// Transactions of a call that are remembered, finished ones included.
const MAX_KEPT: usize = 64;
/// Bytes of messages that a call may hold.
const MAX_STORED: usize = 262_144;
/// Targets that are tried one after the other.
const MAX_TARGETS: usize = 8;
/// When who finds no free media port may try again, in seconds: as for other limits on calls.
const RETRY_AFTER: &[u8] = b"10";

/// A new request and what is known of it.
struct Asked<'m, 'a> {
    message: &'m Message<'a>,
    method: Method<'a>,
    came: Came,
    /// Its transaction.
    id: u64,
    /// Its dialog, and who sent it.
    dialog: Option<(usize, Side)>,
    /// Whether it is within a dialog, known or not.
    within: bool,
}

impl State {
    pub(super) fn on_request(&mut self, run: &mut Run<'_, impl Ctx>, message: &Message<'_>, came: Came) {
        let Some(method) = message.method() else { return };
        let id = id(message);
        let known = self.exchanges.iter().position(|exchange| exchange.is_of(id, method));
        match (method, known) {
            (Method::Ack, known) => self.on_ack(run, message, came, known),
            (Method::Cancel, known) => self.on_cancel(run, message, came, known),
            (_, Some(at)) => {
                if let Some(server) = &mut self.exchanges[at].server {
                    server.again(run);
                }
            }
            (_, None) => {
                let within = message.to().is_some_and(|to| to.tag().is_some());
                let dialog = self.dialog_of(message);
                self.on_new_request(run, &Asked { message, method, came, id, dialog, within });
            }
        }
    }

    fn on_new_request(&mut self, run: &mut Run<'_, impl Ctx>, asked: &Asked<'_, '_>) {
        let Some(way) = routing::way(run.config, asked.message) else {
            return answer(run, asked, Status::BAD_REQUEST, &[]);
        };
        if asks_us(asked.method, &way) {
            return answer_options(run, asked);
        }
        let loop_hash = routing::loop_hash(run.config, asked.message);
        let visits = routing::visits(run.config, asked.message, loop_hash);
        if visits == Visits::Loop {
            return answer(run, asked, Status::LOOP, &[]);
        }
        if !self.has_room(run.now(), asked.message.bytes().len()) {
            run.lose(Lost::TooMany);
            return answer(run, asked, Status::SERVER_ERROR, &[]);
        }
        let spiral = visits == Visits::Spiral || self.is_foreign(asked);
        if Verb::of(asked.method) == Verb::Invite && !asked.within && !spiral {
            self.begin_story(run, asked);
        }
        if let Some((at, side)) = asked.dialog {
            self.note_request(at, side, asked.message, asked.came);
        }
        let mut way = way;
        match self.find_targets(run, asked, &mut way) {
            Ok(targets) => self.accept(run, asked, &way, targets, loop_hash, spiral),
            Err(status) => {
                let lost = match status {
                    Status::NO_DIALOG | Status::FORBIDDEN => Lost::StrayRequest,
                    Status::BAD_SCHEME => Lost::Malformed(Reason::Scheme),
                    _ => Lost::NoRoute,
                };
                run.lose(lost);
                self.reject(run, asked, status, &[], spiral);
            }
        }
    }

    /// Makes room among finished transactions, and says whether there is enough.
    fn has_room(&mut self, now: u64, bytes: usize) -> bool {
        let open = self.exchanges.iter().filter(|exchange| !exchange.is_answered()).count();
        if open >= MAX_OPEN {
            return false;
        }
        while self.exchanges.len() >= MAX_KEPT || self.stored() + 3 * bytes > MAX_STORED {
            let finished = |e: &Exchange| e.is_answered() && (e.verb != Verb::Invite || e.is_over(now));
            match self.exchanges.iter().position(finished) {
                Some(at) => self.exchanges.remove(at),
                None => return false,
            };
        }
        true
    }

    /// Whether an INVITE begins another call under the Call-ID of one that goes on (a back-to-back agent that keeps
    /// Call-IDs, calling through here again): it is proxied, but dialog and media are the first one's.
    fn is_foreign(&self, asked: &Asked<'_, '_>) -> bool {
        let tag = |name: &[u8]| Address::parse(name).and_then(|name| name.tag()).map(<[u8]>::to_vec);
        let ours = self.story.as_ref().is_some_and(|story| {
            tag(&story.from) == asked.message.from().and_then(|from| from.tag()).map(<[u8]>::to_vec)
        });
        let goes_on = self.story.as_ref().is_some_and(|story| story.ended.is_none());
        goes_on && !ours && asked.dialog.is_none()
    }

    fn begin_story(&mut self, run: &Run<'_, impl Ctx>, asked: &Asked<'_, '_>) {
        if let Some(story) = &mut self.story {
            // Again with credentials, or after a redirection.
            story.ended = None;
            return;
        }
        let value = |name| asked.message.first(name).unwrap_or_default().into();
        self.story = Some(Box::new(Story {
            started: (run.now(), run.ctx.place().0),
            rung: 0,
            answered: 0,
            ended: None,
            from: value(HeaderName::From),
            to: value(HeaderName::To),
            uri: asked.message.uri().unwrap_or_default().into(),
            source: asked.came.hop(),
            tried: Vec::with_capacity(1),
            code: 0,
            takeovers: run.ctx.shared().slot.takeovers(),
        }));
    }

    /// Where the request can go, the best last (RFC 3261 section 16.5).
    fn find_targets(
        &self,
        run: &mut Run<'_, impl Ctx>,
        asked: &Asked<'_, '_>,
        way: &mut Way,
    ) -> Result<Vec<Hop>, Status> {
        let (to, wanted) = if let Some((at, side)) = asked.dialog {
            let party = self.dialogs[at].party(side.other());
            // Who knows no route set sends to us what is for the other side.
            if way.routes.is_empty() && way.ours && !party.contact.is_empty() {
                way.redirect(&party.contact, &party.routes).ok_or(Status::NO_DIALOG)?;
            }
            (party.reached_by(way), way.endpoint.unwrap_or(party.seen.endpoint))
        } else if !way.routes.is_empty() || asked.within && way.through && !way.ours {
            let unreachable = if asked.within { Status::NO_DIALOG } else { Status::NOT_FOUND };
            let to = way.next.ok_or(unreachable)?.into();
            if !self.may_lead(run, asked.came.source, to, asked.within) {
                return Err(Status::FORBIDDEN);
            }
            (to, way.endpoint.unwrap_or(asked.came.endpoint))
        } else if asked.within {
            return Err(Status::NO_DIALOG);
        } else {
            return routed(run, asked, way);
        };
        let endpoint = run.config.speaker(to, wanted).ok_or(Status::UNAVAILABLE)?;
        Ok(vec![Hop::new(to, endpoint)])
    }

    /// Takes a request on: keeps it, and sends it to its first target.
    fn accept(
        &mut self,
        run: &mut Run<'_, impl Ctx>,
        asked: &Asked<'_, '_>,
        way: &Way,
        targets: Vec<Hop>,
        loop_hash: u64,
        spiral: bool,
    ) {
        let (refresh, amended) = match session::request(run.config, asked.message) {
            Ok(judged) => judged,
            Err(TooSmall(least)) => {
                let least = least.to_string();
                let headers = [(HeaderName::MinSe, least.as_bytes())];
                return self.reject(run, asked, Status::TOO_SMALL, &headers, spiral);
            }
        };
        let verb = Verb::of(asked.method);
        let from = match asked.dialog {
            Some((_, side)) => Some(side),
            None if verb == Verb::Invite && !asked.within => Some(Side::Caller),
            None => None,
        };
        let (bodies, body) = match from.filter(|_| !spiral) {
            None => (Bodies::None, None),
            Some(side) => match self.request_body(run, verb, side, asked.message) {
                Ok(judged) => judged,
                Err(status) => {
                    let later = [(HeaderName::RetryAfter, RETRY_AFTER)];
                    let headers = if status == Status::OVERLOADED { &later[..] } else { &[] };
                    return self.reject(run, asked, status, headers, spiral);
                }
            },
        };
        let mut exchange = Exchange { targets, from, bodies, refresh, ..asked.exchange(spiral) };
        if let (Verb::Invite, Some(server)) = (verb, &mut exchange.server) {
            let trying = run.reply(asked.message, asked.id, asked.came.source, Status::TRYING, &[]);
            server.provisional(run, trying);
        }
        if verb == Verb::Bye
            && let Some((at, _)) = asked.dialog
        {
            self.dialogs[at].state = DialogState::Ending;
        }
        if self.call_id.is_empty() {
            self.call_id = asked.message.call_id().unwrap_or_default().into();
        }
        let onward =
            Launch { message: asked.message, way, loop_hash, body: body.as_deref(), amended: &amended };
        exchange.launch(run, &onward);
        self.exchanges.push(exchange);
        self.note_target(self.exchanges.len() - 1);
    }

    /// Refuses a request: once, and again when it comes again. An INVITE's transaction is kept for its ACK.
    fn reject(
        &mut self,
        run: &mut Run<'_, impl Ctx>,
        asked: &Asked<'_, '_>,
        status: Status,
        headers: &[(HeaderName<'_>, &[u8])],
        spiral: bool,
    ) {
        if asked.method != Method::Invite {
            return answer(run, asked, status, headers);
        }
        let mut exchange = Exchange { request: Box::default(), ..asked.exchange(spiral) };
        if let Some(server) = &mut exchange.server {
            let bytes = run.reply(asked.message, asked.id, asked.came.source, status, headers);
            server.refuse(run, status.0, bytes);
        }
        if !asked.within && !spiral {
            let cause = if status == Status::NOT_FOUND { Cause::NoRoute } else { Cause::Refused };
            self.note_refusal(run.now(), status.0, cause);
        }
        self.exchanges.push(exchange);
    }

    /// Tries the next target of an exchange whose last one failed; false if there is none that it can be sent to.
    pub(super) fn try_next(&mut self, run: &mut Run<'_, impl Ctx>, at: usize) -> bool {
        if !self.may_try_next(at) {
            return false;
        }
        let exchange = &mut self.exchanges[at];
        let request = std::mem::take(&mut exchange.request);
        let (verb, from) = (exchange.verb, exchange.from.filter(|_| !exchange.spiral));
        let tried = exchange.clients.len();
        if let Ok(message) = Message::parse(&request)
            && let Some(way) = routing::way(run.config, &message)
            && let Ok((_, amended)) = session::request(run.config, &message)
        {
            let loop_hash = routing::loop_hash(run.config, &message);
            // The offer once more: of the request as it was sent only the ACK may be left.
            let body = from.and_then(|side| self.request_body(run, verb, side, &message).ok()?.1);
            let body = body.as_deref();
            let onward = Launch { message: &message, way: &way, loop_hash, body, amended: &amended };
            self.exchanges[at].launch(run, &onward);
        }
        self.exchanges[at].request = request;
        self.note_target(at);
        self.exchanges[at].clients.len() > tried
    }

    fn note_target(&mut self, at: usize) {
        let exchange = &self.exchanges[at];
        if let (Verb::Invite, Some(story), false) = (exchange.verb, &mut self.story, exchange.spiral)
            && story.answered == 0
            && story.tried.len() < super::cdr::MAX_TRIED
            && let Some(client) = exchange.clients.last()
        {
            story.tried.push(client.to);
        }
    }
}

/// What a request is sent on with.
struct Launch<'l, 'a> {
    message: &'l Message<'a>,
    way: &'l Way,
    loop_hash: u64,
    body: Option<&'l [u8]>,
    amended: &'l Amended,
}

impl Asked<'_, '_> {
    fn exchange(&self, spiral: bool) -> Exchange {
        let to = response_hop(self.message.via().as_ref(), self.came);
        Exchange {
            verb: Verb::of(self.method),
            request: self.message.bytes().into(),
            source: self.came.hop(),
            server: Some(Server::new(self.id, to)),
            clients: Vec::with_capacity(1),
            targets: Vec::new(),
            from: None,
            bodies: Bodies::None,
            refresh: Refresh::default(),
            within: self.within,
            cancelled: false,
            expired: false,
            spiral,
        }
    }
}

impl Exchange {
    /// Sends the request to the best target that is left.
    fn launch(&mut self, run: &mut Run<'_, impl Ctx>, onward: &Launch<'_, '_>) {
        let Some(to) = self.targets.pop() else { return };
        let branch = run.ctx.random();
        let wait = if self.targets.is_empty() { GIVE_UP } else { run.config.next_after.0.min(GIVE_UP) };
        let bytes = forward::request(
            run.config,
            onward.message,
            &Onward {
                way: onward.way,
                source: self.source.to(),
                came: self.source.endpoint,
                to,
                branch: (branch, onward.loop_hash),
                body: onward.body,
                session: onward.amended,
            },
        );
        self.clients.push(Client::start(run, branch, to, bytes, wait));
    }
}

/// The targets that the routes give, the best last.
fn routed(run: &mut Run<'_, impl Ctx>, asked: &Asked<'_, '_>, way: &Way) -> Result<Vec<Hop>, Status> {
    let uri = Uri::parse(&way.uri).ok_or(Status::BAD_REQUEST)?;
    if routable(&uri).is_err() {
        return Err(Status::BAD_SCHEME);
    }
    let (draw, now) = (run.ctx.random(), run.ctx.now());
    let targets = run.ctx.shared().targets(&uri, draw, now);
    if targets.is_empty() {
        return Err(Status::NOT_FOUND);
    }
    let wanted = way.endpoint.unwrap_or(asked.came.endpoint);
    let hop = |to: Endpoint| Some(Hop::new(to, run.config.speaker(to, wanted)?));
    let mut hops: Vec<Hop> = targets.into_iter().take(MAX_TARGETS).filter_map(hop).collect();
    hops.reverse();
    if hops.is_empty() { Err(Status::UNAVAILABLE) } else { Ok(hops) }
}

/// Whether a request is for the proxy itself: OPTIONS to a service endpoint, not to a user of it.
fn asks_us(method: Method<'_>, way: &Way) -> bool {
    let nobody = || Uri::parse(&way.uri).is_some_and(|uri| uri.user().is_none());
    method == Method::Options && way.ours && way.routes.is_empty() && nobody()
}

fn answer_options(run: &mut Run<'_, impl Ctx>, asked: &Asked<'_, '_>) {
    answer(run, asked, Status::OK, &[(HeaderName::Accept, b"*/*")]);
}

/// Answers a request that belongs to nothing.
pub(super) fn reject_stateless(
    run: &mut Run<'_, impl Ctx>,
    message: &Message<'_>,
    came: Came,
    status: Status,
) {
    let bytes = run.reply(message, id(message), came.source, status, &[]);
    run.send(response_hop(message.via().as_ref(), came), &bytes);
}

/// Answers and keeps nothing: the request that comes again gets the same.
fn answer(
    run: &mut Run<'_, impl Ctx>,
    asked: &Asked<'_, '_>,
    status: Status,
    headers: &[(HeaderName<'_>, &[u8])],
) {
    let bytes = run.reply(asked.message, asked.id, asked.came.source, status, headers);
    run.send(response_hop(asked.message.via().as_ref(), asked.came), &bytes);
}

/// Answers a request that is malformed. An OPTIONS for the proxy itself is answered whatever hops it has left.
pub(super) fn refuse(
    run: &mut Run<'_, impl Ctx>,
    message: &Message<'_>,
    came: Came,
    refusal: crate::wire::sip::Refusal,
) {
    let (id, hop) = (id(message), response_hop(message.via().as_ref(), came));
    let for_us = refusal.code == 483
        && message.method() == Some(Method::Options)
        && routing::way(run.config, message).is_some_and(|way| asks_us(Method::Options, &way));
    let bytes = if for_us {
        run.reply(message, id, came.source, Status::OK, &[(HeaderName::Accept, b"*/*")])
    } else {
        run.lose(Lost::Malformed(refusal.reason));
        run.refusal(message, id, came.source, refusal)
    };
    run.send(hop, &bytes);
}
