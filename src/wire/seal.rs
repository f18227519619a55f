//! Sealing of datagrams between nodes: AES-128-GCM under keys derived from the cluster key.
//!
//! # Why nonces never repeat
//!
//! Each sending thread has its own key, HKDF-SHA256 (RFC 5869) of the cluster key with the sender's node, boot
//! and channel and the datagram's epoch. A boot is never used twice by a node, a channel belongs to one thread
//! of that life, and that thread's counter only grows: so no two datagrams share key and nonce.
//! An epoch is 2^23 datagrams, after which a fresh key is derived from the same inputs: the limit RFC 9001
//! (section 6.6) sets for AES-128-GCM, whatever the datagrams' size.
//!
//! # What is refused
//!
//! An [`Opener`] takes each (node, boot, channel, counter) once, and no earlier boot of a node once it has
//! opened a datagram of a later one. Nothing is kept, allocated or moved on before the tag has been checked, so
//! what a stranger sends costs one key derivation and one decryption at most. A datagram with `dst_boot` 0 is
//! accepted by any receiver, also by one that has just started and forgotten what it saw: only greetings,
//! queries and multicast may use it, and what they carry must bear being repeated.

use super::datagram::{
    Fields, HEADER_LEN, Kind, OPERATOR_TOOL, OVERHEAD, OpenError, SUPERVISOR, TAG_LEN, VERSION, destination,
};
use super::replay_window::ReplayWindow;
use crate::types::{Boot, NodeId, NodeSet};
use ring::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey};
use ring::hkdf;

/// The least bytes of key material a cluster key is made from.
pub const MIN_KEY_BYTES: usize = 16;
/// The most bytes of key material read.
pub const MAX_KEY_BYTES: usize = 4096;

/// Datagrams sealed under one key before the next is derived (RFC 9001, section 6.6).
const EPOCH_BITS: u32 = 23;
/// Lives of operator's tools remembered at once by one receiver: tools come and go and share one node id.
const TOOL_LANES: usize = 8;
/// Bytes of the public key used where there is no cluster key. It keeps nobody out: it only makes a cluster on
/// loopback run the same code as any other.
const LOOPBACK_KEY: &[u8] = b"tandem: loopback only, keeps nobody out";

/// Key material that cannot make a cluster key.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadKey {
    /// Too little of it.
    #[error("a cluster key needs at least {MIN_KEY_BYTES} bytes, this one has {0}")]
    TooShort(usize),
    /// Too much of it.
    #[error("a cluster key has at most {MAX_KEY_BYTES} bytes, this one has {0}")]
    TooLong(usize),
    /// Not hexadecimal.
    #[error("a cluster key is written as pairs of hexadecimal digits (as `openssl rand -hex 32` prints it)")]
    NotHex,
}

/// The secret that all nodes of a cluster share.
#[derive(Clone)]
pub struct ClusterKey {
    root: hkdf::Prk,
}

impl std::fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClusterKey(secret)")
    }
}

impl ClusterKey {
    /// From [`MIN_KEY_BYTES`] to [`MAX_KEY_BYTES`] of secret material of any form.
    pub fn from_bytes(material: &[u8]) -> Result<ClusterKey, BadKey> {
        match material.len() {
            n if n < MIN_KEY_BYTES => Err(BadKey::TooShort(n)),
            n if n > MAX_KEY_BYTES => Err(BadKey::TooLong(n)),
            _ => Ok(ClusterKey::extract(material)),
        }
    }

    /// From hexadecimal digits, white space around them ignored.
    pub fn from_hex(digits: &str) -> Result<ClusterKey, BadKey> {
        let digits = digits.trim().as_bytes();
        if digits.len() > 2 * MAX_KEY_BYTES {
            return Err(BadKey::TooLong(digits.len() / 2));
        }
        if !digits.len().is_multiple_of(2) {
            return Err(BadKey::NotHex);
        }
        let digit = |byte: u8| char::from(byte).to_digit(16).ok_or(BadKey::NotHex);
        let bytes: Result<Vec<u8>, BadKey> =
            digits.chunks_exact(2).map(|pair| Ok((digit(pair[0])? * 16 + digit(pair[1])?) as u8)).collect();
        ClusterKey::from_bytes(&bytes?)
    }

    /// The well-known key of clusters without one, which run on loopback only. It keeps nobody out.
    pub fn loopback() -> ClusterKey {
        ClusterKey::extract(LOOPBACK_KEY)
    }

    /// The seed under which the cluster hashes call ids, the same on every node with this key and these
    /// cluster-wide `settings`: a stranger cannot aim calls at one slot.
    pub fn hash_seed(&self, settings: &[u8]) -> u64 {
        let mut seed = [0u8; 8];
        self.expand(&[b"tandem hash seed", settings], SeedLen, |okm| okm.fill(&mut seed));
        u64::from_le_bytes(seed)
    }

    fn extract(material: &[u8]) -> ClusterKey {
        ClusterKey { root: hkdf::Salt::new(hkdf::HKDF_SHA256, b"tandem cluster key").extract(material) }
    }

    /// HKDF-Expand. It fails only for outputs longer than 255 hashes; ours are 8 and 16 bytes.
    fn expand<L: hkdf::KeyType, T>(
        &self,
        info: &[&[u8]],
        len: L,
        take: impl FnOnce(hkdf::Okm<'_, L>) -> Result<T, ring::error::Unspecified>,
    ) -> T {
        self.root.expand(info, len).and_then(take).expect("HKDF output of at most 32 bytes")
    }

    fn datagram_key(&self, from: NodeId, boot: Boot, channel: u16, epoch: u64) -> LessSafeKey {
        let info: [&[u8]; 5] = [
            b"tandem v1",
            &from.0.to_le_bytes(),
            &boot.0.to_le_bytes(),
            &channel.to_le_bytes(),
            &epoch.to_le_bytes(),
        ];
        self.expand(&info, &AES_128_GCM, |okm| Ok(LessSafeKey::new(UnboundKey::from(okm))))
    }
}

/// The length of a hash seed, as ring wants to be told.
struct SeedLen;

impl hkdf::KeyType for SeedLen {
    fn len(&self) -> usize {
        8
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0u8; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

const fn epoch_of(counter: u64) -> u64 {
    counter >> EPOCH_BITS
}

/// Seals the datagrams of one sending thread. There must be only one for a (node, boot, channel).
pub struct Sealer {
    cluster: ClusterKey,
    node: NodeId,
    boot: Boot,
    channel: u16,
    version: u8,
    counter: u64,
    epoch: u64,
    key: LessSafeKey,
}

impl Sealer {
    /// For the thread `channel` (0: control, 1 + n: shard n) of this life of `node`, or for the supervisor that tells
    /// of that life's end ([`SUPERVISOR`]).
    pub fn new(cluster: &ClusterKey, node: NodeId, boot: Boot, channel: u16) -> Sealer {
        let key = cluster.datagram_key(node, boot, channel, 0);
        Sealer { cluster: cluster.clone(), node, boot, channel, version: VERSION, counter: 0, epoch: 0, key }
    }

    /// Seals in place. `datagram` is the whole datagram as it will be sent: [`HEADER_LEN`] bytes that are
    /// overwritten, the plaintext, and [`TAG_LEN`] bytes that are overwritten. `dst_boot` is
    /// [`destination`] of the receiver's boot, or 0 where it is not known. Does not allocate.
    ///
    /// # Panics
    /// If `datagram` is shorter than [`OVERHEAD`].
    pub fn seal(&mut self, kind: Kind, dst_boot: u32, datagram: &mut [u8]) {
        assert!(
            datagram.len() >= OVERHEAD,
            "a datagram of {} bytes has no room to be sealed",
            datagram.len()
        );
        self.counter += 1;
        if epoch_of(self.counter) != self.epoch {
            self.epoch = epoch_of(self.counter);
            self.key = self.cluster.datagram_key(self.node, self.boot, self.channel, self.epoch);
        }
        let header = Fields {
            version: self.version,
            kind,
            from: self.node,
            channel: self.channel,
            dst_boot,
            boot: self.boot,
            counter: self.counter,
        }
        .to_bytes();
        let (head, rest) = datagram.split_at_mut(HEADER_LEN);
        let (plaintext, tag_room) = rest.split_at_mut(rest.len() - TAG_LEN);
        head.copy_from_slice(&header);
        let tag: Tag = self
            .key
            .seal_in_place_separate_tag(nonce(self.counter), Aad::from(header), plaintext)
            .expect("AES-GCM takes plaintexts up to 2^36 bytes");
        tag_room.copy_from_slice(tag.as_ref());
    }
}

/// A datagram that was opened: authentic, fresh, and for this life of this node.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened<'a> {
    /// Its sender: a peer, or [`OPERATOR_TOOL`].
    pub from: NodeId,
    /// The sender's boot.
    pub boot: Boot,
    /// The sender's wire version, at most one from ours.
    pub version: u8,
    /// Who the plaintext is for.
    pub kind: Kind,
    /// The sending thread: 0 is control, 1 + n is shard n; or [`SUPERVISOR`].
    pub channel: u16,
    /// Which life of this node the sender meant; 0 if it did not know.
    pub dst_boot: u32,
    /// The frames.
    pub plaintext: &'a [u8],
}

/// What an opener remembers of one sending thread in one life.
struct Lane {
    boot: Boot,
    channel: u16,
    /// The keys of the newest two epochs, each at its epoch modulo 2.
    keys: [Option<(u64, LessSafeKey)>; 2],
    window: ReplayWindow,
}

impl Lane {
    fn key(&self, epoch: u64) -> Option<&LessSafeKey> {
        self.keys[(epoch & 1) as usize].as_ref().filter(|(e, _)| *e == epoch).map(|(_, key)| key)
    }

    fn keep(&mut self, epoch: u64, key: LessSafeKey) {
        let place = &mut self.keys[(epoch & 1) as usize];
        if place.as_ref().is_none_or(|(kept, _)| *kept < epoch) {
            *place = Some((epoch, key));
        }
    }
}

/// Opens the datagrams that one thread receives.
pub struct Opener {
    cluster: ClusterKey,
    own_destination: u32,
    peers: NodeSet,
    /// By node id. Filled only by authentic datagrams, so as many lanes as the peers have threads.
    lanes: Vec<Vec<Lane>>,
}

impl Opener {
    /// For a thread of `node` in its life `boot`, hearing `peers` and the operator's tools. (A tool makes its
    /// own with `node` [`OPERATOR_TOOL`].)
    pub fn new(cluster: &ClusterKey, node: NodeId, boot: Boot, mut peers: NodeSet) -> Opener {
        peers.insert(OPERATOR_TOOL);
        peers.remove(node);
        let lanes = (0..=NodeId::MAX).map(|_| Vec::new()).collect();
        Opener { cluster: cluster.clone(), own_destination: destination(boot), peers, lanes }
    }

    /// Opens a datagram in place. Never panics, whatever the bytes.
    pub fn open<'a>(&mut self, datagram: &'a mut [u8]) -> Result<Opened<'a>, OpenError> {
        let fields = Fields::read(datagram)?;
        let Fields { version, kind, from, channel, dst_boot, boot, counter } = fields;
        if !self.peers.contains(from) {
            return Err(OpenError::UnknownNode);
        }
        if from == OPERATOR_TOOL && kind != Kind::Control {
            return Err(OpenError::Kind);
        }
        if dst_boot != 0 && dst_boot != self.own_destination {
            return Err(OpenError::WrongDestination);
        }
        let lanes = &mut self.lanes[usize::from(from.0)];
        if from != OPERATOR_TOOL && lanes.iter().any(|lane| lane.boot > boot) {
            return Err(OpenError::OldBoot);
        }
        if channel == SUPERVISOR && lanes.iter().all(|lane| lane.boot != boot) {
            return Err(OpenError::UnknownLife);
        }
        let known = lanes.iter().position(|lane| lane.boot == boot && lane.channel == channel);
        if counter == 0 || known.is_some_and(|i| !lanes[i].window.is_fresh(counter)) {
            return Err(OpenError::Replayed);
        }

        let epoch = epoch_of(counter);
        let kept = known.and_then(|i| lanes[i].key(epoch));
        let derived = kept.is_none().then(|| self.cluster.datagram_key(from, boot, channel, epoch));
        let key = kept.or(derived.as_ref()).expect("derived where not kept");
        let (_, sealed) = datagram.split_at_mut(HEADER_LEN);
        let plaintext = key
            .open_in_place(nonce(counter), Aad::from(fields.to_bytes()), sealed)
            .map_err(|_| OpenError::Forged)?;

        // Authentic: only now may anything that is kept change.
        let lane = match known {
            Some(i) => &mut lanes[i],
            None => new_lane(lanes, from, boot, channel),
        };
        lane.window.accept(counter);
        if let Some(key) = derived {
            lane.keep(epoch, key);
        }
        Ok(Opened { from, boot, version, kind, channel, dst_boot, plaintext })
    }
}

/// Makes room for a sending thread not heard before: a node's earlier lives are forgotten, the operator's tools
/// (many lives at once) push out the one that came first.
fn new_lane(lanes: &mut Vec<Lane>, from: NodeId, boot: Boot, channel: u16) -> &mut Lane {
    if from != OPERATOR_TOOL {
        lanes.retain(|lane| lane.boot == boot);
    } else if lanes.len() >= TOOL_LANES {
        lanes.remove(0);
    }
    lanes.push(Lane { boot, channel, keys: [None, None], window: ReplayWindow::default() });
    lanes.last_mut().expect("just pushed")
}

#[cfg(test)]
mod tests {
    use super::super::replay_window::WINDOW;
    use super::*;
    use crate::wire::datagram::{NEWEST_VERSION, OLDEST_VERSION};
    use proptest::prelude::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const B_BOOT: Boot = Boot(0x7777_0000_1234);

    fn key() -> ClusterKey {
        ClusterKey::from_bytes(b"0123456789abcdef").unwrap()
    }

    fn peers() -> NodeSet {
        NodeSet(0b110)
    }

    fn sealer(boot: u64) -> Sealer {
        Sealer::new(&key(), A, Boot(boot), 1)
    }

    fn opener() -> Opener {
        Opener::new(&key(), B, B_BOOT, peers())
    }

    fn sealed(sealer: &mut Sealer, dst_boot: u32, plaintext: &[u8]) -> Vec<u8> {
        let mut datagram = vec![0; plaintext.len() + OVERHEAD];
        datagram[HEADER_LEN..HEADER_LEN + plaintext.len()].copy_from_slice(plaintext);
        sealer.seal(Kind::Shard, dst_boot, &mut datagram);
        datagram
    }

    fn error(opener: &mut Opener, datagram: &[u8]) -> Option<OpenError> {
        opener.open(&mut datagram.to_vec()).err()
    }

    #[test]
    fn round_trip() {
        let (mut sealer, mut opener) = (sealer(5), opener());
        for plaintext in [&b""[..], b"x", &[7; 1400], &[9; 65_000]] {
            let mut datagram = sealed(&mut sealer, destination(B_BOOT), plaintext);
            assert!(plaintext.len() < 16 || !datagram.windows(16).any(|w| w == &plaintext[..16]));
            let opened = opener.open(&mut datagram).unwrap();
            assert_eq!(
                opened,
                Opened {
                    from: A,
                    boot: Boot(5),
                    version: VERSION,
                    kind: Kind::Shard,
                    channel: 1,
                    dst_boot: destination(B_BOOT),
                    plaintext
                }
            );
        }
    }

    /// What a newer version may do without asking: new frames, and bytes behind what control frames have now.
    #[test]
    fn nodes_one_wire_version_apart_interoperate() {
        use crate::wire::beat::{Beat, ControlFrame, ControlFrames, write_beat};
        use crate::wire::frame::{Ack, Frame, Frames};
        use zerocopy::FromZeros;

        let (beat, ack) = (Beat { sequence: 7.into(), ..Beat::new_zeroed() }, Ack::new_zeroed());
        let mut control = Vec::new();
        write_beat(&mut control, beat, [3]);
        control[1] += 5;
        control.extend_from_slice(b"moree");
        control.extend_from_slice(&[200, 3, 0, 1, 2, 3]);
        write_beat(&mut control, beat, []);
        let mut shard = vec![201, 2, 0, 8, 8];
        Frame::Ack(&ack).write(&mut shard);

        for version in [OLDEST_VERSION, NEWEST_VERSION] {
            let (mut sealer, mut opener) = (sealer(5), opener());
            sealer.version = version;
            let mut datagram = sealed(&mut sealer, destination(B_BOOT), &control);
            let opened = opener.open(&mut datagram).unwrap();
            assert_eq!(opened.version, version);
            let heard: Vec<_> = ControlFrames::new(opened.plaintext).map(Result::unwrap).collect();
            assert!(
                matches!(heard[..], [ControlFrame::Beat(b, [stall]), ControlFrame::Beat(..)] if *b == Beat { workers: 1.into(), ..beat } && stall.get() == 3),
                "{heard:?}"
            );
            let mut datagram = sealed(&mut sealer, destination(B_BOOT), &shard);
            let opened = opener.open(&mut datagram).unwrap();
            assert_eq!(Frames::new(opened.plaintext).collect::<Vec<_>>(), [Ok(Frame::Ack(&ack))]);
        }
        let mut sealer = sealer(5);
        sealer.version = NEWEST_VERSION + 1;
        let far = sealed(&mut sealer, destination(B_BOOT), &control);
        assert_eq!(error(&mut opener(), &far), Some(OpenError::Version));
    }

    #[test]
    fn every_bit_flip_is_refused() {
        let mut sealer = sealer(5);
        let datagram = sealed(&mut sealer, destination(B_BOOT), b"some frames");
        let mut opener = opener();
        for bit in 0..datagram.len() * 8 {
            let mut flipped = datagram.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(error(&mut opener, &flipped).is_some(), "bit {bit}");
        }
        assert_eq!(error(&mut opener, &datagram), None, "the refused ones left no trace");
    }

    #[test]
    fn truncated_is_refused() {
        let datagram = sealed(&mut sealer(5), 0, b"some frames");
        for len in 0..datagram.len() {
            let expected = if len < OVERHEAD { OpenError::Short } else { OpenError::Forged };
            assert_eq!(error(&mut opener(), &datagram[..len]), Some(expected), "{len} bytes");
        }
    }

    #[test]
    fn each_counter_is_taken_once_in_any_order() {
        let (mut sealer, mut opener) = (sealer(5), opener());
        let datagrams: Vec<_> = (0..WINDOW + 1).map(|n| sealed(&mut sealer, 0, &n.to_le_bytes())).collect();
        assert_eq!(error(&mut opener, &datagrams[10]), None);
        assert_eq!(error(&mut opener, &datagrams[3]), None, "late is not lost");
        assert_eq!(error(&mut opener, &datagrams[10]), Some(OpenError::Replayed));
        assert_eq!(error(&mut opener, &datagrams[3]), Some(OpenError::Replayed));
        assert_eq!(error(&mut opener, datagrams.last().unwrap()), None);
        assert_eq!(error(&mut opener, &datagrams[0]), Some(OpenError::Replayed), "too late to tell");
        assert_eq!(error(&mut opener, &datagrams[1]), None);
    }

    #[test]
    fn a_later_life_replaces_an_earlier_one_once_authentic() {
        let mut opener = opener();
        let (mut first, mut second) = (sealer(5), sealer(6));
        let early = sealed(&mut first, 0, b"1");
        assert_eq!(error(&mut opener, &early), None);
        let mut forged = early.clone();
        forged[10] = 9;
        assert_eq!(error(&mut opener, &forged), Some(OpenError::Forged));
        assert_eq!(error(&mut opener, &sealed(&mut first, 0, b"2")), None, "a forged boot replaces nothing");
        assert_eq!(error(&mut opener, &sealed(&mut second, 0, b"1")), None, "counters begin again");
        assert_eq!(error(&mut opener, &sealed(&mut first, 0, b"3")), Some(OpenError::OldBoot));
        let mut other_thread = Sealer::new(&key(), A, Boot(5), 0);
        assert_eq!(error(&mut opener, &sealed(&mut other_thread, 0, b"4")), Some(OpenError::OldBoot));
    }

    #[test]
    fn a_supervisor_tells_of_the_life_that_is_over_and_of_no_other() {
        let mut opener = opener();
        let (mut engine, mut next) = (sealer(5), sealer(6));
        let mut supervisor = Sealer::new(&key(), A, Boot(5), SUPERVISOR);
        assert_eq!(error(&mut opener, &sealed(&mut engine, 0, b"1")), None);
        let notice = sealed(&mut supervisor, 0, b"over");
        assert_ne!(
            notice[HEADER_LEN..],
            sealed(&mut sealer(5), 0, b"over")[HEADER_LEN..],
            "a key of its own"
        );
        assert_eq!(error(&mut opener, &notice), None);
        assert_eq!(error(&mut opener, &notice), Some(OpenError::Replayed));
        assert_eq!(
            error(&mut opener, &sealed(&mut engine, 0, b"2")),
            None,
            "what was on its way still opens"
        );
        assert_eq!(error(&mut opener, &sealed(&mut next, 0, b"1")), None, "nor is the next life kept out");
        assert_eq!(error(&mut opener, &sealed(&mut supervisor, 0, b"over")), Some(OpenError::OldBoot));
        let mut not_started = Sealer::new(&key(), A, Boot(7), SUPERVISOR);
        let notice = sealed(&mut not_started, 0, b"over");
        assert_eq!(error(&mut opener, &notice), Some(OpenError::UnknownLife));
        assert_eq!(error(&mut opener, &sealed(&mut next, 0, b"2")), None, "the one that runs is still heard");
    }

    #[test]
    fn strangers_are_refused() {
        let mut opener = opener();
        let other = ClusterKey::from_bytes(b"another key, as long").unwrap();
        let wrong_key = sealed(&mut Sealer::new(&other, A, Boot(5), 1), 0, b"x");
        assert_eq!(error(&mut opener, &wrong_key), Some(OpenError::Forged));
        for node in [0, 2, 3, 64, 999] {
            let stranger = sealed(&mut Sealer::new(&key(), NodeId(node), Boot(5), 1), 0, b"x");
            assert_eq!(error(&mut opener, &stranger), Some(OpenError::UnknownNode), "node {node}");
        }
        let elsewhere = sealed(&mut sealer(5), destination(Boot(B_BOOT.0 - 1)), b"x");
        assert_eq!(error(&mut opener, &elsewhere), Some(OpenError::WrongDestination));
    }

    #[test]
    fn tools_may_ask_and_do_not_shut_each_other_out() {
        let mut opener = opener();
        let mut tools: Vec<_> = (1..=8).map(|b| Sealer::new(&key(), OPERATOR_TOOL, Boot(b), 0)).collect();
        for round in 0..2 {
            for tool in tools.iter_mut().rev() {
                let mut query = vec![0; OVERHEAD];
                tool.seal(Kind::Control, 0, &mut query);
                assert_eq!(error(&mut opener, &query), None, "round {round}");
                assert_eq!(error(&mut opener, &query), Some(OpenError::Replayed));
            }
        }
        for boot in 9..100 {
            let mut query = vec![0; OVERHEAD];
            Sealer::new(&key(), OPERATOR_TOOL, Boot(boot), 0).seal(Kind::Control, 0, &mut query);
            assert_eq!(error(&mut opener, &query), None);
        }
        assert_eq!(opener.lanes[usize::from(OPERATOR_TOOL.0)].len(), TOOL_LANES);
        assert_eq!(error(&mut opener, &sealed(&mut tools[0], 0, b"frames")), Some(OpenError::Kind));
    }

    #[test]
    fn keys_change_with_the_epoch_on_both_sides() {
        let (mut sealer, mut opener) = (sealer(5), opener());
        sealer.counter = (1 << EPOCH_BITS) - 3;
        let datagrams: Vec<_> = (0..6).map(|_| sealed(&mut sealer, 0, b"x")).collect();
        assert_eq!(sealer.epoch, 1);
        for i in [0, 4, 1, 5, 2, 3] {
            assert_eq!(error(&mut opener, &datagrams[i]), None, "datagram {i} across the boundary");
        }
        assert_ne!(datagrams[0][HEADER_LEN..], datagrams[5][HEADER_LEN..]);
    }

    #[test]
    fn keys_are_read_from_hex() {
        let material: Vec<u8> = (0..16).collect();
        let (from_hex, from_bytes) = (
            ClusterKey::from_hex(" 000102030405060708090a0b0C0D0E0F\n").unwrap(),
            ClusterKey::from_bytes(&material).unwrap(),
        );
        assert_eq!(from_hex.hash_seed(b"s"), from_bytes.hash_seed(b"s"));
        assert_ne!(from_hex.hash_seed(b"s"), from_hex.hash_seed(b"t"));
        assert_ne!(from_hex.hash_seed(b"s"), key().hash_seed(b"s"));
        assert_eq!(ClusterKey::from_hex("00").err(), Some(BadKey::TooShort(1)));
        assert_eq!(ClusterKey::from_hex("").err(), Some(BadKey::TooShort(0)));
        assert_eq!(ClusterKey::from_hex("000").err(), Some(BadKey::NotHex));
        assert_eq!(ClusterKey::from_hex("0g").err(), Some(BadKey::NotHex));
        assert_eq!(ClusterKey::from_bytes(&[0; 5000]).err(), Some(BadKey::TooLong(5000)));
        assert_eq!(format!("{:?}", key()), "ClusterKey(secret)");
    }

    proptest! {
        #[test]
        fn random_bytes_never_open(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), shaped: bool) {
            if shaped && bytes.len() > 10 {
                bytes[..10].copy_from_slice(&[VERSION, 1, 1, 0, 1, 0, 0, 0, 0, 0]);
            }
            prop_assert!(opener().open(&mut bytes).is_err());
        }

        #[test]
        fn any_plaintext_comes_back(plaintext in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let mut datagram = sealed(&mut sealer(5), 0, &plaintext);
            prop_assert_eq!(opener().open(&mut datagram).unwrap().plaintext, &plaintext[..]);
        }
    }
}
