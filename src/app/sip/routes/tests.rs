//! Route files: what is read, what is refused, what is found.

use super::*;
use proptest::prelude::*;

fn at(text: &str) -> Endpoint {
    Endpoint::from(text.parse::<SocketAddr>().expect("an address"))
}

fn parse(text: &str) -> Routes {
    Routes::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The first target for a URI.
fn first(routes: &Routes, uri: &str) -> Option<Endpoint> {
    let uri = Uri::parse(uri.as_bytes()).unwrap_or_else(|| panic!("{uri} is no URI"));
    routes.find(&uri).map(|targets| targets[0].to)
}

const FILE: &str = "\
# Where calls go
default  10.0.0.9
user 0049 10.0.0.1:5070;weight=3 , 10.0.0.2;priority=1;weight=1\t # Germany
user 004930 [2001:db8::1]:5060
user %2331%23 10.0.0.3
domain Example.ORG. 10.0.0.4
domain [2001:db8::2] 10.0.0.5

ping 60000ms
down-after 3
";

#[test]
fn the_longest_prefix_then_the_domain_then_the_default() {
    let routes = parse(FILE);
    for (uri, target) in [
        ("sip:00491@example.org", "10.0.0.1:5070"),
        ("sip:00493012;phone-context=x@example.org", "[2001:db8::1]:5060"),
        ("sips:%30%30493012@example.org:5061;lr", "[2001:db8::1]:5060"),
        ("tel:00-49.3(0)12;phone-context=+1", "[2001:db8::1]:5060"),
        ("sip:%2331%23017@x", "10.0.0.3:5060"),
        ("sip:#31#017@x", "10.0.0.3:5060"),
        ("sip:004@EXAMPLE.org", "10.0.0.4:5060"),
        ("sip:example.org.", "10.0.0.4:5060"),
        ("sip:a@[2001:DB8::2]:7000", "10.0.0.5:5060"),
        ("sip:a@b.example.org", "10.0.0.9:5060"),
        ("urn:service:sos", "10.0.0.9:5060"),
        ("tel:+1-202", "10.0.0.9:5060"),
    ] {
        assert_eq!(first(&routes, uri), Some(at(target)), "{uri}");
    }
    assert_eq!(first(&parse("user 1 10.0.0.1"), "sip:2@x"), None);
    assert_eq!(first(&parse(""), "sip:2@x"), None);
}

#[test]
fn the_canonical_text_says_the_same() {
    let routes = parse(FILE);
    assert_eq!(
        routes.text(),
        "user %2331%23 10.0.0.3:5060\n\
         user 0049 10.0.0.1:5070;weight=3, 10.0.0.2:5060;priority=1\n\
         user 004930 [2001:db8::1]:5060\n\
         domain [2001:db8::2] 10.0.0.5:5060\n\
         domain example.org 10.0.0.4:5060\n\
         default 10.0.0.9:5060\n\
         ping 1m\nping-timeout 2s\ndown-after 3\nup-after 1\n"
    );
    assert_eq!(parse(routes.text()), routes);
    assert_eq!(parse(&FILE.replace('\n', "\r\n")).hash(), routes.hash());
    assert_ne!(parse(&FILE.replace("weight=3", "weight=4")).hash(), routes.hash());
    assert_eq!(routes.targets().len(), 7);
    assert!(routes.has_target(at("10.0.0.2:5060")) && !routes.has_target(at("10.0.0.2:5061")));
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    for (text, line, token, accepted) in [
        ("\ndefault sip.example.org", 2, "sip.example.org", "no names"),
        ("default 10.0.0.1:99999", 1, "10.0.0.1:99999", "IP:PORT"),
        ("default 10.0.0.1:0", 1, "10.0.0.1:0", "PORT from 1"),
        ("default 0.0.0.0", 1, "0.0.0.0", "one host"),
        ("default 224.0.0.1", 1, "224.0.0.1", "one host"),
        ("default [fe80::1%3]:5060", 1, "[fe80::1%3]:5060", "zone"),
        ("default", 1, "", "IP:PORT"),
        ("default 10.0.0.1,", 1, "", "IP:PORT"),
        ("default 10.0.0.1, 10.0.0.1:5060", 1, "10.0.0.1:5060", "once"),
        ("default 10.0.0.1;weight=0", 1, "0", "from 1 to 65535"),
        ("default 10.0.0.1;heavy", 1, "heavy", ";weight=N"),
        ("default 10.0.0.1\ndefault 10.0.0.2", 2, "default", "line 1 says so"),
        ("user 1 10.0.0.1\nuser 1 10.0.0.1", 2, "user 1", "line 1 says so"),
        ("user 1 10.0.0.1\nuser %31 10.0.0.1", 2, "%31", "the same user"),
        ("domain A 10.0.0.1\ndomain a. 10.0.0.1", 2, "a.", "the same domain"),
        ("domain a:5060 10.0.0.1", 1, "a:5060", "without a port"),
        ("user", 1, "user", "user NAME TARGETS"),
        ("gateway 10.0.0.1", 1, "gateway", "user, domain, default"),
        ("ping 5", 1, "5", "from 1s to 1h"),
        ("ping 999ms", 1, "999ms", "from 1s to 1h"),
        ("ping 5s\nup-after 0", 2, "0", "from 1 to 100"),
        ("down-after 2", 1, "down-after", "ping TIME"),
        ("ping 1s\nping-timeout 2s", 2, "ping-timeout", "the ping's interval"),
    ] {
        let error = Routes::parse(text).expect_err(text);
        assert_eq!((error.line, error.token.as_str()), (line, token), "{text}: {error}");
        assert!(error.to_string().contains(accepted), "{text}: {error}");
    }
}

#[test]
fn what_is_too_large_is_refused() {
    let many = |count: usize, line: &dyn Fn(usize) -> String| -> String { (0..count).map(line).collect() };
    let rules = |count| many(count, &|n| format!("user {n} 10.0.0.1\n"));
    let targets = |count| many(count, &|n| format!("user {n} 10.0.{}.{}\n", n / 250, n % 250 + 1));
    assert_eq!(parse(&targets(MAX_TARGETS)).targets().len(), MAX_TARGETS);
    let choices = |count| {
        let all: Vec<String> = (0..count).map(|n| format!("10.0.0.{}", n + 1)).collect();
        format!("default {}", all.join(","))
    };
    parse(&choices(MAX_CHOICES));
    for (text, accepted) in [
        (targets(MAX_TARGETS + 1), "1025 different targets"),
        (choices(MAX_CHOICES + 1), "64 targets"),
        (format!("#{}", "x".repeat(MAX_TEXT)), "64000"),
        // Grows by its ports.
        (rules(3_000), "canonical form"),
        (rules(MAX_RULES + 1).replace(" 10.0.0.1", " ::2"), "4096 rules"),
    ] {
        let error = Routes::parse(&text).expect_err(accepted).to_string();
        assert!(error.contains(accepted), "{error}");
    }
    let error = Routes::parse(&format!("user {} 10.0.0.1", "1".repeat(256))).expect_err("long");
    assert!(error.token.len() <= 64 && error.to_string().contains("255"), "{error}");
}

#[test]
fn options_of_the_command_line_are_lines() {
    assert_eq!(Routes::line_of("default=10.0.0.1:5060").as_deref(), Ok("default 10.0.0.1:5060"));
    assert_eq!(Routes::line_of("user:0049=10.0.0.1;weight=2").as_deref(), Ok("user 0049 10.0.0.1;weight=2"));
    assert_eq!(Routes::line_of("domain:x.org=10.0.0.1").as_deref(), Ok("domain x.org 10.0.0.1"));
    for wrong in ["10.0.0.1:5060", "host=10.0.0.1", "port:1=10.0.0.1"] {
        let error = Routes::line_of(wrong).expect_err(wrong);
        assert!(error.to_string().contains("default=IP:PORT"), "{error}");
    }
}

#[test]
fn weights_are_shares_and_priorities_come_first() {
    let routes = parse("default 10.0.0.1;weight=3, 10.0.0.2, 10.0.0.3;priority=9, 10.0.0.4;priority=7");
    let uri = Uri::parse(b"sip:x").expect("a URI");
    let targets = routes.find(&uri).expect("a rule");
    let mut heavy_first = 0;
    for draw in 0..4_000 {
        let order = order(targets, draw, |_| false);
        assert_eq!(order[2..], [at("10.0.0.4:5060"), at("10.0.0.3:5060")]);
        heavy_first += u32::from(order[0] == at("10.0.0.1:5060"));
    }
    assert!((2_900..3_100).contains(&heavy_first), "{heavy_first} of 4000, not three quarters");
}

#[test]
fn targets_that_are_down_come_last_but_come() {
    let routes = parse("default 10.0.0.1, 10.0.0.2;priority=1, 10.0.0.3;priority=2");
    let targets = routes.find(&Uri::parse(b"sip:x").expect("a URI")).expect("a rule");
    let (one, two, three) = (at("10.0.0.1:5060"), at("10.0.0.2:5060"), at("10.0.0.3:5060"));
    assert_eq!(order(targets, 5, |target| target == one), [two, three, one]);
    assert_eq!(order(targets, 5, |target| target != three), [three, one, two]);
    assert_eq!(order(targets, 5, |_| true), [one, two, three]);
}

#[test]
fn a_cache_holds_one_copy_as_long_as_somebody_does() {
    let cache = RouteCache::default();
    let one = cache.get("default 10.0.0.1").expect("routes");
    let same = cache.get("# the same\ndefault 10.0.0.1:5060\n").expect("routes");
    assert!(Arc::ptr_eq(&one, &same));
    drop((one, same));
    let other = cache.get("default 10.0.0.2").expect("routes");
    assert_eq!((cache.known.borrow().len(), other.targets().len()), (1, 1));
    assert!(cache.get("default x").is_err());
}

#[test]
fn a_domain_of_dots_is_no_name() {
    for (domain, good) in [("a.", true), ("a", true), (".", false), ("..", false), ("a..", false)] {
        assert_eq!(Routes::parse(&format!("domain {domain} 10.0.0.1")).is_ok(), good, "{domain}");
    }
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused_and_the_canonical_text_is_stable(
        lines in proptest::collection::vec(
            r"(user|domain|default|ping) ?[0-9a-c%#@:.]{0,6} (10\.0\.0\.[1-3](:[0-9]{1,4})?(;weight=[0-3])?(;priority=[0-2])?,?){0,3}",
            0..5,
        ),
        noise in any::<String>(),
    ) {
        let _ = Routes::parse(&noise);
        if let Ok(routes) = Routes::parse(&lines.join("\n")) {
            let again = Routes::parse(routes.text());
            prop_assert_eq!(again.as_ref().map(Routes::text), Ok(routes.text()));
            prop_assert_eq!(again, Ok(routes));
        }
    }

    #[test]
    fn an_order_names_every_target_once(count in 1..20usize, draw: u64, down: u32) {
        let targets: Vec<Target> = (0..count)
            .map(|n| Target { priority: (n / 3) as u16, to: at(&format!("10.0.0.{}:5060", n + 1)), weight: n as u16 + 1 })
            .collect();
        let mut order = order(&targets, draw, |to| down >> (to.ip[15] - 1) & 1 == 1);
        order.sort_unstable();
        prop_assert_eq!(order, targets.iter().map(|target| target.to).collect::<Vec<_>>());
    }
}
