//! Call flows, each run straight and over snapshots.

mod calls;
mod cancels;
mod checks;
mod dialogs;
mod endings;
mod harness;
mod hostile;
mod silence;
mod targets;
mod ways;

use super::state::{Dialog, Exchange, Party, State};
use super::story::Story;
use super::{Call, Kind};

impl Call {
    /// What its state takes on the heap, but for what its media points to.
    fn heap_bytes(&self) -> usize {
        let Kind::Proxied(state) = &self.0 else { return 0 };
        let party = |party: &Party| party.name.len() + party.contact.len() + party.routes.len();
        let dialog = |dialog: &Dialog| dialog.parties.iter().map(party).sum::<usize>();
        let story = |story: &Story| {
            let texts = story.from.len() + story.to.len() + story.uri.len();
            size_of::<Story>() + texts + story.tried.capacity() * size_of::<super::state::Hop>()
        };
        assert!(state.exchanges.is_empty());
        size_of::<State>()
            + state.call_id.len()
            + state.exchanges.capacity() * size_of::<Exchange>()
            + state.dialogs.capacity() * size_of::<Dialog>()
            + state.dialogs.iter().map(dialog).sum::<usize>()
            + state.story.iter().map(|s| story(s)).sum::<usize>()
    }
}
