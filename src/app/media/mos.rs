//! How a stream sounds, estimated: the E-model.
//!
//! Source: ITU-T G.107: R = Ro - Is - Id - Ie,eff + A. With its default values Ro - Is is 93.2 (the delay of a circuit without
//! delay, echo perfectly cancelled), the advantage factor A is 0. Section 7.4 gives Id, 7.5 Ie,eff, annex B the MOS.

use super::codec::Codec;

/// R of a call with nothing to mar it.
const BEST: f64 = 93.2;

/// What is known of a stream.
#[derive(Copy, Clone, Debug)]
pub(super) struct Conditions {
    /// Its codec.
    pub codec: Codec,
    /// Share of packets lost, 0 to 1.
    pub loss: f64,
    /// Mean number of packets lost in a row, at least 1; 1 if none were.
    pub burst: f64,
    /// From mouth to ear, in ms.
    pub delay: f64,
}

/// The R factor, 0 to 100; `None` for a codec without figures.
pub(super) fn r_factor(conditions: &Conditions) -> Option<f64> {
    let (ie, bpl) = conditions.codec.impairment()?;
    let loss = conditions.loss.clamp(0.0, 1.0);
    // The mean run under random loss of the same rate is 1 / (1 - loss).
    let burst_ratio = (conditions.burst * (1.0 - loss)).max(1.0);
    let percent = loss * 100.0;
    let effective = ie + (95.0 - ie) * percent / (percent / burst_ratio + bpl);
    Some((BEST - delay_impairment(conditions.delay) - effective).clamp(0.0, 100.0))
}

/// Id, of absolute delay alone (Idd).
fn delay_impairment(delay: f64) -> f64 {
    if delay <= 100.0 {
        return 0.0;
    }
    let x = (delay / 100.0).log2();
    let root = |x: f64| (1.0 + x.powi(6)).powf(1.0 / 6.0);
    25.0 * (root(x) - 3.0 * root(x / 3.0) + 2.0)
}

/// The mean opinion score of an R factor, 1 to 4.5.
pub(super) fn score(r: f64) -> f64 {
    if r <= 0.0 {
        1.0
    } else if r >= 100.0 {
        4.5
    } else {
        (1.0 + 0.035 * r + r * (r - 60.0) * (100.0 - r) * 7e-6).max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mos(codec: &str, loss: f64, burst: f64, delay: f64) -> f64 {
        let conditions = Conditions { codec: Codec::named(codec.as_bytes()), loss, burst, delay };
        score(r_factor(&conditions).expect("a voice codec"))
    }

    fn near(found: f64, published: f64, within: f64) {
        assert!((found - published).abs() <= within, "{found} is not {published}");
    }

    /// G.107 annex B table B.1: R and the MOS it stands for.
    #[test]
    fn scores_are_those_of_the_recommendation() {
        for (r, published) in [(90.0, 4.34), (80.0, 4.03), (70.0, 3.60), (60.0, 3.10), (50.0, 2.58)] {
            near(score(r), published, 0.0065);
        }
        near(score(93.2), 4.41, 0.005);
        assert_eq!((score(-1.0), score(101.0)), (1.0, 4.5));
    }

    #[test]
    fn codecs_loss_and_delay_cost_what_they_should() {
        near(mos("PCMA", 0.0, 1.0, 0.0), 4.41, 0.005);
        near(mos("G729", 0.0, 1.0, 0.0), 4.14, 0.02);
        near(mos("G726-32", 0.0, 1.0, 0.0), 4.24, 0.02);
        // G.711 with concealment at 5 % loss: Ie,eff is 95 * 5 / 30.1.
        near(mos("PCMU", 0.05, 1.0, 0.0), score(93.2 - 15.78), 0.005);
        assert!(mos("PCMU", 0.05, 5.0, 0.0) < mos("PCMU", 0.05, 1.0, 0.0));
        // G.107: about 150 ms costs next to nothing, 400 ms much (Idd near 1 and 24).
        near(delay_impairment(150.0), 0.15, 0.15);
        near(delay_impairment(400.0), 24.0, 1.5);
        assert_eq!(r_factor(&Conditions { codec: Codec::UNKNOWN, loss: 0.0, burst: 1.0, delay: 0.0 }), None);
        assert!(mos("PCMU", 1.0, 1000.0, 900.0) >= 1.0);
    }
}
