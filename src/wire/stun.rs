//! STUN as far as a lite agent of ICE needs it: connectivity checks are read and verified, answers written.
//!
//! Sources: RFC 8489 (STUN), RFC 8445 section 16.1 (attributes of checks), RFC 5769 (test vectors).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ring::hmac;

/// The longest message that is read, in bytes: more fits into no datagram of the Internet.
pub const MAX_BYTES: usize = 1_500;

/// The type of a Binding request.
pub const REQUEST: u16 = 0x0001;
/// The type of a Binding success response.
pub const SUCCESS: u16 = 0x0101;
/// The type of a Binding error response.
pub const ERROR: u16 = 0x0111;

/// Types of attributes. Those below 0x8000 must be understood.
pub mod attribute {
    /// Who asks whom: `ours:theirs`.
    pub const USERNAME: u16 = 0x0006;
    /// HMAC-SHA1 of what is before it.
    pub const MESSAGE_INTEGRITY: u16 = 0x0008;
    /// A code and a phrase.
    pub const ERROR_CODE: u16 = 0x0009;
    /// Types that were not understood.
    pub const UNKNOWN_ATTRIBUTES: u16 = 0x000a;
    /// Where the request came from.
    pub const XOR_MAPPED_ADDRESS: u16 = 0x0020;
    /// The priority of the candidate that the check may find.
    pub const PRIORITY: u16 = 0x0024;
    /// The pair is nominated.
    pub const USE_CANDIDATE: u16 = 0x0025;
    /// CRC-32 of what is before it; the last.
    pub const FINGERPRINT: u16 = 0x8028;
    /// Who sends it takes itself to be controlled.
    pub const ICE_CONTROLLED: u16 = 0x8029;
    /// Who sends it takes itself to be controlling.
    pub const ICE_CONTROLLING: u16 = 0x802a;
}

/// Attributes that must be understood, and are: those above, and those of RFC 8489 that say nothing in a check.
const UNDERSTOOD: [u16; 13] =
    [0x0001, 0x0006, 0x0008, 0x0009, 0x000a, 0x0014, 0x0015, 0x001c, 0x001d, 0x001e, 0x0020, 0x0024, 0x0025];

const HEAD: usize = 20;
const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
/// What FINGERPRINT is mixed with, so that it is no other protocol's CRC.
const FINGERPRINT_XOR: u32 = 0x5354_554e;
/// The bytes of MESSAGE-INTEGRITY with its head.
const INTEGRITY: usize = 24;
/// The most attributes that are named as not understood.
const MAX_UNKNOWN: usize = 8;

/// A checked message: its head is right and its attributes fill it to the last byte.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    head: &'a [u8; HEAD],
    bytes: &'a [u8],
}

/// One attribute.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// Its type.
    pub kind: u16,
    /// Its value, without padding.
    pub value: &'a [u8],
    /// Where its head begins in the message.
    at: usize,
}

struct Attributes<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        let at = self.at;
        let [k0, k1, l0, l1] = *self.bytes.get(at..)?.first_chunk::<4>()?;
        let length = usize::from(u16::from_be_bytes([l0, l1]));
        let value = self.bytes.get(at + 4..at + 4 + length)?;
        self.at = at + 4 + length.next_multiple_of(4);
        Some(Attribute { kind: u16::from_be_bytes([k0, k1]), value, at })
    }
}

impl<'a> Message<'a> {
    /// `None` if these bytes are no STUN message, or a longer one than [`MAX_BYTES`].
    pub fn new(bytes: &'a [u8]) -> Option<Message<'a>> {
        let head = bytes.first_chunk::<HEAD>()?;
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let right = head[0] & 0xc0 == 0
            && head[4..8] == COOKIE
            && length % 4 == 0
            && bytes.len() == HEAD + length
            && bytes.len() <= MAX_BYTES;
        let mut attributes = Attributes { bytes, at: HEAD };
        while attributes.next().is_some() {}
        (right && attributes.at == bytes.len()).then_some(Message { head, bytes })
    }

    /// Its type: method and class.
    pub fn kind(&self) -> u16 {
        u16::from_be_bytes([self.head[0], self.head[1]])
    }

    /// Names the transaction that it belongs to.
    pub fn transaction(&self) -> [u8; 12] {
        let mut id = [0; 12];
        id.copy_from_slice(&self.head[8..]);
        id
    }

    /// Its attributes in order.
    pub fn attributes(&self) -> impl Iterator<Item = Attribute<'a>> + use<'a> {
        Attributes { bytes: self.bytes, at: HEAD }
    }

    fn find(&self, kind: u16) -> Option<Attribute<'a>> {
        self.attributes().find(|attribute| attribute.kind == kind)
    }

    /// The value of its first attribute of a type.
    pub fn value(&self, kind: u16) -> Option<&'a [u8]> {
        Some(self.find(kind)?.value)
    }

    /// Whether its FINGERPRINT, if it has one, is right, and the last attribute (RFC 8489 section 14.7).
    pub fn is_whole(&self) -> bool {
        let Some(found) = self.find(attribute::FINGERPRINT) else { return true };
        let wanted = (crc32(&self.bytes[..found.at]) ^ FINGERPRINT_XOR).to_be_bytes();
        found.at + 8 == self.bytes.len() && found.value == wanted
    }

    /// Whether its MESSAGE-INTEGRITY was made with this password (RFC 8489 section 14.5); false without one.
    pub fn is_signed_with(&self, password: &[u8]) -> bool {
        let Some(found) = self.find(attribute::MESSAGE_INTEGRITY) else { return false };
        let mut covered = self.bytes[..found.at].to_vec();
        set_length(&mut covered, INTEGRITY);
        hmac::verify(&key(password), &covered, found.value).is_ok()
    }

    /// The address in its XOR-MAPPED-ADDRESS.
    pub fn mapped(&self) -> Option<SocketAddr> {
        let (head, ip) = self.value(attribute::XOR_MAPPED_ADDRESS)?.split_first_chunk::<4>()?;
        let port = u16::from_be_bytes([head[2] ^ COOKIE[0], head[3] ^ COOKIE[1]]);
        let mask = mask(&self.transaction());
        let ip = match head[1] {
            1 => IpAddr::V4(Ipv4Addr::from(mixed(ip.try_into().ok()?, &mask))),
            2 => IpAddr::V6(Ipv6Addr::from(mixed(ip.try_into().ok()?, &mask))),
            _ => return None,
        };
        Some(SocketAddr::new(ip, port))
    }
}

/// A connectivity check: a Binding request that says who asks whom, signed. Whether the signature holds is another
/// question.
#[derive(Copy, Clone, Debug)]
pub struct Check<'a> {
    message: Message<'a>,
    username: (&'a [u8], &'a [u8]),
    /// Whether it nominates the pair it was sent on.
    pub nominates: bool,
    /// The priority of that pair's candidate, as the sender sees it (RFC 8445 section 7.1.1); 0 if it does not say.
    pub priority: u32,
    /// Whether its sender takes itself to be controlled.
    pub controlled: bool,
    unknown: ([u16; MAX_UNKNOWN], usize),
}

/// What a check is answered with.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It came from here.
    Success(SocketAddr),
    /// 420: [`Check::is_understood`] says no.
    UnknownAttributes,
    /// 487: both take themselves to be controlled (RFC 8445 section 7.3.1.1).
    RoleConflict,
}

impl<'a> Check<'a> {
    /// `None` if these bytes are no check, or damaged.
    pub fn read(bytes: &'a [u8]) -> Option<Check<'a>> {
        let message = Message::new(bytes)?;
        let signed = message.find(attribute::MESSAGE_INTEGRITY)?;
        if message.kind() != REQUEST || signed.value.len() != 20 || !message.is_whole() {
            return None;
        }
        let mut check = Check {
            message,
            username: (b"", b""),
            nominates: false,
            priority: 0,
            controlled: false,
            unknown: ([0; MAX_UNKNOWN], 0),
        };
        // What follows the signature proves nothing (RFC 8489 section 14.5).
        for Attribute { kind, value, .. } in message.attributes().take_while(|found| found.at < signed.at) {
            match kind {
                attribute::USERNAME if check.username.0.is_empty() => {
                    let colon = memchr::memchr(b':', value)?;
                    check.username = (&value[..colon], &value[colon + 1..]);
                }
                attribute::USE_CANDIDATE => check.nominates = true,
                attribute::PRIORITY => check.priority = value.try_into().map_or(0, u32::from_be_bytes),
                attribute::ICE_CONTROLLED => check.controlled = true,
                _ if kind < 0x8000 && !UNDERSTOOD.contains(&kind) => check.mark_unknown(kind),
                _ => {}
            }
        }
        (!check.username.0.is_empty()).then_some(check)
    }

    fn mark_unknown(&mut self, kind: u16) {
        let (kinds, count) = &mut self.unknown;
        if !kinds[..*count].contains(&kind)
            && let Some(place) = kinds.get_mut(*count)
        {
            *place = kind;
            *count += 1;
        }
    }

    /// The username fragment of who is asked.
    pub fn asked(&self) -> &'a [u8] {
        self.username.0
    }

    /// The username fragment of who asks.
    pub fn asker(&self) -> &'a [u8] {
        self.username.1
    }

    /// Whether it was signed with this password.
    pub fn is_signed_with(&self, password: &[u8]) -> bool {
        self.message.is_signed_with(password)
    }

    /// Whether every attribute that must be understood is.
    pub fn is_understood(&self) -> bool {
        self.unknown.1 == 0
    }

    /// The answer to it, signed with the password of who is asked.
    pub fn answer(&self, outcome: Outcome, password: &[u8]) -> Vec<u8> {
        let transaction = self.message.transaction();
        let error = |code: u16, phrase: &str| {
            let head = [0, 0, (code / 100) as u8, (code % 100) as u8];
            let writer = Writer::new(ERROR, &transaction);
            writer.attribute(attribute::ERROR_CODE, &[&head, phrase.as_bytes()].concat())
        };
        let writer = match outcome {
            Outcome::Success(from) => Writer::new(SUCCESS, &transaction).mapped(from),
            Outcome::RoleConflict => error(487, "Role Conflict"),
            Outcome::UnknownAttributes => {
                let (kinds, count) = &self.unknown;
                let kinds: Vec<u8> = kinds[..*count].iter().flat_map(|kind| kind.to_be_bytes()).collect();
                error(420, "Unknown Attribute").attribute(attribute::UNKNOWN_ATTRIBUTES, &kinds)
            }
        };
        writer.sign(password).finish()
    }
}

/// Writes a message, attribute by attribute.
#[derive(Clone, Debug)]
pub struct Writer {
    out: Vec<u8>,
}

impl Writer {
    /// Begins a message of a type.
    pub fn new(kind: u16, transaction: &[u8; 12]) -> Writer {
        let mut out = Vec::with_capacity(128);
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&COOKIE);
        out.extend_from_slice(transaction);
        Writer { out }
    }

    /// Adds an attribute; of its value no more than [`MAX_BYTES`].
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Writer {
        let value = &value[..value.len().min(MAX_BYTES)];
        self.out.extend_from_slice(&kind.to_be_bytes());
        self.out.extend_from_slice(&(value.len() as u16).to_be_bytes());
        self.out.extend_from_slice(value);
        self.out.resize(self.out.len().next_multiple_of(4), 0);
        self
    }

    /// Adds XOR-MAPPED-ADDRESS.
    pub fn mapped(self, from: SocketAddr) -> Writer {
        let mut transaction = [0; 12];
        transaction.copy_from_slice(&self.out[8..HEAD]);
        let mask = mask(&transaction);
        let [p0, p1] = from.port().to_be_bytes();
        let head = |family| [0, family, p0 ^ COOKIE[0], p1 ^ COOKIE[1]];
        let value = match from.ip() {
            IpAddr::V4(ip) => [&head(1)[..], &mixed(ip.octets(), &mask)].concat(),
            IpAddr::V6(ip) => [&head(2)[..], &mixed(ip.octets(), &mask)].concat(),
        };
        self.attribute(attribute::XOR_MAPPED_ADDRESS, &value)
    }

    /// Adds MESSAGE-INTEGRITY.
    pub fn sign(mut self, password: &[u8]) -> Writer {
        set_length(&mut self.out, INTEGRITY);
        let tag = hmac::sign(&key(password), &self.out);
        self.attribute(attribute::MESSAGE_INTEGRITY, tag.as_ref())
    }

    /// Adds FINGERPRINT; returns the message.
    pub fn finish(mut self) -> Vec<u8> {
        set_length(&mut self.out, 8);
        let print = crc32(&self.out) ^ FINGERPRINT_XOR;
        self.attribute(attribute::FINGERPRINT, &print.to_be_bytes()).out
    }
}

fn key(password: &[u8]) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, password)
}

/// Makes the head of a message that was written so far say that `more` bytes follow.
fn set_length(message: &mut [u8], more: usize) {
    let length = (message.len() + more).saturating_sub(HEAD) as u16;
    if let Some(place) = message.get_mut(2..4) {
        place.copy_from_slice(&length.to_be_bytes());
    }
}

/// What addresses are mixed with: the cookie and the transaction.
fn mask(transaction: &[u8; 12]) -> [u8; 16] {
    let mut mask = [0; 16];
    mask[..4].copy_from_slice(&COOKIE);
    mask[4..].copy_from_slice(transaction);
    mask
}

fn mixed<const N: usize>(ip: [u8; N], mask: &[u8; 16]) -> [u8; N] {
    let mut ip = ip;
    ip.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
    ip
}

/// CRC-32 as in ITU-T V.42.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| (crc >> 8) ^ TABLE[usize::from(crc as u8 ^ byte)])
}

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let mut crc = at as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
            bit += 1;
        }
        table[at] = crc;
        at += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWORD: &[u8] = b"VOkJxbRl1RmTxUk/WvJxBt";
    /// RFC 5769 section 2.1.
    const SAMPLE_REQUEST: &str = "000100582112a442b7e7a701bc34d686fa87dfae\
        802200105354554e207465737420636c69656e74\
        002400046e0001ff\
        80290008932ff9b151263b36\
        000600096576746a3a68367659202020\
        000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a2\
        80280004e57a3bcf";
    /// RFC 5769 section 2.2.
    const SAMPLE_IPV4: &str = "0101003c2112a442b7e7a701bc34d686fa87dfae\
        8022000b7465737420766563746f7220\
        002000080001a147e112a643\
        000800142b91f599fd9e90c38c7489f92af9ba53f06be7d7\
        80280004c07d4c96";
    /// RFC 5769 section 2.3.
    const SAMPLE_IPV6: &str = "010100482112a442b7e7a701bc34d686fa87dfae\
        8022000b7465737420766563746f7220\
        002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9\
        00080014a382954e4be67bf11784c97c8292c275bfe3ed41\
        80280004c8fb0b4c";

    fn bytes(hex: &str) -> Vec<u8> {
        let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
        (0..hex.len()).step_by(2).map(digit).collect()
    }

    fn signed(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let begun = Writer::new(REQUEST, b"transaction.");
        let all = attributes.iter().fold(begun, |writer, (kind, value)| writer.attribute(*kind, value));
        all.sign(PASSWORD).finish()
    }

    #[test]
    fn the_sample_request_is_a_check() {
        let bytes = bytes(SAMPLE_REQUEST);
        let message = Message::new(&bytes).expect("STUN");
        assert_eq!(message.value(attribute::PRIORITY), Some(&[0x6e, 0, 1, 0xff][..]));
        assert_eq!(message.value(0x8022), Some(&b"STUN test client"[..]));
        let check = Check::read(&bytes).expect("a check");
        assert_eq!((check.asked(), check.asker()), (&b"evtj"[..], &b"h6vY"[..]));
        assert!(check.controlled && !check.nominates && check.is_understood());
        assert!(check.is_signed_with(PASSWORD) && !check.is_signed_with(b"VOkJxbRl1RmTxUk/WvJxBT"));
        // The fingerprint may be missing, so what only makes it another attribute is no damage.
        for at in 0..bytes.len() - 8 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(Check::read(&damaged).is_none_or(|check| !check.is_signed_with(PASSWORD)), "byte {at}");
        }
    }

    #[test]
    fn the_sample_responses_hold_addresses() {
        for (hex, wanted) in
            [(SAMPLE_IPV4, "192.0.2.1:32853"), (SAMPLE_IPV6, "[2001:db8:1234:5678:11:2233:4455:6677]:32853")]
        {
            let bytes = bytes(hex);
            let message = Message::new(&bytes).expect("STUN");
            assert_eq!(message.mapped(), wanted.parse().ok());
            assert!(message.kind() == SUCCESS && message.is_whole() && message.is_signed_with(PASSWORD));
            // The samples are padded with blanks, what is written here is with zeros; the rest is alike.
            let written = Writer::new(SUCCESS, &message.transaction())
                .attribute(0x8022, b"test vector ")
                .mapped(message.mapped().expect("an address"));
            let mut written = written.out;
            written[23] = 11;
            assert_eq!(written[HEAD..], bytes[HEAD..written.len()]);
            let written = Writer { out: written }.sign(PASSWORD).finish();
            assert_eq!(written, bytes);
            assert!(Check::read(&bytes).is_none(), "a response is no check");
        }
    }

    #[test]
    fn answers_say_what_was_found() {
        let asked = signed(&[(attribute::USERNAME, b"us:them"), (attribute::USE_CANDIDATE, b"")]);
        let check = Check::read(&asked).expect("a check");
        assert!(check.nominates && !check.controlled);
        let from: SocketAddr = "203.0.113.5:61000".parse().expect("an address");
        let answer = check.answer(Outcome::Success(from), b"secret");
        let message = Message::new(&answer).expect("STUN");
        assert_eq!((message.kind(), message.mapped()), (SUCCESS, Some(from)));
        assert_eq!(&message.transaction(), b"transaction.");
        assert!(message.is_whole() && message.is_signed_with(b"secret"));
        assert!(answer.len() <= 3 * asked.len());

        let answer = check.answer(Outcome::RoleConflict, b"secret");
        let message = Message::new(&answer).expect("STUN");
        let code = [&[0, 0, 4, 87][..], b"Role Conflict"].concat();
        assert_eq!((message.kind(), message.value(attribute::ERROR_CODE)), (ERROR, Some(&code[..])));
        assert!(message.is_whole() && message.is_signed_with(b"secret"));
    }

    #[test]
    fn what_must_be_understood_and_is_not_is_named() {
        let asked =
            signed(&[(3, b"x"), (attribute::USERNAME, b"us:them"), (0x7fff, b""), (3, b"y"), (0xc057, b"z")]);
        let check = Check::read(&asked).expect("a check");
        assert!(!check.is_understood());
        let answer = check.answer(Outcome::UnknownAttributes, b"secret");
        let message = Message::new(&answer).expect("STUN");
        assert_eq!(message.value(attribute::UNKNOWN_ATTRIBUTES), Some(&[0, 3, 0x7f, 0xff][..]));
        assert_eq!(message.value(attribute::ERROR_CODE).map(|value| value[2..4].to_vec()), Some(vec![4, 20]));
        let many: Vec<(u16, &[u8])> = (0x100..0x200).map(|kind| (kind, &b""[..])).collect();
        let many = signed(&[&[(attribute::USERNAME, &b"us:them"[..])], &many[..]].concat());
        let answer = Check::read(&many).expect("a check").answer(Outcome::UnknownAttributes, b"secret");
        assert_eq!(
            Message::new(&answer).and_then(|m| m.value(attribute::UNKNOWN_ATTRIBUTES)).map(<[u8]>::len),
            Some(16)
        );
    }

    #[test]
    fn what_is_no_check_is_none() {
        let user: (u16, &[u8]) = (attribute::USERNAME, b"us:them");
        assert!(Check::read(&signed(&[user])).is_some());
        assert!(Check::read(&signed(&[])).is_none(), "nobody is named");
        assert!(Check::read(&signed(&[(attribute::USERNAME, b"us")])).is_none());
        assert!(Check::read(&signed(&[(attribute::USERNAME, b":them")])).is_none());
        let unsigned = Writer::new(REQUEST, &[7; 12]).attribute(user.0, user.1).finish();
        assert!(Message::new(&unsigned).is_some() && Check::read(&unsigned).is_none());
        let indication = Writer::new(0x0011, &[7; 12]).attribute(user.0, user.1).sign(PASSWORD).finish();
        assert!(Check::read(&indication).is_none());
        // Behind the signature nothing counts.
        let behind = Writer::new(REQUEST, &[7; 12]).attribute(user.0, user.1).sign(PASSWORD);
        let behind = behind.attribute(attribute::USE_CANDIDATE, b"").attribute(3, b"").finish();
        let check = Check::read(&behind).expect("a check");
        assert!(!check.nominates && check.is_understood() && check.is_signed_with(PASSWORD));
        // Behind the fingerprint nothing may be.
        let mut last = Writer { out: signed(&[user]) }.attribute(attribute::USE_CANDIDATE, b"").out;
        set_length(&mut last, 0);
        assert!(Message::new(&last).is_some() && Check::read(&last).is_none());
        assert!(
            Message::new(&Writer::new(REQUEST, &[7; 12]).attribute(0x8022, &[1; 1_400]).finish()).is_some()
        );
        assert!(
            Message::new(&Writer::new(REQUEST, &[7; 12]).attribute(0x8022, &[1; 1_500]).finish()).is_none()
        );
    }

    fn value() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), 0..40)
    }

    fn kind() -> impl Strategy<Value = u16> {
        prop_oneof![
            Just(6_u16),
            Just(8),
            Just(0x20),
            Just(0x24),
            Just(0x25),
            Just(0x8028),
            Just(0x8029),
            any::<u16>()
        ]
    }

    proptest! {
        #[test]
        fn any_bytes_are_harmless(bytes in proptest::collection::vec(any::<u8>(), 0..120), length in 0_u8..30, shape: bool) {
            let mut bytes = bytes;
            if shape && bytes.len() >= HEAD {
                bytes[..4].copy_from_slice(&[0, 1, 0, length * 4]);
                bytes[4..8].copy_from_slice(&COOKIE);
                bytes.truncate(HEAD + usize::from(length) * 4);
            }
            if let Some(message) = Message::new(&bytes) {
                prop_assert!(message.attributes().all(|found| found.value.len() < bytes.len()));
                message.mapped();
                message.is_whole();
                message.is_signed_with(PASSWORD);
            }
            Check::read(&bytes);
        }

        /// Whatever attributes come in whatever order, also without a signature that holds.
        #[test]
        fn any_attributes_are_harmless(attributes in proptest::collection::vec((kind(), value()), 0..12), signs: bool) {
            let begun = Writer::new(REQUEST, b"transaction.").attribute(attribute::USERNAME, b"us:them");
            let all = attributes.iter().fold(begun, |writer, (kind, value)| writer.attribute(*kind, value));
            let bytes = if signs { all.sign(PASSWORD).finish() } else { all.out };
            if let Some(check) = Check::read(&bytes) {
                check.is_signed_with(PASSWORD);
                for outcome in [Outcome::RoleConflict, Outcome::UnknownAttributes] {
                    let answer = check.answer(outcome, PASSWORD);
                    let message = Message::new(&answer).expect("STUN");
                    prop_assert!(message.is_whole() && message.is_signed_with(PASSWORD) && answer.len() <= 128);
                }
            }
        }

        #[test]
        fn what_is_written_is_read(
            attributes in proptest::collection::vec((kind(), value()), 0..12), id: [u8; 12], ip: [u8; 16], v4: bool, port: u16,
        ) {
            let ip = if v4 { IpAddr::V4(Ipv4Addr::new(ip[0], ip[1], ip[2], ip[3])) } else { IpAddr::V6(ip.into()) };
            let attributes: Vec<_> =
                attributes.into_iter().filter(|(kind, _)| ![8, 0x20, 0x8028].contains(kind)).collect();
            let begun = Writer::new(SUCCESS, &id).mapped(SocketAddr::new(ip, port));
            let all = attributes.iter().fold(begun, |writer, (kind, value)| writer.attribute(*kind, value));
            let bytes = all.sign(PASSWORD).finish();
            let message = Message::new(&bytes).expect("STUN");
            prop_assert_eq!((message.kind(), message.transaction()), (SUCCESS, id));
            prop_assert_eq!(message.mapped(), Some(SocketAddr::new(ip, port)));
            prop_assert!(message.is_whole() && message.is_signed_with(PASSWORD));
            let read: Vec<_> = message.attributes().skip(1).map(|found| (found.kind, found.value.to_vec())).collect();
            prop_assert_eq!(&read[..attributes.len()], &attributes[..]);
            prop_assert_eq!(read.len(), attributes.len() + 2);
        }
    }
}
