//! Listens on the virtual network: counts what kinds of frames pass, knows who is named master, and puts
//! datagrams into words for the trace of a replayed seed.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::sim::coverage::Coverage;
use crate::sim::net::Arrivals;
use crate::sim::test_app::output_place;
use crate::types::NodeId;
use crate::wire::frame::{Frame, Frames, Segment};

/// What has been overheard.
#[derive(Default)]
pub struct Spy {
    /// Newest master of each slot, with the number that makes it the newest.
    masters: BTreeMap<u16, ((u32, u32), NodeId)>,
}

impl Spy {
    /// Listens to one datagram; whether it holds something that must be taken once.
    pub fn look(&mut self, coverage: &mut Coverage, bytes: &[u8]) -> bool {
        let mut once = false;
        for frame in Frames::new(bytes) {
            match frame {
                Ok(Frame::Segment(header, _)) => self.on_segment(coverage, header),
                Ok(Frame::Nak(_)) => coverage.naks += 1,
                Ok(Frame::Emit(_)) => coverage.emits += 1,
                Ok(Frame::Ack(_)) => coverage.acks += 1,
                Ok(Frame::Outputs(..)) => coverage.outputs += 1,
                Ok(Frame::Seal(_)) => coverage.seals += 1,
                Ok(Frame::Forward(..)) => once = true,
                Ok(_) => {}
                Err(_) => coverage.malformed += 1,
            }
        }
        once
    }

    fn on_segment(&mut self, coverage: &mut Coverage, header: &Segment) {
        let order = (header.term.get(), header.master_seq.get());
        let new = (order, NodeId(header.master.get()));
        match self.masters.insert(header.slot.get(), new) {
            Some(known) if known.0 > order => {
                self.masters.insert(header.slot.get(), known);
            }
            Some(known) if known.1 != new.1 => coverage.master_changes += 1,
            _ => {}
        }
    }

    /// Whether `node` is master of any slot.
    pub fn is_master(&self, node: NodeId) -> bool {
        self.masters.values().any(|(_, master)| *master == node)
    }
}

/// A datagram in words.
pub fn describe(bytes: &[u8]) -> String {
    let mut words = format!("{} B:", bytes.len());
    for frame in Frames::new(bytes) {
        let _ = match frame {
            Ok(Frame::Segment(h, _)) => write!(
                words,
                " seg(s{} t{} m{}/{} [{}+{}] com {} rel {} sta {})",
                h.slot, h.term, h.master, h.master_seq, h.first, h.count, h.committed, h.released, h.stable
            ),
            Ok(Frame::Ack(a)) => {
                write!(
                    words,
                    " ack(s{} t{} held {} exe {} out {})",
                    a.slot, a.term, a.held, a.executed, a.outputs
                )
            }
            Ok(Frame::Nak(n)) => write!(words, " nak(s{} from {})", n.slot, n.from),
            Ok(Frame::Outputs(o, rest)) => {
                write!(words, " out(s{} first {} {} B)", o.slot, o.first, rest.len())
            }
            Ok(Frame::Emit(e)) => write!(words, " emit(s{} first {})", e.slot, e.first),
            Ok(Frame::Start(s)) => {
                write!(words, " start(s{} t{} tail {} flags {})", s.slot, s.term, s.tail, s.flags)
            }
            Ok(Frame::Bundle(n)) => write!(words, " bundle {n}"),
            Ok(Frame::Echo(n)) => write!(words, " echo {n}"),
            Ok(Frame::Seal(s)) => write!(words, " seal(a{} s{} t{})", s.address, s.slot, s.term),
            Ok(Frame::Sealed(s)) => {
                write!(
                    words,
                    " sealed(s{} t{} last t{} {}..{})",
                    s.slot, s.term, s.last_term, s.first, s.held
                )
            }
            Ok(Frame::Fetch(f)) => write!(words, " fetch(s{} t{} from {})", f.slot, f.term, f.from),
            Ok(Frame::Fetched(f, _)) => {
                write!(words, " fetched(s{} t{} {}+{})", f.slot, f.term, f.first, f.count)
            }
            Ok(Frame::Forward(_, bytes)) => write!(words, " forward({} B)", bytes.len()),
            Ok(Frame::Deliver(d, _)) => {
                write!(words, " deliver(s{} t{} {} after {})", d.slot, d.term, d.ordinal, d.previous)
            }
            Ok(Frame::DeliverAck(d)) => write!(words, " delivered(s{} t{} {})", d.slot, d.term, d.ordinal),
            Ok(Frame::Pull(p)) => {
                write!(words, " pull(s{} at {} from byte {}, {} B)", p.slot, p.position, p.offset, p.room)
            }
            Ok(Frame::Chunk(c, _)) => {
                write!(words, " chunk(s{} at {} byte {} of {})", c.slot, c.position, c.offset, c.total)
            }
            Ok(Frame::Told(t)) => write!(words, " told(s{} t{} rel {})", t.slot, t.term, t.released),
            Err(_) => write!(words, " MALFORMED"),
        };
    }
    words
}

/// What becomes of a datagram, in words.
pub fn fate(arrivals: Arrivals) -> String {
    match (arrivals.first, arrivals.second) {
        (None, _) => " LOST".into(),
        (Some(at), None) => format!(" at {at:?}"),
        (Some(at), Some(again)) => format!(" at {at:?} AND {again:?}"),
    }
}

/// A reply to a client in words.
pub fn describe_reply(bytes: &[u8]) -> String {
    match output_place(bytes) {
        Some((slot, position)) => format!("slot {slot} position {position}, {} B", bytes.len()),
        None => format!("{} B of nothing known", bytes.len()),
    }
}
