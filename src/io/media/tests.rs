//! Ports that are a socket each, on loopback. Steered ones need privileges: `tests/netns_steer.rs`.

use super::*;
use mio::{Events, Poll};
use std::cell::Cell;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

const FIRST: u16 = 41_000;

fn plan(shards: u16, shard: u16, last: u16) -> MediaPlan {
    let addresses: Vec<(IpAddr, u16)> =
        vec![(Ipv4Addr::new(127, 77, 1, 1).into(), 0), (Ipv4Addr::new(127, 77, 1, 2).into(), 2)];
    let ports = MediaPorts { first: FIRST, last, slots: 8, addresses: 2 };
    MediaPlan { ports, addresses, shards, shard }
}

fn read(poll: &mut Poll, media: &mut MediaSockets) -> Vec<(LocalId, Vec<u8>, SocketAddr)> {
    let (mut events, mut batch) = (Events::with_capacity(64), RecvBatch::new(2, 2_000));
    let mut received = Vec::new();
    let until = Instant::now() + Duration::from_millis(300);
    while Instant::now() < until {
        poll.poll(&mut events, Some(Duration::from_millis(20))).unwrap();
        events.iter().for_each(|event| media.mark(event.token().0 - FIRST_MEDIA));
        while let Some((inlet, count)) = media.recv(&mut batch) {
            for index in 0..count {
                let one = batch.get(index).unwrap();
                let local = media.arrived(inlet, one.destination).unwrap();
                received.push((local, one.bytes.to_vec(), one.source.unwrap()));
            }
        }
    }
    received
}

fn is_open(media: &MediaSockets, local: LocalId) -> bool {
    media.carrier.source(local).is_some_and(|source| media.carrier.outlet(source).is_some())
}

#[test]
fn each_port_is_one_shards_and_all_are_somebodys() {
    let mut seen = Vec::new();
    for shard in 0..3 {
        let media = MediaSockets::new(Some(&plan(3, shard, FIRST + 99)));
        let locals = media.addresses.iter().flat_map(|address| address.steps.clone());
        seen.extend(locals.map(|step| media.carrier.port_of(step).unwrap()).map(|l| (l.endpoint, l.port)));
    }
    seen.sort_unstable();
    let share = plan(3, 0, FIRST + 99).ports.share_per_slot() * 2 * 4;
    let expected: Vec<_> =
        [0, 2].into_iter().flat_map(|e| (FIRST..FIRST + share).map(move |p| (e, p))).collect();
    assert_eq!(seen, expected);
    assert!(MediaSockets::new(None).carrier.source(LocalId::media(0, FIRST)).is_none());
}

#[test]
fn ports_open_a_few_at_a_time_carry_media_and_close() {
    let mut poll = Poll::new().unwrap();
    let mut media = MediaSockets::new(Some(&plan(1, 0, FIRST + 79)));
    assert_eq!((media.due(), media.opened()), (Nanos::MAX, (0, 0)));
    media.open_all(1, Nanos(5), |local| local.port == FIRST + 70);
    assert_eq!(media.due(), Nanos(5));
    let left = Cell::new(30);
    let few = || left.replace(left.get() - 1) > 0;
    media.settle(Nanos(4), poll.registry(), few).unwrap();
    assert_eq!(media.opened(), (0, 80));
    media.settle(Nanos(5), poll.registry(), few).unwrap();
    assert_eq!((media.opened(), media.due()), ((30, 80), Nanos(5)));
    assert!(is_open(&media, LocalId::media(2, FIRST + 70)), "a call waits for it");
    assert!(!is_open(&media, LocalId::media(2, FIRST + 71)));
    media.settle(Nanos(5), poll.registry(), || true).unwrap();
    assert_eq!((media.opened(), media.due()), ((80, 80), Nanos::MAX));
    assert!(!is_open(&media, LocalId::media(0, FIRST)), "an address that is not held");

    let client = UdpSocket::bind("127.77.1.9:0").unwrap();
    client.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let at = |port| SocketAddr::from((Ipv4Addr::new(127, 77, 1, 2), port));
    for n in 0..5 {
        client.send_to(&[n], at(FIRST + 7)).unwrap();
    }
    client.send_to(b"x", at(FIRST + 8)).unwrap();
    let received = read(&mut poll, &mut media);
    let me = client.local_addr().unwrap();
    let of = |port| received.iter().filter(move |r| r.0 == LocalId::media(2, port)).collect::<Vec<_>>();
    assert_eq!(of(FIRST + 7).len(), 5, "more than a batch: {received:?}");
    assert!(received.iter().all(|(_, _, source)| *source == me) && of(FIRST + 8).len() == 1);

    let mut tally = Tally::default();
    for (tag, port) in [(1, 7), (2, 7), (3, 8)] {
        media.push(tag, LocalId::media(2, FIRST + port), me, &[tag as u8], &mut tally);
    }
    media.push(4, LocalId::media(0, FIRST), me, b"lost", &mut tally);
    media.push(5, LocalId::media(2, 1), me, b"nowhere", &mut tally);
    media.flush(&mut tally, || false);
    assert_eq!((media.first_unsent(), tally.client_held), (Some(1), 1));
    media.flush(&mut tally, || true);
    assert_eq!((media.first_unsent(), media.is_idle(), tally.media_sent), (None, true, 3));
    assert_eq!((tally.dropped.client_address_lost, tally.dropped.client_no_endpoint), (1, 1));
    for (byte, port) in [(1, 7), (2, 7), (3, 8)] {
        let mut buffer = [0; 9];
        assert_eq!(client.recv_from(&mut buffer).unwrap(), (1, at(FIRST + port)));
        assert_eq!(buffer[0], byte);
    }

    media.close_all(1, Nanos(50));
    assert_eq!(media.due(), Nanos(50));
    media.settle(Nanos(50), poll.registry(), || true).unwrap();
    assert_eq!((media.opened(), media.due()), ((0, 0), Nanos::MAX));
}

#[test]
fn a_port_that_somebody_has_is_tried_again() {
    let poll = Poll::new().unwrap();
    let stranger = UdpSocket::bind((Ipv4Addr::new(127, 77, 1, 1), FIRST + 201)).unwrap();
    let mut plan = plan(1, 0, FIRST + 279);
    plan.ports.first = FIRST + 200;
    let mut media = MediaSockets::new(Some(&plan));
    media.open_all(0, Nanos::ZERO, |_| false);
    media.settle(Nanos::ZERO, poll.registry(), || true).unwrap();
    assert_eq!((media.opened(), media.due()), ((79, 80), OPEN_AGAIN));
    drop(stranger);
    media.settle(OPEN_AGAIN, poll.registry(), || true).unwrap();
    assert_eq!((media.opened(), media.due()), ((80, 80), Nanos::MAX));
}
