//! The proxy ends a call: a BYE to each side, in the name of the other (RFC 3261 section 15.1.1), and the record.

use super::forward::via;
use super::routing::Way;
use super::run::{Ctx, Run};
use super::state::{Client, Dialog, DialogState, Exchange, Hop, NEVER, State, Verb};
use super::story::Cause;
use super::timing::GIVE_UP;
use crate::app::media::Side;
use crate::types::{Endpoint, LocalId};
use crate::wire::sip::{Address, HeaderName, Method, Request};

impl Dialog {
    /// Why and when the proxy ends it. `longest`: how long a call may last.
    pub(super) fn due(&self, longest: u64) -> (u64, Cause) {
        if self.state != DialogState::Confirmed {
            return (NEVER, Cause::MaxDuration);
        }
        let most = self.answered.saturating_add(longest);
        if self.expires <= most { (self.expires, Cause::SessionTimer) } else { (most, Cause::MaxDuration) }
    }
}

impl State {
    /// Ends all dialogs for which `is_due` gives a cause.
    pub(super) fn end_dialogs(
        &mut self,
        run: &mut Run<'_, impl Ctx>,
        is_due: impl Fn(&Dialog) -> Option<Cause>,
    ) {
        let mut at = 0;
        while at < self.dialogs.len() {
            let Some(cause) = is_due(&self.dialogs[at]) else {
                at += 1;
                continue;
            };
            let dialog = self.dialogs.remove(at);
            for side in [Side::Caller, Side::Callee] {
                self.send_bye(run, &dialog, side, cause);
            }
            if self.dialogs.is_empty()
                && let Some(story) = &mut self.story
            {
                story.end(run.now(), cause);
            }
        }
    }

    /// Sends a BYE to `side`, in the name of the other.
    fn send_bye(&mut self, run: &mut Run<'_, impl Ctx>, dialog: &Dialog, side: Side, cause: Cause) {
        let (to, from) = (dialog.party(side), dialog.party(side.other()));
        let name = Address::parse(&to.name).map_or(&b""[..], |name| name.uri);
        let contact = if to.contact.is_empty() { name } else { &to.contact };
        let mut way = Way::default();
        if way.redirect(contact, &to.routes).is_none() {
            return;
        }
        let next = to.reached_by(&way);
        let Some(endpoint) = run.config.speaker(next, to.seen.endpoint) else { return };
        let hop = Hop::new(next, endpoint);
        let branch = run.ctx.random();
        let routes = way.routes.iter().map(|route| (HeaderName::Route, route.as_slice()));
        let headers: Vec<_> = routes.chain([(HeaderName::Reason, reason(cause))]).collect();
        let bytes = Request {
            method: Method::Bye,
            uri: &way.uri,
            via: &via(run.config, endpoint, (branch, 0)),
            from: &from.name,
            to: &to.name,
            call_id: &self.call_id,
            cseq: from.cseq.saturating_add(1),
        }
        .build(&headers, b"");
        let client = Client::start(run, branch, hop, bytes, GIVE_UP);
        self.exchanges.push(Exchange::own(Verb::Bye, client));
    }

    /// Whether an INVITE that makes dialogs waits for its final response.
    fn is_inviting(&self) -> bool {
        self.exchanges.iter().any(|e| e.verb == Verb::Invite && !e.spiral && !e.is_answered())
    }

    /// If the call is over: gives its media ports back and writes its record.
    pub(super) fn settle(&mut self, run: &mut Run<'_, impl Ctx>) {
        let inviting = self.is_inviting();
        let Some(story) = &mut self.story else { return };
        let waits = story.is_challenged() && !self.exchanges.is_empty();
        if !self.dialogs.is_empty() || inviting || waits {
            return;
        }
        story.end(run.now(), Cause::Refused);
        let summary = self.media.is_anchored().then(|| self.media.summary());
        let takeovers = run.ctx.shared().slot.takeovers();
        let who = (run.ctx.key(), run.slot().0, &*self.call_id);
        let line = story.record(who, takeovers, summary).line();
        let nobody = Endpoint { ip: [0; 16], port: 0 };
        run.ctx.send(LocalId::RECORD, nobody, &[line.as_bytes()]);
        self.story = None;
        let media = &mut self.media;
        run.media(|_, ports| media.end(ports));
        self.media = Default::default();
        self.listen = 0;
    }
}

/// What our BYE says of why (RFC 3326).
fn reason(cause: Cause) -> &'static [u8] {
    match cause {
        Cause::MediaTimeout => b"SIP;cause=408;text=\"Media Timeout\"",
        Cause::SessionTimer => b"SIP;cause=408;text=\"Session Expired\"",
        _ => b"SIP;cause=480;text=\"Call Duration Limit\"",
    }
}
