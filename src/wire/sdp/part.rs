//! Where in a message's body the session description is: all of it, or one part of a multipart body.
//!
//! Sources: RFC 2046 section 5.1 (multipart), RFC 5621 (bodies in SIP).

use std::ops::Range;

use memchr::memmem;

/// The parts of a body that are looked at.
const MAX_PARTS: usize = 16;

/// The range of `body` that holds the session description, by the value of the message's Content-Type (empty if it
/// has none). `None` if there is no description in it.
pub fn description(content_type: &[u8], body: &[u8]) -> Option<Range<usize>> {
    if is_type(content_type, b"application/sdp") {
        return Some(0..body.len());
    }
    if !starts_with(content_type.trim_ascii_start(), b"multipart/") {
        return None;
    }
    let boundary = [b"--", boundary(content_type)?].concat();
    let mut from = delimiter(body, 0, &boundary)?.end;
    for _ in 0..MAX_PARTS {
        let next = delimiter(body, from, &boundary);
        // A body cut short still has its last part.
        let part = from..next.as_ref().map_or(body.len(), |next| next.start);
        if let Some(content) = content(&body[part.clone()]) {
            return Some(part.start + content.start..part.end);
        }
        from = next?.end;
    }
    None
}

/// The next line that is the boundary, with the line end before it, which belongs to it.
fn delimiter(body: &[u8], from: usize, boundary: &[u8]) -> Option<Range<usize>> {
    for at in memmem::find_iter(&body[from..], boundary).map(|at| from + at) {
        let before = &body[..at];
        if !before.is_empty() && before.last() != Some(&b'\n') {
            continue;
        }
        let start = before.strip_suffix(b"\n").map_or(at, |b| b.strip_suffix(b"\r").unwrap_or(b).len());
        let end = memchr::memchr(b'\n', &body[at..]).map_or(body.len(), |end| at + end + 1);
        // Right behind the part's start there is no line end of its own to give back.
        return Some(start.max(from)..end);
    }
    None
}

/// The content of a part that is a session description.
fn content(part: &[u8]) -> Option<Range<usize>> {
    let mut at = 0;
    let mut found = false;
    loop {
        let end = at + memchr::memchr(b'\n', &part[at..])? + 1;
        let line = part[at..end].trim_ascii_end();
        at = end;
        if line.is_empty() {
            return found.then_some(at..part.len());
        }
        if let Some(colon) = memchr::memchr(b':', line) {
            let (name, value) = (line[..colon].trim_ascii(), &line[colon + 1..]);
            let named = name.eq_ignore_ascii_case(b"content-type") || name.eq_ignore_ascii_case(b"c");
            found |= named && is_type(value, b"application/sdp");
        }
    }
}

fn is_type(value: &[u8], wanted: &[u8]) -> bool {
    let end = value.iter().position(|b| *b == b';').unwrap_or(value.len());
    value[..end].trim_ascii().eq_ignore_ascii_case(wanted)
}

fn starts_with(value: &[u8], wanted: &[u8]) -> bool {
    value.get(..wanted.len()).is_some_and(|head| head.eq_ignore_ascii_case(wanted))
}

/// `multipart/mixed;boundary="..."`: the boundary, which is 1 to 70 bytes long.
fn boundary(content_type: &[u8]) -> Option<&[u8]> {
    let mut parameters = content_type.split(|b| *b == b';').skip(1).map(<[u8]>::trim_ascii);
    let value = parameters.find(|p| starts_with(p, b"boundary="))?.get(9..)?.trim_ascii();
    let value = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value);
    (1..=70).contains(&value.len()).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(content_type: &str, body: &str) -> Option<String> {
        description(content_type.as_bytes(), body.as_bytes()).map(|range| body[range].to_owned())
    }

    #[test]
    fn the_description_is_found_whole_or_as_a_part() {
        assert_eq!(found("application/SDP; charset=x", "v=0\r\n"), Some("v=0\r\n".into()));
        assert_eq!(found("text/plain", "v=0\r\n"), None);
        assert_eq!(found("", "v=0\r\n"), None);
        let body = "preamble\r\n--b1\r\nContent-Type: text/plain\r\n\r\nno\r\n--b1\r\nc: Application/sdp\r\n\r\nv=0\r\ns=-\r\n\r\n--b1--\r\n";
        assert_eq!(found("multipart/mixed;boundary=\"b1\"", body), Some("v=0\r\ns=-\r\n".into()));
        assert_eq!(found("Multipart/Mixed; x=y; Boundary=b1", body), Some("v=0\r\ns=-\r\n".into()));
        assert_eq!(found("multipart/mixed;boundary=b2", body), None);
        assert_eq!(found("multipart/mixed", body), None);
        let cut = "--b\nContent-Type:application/sdp\n\nv=0\ns";
        assert_eq!(found("multipart/mixed;boundary=b", cut), Some("v=0\ns".into()));
    }

    proptest! {
        #[test]
        fn any_body_is_harmless(body in proptest::collection::vec(prop_oneof![
            Just("--b".to_owned()), Just("\r\n".to_owned()), Just("\n".to_owned()), Just("--b--".to_owned()),
            Just("Content-Type: application/sdp".to_owned()), "[ -~]{0,6}"], 0..40)) {
            let body = body.concat();
            if let Some(range) = description(b"multipart/mixed;boundary=b", body.as_bytes()) {
                prop_assert!(range.end <= body.len() && range.start <= range.end);
            }
        }
    }
}
