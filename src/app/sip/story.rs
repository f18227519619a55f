//! What the record of a call is made of, gathered while it goes on.

use serde::{Deserialize, Serialize};

use super::cdr::{self, Cdr, EndedBy, Outcome, text};
use super::state::Hop;
use crate::app::media::Side;
use crate::app::media::summary::MediaSummary;
use crate::types::{CallKey, Nanos};
use crate::wire::sip::Address;

/// Why a call ended.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Cause {
    /// One side hung up.
    Bye(Side),
    /// The caller gave up.
    Cancel,
    /// It was refused.
    Response,
    /// It was refused here.
    Refused,
    /// No rule fits.
    NoRoute,
    /// No target answered.
    TargetTimeout,
    /// It rang too long.
    RingTimeout,
    /// No media came any more.
    MediaTimeout,
    /// Nobody refreshed the session.
    SessionTimer,
    /// It lasted as long as a call may.
    MaxDuration,
}

impl Cause {
    fn of_record(self) -> (EndedBy, cdr::Cause) {
        match self {
            Cause::Bye(Side::Caller) => (EndedBy::Caller, cdr::Cause::Bye),
            Cause::Bye(Side::Callee) => (EndedBy::Callee, cdr::Cause::Bye),
            Cause::Cancel => (EndedBy::Caller, cdr::Cause::Cancel),
            Cause::Response => (EndedBy::Callee, cdr::Cause::Response),
            Cause::Refused => (EndedBy::Tandem, cdr::Cause::Response),
            Cause::NoRoute => (EndedBy::Tandem, cdr::Cause::NoRoute),
            Cause::TargetTimeout => (EndedBy::Tandem, cdr::Cause::TargetTimeout),
            Cause::RingTimeout => (EndedBy::Tandem, cdr::Cause::RingTimeout),
            Cause::MediaTimeout => (EndedBy::Tandem, cdr::Cause::MediaTimeout),
            Cause::SessionTimer => (EndedBy::Tandem, cdr::Cause::SessionTimer),
            Cause::MaxDuration => (EndedBy::Tandem, cdr::Cause::MaxDuration),
        }
    }
}

/// A call from its INVITE to its end. Times in ns, 0: never.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Story {
    /// When the first INVITE came, and at which position of the log.
    pub started: (u64, u64),
    /// When it first rang.
    pub rung: u64,
    /// When it was answered.
    pub answered: u64,
    /// When it was over, and why.
    pub ended: Option<(u64, Cause)>,
    /// The INVITE's From, To and Request-URI.
    pub from: Box<[u8]>,
    pub to: Box<[u8]>,
    pub uri: Box<[u8]>,
    /// Where it came from.
    pub source: Hop,
    /// Where it went, in order.
    pub tried: Vec<Hop>,
    /// The last final response to an INVITE without To tag; 0 before it.
    pub code: u16,
    /// The slot's takeovers before it began.
    pub takeovers: u32,
}

impl Story {
    /// Whether the refusal only asks for something: the caller will try again.
    pub(super) fn is_challenged(&self) -> bool {
        matches!(self.ended, Some((_, Cause::Response | Cause::Refused)))
            && matches!(self.code, 401 | 407 | 422)
    }

    /// It is over, for this cause, unless it is already.
    pub(super) fn end(&mut self, now: u64, cause: Cause) {
        self.ended.get_or_insert((now, cause));
    }

    /// The record.
    pub(super) fn record(
        &self,
        (key, slot, call_id): (CallKey, u16, &[u8]),
        takeovers: u32,
        media: Option<MediaSummary>,
    ) -> Cdr {
        let (end, cause) = self.ended.unwrap_or((self.started.0, Cause::Refused));
        let uri = |name: &[u8]| text(Address::parse(name).map_or(name, |address| address.uri));
        let time = |ns: u64| (ns > 0).then_some(Nanos(ns));
        let (ended_by, cause) = cause.of_record();
        let outcome = match cause {
            cdr::Cause::NoRoute => Outcome::NoRoute,
            _ => Outcome::of(self.code, self.rung > 0),
        };
        Cdr {
            id: (key, self.started.1),
            call_id: text(call_id),
            slot,
            caller: uri(&self.from),
            callee: uri(&self.to),
            request_uri: text(&self.uri),
            source: self.source.to(),
            target: self.tried.last().map(Hop::to),
            tried: self.tried.iter().map(Hop::to).collect(),
            start: Nanos(self.started.0),
            ring: time(self.rung),
            answer: time(self.answered),
            end: Nanos(end),
            outcome,
            code: self.code,
            ended_by,
            cause,
            takeovers: takeovers.saturating_sub(self.takeovers),
            media,
        }
    }
}
