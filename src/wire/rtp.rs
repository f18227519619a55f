//! What shares a media port: RTP, RTCP, STUN, DTLS and the rest, told apart and looked into.
//!
//! Sources: RFC 3550 (RTP, RTCP), RFC 5761 (RTP and RTCP on one port), RFC 7983 (first bytes), RFC 4585
//! (feedback), RFC 8489 (STUN), RFC 9147 (DTLS).

/// The protocol of a datagram on a media port, by its first bytes.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// RTP, encrypted or not.
    Rtp,
    /// RTCP, encrypted or not.
    Rtcp,
    /// STUN.
    Stun,
    /// ZRTP.
    Zrtp,
    /// DTLS.
    Dtls,
    /// TURN channel data.
    TurnChannel,
    /// None of them.
    Other,
}

/// Tells what a datagram on a media port is (RFC 7983 section 7). SIP is text and falls into these
/// ranges too: where SIP can arrive, look for it first.
pub fn kind(bytes: &[u8]) -> Kind {
    match bytes.first() {
        Some(0..=3) if bytes.get(4..8) == Some(&[0x21, 0x12, 0xa4, 0x42]) && bytes.len() >= 20 => Kind::Stun,
        Some(16..=19) => Kind::Zrtp,
        // Content types 20 to 26 over the version bytes 254.x; a record header is 13 bytes.
        Some(20..=63) if bytes.len() >= 13 => Kind::Dtls,
        Some(64..=79) if bytes.len() >= 4 => Kind::TurnChannel,
        Some(128..=191) if Rtcp::new(bytes).is_some() => Kind::Rtcp,
        Some(128..=191) if Rtp::new(bytes).is_some() => Kind::Rtp,
        _ => Kind::Other,
    }
}

/// The second byte of RTCP packets (RFC 5761 section 4); as RTP these would be payload types 64 to 95.
const RTCP_TYPES: std::ops::RangeInclusive<u8> = 192..=223;

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// A checked RTP packet: version 2, not RTCP, and all contributing sources there.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Rtp<'a> {
    head: &'a [u8; 12],
    bytes: &'a [u8],
}

impl<'a> Rtp<'a> {
    /// `None` if these bytes are no RTP packet.
    pub fn new(bytes: &'a [u8]) -> Option<Rtp<'a>> {
        let head = bytes.first_chunk::<12>()?;
        let [first, second, ..] = *head;
        let sources = usize::from(first & 0x0f) * 4;
        let right = first >> 6 == 2 && !RTCP_TYPES.contains(&second) && bytes.len() >= 12 + sources;
        right.then_some(Rtp { head, bytes })
    }

    /// Whether the marker bit is set.
    pub fn marker(&self) -> bool {
        self.head[1] & 0x80 != 0
    }

    /// The payload type, 0 to 127.
    pub fn payload_type(&self) -> u8 {
        self.head[1] & 0x7f
    }

    /// The sequence number.
    pub fn sequence(&self) -> u16 {
        u16::from_be_bytes([self.head[2], self.head[3]])
    }

    /// The timestamp, in the payload's clock.
    pub fn timestamp(&self) -> u32 {
        u32::from_be_bytes([self.head[4], self.head[5], self.head[6], self.head[7]])
    }

    /// The synchronisation source.
    pub fn ssrc(&self) -> u32 {
        u32::from_be_bytes([self.head[8], self.head[9], self.head[10], self.head[11]])
    }

    /// The payload without header extension and padding; `None` if those do not fit into the packet.
    pub fn payload(&self) -> Option<&'a [u8]> {
        let first = self.head[0];
        let mut from = 12 + usize::from(first & 0x0f) * 4;
        if first & 0x10 != 0 {
            let words = word(self.bytes, from)? & 0xffff;
            from += 4 + words as usize * 4;
        }
        let padding = match first & 0x20 {
            0 => 0,
            // The count includes itself, so it is never 0.
            _ => self.bytes.last().map(|count| usize::from(*count)).filter(|count| *count > 0)?,
        };
        self.bytes.get(from..self.bytes.len().checked_sub(padding)?)
    }
}

/// A checked RTCP packet or compound: version 2, a known type, and the first packet there to its end.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Rtcp<'a> {
    bytes: &'a [u8],
    sender: u32,
}

impl<'a> Rtcp<'a> {
    /// `None` if these bytes are no RTCP packet.
    pub fn new(bytes: &'a [u8]) -> Option<Rtcp<'a>> {
        let [first, second, high, low] = *bytes.first_chunk()?;
        let length = (usize::from(u16::from_be_bytes([high, low])) + 1) * 4;
        let right = first >> 6 == 2 && RTCP_TYPES.contains(&second) && (8..=bytes.len()).contains(&length);
        if right { Some(Rtcp { bytes, sender: word(bytes, 4)? }) } else { None }
    }

    /// The type of the first packet: 200 for a sender report.
    pub fn packet_type(&self) -> u8 {
        self.bytes[1]
    }

    /// All of the datagram.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The SSRC that the first packet comes from.
    pub fn sender(&self) -> u32 {
        self.sender
    }

    /// The SSRC of the RTP stream this datagram is about.
    ///
    /// A sender report is about the sender's own stream. Who sends a receiver report (201) or feedback
    /// (205, 206) as its first packet sends no RTP of its own, or speaks about somebody else's: then it
    /// is about the stream it reports on, which is the first report block's or the feedback's media
    /// source; a receiver report without blocks passes on to the packets behind it. Everything else, and
    /// a report about nothing, is about its sender. So is a datagram whose packets do not fill it to the
    /// last byte: in SRTCP all but the first packet's SSRC is encrypted (RFC 3711 section 3.4), and what
    /// looks like a stream there is noise.
    pub fn stream(&self) -> u32 {
        if matches!(self.packet_type(), 201 | 205 | 206) { self.reported() } else { None }
            .unwrap_or(self.sender)
    }

    /// The first SSRC reported on by a compound that holds together.
    fn reported(&self) -> Option<u32> {
        let (mut rest, mut found) = (self.bytes, None);
        // 16 packets are more than anybody sends.
        for _ in 0..16 {
            let [first, kind, high, low] = *rest.first_chunk()?;
            let (packet, after) =
                rest.split_at_checked((usize::from(u16::from_be_bytes([high, low])) + 1) * 4)?;
            if first >> 6 != 2 || !RTCP_TYPES.contains(&kind) {
                return None;
            }
            let reports = matches!((kind, first & 0x1f), (201, 1..) | (205 | 206, _));
            // REMB and others put 0 where they name no media source.
            let ssrc = word(packet, 8).filter(|ssrc| reports && *ssrc != 0);
            found = found.or(ssrc);
            if after.is_empty() {
                return found;
            }
            rest = after;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_be_bytes()).collect()
    }

    #[test]
    fn an_rtp_packet_is_taken_apart() {
        let bytes = [&words(&[0xb1e0_1234, 77, 0xfeed, 9, 0xbede_0001, 5])[..], &[1, 2, 3, 0, 0, 3]].concat();
        let rtp = Rtp::new(&bytes).expect("RTP");
        assert!(rtp.marker());
        assert_eq!((rtp.payload_type(), rtp.sequence()), (96, 0x1234));
        assert_eq!((rtp.timestamp(), rtp.ssrc()), (77, 0xfeed));
        assert_eq!(rtp.payload(), Some(&[1, 2, 3][..]));
        assert_eq!(kind(&bytes), Kind::Rtp);
        assert!(Rtp::new(&bytes[..15]).is_none(), "a contributing source is missing");
        assert_eq!(Rtp::new(&bytes[..17]).and_then(|r| r.payload()), None);
    }

    #[test]
    fn first_bytes_decide() {
        let with = |first: u8, second: u8| [&[first, second, 0, 1][..], &[0; 24]].concat();
        assert_eq!(kind(&[]), Kind::Other);
        assert_eq!(kind(&words(&[0x0001_0000, 0x2112_a442, 1, 2, 3])), Kind::Stun);
        assert_eq!(kind(&with(0, 1)), Kind::Other);
        assert_eq!(kind(&with(16, 0)), Kind::Zrtp);
        assert_eq!(kind(&with(22, 254)), Kind::Dtls);
        assert_eq!(kind(&with(64, 1)), Kind::TurnChannel);
        assert_eq!(kind(&with(0x80, 0)), Kind::Rtp);
        for second in 0..=255 {
            let rtcp = (192..=223).contains(&second);
            assert_eq!(kind(&with(0x80, second)), if rtcp { Kind::Rtcp } else { Kind::Rtp });
        }
        assert_eq!(kind(&with(0xc0, 0)), Kind::Other);
    }

    #[test]
    fn rtcp_belongs_to_the_stream_it_is_about() {
        let stream = |w: &[u32]| Rtcp::new(&words(w)).expect("RTCP").stream();
        // A sender report with a report block about 2: its own stream.
        let sender_report = [0x81c8_000c, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0];
        assert_eq!(stream(&sender_report), 1);
        // A receiver report about 2; cut, it is nothing.
        let receiver_report = [0x81c9_0007, 1, 2, 0, 0, 0, 0, 0];
        assert_eq!(stream(&receiver_report), 2);
        assert_eq!(Rtcp::new(&words(&receiver_report[..7])), None);
        // Encrypted: an index and a tag follow, and the block is noise.
        assert_eq!(stream(&[&receiver_report[..], &[0x8000_0001, 5, 6]].concat()), 1);
        // An empty receiver report, a description, then picture loss of 3.
        assert_eq!(stream(&[0x80c9_0001, 1, 0x81ca_0001, 1, 0x81ce_0002, 1, 3]), 3);
        // Feedback alone (RFC 5506), with and without a media source.
        assert_eq!(stream(&[0x81cd_0002, 1, 4]), 4);
        assert_eq!(stream(&[0x8fce_0002, 1, 0]), 1);
        // An empty receiver report with a goodbye.
        assert_eq!(stream(&[0x80c9_0001, 1, 0x81cb_0001, 1]), 1);
    }

    proptest! {
        /// `rtp-types` reads the same, and takes only packets whose payload is there.
        #[test]
        fn another_reader_agrees(
            mut bytes in proptest::collection::vec(any::<u8>(), 12..80),
            (sources, words, padding) in (0u8..4, 0u8..6, 0u8..20),
        ) {
            bytes[0] = bytes[0] & 0x30 | 0x80 | sources;
            let extension = 12 + usize::from(sources) * 4;
            if let Some(length) = bytes.get_mut(extension + 2..extension + 4) {
                length.copy_from_slice(&[0, words]);
            }
            if let Some(last) = bytes.last_mut() {
                *last = padding;
            }
            let theirs = rtp_types::RtpPacket::parse(&bytes).ok();
            match Rtp::new(&bytes) {
                None => prop_assert!(theirs.is_none() || RTCP_TYPES.contains(&bytes[1])),
                Some(ours) => {
                    prop_assert_eq!(ours.payload(), theirs.as_ref().map(|theirs| theirs.payload()));
                    if let Some(theirs) = theirs {
                        prop_assert_eq!(ours.marker(), theirs.marker_bit());
                        prop_assert_eq!(ours.payload_type(), theirs.payload_type());
                        prop_assert_eq!(ours.sequence(), theirs.sequence_number());
                        prop_assert_eq!(ours.timestamp(), theirs.timestamp());
                        prop_assert_eq!(ours.ssrc(), theirs.ssrc());
                    }
                }
            }
        }

        #[test]
        fn any_bytes_are_harmless(bytes in proptest::collection::vec(any::<u8>(), 0..120), first: u8, second: u8) {
            let mut bytes = bytes;
            for (at, value) in [first | 0x80, second].into_iter().enumerate() {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            kind(&bytes);
            if let Some(payload) = Rtp::new(&bytes).and_then(|rtp| rtp.payload()) {
                prop_assert!(payload.len() <= bytes.len() - 12);
            }
            if let Some(rtcp) = Rtcp::new(&bytes) {
                prop_assert!((192..=223).contains(&rtcp.packet_type()));
                rtcp.stream();
            }
        }
    }
}
