//! Where in a datagram a clone must differ from its template: the Call-ID of SIP messages, the SSRCs of RTP
//! and RTCP.

use memchr::memmem;

use crate::wire::rtp::{self, Kind};
use crate::wire::sip::HeaderName;
use crate::wire::sip::scan::Message;

/// Length of the part of a Call-ID that is fresh in every clone.
pub(crate) const TOKEN_LEN: usize = 13;

/// Shorter Call-IDs occur in a message by chance too: only their header is replaced.
const TELLING_LEN: usize = 8;

/// Bytes to be overwritten in each clone.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Patch {
    /// [`TOKEN_LEN`] bytes: the beginning of the Call-ID.
    Token {
        /// Offset in the datagram.
        at: u32,
    },
    /// 4 bytes: the SSRC with this number within its template.
    Ssrc {
        /// Offset in the datagram.
        at: u32,
        /// Which of the template's SSRCs.
        index: u32,
    },
}

/// Prepares a SIP message for cloning: its bytes (longer than before if its Call-ID has fewer than
/// [`TOKEN_LEN`] bytes, with the Content-Length put right) and the places of the token, wherever the Call-ID
/// occurs as a word of its own.
pub(crate) fn sip(bytes: &[u8], message: &Message<'_>, id: &[u8]) -> (Vec<u8>, Vec<Patch>) {
    let places = occurrences(bytes, id);
    if id.len() >= TOKEN_LEN {
        return (bytes.to_vec(), places.iter().map(|&at| Patch::Token { at: at as u32 }).collect());
    }
    // Every call gets a Call-ID of the same, sufficient length.
    let body = bytes.len() - message.body().len();
    let growth = (TOKEN_LEN - id.len()) * places.iter().filter(|at| **at >= body).count();
    let length = content_length(bytes, message).filter(|_| growth > 0);
    let mut edits: Vec<(usize, usize, Vec<u8>)> =
        places.iter().map(|&at| (at, id.len(), vec![b'0'; TOKEN_LEN])).collect();
    if let Some((at, digits, value)) = length {
        edits.push((at, digits, (value + growth).to_string().into_bytes()));
        edits.sort_by_key(|(at, ..)| *at);
    }
    let (mut grown, mut patches, mut from) = (Vec::with_capacity(bytes.len() + 64), Vec::new(), 0);
    for (at, len, new) in edits {
        grown.extend_from_slice(&bytes[from..at]);
        if length.is_none_or(|(place, ..)| place != at) {
            patches.push(Patch::Token { at: grown.len() as u32 });
        }
        grown.extend_from_slice(&new);
        from = at + len;
    }
    grown.extend_from_slice(&bytes[from..]);
    (grown, patches)
}

/// Where `id` stands in `bytes` as a word of its own: not within a longer one such as another Call-ID.
fn occurrences(bytes: &[u8], id: &[u8]) -> Vec<usize> {
    let header = offset(bytes, id);
    let mut places = Vec::new();
    let mut next = 0;
    for at in memmem::find_iter(bytes, id) {
        let word = |i: Option<usize>| i.and_then(|i| bytes.get(i)).is_some_and(u8::is_ascii_alphanumeric);
        let alone = !word(at.checked_sub(1)) && !word(Some(at + id.len()));
        if at >= next && (at == header || alone && id.len() >= TELLING_LEN) {
            places.push(at);
            next = at + id.len();
        }
    }
    places
}

/// Offset, length and value of the Content-Length header.
fn content_length(bytes: &[u8], message: &Message<'_>) -> Option<(usize, usize, usize)> {
    let value = message.header(HeaderName::ContentLength)?;
    Some((offset(bytes, value), value.len(), message.content_length()?))
}

/// Where the slice `part` of `bytes` begins.
fn offset(bytes: &[u8], part: &[u8]) -> usize {
    part.as_ptr().addr().saturating_sub(bytes.as_ptr().addr())
}

/// The offsets of all SSRCs of an RTP or RTCP datagram: of RTP the sender's, of RTCP those of senders, report
/// blocks, descriptions, goodbyes and feedback. Of an RTCP datagram that does not hold together (SRTCP, whose
/// rest is encrypted) only the first.
pub(crate) fn ssrcs(bytes: &[u8]) -> Vec<usize> {
    match rtp::kind(bytes) {
        Kind::Rtp => vec![8],
        Kind::Rtcp => compound(bytes).unwrap_or_else(|| vec![4]),
        _ => Vec::new(),
    }
}

/// RFC 3550 section 6.4 to 6.7, RFC 4585 section 6.1.
fn compound(bytes: &[u8]) -> Option<Vec<usize>> {
    let (mut places, mut base) = (Vec::new(), 0);
    while base < bytes.len() {
        let [first, kind, high, low] = *bytes.get(base..)?.first_chunk()?;
        let end = base + (usize::from(u16::from_be_bytes([high, low])) + 1) * 4;
        let packet = bytes.get(base..end)?;
        // RFC 5761 section 4: other types are no RTCP.
        if first >> 6 != 2 || !(192..=223).contains(&kind) {
            return None;
        }
        let count = usize::from(first & 0x1f);
        let blocks = |from: usize, step: usize| (0..count).map(move |i| from + i * step);
        let mut found: Vec<usize> = match kind {
            200 => std::iter::once(4).chain(blocks(28, 24)).collect(),
            201 => std::iter::once(4).chain(blocks(8, 24)).collect(),
            202 => descriptions(packet, count)?,
            203 => blocks(4, 4).collect(),
            205 | 206 => vec![4, 8],
            _ => vec![4],
        };
        found.retain(|at| at + 4 <= packet.len());
        places.extend(found.into_iter().map(|at| base + at));
        base = end;
    }
    Some(places)
}

/// The chunks of a source description (RFC 3550 section 6.5): an SSRC, items, a zero, padding to 4 bytes.
fn descriptions(packet: &[u8], count: usize) -> Option<Vec<usize>> {
    let (mut places, mut at) = (Vec::new(), 4);
    for _ in 0..count {
        places.push(at);
        at += 4;
        while *packet.get(at)? != 0 {
            at += 2 + usize::from(*packet.get(at + 1)?);
        }
        at = (at + 4) & !3;
    }
    Some(places)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::{Patch, TOKEN_LEN, sip, ssrcs};
    use crate::wire::sip::scan::Message;

    fn prepared(text: &str) -> (String, Vec<usize>) {
        let bytes = text.as_bytes();
        let message = Message::parse(bytes).unwrap();
        let (bytes, patches) = sip(bytes, &message, message.call_id().unwrap());
        let at = |patch| match patch {
            Patch::Token { at } => at as usize,
            Patch::Ssrc { .. } => unreachable!("a SIP message has no SSRC"),
        };
        (String::from_utf8(bytes).unwrap(), patches.into_iter().map(at).collect())
    }

    #[test]
    fn a_long_call_id_is_found_wherever_it_stands_and_no_byte_moves() {
        let id = "1-1966@10.0.2.20";
        let text = format!(
            "INVITE sip:b SIP/2.0\r\ni: {id}\r\nReplaces: {id};to-tag=1\r\nX: 2{id}\r\nl: 19\r\n\r\nid={id}"
        );
        let (bytes, places) = prepared(&text);
        assert_eq!(bytes, text);
        let wanted: Vec<_> = text.match_indices(id).map(|(at, _)| at).collect();
        assert_eq!(places, [wanted[0], wanted[1], wanted[3]], "not the one within a longer word");
    }

    #[test]
    fn a_short_call_id_grows_and_the_content_length_with_it() {
        let (bytes, places) =
            prepared("BYE sip:b SIP/2.0\r\nCall-ID: abcd@efgh\r\nl: 98\r\nX: y\r\n\r\nabcd@efgh;abcd@efgh");
        let zeros = "0".repeat(TOKEN_LEN);
        let wanted =
            format!("BYE sip:b SIP/2.0\r\nCall-ID: {zeros}\r\nl: 106\r\nX: y\r\n\r\n{zeros};{zeros}");
        assert_eq!(bytes, wanted);
        assert_eq!(places, wanted.match_indices(&zeros).map(|(at, _)| at).collect::<Vec<_>>());
    }

    #[test]
    fn a_call_id_of_two_letters_is_replaced_in_its_header_only() {
        let (bytes, places) = prepared("BYE sip:ab SIP/2.0\r\nCall-ID: ab\r\nl: 2\r\n\r\nab");
        assert_eq!(places.len(), 1);
        assert!(bytes.ends_with("l: 2\r\n\r\nab"), "{bytes}");
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    #[test]
    fn all_ssrcs_of_a_compound_are_found() {
        let mut report = vec![0x81c8_000c, 1];
        report.extend([0; 5]);
        report.push(2);
        report.extend([0; 5]);
        // A description of 1 (CNAME of 2 bytes), feedback from 1 about 2, a goodbye of 1.
        report.extend([0x81ca_0003, 1, 0x0102_6161, 0, 0x81ce_0002, 1, 2, 0x81cb_0001, 1]);
        let found: Vec<_> = ssrcs(&words(&report)).iter().map(|at| at / 4).collect();
        assert_eq!(found, [1, 7, 14, 18, 19, 21]);
    }

    #[test]
    fn of_rtp_and_of_encrypted_rtcp_there_is_one() {
        assert_eq!(ssrcs(&words(&[0x8008_0001, 5, 6, 7])), [8]);
        assert_eq!(ssrcs(&words(&[0x80c9_0001, 1, 0x8000_0001, 5, 6])), [4]);
        assert_eq!(ssrcs(b"OPTIONS sip:a SIP/2.0\r\n\r\n"), Vec::<usize>::new());
    }

    proptest! {
        #[test]
        fn every_place_is_within_the_datagram(mut bytes in proptest::collection::vec(any::<u8>(), 8..200), kind in 200_u8..208) {
            bytes[0] = 0x80 | bytes[0] & 0x1f;
            bytes[1] = kind;
            for at in ssrcs(&bytes) {
                assert!(at + 4 <= bytes.len());
            }
        }
    }
}
