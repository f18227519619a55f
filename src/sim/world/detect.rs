//! The failure detectors of worlds without beats, modelled: each node notices in its own time how every other one is.

use super::{Event, World};
use crate::sim::node::News;
use crate::types::Nanos;

impl World {
    /// Something changed: every detector will notice, each in its own time.
    pub(super) fn let_detect(&mut self, soonest: Nanos, latest: Nanos) {
        if self.scenario.settings.beats {
            return;
        }
        for at in 0..self.nodes.len() {
            for of in (0..self.nodes.len()).filter(|of| *of != at) {
                let delay = Nanos(self.rng.range(soonest.0, latest.0));
                self.queue.push(self.now + delay, Event::Detect { at, of });
            }
        }
    }

    pub(super) fn detect(&mut self, at: usize, of: usize) {
        let other = &self.nodes[of];
        let (id, boot, me) = (other.id, other.boot, &self.nodes[at]);
        let silent = !other.alive || other.frozen > 0 || self.links.is_cut(id, me.id);
        if !me.alive {
            return;
        }
        if !silent && me.known[of] != Some(boot) {
            self.nodes[at].known[of] = Some(boot);
            self.tell_news(at, News::Joined(id, boot));
        }
        if self.nodes[at].silent.contains(id) == silent {
            return;
        }
        match silent {
            true => self.nodes[at].silent.insert(id),
            false => self.nodes[at].silent.remove(id),
        }
        self.coverage.suspicions += u64::from(silent);
        self.tell_suspects(at);
    }

    /// Tells the loops of a node whom its detector suspects.
    pub(super) fn tell_suspects(&mut self, at: usize) {
        for lane in 0..self.nodes[at].loops.len() {
            let suspects = self.suspects_of(at, lane);
            self.tell_loop(at, lane, News::Suspects(suspects));
        }
    }

    pub(super) fn tell_news(&mut self, at: usize, news: News) {
        (0..self.nodes[at].loops.len()).for_each(|lane| self.tell_loop(at, lane, news));
    }

    fn tell_loop(&mut self, at: usize, lane: usize, news: News) {
        self.say(|w| format!("{} shard {lane} hears {news:?}", w.nodes[at].id));
        self.nodes[at].loops[lane].news.push_back(news);
        let soon = self.now + Nanos(self.rng.range(0, 100_000));
        self.wake(at, lane, soon);
    }
}
