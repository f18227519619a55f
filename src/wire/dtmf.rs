//! Telephone events: keys pressed, as RTP payload.
//!
//! Source: RFC 4733 (sections 2.3 and 3.2).

/// One report of an event; an event is reported many times, and ends in a report with `end`, which is repeated.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct TelephoneEvent {
    /// 0 to 15 are the keys 0 to 9, `*`, `#`, A to D.
    pub event: u8,
    /// Whether the event is over.
    pub end: bool,
    /// How long it has lasted, in units of the stream's clock.
    pub duration: u16,
}

impl TelephoneEvent {
    /// Reads the first report of a payload; `None` if it is too short.
    pub fn read(payload: &[u8]) -> Option<TelephoneEvent> {
        let [event, flags, high, low] = *payload.first_chunk()?;
        Some(TelephoneEvent { event, end: flags & 0x80 != 0, duration: u16::from_be_bytes([high, low]) })
    }
}

/// The key of an event; `None` for events that are no key (tones, hook, flash).
pub fn key(event: u8) -> Option<char> {
    b"0123456789*#ABCD".get(usize::from(event)).map(|key| char::from(*key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read() {
        let read = TelephoneEvent::read(&[11, 0x8a, 3, 0x20]);
        assert_eq!(read, Some(TelephoneEvent { event: 11, end: true, duration: 800 }));
        assert_eq!(TelephoneEvent::read(&[1, 2, 3]), None);
        assert_eq!((key(0), key(10), key(15), key(16)), (Some('0'), Some('*'), Some('D'), None));
    }
}
