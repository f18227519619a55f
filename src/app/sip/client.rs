//! The client side of a request: repeated until something comes back, cancelled, acknowledged (RFC 3261 section 17.1,
//! RFC 6026).

use super::run::{Ctx, Run};
use super::state::{Cancel, Client, ClientState, Hop, NEVER, Repeat, Verb};
use super::timing::{GIVE_UP, T2, T4};
use crate::wire::sip::{self, Message};

/// What the CANCEL says to targets that another was faster than (RFC 3326 section 3.1).
const ANSWERED_ELSEWHERE: &[u8] = b"SIP;cause=200;text=\"Call completed elsewhere\"";

/// What becomes of a client transaction as time passes.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Expiry {
    /// It goes on.
    No,
    /// Nothing came back at all (timer B or F).
    Silent,
    /// It rang too long (timer C).
    Rang,
    /// It was cancelled, and no final response came.
    CancelUnanswered,
}

impl Client {
    /// Sends the request. `wait`: how long it may stay unanswered.
    pub(super) fn start(
        run: &mut Run<'_, impl Ctx>,
        branch: u64,
        to: Hop,
        bytes: Vec<u8>,
        wait: u64,
    ) -> Client {
        let now = run.now();
        run.send(to, &bytes);
        Client {
            branch,
            to,
            state: ClientState::Calling,
            sent: bytes.into_boxed_slice(),
            repeat: Repeat::start(now),
            began: now,
            until: now.saturating_add(wait),
            cancel: Cancel::No,
            reason: Box::default(),
            last: 0,
        }
    }

    /// Whether it waits for a final response.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, ClientState::Calling | ClientState::Proceeding)
    }

    /// A provisional response came; `wait`: how long the final one may take from now on (timer C), for an INVITE.
    pub(super) fn provisional(&mut self, run: &mut Run<'_, impl Ctx>, verb: Verb, wait: u64) {
        self.state = ClientState::Proceeding;
        if verb == Verb::Invite {
            self.repeat.stop();
            if !matches!(self.cancel, Cancel::Sent(_)) {
                self.until = run.now().saturating_add(wait);
            }
            if self.cancel == Cancel::Wanted {
                self.send_cancel(run);
            }
        } else {
            // It is not silent any more, so timer F alone counts.
            self.until = self.began.saturating_add(GIVE_UP);
            self.repeat.slow_down();
        }
    }

    /// Cancels it as soon as that may be.
    pub(super) fn cancel(&mut self, run: &mut Run<'_, impl Ctx>) {
        match (self.state, &self.cancel) {
            (ClientState::Calling, Cancel::No) => self.cancel = Cancel::Wanted,
            (ClientState::Proceeding, Cancel::No | Cancel::Wanted) => self.send_cancel(run),
            _ => {}
        }
    }

    /// It is waited for no more: it is not asked again, and what still comes from it is absorbed for as long as its
    /// transaction could last.
    pub(super) fn leave(&mut self, now: u64) {
        self.repeat.stop();
        self.until = now.saturating_add(GIVE_UP);
    }

    /// Another target has answered: this one is to ring no longer (RFC 3261 section 16.7, item 10).
    pub(super) fn outrun(&mut self, run: &mut Run<'_, impl Ctx>) {
        if self.state == ClientState::Calling {
            self.leave(run.now());
        }
        if self.is_open() && self.cancel == Cancel::No {
            self.reason = ANSWERED_ELSEWHERE.into();
        }
        self.cancel(run);
    }

    fn send_cancel(&mut self, run: &mut Run<'_, impl Ctx>) {
        let now = run.now();
        self.cancel = Cancel::Sent(Repeat::start(now));
        self.until = now.saturating_add(GIVE_UP);
        self.write_cancel(run);
    }

    fn write_cancel(&self, run: &mut Run<'_, impl Ctx>) {
        let request = Message::parse(&self.sent).ok();
        if let Some(bytes) = request.and_then(|request| sip::cancel(&request, &self.reason)) {
            run.send(self.to, &bytes);
        }
    }

    /// The CANCEL was answered.
    pub(super) fn cancel_answered(&mut self) {
        if let Cancel::Sent(repeat) = &mut self.cancel {
            repeat.stop();
        }
    }

    /// A 2xx to an INVITE came.
    pub(super) fn accepted(&mut self, now: u64) {
        self.state = ClientState::Accepted;
        self.finish(now.saturating_add(GIVE_UP));
    }

    /// Another final response to an INVITE came: it is acknowledged, each time.
    pub(super) fn refused(&mut self, run: &mut Run<'_, impl Ctx>, response: &Message<'_>) {
        if self.state == ClientState::Completed {
            if !self.sent.is_empty() {
                run.send(self.to, &self.sent);
            }
            return;
        }
        let ack = Message::parse(&self.sent).ok().and_then(|invite| sip::ack(&invite, response));
        self.state = ClientState::Completed;
        self.finish(run.now().saturating_add(GIVE_UP));
        if let Some(ack) = ack {
            run.send(self.to, &ack);
            self.sent = ack.into_boxed_slice();
        }
    }

    /// A final response to another request came.
    pub(super) fn completed(&mut self, now: u64) {
        self.state = ClientState::Completed;
        self.finish(now.saturating_add(T4));
    }

    /// It is given up, and forgotten.
    pub(super) fn abandon(&mut self, now: u64) {
        self.state = ClientState::Completed;
        self.finish(now);
    }

    fn finish(&mut self, until: u64) {
        self.sent = Box::default();
        self.reason = Box::default();
        self.repeat.stop();
        self.cancel_answered();
        self.until = until;
    }

    /// Does what is due.
    pub(super) fn tick(&mut self, run: &mut Run<'_, impl Ctx>, verb: Verb) -> Expiry {
        let now = run.now();
        if self.is_open() && self.until <= now {
            return match (self.state, &self.cancel) {
                (_, Cancel::Sent(_)) => Expiry::CancelUnanswered,
                (ClientState::Proceeding, _) if verb == Verb::Invite => Expiry::Rang,
                _ => Expiry::Silent,
            };
        }
        let most = if verb == Verb::Invite { NEVER } else { T2 };
        if self.is_open() && self.repeat.is_due(now, most) {
            run.send(self.to, &self.sent);
        }
        if let Cancel::Sent(repeat) = &mut self.cancel
            && repeat.is_due(now, T2)
        {
            self.write_cancel(run);
        }
        Expiry::No
    }

    /// When it, and its CANCEL, are to be said again.
    pub(super) fn repeats(&self) -> [u64; 2] {
        let cancel = if let Cancel::Sent(repeat) = &self.cancel { repeat.at } else { NEVER };
        [self.repeat.at, cancel]
    }

    pub(super) fn is_over(&self, now: u64) -> bool {
        !self.is_open() && self.until <= now
    }
}
