//! What a call is to be: drawn from the seed, the same for both ends.

use super::agent::MS;
use crate::sim::rng::Rng;

/// How the INVITE goes.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// 200.
    Accept,
    /// A refusal of this code.
    Refuse(u16),
    /// The caller gives up while it rings, or before.
    Cancel,
    /// Nobody answers until the proxy gives up.
    Never,
}

/// What one end does while they talk.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Act {
    /// A re-INVITE that puts the other on hold.
    Hold,
    /// A re-INVITE that goes on.
    Resume,
    /// An UPDATE with an offer that changes nothing.
    Update,
    /// INFO.
    Info,
    /// REFER, answered 202.
    Refer,
    /// NOTIFY of the REFER.
    Notify,
    /// MESSAGE within the dialog.
    Message,
    /// BYE.
    Bye,
}

/// The first target of the route, if it is not the one that answers.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum First {
    /// There is only one target.
    None,
    /// It is silent.
    Silent,
    /// It says 503.
    Busy,
}

/// A call's script. Times in ns.
#[derive(Clone, Debug)]
pub(super) struct Script {
    pub start: u64,
    pub first: First,
    /// 401 or 407 to the first INVITE.
    pub challenge: Option<u16>,
    /// The INVITE has no offer.
    pub late_offer: bool,
    /// It rings reliably (RFC 3262), with the answer in it.
    pub reliable: bool,
    /// From the INVITE to ringing, and from there to the answer.
    pub ring: u64,
    pub answer_after: u64,
    pub answer: Answer,
    /// What is done then, by which end (0: caller), how long after what was before.
    pub acts: Vec<(usize, Act, u64)>,
    /// How long replies within the dialog take.
    pub thinking: u64,
    /// From an agent to the service and back.
    pub distance: u64,
}

impl Script {
    pub(super) fn draw(rng: &mut Rng) -> Script {
        let answer = match rng.range(0, 19) {
            0..=12 => Answer::Accept,
            13 => Answer::Refuse(486),
            14 => Answer::Refuse(rng.pick(&[603, 404, 480, 500])),
            15..=17 => Answer::Cancel,
            _ => Answer::Never,
        };
        let first = match rng.range(0, 9) {
            0 => First::Silent,
            1 | 2 => First::Busy,
            _ => First::None,
        };
        let late_offer = rng.chance(150);
        Script {
            start: rng.range(0, 2_000) * MS,
            first,
            challenge: rng.chance(200).then(|| rng.pick(&[401, 407])),
            late_offer,
            reliable: !late_offer && rng.chance(300),
            ring: rng.range(0, 300) * MS,
            answer_after: rng.range(0, 1_500) * MS,
            answer,
            acts: acts(rng),
            thinking: rng.pick(&[0, 0, 30, 150]) * MS,
            distance: rng.range(300, 4_000) * 1_000,
        }
    }
}

fn acts(rng: &mut Rng) -> Vec<(usize, Act, u64)> {
    let mut acts = Vec::new();
    for _ in 0..rng.range(0, 3) {
        let who = rng.range(0, 1) as usize;
        let mut pause = || rng.range(20, 800) * MS;
        let (first, second) = (pause(), pause());
        match rng.range(0, 5) {
            0 | 1 => {
                acts.push((who, Act::Hold, first));
                acts.push((who, Act::Resume, second));
            }
            2 => acts.push((who, Act::Update, first)),
            3 => {
                acts.push((who, Act::Refer, first));
                acts.push((1 - who, Act::Notify, second));
            }
            4 => acts.push((who, Act::Message, first)),
            _ => acts.push((who, Act::Info, first)),
        }
    }
    acts.push((rng.range(0, 1) as usize, Act::Bye, rng.range(20, 1_500) * MS));
    acts
}
