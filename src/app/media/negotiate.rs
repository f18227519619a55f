//! Offers and answers: what each side describes, and what the other gets to read instead.
//!
//! Sources: RFC 3264 (offer and answer), RFC 3261 section 13.2 (which messages carry them), RFC 6141 (a re-INVITE that
//! fails), RFC 9143 (bundled m-lines share a port), RFC 8839 (ICE), RFC 5761 and RFC 8858 (RTCP on the media port).

use crate::app::media::line::{End, Leg, Line, Place, Terms};
use crate::app::media::ports::{NoPorts, Reservation};
use crate::app::media::{Before, Media, MediaSetup, Offer, Side};
use crate::wire::sdp::describe::{Description, MediaKind, MediaLine, Transport, Unreadable};
use crate::wire::sdp::part;
use crate::wire::sdp::rewrite::{Credentials, Ice, LiteAgent, Placement};

/// Why media cannot be anchored.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MediaError {
    /// The body holds no session description.
    #[error("the body holds no session description")]
    NoDescription,
    /// It holds one that cannot be read.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// All ports of the slot are taken.
    #[error(transparent)]
    NoPorts(#[from] NoPorts),
    /// An answer, but nothing was offered.
    #[error("an answer to no offer")]
    NoOffer,
}

impl MediaError {
    /// The SIP status to refuse a request with; `None` if its body is best passed on as it is. A response is always
    /// best passed on.
    pub fn status(&self) -> Option<u16> {
        match self {
            MediaError::NoDescription | MediaError::NoOffer => None,
            MediaError::Unreadable(Unreadable::NotSdp) => None,
            MediaError::Unreadable(Unreadable::BadMedia) => Some(400),
            MediaError::Unreadable(Unreadable::TooLong | Unreadable::TooManyMedia) => Some(488),
            MediaError::NoPorts(NoPorts) => Some(503),
        }
    }
}

/// What a description is.
#[derive(Copy, Clone, PartialEq, Eq)]
enum Role {
    Offer,
    Answer,
}

/// Where the other side is to find an m-line.
#[derive(Copy, Clone, Default)]
struct Lead {
    /// The media port; 0: the line is left alone.
    port: u16,
    /// The names of our side of ICE.
    credentials: Option<Credentials>,
    /// Whether it is settled that RTCP comes to the media port.
    muxed: bool,
}

/// A body in three pieces: before the description, the description, after it.
struct Body<'a> {
    before: &'a [u8],
    description: Description<'a>,
    after: &'a [u8],
}

impl<'a> Body<'a> {
    fn read(content_type: &[u8], body: &'a [u8]) -> Result<Body<'a>, MediaError> {
        let range = part::description(content_type, body).ok_or(MediaError::NoDescription)?;
        let description = Description::read(&body[range.clone()])?;
        Ok(Body { before: &body[..range.start], description, after: &body[range.end..] })
    }

    /// The body as the other side is to read it: m-lines lead where there is a port. Bundled m-lines that share an
    /// address and port go on sharing one, and the names of ICE.
    fn write(&self, setup: &MediaSetup, leads: &[Lead], role: Role) -> Vec<u8> {
        let media = &self.description.media;
        let has_port = |lead: &&Lead| lead.port != 0;
        let shared = |n: usize| {
            // Where ICE is yet to find addresses all lines name the same none: whether they share one is not said before
            // the answer.
            let unsaid = |m: &MediaLine<'_>| m.is_held_by_address() && m.ice().is_some();
            let unsaid = role == Role::Offer && setup.ice == Ice::Lite && unsaid(&media[n]);
            let same =
                |m: &MediaLine<'_>| (m.address, m.port) == (media[n].address, media[n].port) && !unsaid;
            let first = media.iter().position(|m| self.description.bundle && same(m)).unwrap_or(n);
            leads.get(first).filter(has_port).filter(|_| leads.get(n).is_none_or(|own| own.port != 0))
        };
        let place = |n: usize| {
            let Lead { port, credentials, muxed } = *shared(n)?;
            let line = &media[n];
            let one_port = line.rtcp.is_some_and(|rtcp| rtcp.port == line.port);
            let rtcp = line.transport.is_rtp() && !one_port && !muxed;
            let agent = credentials.map(|credentials| LiteAgent { credentials, rtcp });
            Some(Placement { port, rtcp: if one_port { port } else { port | 1 }, agent })
        };
        let places: Vec<Option<Placement>> = (0..media.len()).map(place).collect();
        let description = self.description.rewrite(setup.address, setup.ice, &places);
        [self.before, &description, self.after].concat()
    }
}

fn can_carry(kind: Transport, port: u16) -> bool {
    kind.is_udp() && port != 0
}

impl Terms {
    fn nothing(kind: MediaKind, transport: Transport) -> Terms {
        Terms { kind, transport, live: false, ends: [End::default(), End::default()] }
    }
}

impl Offer {
    fn new(description: &Description<'_>, ice: Ice) -> Offer {
        let lines = description.media.iter().map(|m| (m.kind, m.transport, End::new(m, ice)));
        Offer { lines: lines.collect() }
    }

    /// Whether it wants m-line `n` relayed.
    fn wants(&self, n: usize) -> bool {
        self.lines.get(n).is_some_and(|(_, transport, end)| can_carry(*transport, end.media.port))
    }
}

impl Media {
    /// Takes an offer that `side` makes in `body`; returns the body that the other side is to get.
    ///
    /// Media that nothing was agreed on yet can flow at once (early media); what was agreed on holds until the answer.
    ///
    /// # Errors
    /// Then nothing has changed, and the ports taken are given back.
    pub fn offer(
        &mut self,
        side: Side,
        content_type: &[u8],
        body: &[u8],
        setup: &MediaSetup,
        ports: &mut Reservation<'_>,
    ) -> Result<Vec<u8>, MediaError> {
        let body = Body::read(content_type, body)?;
        let mut offer = Offer::new(&body.description, setup.ice);
        // Most calls never have more.
        self.lines.reserve_exact(offer.lines.len().saturating_sub(self.lines.len()));
        for (n, (kind, transport, _)) in offer.lines.iter().enumerate() {
            if self.lines.len() == n {
                let legs = [Leg::default(), Leg::default()];
                self.lines.push(Line { terms: Terms::nothing(*kind, *transport), legs });
            }
            if offer.wants(n)
                && let Err(none) = self.open(n, ports)
            {
                self.settle(ports);
                return Err(none.into());
            }
        }
        self.ask_again();
        self.date(side, &mut offer, ports);
        let offered = offer.lines.iter().zip(&mut self.lines);
        for ((kind, transport, end), line) in offered.filter(|(_, line)| !line.terms.live) {
            line.terms = Terms::nothing(*kind, *transport);
            line.terms.ends[side.index()] = end.clone();
            for (leg, end) in line.legs.iter_mut().zip(&line.terms.ends) {
                leg.described(end, true, ports.now(), setup.latch);
            }
        }
        let to = side.other();
        let mut leads = vec![Lead::default(); offer.lines.len()];
        for (n, lead) in leads.iter_mut().enumerate().filter(|(n, _)| offer.wants(*n)) {
            let does = offer.lines[n].2.ice().is_some();
            *lead = Lead {
                port: self.lines[n].legs[to.index()].local,
                credentials: self.show(to, n, does, ports),
                muxed: body.description.media[n].mux_only,
            };
        }
        self.offers[side.index()] = Some(Box::new(offer));
        Ok(body.write(setup, &leads, Role::Offer))
    }

    /// Takes an answer that `side` gives in `body`; returns the body that the other side is to get.
    ///
    /// It answers the other side's open offer. If there is none, it comes from another branch of a fork, or again, and
    /// takes the place of the answer before.
    ///
    /// # Errors
    /// Then nothing has changed.
    pub fn answer(
        &mut self,
        side: Side,
        content_type: &[u8],
        body: &[u8],
        setup: &MediaSetup,
        ports: &mut Reservation<'_>,
    ) -> Result<Vec<u8>, MediaError> {
        let offerer = side.other();
        let body = Body::read(content_type, body)?;
        if self.lines.is_empty() {
            return Err(MediaError::NoOffer);
        }
        let offer = self.offers[offerer.index()].take();
        if offer.is_some() && self.before.is_none() {
            let terms = self.lines.iter().map(|line| line.terms.clone()).collect();
            self.before = Some(Box::new(Before { offerer, terms }));
        }
        for n in 0..self.lines.len() {
            let generation = self.answered_generation(side, n);
            let line = &mut self.lines[n];
            let offered = match &offer {
                Some(offer) => offer.lines.get(n).map(|(.., end)| end.clone()).unwrap_or_default(),
                None => line.terms.ends[offerer.index()].clone(),
            };
            let answered = body.description.media.get(n).map(|m| (m, answer_end(m, setup.ice, generation)));
            let terms = agreed(side, offered, answered, &line.terms, line.legs[0].local != 0);
            for (s, leg) in line.legs.iter_mut().enumerate() {
                let (new, old) = (&terms.ends[s], &line.terms.ends[s]);
                let changed = new.media != old.media;
                if changed || new.ice() != old.ice() || offer.is_some() {
                    leg.described(new, changed, ports.now(), setup.latch);
                }
            }
            line.terms = terms;
        }
        self.decided(side);
        let mut leads = vec![Lead::default(); self.lines.len()];
        for (n, lead) in leads.iter_mut().enumerate() {
            let Line { terms, legs } = &self.lines[n];
            if !terms.live {
                continue;
            }
            let (port, muxed) = (legs[offerer.index()].local, terms.muxes());
            // Who has offered ICE gets it, whatever was answered.
            let generation = terms.ends[offerer.index()].ice().map(|theirs| theirs.generation);
            let credentials = generation.map(|generation| self.credentials(offerer, generation, ports));
            *lead = Lead { port, credentials, muxed };
        }
        Ok(body.write(setup, &leads, Role::Answer))
    }

    /// What was answered last is final: there is no way back to what held before, and ports of m-lines that were
    /// refused are given back.
    pub fn confirm(&mut self, ports: &mut Reservation<'_>) {
        self.before = None;
        self.settle(ports);
    }

    /// What `side` offered has failed: an offer without an answer is forgotten; one whose answer is not final is undone,
    /// and what held before holds again, with the same ports.
    pub fn rollback(&mut self, side: Side, setup: &MediaSetup, ports: &mut Reservation<'_>) {
        if self.offers[side.index()].take().is_some() {
            for line in self.lines.iter_mut().filter(|line| !line.terms.live) {
                line.terms.ends = Default::default();
            }
        } else if let Some(before) = self.before.take_if(|before| before.offerer == side) {
            let mut terms = before.terms.into_iter();
            for line in &mut self.lines {
                let nothing = || Terms::nothing(line.terms.kind, line.terms.transport);
                let terms = terms.next().unwrap_or_else(nothing);
                for (s, leg) in line.legs.iter_mut().enumerate() {
                    let changed = terms.ends[s].media != line.terms.ends[s].media;
                    leg.described(&terms.ends[s], changed, ports.now(), setup.latch);
                }
                line.terms = terms;
            }
        }
        self.settle(ports);
    }

    /// The call is over: all its ports are given back. The summary is to be taken before.
    pub fn end(&mut self, ports: &mut Reservation<'_>) {
        self.lines.iter_mut().for_each(|line| line.close(ports));
        self.offers = [None, None];
        self.before = None;
    }

    /// Gives m-line `n` the ports it lacks.
    fn open(&mut self, n: usize, ports: &mut Reservation<'_>) -> Result<(), NoPorts> {
        for leg in self.lines[n].legs.iter_mut().filter(|leg| leg.local == 0) {
            leg.local = ports.take()?;
        }
        Ok(())
    }

    /// Gives back the ports of m-lines that neither hold, nor are offered, nor may come back.
    fn settle(&mut self, ports: &mut Reservation<'_>) {
        for (n, line) in self.lines.iter_mut().enumerate() {
            let offered = self.offers.iter().flatten().any(|offer| offer.wants(n));
            let before = self.before.iter().any(|before| before.terms.get(n).is_some_and(|t| t.live));
            if !line.terms.live && !offered && !before {
                line.close(ports);
            }
        }
    }
}

impl Line {
    fn close(&mut self, ports: &mut Reservation<'_>) {
        for leg in &mut self.legs {
            leg.ice = None;
            match std::mem::take(&mut leg.local) {
                0 => {}
                local => ports.free(local),
            }
        }
    }
}

/// What an answer says of an m-line, by one who was shown names of ours of this generation.
fn answer_end(line: &MediaLine<'_>, ice: Ice, generation: u32) -> End {
    let mut end = End::new(line, ice);
    if let Some(theirs) = end.ice_mut() {
        theirs.generation = generation;
    }
    end
}

/// What holds for an m-line after `side` has answered.
fn agreed(
    side: Side,
    mut offered: End,
    answered: Option<(&MediaLine<'_>, End)>,
    old: &Terms,
    ports: bool,
) -> Terms {
    let (kind, transport) =
        answered.as_ref().map_or((old.kind, old.transport), |(m, _)| (m.kind, m.transport));
    let carried = |m: &MediaLine<'_>| can_carry(m.transport, m.port);
    let live = ports && offered.media.port != 0 && answered.as_ref().is_some_and(|(m, _)| carried(m));
    let mut answer = match answered {
        Some((_, end)) if live => end,
        _ => End::default(),
    };
    if live {
        // Who answers names what it takes: the rest of the offer is history.
        offered.formats.retain(|of| {
            answer.formats.iter().any(|an| {
                (an.codec, an.clock) == (of.codec, of.clock)
                    && (an.codec != super::codec::Codec::UNKNOWN || an.payload_type == of.payload_type)
            })
        });
    } else {
        offered.media = Place::default();
    }
    offered.formats.shrink_to_fit();
    answer.formats.shrink_to_fit();
    let ends = match side {
        Side::Callee => [offered, answer],
        Side::Caller => [answer, offered],
    };
    Terms { kind, transport, live, ends }
}
