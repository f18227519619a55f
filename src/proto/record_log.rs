//! A run of numbered records in one growing buffer: a slot's retained entries, or its kept outputs.
//!
//! Records are contiguous, so a range of them is one slice and filling a bundle is one copy. The front is
//! cut off as records are no longer needed; the buffer moves down only when at least half of it is free,
//! so every byte is moved at most once on average, and nothing is allocated in a steady state.

use std::collections::VecDeque;

/// An empty log gives its buffer back when it has grown past this.
const KEEP_CAPACITY: usize = 16 * 1024;

/// Records `first()..next()`, each a byte string.
#[derive(Debug)]
pub struct RecordLog {
    first: u64,
    /// Where each record starts, counted in bytes since the log was made.
    starts: VecDeque<u64>,
    bytes: Vec<u8>,
    /// The count of `bytes[0]`.
    base: u64,
}

impl RecordLog {
    /// An empty log whose next record is number `first`.
    pub fn new(first: u64) -> RecordLog {
        RecordLog { first, starts: VecDeque::new(), bytes: Vec::new(), base: 0 }
    }

    /// Number of the oldest record kept (of the next one, if none is).
    pub fn first(&self) -> u64 {
        self.first
    }

    /// The number the next record gets.
    pub fn next(&self) -> u64 {
        self.first + self.starts.len() as u64
    }

    /// How many records are kept.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether no record is kept.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Bytes of the records kept.
    pub fn size(&self) -> usize {
        self.bytes.len() - self.front()
    }

    fn end(&self) -> u64 {
        self.base + self.bytes.len() as u64
    }

    fn front(&self) -> usize {
        (self.starts.front().copied().unwrap_or(self.end()) - self.base) as usize
    }

    /// Appends the record that `write` appends to the buffer; returns its number.
    pub fn push_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> u64 {
        let number = self.next();
        self.starts.push_back(self.end());
        let before = self.bytes.len();
        write(&mut self.bytes);
        assert!(self.bytes.len() > before, "record {number} is empty");
        number
    }

    /// Appends a record; returns its number.
    pub fn push(&mut self, record: &[u8]) -> u64 {
        self.push_with(|bytes| bytes.extend_from_slice(record))
    }

    /// The bytes of records `from..to`, which must be within `first()..=next()`.
    pub fn range(&self, from: u64, to: u64) -> &[u8] {
        &self.bytes[self.offset(from)..self.offset(to)]
    }

    /// Record `number`, if it is kept.
    pub fn get(&self, number: u64) -> Option<&[u8]> {
        (self.first..self.next()).contains(&number).then(|| self.range(number, number + 1))
    }

    fn offset(&self, number: u64) -> usize {
        assert!(
            self.first <= number && number <= self.next(),
            "record {number} asked of a log of {}..{}",
            self.first,
            self.next()
        );
        let start = self.starts.get((number - self.first) as usize).copied().unwrap_or(self.end());
        (start - self.base) as usize
    }

    /// The end of the longest run `from..to` that takes at most `room` bytes.
    pub fn fit(&self, from: u64, room: usize) -> u64 {
        let limit = self.offset(from) + room;
        if self.bytes.len() <= limit {
            return self.next();
        }
        let mut to = from;
        while self.offset(to + 1) <= limit {
            to += 1;
        }
        to
    }

    /// Drops the records before `number`, or all there are if it is past them.
    pub fn release_to(&mut self, number: u64) {
        let gone = number.saturating_sub(self.first).min(self.starts.len() as u64);
        if gone == 0 {
            return;
        }
        self.starts.drain(..gone as usize);
        self.first += gone;
        if self.starts.is_empty() {
            self.base = self.end();
            self.bytes.clear();
            if self.bytes.capacity() > KEEP_CAPACITY {
                self.bytes = Vec::new();
                self.starts = VecDeque::new();
            }
            return;
        }
        let front = self.front();
        if front >= 4096 && front * 2 >= self.bytes.len() {
            self.bytes.copy_within(front.., 0);
            self.bytes.truncate(self.bytes.len() - front);
            self.base += front as u64;
        }
    }

    /// Drops the records from `number` on.
    pub fn truncate(&mut self, number: u64) {
        if number < self.next() {
            let keep = number.max(self.first);
            let end = self.offset(keep);
            self.bytes.truncate(end);
            self.starts.truncate((keep - self.first) as usize);
        }
    }

    /// Drops everything; the next record is number `first`.
    pub fn reset(&mut self, first: u64) {
        *self = RecordLog::new(first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Push(Vec<u8>),
        Release(u64),
        Truncate(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => proptest::collection::vec(any::<u8>(), 1..900).prop_map(Step::Push),
            2 => (0u64..12).prop_map(Step::Release),
            1 => (0u64..12).prop_map(Step::Truncate),
        ]
    }

    proptest! {
        #[test]
        fn it_behaves_like_a_list_of_numbered_strings(
            first in 0u64..1000, steps in proptest::collection::vec(step(), 0..200),
        ) {
            let mut log = RecordLog::new(first);
            let mut model: VecDeque<(u64, Vec<u8>)> = VecDeque::new();
            for step in steps {
                match step {
                    Step::Push(bytes) => {
                        let number = log.push(&bytes);
                        model.push_back((number, bytes));
                    }
                    Step::Release(n) => {
                        let to = log.first() + n;
                        log.release_to(to);
                        model.retain(|(number, _)| *number >= to);
                    }
                    Step::Truncate(n) => {
                        let to = log.first() + n;
                        log.truncate(to);
                        model.retain(|(number, _)| *number < to);
                    }
                }
                prop_assert_eq!(log.len(), model.len());
                prop_assert_eq!(log.size(), model.iter().map(|(_, b)| b.len()).sum::<usize>());
                for (number, bytes) in &model {
                    prop_assert_eq!(log.get(*number), Some(&bytes[..]));
                }
                let all: Vec<u8> = model.iter().flat_map(|(_, b)| b.clone()).collect();
                prop_assert_eq!(log.range(log.first(), log.next()), &all[..]);
            }
        }

        #[test]
        fn fit_is_the_longest_run_within_the_room(
            sizes in proptest::collection::vec(1usize..50, 1..20), room in 0usize..400,
        ) {
            let mut log = RecordLog::new(5);
            sizes.iter().for_each(|n| { log.push(&vec![0; *n]); });
            let to = log.fit(5, room);
            prop_assert!(log.range(5, to).len() <= room);
            prop_assert!(to == log.next() || log.range(5, to + 1).len() > room);
        }
    }

    #[test]
    fn a_steady_stream_does_not_grow_the_buffer() {
        let mut log = RecordLog::new(1);
        for _ in 0..100_000 {
            let number = log.push(&[7; 200]);
            log.release_to(number.saturating_sub(50));
        }
        assert!(log.bytes.capacity() < 128 * 1024, "{} bytes", log.bytes.capacity());
    }
}
