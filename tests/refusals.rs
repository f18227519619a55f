//! What cannot work is refused in one line that names the thing, the value, and what to do; with a status.

mod harness;

use harness::{Ended, Folder, Otherwise, assert_no_panic, run, samples, sandboxed, sh, tandem};
use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(15);

/// The one line in which a command said why it would not, which must hold all of `parts`.
fn refused(ended: &Ended, status: i32, parts: &[&str]) {
    assert_no_panic(&ended.err);
    assert_eq!(ended.status.code(), Some(status), "{ended:?}");
    let said: Vec<_> = ended.err.lines().filter(|line| line.starts_with("tandem: ")).collect();
    assert!(said.len() == 1 && ended.err.trim_end().ends_with(said[0]), "one line, the last one: {ended:?}");
    assert!(said[0].matches("(os error").count() <= 1, "a cause is said twice: {}", said[0]);
    for part in parts {
        assert!(said[0].contains(part), "{part:?} in {}", said[0]);
    }
}

/// `tandem ARGS` with these variables.
fn command(args: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = tandem();
    command.args(args).envs(variables.iter().copied());
    command
}

#[test]
fn settings_that_cannot_be() {
    let far = "1@a=127.0.0.1:7100,2@b=10.9.8.7:7100";
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);
    let cases: [Case<'_>; 10] = [
        (
            &[("TANDEM_NODES", far)],
            &["TANDEM_CLUSTER_KEY is not set", "10.9.8.7:7100", "openssl rand -hex 32"],
        ),
        (&[("TANDEM_SLOTZ", "1")], &["TANDEM_SLOTZ is no setting", "TANDEM_SLOTS"]),
        (&[("TANDEM_R", "0")], &["TANDEM_R=0", "1 to 7"]),
        (&[("TANDEM_BEAT", "fast")], &["TANDEM_BEAT=fast", "100us to 10s"]),
        (&[("TANDEM_SLOTS", "99999")], &["TANDEM_SLOTS=99999", "1 to 32768"]),
        (&[("TANDEM_NODES", "rubbish")], &["TANDEM_NODES=rubbish", "ID@HOST=IP:PORT"]),
        (&[("TANDEM_NODE", "9")], &["TANDEM_NODE=9", "not in TANDEM_NODES"]),
        (
            &[("TANDEM_CLUSTER_KEY_FILE", "/no/such/key")],
            &["TANDEM_CLUSTER_KEY_FILE=/no/such/key", "No such file"],
        ),
        (&[("TANDEM_CLUSTER_KEY", "abc")], &["TANDEM_CLUSTER_KEY=(secret)", "32 or more hexadecimal digits"]),
        (&[("TANDEM_R", "x"), ("TANDEM_KEY", "bytes:0:0")], &["TANDEM_R=x", " | TANDEM_KEY=bytes:0:0"]),
    ];
    for (variables, parts) in cases {
        refused(&run(&mut command(&["node"], variables), PATIENCE), 2, parts);
    }
    refused(
        &run(&mut command(&["local"], &[("TANDEM_COMMIT", "7")]), PATIENCE),
        2,
        &["TANDEM_COMMIT=7", "TANDEM_R"],
    );
    refused(&run(&mut command(&["local", "--shards", "many"], &[]), PATIENCE), 2, &["TANDEM_SHARDS=many"]);
    refused(&run(&mut command(&["local", "--nodes", "99"], &[]), PATIENCE), 2, &["99", "1..=16"]);
    refused(&run(&mut command(&["node", "--no-such-flag"], &[]), PATIENCE), 2, &["--no-such-flag"]);
    refused(&run(&mut command(&[], &[]), PATIENCE), 2, &["no command"]);
}

#[test]
fn settings_of_sip_that_cannot_be() {
    let sip = ("TANDEM_APP", "sip");
    type Case<'a> = (i32, &'a [(&'a str, &'a str)], &'a [&'a str]);
    let cases: [Case<'_>; 9] = [
        (2, &[sip, ("TANDEM_SLOTS", "4096")], &["TANDEM_MEDIA_PORTS=20000-23999", "TANDEM_SLOTS=500"]),
        (
            2,
            &[sip, ("TANDEM_MEDIA_PORTS", "20000-20005")],
            &["TANDEM_MEDIA_PORTS=20000-20005", "8 ports would do"],
        ),
        (2, &[sip, ("TANDEM_MEDIA_PORTS", "5000-6000")], &["TANDEM_MEDIA_PORTS=5000-6000", "127.0.0.1:5060"]),
        (2, &[("TANDEM_MEDIA_PORTS", "9")], &["TANDEM_MEDIA_PORTS=9", "FIRST-LAST"]),
        (2, &[("TANDEM_ROUTE", "default=example.com")], &["TANDEM_ROUTE=default=example.com", "IP:PORT"]),
        (2, &[("TANDEM_SESSION_EXPIRES", "30s")], &["TANDEM_SESSION_EXPIRES=30s", "90s"]),
        (2, &[("TANDEM_ICE", "melt")], &["TANDEM_ICE=melt", "remove, pass or lite"]),
        (1, &[sip, ("TANDEM_ROUTES", "/no/such/routes")], &["TANDEM_ROUTES=/no/such/routes", "No such file"]),
        (
            1,
            &[sip, ("TANDEM_CDR", "/no/such/folder/cdr")],
            &["TANDEM_CDR=/no/such/folder/cdr", "No such file"],
        ),
    ];
    let folder = Folder::new();
    let run_dir = folder.0.display().to_string();
    for (status, variables, parts) in cases {
        let mut node =
            command(&["node", "--shards", "1", "--data-dir", &run_dir, "--run-dir", &run_dir], variables);
        refused(&run(&mut node, PATIENCE), status, parts);
    }
    let routes = folder.join("routes");
    std::fs::write(&routes, "default 127.0.0.1:5080\nuser 49 nowhere\n").unwrap();
    let file = routes.display().to_string();
    let node = ["node", "--app", "sip", "--routes", &file, "--data-dir", &run_dir, "--run-dir", &run_dir];
    refused(&run(&mut command(&node, &[]), PATIENCE), 1, &["TANDEM_ROUTES=", &file, "line 2", "nowhere"]);
    let line = format!(
        "ulimit -n 2000; exec \"$0\" node --app sip --shards 1 --data-dir {run_dir} --run-dir {run_dir}"
    );
    let mut few = Command::new("sh");
    harness::free_of_settings(&mut few);
    few.args(["-c", &line]).arg(tandem().get_program());
    let parts =
        ["TANDEM_MEDIA_PORTS=20000-23999", "may have 2000", "ulimit -n", "set TANDEM_MEDIA_PORTS=20000-2"];
    refused(&run(&mut few, PATIENCE), 1, &parts);
}

#[test]
fn clusters_that_are_not_there() {
    // A port that is free now: nobody listens.
    let at = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let said = ["no node answers", &at, "--at"];
    refused(&run(&mut command(&["status", "--at", &at], &[]), PATIENCE), 1, &said);
    refused(&run(&mut command(&["status", "--json", "--at", &at], &[]), PATIENCE), 1, &said);
    let nodes = format!("1@a={at}");
    let named = [("TANDEM_NODES", nodes.as_str())];
    refused(&run(&mut command(&["status"], &named), PATIENCE), 1, &said[..2]);
    refused(&run(&mut command(&["drain"], &named), PATIENCE), 1, &["cannot ask it to leave", &at]);
    refused(&run(&mut command(&["drain", "7"], &named), PATIENCE), 2, &["no node 7", "TANDEM_NODES"]);
    refused(&run(&mut command(&["status", "--at", "nowhere"], &[]), PATIENCE), 2, &["nowhere"]);
    let sample = samples()[0].display().to_string();
    let twice = ["replay", &sample, "--target", &at, "--target", &at, "--expect-failovers", "1"];
    refused(&run(&mut command(&twice, &[]), PATIENCE), 2, &["--expect-failovers", "--target"]);
    let late = ["demo", "--duration", "5", "--kill-at", "9"];
    refused(&run(&mut command(&late, &[]), PATIENCE), 2, &["--kill-at 9", "--duration 5"]);
}

#[test]
fn addresses_that_cannot_be_had() {
    sandboxed("addresses_that_cannot_be_had", &[], Otherwise::RunHere, || {
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let key = ("TANDEM_CLUSTER_KEY", "000102030405060708090a0b0c0d0e0f");
        for (nodes, service, parts) in [
            (
                format!("1@a=127.0.0.1:{port}"),
                "127.0.0.1:5060".into(),
                [format!("127.0.0.1:{port} (control)"), "TANDEM_NODES".into(), "in use".into()],
            ),
            (
                format!("1@a=127.0.0.1:{}", port - 1),
                "127.0.0.1:5060".into(),
                [format!("127.0.0.1:{port} (shards)"), "TANDEM_NODES".into(), "in use".into()],
            ),
            (
                "1@a=127.0.0.1:7100".into(),
                format!("127.0.0.1:{port}"),
                [format!("127.0.0.1:{port} (service endpoint)"), "TANDEM_SERVICE".into(), "in use".into()],
            ),
            (
                "1@a=203.0.113.9:7100".into(),
                "127.0.0.1:5060".into(),
                [
                    "203.0.113.9:7100 (control)".into(),
                    "TANDEM_NODES".into(),
                    "not an address of this machine".into(),
                ],
            ),
        ] {
            let variables =
                [("TANDEM_NODES", nodes.as_str()), ("TANDEM_SERVICE", &service), ("TANDEM_SHARDS", "1"), key];
            let parts = parts.each_ref().map(String::as_str);
            refused(&run(&mut command(&["node"], &variables), PATIENCE), 1, &parts);
        }
    });
}

#[test]
fn too_few_open_files() {
    let limited = |files: u32, args: &[&str]| {
        let mut command = Command::new("sh");
        harness::free_of_settings(&mut command);
        let line = format!("ulimit -n {files}; exec \"$0\" \"$@\"");
        run(command.args(["-c", &line]).arg(tandem().get_program()).args(args), PATIENCE)
    };
    for files in [10, 25] {
        let parts = ["open files", &format!("may have {files}"), "ulimit -n"];
        refused(&limited(files, &["node", "--shards", "4"]), 1, &parts);
    }
    let sample = samples()[0].display().to_string();
    let replay = [
        "replay",
        &sample,
        "--target",
        "127.0.0.1:9",
        "--calls",
        "1000",
        "--duration",
        "0.2",
        "--drain",
        "0",
    ];
    // Sockets are shared when there may be few of them; with none at all it says so.
    let few = limited(30, &replay);
    assert!(few.status.code() == Some(1) && few.out.contains("limit of open files"), "{few:?}");
    assert_no_panic(&few.err);
    refused(&limited(4, &replay), 1, &["open"]);
}

#[test]
fn captures_that_cannot_be_read() {
    let folder = Folder::new();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let whole = std::fs::read(&samples()[0]).unwrap();
    let absent = folder.join("absent.pcap").display().to_string();
    let here = folder.0.display().to_string();
    let empty = write("empty.pcap", &[]);
    let rubbish = write("rubbish.pcap", &[0x55; 4_096]);
    let header = write("header.pcap", &whole[..24]);
    for command_line in [vec!["inspect"], vec!["replay", "--target", "127.0.0.1:9"]] {
        for (path, why) in [(&absent, "No such file"), (&here, "directory"), (&empty, ""), (&rubbish, "")] {
            let mut command = tandem();
            let ended = run(command.args(&command_line).arg(path), PATIENCE);
            refused(&ended, 1, &[path, why]);
        }
    }
    let ended = run(tandem().args(["replay", "--target", "127.0.0.1:9", &header]), PATIENCE);
    refused(&ended, 1, &[&header, "no UDP datagrams"]);
    let sample = samples()[0].display().to_string();
    for target in ["nowhere", "127.0.0.1", "127.0.0.1:99999", ":"] {
        let ended = run(tandem().args(["replay", &sample, "--target", target]), PATIENCE);
        assert!(matches!(ended.status.code(), Some(1 | 2)), "{ended:?}");
        refused(&ended, ended.status.code().unwrap(), &[target]);
    }
}

#[test]
fn reports_that_cannot_be_written() {
    let sample = samples()[0].display().to_string();
    let commands = |json: &str| {
        let inspect = ["inspect", &sample, "--json", json].map(String::from).to_vec();
        let replay =
            ["replay", &sample, "--target", "127.0.0.1:9", "--speed", "100", "--drain", "0", "--json", json];
        let local = ["local", "--nodes", "1", "--json", json].map(String::from).to_vec();
        [inspect, replay.map(String::from).to_vec(), local]
    };
    for (json, why) in [("/dev/full", "No space left"), ("/no/such/folder/x.json", "folder"), ("/", "folder")]
    {
        for args in commands(json) {
            refused(&run(tandem().args(&args), PATIENCE), 1, &[json, why]);
        }
    }
}

#[test]
fn a_report_on_a_full_disk() {
    sandboxed("a_report_on_a_full_disk", &[], Otherwise::Skip, || {
        sh(
            "mkdir /run/full; mount -t tmpfs -o size=8k tandem /run/full; dd if=/dev/zero of=/run/full/fill bs=4k count=2 2>/dev/null",
        );
        let sample = samples()[0].display().to_string();
        let ended = run(tandem().args(["inspect", &sample, "--json", "/run/full/x.json"]), PATIENCE);
        refused(&ended, 1, &["/run/full/x.json", "No space left", "free some space"]);
        assert!(!Path::new("/run/full/x.json").exists(), "no half report is left");
        assert_eq!(std::fs::read_dir("/run/full").unwrap().count(), 1, "and no temporary file");
    });
}
