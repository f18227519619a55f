//! What the application is told at its start. The same on every node.

use std::net::SocketAddr;

use crate::app::media::{Ice, MediaPorts, MediaSetup};
use crate::types::{Endpoint, Nanos, Slot};
use crate::wire::sip::Host;

/// A service endpoint as SIP sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEndpoint {
    /// What it listens on.
    pub at: SocketAddr,
    /// The number of its service address, as slots are dealt to addresses.
    pub address: u16,
    /// The host that Via and Record-Route name: a name, an IPv4 address, or an IPv6 address in brackets.
    pub host: String,
    /// The port that they name.
    pub port: u16,
}

impl ServiceEndpoint {
    /// One that names itself by its address.
    pub fn new(at: SocketAddr, address: u16) -> ServiceEndpoint {
        let ip = at.ip();
        let host = if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
        ServiceEndpoint { at, address, host, port: at.port() }
    }

    /// `host:port`, as it stands in Via and Record-Route.
    pub fn sent_by(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// How media is anchored.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct MediaConfig {
    /// The ports and how they are dealt.
    pub ports: MediaPorts,
    /// What happens to ICE.
    pub ice: Ice,
    /// How long after a description a source is believed that it did not name (NAT); 10 s is usual.
    pub latch: Nanos,
    /// An answered call that is not on hold and from which no media came for this long is ended. `None`: never.
    pub timeout: Option<Nanos>,
}

/// Session timers (RFC 4028), in seconds.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct SessionTimer {
    /// The Session-Expires given to sessions that ask for none.
    pub interval: u32,
    /// The least that is accepted; at least 90.
    pub min_se: u32,
}

/// Configuration of the SIP application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SipConfig {
    /// The cluster's hash seed: for call keys, branches and tags.
    pub seed: u64,
    /// How many slots there are.
    pub slots: u16,
    /// The service endpoints, in the cluster's order.
    pub endpoints: Vec<ServiceEndpoint>,
    /// `None`: media is left to go its own way.
    pub media: Option<MediaConfig>,
    /// The longest an answered call lasts. `None`: for ever.
    pub max_call: Option<Nanos>,
    /// `None`: session timers of the parties are watched, none are added.
    pub session: Option<SessionTimer>,
    /// Timer C: how long a call rings after the last provisional response; at least 3 minutes by RFC 3261.
    pub ring_timeout: Nanos,
    /// How long a target may be silent before the next is tried, if there is one. The last has the 32 s of RFC 3261
    /// (timers B and F), and so has one that has said anything.
    pub next_after: Nanos,
    /// The most bytes of a message.
    pub max_bytes: usize,
    /// The most headers of a message.
    pub max_headers: usize,
    /// What responses made here say as Server; `None`: nothing.
    pub server: Option<String>,
}

impl SipConfig {
    /// Usual values for these endpoints.
    pub fn new(seed: u64, slots: u16, endpoints: Vec<ServiceEndpoint>) -> SipConfig {
        SipConfig {
            seed,
            slots,
            endpoints,
            media: None,
            max_call: None,
            session: None,
            ring_timeout: Nanos::from_secs(185),
            next_after: Nanos::from_secs(4),
            max_bytes: 16_384,
            max_headers: 128,
            server: None,
        }
    }

    /// The number of the endpoint that goes by this name and port.
    pub(super) fn endpoint_named(&self, host: &Host<'_>, port: u16) -> Option<u16> {
        let ip = host.ip().map(|ip| ip.to_canonical());
        let named = |endpoint: &ServiceEndpoint| {
            endpoint.port == port && endpoint.host.as_bytes().eq_ignore_ascii_case(host.bytes())
                || ip.is_some_and(|ip| endpoint.at == SocketAddr::new(ip, port))
        };
        self.endpoints.iter().position(named).map(|at| at as u16)
    }

    pub(super) fn endpoint(&self, number: u16) -> Option<&ServiceEndpoint> {
        self.endpoints.get(usize::from(number))
    }

    /// The endpoint to speak to `to` from: `wanted` if it can, else the first that can.
    pub(super) fn speaker(&self, to: Endpoint, wanted: u16) -> Option<u16> {
        let v6 = SocketAddr::from(to).is_ipv6();
        let can = |endpoint: &&ServiceEndpoint| endpoint.at.is_ipv6() == v6;
        if self.endpoint(wanted).as_ref().is_some_and(can) {
            return Some(wanted);
        }
        self.endpoints.iter().position(|endpoint| can(&endpoint)).map(|at| at as u16)
    }

    /// The first endpoint of the service address that carries a slot.
    pub(super) fn media_endpoint(&self, slot: Slot) -> Option<u16> {
        let address = self.media.as_ref()?.ports.address_of(slot);
        self.endpoints.iter().position(|endpoint| endpoint.address == address).map(|at| at as u16)
    }

    /// How media of a slot's calls is anchored.
    pub(super) fn media_setup(&self, slot: Slot) -> Option<(&MediaConfig, MediaSetup)> {
        let media = self.media.as_ref()?;
        let address = self.endpoint(self.media_endpoint(slot)?)?.at.ip();
        Some((media, MediaSetup { address, ice: media.ice, latch: media.latch }))
    }
}
