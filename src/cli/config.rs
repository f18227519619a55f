//! `tandem config`: the effective settings, where they come from and what they mean. Also the flags that make
//! settings, for every command that takes them.

use super::json;
use crate::config::{Resolved, Scope, TABLE, resolve_from_environment};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use serde_json::json;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::LazyLock;

/// Settings that `tandem local` and `tandem demo` make themselves, for each of their nodes.
const MADE_BY_LOCAL: [&str; 4] = ["NODE", "NODES", "DATA_DIR", "RUN_DIR"];

/// The setting whose flag may be given several times: each adds to the list.
const REPEATED: &str = "ROUTE";

/// The names of the settings' flags, in the table's order.
static FLAGS: LazyLock<Vec<String>> = LazyLock::new(|| TABLE.iter().map(|setting| setting.flag()).collect());

/// One flag a setting, made from the table. Flatten it into a command's arguments; with `LOCAL` the settings
/// that a cluster of local processes makes itself are left out.
#[derive(Clone, Debug, Default)]
pub struct SettingArgs<const LOCAL: bool = false> {
    /// (name without `TANDEM_`, value) of each flag that was given.
    pub flags: Vec<(String, String)>,
}

impl<const LOCAL: bool> SettingArgs<LOCAL> {
    /// The settings: these flags over the environment over the defaults.
    pub fn resolve(&self) -> Resolved {
        resolve_from_environment(&self.flags)
    }

    fn offers(name: &str) -> bool {
        !LOCAL || !MADE_BY_LOCAL.contains(&name)
    }
}

impl<const LOCAL: bool> FromArgMatches for SettingArgs<LOCAL> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut args = SettingArgs::default();
        args.update_from_arg_matches(matches)?;
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for setting in TABLE.iter().filter(|setting| Self::offers(setting.name)) {
            if let Some(values) = matches.get_many::<String>(setting.name) {
                let given: Vec<&str> = values.map(String::as_str).collect();
                self.flags.push((setting.name.into(), given.join(" ")));
            }
        }
        Ok(())
    }
}

impl<const LOCAL: bool> Args for SettingArgs<LOCAL> {
    fn augment_args(command: Command) -> Command {
        let rows = TABLE.iter().zip(FLAGS.iter()).filter(|(setting, _)| Self::offers(setting.name));
        command.args(rows.map(|(setting, flag)| {
            let default = if setting.default.is_empty() { "none" } else { setting.default };
            let help = format!(
                "{}; accepts {} [env: {}] [default: {default}]",
                setting.meaning,
                setting.accepts,
                setting.variable()
            );
            let arg = Arg::new(setting.name).long(flag.as_str()).value_name("VALUE").help(help);
            let repeated = if setting.name == REPEATED { ArgAction::Append } else { ArgAction::Set };
            arg.action(repeated).help_heading("Settings")
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// The arguments of `tandem config`.
#[derive(Args, Debug)]
pub struct ConfigArgs {
    /// Print JSON: {"settings": [{name, flag, value, given, source, default, cluster_wide, accepts, meaning}],
    /// "cluster_wide_hash", "errors"}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingArgs,
}

/// Prints the settings; fails after that if they are bad.
pub fn run(args: &ConfigArgs) -> anyhow::Result<ExitCode> {
    let resolved = args.settings.resolve();
    let mut out = io::stdout().lock();
    if args.json {
        print_json(&resolved, &mut out)?
    } else {
        print_text(&resolved, &mut out)?
    }
    out.flush()?;
    resolved.settings?;
    Ok(ExitCode::SUCCESS)
}

fn print_text(resolved: &Resolved, out: &mut impl Write) -> io::Result<()> {
    for value in &resolved.values {
        let setting = value.setting;
        let effective = resolved.effective(value);
        let said = format!("{}={effective}", setting.variable());
        let scope = if setting.scope == Scope::Cluster { ", cluster-wide" } else { "" };
        writeln!(out, "{said:<48} ({}{scope})", value.source.name())?;
        writeln!(out, "    {}; accepts {}", setting.meaning, setting.accepts)?;
    }
    Ok(())
}

fn print_json(resolved: &Resolved, out: &mut impl Write) -> io::Result<()> {
    let row = |value: &crate::config::Value| {
        let secret = value.setting.scope == Scope::Secret;
        json!({
            "name": value.setting.variable(),
            "flag": format!("--{}", value.setting.flag()),
            "value": resolved.effective(value),
            "given": if secret { resolved.effective(value) } else { value.given.clone() },
            "source": value.source.name(),
            "default": value.setting.default,
            "cluster_wide": value.setting.scope == Scope::Cluster,
            "accepts": value.setting.accepts,
            "meaning": value.setting.meaning,
        })
    };
    let (hash, errors) = match &resolved.settings {
        Ok(settings) => (Some(format!("{:016x}", settings.cluster_wide().hash)), Vec::new()),
        Err(bad) => (None, bad.0.iter().map(ToString::to_string).collect()),
    };
    let settings: Vec<_> = resolved.values.iter().map(row).collect();
    let all = json!({ "settings": settings, "cluster_wide_hash": hash, "errors": errors });
    json::print(out, &all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Source, resolve};

    fn parse<const LOCAL: bool>(args: &[&str]) -> Result<SettingArgs<LOCAL>, clap::Error> {
        let command = SettingArgs::<LOCAL>::augment_args(Command::new("t").no_binary_name(true));
        SettingArgs::from_arg_matches(&command.try_get_matches_from(args)?)
    }

    #[test]
    fn every_setting_has_its_flag() {
        for setting in TABLE {
            let args = parse::<false>(&[&format!("--{}", setting.flag()), "x"]).unwrap();
            assert_eq!(args.flags, [(setting.name.to_string(), "x".to_string())]);
        }
        assert!(parse::<false>(&["--nodes", "3"]).is_ok());
        assert!(parse::<true>(&["--nodes", "3"]).is_err(), "local has its own --nodes");
        assert!(parse::<true>(&["--r", "2"]).is_ok());
        assert!(parse::<true>(&["--service", "[::1]:5060"]).is_ok());
        let routes = parse::<true>(&["--route", "default=a", "--route", "user:1=b"]).unwrap();
        assert_eq!(routes.flags, [("ROUTE".to_string(), "default=a user:1=b".to_string())]);
    }

    #[test]
    fn the_secret_is_never_printed() {
        let secret = "00112233445566778899aabbccddeeff";
        for key in [secret, "00112233445566778899aabbccddeefg"] {
            let resolved = resolve(&[("CLUSTER_KEY".into(), key.into())], []);
            let (mut text, mut json) = (Vec::new(), Vec::new());
            print_text(&resolved, &mut text).unwrap();
            print_json(&resolved, &mut json).unwrap();
            for out in [text, json] {
                let out = String::from_utf8(out).unwrap();
                assert!(out.contains("(secret)") && !out.contains("0011"), "{out}");
            }
        }
    }

    #[test]
    fn json_names_value_source_and_errors() {
        let env = [("TANDEM_R".to_string(), "2".to_string()), ("TANDEM_WRONG".to_string(), "1".to_string())];
        let resolved = resolve(&[], env);
        let mut out = Vec::new();
        print_json(&resolved, &mut out).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
        let rows = json["settings"].as_array().unwrap();
        assert_eq!(rows.len(), TABLE.len());
        let row = rows.iter().find(|row| row["name"] == "TANDEM_R").unwrap();
        assert_eq!((&row["value"], &row["source"]), (&json!("2"), &json!(Source::Env.name())));
        assert_eq!(json["errors"].as_array().unwrap().len(), 1);
    }
}
