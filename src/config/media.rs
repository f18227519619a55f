//! Settings of media (`TANDEM_APP=sip`), and how the media ports and the slots of a cluster go together.

use super::table::Settings;
use super::values::{App, Show, Why, words};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::str::FromStr;

words! {
    /// What becomes of the ICE lines of session descriptions.
    Ice {
        /// They are removed: media comes here.
        Remove = "remove",
        /// They are passed on.
        Pass = "pass",
        /// Ours come in their place: each party does ICE with a lite agent here.
        Lite = "lite",
    }
}

words! {
    /// How datagrams reach the media ports.
    MediaSteer {
        /// Each port is a socket.
        Off = "off",
        /// The kernel steers all of them to one socket a shard.
        On = "on",
    }
}

/// Slots where nothing but the number of calls matters.
const SLOTS: u16 = 1_024;
/// Slots of SIP without media: each has a keeper.
const SLOTS_OF_SIP: u16 = 1_024;
/// The fewest pairs of ports a slot can work with: two for a call, and two resting.
const FEWEST_PAIRS: u32 = 4;
/// Pairs of ports that auto gives a slot. Calls spread over slots by chance, and a call that finds its slot's share lent
/// out has no media: the fewer slots, the closer to its end the whole range can be filled.
const USUAL_PAIRS: u32 = 48;

/// Chooses `TANDEM_SLOTS=auto`, and checks the media ports against the slots.
///
/// # Errors
/// The name of the row that is wrong, and why.
pub(super) fn settle(settings: &mut Settings) -> Result<(), (&'static str, String)> {
    let addresses: BTreeSet<IpAddr> = settings.service.iter().map(|endpoint| endpoint.ip()).collect();
    let addresses = addresses.len() as u32;
    let range = settings.media_ports;
    let first = u32::from(range.first).next_multiple_of(2);
    let pairs = (u32::from(range.last) + 1).saturating_sub(first) / 2;
    let media = settings.app == App::Sip && !range.is_off();
    if settings.slots == 0 {
        let per_address = (pairs / USUAL_PAIRS).max(1).ilog2();
        let slots = (1 << per_address) * addresses.max(1);
        settings.slots = match settings.app {
            App::Echo => SLOTS,
            App::Sip if media => slots.min(32_768) as u16,
            App::Sip => SLOTS_OF_SIP,
        };
    }
    if !media {
        return Ok(());
    }
    // A description names one address, and a call's slot says which: of two families half the calls would be shown one
    // that their parties cannot reach.
    let families = [IpAddr::is_ipv4, IpAddr::is_ipv6].map(|is| addresses_of(settings, is));
    if let [v4, v6] = &families
        && !v4.is_empty()
        && !v6.is_empty()
    {
        return Err((
            "SERVICE",
            format!(
                "{v4} are IPv4 and {v6} are IPv6, and media is anchored at addresses of one family: give each family a \
                 cluster of its own, or leave media alone with TANDEM_MEDIA_PORTS=off"
            ),
        ));
    }
    let slots = u32::from(settings.slots).div_ceil(addresses.max(1));
    if pairs / slots < FEWEST_PAIRS {
        let (needed, fit) = (slots * FEWEST_PAIRS * 2, pairs / FEWEST_PAIRS * addresses);
        let remedy = match fit {
            0 => format!("{needed} ports would do"),
            _ => format!("{needed} ports would do, or TANDEM_SLOTS={fit}"),
        };
        return Err((
            "MEDIA_PORTS",
            format!(
                "{pairs} pairs of ports for the {slots} slots of an address (TANDEM_SLOTS={}), and a slot needs \
                 {FEWEST_PAIRS}: {remedy}",
                settings.slots
            ),
        ));
    }
    let inside = |port: u16| (range.first..=range.last).contains(&port);
    if let Some(endpoint) = settings.service.iter().find(|endpoint| inside(endpoint.port())) {
        return Err(("MEDIA_PORTS", format!("the port of service endpoint {endpoint} is one of them")));
    }
    let ports = |node: &super::Node| {
        let first = u32::from(node.address.port());
        (first, first + u32::from(settings.shards))
    };
    let on_service = |node: &&super::Node| settings.service.iter().any(|s| s.ip() == node.address.ip());
    let clash = settings.nodes.iter().filter(on_service).find(|node| {
        let (first, last) = ports(node);
        first <= u32::from(range.last) && u32::from(range.first) <= last
    });
    match clash {
        Some(node) => Err((
            "MEDIA_PORTS",
            format!(
                "node {} has ports {} to {} on a service address",
                node.id.0,
                ports(node).0,
                ports(node).1
            ),
        )),
        None => Ok(()),
    }
}

/// The service endpoints of one family.
fn addresses_of(settings: &Settings, is: fn(&IpAddr) -> bool) -> String {
    let some = settings.service.iter().filter(|endpoint| is(&endpoint.ip()));
    some.map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::{BadSettings, Settings};

    fn slots(pairs: &[(&str, &str)]) -> Result<u16, BadSettings> {
        Settings::from_pairs(pairs).map(|settings| settings.slots)
    }

    #[test]
    fn slots_follow_the_application_and_the_ports() {
        let sip = ("APP", "sip");
        assert_eq!(slots(&[]), Ok(1_024));
        assert_eq!(slots(&[("MEDIA_PORTS", "20000-20001")]), Ok(1_024), "echo has no media");
        assert_eq!(slots(&[sip]), Ok(32));
        assert_eq!(slots(&[sip, ("MEDIA_PORTS", "20000-39999")]), Ok(128));
        assert_eq!(slots(&[sip, ("MEDIA_PORTS", "20000-20009")]), Ok(1));
        assert_eq!(slots(&[sip, ("SERVICE", "127.0.0.1:5060,127.0.0.2:5060,127.0.0.2:5061")]), Ok(64));
        assert_eq!(slots(&[sip, ("SLOTS", "500")]), Ok(500));
        assert_eq!(slots(&[sip, ("MEDIA_PORTS", "off")]), Ok(1_024));
        let text = |pairs: &[(&str, &str)]| slots(pairs).unwrap_err().to_string();
        let many = text(&[sip, ("SLOTS", "501")]);
        for part in ["TANDEM_MEDIA_PORTS=20000-23999", "4008 ports would do", "TANDEM_SLOTS=500"] {
            assert!(many.contains(part), "{part} in {many}");
        }
        let few = text(&[sip, ("MEDIA_PORTS", "20001-20003")]);
        assert!(few.contains("8 ports would do") && !few.contains("TANDEM_SLOTS=0"), "{few}");
        let clash = text(&[sip, ("SERVICE", "127.0.0.1:20100")]);
        assert!(clash.contains("service endpoint 127.0.0.1:20100"), "{clash}");
        let clash = text(&[sip, ("NODES", "1@a=127.0.0.1:19999"), ("SHARDS", "1")]);
        assert!(clash.contains("node 1 has ports 19999 to 20000"), "{clash}");
        let both = ("SERVICE", "127.0.0.1:5060,[::1]:5060,[::1]:5061");
        let mixed = text(&[sip, both]);
        for part in [
            "TANDEM_SERVICE=127.0.0.1:5060,[::1]:5060,[::1]:5061",
            "127.0.0.1:5060 are IPv4 and [::1]:5060, [::1]:5061 are IPv6",
            "a cluster of its own",
            "TANDEM_MEDIA_PORTS=off",
        ] {
            assert!(mixed.contains(part), "{part} in {mixed}");
        }
        assert_eq!(slots(&[both]), Ok(1_024), "echo has no media");
        assert_eq!(slots(&[sip, both, ("MEDIA_PORTS", "off")]), Ok(1_024));
        assert_eq!(slots(&[sip, ("SERVICE", "[::1]:5060,[::2]:5060")]), Ok(64));
        assert!(text(&[("MEDIA_PORTS", "30000-20000")]).contains("before the first"));
        assert!(text(&[sip, ("SESSION_EXPIRES", "60s")]).contains("90s"));
    }
}
