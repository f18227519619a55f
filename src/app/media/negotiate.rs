//! Offers and answers: what each side describes, and what the other gets to read instead.
//!
//! Sources: RFC 3264 (offer and answer), RFC 3261 section 13.2 (which messages carry them), RFC 6141 (a re-INVITE that
//! fails), RFC 9143 (bundled m-lines share a port).

use crate::app::media::line::{End, Leg, Line, Place, Terms};
use crate::app::media::ports::{NoPorts, Reservation};
use crate::app::media::{Before, Media, MediaSetup, Offer, Side};
use crate::wire::sdp::describe::{Description, MediaKind, MediaLine, Transport, Unreadable};
use crate::wire::sdp::part;
use crate::wire::sdp::rewrite::Placement;

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

    /// The body as the other side is to read it: m-lines lead to `ports`, where there is one. Bundled m-lines that
    /// share an address and port go on sharing one.
    fn write(&self, setup: &MediaSetup, ports: &[u16]) -> Vec<u8> {
        let media = &self.description.media;
        let shared = |n: usize| {
            let same = |m: &MediaLine<'_>| (m.address, m.port) == (media[n].address, media[n].port);
            let first = media.iter().position(|m| self.description.bundle && same(m)).unwrap_or(n);
            ports.get(first).copied().filter(|port| *port != 0 && ports.get(n) != Some(&0))
        };
        let place = |n: usize| {
            let port = shared(n)?;
            let one_port = media[n].rtcp.is_some_and(|rtcp| rtcp.port == media[n].port);
            Some(Placement { port, rtcp: if one_port { port } else { port | 1 } })
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
    fn new(description: &Description<'_>) -> Offer {
        let lines = description.media.iter().map(|m| (m.kind, m.transport, End::new(m)));
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
        let offer = Offer::new(&body.description);
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
        let offered = offer.lines.iter().zip(&mut self.lines);
        for ((kind, transport, end), line) in offered.filter(|(_, line)| !line.terms.live) {
            line.terms = Terms::nothing(*kind, *transport);
            line.terms.ends[side.index()] = end.clone();
            line.legs.iter_mut().for_each(|leg| leg.described(true, ports.now(), setup.latch));
        }
        let local =
            |n: usize| if offer.wants(n) { self.lines[n].legs[side.other().index()].local } else { 0 };
        let shown: Vec<u16> = (0..offer.lines.len()).map(local).collect();
        self.offers[side.index()] = Some(Box::new(offer));
        Ok(body.write(setup, &shown))
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
        let mut shown = Vec::with_capacity(self.lines.len());
        for (n, line) in self.lines.iter_mut().enumerate() {
            let offered = match &offer {
                Some(offer) => offer.lines.get(n).map(|(.., end)| end.clone()).unwrap_or_default(),
                None => line.terms.ends[offerer.index()].clone(),
            };
            let answered = body.description.media.get(n);
            let terms = agreed(side, offered, answered, &line.terms, line.legs[0].local != 0);
            shown.push(if terms.live { line.legs[offerer.index()].local } else { 0 });
            for (s, leg) in line.legs.iter_mut().enumerate() {
                let changed = terms.ends[s].media != line.terms.ends[s].media;
                if changed || offer.is_some() {
                    leg.described(changed, ports.now(), setup.latch);
                }
            }
            line.terms = terms;
        }
        Ok(body.write(setup, &shown))
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
                    leg.described(changed, ports.now(), setup.latch);
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
            match std::mem::take(&mut leg.local) {
                0 => {}
                local => ports.free(local),
            }
        }
    }
}

/// What holds for an m-line after `side` has answered.
fn agreed(side: Side, mut offered: End, answered: Option<&MediaLine<'_>>, old: &Terms, ports: bool) -> Terms {
    let (kind, transport) = answered.map_or((old.kind, old.transport), |m| (m.kind, m.transport));
    let live = ports && offered.media.port != 0 && answered.is_some_and(|m| can_carry(m.transport, m.port));
    let mut answer = match answered {
        Some(line) if live => End::new(line),
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
