//! Dialogs, as far as a proxy needs them: to know who speaks, and to end a call itself (RFC 3261 section 12).

use std::net::{IpAddr, SocketAddr};

use super::config::SipConfig;
use super::routing::{Way, ours};
use super::run::{Came, Ctx, Run};
use super::state::{Dialog, DialogState, Exchange, NEVER, Party, State};
use crate::app::media::Side;
use crate::types::Endpoint;
use crate::wire::sip::{Address, HeaderName, Message};

/// The dialogs that a call may have at a time; of more, the oldest early one is forgotten.
const MAX_DIALOGS: usize = 8;

fn tag(name: &[u8]) -> &[u8] {
    Address::parse(name).and_then(|address| address.tag()).unwrap_or_default()
}

fn contact(message: &Message<'_>) -> Box<[u8]> {
    message.contact().map_or_else(Box::default, |contact| contact.uri.into())
}

fn joined<'m>(values: impl Iterator<Item = &'m [u8]>) -> Box<[u8]> {
    let values: Vec<&[u8]> = values.collect();
    values.join(&b", "[..]).into_boxed_slice()
}

pub(super) fn index(side: Side) -> usize {
    match side {
        Side::Caller => 0,
        Side::Callee => 1,
    }
}

impl Dialog {
    pub(super) fn party(&self, side: Side) -> &Party {
        &self.parties[index(side)]
    }

    pub(super) fn party_mut(&mut self, side: Side) -> &mut Party {
        &mut self.parties[index(side)]
    }

    /// The side with this tag, if the other one has that.
    fn side(&self, from: &[u8], to: &[u8]) -> Option<Side> {
        let [caller, callee] = [tag(&self.parties[0].name), tag(&self.parties[1].name)];
        match () {
            () if (from, to) == (caller, callee) => Some(Side::Caller),
            () if (from, to) == (callee, caller) => Some(Side::Callee),
            () => None,
        }
    }
}

impl Party {
    /// Where a request to it goes: where its routes or its Contact lead. Where it was seen if that is a name, or our own
    /// address, or a private one while it is not seen at one: then it sits behind a NAT, and says so without knowing.
    pub(super) fn reached_by(&self, way: &Way) -> Endpoint {
        let direct = way.routes.is_empty();
        let seen = self.seen.to();
        match way.next {
            Some(next) if direct && (way.ours || is_private(next) && !is_private(seen.into())) => seen,
            Some(next) => next.into(),
            None => seen,
        }
    }
}

/// RFC 1918, RFC 6598 (carriers' NAT), RFC 4193.
fn is_private(at: SocketAddr) -> bool {
    match at.ip() {
        IpAddr::V4(ip) => ip.is_private() || ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64,
        IpAddr::V6(ip) => ip.is_unique_local(),
    }
}

impl State {
    /// The dialog of a message, and whom its From names.
    pub(super) fn dialog_of(&self, message: &Message<'_>) -> Option<(usize, Side)> {
        let (from, to) = (message.from()?, message.to()?);
        let (from, to) = (from.tag()?, to.tag()?);
        self.dialogs.iter().enumerate().find_map(|(at, dialog)| Some((at, dialog.side(from, to)?)))
    }

    /// Whether a request of no dialog known here may go where it says itself: to a target's host or a party of this
    /// call; `within` a dialog also from a target's host to anybody, for so the notifier of a subscription, whose dialog
    /// is not kept here, finds its subscriber. Otherwise anybody could have anything sent to anybody.
    pub(super) fn may_lead(
        &self,
        run: &Run<'_, impl Ctx>,
        source: Endpoint,
        to: Endpoint,
        within: bool,
    ) -> bool {
        let routes = run.ctx.shared().slot.routes();
        routes.has_host(to.ip) || within && routes.has_host(source.ip) || self.has_party(to)
    }

    /// Whether a party of the call is there: of one of its dialogs, or of what is left of one after its BYE.
    fn has_party(&self, at: Endpoint) -> bool {
        let speaks = |dialog: &Dialog| dialog.parties.iter().any(|party| party.seen.to() == at);
        let spoke = |exchange: &Exchange| {
            let known = exchange.within && (exchange.from.is_some() || exchange.server.is_none());
            let met = || exchange.clients.iter().map(|client| client.to).chain([exchange.source]);
            known && met().any(|hop| hop.to() == at)
        };
        self.dialogs.iter().any(speaks) || self.exchanges.iter().any(spoke)
    }

    /// A request within a dialog has come from `side`.
    pub(super) fn note_request(&mut self, at: usize, side: Side, message: &Message<'_>, came: Came) {
        let Some(dialog) = self.dialogs.get_mut(at) else { return };
        let party = dialog.party_mut(side);
        party.cseq = party.cseq.max(message.cseq().map_or(0, |cseq| cseq.number));
        party.seen = came.hop();
    }

    /// A response that makes or confirms a dialog has come to an INVITE that began in no dialog.
    pub(super) fn note_dialog(
        &mut self,
        config: &SipConfig,
        exchange: usize,
        message: &Message<'_>,
        came: Came,
        confirmed: Option<u64>,
    ) {
        let Some(name) = message.first(HeaderName::To) else { return };
        if tag(name).is_empty() {
            // What else such a response says is no better.
            if let Some(at) = self.only_early(message) {
                self.confirm(at, confirmed);
            }
            return;
        }
        let at = match self.dialog_of(message) {
            Some((at, _)) => at,
            None => {
                let Some(dialog) = self.exchanges.get(exchange).and_then(|e| early(e, name, came)) else {
                    return;
                };
                self.make_room();
                self.dialogs.push(dialog);
                self.dialogs.len() - 1
            }
        };
        let dialog = &mut self.dialogs[at];
        let callee = dialog.party_mut(Side::Callee);
        callee.seen = came.hop();
        let uri = contact(message);
        if !uri.is_empty() {
            callee.contact = uri;
        }
        // Those between here and the callee are above ours (section 16.6, item 4).
        let is_ours = |route: &&[u8]| {
            Address::parse(route).and_then(|a| a.uri()).is_some_and(|uri| ours(config, &uri).is_some())
        };
        let values: Vec<&[u8]> = message.values(HeaderName::RecordRoute).collect();
        if let Some(end) = values.iter().position(is_ours) {
            callee.routes = joined(values[..end].iter().rev().copied());
        }
        self.confirm(at, confirmed);
    }

    /// A dialog is answered, if there is a time at which it was.
    fn confirm(&mut self, at: usize, answered: Option<u64>) {
        let dialog = &mut self.dialogs[at];
        if let (Some(now), DialogState::Early) = (answered, dialog.state) {
            dialog.state = DialogState::Confirmed;
            dialog.answered = now;
            // What is kept for hours is kept tight.
            self.dialogs.shrink_to_fit();
        }
    }

    /// The dialog of a response that forgets the tag which earlier ones had: the only early one, if there is one.
    fn only_early(&self, response: &Message<'_>) -> Option<usize> {
        let caller = response.from().and_then(|from| from.tag()).unwrap_or_default();
        let fits = |d: &Dialog| d.state == DialogState::Early && tag(&d.parties[0].name) == caller;
        let mut all = self.dialogs.iter().enumerate().filter(|(_, dialog)| fits(dialog));
        let (at, _) = all.next()?;
        all.next().is_none().then_some(at)
    }

    fn make_room(&mut self) {
        if self.dialogs.len() >= MAX_DIALOGS {
            let early = self.dialogs.iter().position(|dialog| dialog.state == DialogState::Early);
            self.dialogs.remove(early.unwrap_or(0));
        }
    }

    /// The INVITE that began them has been answered for good: what is not confirmed is nothing.
    pub(super) fn forget_early(&mut self) {
        self.dialogs.retain(|dialog| dialog.state != DialogState::Early);
    }

    /// A request that may move the remote target has succeeded: both sides have said where they are now.
    pub(super) fn note_targets(&mut self, request: &[u8], response: &Message<'_>) {
        let Some((at, side)) = self.dialog_of(response) else { return };
        let asked = Message::parse(request).map_or_else(|_| Box::default(), |request| contact(&request));
        for (side, uri) in [(side, asked), (side.other(), contact(response))] {
            if !uri.is_empty() {
                self.dialogs[at].party_mut(side).contact = uri;
            }
        }
    }
}

/// The dialog that a response begins whose To is `name`.
fn early(exchange: &Exchange, name: &[u8], came: Came) -> Option<Dialog> {
    let request = Message::parse(&exchange.request).ok()?;
    let caller = Party {
        name: request.first(HeaderName::From)?.into(),
        contact: contact(&request),
        routes: joined(request.values(HeaderName::RecordRoute)),
        cseq: request.cseq()?.number,
        seen: exchange.source,
    };
    let callee = Party {
        name: name.into(),
        contact: Box::default(),
        routes: Box::default(),
        cseq: 0,
        seen: came.hop(),
    };
    Some(Dialog { state: DialogState::Early, parties: [caller, callee], answered: 0, expires: NEVER })
}
