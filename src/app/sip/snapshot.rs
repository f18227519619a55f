//! A call and a slot's shared state as bytes.

use serde::{Deserialize, Serialize};

use super::health::SlotState;
use super::keeper::Keeper;
use super::routes::RouteCache;
use super::shared::{Lost, Shared};
use super::state::State;
use super::{Call, Kind};
use crate::app::BadSnapshot;
use crate::app::media::PortShare;

/// The form of a proxied call.
const PROXIED: u16 = 2;
/// What a keeper's own form is counted from.
const KEEPER: u16 = 0x8000;
/// The form of the shared state.
const SHARED: u16 = 1;

pub(super) fn write(call: &Call, out: &mut Vec<u8>) -> u16 {
    match &call.0 {
        Kind::Proxied(state) => {
            append(state, out);
            PROXIED
        }
        Kind::Keeper(keeper) => KEEPER | keeper.snapshot(out),
    }
}

pub(super) fn read(version: u16, bytes: &[u8]) -> Result<Call, BadSnapshot> {
    let bad = BadSnapshot { version, bytes: bytes.len() };
    if version & KEEPER != 0 {
        return Keeper::restore(version & !KEEPER, bytes).map(|keeper| Call(Kind::Keeper(Box::new(keeper))));
    }
    match postcard::take_from_bytes::<State>(bytes) {
        Ok((state, [])) if version == PROXIED => Ok(Call(Kind::Proxied(Box::new(state)))),
        _ => Err(bad),
    }
}

/// The shared state: its parts in forms of their own.
#[derive(Serialize, Deserialize)]
struct Parts {
    ports: (u16, Vec<u8>),
    slot: (u16, Vec<u8>),
    lost: Vec<u32>,
}

pub(super) fn write_shared(shared: &Shared, out: &mut Vec<u8>) -> u16 {
    let part = |write: &dyn Fn(&mut Vec<u8>) -> u16| {
        let mut bytes = Vec::new();
        (write(&mut bytes), bytes)
    };
    let ports = part(&|out| shared.ports.snapshot(out));
    let slot = part(&|out| shared.slot.snapshot(out));
    append(&Parts { ports, slot, lost: shared.lost.to_vec() }, out);
    SHARED
}

pub(super) fn read_shared(routes: &RouteCache, version: u16, bytes: &[u8]) -> Result<Shared, BadSnapshot> {
    let bad = BadSnapshot { version, bytes: bytes.len() };
    let parts = match postcard::take_from_bytes::<Parts>(bytes) {
        Ok((parts, [])) if version == SHARED => parts,
        _ => return Err(bad),
    };
    Ok(Shared {
        ports: PortShare::restore(parts.ports.0, &parts.ports.1)?,
        slot: SlotState::restore(routes, parts.slot.0, &parts.slot.1)?,
        lost: <[u32; Lost::COUNT]>::try_from(parts.lost).map_err(|_| bad)?,
    })
}

/// Writes state in postcard's form.
fn append(state: &impl Serialize, out: &mut Vec<u8>) {
    // Writing to memory cannot fail; a state of no bytes would be refused on the other side.
    out.extend_from_slice(&postcard::to_stdvec(state).unwrap_or_default());
}
