//! The member side alone: terms, promises, learning.

use super::{Kept, Machine, Member, Refused, SnapshotHead};
use crate::proto::Safeguards;
use crate::types::{Boot, Nanos, NodeId, Ordinal, Position, Slot, Term};
use crate::wire::frame::{LOST, START_ANEW, START_LEARN, Segment, Start, Told};
use crate::wire::record::{Entry, EntryKind};
use zerocopy::FromZeros;

const OWNER: (NodeId, Boot) = (NodeId(1), Boot(10));

/// Counts what it executes.
#[derive(Default)]
struct Counter(u64);

impl Machine for Counter {
    fn execute(&mut self, _: Position, _: &Entry<'_>, _: &mut Kept<'_>) {
        self.0 += 1;
    }
    fn reset(&mut self) {
        self.0 = 0;
    }
}

fn member() -> Member {
    Member::new(Slot(3), NodeId(2), 1, 64, Safeguards::default())
}

fn start(term: u32, tail: u64, flags: u16) -> Start {
    Start { slot: 3.into(), flags: flags.into(), term: term.into(), join: 1.into(), tail: tail.into() }
}

/// Entries `from` to `to`, appended in `term`.
fn take(member: &mut Member, machine: &mut Counter, term: u32, from: u64, to: u64) -> Result<(), Refused> {
    let mut bytes = Vec::new();
    for n in from..=to {
        Entry { time: Nanos(n), term: Term(term), kind: EntryKind::Tick }.write(&mut bytes);
    }
    let mut header = Segment::new_zeroed();
    header.term = term.into();
    header.first = from.into();
    header.count = ((to + 1 - from) as u16).into();
    member.on_segment(&header, &bytes, OWNER, machine).map(|_| ())
}

#[test]
fn entries_are_taken_after_the_start_of_their_term_only() {
    let (mut member, mut machine) = (member(), Counter::default());
    assert_eq!(take(&mut member, &mut machine, 1, 1, 2), Err(Refused::Term));
    member.on_start(&start(1, 0, 0), OWNER, &mut machine).unwrap();
    take(&mut member, &mut machine, 1, 1, 2).unwrap();
    assert_eq!((member.held(), machine.0), (Position(2), 2));
    let stranger = (NodeId(1), Boot(11));
    assert_eq!(member.on_start(&start(1, 0, 0), stranger, &mut machine), Err(Refused::Term));
}

#[test]
fn a_promise_freezes_the_log_until_the_new_owner_goes_on_from_it() {
    let (mut member, mut machine) = (member(), Counter::default());
    member.on_start(&start(1, 0, 0), OWNER, &mut machine).unwrap();
    take(&mut member, &mut machine, 1, 1, 4).unwrap();
    let sealed = member.on_seal(Term(3), Nanos::MAX).unwrap();
    assert_eq!((sealed.last_term.get(), sealed.first.get(), sealed.held.get()), (1, 1, 4));
    assert_eq!(take(&mut member, &mut machine, 1, 5, 5), Err(Refused::Term), "of the old owner");
    assert_eq!(member.on_seal(Term(2), Nanos::MAX), Err(Refused::Term), "of an older one");
    assert_eq!(member.on_start(&start(2, 4, 0), OWNER, &mut machine), Err(Refused::Term));
    let (first, count, _) = member.fetched(Term(3), Position(2), 1 << 16).unwrap();
    assert_eq!((first, count), (Position(2), 3));
    assert_eq!(member.on_start(&start(3, 3, 0), OWNER, &mut machine), Err(Refused::Behind));
    member.on_start(&start(3, 4, 0), OWNER, &mut machine).unwrap();
    take(&mut member, &mut machine, 3, 5, 5).unwrap();
    assert_eq!(member.on_seal(Term(4), Nanos::MAX).unwrap().last_term.get(), 3);
}

#[test]
fn what_an_owner_counted_of_outputs_not_made_here_is_forgotten_with_it() {
    let (mut member, mut machine) = (member(), Counter::default());
    member.on_start(&start(1, 0, 0), OWNER, &mut machine).unwrap();
    take(&mut member, &mut machine, 1, 1, 4).unwrap();
    let told = Told { slot: 3.into(), term: 1.into(), released: 7.into() };
    member.on_told(&told, OWNER).unwrap();
    assert_eq!(member.told.1, Ordinal(7));
    member.on_seal(Term(2), Nanos::MAX).unwrap();
    member.on_start(&start(2, 4, 0), OWNER, &mut machine).unwrap();
    assert_eq!(member.told.1, Ordinal(0), "those that it makes next may be others");
}

#[test]
fn who_has_nothing_to_tell_begins_anew_where_it_is_told_so_and_nobody_else_does() {
    let (mut learner, mut machine) = (member(), Counter::default());
    learner.on_start(&start(2, 10, START_LEARN), OWNER, &mut machine).unwrap();
    take(&mut learner, &mut machine, 2, 11, 14).unwrap();
    assert_eq!(learner.on_seal(Term(3), Nanos::MAX).unwrap().last_term.get(), LOST);
    assert_eq!(learner.on_start(&start(3, 0, 0), OWNER, &mut machine), Err(Refused::Behind));
    learner.on_start(&start(3, 0, START_ANEW), OWNER, &mut machine).unwrap();
    assert_eq!((learner.held(), learner.wants_snapshot(), machine.0), (Position(0), None, 0));
    take(&mut learner, &mut machine, 3, 1, 2).unwrap();
    learner.on_start(&start(3, 0, START_ANEW), OWNER, &mut machine).unwrap();
    assert_eq!((learner.held(), machine.0), (Position(2), 2), "a repeated one changes nothing");
    assert_eq!(
        learner.on_seal(Term(3), Nanos::MAX).unwrap().last_term.get(),
        LOST,
        "it may lack what is committed"
    );
    let mut header = Segment::new_zeroed();
    (header.term, header.first, header.committed) = (3.into(), 3.into(), 2.into());
    learner.on_segment(&header, &[], OWNER, &mut machine).unwrap();
    assert_eq!(learner.on_seal(Term(4), Nanos::MAX).unwrap().last_term.get(), 3);
    assert_eq!(learner.on_start(&start(4, 0, START_ANEW), OWNER, &mut machine), Err(Refused::Behind));
    assert_eq!(machine.0, 2, "it holds something: that is not dropped");
}

#[test]
fn a_learner_keeps_entries_until_its_snapshot_has_come_and_counts_in_no_seal_before() {
    let (mut learner, mut machine) = (member(), Counter::default());
    learner.on_start(&start(2, 10, START_LEARN), OWNER, &mut machine).unwrap();
    take(&mut learner, &mut machine, 2, 11, 14).unwrap();
    assert_eq!((learner.held(), machine.0, learner.wants_snapshot()), (Position(14), 0, Some(Position(10))));
    assert_eq!(learner.on_seal(Term(2), Nanos::MAX).unwrap().last_term.get(), LOST);
    let head = SnapshotHead {
        term: Term(2),
        position: Position(12),
        last_term: Term(2),
        last_time: Nanos(12),
        outputs: Ordinal(7),
        digest: 99,
        checkpoint: (Position(0), 0),
    };
    let mut bytes = Vec::new();
    head.write(&mut bytes);
    bytes.push(5);
    assert_eq!(SnapshotHead::read(&bytes), Some((head, &[5][..])));
    assert_eq!(SnapshotHead::read(&bytes[..30]), None);
    let early = SnapshotHead { position: Position(9), ..head };
    assert_eq!(learner.restore(&early, &mut machine), Err(Refused::Behind));
    learner.restore(&head, &mut machine).unwrap();
    assert_eq!((machine.0, learner.executed()), (2, Position(14)));
    assert!(!learner.in_sync(), "outputs before the snapshot are not all on the wire");
    let mut header = Segment::new_zeroed();
    (header.term, header.first, header.released) = (2.into(), 15.into(), 7.into());
    learner.on_segment(&header, &[], OWNER, &mut machine).unwrap();
    assert!(learner.in_sync());
}
