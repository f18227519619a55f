//! The codecs a call detail record names: clock rate, and what each does to quality.
//!
//! Sources: RFC 3551 (static payload types and clock rates), the payload formats' own RFCs, ITU-T G.113 appendix I (Ie and
//! Bpl). Wideband codecs have no figures on G.107's narrowband scale; theirs are those of G.107.1 (Ie,wb of 13 for
//! G.722 at 64 kbit/s) divided by 1.29, the ratio of the two scales, or a guess for lack of any (Opus, EVS).

use serde::{Deserialize, Serialize};

/// A codec, as its place in the table; snapshots hold it, so a place once given stays.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Codec(u8);

/// What is known of a codec.
struct Known {
    name: &'static str,
    /// The payload type that means it without an `a=rtpmap` line.
    fixed: Option<u8>,
    /// In Hz, of its RTP timestamps.
    clock: u32,
    /// Equipment impairment, in tenths.
    ie: u16,
    /// Packet loss robustness, in tenths.
    bpl: u16,
}

const fn voice(name: &'static str, fixed: Option<u8>, clock: u32, ie: u16, bpl: u16) -> Known {
    Known { name, fixed, clock, ie, bpl }
}

/// Media whose quality is not estimated.
const fn other(name: &'static str, fixed: Option<u8>, clock: u32) -> Known {
    Known { name, fixed, clock, ie: 0, bpl: 0 }
}

const TABLE: [Known; 43] = [
    other("unknown", None, 8_000),
    voice("PCMU", Some(0), 8_000, 0, 251),
    voice("PCMA", Some(8), 8_000, 0, 251),
    voice("G722", Some(9), 8_000, 33, 100),
    voice("G729", Some(18), 8_000, 100, 190),
    voice("G723", Some(4), 8_000, 150, 161),
    voice("GSM", Some(3), 8_000, 200, 100),
    voice("GSM-EFR", None, 8_000, 50, 100),
    voice("iLBC", None, 8_000, 110, 100),
    voice("G726-40", None, 8_000, 20, 100),
    voice("G726-32", Some(2), 8_000, 70, 100),
    voice("G726-24", None, 8_000, 250, 100),
    voice("G726-16", None, 8_000, 500, 100),
    voice("AAL2-G726-40", None, 8_000, 20, 100),
    voice("AAL2-G726-32", None, 8_000, 70, 100),
    voice("AAL2-G726-24", None, 8_000, 250, 100),
    voice("AAL2-G726-16", None, 8_000, 500, 100),
    voice("G728", Some(15), 8_000, 70, 100),
    voice("AMR", None, 8_000, 50, 100),
    voice("AMR-WB", None, 16_000, 50, 100),
    voice("EVS", None, 16_000, 20, 100),
    voice("opus", None, 48_000, 20, 150),
    voice("speex", None, 8_000, 110, 100),
    voice("SILK", None, 24_000, 50, 100),
    voice("L16", Some(11), 44_100, 0, 43),
    voice("G7221", None, 16_000, 50, 100),
    other("telephone-event", None, 8_000),
    other("tone", None, 8_000),
    other("CN", Some(13), 8_000),
    other("red", None, 8_000),
    other("H264", None, 90_000),
    other("H265", None, 90_000),
    other("H263", Some(34), 90_000),
    other("H263-1998", None, 90_000),
    other("H261", Some(31), 90_000),
    other("VP8", None, 90_000),
    other("VP9", None, 90_000),
    other("AV1", None, 90_000),
    other("rtx", None, 90_000),
    other("ulpfec", None, 90_000),
    other("flexfec-03", None, 90_000),
    other("t140", None, 1_000),
    other("MPV", Some(32), 90_000),
];

impl Codec {
    /// None that the table knows.
    pub const UNKNOWN: Codec = Codec(0);

    /// The codec of a name as in `a=rtpmap`, in any case.
    pub fn named(name: &[u8]) -> Codec {
        let known = TABLE.iter().skip(1).position(|known| known.name.as_bytes().eq_ignore_ascii_case(name));
        known.map_or(Codec::UNKNOWN, |at| Codec(at as u8 + 1))
    }

    /// The codec of a static payload type (RFC 3551 section 6).
    pub fn fixed(payload_type: u8) -> Codec {
        let known = TABLE.iter().position(|known| known.fixed == Some(payload_type));
        known.map_or(Codec::UNKNOWN, |at| Codec(at as u8))
    }

    fn known(self) -> &'static Known {
        TABLE.get(usize::from(self.0)).unwrap_or(&TABLE[0])
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        self.known().name
    }

    /// Its usual clock rate in Hz.
    pub fn clock(self) -> u32 {
        self.known().clock
    }

    /// Whether its packets are telephone events.
    pub fn is_event(self) -> bool {
        self.name() == "telephone-event"
    }

    /// Equipment impairment factor and packet loss robustness factor; `None` where no voice quality can be told.
    pub fn impairment(self) -> Option<(f64, f64)> {
        let known = self.known();
        (known.bpl > 0).then(|| (f64::from(known.ie) / 10.0, f64::from(known.bpl) / 10.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codecs_are_found_by_name_and_by_payload_type() {
        assert_eq!(Codec::named(b"pcma").name(), "PCMA");
        assert_eq!(Codec::named(b"OPUS").clock(), 48_000);
        assert_eq!(Codec::named(b"nothing"), Codec::UNKNOWN);
        assert_eq!(Codec::named(b"unknown"), Codec::UNKNOWN);
        assert_eq!(Codec::fixed(18).name(), "G729");
        assert_eq!(Codec::fixed(99), Codec::UNKNOWN);
        assert_eq!(Codec(200).name(), "unknown");
        assert!(Codec::named(b"telephone-event").is_event());
        assert_eq!(Codec::named(b"H264").impairment(), None);
    }
}
