//! Service addresses on a real interface: added, announced, removed, also after a crash.

mod harness;

use harness::{
    Folder, Otherwise, Process, children, free_of_settings, installed, sandboxed, sh, tandem, until,
};
use std::net::{IpAddr, UdpSocket};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;
use tandem::io::sys_process::{Signal, signal};

const TOOLS: [&str; 2] = ["ip", "nft"];
const KEY: &str = "000102030405060708090a0b0c0d0e0f";
const V4: &str = "10.88.0.100";
const V6: &str = "fd88::100";
/// It is on the interface already, by the operator's own hand.
const STATIC: &str = "10.88.0.101";
const PATIENCE: Duration = Duration::from_secs(10);

/// A host `h` with a link to this sandbox, where the clients are.
fn host() {
    sh("ip netns add h; ip link add v type veth peer name eth0 netns h; ip link set v up
        ip addr add 10.88.0.254/24 dev v; ip addr add fd88::254/64 dev v nodad
        ip -n h link set lo up; ip -n h link set eth0 up
        ip -n h addr add 10.88.0.1/24 dev eth0; ip -n h addr add fd88::1/64 dev eth0 nodad
        ip -n h addr add 10.88.0.101/24 dev eth0
        # A client that knows the addresses from another machine.
        ip neigh replace 10.88.0.100 lladdr 02:00:00:00:00:99 dev v nud stale
        ip neigh replace fd88::100 lladdr 02:00:00:00:00:99 dev v nud stale");
    sh("nft -f - <<'END'
table netdev seen {
    chain in { type filter hook ingress device v priority 0;
        arp saddr ip 10.88.0.100 arp daddr ip 10.88.0.100 counter
        icmpv6 type nd-neighbor-advert ip6 saddr fd88::100 counter
    }
}
END");
}

/// The one node, on that host; `before` goes before its command line.
fn node(folder: &Folder, before: &[&str]) -> Process {
    let mut command = Command::new("ip");
    free_of_settings(&mut command);
    command.args(["netns", "exec", "h"]).args(before).arg(tandem().get_program()).arg("node");
    command.env("TANDEM_NODES", "1@a=10.88.0.1:7100").env("TANDEM_CLUSTER_KEY", KEY);
    command.env("TANDEM_SERVICE", format!("{V4}:5060,[{V6}]:5060,{STATIC}:5060"));
    command.env("TANDEM_SHARDS", "1").env("TANDEM_PIN", "off").env("TANDEM_DATA_DIR", folder.join("data"));
    let hook = format!("echo \"$1 $2 $3\" >> {}", folder.join("hook").display());
    command.env("TANDEM_ON_ADDRESS", hook);
    Process::start(&mut command)
}

/// The service addresses on the host's interface, with their prefixes.
fn added() -> Vec<String> {
    let listed = sh("ip -n h -o addr show dev eth0");
    let words = listed.split_whitespace();
    let mut found: Vec<String> = words
        .filter(|w| w.starts_with("10.88.0.10") || w.starts_with("fd88::100"))
        .map(String::from)
        .collect();
    found.sort_unstable();
    found
}

fn wait_for(what: &str, addresses: &[&str]) {
    assert!(until(PATIENCE, || added() == addresses), "{what}: {:?}", added());
}

const NONE: [&str; 1] = ["10.88.0.101/24"];
const ALL: [&str; 3] = ["10.88.0.100/32", "10.88.0.101/24", "fd88::100/128"];

/// Whether each service address answers a client.
fn answered() -> bool {
    [V4, V6, STATIC].iter().all(|address| {
        let address: IpAddr = address.parse().unwrap();
        let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        let client = UdpSocket::bind((any, 0)).unwrap();
        client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        client.connect((address, 5060)).unwrap();
        client.send(b"hello").is_ok() && client.recv(&mut [0; 100]).is_ok()
    })
}

fn hook_said(folder: &Folder) -> Vec<String> {
    let said = std::fs::read_to_string(folder.join("hook")).unwrap_or_default();
    said.lines().map(String::from).collect()
}

fn counts() -> Vec<u64> {
    let listed = sh("nft list ruleset");
    let counts = listed.split("counter packets ").skip(1);
    counts.map(|rest| rest.split(' ').next().unwrap().parse().unwrap()).collect()
}

#[test]
fn addresses_come_and_go_with_the_node_that_holds_them() {
    sandboxed("addresses_come_and_go_with_the_node_that_holds_them", &TOOLS, Otherwise::Skip, || {
        let folder = Folder::new();
        host();
        let process = node(&folder, &[]);
        wait_for("started", &ALL);
        assert!(sh("ip -n h -o addr show dev eth0").contains("deprecated"), "it is the source of nothing");
        assert!(until(PATIENCE, answered), "all addresses answer");
        sleep(Duration::from_millis(400));
        let seen = counts();
        println!("gratuitous ARP packets and neighbour advertisements: {seen:?}");
        assert!(seen[0] >= 6 && seen[1] >= 3, "{seen:?}");
        assert!(!sh("ip neigh").contains("02:00:00:00:00:99"), "clients know where the addresses are now");
        assert!(until(PATIENCE, || hook_said(&folder).len() == 3));
        let mut said = hook_said(&folder);
        said.sort_unstable();
        assert_eq!(said, ["gained 10.88.0.100 1", "gained 10.88.0.101 1", "gained fd88::100 1"]);

        // The engine dies alone: its supervisor takes the addresses off, and the next engine adds them again.
        let engine = children(process.pid())[0];
        signal(engine, Signal::Kill).unwrap();
        assert!(until(PATIENCE, || hook_said(&folder).len() == 6), "{:?}", hook_said(&folder));
        wait_for("engine started again", &ALL);
        assert_ne!(children(process.pid())[0], engine);
        assert!(until(PATIENCE, answered), "all addresses answer again");

        // Both die: nobody takes them off until the node is started again.
        let engine = children(process.pid())[0];
        signal(process.pid(), Signal::Kill).unwrap();
        assert!(until(PATIENCE, || !harness::lives(engine)), "it does not outlive its supervisor");
        drop(process.finish(PATIENCE));
        wait_for("nobody is left to do it", &ALL);
        let process = node(&folder, &[]);
        assert!(until(PATIENCE, || hook_said(&folder).len() == 9), "{:?}", hook_said(&folder));
        wait_for("node started again", &ALL);

        signal(process.pid(), Signal::Terminate).unwrap();
        let ended = process.finish(PATIENCE);
        assert!(ended.status.success(), "{ended:?}");
        assert!(!ended.err.contains(" WARN ") || ended.err.contains("without handing over"), "{ended:?}");
        assert_eq!(added(), NONE, "what the operator configured stays");
        let said = hook_said(&folder);
        assert_eq!(said.iter().filter(|line| line.starts_with("lost")).count(), 3, "{said:?}");
    });
}

#[test]
fn without_the_privilege_it_says_so_once_and_goes_on() {
    let tools = ["ip", "setpriv"];
    sandboxed("without_the_privilege_it_says_so_once_and_goes_on", &tools, Otherwise::Skip, || {
        assert!(installed("setpriv"));
        let folder = Folder::new();
        host();
        let process = node(
            &folder,
            &["setpriv", "--bounding-set", "-net_admin,-net_raw", "--inh-caps", "-net_admin,-net_raw"],
        );
        assert!(until(PATIENCE, || hook_said(&folder).len() == 3), "the command is run all the same");
        assert_eq!(added(), NONE);
        signal(process.pid(), Signal::Terminate).unwrap();
        let ended = process.finish(PATIENCE);
        assert!(ended.status.success(), "{ended:?}");
        assert_eq!(ended.err.matches("CAP_NET_ADMIN and CAP_NET_RAW").count(), 1, "{ended:?}");
        assert!(ended.err.contains("TANDEM_VIP=manual"), "{ended:?}");
    });
}
