//! ACK and CANCEL: the two that are no transactions of their own (RFC 3261 sections 9.2, 16.10, 16.11, 17.1.1.3).

use super::forward::{self, Onward};
use super::request::reject_stateless;
use super::routing;
use super::run::{Came, Ctx, Run, Status};
use super::server::{id, response_hop};
use super::session::Amended;
use super::shared::Lost;
use super::state::{Hop, ServerState, State, Verb};
use crate::types::Endpoint;
use crate::wire::sip::Message;

impl State {
    /// An ACK: to a response above 299 it ends here, to a 2xx it goes on.
    pub(super) fn on_ack(
        &mut self,
        run: &mut Run<'_, impl Ctx>,
        message: &Message<'_>,
        came: Came,
        known: Option<usize>,
    ) {
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
        let looped = routing::visits(run.config, message, loop_hash) != routing::Visits::First;
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
                way.next.map(|next| (Endpoint::from(next), way.endpoint.unwrap_or(came.endpoint)))
            }
            None => None,
        };
        let hop = to.and_then(|(to, wanted)| Some(Hop::new(to, run.config.speaker(to, wanted)?)));
        let Some(to) = hop.filter(|_| !looped) else { return stray(run) };
        let body = dialog.and_then(|(_, side)| self.ack_body(run, side, message));
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
        let Some(at) = known else {
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
                client.cancel(run);
            }
        }
    }
}
