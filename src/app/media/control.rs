//! What RTCP that passes says about the streams of a call.
//!
//! Source: RFC 3550 section 6.4.1: a report block names the sender report it saw last and how long ago, so whoever saw
//! that report pass too knows the round trip from itself to the reporter.

use super::line::Line;
use crate::types::Nanos;
use crate::wire::rtcp::{Item, ReportBlock, items};
use crate::wire::rtp::Rtcp;
use crate::wire::sdp::describe::Transport;

/// The longest round trip that is believed, in us.
const MAX_ROUND_TRIP: u64 = 60_000_000;

impl Line {
    /// Reads RTCP that came from side number `from`.
    pub(super) fn control(&mut self, from: usize, rtcp: &Rtcp<'_>, now: Nanos) {
        let control = self.legs[from].control.get_or_insert_default();
        control.datagrams = control.datagrams.saturating_add(1);
        // What is encrypted reads as noise.
        if self.terms.transport == Transport::Rtp {
            items(rtcp, |item| self.item(from, item, now));
        }
    }

    fn item(&mut self, from: usize, item: Item, now: Nanos) {
        match item {
            Item::Report(block) => self.report(from, &block, now),
            Item::Sender { time, .. } => {
                if let Some(control) = &mut self.legs[from].control {
                    control.report = (time, now.0);
                }
            }
            Item::Voip(metrics) => {
                if let Some(control) = &mut self.legs[from].control {
                    control.voice = Some((metrics.r_factor, metrics.mos_lq, metrics.end_delay));
                }
            }
            Item::Bye { .. } => {}
        }
    }

    fn report(&mut self, from: usize, block: &ReportBlock, now: Nanos) {
        let other = &mut self.legs[1 - from];
        if let Some(stream) = other.streams.iter_mut().find(|stream| stream.ssrc == block.ssrc) {
            stream.report(block);
        }
        let Some(&(time, at)) = other.control.as_ref().map(|control| &control.report) else { return };
        if block.last_report == 0 || block.last_report != time {
            return;
        }
        let held = (u64::from(block.delay) * 1_000_000) >> 16;
        let round_trip = now.since(Nanos(at)).as_micros().saturating_sub(held).min(MAX_ROUND_TRIP);
        if let Some(control) = &mut self.legs[from].control {
            // 0 stands for unknown.
            control.round_trip = round_trip.max(1) as u32;
        }
    }
}
