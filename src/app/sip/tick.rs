//! Time passes: what is due in a call, and when the next thing is.

use super::client::Expiry;
use super::run::{Ctx, Run};
use super::state::{Client, DialogState, Exchange, NEVER, ServerState, State};
use super::story::Cause;
use crate::app::TimerId;
use crate::app::media::Side;
use crate::types::Nanos;

/// A call's only timer.
const NEXT: TimerId = TimerId(0);

/// What is over is forgotten at multiples of this time, in ns (67 ms): so much of many calls is forgotten together, in
/// one entry a slot and one bundle for all slots, where an entry for each would cost as much as a message.
const FORGET_EVERY: u64 = 1 << 26;

impl State {
    pub(super) fn on_time(&mut self, run: &mut Run<'_, impl Ctx>) {
        // The timer that has fired is set no more.
        self.armed = NEVER;
        let now = run.now();
        // What is begun meanwhile is not due yet.
        for at in 0..self.exchanges.len() {
            for which in 0..self.exchanges[at].clients.len() {
                let exchange = &mut self.exchanges[at];
                match exchange.clients[which].tick(run, exchange.verb) {
                    Expiry::No => {}
                    expiry => self.on_expiry(run, at, which, expiry == Expiry::Rang),
                }
            }
            if let Some(server) = &mut self.exchanges[at].server {
                server.tick(run);
            }
        }
        let longest = run.config.max_call.unwrap_or(Nanos::MAX).0;
        self.end_dialogs(run, |dialog| {
            let (at, cause) = dialog.due(longest);
            (at <= now).then_some(cause)
        });
        self.listen_to_media(run);
    }

    /// When media that is silent from then on is silent for too long.
    fn silence(&self, run: &Run<'_, impl Ctx>) -> u64 {
        let timeout = run.config.media.as_ref().and_then(|media| media.timeout);
        let answered = self.dialogs.iter().filter(|dialog| dialog.state == DialogState::Confirmed);
        match (timeout, answered.map(|dialog| dialog.answered).max()) {
            (Some(timeout), Some(_)) if self.media.is_anchored() => self.listen.saturating_add(timeout.0),
            _ => NEVER,
        }
    }

    /// Ends the call if no media came for too long; else looks again later. Packets move no timer.
    fn listen_to_media(&mut self, run: &mut Run<'_, impl Ctx>) {
        if self.silence(run) > run.now() {
            return;
        }
        let last = [Side::Caller, Side::Callee].map(|side| self.media.last_packet(side)).into_iter().max();
        let heard = last.flatten().map_or(0, |at| at.0);
        if self.media.is_held() {
            self.listen = run.now();
        } else if heard > self.listen {
            self.listen = heard;
        }
        if self.silence(run) <= run.now() {
            self.end_dialogs(run, |dialog| {
                (dialog.state == DialogState::Confirmed).then_some(Cause::MediaTimeout)
            });
        }
    }

    /// After everything: forgets what is over, writes what is to be written, and sets the timer.
    pub(super) fn finish(&mut self, run: &mut Run<'_, impl Ctx>) {
        let now = run.now();
        self.exchanges.retain(|exchange| !exchange.is_over(now));
        if self.exchanges.is_empty() {
            self.exchanges = Vec::new();
        }
        self.settle(run);
        run.finish();
        if self.exchanges.is_empty() && self.dialogs.is_empty() {
            return run.ctx.end();
        }
        let next = self.deadline(run);
        if next != self.armed {
            run.ctx.set_timer(NEXT, Nanos(next));
            self.armed = next;
        }
    }

    /// The next time at which something is due. What has passed is done, and only waits for the rest of its exchange.
    fn deadline(&self, run: &Run<'_, impl Ctx>) -> u64 {
        let now = run.now();
        let longest = run.config.max_call.unwrap_or(Nanos::MAX).0;
        let exchanges = self.exchanges.iter().flat_map(Exchange::deadlines);
        let dialogs = self.dialogs.iter().map(|dialog| dialog.due(longest).0);
        let all = exchanges.chain(dialogs).chain([self.silence(run)]);
        all.filter(|at| *at > now).min().unwrap_or(NEVER)
    }
}

impl Exchange {
    /// When something of it is due, of which some may have passed.
    fn deadlines(&self) -> impl Iterator<Item = u64> {
        let repeats =
            self.clients.iter().flat_map(Client::repeats).chain(self.server.iter().map(|s| s.repeat.at));
        let ends = self.clients.iter().map(|c| c.until).chain(self.server.iter().map(|s| s.until));
        // One that is through only waits for its last end.
        let last = self.is_through().then(|| ends.clone().max().unwrap_or(NEVER));
        let forgotten = last.map(|last| last.checked_next_multiple_of(FORGET_EVERY).unwrap_or(NEVER));
        repeats.chain(ends.filter(move |_| last.is_none())).chain(forgotten)
    }

    /// Whether nothing can come of it any more.
    fn is_through(&self) -> bool {
        self.server.as_ref().is_none_or(|server| server.state != ServerState::Proceeding)
            && self.clients.iter().all(|client| !client.is_open())
    }

    pub(super) fn is_over(&self, now: u64) -> bool {
        let current = self.clients.len().saturating_sub(1);
        let gone =
            |(which, client): (usize, &Client)| client.is_over(now) || which < current && client.until <= now;
        self.server.as_ref().is_none_or(|server| server.is_over(now))
            && self.clients.iter().enumerate().all(gone)
    }
}
