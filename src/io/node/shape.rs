//! The cluster as the settings have it, whatever is agreed on later.

use std::net::{IpAddr, SocketAddr};

use crate::config::Settings;
use crate::proto::map::{MapError, MapNode, MapShape};
use crate::types::HostId;

/// The service addresses, numbered as in the map: by their first endpoint.
pub(super) fn service_ips(settings: &Settings) -> Vec<IpAddr> {
    let mut ips: Vec<IpAddr> = Vec::new();
    for ip in settings.service.iter().map(SocketAddr::ip) {
        if !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    ips
}

/// What all maps of the cluster have in common. Endpoints with one IP belong to one service address.
///
/// # Errors
/// See [`MapError`].
pub fn map_shape(settings: &Settings) -> Result<MapShape, MapError> {
    let ips = service_ips(settings);
    let number = |endpoint: &SocketAddr| ips.iter().position(|ip| *ip == endpoint.ip()).unwrap_or(0) as u16;
    let endpoints = settings.service.iter().map(number).collect();
    let nodes = settings.nodes.iter().map(|node| MapNode {
        witness: settings.witness.contains(&node.id),
        ..MapNode::new(node.id, settings.nodes.host_of(node.id).unwrap_or(HostId(0)))
    });
    let Settings { slots, shards, owner, r, commit, .. } = *settings;
    MapShape::new((slots, shards), nodes.collect(), owner, endpoints, r, commit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_of_one_address_share_its_number() {
        let nodes = "1@a=127.0.0.1:7100,2@b=127.0.0.1:7200,3@c=127.0.0.1:7300";
        let service = "127.0.0.9:5060,127.0.0.8:5060,127.0.0.9:5061";
        let pairs = [("NODES", nodes), ("SERVICE", service), ("WITNESS", "3"), ("NODE", "2")];
        let settings = Settings::from_pairs(&pairs).unwrap();
        assert_eq!(service_ips(&settings), [IpAddr::from([127, 0, 0, 9]), IpAddr::from([127, 0, 0, 8])]);
        let shape = map_shape(&settings).unwrap();
        assert_eq!((shape.endpoints.clone(), shape.addresses()), (vec![0, 1, 0], 2));
        assert!(shape.nodes[2].witness && !shape.nodes[0].witness);
    }
}
