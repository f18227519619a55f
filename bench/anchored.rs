//! `sip --mode memory`: what a call in progress costs each member in memory.
//!
//! A media port is a socket of the node that holds the address, so the limit of open files bounds the calls that a
//! cluster here can anchor. So there are four: very many calls on a cluster that leaves media alone, as many anchored
//! ones as there can be, very many anchored ones where the kernel steers the ports of several service addresses, and as
//! many in the call tables alone, without sockets.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use tandem::app::media::{Ice, MediaPorts};
use tandem::app::sip::Sip;
use tandem::app::sip::config::{MediaConfig, ServiceEndpoint, SipConfig};
use tandem::app::table::{CallTable, OutputSink, Place, TableLimits};
use tandem::app::{CallApp, Inbound};
use tandem::cli::local::LocalCluster;
use tandem::types::{CallKey, Endpoint, LocalId, Nanos, Position, Slot};

use crate::common::{Args, table};
use crate::machine::{self, engine, resident};
use crate::parties::{Description, Parties, accept, acknowledge, invite};
use crate::talk::{BLANK, Talk, write};
use crate::{relay, world};

/// Calls that are there before anything is counted: buffers and logs have their working size then.
const FIRST: u32 = 500;
/// Calls set up a second: what is kept for repetitions is that of half a minute, not of all calls.
const RATE: f64 = 1_000.0;
/// Transactions are over by then (RFC 3261: 64 times T1), and what is kept for repetitions is gone.
const SETTLE: Duration = Duration::from_secs(40);
/// As many ports as a limit of 20,000 open files allows.
const MEDIA_PORTS: &str = "20000-38999";
const ANCHORED: u32 = 3_800;
/// Where the kernel steers, a port costs nothing.
const STEERED_PORTS: &str = "5100-64999";

/// One member, or the tables alone.
struct Row {
    system: &'static str,
    member: String,
    calls: u64,
    /// Right after the last call was set up, and when all had settled.
    bytes: [f64; 2],
}

/// Calls that a cluster holds, and each member's memory.
fn held(cluster: &LocalCluster) -> anyhow::Result<Vec<(u64, u64)>> {
    let one = |node: &tandem::cli::local::LocalNode| {
        Ok((engine(&cluster.status(node.id)?, "calls"), resident(node.engine_pid)))
    };
    cluster.nodes.iter().map(one).collect()
}

/// How the media of a cluster's calls is carried.
#[derive(Copy, Clone, PartialEq)]
enum Carried {
    Past,
    ByPort,
    Steered,
}

fn on_cluster(system: &'static str, carried: Carried, calls: u32, quick: bool) -> anyhow::Result<Vec<Row>> {
    let (mut talk, parties) = (Talk::new()?, Parties::new()?);
    let anchored = carried != Carried::Past;
    let cluster = match carried {
        // Few slots: chance gives none of them more calls than it has ports for.
        Carried::ByPort => relay::cluster(
            3,
            &parties,
            &[("MEDIA_PORTS", MEDIA_PORTS), ("SLOTS", "8"), ("MEDIA_TIMEOUT", "0s")],
        )?,
        Carried::Steered => {
            let service: Vec<String> = (1..=ADDRESSES).map(|n| format!("127.0.9.{n}:5060")).collect();
            let (service, slots) = (service.join(","), SLOTS.to_string());
            let mine = [("SERVICE", &*service), ("MEDIA_PORTS", STEERED_PORTS), ("SLOTS", &slots)];
            let usual = [("MEDIA_STEER", "on"), ("MEDIA_TIMEOUT", "0s"), ("CPS", "0"), ("MAX_CALLS", "0")];
            relay::cluster(3, &parties, &[&mine[..], &usual].concat())?
        }
        Carried::Past => {
            let route = format!("default={}", parties.callee()?);
            world::cluster(3, &[("APP", "sip"), ("ROUTE", &route), ("MEDIA_PORTS", "off")])?
        }
    };
    let nodes = machine::system(&cluster);
    let mut fill = |calls: std::ops::Range<u32>| -> anyhow::Result<()> {
        let count = calls.len() as f64;
        let relayed = parties.set_up(nodes.target, (calls, RATE), talk.places())?;
        if anchored {
            // Each side has sent something, as in any call.
            talk.run(&relayed, 10_000.0, Nanos((4.0 * count * 1e5) as u64), &nodes.pids)?;
        }
        Ok(())
    };
    fill(0..FIRST)?;
    std::thread::sleep(Duration::from_millis(500));
    let before = held(&cluster)?;
    fill(FIRST..FIRST + calls)?;
    std::thread::sleep(Duration::from_millis(500));
    let after = held(&cluster)?;
    if !quick {
        std::thread::sleep(SETTLE);
    }
    let settled = held(&cluster)?;
    let rows = before.iter().zip(&after).zip(&settled).enumerate();
    let rows = rows.map(|(index, ((before, after), settled))| {
        let more = settled.0.saturating_sub(before.0).max(1);
        let bytes = [after, settled].map(|held| held.1.saturating_sub(before.1) as f64 / more as f64);
        Row { system, member: format!("n{}", index + 1), calls: more, bytes }
    });
    Ok(rows.collect())
}

/// Service addresses enough for the ports of very many calls.
const ADDRESSES: u16 = 8;
const SLOTS: u16 = 64;
/// After so many calls due timers fire.
const TICK_EVERY: u32 = 100;

/// What the tables say, and to whom.
#[derive(Default)]
struct Said(VecDeque<(SocketAddr, Vec<u8>)>);

impl OutputSink for Said {
    fn output(&mut self, _: bool, _: LocalId, to: Endpoint, bytes: &[u8]) {
        self.0.push_back((to.into(), bytes.to_vec()));
    }
}

/// The call tables of one member, without sockets and logs.
struct Tables {
    sip: Sip,
    tables: Vec<CallTable<Sip>>,
    now: Nanos,
    position: u64,
    said: Said,
}

impl Tables {
    fn new(route: &str) -> Tables {
        let at = |address: u16| SocketAddr::from(([10, 0, 9, address as u8], 5_060));
        let endpoints = (0..ADDRESSES).map(|address| ServiceEndpoint::new(at(address), address)).collect();
        let mut config = SipConfig::new(42, SLOTS, endpoints);
        let ports = MediaPorts { first: 1_024, last: 65_535, slots: SLOTS, addresses: ADDRESSES };
        config.media =
            Some(MediaConfig { ports, ice: Ice::Remove, latch: Nanos::from_secs(10), timeout: None });
        let limits = TableLimits { max_calls: u32::MAX, idle: Nanos::MAX };
        let tables = (0..SLOTS).map(|slot| CallTable::new(Slot(slot), limits)).collect();
        let now = Nanos::from_secs(1_700_000_000);
        let mut all = Tables { sip: Sip::new(config), tables, now, position: 0, said: Said::default() };
        for slot in 0..SLOTS {
            let (source, payload) = (Endpoint { ip: [0; 16], port: 0 }, [b"R", route.as_bytes()].concat());
            let packet = Inbound { source, local: LocalId::NOTICE, payload: &payload };
            all.entry(CallKey::keeper(Slot(slot)), &packet);
        }
        all
    }

    fn entry(&mut self, key: CallKey, packet: &Inbound<'_>) {
        self.position += 1;
        let place = Place { position: Position(self.position), time: self.now };
        self.tables[usize::from(key.slot(SLOTS).0)].on_packet(&self.sip, place, key, packet, &mut self.said);
    }

    /// A datagram comes; what is said to `to` then and begins so.
    fn ask(
        &mut self,
        from: SocketAddr,
        local: LocalId,
        payload: &[u8],
        to: SocketAddr,
        start: &str,
    ) -> Option<String> {
        let packet = Inbound { source: from.into(), local, payload };
        let key = self.sip.classify(&packet).ok()?;
        self.entry(key, &packet);
        let said: Vec<_> = self
            .said
            .0
            .drain(..)
            .filter(|(whom, bytes)| *whom == to && bytes.starts_with(start.as_bytes()))
            .collect();
        let (_, bytes) = said.into_iter().next()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A call that is answered, and a packet of each side.
    fn set_up(&mut self, number: u32, [caller, callee]: [SocketAddr; 2]) -> Option<()> {
        self.now = self.now + Nanos((1e9 / RATE) as u64);
        if number.is_multiple_of(TICK_EVERY) {
            self.tick(self.now);
        }
        let (local, proxy) = (LocalId::endpoint(0), SocketAddr::from(([10, 0, 9, 0], 5_060)));
        let media = |side: SocketAddr| SocketAddr::new(side.ip(), 6_000);
        let asked = invite(number, caller, proxy, &Description::at(media(caller)));
        let got = self.ask(caller, local, asked.as_bytes(), callee, "INVITE ")?;
        let answer = accept(&got, callee, Some(&Description::at(media(callee))));
        let accepted = self.ask(callee, local, answer.as_bytes(), caller, "SIP/2.0 200 ")?;
        self.ask(caller, local, acknowledge(&accepted, caller).as_bytes(), callee, "ACK ")?;
        let mut packet = BLANK;
        for (side, (from, text)) in [(caller, &accepted), (callee, &got)].into_iter().enumerate() {
            let port = Description::place(text)?;
            let SocketAddr::V4(v4) = port else { return None };
            write(&mut packet, number, side, 0, Nanos::ZERO);
            let to = [callee, caller].map(media)[side];
            self.ask(
                media(from),
                LocalId::media(u16::from(v4.ip().octets()[3]), port.port()),
                &packet,
                to,
                "",
            )?;
        }
        Some(())
    }

    fn settle(&mut self) {
        self.now = self.now + Nanos::from_secs(SETTLE.as_secs());
        self.tick(self.now);
    }

    /// Fires what is due by then, timer by timer.
    fn tick(&mut self, end: Nanos) {
        for table in &mut self.tables {
            while table.next_deadline().is_some_and(|due| due <= end) {
                self.position += 1;
                let place = Place { position: Position(self.position), time: end };
                table.on_tick(&self.sip, place, &mut self.said);
            }
        }
        self.said.0.clear();
    }

    fn calls(&self) -> u64 {
        self.tables.iter().map(|table| table.clients_calls() as u64).sum()
    }
}

fn alone(calls: u32) -> anyhow::Result<Vec<Row>> {
    let parties = [1, 2].map(|host| SocketAddr::from(([10, 0, 0, host], 5_060)));
    let mut tables = Tables::new(&format!("default {}", parties[1]));
    let fill = |tables: &mut Tables, calls: std::ops::Range<u32>| {
        calls
            .map(|call| tables.set_up(call, parties))
            .collect::<Option<Vec<()>>>()
            .context("a call was not answered")
    };
    fill(&mut tables, 0..FIRST)?;
    let me = std::process::id();
    let before = (tables.calls(), resident(me));
    fill(&mut tables, FIRST..FIRST + calls)?;
    let after = resident(me);
    tables.settle();
    let (more, settled) = (tables.calls() - before.0, resident(me));
    let bytes = [after, settled].map(|now| now.saturating_sub(before.1) as f64 / more as f64);
    Ok(vec![Row { system: "anchored, tables alone", member: "-".to_owned(), calls: more, bytes }])
}

pub(crate) fn measure(args: &Args) -> anyhow::Result<Vec<Value>> {
    let usual = if args.quick { 10_000 } else { 100_000 };
    let calls: u32 = args.get("--calls").map_or(Ok(usual), str::parse).context("--calls")?;
    let mut all = Vec::new();
    for part in 0..4 {
        let rows = match part {
            // First, as long as this process is small.
            0 => alone(calls)?,
            1 => on_cluster("anchored", Carried::ByPort, ANCHORED.min(calls), args.quick)?,
            2 if std::fs::metadata("/proc/self")?.uid() != 0 => {
                eprintln!("memory: SKIPPED anchored, steered: it needs root");
                continue;
            }
            2 => on_cluster("anchored, steered", Carried::Steered, calls, args.quick)?,
            _ => on_cluster("signalling only", Carried::Past, calls, args.quick)?,
        };
        for Row { system, member, bytes, .. } in &rows {
            eprintln!("memory: {system}, {member}: {:.0} then {:.0} bytes a call", bytes[0], bytes[1]);
        }
        all.extend(rows);
    }
    let headings = ["what", "member", "calls", "bytes_at_once", "bytes_settled"];
    let mut shown = vec![headings.map(String::from).to_vec()];
    let mut rows = Vec::new();
    for Row { system, member, calls, bytes: [at_once, settled] } in &all {
        shown.push(vec![
            (*system).to_owned(),
            member.clone(),
            calls.to_string(),
            format!("{at_once:.0}"),
            format!("{settled:.0}"),
        ]);
        rows.push(json!({ "mode": "memory", "system": system, "member": member, "calls": calls,
            "resident_bytes_per_call": { "at_once": at_once, "settled": settled } }));
    }
    table(&shown);
    Ok(rows)
}
