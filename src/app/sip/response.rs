//! A response comes in (RFC 3261 section 16.7).

use xxhash_rust::xxh3::xxh3_64;

use super::forward;
use super::health::SlotChange;
use super::routing::own_branch;
use super::run::{Came, Ctx, Run, Status};
use super::server::id;
use super::session::{self, Amended};
use super::shared::{Change, Lost};
use super::state::{Cancel, ClientState, DialogState, NEVER, ServerState, State, Verb};
use super::story::Cause;
use crate::wire::sip::{Message, Method};

impl State {
    pub(super) fn on_response(&mut self, run: &mut Run<'_, impl Ctx>, message: &Message<'_>, came: Came) {
        let branch = message.via().as_ref().and_then(|via| own_branch(run.config, via));
        let Some((branch, _)) = branch else { return run.lose(Lost::Misdirected) };
        let found = self.client(branch);
        let (Some((at, which)), Some(cseq), Some(code)) = (found, message.cseq(), message.code()) else {
            return run.lose(Lost::StrayResponse);
        };
        let exchange = &mut self.exchanges[at];
        if cseq.method == Method::Cancel {
            if code >= 200 {
                exchange.clients[which].cancel_answered();
            }
            return;
        }
        if Verb::of(cseq.method) != exchange.verb {
            return run.lose(Lost::StrayResponse);
        }
        let target = exchange.clients[which].to.to();
        if code != 503
            && let Some(change) = run.ctx.shared().slot.answered(target)
        {
            run.ctx.change(Change::Slot(change));
        }
        match code {
            ..200 => self.on_provisional(run, at, which, message, came),
            200..300 if exchange.verb == Verb::Invite => self.on_accepted(run, at, which, message, came),
            _ => self.on_final(run, at, which, message),
        }
    }

    fn on_provisional(
        &mut self,
        run: &mut Run<'_, impl Ctx>,
        at: usize,
        which: usize,
        message: &Message<'_>,
        came: Came,
    ) {
        let hash = xxh3_64(message.bytes());
        let exchange = &mut self.exchanges[at];
        let (verb, current) = (exchange.verb, which + 1 == exchange.clients.len());
        let client = &mut exchange.clients[which];
        if !client.is_open() {
            return;
        }
        client.provisional(run, verb, run.config.ring_timeout.0);
        if !current {
            // It was given up for another target.
            if verb == Verb::Invite {
                client.cancel(run);
            }
            return;
        }
        let again = std::mem::replace(&mut client.last, hash) == hash;
        if message.code() == Some(100) || exchange.is_answered() {
            return;
        }
        if let (true, Some(server)) = (again, &mut exchange.server) {
            return server.again(run);
        }
        if verb == Verb::Invite && !exchange.within && !exchange.spiral {
            let now = run.now();
            self.note_dialog(run.config, at, message, came, None);
            if let Some(story) = &mut self.story {
                story.rung = if story.rung == 0 { now } else { story.rung };
            }
        }
        let body = self.response_body(run, at, message);
        let bytes = forward::response(message, body.as_deref(), &Amended::default());
        if let Some(server) = &mut self.exchanges[at].server {
            server.provisional(run, bytes);
        }
    }

    /// A 2xx to an INVITE: it goes back, whoever sent it and whatever was before (RFC 6026).
    fn on_accepted(
        &mut self,
        run: &mut Run<'_, impl Ctx>,
        at: usize,
        which: usize,
        message: &Message<'_>,
        came: Came,
    ) {
        let hash = xxh3_64(message.bytes());
        let now = run.now();
        let exchange = &mut self.exchanges[at];
        let client = &mut exchange.clients[which];
        let was_accepted = client.state == ClientState::Accepted;
        let again = was_accepted && client.last == hash;
        if client.state == ClientState::Completed {
            return run.lose(Lost::StrayResponse);
        }
        if client.is_open() {
            client.accepted(now);
        }
        client.last = hash;
        if let Some(server) =
            exchange.server.as_ref().filter(|server| was_accepted && server.has_said(message))
        {
            // The same bytes, and no second look at them.
            return run.send(server.to, &server.reply);
        }
        let (within, spiral, refresh) = (exchange.within, exchange.spiral, exchange.refresh);
        let (lasts, amended) = session::response(refresh, message);
        // What comes again of another answer than the first may come after its BYE.
        if !spiral && !again {
            self.note_answer(run, at, message, came, within);
            self.note_expiry(now, message, lasts);
        }
        let body = self.response_body(run, at, message);
        let bytes = forward::response(message, body.as_deref(), &amended);
        let exchange = &mut self.exchanges[at];
        match &mut exchange.server {
            Some(server) if server.state == ServerState::Accepted => run.send(server.to, &bytes),
            Some(server) => server.conclude(run, Verb::Invite, 200, bytes),
            None => {}
        }
        // Nobody else is called now; one who answers all the same makes a dialog of its own.
        exchange.targets = Vec::new();
        exchange.clients.iter_mut().for_each(|client| client.outrun(run));
    }

    /// A 2xx says how long the session lasts from now on, in s: for ever if it says nothing (RFC 4028 section 7.2).
    fn note_expiry(&mut self, now: u64, response: &Message<'_>, lasts: Option<u32>) {
        if let Some((dialog, _)) = self.dialog_of(response) {
            self.dialogs[dialog].expires =
                lasts.map_or(NEVER, |s| now.saturating_add(u64::from(s) * 1_000_000_000));
        }
    }

    fn note_answer(
        &mut self,
        run: &mut Run<'_, impl Ctx>,
        at: usize,
        message: &Message<'_>,
        came: Came,
        within: bool,
    ) {
        let now = run.now();
        if within {
            let request = std::mem::take(&mut self.exchanges[at].request);
            self.note_targets(&request, message);
            self.exchanges[at].request = request;
            return;
        }
        self.note_dialog(run.config, at, message, came, Some(now));
        self.forget_early();
        if let Some(story) = &mut self.story
            && story.answered == 0
        {
            story.answered = now;
            story.code = message.code().unwrap_or(200);
        }
        self.listen = now;
    }

    /// Another final response.
    fn on_final(&mut self, run: &mut Run<'_, impl Ctx>, at: usize, which: usize, message: &Message<'_>) {
        let now = run.now();
        let exchange = &mut self.exchanges[at];
        let current = which + 1 == exchange.clients.len();
        let client = &mut exchange.clients[which];
        let new = client.is_open();
        if client.state == ClientState::Accepted {
            return run.lose(Lost::StrayResponse);
        }
        let to = client.to.to();
        match exchange.verb {
            Verb::Invite => client.refused(run, message),
            _ if new => client.completed(now),
            _ => {}
        }
        let open = exchange.server.as_ref().is_some_and(|server| server.state == ServerState::Proceeding);
        if !new || !current || !open {
            return;
        }
        if message.code() == Some(503) {
            self.note_failed(run, to);
            if self.try_next(run, at) {
                return;
            }
        }
        self.conclude(run, at, Ending::Response(message));
    }

    /// Says that a target failed, for the calls to come.
    pub(super) fn note_failed(&mut self, run: &mut Run<'_, impl Ctx>, target: crate::types::Endpoint) {
        let change: Option<SlotChange> = run.ctx.shared().slot.failed(target, run.ctx.now());
        if let Some(change) = change {
            run.ctx.change(Change::Slot(change));
        }
    }

    pub(super) fn may_try_next(&self, at: usize) -> bool {
        let exchange = &self.exchanges[at];
        !exchange.targets.is_empty() && !exchange.cancelled && !exchange.expired && !exchange.is_answered()
    }

    /// The exchange ends with this, other than a 2xx to an INVITE.
    pub(super) fn conclude(&mut self, run: &mut Run<'_, impl Ctx>, at: usize, ending: Ending<'_, '_>) {
        let exchange = &self.exchanges[at];
        let (verb, expired) = (exchange.verb, exchange.expired);
        let (code, bytes) = match ending {
            // Who rang too long was cancelled here; the caller did not ask for that.
            Ending::Response(response) if !(expired && response.code() == Some(487)) => {
                // A 503 goes back as a 500 (RFC 3261 section 16.7, item 6).
                let code = response.code().filter(|code| *code != 503).unwrap_or(500);
                (code, self.response(run, at, response))
            }
            Ending::Response(_) => (408, self.local(run, at, Status::TIMEOUT)),
            Ending::Local(status) => (status.0, self.local(run, at, status)),
        };
        self.after_final(run, at, code, ending);
        let exchange = &mut self.exchanges[at];
        exchange.forget_request();
        match (&mut exchange.server, bytes) {
            (Some(server), Some(bytes)) => server.conclude(run, verb, code, bytes),
            (Some(server), None) => server.abandon(run.now()),
            (None, _) => {}
        }
    }

    fn response(
        &mut self,
        run: &mut Run<'_, impl Ctx>,
        at: usize,
        response: &Message<'_>,
    ) -> Option<Vec<u8>> {
        let exchange = &self.exchanges[at];
        let success = response.code().is_some_and(|code| code < 300);
        let (mut amended, refresh) = (Amended::default(), exchange.refresh);
        if exchange.verb == Verb::Update && success {
            let lasts;
            (lasts, amended) = session::response(refresh, response);
            let request = std::mem::take(&mut self.exchanges[at].request);
            self.note_targets(&request, response);
            self.exchanges[at].request = request;
            self.note_expiry(run.now(), response, lasts);
        }
        let body = self.response_body(run, at, response);
        Some(forward::response(response, body.as_deref(), &amended))
    }

    /// A response made here to the request of an exchange.
    fn local(&self, run: &Run<'_, impl Ctx>, at: usize, status: Status) -> Option<Vec<u8>> {
        let exchange = &self.exchanges[at];
        let request = Message::parse(&exchange.request).ok()?;
        Some(run.reply(&request, id(&request), exchange.source.to(), status, &[]))
    }

    /// What the end of an exchange means for media, dialogs and the record.
    pub(super) fn after_final(
        &mut self,
        run: &mut Run<'_, impl Ctx>,
        at: usize,
        code: u16,
        ending: Ending<'_, '_>,
    ) {
        let exchange = &self.exchanges[at];
        let (verb, within, spiral) = (exchange.verb, exchange.within, exchange.spiral);
        let (cancelled, expired) = (exchange.cancelled, exchange.expired);
        if code >= 300 {
            self.take_back(run, at);
        }
        match verb {
            Verb::Invite if !within && !spiral => {
                self.forget_early();
                let silent = matches!(ending, Ending::Local(_)) && code == 408;
                let cause = match () {
                    () if cancelled && code == 487 => Cause::Cancel,
                    () if expired => Cause::RingTimeout,
                    () if silent => Cause::TargetTimeout,
                    () => Cause::Response,
                };
                self.note_refusal(run.now(), code, cause);
            }
            Verb::Bye => self.after_bye(run, at, code),
            _ => {}
        }
    }

    /// A BYE was answered, or never was: its dialog is over, unless it has to come again with credentials.
    fn after_bye(&mut self, run: &mut Run<'_, impl Ctx>, at: usize, code: u16) {
        let request = std::mem::take(&mut self.exchanges[at].request);
        if let Some((dialog, side)) = Message::parse(&request).ok().and_then(|bye| self.dialog_of(&bye)) {
            if matches!(code, 401 | 407) {
                self.dialogs[dialog].state = DialogState::Confirmed;
            } else {
                self.dialogs.remove(dialog);
                // A BYE may end an early dialog: its INVITE says how the call went.
                if self.dialogs.is_empty()
                    && let Some(story) = &mut self.story
                    && story.answered > 0
                {
                    story.end(run.now(), Cause::Bye(side));
                }
            }
        }
        self.exchanges[at].request = request;
    }

    /// An INVITE that began in no dialog was refused.
    pub(super) fn note_refusal(&mut self, now: u64, code: u16, cause: Cause) {
        if let Some(story) = &mut self.story
            && story.answered == 0
        {
            story.code = code;
            story.end(now, cause);
        }
    }

    /// Time has passed for the client transaction of an exchange.
    pub(super) fn on_expiry(&mut self, run: &mut Run<'_, impl Ctx>, at: usize, which: usize, rang: bool) {
        let now = run.now();
        let exchange = &mut self.exchanges[at];
        let current = which + 1 == exchange.clients.len();
        let client = &mut exchange.clients[which];
        if rang && current && client.cancel == Cancel::No {
            exchange.expired = true;
            return client.cancel(run);
        }
        let (to, silent) = (client.to.to(), client.state == ClientState::Calling);
        if silent && current && exchange.server.is_some() {
            self.note_failed(run, to);
            if self.try_next(run, at) {
                return self.exchanges[at].clients[which].leave(now);
            }
        }
        let exchange = &mut self.exchanges[at];
        exchange.clients[which].abandon(now);
        if !current || exchange.is_answered() {
            return;
        }
        match exchange.verb {
            Verb::Invite if exchange.cancelled => self.conclude(run, at, Ending::Local(Status::TERMINATED)),
            Verb::Invite => self.conclude(run, at, Ending::Local(Status::TIMEOUT)),
            // The sender has given up by now: a 408 would only be one more message (RFC 4320 section 4.2).
            _ => {
                self.after_final(run, at, 408, Ending::Local(Status::TIMEOUT));
                let exchange = &mut self.exchanges[at];
                exchange.forget_request();
                if let Some(server) = &mut exchange.server {
                    server.abandon(now);
                }
            }
        }
    }
}

/// How an exchange ends.
#[derive(Copy, Clone)]
pub(super) enum Ending<'e, 'm> {
    /// With the callee's response.
    Response(&'e Message<'m>),
    /// With one made here.
    Local(Status),
}
