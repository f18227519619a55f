//! The table of settings: the one list from which the struct, the flags, the environment variables, their
//! checks, `tandem config` and the agreement between nodes are made.

use super::media::{Ice, MediaSteer};
use super::routes::{Route, routes};
use super::values::{
    App, Auto, ByteSize, Fanout, KeyRule, Lossy, Masters, Nodes, Pin, PortRange, Restart, Show, Vip, Why,
    endpoints, ids, number, optional_path, path, size, time,
};
use crate::types::{Nanos, NodeId};
use crate::wire::seal::ClusterKey;
use crate::wire::sip::MAX_HEADERS;
use std::net::{SocketAddr, SocketAddrV4};
use std::path::PathBuf;

/// Who has to agree on a setting.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Scope {
    /// All nodes: one that differs does not join.
    Cluster,
    /// Each node has its own.
    Node,
    /// Each node has its own, and it is never printed.
    Secret,
}

/// One row of the table.
pub struct Setting {
    /// The name without `TANDEM_`; the flag is the same in small letters.
    pub name: &'static str,
    /// What it is when nobody says.
    pub default: &'static str,
    /// Who has to agree.
    pub scope: Scope,
    /// What is accepted.
    pub accepts: &'static str,
    /// What it does.
    pub meaning: &'static str,
    /// Reads a value into its field.
    pub(super) set: fn(&mut Settings, &str) -> Result<(), Why>,
    /// The field's canonical form.
    pub(super) show: fn(&Settings) -> String,
}

impl Setting {
    /// The environment variable.
    pub fn variable(&self) -> String {
        format!("TANDEM_{}", self.name)
    }

    /// The flag, without its dashes.
    pub fn flag(&self) -> String {
        self.name.to_ascii_lowercase().replace('_', "-")
    }
}

macro_rules! settings {
    ($($name:literal $field:ident: $type:ty = $default:literal, $scope:ident, $read:expr;
        $accepts:literal; $meaning:literal)*) => {
        /// The settings of one node, checked. Times and sizes are in their types, counts are plain.
        #[derive(Clone, Debug)]
        pub struct Settings {
            $(#[doc = concat!("`TANDEM_", $name, "`: ", $meaning, ". Accepts ", $accepts, ".")] pub $field: $type,)*
        }

        impl Settings {
            /// Every row at its default, not yet checked against each other.
            pub(super) fn defaults() -> Settings {
                Settings { $($field: read::<$type>($read, $default).expect(concat!("default of ", $name)),)* }
            }
        }

        /// Every setting, in the order in which they are shown.
        pub static TABLE: &[Setting] = &[$(Setting {
            name: $name,
            default: $default,
            scope: Scope::$scope,
            accepts: $accepts,
            meaning: $meaning,
            set: |settings, text| {
                settings.$field = read::<$type>($read, text)?;
                Ok(())
            },
            show: |settings| settings.$field.show(),
        },)*];
    };
}

/// Pins down the type that a row's closure returns.
fn read<T>(read: fn(&str) -> Result<T, Why>, text: &str) -> Result<T, Why> {
    read(text)
}

settings! {
    "NODE" node: NodeId = "1", Node, |t| number(t, 1..=62).map(NodeId);
        "1 to 62, one of TANDEM_NODES"; "the id of this node"

    "NODES" nodes: Nodes = "1@localhost=127.0.0.1:7100", Cluster, str::parse;
        "ID@HOST=IP:PORT for each node, comma between them; ids 1 to 62; shard n uses PORT+1+n";
        "the nodes of the cluster; nodes with the same HOST die together"

    "SERVICE" service: Vec<SocketAddr> = "127.0.0.1:5060", Cluster, endpoints;
        "IP:PORT, comma between them"; "the service endpoints that clients talk to"

    "OWNER" owner: NodeId = "0", Cluster, |t| number(t, 0..=62).map(NodeId);
        "one of TANDEM_NODES, or 0 for the lowest"; "the node that holds the service addresses at first"

    "R" r: usize = "3", Cluster, |t| number(t, 1..=7);
        "1 to 7"; "how many members hold each slot; never more than there are nodes"

    "COMMIT" commit: usize = "0", Cluster, |t| number(t, 0..=7);
        "1 to TANDEM_R, or 0 for a majority of it"; "how many members must hold an entry before its replies go out"

    "SLOTS" slots: u16 = "auto", Cluster, slots;
        "1 to 32768, or auto: 1024 for echo; for sip as many as TANDEM_MEDIA_PORTS gives 48 pairs of ports each, a power of two for each service address, or 1024 without media";
        "how many replicated logs the calls are spread over"

    "SHARDS" shards: u16 = "auto", Cluster, shards;
        "1 to 256, or auto for one a core"; "how many packet loops each node runs, the same on every node"

    "APP" app: App = "echo", Cluster, str::parse;
        "echo or sip"; "the call application: echo answers each datagram with its own bytes, sip is a proxy for calls and their media"

    "ROUTES" routes: Option<PathBuf> = "", Node, optional_path;
        "the absolute path of a file of routes"; "where calls go (TANDEM_APP=sip); read again on SIGHUP and by `tandem reload`"

    "ROUTE" route: Vec<Route> = "", Node, routes;
        "MATCH=IP:PORT, blanks between them; MATCH is default, user:PREFIX or domain:NAME; the flag may be given several times";
        "routes besides those of TANDEM_ROUTES"

    "MEDIA_PORTS" media_ports: PortRange = "20000-23999", Cluster, str::parse;
        "FIRST-LAST, at least 4 pairs of ports for each slot of an address; or off: media goes its own way";
        "the ports of each service address at which media arrives (TANDEM_APP=sip): a socket each, a call with audio takes four"

    "MEDIA_STEER" media_steer: MediaSteer = "off", Node, str::parse;
        "off or on"; "whether the kernel steers all media ports to one socket a shard, so that nothing has to be opened when a service address comes: needs Linux 5.9, CAP_BPF, CAP_NET_ADMIN and CAP_NET_RAW"

    "ICE" ice: Ice = "remove", Cluster, str::parse;
        "remove, pass or lite"; "what becomes of the ICE lines of session descriptions: remove, so that media comes here; lite, so that it comes here from whoever does ICE by ICE; or pass, so that the parties may find a way without us"

    "MEDIA_TIMEOUT" media_timeout: Nanos = "60s", Cluster, |t| time(t, Nanos::ZERO..=Nanos::from_secs(86_400));
        "0s to 24h; 0s: never"; "after how long without media from either party a call ends"

    "MAX_CALL" max_call: Nanos = "4h", Cluster, |t| time(t, Nanos::ZERO..=Nanos::from_secs(604_800));
        "0s to 168h; 0s: any time"; "how long a call may last"

    "SESSION_EXPIRES" session_expires: Nanos = "0s", Cluster, |t| time(t, Nanos::ZERO..=Nanos::from_secs(86_400));
        "90s to 24h, or 0s: only where a party asks for one"; "the session timer (RFC 4028) asked for in calls that have none"

    "RING_TIMEOUT" ring_timeout: Nanos = "200s", Cluster, |t| time(t, Nanos::from_secs(1)..=Nanos::from_secs(3_600));
        "1s to 1h"; "how long a call may ring (timer C of RFC 3261, which wants more than 3 minutes)"

    "SIP_NEXT_AFTER" sip_next_after: Nanos = "4s", Cluster, |t| time(t, Nanos::from_millis(500)..=Nanos::from_secs(32));
        "500ms to 32s"; "how long a target may say nothing at all, not even 100, before the next one is asked, if there is one; the last has the 32 s of RFC 3261"

    "CPS" cps: u32 = "0", Node, |t| number(t, 0..=1_000_000);
        "0 to 1000000; 0: any number"; "how many new calls a second this node takes; further ones are answered 503"

    "MAX_CALLS" max_calls: u32 = "0", Node, |t| number(t, 0..=100_000_000);
        "0 to 100000000; 0: any number"; "how many calls at a time this node takes, as an ingress that is a member knows them; further ones are answered 503"

    "SOURCE_CPS" source_cps: u32 = "0", Node, |t| number(t, 0..=1_000_000);
        "0 to 1000000; 0: any number"; "how many new calls a second this node takes from one IP address"

    "SOURCE_CALLS" source_calls: u32 = "0", Node, |t| number(t, 0..=1_000_000);
        "0 to 1000000; 0: any number"; "how many calls at a time this node takes from one IP address, as far as it has admitted them itself"

    "SIP_MAX_BYTES" sip_max_bytes: ByteSize = "16K", Cluster, |t| size(t, 1_300..=60 << 10);
        "1300 to 60K"; "the longest SIP message that is taken"

    "SIP_MAX_HEADERS" sip_max_headers: u16 = "200", Cluster, |t| number(t, 16..=MAX_HEADERS as u64);
        "16 to 256"; "the most header fields of a SIP message that is taken"

    "CDR" cdr: Option<PathBuf> = "", Node, optional_path;
        "the absolute path of a file"; "where a line of JSON is appended for each call that is over (TANDEM_APP=sip); opened anew on SIGHUP"

    "KEY" key: KeyRule = "auto", Cluster, str::parse;
        "auto, sip, rtp, source or bytes:OFF:LEN (LEN at least 1, OFF+LEN at most 65507)"; "what names a datagram's call"

    "CLUSTER" cluster: String = "tandem", Cluster, word;
        "1 to 64 letters, digits, - . _"; "the name of the cluster"

    "CLUSTER_KEY" cluster_key: Option<ClusterKey> = "", Secret, key;
        "32 or more hexadecimal digits, such as `openssl rand -hex 32` prints";
        "the secret all nodes share; a file keeps it better, flags can be seen by every user of the machine"

    "CLUSTER_KEY_FILE" cluster_key_file: Option<PathBuf> = "", Node, optional_path;
        "the absolute path of a file with 16 to 4096 bytes or 32 or more hexadecimal digits";
        "where the secret all nodes share is read from"

    "BEAT" beat: Nanos = "1ms", Cluster, |t| time(t, Nanos::from_micros(100)..=Nanos::from_secs(10));
        "100us to 10s"; "how often nodes show each other that they live"

    "SUSPECT_AFTER" suspect_after: Nanos = "3ms", Node, |t| time(t, Nanos::from_micros(200)..=Nanos::from_secs(60));
        "200us to 60s, at least twice TANDEM_BEAT";
        "after how much silence a node is suspected and masterships move; the floor of an adaptive time"

    "VOTERS" voters: Vec<NodeId> = "", Cluster, ids;
        "1 to 5 ids of TANDEM_NODES but not 2, comma between them; nothing: of one or two nodes the lowest, of more the lowest three on as many hosts as there are";
        "the nodes that agree on who lives and who owns what; they never change"

    "WITNESS" witness: Vec<NodeId> = "", Cluster, ids;
        "ids of TANDEM_NODES, comma between them"; "nodes that only vote: the third machine of a site with two hosts"

    "LEASE" lease: Nanos = "10ms", Cluster, |t| time(t, Nanos::from_millis(2)..=Nanos::from_secs(60));
        "2ms to 60s, at least five times TANDEM_BEAT"; "how long an owner may release replies after a majority of the voters heard it"

    "DEAD_AFTER" dead_after: Nanos = "15ms", Cluster, |t| time(t, Nanos::from_millis(3)..=Nanos::from_secs(600));
        "3ms to 600s, more than TANDEM_LEASE"; "after how much silence the voters take an owner's service addresses away, or drop a member nobody can commit without"

    "EVICT_AFTER" evict_after: Nanos = "10s", Cluster, |t| time(t, Nanos::from_millis(50)..=Nanos::from_secs(86_400));
        "50ms to 24h, more than TANDEM_DEAD_AFTER"; "after how much silence a node's slots get another member"

    "LOSSY" lossy: Lossy = "go", Cluster, str::parse;
        "go or stop"; "what happens when every holder of a commit set has died at once: go on with the best log left, counted and logged, or stop those slots"

    "RESYNC_MBPS" resync_mbps: u32 = "200", Node, |t| number(t, 0..=100_000);
        "0 to 100000; 0: as fast as it goes"; "how many MB a second a node takes in while it catches up"

    "HEDGE_AFTER" hedge_after: Nanos = "1ms", Node, |t| time(t, Nanos::from_micros(50)..=Nanos::from_secs(60));
        "50us to 60s";
        "how late a master's replies may be before another member is asked too; the floor of an adaptive time"

    "MASTERS" masters: Masters = "spread", Node, str::parse;
        "spread or owner"; "who answers: every member an equal share of the slots, or the node that owns them, which costs least and leaves every other death without a trace"

    "LAZY_AFTER" lazy_after: Nanos = "2ms", Node, |t| time(t, Nanos::ZERO..=Nanos::from_millis(100));
        "0s to 100ms"; "how long packets gather for members without which they can be committed and answered"

    "GATHER" gather: Nanos = "0s", Node, |t| time(t, Nanos::ZERO..=Nanos::from_millis(1));
        "0s to 1ms"; "the least time from one turn of a packet loop to the next: packets that gather meanwhile cost less CPU, and wait that long at each of three hops at most"

    "MTU" mtu: u16 = "1500", Node, |t| number(t, 1280..=65_535);
        "1280 to 65535"; "the largest IP packet between nodes, in bytes"

    "WINDOW" window: u32 = "16384", Node, |t| number(t, 64..=1_048_576);
        "64 to 1048576"; "how many entries of one slot may wait to be committed or held everywhere"

    "RETAIN_MB" retain_mb: u32 = "64", Node, |t| number(t, 1..=65_536);
        "1 to 65536"; "how many MiB of log one shard keeps for members that are behind"

    "MAX_CALLS_PER_SLOT" max_calls_per_slot: u32 = "16384", Cluster, |t| number(t, 1..=1_048_576);
        "1 to 1048576"; "how many calls one slot holds; packets of further new calls are dropped and counted"

    "CALL_IDLE" call_idle: Nanos = "5m", Cluster, |t| time(t, Nanos::from_secs(1)..=Nanos::from_secs(604_800));
        "1s to 168h"; "after how much silence a call of echo or of a raw application ends"

    "DIGEST_EVERY" digest_every: u64 = "64", Cluster, |t| number(t, 1..=1_048_576);
        "1 to 1048576"; "at every how many positions of a slot the members' digests are compared"

    "FANOUT" fanout: Fanout = "unicast", Cluster, str::parse;
        "unicast or multicast"; "how entries go from the owner to the members"

    "MULTICAST_GROUP" multicast_group: SocketAddrV4 = "239.77.0.0:7099", Cluster, multicast_group;
        "the first IPv4 multicast address, ending in .0.0, and a port: IP:PORT";
        "where the groups of the member sets begin (TANDEM_FANOUT=multicast)"

    "VIP" vip: Vip = "auto", Node, str::parse;
        "auto or manual"; "whether this node adds the service addresses it holds to its interface, announces them and removes them; manual, and on loopback: they are routed here already"

    "ON_ADDRESS" on_address: String = "", Node, |t| Ok(t.to_owned());
        "a command for sh -c, such as: /path/hook \"$@\""; "run when this node gains or loses a service address, with `gained` or `lost`, the address and the term as $1, $2 and $3"

    "RESTART" restart: Restart = "auto", Node, str::parse;
        "auto or never"; "whether the node's supervisor starts an engine again that has ended unasked: after 100 ms, then twice as long each time, up to 10 s"

    "DRAIN_WITHIN" drain_within: Nanos = "30s", Node, |t| time(t, Nanos::from_millis(1)..=Nanos::from_secs(3_600));
        "1ms to 1h"; "how long a node that was asked to end (SIGTERM) may take to hand over what it holds"

    "RCVBUF" rcvbuf: ByteSize = "8M", Node, |t| size(t, 4 << 10..=1 << 30);
        "4K to 1G"; "the receive buffer of each socket"

    "SNDBUF" sndbuf: ByteSize = "8M", Node, |t| size(t, 4 << 10..=1 << 30);
        "4K to 1G"; "the send buffer of each socket"

    "BATCH" batch: usize = "64", Node, |t| number(t, 1..=1024);
        "1 to 1024"; "how many datagrams one system call moves at most"

    "PIN" pin: Pin = "auto", Node, str::parse;
        "auto, off, or core numbers with comma between them"; "which cores the packet loops are pinned to"

    "RT" rt: Auto = "auto", Node, str::parse;
        "auto or off"; "whether the control loop runs at real-time priority where the kernel allows it"

    "LOG" log: String = "info", Node, log_filter;
        "a level (error, warn, info, debug, trace) or a tracing filter such as info,tandem::io=debug";
        "what is logged, to standard error"

    "DATA_DIR" data_dir: PathBuf = "/var/lib/tandem", Node, path;
        "an absolute path"; "where a node keeps what must survive a restart"

    "RUN_DIR" run_dir: PathBuf = "/run/tandem", Node, path;
        "an absolute path"; "where a node keeps what need not survive a restart"
}

impl Show for Option<ClusterKey> {
    fn show(&self) -> String {
        if self.is_some() { "(secret)".into() } else { String::new() }
    }
}

fn shards(text: &str) -> Result<u16, Why> {
    if text == "auto" {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        return Ok(cores.min(256) as u16);
    }
    number(text, 1..=256)
}

/// 0 stands for auto until the other settings are known.
fn slots(text: &str) -> Result<u16, Why> {
    if text == "auto" { Ok(0) } else { number(text, 1..=32_768) }
}

fn word(text: &str) -> Result<String, Why> {
    let fits = (1..=64).contains(&text.len());
    if fits && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) {
        Ok(text.into())
    } else {
        Err("not such a name".into())
    }
}

fn key(text: &str) -> Result<Option<ClusterKey>, Why> {
    if text.is_empty() {
        return Ok(None);
    }
    ClusterKey::from_hex(text).map(Some).map_err(|e| e.to_string())
}

fn multicast_group(text: &str) -> Result<SocketAddrV4, Why> {
    let group: SocketAddrV4 = text.parse().map_err(|_| "not IP:PORT")?;
    if !group.ip().is_multicast() {
        return Err("not a multicast address (224.0.0.0 to 239.255.255.255)".into());
    }
    if group.ip().octets()[2..] != [0, 0] {
        return Err("the last two parts are not 0: they number the groups".into());
    }
    if group.port() == 0 { Err("port 0".into()) } else { Ok(group) }
}

fn log_filter(text: &str) -> Result<String, Why> {
    tracing_subscriber::EnvFilter::try_new(text).map_err(|e| e.to_string())?;
    Ok(text.into())
}
