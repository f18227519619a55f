//! Session timers as a proxy sees them (RFC 4028 section 8).

use super::config::SipConfig;
use super::state::Refresh;
use crate::wire::sip::fields::{Delay, has_option};
use crate::wire::sip::{HeaderName, Message, Method, Rewrite};

/// The least that RFC 4028 lets anybody ask for, in s.
const LEAST: u32 = 90;

/// What is changed of a message's session timer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Amended {
    expires: Option<String>,
    min_se: Option<u32>,
    require: bool,
}

impl Amended {
    pub(super) fn write(&self, rewrite: &mut Rewrite<'_>) {
        if let Some(expires) = &self.expires {
            rewrite.set(HeaderName::SessionExpires, expires.as_bytes());
        }
        if let Some(min_se) = self.min_se {
            rewrite.set(HeaderName::MinSe, min_se.to_string().as_bytes());
        }
        if self.require {
            rewrite.append(HeaderName::Require, b"timer");
        }
    }
}

/// A request is refused for a session that is too short; with the least that is accepted, in s.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct TooSmall(pub u32);

fn delay<'m>(message: &Message<'m>, name: HeaderName<'_>) -> Option<Delay<'m>> {
    Delay::parse(message.first(name)?)
}

fn supports_timer(message: &Message<'_>) -> bool {
    message.all(HeaderName::Supported).any(|header| has_option(header.value, b"timer"))
}

/// Judges a request (RFC 4028 section 8.1): what it says, and what is changed of it.
pub(super) fn request(config: &SipConfig, message: &Message<'_>) -> Result<(Refresh, Amended), TooSmall> {
    let mut amended = Amended::default();
    if !matches!(message.method(), Some(Method::Invite | Method::Update)) {
        return Ok((Refresh::default(), amended));
    }
    let supported = supports_timer(message);
    let asked = delay(message, HeaderName::SessionExpires).map(|delay| (delay.seconds, delay.params));
    let least = delay(message, HeaderName::MinSe).map_or(LEAST, |delay| delay.seconds);
    let Some(ours) = config.session else {
        let interval = asked.map_or(0, |(seconds, _)| seconds);
        return Ok((Refresh { supported, interval }, amended));
    };
    let floor = ours.min_se.max(LEAST);
    let most = ours.interval.max(floor).max(least);
    let interval = match asked {
        Some((seconds, _)) if seconds < floor && supported => return Err(TooSmall(floor)),
        Some((seconds, params)) => {
            if seconds < floor {
                amended.min_se = Some(floor.max(least));
            }
            let interval = if seconds < floor { floor.max(least) } else { seconds.min(most) };
            if interval != seconds {
                let refresher = params.value(b"refresher").and_then(|who| std::str::from_utf8(who).ok());
                let refresher = refresher.map_or(String::new(), |who| format!(";refresher={who}"));
                amended.expires = Some(format!("{interval}{refresher}"));
            }
            interval
        }
        None if message.method() == Some(Method::Invite) => {
            amended.expires = Some(most.to_string());
            amended.min_se = (floor > least).then_some(floor);
            most
        }
        // An UPDATE may be about something else.
        None => 0,
    };
    Ok((Refresh { supported, interval }, amended))
}

/// Judges a 2xx (RFC 4028 section 8.2): how long the session lasts, in s, and what is changed of the response.
pub(super) fn response(refresh: Refresh, message: &Message<'_>) -> (Option<u32>, Amended) {
    match delay(message, HeaderName::SessionExpires) {
        Some(delay) => (Some(delay.seconds.max(LEAST)), Amended::default()),
        // The callee knows no timers, so the caller, who does, refreshes.
        None if refresh.supported && refresh.interval > 0 => {
            let expires = Some(format!("{};refresher=uac", refresh.interval));
            (Some(refresh.interval), Amended { expires, min_se: None, require: true })
        }
        None => (None, Amended::default()),
    }
}
