//! Templates and their clones: what each datagram of each call looks like. Pure.

use std::net::SocketAddr;

use super::patch::{self, Patch, TOKEN_LEN};
use super::split::{self, Call};
use crate::cli::capture::Datagram;
use crate::types::Nanos;
use crate::wire::echo::ECHO_TRAILER_LEN;
use crate::wire::sip::scan::Message;

/// The largest datagram whose echo still fits into one (`udp(7)`: 65,507 bytes over IPv4).
pub const MAX_PAYLOAD: usize = 65_507 - ECHO_TRAILER_LEN;

/// A call's next datagram.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// Since the call's first datagram.
    pub(crate) at: Nanos,
    /// Which of the template's flows.
    pub(crate) flow: u16,
    /// Which of the template's lanes.
    pub(crate) lane: u16,
    bytes: Vec<u8>,
    patches: Box<[Patch]>,
}

/// A call of a capture, ready to be cloned.
#[derive(Clone, Debug)]
pub struct Template {
    name: String,
    pub(crate) steps: Vec<Step>,
    flows: Vec<(SocketAddr, SocketAddr)>,
    lanes: usize,
    ssrcs: Vec<u32>,
}

/// What the engine takes for one call (with `TANDEM_KEY=auto`).
#[derive(Clone, PartialEq, Eq)]
enum LaneKey {
    CallId,
    Ssrc(u32),
    Source(SocketAddr),
}

/// All calls of all captures. Call number n of a run is a clone of template n modulo their number.
#[derive(Clone, Debug)]
pub struct Plan {
    templates: Vec<Template>,
    seed: u64,
    ssrcs: u64,
    skipped: usize,
}

/// Captures without a single datagram that can be sent.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nothing to replay: the captures hold no UDP datagram of at most {MAX_PAYLOAD} bytes")]
pub struct NothingToReplay;

impl Plan {
    /// Plans the replay of these captures. Runs with different seeds have different Call-IDs and SSRCs.
    ///
    /// # Errors
    /// When there is nothing to send.
    pub fn new(captures: &[Vec<Datagram>], seed: u64) -> Result<Plan, NothingToReplay> {
        let fits = |datagram: &&Datagram| datagram.payload.len() <= MAX_PAYLOAD;
        let (mut templates, mut skipped) = (Vec::new(), 0);
        for capture in captures {
            let kept: Vec<Datagram> = capture.iter().filter(fits).cloned().collect();
            skipped += capture.len() - kept.len();
            templates.extend(split::split(&kept).into_iter().map(Template::new));
        }
        let ssrcs = templates.iter().map(|template| template.ssrcs.len() as u64).max().unwrap_or(0);
        if templates.is_empty() { Err(NothingToReplay) } else { Ok(Plan { templates, seed, ssrcs, skipped }) }
    }

    /// The calls found.
    pub fn templates(&self) -> &[Template] {
        &self.templates
    }

    /// Datagrams that are too long to be echoed and were left out.
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// The template of call `number`, and its index.
    pub fn template(&self, number: u64) -> (usize, &Template) {
        let index = (number % self.templates.len() as u64) as usize;
        (index, &self.templates[index])
    }

    /// Writes datagram `step` of call `number` into `bytes`, replacing what is there; `false` past its last.
    pub fn write(&self, number: u64, step: usize, bytes: &mut Vec<u8>) -> bool {
        let Some(step) = self.template(number).1.steps.get(step) else { return false };
        bytes.clear();
        bytes.extend_from_slice(&step.bytes);
        for patch in &step.patches {
            match *patch {
                Patch::Token { at } => overwrite(bytes, at, &token(mix64(number ^ self.seed))),
                Patch::Ssrc { at, index } => overwrite(bytes, at, &self.ssrc(number, index).to_be_bytes()),
            }
        }
        true
    }

    /// A number no other SSRC of this run has, until 2^32 are used up.
    fn ssrc(&self, number: u64, index: u32) -> u32 {
        let serial = number.wrapping_mul(self.ssrcs).wrapping_add(u64::from(index));
        mix32(serial as u32 ^ self.seed as u32 ^ (self.seed >> 32) as u32)
    }
}

impl Template {
    fn new(call: Call) -> Template {
        let first = call.datagrams.first().map_or(Nanos::ZERO, |datagram| datagram.time);
        let mut template =
            Template { name: call.name, steps: Vec::new(), flows: Vec::new(), lanes: 0, ssrcs: Vec::new() };
        let mut lanes = Vec::new();
        for datagram in &call.datagrams {
            let (source, destination) = (datagram.source, datagram.destination);
            let flow = number(&mut template.flows, (source, destination));
            let message = Message::parse(&datagram.payload);
            let id = message.as_ref().and_then(Message::call_id).filter(|id| Some(*id) == call.id.as_deref());
            let ssrc = split::ssrc(&datagram.payload);
            let lane = match (id, ssrc) {
                (Some(_), _) => LaneKey::CallId,
                (None, Some(ssrc)) => LaneKey::Ssrc(ssrc),
                (None, None) => LaneKey::Source(source),
            };
            let lane = number(&mut lanes, lane);
            let (bytes, patches) = match (message, id) {
                (Some(message), Some(id)) => patch::sip(&datagram.payload, &message, id),
                _ => (datagram.payload.to_vec(), template.ssrc_patches(&datagram.payload)),
            };
            let at = datagram.time.since(first);
            template.steps.push(Step { at, flow, lane, bytes, patches: patches.into() });
        }
        template.lanes = lanes.len();
        template
    }

    fn ssrc_patches(&mut self, bytes: &[u8]) -> Vec<Patch> {
        let mut patches = Vec::new();
        for at in patch::ssrcs(bytes) {
            let Some(ssrc) = bytes.get(at..).and_then(|rest| rest.first_chunk()) else { continue };
            let ssrc = u32::from_be_bytes(*ssrc);
            // 0 names nobody (feedback without a media source).
            if ssrc != 0 {
                let index = u32::from(number(&mut self.ssrcs, ssrc));
                patches.push(Patch::Ssrc { at: at as u32, index });
            }
        }
        patches
    }

    /// Its Call-ID, or its two addresses.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many datagrams it has, of both directions.
    pub fn datagrams(&self) -> usize {
        self.steps.len()
    }

    /// From the first to the last datagram.
    pub fn length(&self) -> Nanos {
        self.steps.last().map_or(Nanos::ZERO, |step| step.at)
    }

    /// Its flows: source and destination in the capture.
    pub fn flows(&self) -> &[(SocketAddr, SocketAddr)] {
        &self.flows
    }

    /// How many calls the engine sees in it: one for its SIP messages, one for each RTP stream, one for each
    /// source of anything else.
    pub fn lanes(&self) -> usize {
        self.lanes
    }
}

/// The number of `item` in `list`, to which it is added if need be; what does not fit shares the last number.
fn number<T: PartialEq>(list: &mut Vec<T>, item: T) -> u16 {
    let known = list.iter().position(|known| *known == item);
    let index = known.unwrap_or_else(|| {
        if list.len() < usize::from(u16::MAX) {
            list.push(item);
        }
        list.len() - 1
    });
    index as u16
}

fn overwrite(bytes: &mut [u8], at: u32, fresh: &[u8]) {
    bytes[at as usize..][..fresh.len()].copy_from_slice(fresh);
}

/// 65 bits in 13 characters that are allowed in a Call-ID (RFC 3261 section 25.1, `word`).
fn token(value: u64) -> [u8; TOKEN_LEN] {
    const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";
    std::array::from_fn(|i| DIGITS[(value >> (5 * (TOKEN_LEN - 1 - i)) & 31) as usize])
}

/// Mixes 64 bits one to one (the finalizer of splitmix64).
fn mix64(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// Mixes 32 bits one to one (the finalizer of MurmurHash3).
pub(crate) fn mix32(value: u32) -> u32 {
    let value = (value ^ value >> 16).wrapping_mul(0x85eb_ca6b);
    let value = (value ^ value >> 13).wrapping_mul(0xc2b2_ae35);
    value ^ value >> 16
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{NothingToReplay, Plan};
    use crate::cli::capture::Datagram;
    use crate::types::Nanos;
    use crate::wire::rtp::{Rtcp, Rtp};
    use crate::wire::sip::scan::Message;

    fn datagram(ms: u64, source: &str, destination: &str, payload: Vec<u8>) -> Datagram {
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        let (time, payload) = (Nanos::from_millis(ms), Bytes::from(payload));
        Datagram { time, frame: 1, source, destination, payload, cut: false }
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    /// INVITE, RTP from 11 to 22 and back, a sender report of 11 about 22, something else.
    fn capture(id: &str) -> Vec<Datagram> {
        let sdp = format!("v=0\r\no={id}\r\nc=IN IP4 10.0.0.1\r\nm=audio 4000 RTP/AVP 0\r\n");
        let length = sdp.len();
        let invite =
            format!("INVITE sip:b SIP/2.0\r\nCall-ID: {id}\r\nContent-Length: {length}\r\n\r\n{sdp}");
        let report = words(&[0x81c8_000c, 11, 0, 0, 0, 0, 0, 22, 0, 0, 0, 0, 0]);
        let (caller, callee) = ("10.0.0.1:4000", "10.0.0.2:4000");
        vec![
            datagram(10, "10.0.0.1:5060", "10.0.0.2:5060", invite.into_bytes()),
            datagram(20, caller, callee, words(&[0x8000_0001, 1, 11, 0])),
            datagram(30, callee, caller, words(&[0x8000_0001, 1, 22, 0])),
            datagram(40, "10.0.0.1:4001", "10.0.0.2:4001", report),
            datagram(50, caller, callee, b"keep alive".to_vec()),
        ]
    }

    fn clone(plan: &Plan, number: u64) -> Vec<Vec<u8>> {
        let mut bytes = Vec::new();
        (0..).take_while(|step| plan.write(number, *step, &mut bytes)).count();
        (0..5).map(|step| (plan.write(number, step, &mut bytes), bytes.clone()).1).collect()
    }

    #[test]
    fn clones_have_call_ids_of_their_own_and_right_lengths() {
        for id in ["4711-abcdefgh@host.example.org", "short@x.y", "a"] {
            let plan = Plan::new(&[capture(id)], 7).unwrap();
            let mut seen = std::collections::HashSet::new();
            for number in 0..100 {
                let bytes = clone(&plan, number).swap_remove(0);
                let message = Message::parse(&bytes).unwrap();
                let fresh = message.call_id().unwrap();
                assert_eq!(message.content_length(), Some(message.body().len()));
                assert_eq!(fresh.len(), id.len().max(13));
                assert_ne!(fresh, id.as_bytes());
                let announced = [b"o=", fresh, b"\r\n"].concat();
                let found = memchr::memmem::find(message.body(), &announced).is_some();
                assert_eq!(found, id.len() >= 8, "a telling Call-ID is replaced in the body too");
                assert!(seen.insert(fresh.to_vec()), "used twice");
            }
        }
    }

    #[test]
    fn clones_have_ssrcs_of_their_own_that_agree_between_rtp_and_rtcp() {
        let plan = Plan::new(&[capture("a-long-call-id@host")], 7).unwrap();
        let mut seen = std::collections::HashSet::new();
        for number in 0..1000 {
            let datagrams = clone(&plan, number);
            let one = Rtp::new(&datagrams[1]).unwrap().ssrc();
            let two = Rtp::new(&datagrams[2]).unwrap().ssrc();
            assert!(seen.insert(one) && seen.insert(two), "used twice");
            assert_eq!(Rtcp::new(&datagrams[3]).unwrap().sender(), one);
            assert_eq!(datagrams[3][28..32], two.to_be_bytes());
            assert_eq!(datagrams[4], b"keep alive");
        }
    }

    #[test]
    fn other_seeds_give_other_calls() {
        let plan = |seed| clone(&Plan::new(&[capture("a-long-call-id@host")], seed).unwrap(), 0);
        assert_eq!(plan(1), plan(1));
        assert_ne!(plan(1)[0], plan(2)[0]);
        assert_ne!(plan(1)[1], plan(2)[1]);
    }

    #[test]
    fn a_template_knows_its_times_flows_and_lanes() {
        let plan = Plan::new(&[capture("a-long-call-id@host"), Vec::new()], 7).unwrap();
        let [template] = plan.templates() else { panic!("one call: {plan:?}") };
        assert_eq!(template.length(), Nanos::from_millis(40));
        assert_eq!((template.flows().len(), template.lanes(), template.datagrams()), (4, 4, 5));
        assert_eq!(template.steps.iter().map(|step| step.lane).collect::<Vec<_>>(), [0, 1, 2, 1, 3]);
    }

    #[test]
    fn nothing_and_too_long_datagrams() {
        assert_eq!(Plan::new(&[Vec::new()], 7).unwrap_err(), NothingToReplay);
        let long = datagram(0, "1.1.1.1:1", "1.1.1.2:2", vec![0; 65_500]);
        let short = datagram(0, "1.1.1.1:1", "1.1.1.2:2", vec![0; 65_471]);
        assert_eq!(Plan::new(&[vec![long, short]], 7).unwrap().skipped(), 1);
    }
}
