//! The smallest application: answers each datagram with its own bytes and a trailer
//! ([`EchoTrailer`]) that lets a client prove order, loss, duplication and continuity.

use crate::app::classify::KeyExtractor;
use crate::app::{BadSnapshot, CallApp, Context, Inbound, TimerId, Unclassified};
use crate::types::{CallKey, Nanos, NodeId, Position};
use crate::wire::echo::EchoTrailer;

/// The form of a call's snapshot: its count, u64, big endian.
const CALL_FORM: u16 = 1;

/// Echo's configuration.
#[derive(Clone, Debug)]
pub struct Echo {
    /// Tells calls apart.
    pub keys: KeyExtractor,
}

impl CallApp for Echo {
    /// How many packets the call has had.
    type Call = u64;
    type Shared = ();
    type Change = ();

    fn classify(&self, packet: &Inbound<'_>) -> Result<CallKey, Unclassified> {
        self.keys.key(packet)
    }

    fn open(&self, _: CallKey, _: Nanos) -> u64 {
        0
    }

    fn on_packet(
        &self,
        count: &mut u64,
        ctx: &mut impl Context<Shared = (), Change = ()>,
        packet: &Inbound<'_>,
    ) {
        *count += 1;
        let (position, slot) = ctx.place();
        let trailer = EchoTrailer {
            slot: slot.into(),
            call: ctx.key().0 as u64,
            count: *count,
            position: Position(position),
            // Replaced on release: a member cannot know whose outputs are taken.
            node: NodeId(0),
        };
        ctx.send_stamped(packet.local, packet.source, &[packet.payload, &trailer.encode()]);
    }

    fn on_timer(&self, _: &mut u64, _: &mut impl Context<Shared = (), Change = ()>, _: TimerId) {}

    fn apply(&self, (): &mut (), (): ()) {}

    fn snapshot_shared(&self, (): &(), _: &mut Vec<u8>) -> u16 {
        0
    }

    fn restore_shared(&self, version: u16, bytes: &[u8]) -> Result<(), BadSnapshot> {
        if version == 0 && bytes.is_empty() {
            Ok(())
        } else {
            Err(BadSnapshot { version, bytes: bytes.len() })
        }
    }

    fn snapshot(&self, count: &u64, out: &mut Vec<u8>) -> u16 {
        out.extend_from_slice(&count.to_be_bytes());
        CALL_FORM
    }

    fn restore(&self, version: u16, bytes: &[u8]) -> Result<u64, BadSnapshot> {
        match bytes.try_into() {
            Ok(count) if version == CALL_FORM => Ok(u64::from_be_bytes(count)),
            _ => Err(BadSnapshot { version, bytes: bytes.len() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Echo;
    use crate::app::classify::{KeyExtractor, KeyRule};
    use crate::app::table::{CallTable, OutputSink, Place, TableLimits};
    use crate::app::{CallApp, Inbound};
    use crate::types::{CallKey, Endpoint, LocalId, Nanos, NodeId, Position, Slot};
    use crate::wire::echo::{EchoTrailer, split};

    const ECHO: Echo = Echo { keys: KeyExtractor { rule: KeyRule::Source, seed: 1 } };
    const LIMITS: TableLimits = TableLimits { max_calls: 10, idle: Nanos::MAX };

    struct Replies(Vec<(bool, LocalId, Endpoint, Vec<u8>)>);

    impl OutputSink for Replies {
        fn output(&mut self, stamped: bool, local: LocalId, to: Endpoint, bytes: &[u8]) {
            self.0.push((stamped, local, to, bytes.to_vec()));
        }
    }

    #[test]
    fn the_reply_is_the_request_and_the_trailer_to_the_sender() {
        let mut table = CallTable::new(Slot(7), LIMITS);
        let source = Endpoint { ip: [9; 16], port: 5060 };
        let packet = Inbound { source, local: LocalId::endpoint(2), payload: b"hello" };
        let key = CallKey(0xabcd_0000_0000_0000_1234);
        assert_eq!(ECHO.classify(&packet), ECHO.keys.key(&packet));
        let mut replies = Replies(Vec::new());
        for position in [41, 42] {
            let place = Place { position: Position(position), time: Nanos(1) };
            table.on_packet(&ECHO, place, key, &packet, &mut replies);
        }
        let (stamped, local, to, bytes) = &replies.0[1];
        assert_eq!((*stamped, *local, *to), (true, LocalId::endpoint(2), source));
        let trailer =
            EchoTrailer { slot: 7, call: 0x1234, count: 2, position: Position(42), node: NodeId(0) };
        assert_eq!(split(bytes), Some((&b"hello"[..], trailer)));
    }

    #[test]
    fn a_count_survives_its_snapshot_and_other_forms_are_refused() {
        let mut bytes = Vec::new();
        let version = ECHO.snapshot(&77, &mut bytes);
        assert_eq!(ECHO.restore(version, &bytes), Ok(77));
        assert!(ECHO.restore(version + 1, &bytes).is_err());
        assert!(ECHO.restore(version, &bytes[1..]).is_err());
        assert!(ECHO.restore_shared(1, &[]).is_err());
    }
}
