//! How much is measured: from the command line, or as usual.

use anyhow::Context;
use tandem::types::Nanos;

use crate::common::Args;

pub(crate) struct Plan {
    pub(crate) rates: Vec<f64>,
    pub(crate) rounds: u32,
    pub(crate) duration: Nanos,
    /// Only this system.
    system: Option<String>,
}

impl Plan {
    /// `rounds` and `seconds`: of a quick run, and of a whole one.
    pub(crate) fn read(
        args: &Args,
        rates: &[f64],
        rounds: (u32, u32),
        seconds: (u64, u64),
    ) -> anyhow::Result<Plan> {
        let usual = if args.quick { (rounds.0, seconds.0) } else { (rounds.1, seconds.1) };
        let rates = match args.get("--rate") {
            Some(rate) => vec![rate.parse().context("--rate")?],
            None => rates.to_vec(),
        };
        let rounds = args.get("--rounds").map_or(Ok(usual.0), str::parse).context("--rounds")?;
        let seconds = args.get("--seconds").map_or(Ok(usual.1), str::parse).context("--seconds")?;
        let system = args.get("--system").map(String::from);
        Ok(Plan { rates, rounds, duration: Nanos::from_secs(seconds), system })
    }

    /// Which of these systems are measured, by number; the first only if it is `installed`.
    pub(crate) fn systems(&self, names: &[&str], installed: bool) -> Vec<usize> {
        let wanted = |name: &str| self.system.as_deref().is_none_or(|system| system == name);
        let measured = |number: &usize| (*number > 0 || installed) && wanted(names[*number]);
        (0..names.len()).filter(measured).collect()
    }
}
