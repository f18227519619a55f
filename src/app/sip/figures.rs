//! What there is to tell of a slot, for operators.

use super::shared::{Lost, Shared};
use crate::app::Figure;
use crate::types::Nanos;

/// The media ports lent to calls, the targets and those of them that are down, takeovers, and messages that came to
/// nothing, by reason.
pub(super) fn tell(shared: &Shared, now: Nanos, say: &mut dyn FnMut(&'static str, Figure)) {
    say("media_ports", Figure::Sum(shared.ports.held() as u64 * 2));
    say("targets", Figure::Most(shared.slot.routes().targets().len() as u64));
    say("targets_down", Figure::Most(shared.slot.down(now).count() as u64));
    say("takeovers", Figure::Sum(shared.slot.takeovers().into()));
    for lost in Lost::all() {
        let count = shared.lost[lost.index()];
        if count > 0 {
            say(lost.name(), Figure::Sum(count.into()));
        }
    }
}
