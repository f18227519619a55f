//! What an owner keeps for followers that may still lack it.

use super::*;
use crate::proto::map::MapMember;
use crate::proto::rtt::Rtt;
use crate::types::{CallKey, HostId};
use crate::wire::frame::Frame;
use zerocopy::FromBytes;

const NOW: Nanos = Nanos::from_secs(1);

/// Frames that were written, by what they are.
#[derive(Default)]
struct Written {
    starts: Vec<(u64, u16)>,
    segments: Vec<(u64, u16)>,
}

impl follower::FrameSink for Written {
    fn room(&self) -> usize {
        1_400
    }

    fn next_datagram(&mut self) {}

    fn frame(&mut self, frame: &Frame<'_>) {
        match frame {
            Frame::Start(start) => self.starts.push((start.tail.get(), start.flags.get())),
            Frame::Segment(header, _) => self.segments.push((header.first.get(), header.count.get())),
            _ => {}
        }
    }
}

fn member(id: u16) -> MapMember {
    MapMember { node: NodeId(id), host: HostId(id), boot: Boot(1), join: 1 }
}

fn group(members: &[u16], learners: &[u16]) -> Group {
    let of = |ids: &[u16]| ids.iter().map(|id| member(*id)).collect();
    Group { members: of(members), learners: of(learners), ..Group::default() }
}

fn unanswered(window: u64, group: &Group) -> Owner {
    let safeguards = Safeguards::default();
    let config = OwnerConfig {
        commit: 2,
        window,
        tell_after: Nanos::from_millis(1),
        address: 0,
        home: None,
        safeguards,
    };
    let lane = |node: NodeId| usize::from(node.0);
    Owner::new(Slot(0), Term(1), config, Survived::default(), group, lane)
}

fn owner(window: u64) -> Owner {
    owner_of(window, &group(&[1, 2], &[3]))
}

fn owner_of(window: u64, group: &Group) -> Owner {
    let mut owner = unanswered(window, group);
    for MapMember { node, .. } in group.members.iter().chain(&group.learners) {
        let sealed = frame::Sealed {
            term: 1.into(),
            join: 1.into(),
            ..frame::Sealed::read_from_bytes(&[0; size_of::<frame::Sealed>()]).unwrap()
        };
        owner.on_trust(*node, Some(Boot(1)));
        owner.on_sealed(*node, Boot(1), &sealed).unwrap();
    }
    owner
}

fn append(owner: &mut Owner) {
    let kind = EntryKind::Packet {
        call: CallKey(1),
        source: Endpoint { ip: [0; 16], port: 1 },
        local: LocalId::endpoint(0),
        payload: b"x",
    };
    owner.append(NOW, Entry { time: NOW, term: Term(1), kind }).unwrap();
}

fn ack_of(held: u64, executed: u64, outputs: u64) -> frame::Ack {
    frame::Ack {
        term: 1.into(),
        join: 1.into(),
        held: held.into(),
        executed: executed.into(),
        outputs: outputs.into(),
        deadline: u64::MAX.into(),
        ..frame::Ack::read_from_bytes(&[0; size_of::<frame::Ack>()]).unwrap()
    }
}

fn ack(owner: &mut Owner, id: u16, held: u64) {
    owner.on_ack(NOW, NodeId(id), Boot(1), &ack_of(held, held, 0)).unwrap();
}

fn written(owner: &mut Owner, id: u16) -> Written {
    let mut written = Written::default();
    owner.write_for(usize::from(id), NOW, &mut written);
    written
}

#[test]
fn what_a_promoted_learner_may_lack_is_kept_for_it() {
    let mut owner = owner(8);
    for position in 1..=3 {
        append(&mut owner);
        (1..=3).for_each(|id| drop(written(&mut owner, id)));
        ack(&mut owner, 1, position);
        ack(&mut owner, 2, position);
    }
    ack(&mut owner, 3, 2);
    assert_eq!((owner.stable(), owner.log.first()), (Position(2), 3), "the learner lacks entry 3");
    owner.on_group(&group(&[1, 2, 3], &[]), |node| usize::from(node.0));
    assert_eq!(owner.log.first(), 3, "and is a member all the same");
    owner.on_trust(NodeId(3), None);
    owner.on_trust(NodeId(3), Some(Boot(1)));
    assert_eq!(written(&mut owner, 3).segments, [(3, 1)], "it gets what it lacks");
    ack(&mut owner, 3, 3);
    assert_eq!(owner.log.first(), 4);
}

#[test]
fn a_learner_that_was_not_waited_for_begins_anew_or_counts_for_nothing() {
    let outpaced = || {
        let mut owner = owner(4);
        drop(written(&mut owner, 3));
        for position in 1..=6 {
            append(&mut owner);
            ack(&mut owner, 1, position);
            ack(&mut owner, 2, position);
        }
        assert!(owner.followers()[2].outpaced && owner.log.first() > 1, "{owner:?}");
        owner
    };
    let mut again = outpaced();
    let said = written(&mut again, 3);
    assert_eq!((said.starts, said.segments), (vec![(6, frame::START_LEARN)], vec![(7, 0)]));
    let mut promoted = outpaced();
    promoted.on_group(&group(&[1, 2, 3], &[]), |node| usize::from(node.0));
    assert_eq!(promoted.lost().collect::<Vec<_>>(), [NodeId(3)]);
    assert_eq!(written(&mut promoted, 3).segments, []);
}

#[test]
fn what_is_not_committed_is_kept_whoever_counts_for_nothing() {
    let mut owner = owner_of(8, &group(&[1, 2], &[3]));
    append(&mut owner);
    (1..=2).for_each(|id| ack(&mut owner, id, 1));
    owner.on_trust(NodeId(3), None);
    assert!(owner.outpace_learner(|_| true));
    owner.on_group(&group(&[1, 3], &[]), |node| usize::from(node.0));
    append(&mut owner);
    ack(&mut owner, 1, 2);
    assert_eq!(owner.lost().collect::<Vec<_>>(), [NodeId(3)]);
    assert_eq!(
        (owner.committed(), owner.stable()),
        (Position(1), Position(1)),
        "one of two members holds it"
    );
}

#[test]
fn of_two_learners_the_silent_one_is_not_waited_for() {
    let mut owner = owner_of(8, &group(&[1, 2], &[3, 4]));
    (1..=2).for_each(|_| append(&mut owner));
    (1..=2).for_each(|id| ack(&mut owner, id, 2));
    drop(written(&mut owner, 4));
    ack(&mut owner, 4, 1);
    owner.on_trust(NodeId(4), None);
    assert!(owner.demote_lost());
    let outpaced: Vec<bool> = owner.followers().iter().map(|f| f.outpaced).collect();
    assert_eq!(outpaced, [false, false, false, true], "though the other one holds less");
}

#[test]
fn a_learner_that_was_sent_all_and_acked_nothing_is_not_probed_with_what_is_gone() {
    let mut owner = owner(4);
    for position in 1..=6 {
        append(&mut owner);
        drop(written(&mut owner, 3));
        ack(&mut owner, 1, position);
        ack(&mut owner, 2, position);
    }
    assert!(owner.log.is_empty() && owner.followers()[2].sent == Position(6), "{owner:?}");
    owner.followers_mut()[2].probe = true;
    let said = written(&mut owner, 3);
    assert_eq!((said.starts, said.segments), (vec![(6, frame::START_LEARN)], vec![(7, 0)]));
}

#[test]
fn learners_that_were_outpaced_together_are_not_sent_what_is_gone() {
    let mut owner = owner_of(4, &group(&[1], &[2, 3]));
    append(&mut owner);
    (1..=3).for_each(|id| drop(written(&mut owner, id)));
    (1..=3).for_each(|id| ack(&mut owner, id, 1));
    (2..=3).for_each(|id| owner.on_trust(NodeId(id), None));
    for position in 2..=8 {
        append(&mut owner);
        drop(written(&mut owner, 1));
        ack(&mut owner, 1, position);
    }
    (2..=3).for_each(|id| owner.on_trust(NodeId(id), Some(Boot(1))));
    assert!(owner.log.first() > 2 && owner.followers()[1].sent == owner.followers()[2].sent, "{owner:?}");
    assert_eq!(owner.in_step(1), None);
    for id in 2..=3 {
        assert_eq!(written(&mut owner, id).starts, [(8, frame::START_LEARN)]);
    }
}

/// An owner of term 2 that has recovered `entries` of term 1; its members hold as many of them as `held` says.
fn recovered(window: u64, entries: usize, held: &[u64]) -> Owner {
    let mut log = RecordLog::new(1);
    let entry = Entry { time: NOW, term: Term(1), kind: EntryKind::Tick };
    (0..entries).for_each(|_| assert!(log.push_with(|bytes| entry.write(bytes)) > 0));
    let survived = Survived { log, last_time: NOW, ..Survived::default() };
    let safeguards = Safeguards::default();
    let config = OwnerConfig {
        commit: 2,
        window,
        tell_after: Nanos::from_millis(1),
        address: 0,
        home: None,
        safeguards,
    };
    let ids: Vec<u16> = (1..=held.len() as u16).collect();
    let lane = |node: NodeId| usize::from(node.0);
    let mut owner = Owner::new(Slot(0), Term(2), config, survived, &group(&ids, &[]), lane);
    for (id, held) in ids.into_iter().zip(held) {
        owner.on_trust(NodeId(id), Some(Boot(1)));
        owner.on_sealed(NodeId(id), Boot(1), &frame::Sealed { term: 2.into(), ..sealed(1, *held) }).unwrap();
    }
    owner
}

fn ack_in_term_2(owner: &mut Owner, id: u16, held: u64) {
    let ack = frame::Ack { term: 2.into(), ..ack_of(held, held, 0) };
    owner.on_ack(NOW, NodeId(id), Boot(1), &ack).unwrap();
}

#[test]
fn an_entry_of_its_own_term_is_taken_by_an_owner_whose_recovered_log_fills_the_window() {
    let mut owner = recovered(4, 4, &[4, 4]);
    let tick = || Entry { time: NOW, term: Term(2), kind: EntryKind::Tick };
    assert_eq!(owner.tick_due(), Nanos::ZERO);
    owner.append(NOW, tick()).unwrap();
    assert_eq!(owner.tick_due(), Nanos::MAX);
    assert_eq!(owner.append(NOW, tick()), Err(Refusal::WindowFull), "one is enough");
    for (held, stable) in [(4, 0), (5, 5)] {
        (1..=2).for_each(|id| ack_in_term_2(&mut owner, id, held));
        assert_eq!(owner.stable(), Position(stable), "both hold {held}");
    }
}

#[test]
fn a_member_that_holds_as_much_as_is_committed_is_not_given_up() {
    let mut owner = recovered(8, 4, &[4, 4, 2]);
    owner.append(NOW, Entry { time: NOW, term: Term(2), kind: EntryKind::Tick }).unwrap();
    (1..=2).for_each(|id| ack_in_term_2(&mut owner, id, 4));
    assert!(!owner.demote_slowest(), "nothing could be dropped without it");
    (1..=2).for_each(|id| ack_in_term_2(&mut owner, id, 5));
    assert!(owner.demote_slowest());
    assert_eq!((owner.lost().collect::<Vec<_>>(), owner.stable()), (vec![NodeId(3)], Position(5)));
}

#[test]
fn a_learner_that_waits_for_replies_keeps_no_member_from_learning_where_it_is() {
    let mut owner = owner_of(8, &group(&[1, 2], &[3]));
    append(&mut owner);
    (1..=2).for_each(|id| ack(&mut owner, id, 1));
    append(&mut owner);
    owner.discount(0);
    let patience = Nanos::from_secs(1);
    assert!(!owner.teach_lost(NOW, patience), "it has just been lost");
    assert!(owner.teach_lost(NOW + patience, patience), "nothing is committed with one of two");
}

#[test]
fn who_is_suspected_for_a_moment_lets_no_member_drop_what_it_holds() {
    let mut owner = owner_of(8, &group(&[1, 2, 3], &[4]));
    append(&mut owner);
    (1..=2).for_each(|id| ack(&mut owner, id, 1));
    owner.discount(2);
    owner.on_trust(NodeId(2), None);
    let patience = Nanos::from_secs(1);
    owner.teach_lost(NOW, patience);
    assert!(!owner.teach_lost(NOW + patience, patience), "the learner will be whole first");
    owner.on_trust(NodeId(4), None);
    assert!(owner.teach_lost(NOW + patience, patience));
}

#[test]
fn a_member_that_has_not_answered_is_not_asked_for_each_entry() {
    let mut owner = unanswered(8, &group(&[1, 2], &[3]));
    owner.on_trust(NodeId(2), Some(Boot(1)));
    append(&mut owner);
    append(&mut owner);
    let wants = |owner: &Owner| owner.followers()[1].wants(owner.tail());
    assert!(!wants(&owner), "the seal is repeated when its answer is late, and then once");
    let rtt = vec![Rtt::new(Nanos::from_millis(1), Nanos::from_millis(1), Nanos::from_millis(1)); 4];
    owner.on_timeout(NOW + Nanos::from_secs(1), &rtt, Nanos::from_millis(1));
    assert!(wants(&owner));
    assert_eq!(written(&mut owner, 2).segments, []);
    assert!(!wants(&owner));
}

/// Two members hold everything, and know that it is stable; those of the next map that are as `how` says.
fn told_of(next: &Group, how: impl Fn(&Follower) -> bool) -> Vec<NodeId> {
    let mut owner = owner_of(8, &group(&[1, 2], &[]));
    append(&mut owner);
    for _ in 0..2 {
        (1..=2).for_each(|id| drop(written(&mut owner, id)));
        (1..=2).for_each(|id| ack(&mut owner, id, 1));
    }
    (1..=2).for_each(|id| drop(written(&mut owner, id)));
    owner.on_group(next, |node| usize::from(node.0));
    owner.on_trust(NodeId(3), Some(Boot(1)));
    owner.followers().iter().filter(|f| how(f)).map(|f| f.node).collect()
}

#[test]
fn who_stays_a_member_is_told_of_a_map_in_passing() {
    let at_once = |f: &Follower| f.presses();
    assert_eq!(told_of(&group(&[1, 2], &[3]), at_once), [NodeId(3)], "who learns begins");
    assert_eq!(told_of(&group(&[1, 2], &[]), at_once), []);
    assert_eq!(told_of(&group(&[2, 3], &[]), at_once), [NodeId(2), NodeId(3)], "their master has gone");
    let at_all = |f: &Follower| f.wants(Position(1));
    assert_eq!(told_of(&group(&[1, 2], &[]), at_all), [NodeId(1), NodeId(2)]);
    let first = |f: &Follower| f.comes_first(Position(1));
    assert_eq!(told_of(&group(&[2, 1], &[]), first), [], "nobody waits for it");
}

#[test]
fn what_a_learner_was_told_before_it_began_is_told_again() {
    let mut owner = owner(8);
    assert!(owner.tell_at() < Nanos::MAX, "as long as it learns");
    drop(written(&mut owner, 3));
    ack(&mut owner, 3, 0);
    assert!(owner.followers()[2].started && owner.followers()[2].wants(owner.tail()));
}

#[test]
fn a_learner_that_had_to_begin_anew_and_is_promoted_counts_for_nothing() {
    let mut owner = owner(8);
    append(&mut owner);
    ack(&mut owner, 1, 1);
    owner.teach(2);
    owner.on_group(&group(&[1, 2, 3], &[]), |node| usize::from(node.0));
    assert!(owner.followers()[2].lost, "it holds entries, and nothing to run them on");
    assert_eq!(owner.lost().collect::<Vec<_>>(), [NodeId(3)]);
}

#[test]
fn what_a_learner_says_of_an_earlier_beginning_is_no_answer_to_its_start() {
    let mut owner = owner(8);
    for position in 1..=3 {
        append(&mut owner);
        (1..=3).for_each(|id| drop(written(&mut owner, id)));
        (1..=3).for_each(|id| ack(&mut owner, id, position));
    }
    (0..2).for_each(|_| append(&mut owner));
    owner.teach(2);
    assert_eq!(written(&mut owner, 3).starts, [(5, frame::START_LEARN)]);
    assert_eq!(owner.on_ack(NOW, NodeId(3), Boot(1), &ack_of(4, 0, 0)), Err(Stale::Term));
    assert!(!owner.followers()[2].started, "its Start may have been lost, and is repeated");
    ack(&mut owner, 3, 5);
    assert!(owner.followers()[2].started);
}

#[test]
fn what_a_member_knew_to_be_on_the_wire_outlives_it() {
    let mut recovery = recovery::Recovery::new(NOW, Slot(0), Term(2), Safeguards::default());
    let sealed = |held: u64, released: u64| frame::Sealed {
        term: 2.into(),
        join: 1.into(),
        last_term: 1.into(),
        first: (held + 1).into(),
        held: held.into(),
        outputs: held.into(),
        released: released.into(),
        ..frame::Sealed::read_from_bytes(&[0; size_of::<frame::Sealed>()]).unwrap()
    };
    assert!(recovery.on_sealed(NodeId(1), Boot(1), &sealed(5, 5)));
    assert!(recovery.on_sealed(NodeId(2), Boot(1), &sealed(4, 2)));
    for lossy in [false, true] {
        recovery.settle(&group(&[1, 2], &[]), lossy);
        recovery.give_up_on(NodeId(1));
        recovery.settle(&group(&[1, 2], &[]), lossy);
        let survived = recovery.survived();
        assert_eq!((survived.log.next(), survived.released), (5, Ordinal(4)), "but not more than there is");
    }
}

fn sealed(last_term: u32, held: u64) -> frame::Sealed {
    frame::Sealed {
        term: 1.into(),
        join: 1.into(),
        last_term: last_term.into(),
        held: held.into(),
        ..frame::Sealed::read_from_bytes(&[0; size_of::<frame::Sealed>()]).unwrap()
    }
}

#[test]
fn who_has_nothing_to_tell_begins_with_the_first_entry_if_that_is_kept() {
    let mut owner = unanswered(8, &group(&[1], &[]));
    owner.on_sealed(NodeId(1), Boot(1), &sealed(frame::LOST, 7)).unwrap();
    assert_eq!(owner.lost().count(), 0);
    owner.on_trust(NodeId(1), Some(Boot(1)));
    (0..2).for_each(|_| append(&mut owner));
    let said = written(&mut owner, 1);
    assert_eq!((said.starts, said.segments), (vec![(0, frame::START_ANEW)], vec![(1, 2)]));
    ack(&mut owner, 1, 2);
    assert_eq!(owner.committed(), Position(2));

    let gone = Survived { log: RecordLog::new(5), before: Term(1), ..Survived::default() };
    let lane = |node: NodeId| usize::from(node.0);
    let mut owner = Owner::new(Slot(0), Term(1), owner.config, gone, &group(&[1], &[]), lane);
    owner.on_sealed(NodeId(1), Boot(1), &sealed(frame::LOST, 7)).unwrap();
    assert_eq!(owner.lost().collect::<Vec<_>>(), [NodeId(1)]);
}

#[test]
fn who_went_on_with_something_else_is_given_up_and_keeps_it_and_who_learns_then_begins_with_the_first_entry()
{
    let mut owner = unanswered(8, &group(&[1], &[]));
    owner.on_sealed(NodeId(1), Boot(1), &sealed(1, 3)).unwrap();
    owner.on_trust(NodeId(1), Some(Boot(1)));
    assert_eq!(owner.lost().collect::<Vec<_>>(), [NodeId(1)]);
    (0..2).for_each(|_| append(&mut owner));
    let said = written(&mut owner, 1);
    assert_eq!((said.starts, said.segments), (vec![], vec![]), "it stays as it was");
    owner.on_group(&group(&[1], &[2]), |node| usize::from(node.0));
    owner.on_trust(NodeId(2), Some(Boot(1)));
    let written = written(&mut owner, 2);
    assert_eq!((written.starts, written.segments), (vec![(0, frame::START_LEARN)], vec![(1, 2)]));
}

#[test]
fn a_member_that_was_given_up_and_is_kept_learns_the_slot_where_it_is_and_counts_again() {
    let mut owner = unanswered(8, &group(&[1, 2], &[]));
    owner.on_sealed(NodeId(1), Boot(1), &sealed(0, 0)).unwrap();
    owner.on_sealed(NodeId(2), Boot(1), &sealed(1, 3)).unwrap();
    (1..=2).for_each(|id| owner.on_trust(NodeId(id), Some(Boot(1))));
    (0..2).for_each(|_| append(&mut owner));
    drop(written(&mut owner, 1));
    ack(&mut owner, 1, 2);
    assert_eq!((owner.committed(), owner.is_orphaned()), (Position(0), false), "two must hold it");
    let later = |ms: u64| NOW + Nanos::from_millis(ms);
    assert!(!owner.teach_lost(later(0), Nanos::from_millis(9)));
    assert!(!owner.teach_lost(later(8), Nanos::from_millis(9)), "the map may drop it yet");
    assert!(owner.teach_lost(later(9), Nanos::from_millis(9)));
    assert_eq!(owner.lost().collect::<Vec<_>>(), [NodeId(2)], "it counts for nothing");
    append(&mut owner);
    let said = written(&mut owner, 2);
    assert_eq!((said.starts, said.segments), (vec![(2, frame::START_LEARN)], vec![(3, 1)]));
    drop(written(&mut owner, 1));
    ack(&mut owner, 1, 3);
    for (executed, outputs) in [(0, 0), (3, 1)] {
        owner.on_ack(NOW, NodeId(2), Boot(1), &ack_of(3, executed, outputs)).unwrap();
        assert_eq!(owner.lost().count(), 1, "an output that it was only told of is not here");
        assert_eq!(owner.committed(), Position(0));
    }
    owner.outputs.push(b"an output");
    owner.on_ack(NOW, NodeId(2), Boot(1), &ack_of(3, 3, 2)).unwrap();
    assert_eq!((owner.lost().count(), owner.committed()), (0, Position(3)));
    assert!(!owner.followers()[1].may_lead(), "it could not send that output");
    owner.released = 1;
    owner.on_ack(NOW, NodeId(2), Boot(1), &ack_of(3, 3, 2)).unwrap();
    assert!(owner.followers()[1].may_lead());
}

#[test]
fn a_member_that_learns_where_it_is_and_falls_behind_begins_again() {
    let mut owner = unanswered(4, &group(&[1, 2, 3], &[]));
    owner.on_sealed(NodeId(3), Boot(1), &sealed(1, 3)).unwrap();
    (1..=3).for_each(|id| owner.on_trust(NodeId(id), Some(Boot(1))));
    let next = |owner: &mut Owner, position: u64| {
        append(owner);
        for id in 1..=2 {
            if position == 1 {
                owner.on_sealed(NodeId(id), Boot(1), &sealed(0, 0)).unwrap();
            }
            drop(written(owner, id));
            ack(owner, id, position);
        }
    };
    next(&mut owner, 1);
    owner.teach_lost(NOW, Nanos::ZERO);
    assert_eq!(written(&mut owner, 3).starts, [(1, frame::START_LEARN)]);
    ack(&mut owner, 3, 1);
    (2..=7).for_each(|position| next(&mut owner, position));
    assert!(owner.followers()[2].outpaced && owner.log.is_empty(), "{owner:?}");
    owner.on_group(&group(&[1, 2, 3], &[]), |node| usize::from(node.0));
    ack(&mut owner, 3, 2);
    assert_eq!(owner.lost().collect::<Vec<_>>(), [NodeId(3)], "it lacks what is gone");
    owner.on_trust(NodeId(3), None);
    owner.on_trust(NodeId(3), Some(Boot(1)));
    assert_eq!(written(&mut owner, 3).starts, [(7, frame::START_LEARN)]);
}

#[test]
fn nobody_learns_where_nobody_is_whole() {
    let mut owner = unanswered(8, &group(&[1, 2], &[]));
    for id in 1..=2 {
        owner.on_sealed(NodeId(id), Boot(1), &sealed(1, 3)).unwrap();
        owner.on_trust(NodeId(id), Some(Boot(1)));
    }
    for ms in 0..100 {
        assert!(!owner.teach_lost(NOW + Nanos::from_millis(ms), Nanos::from_millis(9)));
    }
    assert!(owner.is_orphaned(), "another term must go on from what is left");
}
