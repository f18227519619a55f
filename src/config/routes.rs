//! Routes given as settings: `MATCH=TARGET`, which become lines of a file of routes.

use super::values::{Show, Why};
use std::fmt;
use std::net::SocketAddr;

/// One route of `TANDEM_ROUTE` or `--route`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// `default`, `user:PREFIX` or `domain:NAME`.
    subject: String,
    target: SocketAddr,
}

impl Route {
    fn read(item: &str) -> Result<Route, Why> {
        let (subject, target) = item.split_once('=').ok_or("has no = after its match")?;
        let known = match subject.split_once(':') {
            Some(("user" | "domain", what)) => !what.is_empty() && what.bytes().all(|b| b.is_ascii_graphic()),
            _ => subject == "default",
        };
        if !known {
            return Err("does not begin with default, user:PREFIX or domain:NAME".into());
        }
        let target: SocketAddr = target.parse().map_err(|_| {
            "does not end in IP:PORT (no name: nothing is looked up while packets wait)".to_owned()
        })?;
        if target.ip().is_unspecified() || target.ip().is_multicast() || target.port() == 0 {
            return Err("has a target that nobody can send to".into());
        }
        Ok(Route { subject: subject.into(), target })
    }
}

impl fmt::Display for Route {
    /// As a line of a file of routes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.subject.replacen(':', " ", 1), self.target)
    }
}

/// Reads routes with blanks between them; nothing is none.
pub(super) fn routes(text: &str) -> Result<Vec<Route>, Why> {
    text.split_whitespace().map(|item| Route::read(item).map_err(|why| format!("\"{item}\" {why}"))).collect()
}

impl Show for Vec<Route> {
    fn show(&self) -> String {
        let each = self.iter().map(|route| format!("{}={}", route.subject, route.target));
        each.collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_become_lines() {
        let text = "default=127.0.0.1:5080 user:+49=[::1]:5060 domain:example.com=10.0.0.1:5060";
        let read = routes(text).unwrap();
        assert_eq!(read.show(), text);
        let lines: Vec<String> = read.iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            ["default 127.0.0.1:5080", "user +49 [::1]:5060", "domain example.com 10.0.0.1:5060"]
        );
        assert_eq!(routes("  "), Ok(Vec::new()));
        for (bad, part) in [
            ("127.0.0.1:5080", "no ="),
            ("all=127.0.0.1:5080", "default, user:PREFIX or domain:NAME"),
            ("user:=127.0.0.1:5080", "default, user:PREFIX"),
            ("default=example.com:5060", "IP:PORT"),
            ("default=127.0.0.1", "IP:PORT"),
            ("default=0.0.0.0:5060", "nobody can send to"),
        ] {
            let why = routes(bad).unwrap_err();
            assert!(why.contains(part) && why.contains(bad), "{bad}: {why}");
        }
    }
}
