//! What the SIP application is told of the settings, and what it needs of the node.

use std::net::IpAddr;
use std::sync::Arc;

use crate::app::media::{Ice, MediaPorts};
use crate::app::sip::Sip;
use crate::app::sip::config::{MediaConfig, ServiceEndpoint, SessionTimer, SipConfig};
use crate::app::table::TableLimits;
use crate::config::{self, App, MediaSteer, Settings};
use crate::engine::AdmissionLimits;
use crate::io::media::{MediaPlan, MediaSockets};
use crate::io::steer::{SteerError, Steering};
use crate::io::sys_socket::Buffers;
use crate::types::Nanos;

/// How long after a description a source is believed that it did not name: parties behind NAT.
const LATCH: Nanos = Nanos::from_secs(10);
/// The shortest session timer that is accepted (RFC 4028 section 4), in seconds.
const MIN_SE: u32 = 90;

/// The service addresses: their IPs, and the first endpoint on each, numbered as in the map.
pub(super) fn addresses(settings: &Settings) -> Vec<(IpAddr, u16)> {
    let mut found: Vec<(IpAddr, u16)> = Vec::new();
    for (endpoint, number) in settings.service.iter().zip(0_u16..) {
        if found.iter().all(|(ip, _)| *ip != endpoint.ip()) {
            found.push((endpoint.ip(), number));
        }
    }
    found
}

fn ports(settings: &Settings) -> MediaPorts {
    let (range, addresses) = (settings.media_ports, addresses(settings).len() as u16);
    MediaPorts { first: range.first, last: range.last, slots: settings.slots, addresses }
}

/// Whether media comes here.
fn has_media(settings: &Settings) -> bool {
    settings.app == App::Sip && !settings.media_ports.is_off()
}

/// The media ports of a shard, if the application has any.
fn media_plan(settings: &Settings, shard: u16) -> Option<MediaPlan> {
    let plan = || MediaPlan {
        ports: ports(settings),
        addresses: addresses(settings),
        shards: settings.shards,
        shard,
    };
    has_media(settings).then(plan)
}

/// The program that steers media, if there is media and it is to be steered.
pub(super) fn steering(settings: &Settings) -> Result<Option<Arc<Steering>>, SteerError> {
    let plan = media_plan(settings, 0).filter(|_| settings.media_steer == MediaSteer::On);
    plan.map(|plan| Steering::start(&plan).map(Arc::new)).transpose()
}

/// The media ports of a shard, none of them open.
pub(super) fn media(
    settings: &Settings,
    shard: u16,
    steering: Option<&Arc<Steering>>,
    buffers: Buffers,
) -> Result<MediaSockets, SteerError> {
    match (media_plan(settings, shard), steering) {
        (Some(plan), Some(steering)) => MediaSockets::steered(&plan, steering.clone(), buffers),
        (plan, _) => Ok(MediaSockets::new(plan.as_ref())),
    }
}

/// How many media sockets a node has that holds every service address.
pub(super) fn media_sockets(settings: &Settings) -> u64 {
    let pairs = u64::from(ports(settings).share_per_slot()) * u64::from(settings.slots);
    if !has_media(settings) {
        return 0;
    }
    match settings.media_steer {
        MediaSteer::Off => pairs * 2,
        // A raw socket for each address, one to receive for each family, and one that comes and goes.
        MediaSteer::On => (addresses(settings).len() as u64 + 3) * u64::from(settings.shards),
    }
}

/// The application.
pub(super) fn app(settings: &Settings) -> Sip {
    let addresses = addresses(settings);
    let number = |ip: IpAddr| addresses.iter().position(|(known, _)| *known == ip).unwrap_or(0) as u16;
    let endpoints = settings.service.iter().map(|at| ServiceEndpoint::new(*at, number(at.ip()))).collect();
    let some = |time: Nanos| (time > Nanos::ZERO).then_some(time);
    let session = |time: Nanos| SessionTimer { interval: (time.0 / 1_000_000_000) as u32, min_se: MIN_SE };
    Sip::new(SipConfig {
        media: has_media(settings).then(|| MediaConfig {
            ports: ports(settings),
            ice: match settings.ice {
                config::Ice::Remove => Ice::Remove,
                config::Ice::Pass => Ice::Pass,
                config::Ice::Lite => Ice::Lite,
            },
            latch: LATCH,
            timeout: some(settings.media_timeout),
        }),
        max_call: some(settings.max_call),
        session: some(settings.session_expires).map(session),
        ring_timeout: settings.ring_timeout,
        next_after: settings.sip_next_after,
        max_bytes: settings.sip_max_bytes.0,
        max_headers: settings.sip_max_headers.into(),
        ..SipConfig::new(settings.hash_seed(), settings.slots, endpoints)
    })
}

/// A shard's share of the limits on new calls.
pub(super) fn admission(settings: &Settings) -> AdmissionLimits {
    let Settings { cps, max_calls: calls, source_cps, source_calls, shards, .. } = *settings;
    AdmissionLimits { cps, calls, source_cps, source_calls }.share(shards)
}

/// What a slot's call table may hold.
pub(super) fn limits(settings: &Settings) -> TableLimits {
    // Calls of SIP have timers for every kind of silence.
    let idle = if settings.app == App::Sip { Nanos::MAX } else { settings.call_idle };
    TableLimits { max_calls: settings.max_calls_per_slot, idle }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_numbered_by_their_first_endpoint_and_ports_are_counted_on_all() {
        let service = "127.0.0.9:5060,127.0.0.8:5060,127.0.0.9:5061";
        let pairs = [("SERVICE", service), ("MEDIA_PORTS", "20001-21000"), ("SHARDS", "2"), ("CPS", "9")];
        let echo = Settings::from_pairs(&pairs).unwrap();
        assert!(media_plan(&echo, 0).is_none() && media_sockets(&echo) == 0);
        let sip = Settings::from_pairs(&[&pairs[..], &[("APP", "sip")]].concat()).unwrap();
        let plan = media_plan(&sip, 1).unwrap();
        assert_eq!(plan.addresses, [([127, 0, 0, 9].into(), 0), ([127, 0, 0, 8].into(), 1)]);
        assert_eq!((sip.slots, plan.ports.share_per_slot(), media_sockets(&sip)), (16, 62, 16 * 62 * 2));
        assert_eq!(admission(&sip).cps, 5);
        let steered = Settings::from_pairs(&[&pairs[..], &[("APP", "sip"), ("MEDIA_STEER", "on")]].concat());
        assert_eq!(media_sockets(&steered.unwrap()), 2 * 5);
        let config = app(&sip).config().clone();
        assert_eq!(config.next_after, Nanos::from_secs(4));
        let said = Settings::from_pairs(&[("APP", "sip"), ("SIP_NEXT_AFTER", "500ms")]).unwrap();
        assert_eq!(app(&said).config().next_after, Nanos::from_millis(500));
        assert_eq!(config.endpoints.iter().map(|endpoint| endpoint.address).collect::<Vec<_>>(), [0, 1, 0]);
    }
}
