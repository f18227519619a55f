//! Small steps over bytes that all views take.

use memchr::memchr;

/// RFC 3261 section 25.1, `token`.
pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-.!%*_+`'~".contains(&byte)
}

/// At least one byte, all of `token`.
pub(super) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().copied().all(is_token_byte)
}

/// `SIP/` and two numbers with a dot between them.
pub(super) fn is_version(bytes: &[u8]) -> bool {
    let Some((name, numbers)) = bytes.split_at_checked(4) else { return false };
    let mut parts = numbers.splitn(2, |b| *b == b'.');
    let mut number = || parts.next().is_some_and(|n| !n.is_empty() && n.iter().all(u8::is_ascii_digit));
    name.eq_ignore_ascii_case(b"SIP/") && number() && number()
}

/// The first line without its end, and what follows; `None` if no line ends here.
pub(super) fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr(b'\n', bytes)?;
    let line = &bytes[..end];
    Some((line.strip_suffix(b"\r").unwrap_or(line), &bytes[end + 1..]))
}

/// What is before the first such byte and what is after it; all and `None` without one.
pub(super) fn cut(bytes: &[u8], at: u8) -> (&[u8], Option<&[u8]>) {
    match memchr(at, bytes) {
        Some(i) => (&bytes[..i], Some(&bytes[i + 1..])),
        None => (bytes, None),
    }
}

/// A decimal number without sign. `None` if it is none or too large.
pub(super) fn decimal(bytes: &[u8]) -> Option<u32> {
    let digit = |sum: u32, byte: &u8| {
        let digit = byte.is_ascii_digit().then(|| u32::from(byte - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    };
    if bytes.is_empty() { None } else { bytes.iter().try_fold(0, digit) }
}

/// A decimal number without sign that stays at its largest value; `None` if it is no number.
pub(super) fn seconds(bytes: &[u8]) -> Option<u32> {
    let number = !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit);
    number.then(|| decimal(bytes).unwrap_or(u32::MAX))
}

/// The words between blanks and line ends.
pub(super) fn words(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

/// The bytes behind a quoted string that starts here with its `"`; `None` if it never ends.
pub(super) fn after_quoted(bytes: &[u8]) -> Option<&[u8]> {
    let mut at = 1;
    loop {
        at += memchr::memchr2(b'"', b'\\', bytes.get(at..)?)?;
        if bytes[at] == b'"' {
            return Some(&bytes[at + 1..]);
        }
        at += 2;
    }
}

/// Where `part`, a piece of `whole`, starts in it.
pub(super) fn offset(whole: &[u8], part: &[u8]) -> usize {
    let at = (part.as_ptr() as usize).wrapping_sub(whole.as_ptr() as usize);
    debug_assert!(at + part.len() <= whole.len(), "no piece of it");
    at
}
