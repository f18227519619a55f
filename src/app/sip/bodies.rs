//! Session descriptions in messages: which is an offer, which an answer (RFC 3261 section 13.2, RFC 3262, RFC 3311), and
//! what the media makes of them.

use super::run::{Ctx, Run, Status};
use super::state::{Bodies, State, Verb};
use crate::app::media::{MediaError, Side};
use crate::wire::sip::{HeaderName, Message};

/// Whether a description is offered or answered.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Role {
    Offer,
    Answer,
}

fn has_description(message: &Message<'_>) -> bool {
    let content_type = message.first(HeaderName::ContentType).unwrap_or_default();
    let body = message.body();
    !body.is_empty() && crate::wire::sdp::part::description(content_type, body).is_some()
}

impl State {
    fn describe(
        &mut self,
        run: &mut Run<'_, impl Ctx>,
        role: Role,
        side: Side,
        message: &Message<'_>,
    ) -> Option<Result<Vec<u8>, MediaError>> {
        let content_type = message.first(HeaderName::ContentType).unwrap_or_default();
        let (body, media) = (message.body(), &mut self.media);
        run.media(|setup, ports| match role {
            Role::Offer => media.offer(side, content_type, body, setup, ports),
            Role::Answer => media.answer(side, content_type, body, setup, ports),
        })
    }

    /// Looks at the body of a new request from `side`: what its exchange is to remember, and the body it goes on with,
    /// if that is another.
    pub(super) fn request_body(
        &mut self,
        run: &mut Run<'_, impl Ctx>,
        verb: Verb,
        side: Side,
        message: &Message<'_>,
    ) -> Result<(Bodies, Option<Vec<u8>>), Status> {
        let described = has_description(message);
        let role = match verb {
            Verb::Invite | Verb::Update if described => Role::Offer,
            Verb::Invite => return Ok((Bodies::Late, None)),
            Verb::Prack if described => match self.late_offer(side) {
                Some(invite) => {
                    self.exchanges[invite].bodies = Bodies::Settled;
                    Role::Answer
                }
                None => Role::Offer,
            },
            _ => return Ok((Bodies::None, None)),
        };
        let bodies = if role == Role::Offer { Bodies::Offered } else { Bodies::None };
        match self.describe(run, role, side, message) {
            None => Ok((Bodies::None, None)),
            Some(Ok(body)) => Ok((bodies, Some(body))),
            Some(Err(error)) => match error.status() {
                None => Ok((Bodies::None, None)),
                Some(400) => Err(Status::BAD_REQUEST),
                Some(503) => Err(Status::OVERLOADED),
                Some(_) => Err(Status::NOT_ACCEPTABLE),
            },
        }
    }

    /// The INVITE of `side` whose response made an offer that waits for its answer.
    fn late_offer(&self, side: Side) -> Option<usize> {
        let waits = |e: &super::state::Exchange| e.bodies == Bodies::LateOffered && e.from == Some(side);
        self.exchanges.iter().position(waits)
    }

    /// The body of an ACK to a 2xx: the answer to what a response offered.
    pub(super) fn ack_body(
        &mut self,
        run: &mut Run<'_, impl Ctx>,
        side: Side,
        message: &Message<'_>,
    ) -> Option<Vec<u8>> {
        if !has_description(message) {
            return None;
        }
        let waiting = self.late_offer(side);
        // An ACK that comes again is changed in the same way: an answer to nothing new takes the place of the last.
        let body = self.describe(run, Role::Answer, side, message)?.ok();
        if let Some(invite) = waiting {
            self.exchanges[invite].bodies = Bodies::Settled;
            self.confirm_media(run);
        }
        body
    }

    /// The body of an ACK whose dialog is over or was never known: nothing is anchored any more that a description
    /// could lead to, so it goes on without one. `None`: as it is, for it may be that of a call that was only passed on.
    pub(super) fn late_body(&self, run: &Run<'_, impl Ctx>, message: &Message<'_>) -> Option<Vec<u8>> {
        let passed_on = self.exchanges.iter().any(|exchange| exchange.spiral);
        (run.config.media.is_some() && !passed_on && has_description(message)).then(Vec::new)
    }

    /// The body of a response that goes back, if it is another.
    pub(super) fn response_body(
        &mut self,
        run: &mut Run<'_, impl Ctx>,
        exchange: usize,
        message: &Message<'_>,
    ) -> Option<Vec<u8>> {
        let code = message.code().filter(|code| *code < 300)?;
        let found = &self.exchanges[exchange];
        let (verb, asker, bodies) = (found.verb, found.from?, found.bodies);
        let side = asker.other();
        let body = match bodies {
            Bodies::Offered if has_description(message) => {
                self.describe(run, Role::Answer, side, message)?.ok()
            }
            Bodies::Late | Bodies::LateOffered if has_description(message) => {
                let body = self.describe(run, Role::Offer, side, message)?.ok();
                self.exchanges[exchange].bodies = Bodies::LateOffered;
                body
            }
            _ => None,
        };
        if code >= 200 && bodies == Bodies::Offered && verb != Verb::Prack {
            self.exchanges[exchange].bodies = Bodies::Settled;
            // Within an INVITE that is not answered yet, nothing is final.
            let within = self.exchanges.iter().any(|e| e.verb == Verb::Invite && !e.is_answered());
            if verb == Verb::Invite || !within {
                self.confirm_media(run);
            }
        }
        body
    }

    /// A request has failed: what it offered is void, and what was offered to it.
    pub(super) fn take_back(&mut self, run: &mut Run<'_, impl Ctx>, exchange: usize) {
        let found = &mut self.exchanges[exchange];
        let offerer = match (found.from, found.bodies) {
            (Some(side), Bodies::Offered) => side,
            (Some(side), Bodies::LateOffered) => side.other(),
            _ => return,
        };
        found.bodies = Bodies::Settled;
        let media = &mut self.media;
        run.media(|setup, ports| media.rollback(offerer, setup, ports));
    }

    fn confirm_media(&mut self, run: &mut Run<'_, impl Ctx>) {
        let media = &mut self.media;
        run.media(|_, ports| media.confirm(ports));
    }
}
