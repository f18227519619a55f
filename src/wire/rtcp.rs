//! What RTCP says about streams: sender and receiver reports, and voice metrics.
//!
//! Sources: RFC 3550 section 6.4 (SR, RR), RFC 3611 section 4.7 (XR, VoIP metrics).

use super::rtp::Rtcp;

/// The packets of one compound, and the blocks of one packet, that are looked at.
const MAX_ITEMS: usize = 32;

/// What one side says about a stream it receives.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct ReportBlock {
    /// The stream's SSRC.
    pub ssrc: u32,
    /// The share of packets lost since the last report, in 1/256.
    pub fraction_lost: u8,
    /// Packets lost in all; negative if more came than were expected.
    pub lost: i32,
    /// The highest sequence number, extended by how often it wrapped.
    pub highest: u32,
    /// Interarrival jitter, in units of the stream's clock.
    pub jitter: u32,
    /// The middle 32 bits of the last sender report's NTP time; 0 if none came.
    pub last_report: u32,
    /// How long before this report that one came, in 1/65536 s.
    pub delay: u32,
}

/// One thing that a compound says.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// It sends a stream itself.
    Sender {
        /// The stream's SSRC.
        ssrc: u32,
        /// The middle 32 bits of the report's NTP time.
        time: u32,
        /// Packets it has sent.
        packets: u32,
    },
    /// It receives one.
    Report(ReportBlock),
    /// How calls over a stream sound to it.
    Voip(VoipMetrics),
    /// A stream ends.
    Bye {
        /// The stream's SSRC.
        ssrc: u32,
    },
}

/// The VoIP metrics of an extended report, as far as they are used.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct VoipMetrics {
    /// The stream's SSRC.
    pub ssrc: u32,
    /// The share of packets lost, in 1/256.
    pub loss: u8,
    /// The share of packets that came too late, in 1/256.
    pub discard: u8,
    /// Round trip, in ms.
    pub round_trip: u16,
    /// What the end system adds, in ms.
    pub end_delay: u16,
    /// R factor, 0 to 100; `None` if unavailable.
    pub r_factor: Option<u8>,
    /// Listening quality, 1.0 to 5.0 in tenths; `None` if unavailable.
    pub mos_lq: Option<u8>,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

/// Shows everything a compound says, in order; packets that are cut short and kinds not known are passed over. Call it
/// only for RTCP in the clear: what looks like a report in SRTCP is noise.
pub fn items(rtcp: &Rtcp<'_>, mut each: impl FnMut(Item)) {
    let mut rest = rtcp.bytes();
    for _ in 0..MAX_ITEMS {
        let Some(&[first, kind, high, low]) = rest.first_chunk() else { return };
        let length = (usize::from(u16::from_be_bytes([high, low])) + 1) * 4;
        let Some((packet, after)) = rest.split_at_checked(length) else { return };
        if first >> 6 != 2 {
            return;
        }
        let count = usize::from(first & 0x1f);
        let _shown = match kind {
            200 => sender(packet, count, &mut each),
            201 => reports(packet, 8, count, &mut each),
            203 => (0..count).try_for_each(|n| {
                each(Item::Bye { ssrc: word(packet, 4 + 4 * n)? });
                Some(())
            }),
            207 => extended(packet, &mut each),
            _ => None,
        };
        rest = after;
    }
}

fn sender(packet: &[u8], count: usize, each: &mut impl FnMut(Item)) -> Option<()> {
    let (ssrc, high, low, packets) =
        (word(packet, 4)?, word(packet, 8)?, word(packet, 12)?, word(packet, 20)?);
    each(Item::Sender { ssrc, time: high << 16 | low >> 16, packets });
    reports(packet, 28, count, each)
}

fn reports(packet: &[u8], from: usize, count: usize, each: &mut impl FnMut(Item)) -> Option<()> {
    for block in packet.get(from..)?.chunks_exact(24).take(count) {
        let loss = word(block, 4)?;
        each(Item::Report(ReportBlock {
            ssrc: word(block, 0)?,
            fraction_lost: (loss >> 24) as u8,
            // 24 bits with a sign.
            lost: (loss << 8) as i32 >> 8,
            highest: word(block, 8)?,
            jitter: word(block, 12)?,
            last_report: word(block, 16)?,
            delay: word(block, 20)?,
        }));
    }
    Some(())
}

fn extended(packet: &[u8], each: &mut impl FnMut(Item)) -> Option<()> {
    let mut rest = packet.get(8..)?;
    for _ in 0..MAX_ITEMS {
        let &[kind, _, high, low] = rest.first_chunk()?;
        let length = (usize::from(u16::from_be_bytes([high, low])) + 1) * 4;
        let (block, after) = rest.split_at_checked(length)?;
        if kind == 7 && block.len() >= 36 {
            // 127 stands for unavailable (RFC 3611 section 4.7.5).
            let score = |at: usize| block.get(at).copied().filter(|score| *score != 127);
            each(Item::Voip(VoipMetrics {
                ssrc: word(block, 4)?,
                loss: block[8],
                discard: block[9],
                round_trip: half(block, 16)?,
                end_delay: half(block, 18)?,
                r_factor: score(24),
                mos_lq: score(26),
            }));
        }
        rest = after;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(words: &[u32]) -> Vec<Item> {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_be_bytes()).collect();
        let mut found = Vec::new();
        items(&Rtcp::new(&bytes).expect("RTCP"), |item| found.push(item));
        found
    }

    #[test]
    fn a_sender_report_with_a_block_and_a_goodbye_is_read() {
        let found = all(&[
            0x81c8_000c,
            1,
            0xaaaa_0001,
            0x0002_bbbb,
            3,
            400,
            64000, // sender
            2,
            0x40ff_fffe,
            70000,
            55,
            0x1234_5678,
            65536, // block
            0x81cb_0001,
            1, // goodbye
        ]);
        let block = ReportBlock {
            ssrc: 2,
            fraction_lost: 64,
            lost: -2,
            highest: 70000,
            jitter: 55,
            last_report: 0x1234_5678,
            delay: 65536,
        };
        let sender = Item::Sender { ssrc: 1, time: 0x0001_0002, packets: 400 };
        assert_eq!(found, [sender, Item::Report(block), Item::Bye { ssrc: 1 }]);
    }

    #[test]
    fn voice_metrics_are_read() {
        let found = all(&[0x80cf_000a, 1, 0x0700_0008, 9, 0x1020_0000, 0, 0x0064_0028, 0, 0x5d7f_297f, 0, 0]);
        let metrics = VoipMetrics {
            ssrc: 9,
            loss: 16,
            discard: 32,
            round_trip: 100,
            end_delay: 40,
            r_factor: Some(93),
            mos_lq: Some(41),
        };
        assert_eq!(found, [Item::Voip(metrics)]);
    }

    /// What `rtcp-types` reads of a compound, as far as it is used here.
    fn theirs(bytes: &[u8]) -> Vec<Item> {
        use rtcp_types::{Compound, Packet, ReportBlock as Block};
        let block = |block: Block<'_>| {
            Item::Report(ReportBlock {
                ssrc: block.ssrc(),
                fraction_lost: block.fraction_lost(),
                // It reads the 24 bits without their sign.
                lost: (block.cumulative_lost() << 8) as i32 >> 8,
                highest: block.extended_sequence_number(),
                jitter: block.interarrival_jitter(),
                last_report: block.last_sender_report_timestamp(),
                delay: block.delay_since_last_sender_report_timestamp(),
            })
        };
        let mut found = Vec::new();
        for packet in Compound::parse(bytes).expect("a compound") {
            match packet.expect("a packet") {
                Packet::Sr(sr) => {
                    let time = (sr.ntp_timestamp() >> 16) as u32;
                    found.push(Item::Sender { ssrc: sr.ssrc(), time, packets: sr.packet_count() });
                    found.extend(sr.report_blocks().map(block));
                }
                Packet::Rr(rr) => found.extend(rr.report_blocks().map(block)),
                Packet::Bye(bye) => found.extend(bye.ssrcs().map(|ssrc| Item::Bye { ssrc })),
                _ => {}
            }
        }
        found
    }

    proptest! {
        #[test]
        fn another_reader_agrees(
            blocks in proptest::collection::vec(any::<[u32; 6]>(), 0..4),
            head in any::<[u32; 6]>(),
            sends: bool,
            gone in proptest::collection::vec(any::<u32>(), 0..3),
        ) {
            let head = if sends { &head[..] } else { &head[..1] };
            let packet = |kind: u32, count: usize, words: &[u32]| {
                let first = 0x8000_0000 | (count as u32) << 24 | kind << 16 | words.len() as u32;
                [&[first], words].concat()
            };
            let report: Vec<u32> = head.iter().copied().chain(blocks.iter().flatten().copied()).collect();
            let kind = if sends { 200 } else { 201 };
            let mut words = packet(kind, blocks.len(), &report);
            if !gone.is_empty() {
                words.extend(packet(203, gone.len(), &gone));
            }
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
            prop_assert_eq!(all(&words), theirs(&bytes));
        }

        #[test]
        fn any_bytes_are_harmless(mut bytes in proptest::collection::vec(any::<u8>(), 8..200), kind in 200u8..208) {
            (bytes[0], bytes[1], bytes[2]) = (bytes[0] & 0x3f | 0x80, kind, 0);
            if let Some(rtcp) = Rtcp::new(&bytes) {
                let mut count = 0;
                items(&rtcp, |_| count += 1);
                prop_assert!(count <= bytes.len());
            }
        }
    }
}
