//! The state of a cluster, put together from what its nodes answer: each knows the agreed map and its own shards.
//!
//! Whatever an answer leaves out is left out of the picture: nodes of another version may know less, or more.

use super::ASKED_AT;
use crate::config::Settings;
use crate::proto::map::{ClusterMap, NodeState};
use crate::types::{Boot, NodeId, Slot};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What a node is to those who were asked.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It takes part.
    Live,
    /// Some node has not heard it for too long.
    Suspect,
    /// It hands over what it has.
    Draining,
    /// The map counts it no more, or nobody hears it.
    Dead,
    /// Nobody knows.
    Unknown,
}

/// One node.
#[derive(Clone, Debug, Serialize)]
pub struct NodeView {
    /// Its id.
    pub id: u16,
    /// The host it runs on.
    pub host: String,
    /// What it is.
    pub state: State,
    /// `voter`, `witness`, `leader`, `owner`.
    pub roles: Vec<&'static str>,
    /// Its newest life that is known of.
    pub boot: Option<u64>,
    /// Its control address.
    pub address: String,
    /// Whether it answered.
    pub answered: bool,
    /// Live calls in its memory.
    pub calls: Option<u64>,
    /// Slots of which it is master.
    pub masters: u64,
}

/// One service address.
#[derive(Clone, Debug, Serialize)]
pub struct AddressView {
    /// The endpoints on it.
    pub endpoints: Vec<String>,
    /// Who holds it; nobody before the first map.
    pub owner: Option<u16>,
    /// Grows with each change of owner.
    pub term: u64,
    /// How much of the owner's lease is left, in us, as it said itself.
    pub lease_left_us: Option<u64>,
}

/// Slots by state and redundancy.
#[derive(Copy, Clone, Debug, Default, Serialize)]
pub struct SlotsView {
    /// How many there are.
    pub all: u64,
    /// Those that some node that answered serves.
    pub served: u64,
    /// Those that a new owner is recovering.
    pub recovering: u64,
    /// Of those, the ones that stop because no complete commit set is left (TANDEM_LOSSY=stop).
    pub stopped: u64,
    /// Members each should have.
    pub replicas: u64,
    /// Those with fewer members that count: by the map, or because one is silent or was given up by the owner.
    pub short: u64,
    /// Those of which the map itself has fewer: the others wait until TANDEM_EVICT_AFTER is over, or for the member.
    pub short_by_map: u64,
    /// Calls in these, about.
    pub calls_short: u64,
    /// Slots, or groups of them, that nodes are catching up on, and how many of these are done.
    pub learning: (u64, u64),
    /// Bytes taken in for that.
    pub resync_bytes: u64,
    /// When all is caught up, in seconds, by the present rate.
    pub ends_in_s: Option<f64>,
}

/// One change of owner.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FailoverView {
    /// The number of the service address.
    pub address: u64,
    /// Who held it.
    pub from: Option<u64>,
    /// Who got it.
    pub to: Option<u64>,
    /// The term since.
    pub term: u64,
    /// From the last sign of the old owner to the new map, in us.
    pub agreed_us: Option<u64>,
    /// The same until the new owner served all of it; known as long as its engine runs.
    pub took_us: Option<u64>,
    /// When, wall time in ms.
    pub wall_ms: Option<u64>,
}

/// Calls of SIP, over the slots of the nodes that answered.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SipView {
    /// Calls in progress.
    pub calls: u64,
    /// Media ports lent to calls.
    pub ports_used: u64,
    /// Media ports that are open, and that should be, on the nodes that hold service addresses.
    pub ports_open: (u64, u64),
    /// Targets of the routes.
    pub targets: u64,
    /// Of those, the ones that are down.
    pub targets_down: u64,
    /// Call records written since the nodes' engines started.
    pub records: u64,
    /// New calls answered 503 since then.
    pub turned_away: u64,
}

/// The whole of it.
#[derive(Clone, Debug, Serialize)]
pub struct Picture {
    /// The cluster's name.
    pub cluster: String,
    /// The newest agreed map; none yet, or nodes that know of none.
    pub map_version: Option<u32>,
    /// Whether a majority of the voters hear each other.
    pub quorum: Option<bool>,
    /// Who leads the voters.
    pub leader: Option<u16>,
    /// The nodes by id.
    pub nodes: Vec<NodeView>,
    /// The service addresses.
    pub addresses: Vec<AddressView>,
    /// The slots.
    pub slots: SlotsView,
    /// Calls, if the application is SIP.
    pub sip: Option<SipView>,
    /// The last changes of owner, newest first.
    pub failovers: Vec<FailoverView>,
    /// Failovers without a complete commit set: updates may have been lost.
    pub lossy_failovers: u64,
}

/// How many failovers are told.
const FAILOVERS: usize = 5;

impl Picture {
    /// Puts the answers together. `earlier`: those of some seconds before, for the rate of what is under way.
    pub fn new(settings: &Settings, answers: &[Value], earlier: Option<(&[Value], f64)>) -> Picture {
        let map = newest_map(answers);
        let control = |name: &'static str| answers.iter().map(move |answer| &answer["control"][name]);
        let slots = slots(settings, map.as_ref(), answers, earlier);
        let leader = control("leader").find_map(Value::as_u64).map(|id| id as u16);
        let quorum = control("quorum").filter_map(Value::as_bool).reduce(|a, b| a || b);
        Picture {
            cluster: settings.cluster.clone(),
            map_version: map.as_ref().map(|map| map.version),
            quorum,
            leader,
            nodes: nodes(settings, map.as_ref(), leader, answers),
            addresses: addresses(settings, map.as_ref(), answers),
            slots,
            sip: sip(answers),
            failovers: failovers(answers),
            lossy_failovers: lossy(map.as_ref(), answers),
        }
    }

    /// Who holds the first service address.
    pub fn owner(&self) -> Option<NodeId> {
        self.addresses.first().and_then(|address| address.owner).map(NodeId)
    }

    /// Every service address is held and every slot has all its members. Without an agreed map: there is nobody
    /// to wait for.
    pub fn is_whole(&self) -> bool {
        self.map_version.is_none_or(|version| version >= 1)
            && self.addresses.iter().all(|address| address.owner.is_some())
            && self.slots.short + self.slots.recovering == 0
    }
}

fn newest_map(answers: &[Value]) -> Option<ClusterMap> {
    let maps = answers.iter().map(|answer| answer["control"]["map"].clone());
    let usable = |map: &ClusterMap| !map.addresses.is_empty() && !map.groups.is_empty() && map.shards > 0;
    maps.filter_map(|map| serde_json::from_value::<ClusterMap>(map).ok())
        .filter(usable)
        .max_by_key(|map| map.version)
}

/// The engine's figures of every shard of an answer.
fn shards(answer: &Value) -> impl Iterator<Item = &Value> {
    answer["shards"].as_array().into_iter().flatten().map(|shard| &shard["engine"])
}

/// One figure summed over the shards of these answers; `None` if no shard has it.
pub(super) fn sum<'a>(answers: impl IntoIterator<Item = &'a Value>, figure: &str) -> Option<u64> {
    let figures = answers.into_iter().flat_map(shards).filter_map(|engine| engine[figure].as_u64());
    figures.reduce(|a, b| a.saturating_add(b))
}

fn id_of(answer: &Value) -> Option<u16> {
    answer["node"].as_u64().and_then(|id| u16::try_from(id).ok())
}

/// What the nodes that answered say of a peer.
fn peers(answers: &[Value], id: u16) -> impl Iterator<Item = &Value> {
    let peers = answers.iter().filter_map(|answer| answer["control"]["peers"].as_array()).flatten();
    peers.filter(move |peer| peer["node"].as_u64() == Some(id.into()))
}

fn nodes(
    settings: &Settings,
    map: Option<&ClusterMap>,
    leader: Option<u16>,
    answers: &[Value],
) -> Vec<NodeView> {
    let answer_of = |id: u16| answers.iter().find(move |answer| id_of(answer) == Some(id));
    let voters = answers.iter().find_map(|answer| answer["control"]["voters"].as_array());
    let is_voter = |id: NodeId| match voters {
        Some(ids) => ids.iter().any(|voter| voter.as_u64() == Some(id.0.into())),
        None => settings.voters.contains(&id),
    };
    let masters = masters(answers);
    let known: Vec<(NodeId, String, String)> = if is_of(settings, answers) {
        settings.nodes.iter().map(|n| (n.id, n.host.clone(), n.address.to_string())).collect()
    } else {
        let in_map = map.into_iter().flat_map(|map| &map.nodes).map(|node| node.id);
        let ids: BTreeSet<NodeId> = in_map.chain(answers.iter().filter_map(id_of).map(NodeId)).collect();
        let at = |id: NodeId| answer_of(id.0).and_then(|answer| answer[ASKED_AT].as_str()).unwrap_or("-");
        // Of the hosts a map tells only which nodes share one.
        let host = |id: NodeId| map.and_then(|map| map.node(id)).map(|node| format!("#{}", node.host.0));
        ids.into_iter().map(|id| (id, host(id).unwrap_or("-".into()), at(id).to_owned())).collect()
    };
    let view = |(id, host, address): (NodeId, String, String)| {
        let (answer, in_map) = (answer_of(id.0), map.and_then(|map| map.node(id)));
        let said = answer.and_then(|answer| answer["boot"].as_u64());
        let agreed = in_map.map(|node| node.boot.0).filter(|boot| *boot != 0);
        let witness = in_map.map_or_else(|| settings.witness.contains(&id), |node| node.witness);
        let owns = map.is_some_and(|map| map.addresses.iter().any(|a| a.owner == id));
        let roles = [
            (is_voter(id), "voter"),
            (witness, "witness"),
            (leader == Some(id.0), "leader"),
            (owns, "owner"),
        ];
        NodeView {
            id: id.0,
            host,
            state: state(in_map.map(|node| (node.state, node.boot)), answers, id.0, answer.is_some()),
            roles: roles.into_iter().filter(|(has, _)| *has).map(|(_, role)| role).collect(),
            boot: said.or(agreed),
            address,
            answered: answer.is_some(),
            calls: answer.and_then(|answer| sum([answer], "calls")),
            masters: masters.get(&id.0).copied().unwrap_or(0),
        }
    };
    known.into_iter().map(view).collect()
}

/// Whether the settings describe the cluster that answered: asked at addresses of their own, nodes may be none of
/// TANDEM_NODES.
fn is_of(settings: &Settings, answers: &[Value]) -> bool {
    answers.iter().all(|answer| match (answer[ASKED_AT].as_str(), id_of(answer)) {
        (Some(at), Some(id)) => settings.control_address(NodeId(id)).is_some_and(|a| a.to_string() == at),
        _ => true,
    })
}

fn state(in_map: Option<(NodeState, Boot)>, answers: &[Value], id: u16, answered: bool) -> State {
    let suspected = peers(answers, id).any(|peer| peer["suspected"] == true);
    let down = peers(answers, id).any(|peer| peer["up"] == false);
    match in_map {
        Some((NodeState::Draining, _)) => State::Draining,
        Some((NodeState::Gone, Boot(0))) if !answered => State::Unknown,
        Some((NodeState::Gone, _)) => State::Dead,
        Some((NodeState::Live, _)) if suspected || down => State::Suspect,
        Some((NodeState::Live, _)) => State::Live,
        None if answered && !suspected => State::Live,
        None if suspected || down => State::Suspect,
        None => State::Unknown,
    }
}

/// The slots of which each node is master, as the owners say.
fn masters(answers: &[Value]) -> BTreeMap<u16, u64> {
    let mut found = BTreeMap::new();
    let rows = answers.iter().flat_map(shards).filter_map(|engine| engine["masters"].as_array()).flatten();
    for row in rows {
        if let (Some(node), Some(slots)) = (row[0].as_u64(), row[1].as_u64()) {
            *found.entry(node as u16).or_default() += slots;
        }
    }
    found
}

fn addresses(settings: &Settings, map: Option<&ClusterMap>, answers: &[Value]) -> Vec<AddressView> {
    let Some(map) = map else {
        // Nodes that agree on nothing serve what the settings say.
        if !is_of(settings, answers) {
            return Vec::new();
        }
        let endpoints = settings.service.iter().map(ToString::to_string).collect();
        let owner = Some(settings.owner.0);
        return vec![AddressView { endpoints, owner, term: 0, lease_left_us: None }];
    };
    let lease = |owner: NodeId| {
        let mut answers = answers.iter().filter(|answer| id_of(answer) == Some(owner.0));
        answers.find_map(|answer| answer["control"]["lease_left_us"].as_u64())
    };
    let view = |(number, address): (usize, &crate::proto::map::MapAddress)| {
        let on_it = settings
            .service
            .iter()
            .zip(&map.endpoints)
            .filter(|(_, of)| usize::from(**of) == number)
            .map(|(endpoint, _)| endpoint.to_string());
        let held = address.owner != NodeId(0);
        AddressView {
            endpoints: on_it.collect(),
            owner: held.then_some(address.owner.0),
            term: address.term.0.into(),
            lease_left_us: lease(address.owner),
        }
    };
    let unnamed = |(number, mut address): (usize, AddressView)| {
        if !is_of(settings, answers) {
            address.endpoints = vec![format!("address {number}")];
        }
        address
    };
    map.addresses.iter().enumerate().map(view).enumerate().map(unnamed).collect()
}

fn slots(
    settings: &Settings,
    map: Option<&ClusterMap>,
    answers: &[Value],
    earlier: Option<(&[Value], f64)>,
) -> SlotsView {
    let recovering = sum(answers, "slots_recovering").unwrap_or(0);
    let served = sum(answers, "slots_owned").unwrap_or(0).saturating_sub(recovering);
    let short_by_map = map.map_or(0, |map| {
        let short = |slot: &u16| map.group(Slot(*slot)).members.len() < usize::from(map.replicas);
        (0..map.slots).filter(short).count() as u64
    });
    let short = sum(answers, "slots_short").unwrap_or(0).max(short_by_map);
    let stopped = sum(answers, "slots_stopped").unwrap_or(0);
    let (all, replicas) = match map {
        Some(map) => (u64::from(map.slots), u64::from(map.replicas)),
        None => (u64::from(settings.slots), settings.r.min(settings.nodes.count()) as u64),
    };
    // Each call is counted by every member it has.
    let about = |calls: u64| (calls / replicas.max(1)).saturating_mul(short) / all.max(1);
    let calls_short = about(sum(answers, "calls").unwrap_or(0));
    let learning = learning(answers);
    let ends_in_s = earlier.and_then(|(earlier, seconds)| {
        let rate = learning.1.saturating_sub(self::learning(earlier).1) as f64 / seconds;
        (rate > 0.0 && learning.0 > learning.1).then(|| (learning.0 - learning.1) as f64 / rate)
    });
    let resync_bytes = sum(answers, "resync_bytes").unwrap_or(0);
    SlotsView {
        all,
        served,
        recovering,
        stopped,
        replicas,
        short,
        short_by_map,
        calls_short,
        learning,
        resync_bytes,
        ends_in_s,
    }
}

/// What the nodes say of SIP; nothing if they run another application.
fn sip(answers: &[Value]) -> Option<SipView> {
    let shards = || answers.iter().filter_map(|answer| answer["shards"].as_array()).flatten();
    shards().find(|shard| shard["app"]["targets"].is_u64())?;
    let sum = |pointer: &str| shards().filter_map(|shard| shard.pointer(pointer)?.as_u64()).sum();
    let most =
        |pointer: &str| shards().filter_map(|shard| shard.pointer(pointer)?.as_u64()).max().unwrap_or(0);
    Some(SipView {
        calls: sum("/app/calls"),
        ports_used: sum("/app/media_ports"),
        ports_open: (sum("/media_ports/0"), sum("/media_ports/1")),
        targets: most("/app/targets"),
        targets_down: most("/app/targets_down"),
        records: sum("/io/records"),
        turned_away: sum("/io/client_turned_away"),
    })
}

/// What all nodes that answered are catching up on, and how much of it is done.
fn learning(answers: &[Value]) -> (u64, u64) {
    let pairs = answers.iter().flat_map(shards).map(|engine| &engine["learning"]);
    let pair = |pair: &Value| Some((pair[0].as_u64()?, pair[1].as_u64()?));
    pairs.filter_map(pair).fold((0, 0), |(n, done), (m, more)| (n + m, done + more))
}

/// Without duplicates: every node tells of those it knows.
fn failovers(answers: &[Value]) -> Vec<FailoverView> {
    let rows = answers.iter().filter_map(|answer| answer["control"]["failovers"].as_array()).flatten();
    let view = |row: &Value| {
        Some(FailoverView {
            address: row["address"].as_u64()?,
            from: row["from"].as_u64(),
            to: row["to"].as_u64(),
            term: row["term"].as_u64()?,
            agreed_us: row["agreed_us"].as_u64(),
            took_us: row["took_us"].as_u64(),
            wall_ms: row["wall_ms"].as_u64(),
        })
    };
    let mut found: Vec<FailoverView> = rows.filter_map(view).collect();
    // Of the same one that first which tells most: how long it took is known to the new owner alone, and who was away
    // meanwhile has heard of it when all was over.
    let told =
        |f: &FailoverView| (u8::from(f.took_us.is_some()) + u8::from(f.wall_ms.is_some()), f.agreed_us);
    found.sort_by_key(|f| (std::cmp::Reverse(f.term), f.address, std::cmp::Reverse(told(f))));
    found.dedup_by_key(|f| (f.term, f.address));
    found.sort_by_key(|f| std::cmp::Reverse((f.wall_ms, f.term)));
    found.truncate(FAILOVERS);
    found
}

/// The map counts those in which a group lost all its members; slots that were recovered from too few are at least one.
fn lossy(map: Option<&ClusterMap>, answers: &[Value]) -> u64 {
    let by_slots = sum(answers, "lossy_recoveries").unwrap_or(0).min(1);
    map.map_or(0, |map| map.lossy.into()).max(by_slots)
}
