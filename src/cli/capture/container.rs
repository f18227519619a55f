//! File formats: pcap (micro- and nanoseconds, both byte orders) and pcapng (several sections and interfaces).
//!
//! Sources: draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng. Block framing of pcapng is walked here, so that
//! one unreadable block costs that block and not the rest of the file.

use bytes::Bytes;
use pcap_parser::{
    Block, OptionCode, PcapHeader, parse_block_be, parse_block_le, parse_pcap_frame, parse_pcap_frame_be,
    parse_pcap_frame_modified, parse_pcap_header,
};

/// One captured packet, link-layer header first.
pub(super) struct Packet {
    /// Nanoseconds since 1970; files may hold nonsense here.
    pub(super) stamp: i128,
    /// LINKTYPE_ number.
    pub(super) link: u32,
    /// The captured bytes.
    pub(super) data: Bytes,
    /// Whether the packet was longer on the wire.
    pub(super) cut: bool,
}

/// The file's first bytes, in words: they belong to no capture format.
#[derive(Debug)]
pub(super) struct NotACapture(pub(super) String);

/// The packets of one file, one after the other.
pub(super) struct Packets {
    rest: Bytes,
    total: usize,
    format: Format,
    damage: Option<String>,
    skipped_blocks: u32,
}

enum Format {
    Pcap(PcapHeader),
    PcapNg { big_endian: bool, interfaces: Vec<Interface> },
}

/// What an interface description block says that matters here.
#[derive(Clone)]
struct Interface {
    link: u32,
    snap_length: u32,
    resolution: u8,
    offset_seconds: i64,
}

/// First bytes of a pcapng section header block; the same in both byte orders.
const SECTION: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

impl Packets {
    /// Recognises the format.
    pub(super) fn open(file: Bytes) -> Result<Packets, NotACapture> {
        let total = file.len();
        if file.starts_with(&SECTION) {
            let format = Format::PcapNg { big_endian: false, interfaces: Vec::new() };
            return Ok(Packets { rest: file, total, format, damage: None, skipped_blocks: 0 });
        }
        match parse_pcap_header(&file) {
            Ok((_, header)) => {
                let rest = file.slice(header.size()..);
                Ok(Packets { rest, total, format: Format::Pcap(header), damage: None, skipped_blocks: 0 })
            }
            Err(_) if file.is_empty() => Err(NotACapture("nothing (the file is empty)".to_owned())),
            Err(_) => {
                let start: Vec<String> = file.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
                Err(NotACapture(start.join(" ")))
            }
        }
    }

    /// The format's capinfos name.
    pub(super) fn format(&self) -> &'static str {
        match &self.format {
            Format::Pcap(header) if header.is_nanosecond_precision() => "nsecpcap",
            Format::Pcap(_) => "pcap",
            Format::PcapNg { .. } => "pcapng",
        }
    }

    /// The link type a file without packets says it would have.
    pub(super) fn declared_link(&self) -> Option<u32> {
        match &self.format {
            Format::Pcap(header) => Some(pcap_link(header)),
            Format::PcapNg { interfaces, .. } => interfaces.first().map(|i| i.link),
        }
    }

    /// What could not be read, once all packets are taken.
    pub(super) fn damage(&self) -> Option<String> {
        let skipped = (self.skipped_blocks > 0)
            .then(|| format!("{} unreadable pcapng blocks were skipped", self.skipped_blocks));
        match (&self.damage, skipped) {
            (Some(a), Some(b)) => Some(format!("{a}; {b}")),
            (a, b) => a.clone().or(b),
        }
    }

    /// The next packet, or `None` at the end of what can be read.
    pub(super) fn next_packet(&mut self) -> Option<Packet> {
        let taken = match &mut self.format {
            Format::Pcap(header) => next_pcap(header, &mut self.rest),
            Format::PcapNg { big_endian, interfaces } => {
                next_pcapng(big_endian, interfaces, &mut self.rest, &mut self.skipped_blocks)
            }
        };
        taken.unwrap_or_else(|Broken(what)| {
            let at = self.total - self.rest.len();
            self.damage = Some(format!("{what} at byte {at} of {}", self.total));
            self.rest.clear();
            None
        })
    }
}

/// Why reading stops before the end of the file.
struct Broken(&'static str);

const TRUNCATED: Broken = Broken("the file breaks off inside a record");

fn pcap_link(header: &PcapHeader) -> u32 {
    // The upper bits tell about frame check sequences (draft-ietf-opsawg-pcap, section 4).
    (header.network.0 as u32) & 0x03ff_ffff
}

fn next_pcap(header: &PcapHeader, rest: &mut Bytes) -> Result<Option<Packet>, Broken> {
    if rest.is_empty() {
        return Ok(None);
    }
    let parsed = if header.is_modified_format() {
        parse_pcap_frame_modified(rest)
    } else if header.is_bigendian() {
        parse_pcap_frame_be(rest)
    } else {
        parse_pcap_frame(rest)
    };
    let (after, record) = parsed.map_err(|_| TRUNCATED)?;
    let unit = if header.is_nanosecond_precision() { 1 } else { 1_000 };
    let packet = Packet {
        stamp: i128::from(record.ts_sec) * 1_000_000_000 + i128::from(record.ts_usec) * unit,
        link: pcap_link(header),
        data: rest.slice_ref(record.data),
        cut: record.caplen < record.origlen,
    };
    *rest = rest.slice_ref(after);
    Ok(Some(packet))
}

fn next_pcapng(
    big_endian: &mut bool,
    interfaces: &mut Vec<Interface>,
    rest: &mut Bytes,
    skipped: &mut u32,
) -> Result<Option<Packet>, Broken> {
    while !rest.is_empty() {
        let head: [u8; 12] = rest.get(..12).and_then(|b| b.try_into().ok()).ok_or(TRUNCATED)?;
        let [k0, k1, k2, k3, l0, l1, l2, l3, magic @ ..] = head;
        if [k0, k1, k2, k3] == SECTION {
            // A section header starts a new byte order and a new list of interfaces.
            *big_endian = match magic {
                [0x1a, 0x2b, 0x3c, 0x4d] => true,
                [0x4d, 0x3c, 0x2b, 0x1a] => false,
                _ => return Err(Broken("a pcapng section without its byte-order mark")),
            };
            interfaces.clear();
        }
        let length = [l0, l1, l2, l3];
        let length =
            if *big_endian { u32::from_be_bytes(length) } else { u32::from_le_bytes(length) } as usize;
        if length < 12 || !length.is_multiple_of(4) {
            return Err(Broken("a pcapng block of impossible length"));
        }
        if length > rest.len() {
            return Err(TRUNCATED);
        }
        let bytes = rest.split_to(length);
        let parsed = if *big_endian { parse_block_be(&bytes) } else { parse_block_le(&bytes) };
        let Ok((_, block)) = parsed else {
            *skipped += 1;
            continue;
        };
        match block {
            Block::InterfaceDescription(block) => {
                let mut offset_seconds = 0;
                for option in block.options.iter().filter(|o| o.code == OptionCode::IfTsoffset) {
                    if let Some(value) = option.value.get(..8).and_then(|v| <[u8; 8]>::try_from(v).ok()) {
                        offset_seconds =
                            if *big_endian { i64::from_be_bytes(value) } else { i64::from_le_bytes(value) };
                    }
                }
                interfaces.push(Interface {
                    link: block.linktype.0 as u32,
                    snap_length: block.snaplen,
                    resolution: block.if_tsresol,
                    offset_seconds,
                });
            }
            Block::EnhancedPacket(block) => {
                let Some(interface) = interfaces.get(block.if_id as usize) else {
                    *skipped += 1;
                    continue;
                };
                let data = &block.data[..block.data.len().min(block.caplen as usize)];
                let ticks = u64::from(block.ts_high) << 32 | u64::from(block.ts_low);
                return Ok(Some(Packet {
                    stamp: interface.stamp(ticks),
                    link: interface.link,
                    data: bytes.slice_ref(data),
                    cut: block.caplen < block.origlen,
                }));
            }
            Block::SimplePacket(block) => {
                let Some(interface) = interfaces.first() else {
                    *skipped += 1;
                    continue;
                };
                // Its captured length is implied: the smaller of original and snap length (0: no limit).
                let limit = if interface.snap_length == 0 { u32::MAX } else { interface.snap_length };
                let captured = block.data.len().min(block.origlen.min(limit) as usize);
                return Ok(Some(Packet {
                    stamp: 0,
                    link: interface.link,
                    data: bytes.slice_ref(&block.data[..captured]),
                    cut: captured < block.origlen as usize,
                }));
            }
            _ => {}
        }
    }
    Ok(None)
}

impl Interface {
    /// Nanoseconds since 1970 of a stamp in this interface's units: negative powers of 10, or of 2 if
    /// the top bit of if_tsresol is set (draft-ietf-opsawg-pcapng, section 4.2).
    fn stamp(&self, ticks: u64) -> i128 {
        let exponent = u32::from(self.resolution & 0x7f);
        let scaled = u128::from(ticks) * 1_000_000_000;
        let nanos = if self.resolution & 0x80 != 0 {
            scaled.checked_shr(exponent).unwrap_or(0)
        } else {
            10u128.checked_pow(exponent).map_or(0, |unit| scaled / unit)
        };
        i128::from(self.offset_seconds) * 1_000_000_000 + i128::try_from(nanos).unwrap_or(i128::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(resolution: u8) -> Interface {
        Interface { link: 1, snap_length: 0, resolution, offset_seconds: 0 }
    }

    #[test]
    fn stamps_of_base_ten_and_two() {
        assert_eq!(interface(6).stamp(1_500_000), 1_500_000_000);
        assert_eq!(interface(9).stamp(1_500_000), 1_500_000);
        assert_eq!(interface(0).stamp(3), 3_000_000_000);
        assert_eq!(interface(0x80 | 10).stamp(1_536), 1_500_000_000);
        assert_eq!(interface(0x80 | 32).stamp(1 << 33), 2_000_000_000);
        assert_eq!(interface(127).stamp(u64::MAX), 0);
        assert_eq!(interface(255).stamp(u64::MAX), 0);
        let shifted = Interface { offset_seconds: -2, ..interface(6) };
        assert_eq!(shifted.stamp(5_000_000), 3_000_000_000);
    }

    /// A pcapng block of `kind` around `body`, which must be padded already.
    fn block(kind: u32, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u32 + 12).to_be_bytes();
        [&kind.to_be_bytes()[..], &length, body, &length].concat()
    }

    #[test]
    fn a_big_endian_file_with_two_interfaces_and_a_bad_block() {
        let section = block(
            0x0a0d_0d0a,
            &[&[0x1a, 0x2b, 0x3c, 0x4d, 0, 1, 0, 0][..], &u64::MAX.to_be_bytes()].concat(),
        );
        let ether = block(1, &[0, 1, 0, 0, 0, 0, 0, 0]);
        // if_tsresol 2^-10, if_tsoffset 7 s, end of options.
        let mut options = vec![0, 101, 0, 0, 0, 0, 0, 0, 0, 9, 0, 1, 0x8a, 0, 0, 0, 0, 14, 0, 8];
        options.extend(7i64.to_be_bytes());
        options.extend([0; 4]);
        let raw = block(1, &options);
        let packet = |interface: u8, ticks: u32| {
            let words = [u32::from(interface), 0, ticks, 3, 9].map(u32::to_be_bytes).concat();
            block(6, &[&words[..], &[1, 2, 3, 0]].concat())
        };
        let orphan = packet(7, 1);
        let file = [section, ether, raw, packet(0, 5), orphan, packet(1, 512), vec![0; 7]].concat();
        let mut packets = Packets::open(Bytes::from(file)).expect("a capture");
        let first = packets.next_packet().expect("first");
        assert_eq!((first.link, first.stamp, &first.data[..], first.cut), (1, 5_000, &[1, 2, 3][..], true));
        let second = packets.next_packet().expect("second");
        assert_eq!((second.link, second.stamp), (101, 7_500_000_000));
        assert!(packets.next_packet().is_none());
        let damage = packets.damage().expect("damage");
        assert!(damage.contains("breaks off") && damage.contains("1 unreadable"), "{damage}");
    }
}
