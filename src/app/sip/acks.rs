//! ACK and CANCEL: the two that are no transactions of their own (RFC 3261 sections 9.2, 16.10, 16.11, 17.1.1.3).

use super::forward::{self, Onward};
use super::request::reject_stateless;
use super::routing::{self, Visits};
use super::run::{Came, Ctx, Run, Status};
use super::server::{id, response_hop};
use super::session::Amended;
use super::shared::Lost;
use super::state::{Cancel, Exchange, Hop, Server, ServerState, State, Verb};
use crate::types::Endpoint;
use crate::wire::sip::{HeaderName, Message};

impl State {
    /// An ACK: to a response above 299 it ends here, to a 2xx it goes on.
    pub(super) fn on_ack(
        &mut self,
        run: &mut Run<'_, impl Ctx>,
        message: &Message<'_>,
        came: Came,
        known: Option<usize>,
    ) {
        let known = known.or_else(|| self.meant_by_ack(message));
        let server = known.and_then(|at| self.exchanges[at].server.as_mut());
        match server {
            Some(server) if server.state != ServerState::Accepted => server.acknowledged(run.now()),
            _ => self.pass_ack(run, message, came),
        }
    }

    fn pass_ack(&mut self, run: &mut Run<'_, impl Ctx>, message: &Message<'_>, came: Came) {
        let loop_hash = routing::loop_hash(run.config, message);
        let stray = |run: &mut Run<'_, _>| run.lose(Lost::StrayAck);
        let Some(mut way) = routing::way(run.config, message) else { return stray(run) };
        let visits = routing::visits(run.config, message, loop_hash);
        let dialog = self.dialog_of(message);
        let to = match dialog {
            Some((at, side)) => {
                let party = self.dialogs[at].party(side.other());
                if way.routes.is_empty() && way.ours && !party.contact.is_empty() {
                    way.redirect(&party.contact, &party.routes);
                }
                Some((party.reached_by(&way), way.endpoint.unwrap_or(party.seen.endpoint)))
            }
            // After the loss of all state its routes are all there is (section 16.11).
            None if way.through && !(way.ours && way.routes.is_empty()) => {
                let next =
                    way.next.map(Endpoint::from).filter(|to| self.may_lead(run, came.source, *to, true));
                next.map(|next| (next, way.endpoint.unwrap_or(came.endpoint)))
            }
            None => None,
        };
        let hop = to.and_then(|(to, wanted)| Some(Hop::new(to, run.config.speaker(to, wanted)?)));
        let Some(to) = hop.filter(|_| visits != Visits::Loop) else { return stray(run) };
        let body = match dialog {
            // What it describes became ours when it was here first.
            _ if visits == Visits::Spiral => None,
            Some((_, side)) => self.ack_body(run, side, message),
            None => self.late_body(run, message),
        };
        let onward = Onward {
            way: &way,
            source: came.source,
            came: came.endpoint,
            to,
            // An ACK that comes again goes on as the same one.
            branch: (id(message), loop_hash),
            body: body.as_deref(),
            session: &Amended::default(),
        };
        let bytes = forward::request(run.config, message, &onward);
        run.send(to, &bytes);
    }

    /// A CANCEL: answered here, and sent on as one of our own.
    pub(super) fn on_cancel(
        &mut self,
        run: &mut Run<'_, impl Ctx>,
        message: &Message<'_>,
        came: Came,
        known: Option<usize>,
    ) {
        let Some(at) = known.or_else(|| self.meant_by_cancel(message, came)) else {
            run.lose(Lost::StrayRequest);
            return reject_stateless(run, message, came, Status::NO_DIALOG);
        };
        let bytes = run.reply(message, id(message), came.source, Status::OK, &[]);
        run.send(response_hop(message.via().as_ref(), came), &bytes);
        let exchange = &mut self.exchanges[at];
        if exchange.verb == Verb::Invite && !exchange.is_answered() {
            exchange.cancelled = true;
            exchange.targets.clear();
            if let Some(client) = exchange.clients.last_mut() {
                if client.cancel == Cancel::No {
                    let reasons: Vec<&[u8]> = message.values(HeaderName::Reason).collect();
                    client.reason = reasons.join(&b", "[..]).into_boxed_slice();
                }
                client.cancel(run);
            }
        }
    }

    /// The INVITE that a CANCEL means whose branch names none, for there are agents that make it another: the only one
    /// from that address with its From tag and CSeq number that has no ACK yet.
    fn meant_by_cancel(&self, cancel: &Message<'_>, came: Came) -> Option<usize> {
        let from_there = |exchange: &Exchange| exchange.source.to() == came.source;
        let waits = |state| matches!(state, ServerState::Proceeding | ServerState::Completed);
        self.meant(|exchange, server, reply| {
            from_there(exchange) && waits(server.state) && same_request(reply, cancel)
        })
    }

    /// The INVITE whose refusal an ACK means though its branch does not say so: by the fields of RFC 3261 section
    /// 17.2.3 for agents that know no branches.
    fn meant_by_ack(&self, ack: &Message<'_>) -> Option<usize> {
        let to = |message: &Message<'_>| message.to().and_then(|to| to.tag()).map(<[u8]>::to_vec);
        self.meant(|_, server, reply| {
            server.state == ServerState::Completed && same_request(reply, ack) && to(reply) == to(ack)
        })
    }

    /// The only INVITE for which that is true, asked with what was answered last.
    fn meant(&self, is: impl Fn(&Exchange, &Server, &Message<'_>) -> bool) -> Option<usize> {
        let fits = |exchange: &Exchange| {
            let server = exchange.server.as_ref().filter(|_| exchange.verb == Verb::Invite);
            server.is_some_and(|server| Message::parse(&server.reply).is_ok_and(|m| is(exchange, server, &m)))
        };
        let mut all = self.exchanges.iter().enumerate().filter(|(_, exchange)| fits(exchange));
        let (at, _) = all.next()?;
        all.next().is_none().then_some(at)
    }
}

/// Whether two messages of a call belong to the same request, by what every message of a transaction repeats.
fn same_request(one: &Message<'_>, other: &Message<'_>) -> bool {
    let number = |message: &Message<'_>| message.cseq().map(|cseq| cseq.number);
    let from = |message: &Message<'_>| message.from().and_then(|from| from.tag()).map(<[u8]>::to_vec);
    number(one) == number(other) && from(one) == from(other)
}
