//! The command line of `shoal`: what can be typed, and how each value is read.
//!
//! Every option of the volunteer can also stand in the environment as `SHOAL_...`, or in the
//! settings file ([`crate::settings`]); here they are all optional, so that the three can be told
//! apart. Values become typed at once: nothing behind this module parses text that a person typed.

use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::BoolishValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Deserialize;
use shared::limits::NAME_CHARS_MAX;
use shared::wire::generate::{usual_temperature, usual_tokens, usual_top_p};

use crate::host::HostLink;

/// Lends this machine to a community that trains a language model together.
#[derive(Debug, Parser)]
#[command(
    name = "shoal",
    version,
    args_override_self = true,
    propagate_version = true
)]
#[command(
    after_help = "Exit codes: 0 done, 1 something on this machine, 2 wrong usage, 10 another version, 11 refused by the host, \
    12 no usable device, 13 network, 14 the run is over, 130 stopped by a second Ctrl-C."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Settings file [default: shoal/shoal.toml in the user's configuration folder]
    #[arg(long, global = true, env = "SHOAL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How to report [default: text]
    #[arg(long, global = true, env = "SHOAL_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

/// What `shoal` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Take part in a run until it is over or you stop: Ctrl-C finishes and leaves, twice leaves at once
    #[command(args_override_self = true)]
    Join(JoinArgs),
    /// Look whether this machine can take part, and say what to change
    #[command(args_override_self = true)]
    Doctor(DoctorArgs),
    /// Measure how long a reference block takes, forward and backward, on each device
    #[command(args_override_self = true)]
    Bench(BenchArgs),
    /// Show how a run is doing
    #[command(args_override_self = true)]
    Status(StatusArgs),
    /// Fetch a run's newest checkpoint as a model that other programs load (Llama's layout)
    #[command(args_override_self = true)]
    Export(ExportArgs),
    /// Let a run's volunteers, or an exported model, write
    #[command(args_override_self = true)]
    Generate(GenerateArgs),
}

/// Options of `shoal join`.
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// The run's link, such as https://host/ or http://localhost:8080
    #[arg(env = "SHOAL_LINK")]
    pub link: Option<HostLink>,
    /// Which device computes.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Share of the time that the device works, 10 to 100 percent [default: 100]
    #[arg(long, env = "SHOAL_THROTTLE", value_name = "PERCENT")]
    pub throttle: Option<Throttle>,
    /// Memory to lend, such as 6GB [default: a careful share of what is free]
    #[arg(long, env = "SHOAL_MEMORY", value_name = "SIZE")]
    pub memory: Option<Memory>,
    /// Most that is sent to other volunteers and the host's store, such as 20Mbit [default: no limit]
    #[arg(long, env = "SHOAL_MAX_UPLOAD", value_name = "RATE")]
    pub max_upload: Option<Rate>,
    /// Connect through relays only, so that other volunteers never learn this machine's address
    #[arg(long, env = "SHOAL_RELAY_ONLY", value_parser = BoolishValueParser::new(),
        num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub relay_only: Option<bool>,
    /// What to be called on the run's page [default: volunteer and the beginning of the public key]
    #[arg(long, env = "SHOAL_NAME")]
    pub name: Option<Name>,
    /// Write what is computed, waited for, sent and received when: Chrome's trace event format, for ui.perfetto.dev
    #[arg(long, env = "SHOAL_TRACE", value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Who we are.
    #[command(flatten)]
    pub identity: IdentityArgs,
}

/// Which device computes.
#[derive(Debug, Args)]
pub struct DeviceArgs {
    /// auto (a hardware GPU, else the CPU), cpu, or a GPU's number or name [default: auto]
    #[arg(long, env = "SHOAL_GPU", value_name = "DEVICE")]
    pub gpu: Option<String>,
}

/// Where the key is.
#[derive(Debug, Args)]
pub struct IdentityArgs {
    /// File with this volunteer's key, made at the first start [default: shoal/identity in the user's data folder]
    #[arg(long, env = "SHOAL_IDENTITY_PATH", value_name = "FILE")]
    pub identity_path: Option<PathBuf>,
}

/// Options of `shoal doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// The run's link; without one, only this machine is looked at
    #[arg(env = "SHOAL_LINK")]
    pub link: Option<HostLink>,
    /// Which device computes.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Memory to lend, as for join
    #[arg(long, env = "SHOAL_MEMORY", value_name = "SIZE")]
    pub memory: Option<Memory>,
    /// Connect through relays only, as for join
    #[arg(long, env = "SHOAL_RELAY_ONLY", value_parser = BoolishValueParser::new(),
        num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub relay_only: Option<bool>,
    /// Who we are.
    #[command(flatten)]
    pub identity: IdentityArgs,
}

/// Options of `shoal bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Size of the reference block: tiny, small or base
    #[arg(long, default_value = "tiny")]
    pub preset: Preset,
    /// Measure this device only [default: the CPU and every GPU that is found]
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Options of `shoal status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The run's link
    #[arg(env = "SHOAL_LINK")]
    pub link: Option<HostLink>,
    /// Print what the host says, as it says it
    #[arg(long)]
    pub json: bool,
}

/// Options of `shoal export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The run's link
    #[arg(env = "SHOAL_LINK")]
    pub link: Option<HostLink>,
    /// Folder to write into, or the model's file in it (ends in .safetensors)
    #[arg(short, long, value_name = "PATH")]
    pub output: PathBuf,
}

/// Options of `shoal generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// The run's link, to have its volunteers write; or the folder that `shoal export` wrote
    #[arg(value_name = "LINK|FOLDER")]
    pub writer: Writer,
    /// Text to go on from
    #[arg(long, default_value = "\n")]
    pub prompt: String,
    /// Tokens to write
    #[arg(long, default_value_t = usual_tokens(), value_name = "COUNT")]
    pub tokens: u32,
    /// 0 takes the likeliest token each time, 1 follows the model's own probabilities
    #[arg(long, default_value_t = usual_temperature(), value_name = "NUMBER")]
    pub temperature: f32,
    /// Choose among the likeliest tokens that together have this probability
    #[arg(long, default_value_t = usual_top_p(), value_name = "SHARE")]
    pub top_p: f32,
    /// Number that fixes every choice [default: drawn at random]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Of a folder's model: read the whole text again for each token; slower, for comparison
    #[arg(long)]
    pub no_cache: bool,
    /// Which device computes.
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Who writes.
#[derive(Clone, Debug)]
pub enum Writer {
    /// The volunteers of a run.
    Run(HostLink),
    /// An exported model, here.
    Folder(PathBuf),
}

impl FromStr for Writer {
    type Err = crate::host::HostLinkError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with("http://") || text.starts_with("https://") {
            return text.parse().map(Self::Run);
        }
        Ok(Self::Folder(text.into()))
    }
}

/// How `shoal` reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON object a line on standard output.
    Json,
}

/// Text that is not a value of the kind that is asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ValueError(String);

macro_rules! from_text {
    ($name:ty) => {
        impl TryFrom<String> for $name {
            type Error = ValueError;

            fn try_from(text: String) -> Result<Self, ValueError> {
                text.parse()
            }
        }
    };
}

/// Share of the time that a device works, in percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Throttle(pub u8);

impl TryFrom<i64> for Throttle {
    type Error = ValueError;

    fn try_from(percent: i64) -> Result<Self, ValueError> {
        u8::try_from(percent)
            .ok()
            .filter(|percent| (10..=100).contains(percent))
            .map(Self)
            .ok_or_else(|| ValueError("a share is a number from 10 to 100 percent".to_owned()))
    }
}

impl FromStr for Throttle {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        // Not a number at all is out of range, too.
        let percent = text.trim_end_matches('%').parse().unwrap_or(-1);
        i64::try_into(percent)
    }
}

/// A size in bytes: a number with `GB`, `MB`, `kB`, `GiB`, `MiB` or `KiB`, or bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Memory(pub u64);

impl FromStr for Memory {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let units = [
            ("gib", 1 << 30),
            ("mib", 1 << 20),
            ("kib", 1 << 10),
            ("gb", 1_000_000_000),
            ("mb", 1_000_000),
            ("kb", 1_000),
            ("b", 1),
            ("", 1),
        ];
        quantity(text, &units)
            .map(Self)
            .ok_or_else(|| ValueError("a size is a number with a unit, such as 6GB".to_owned()))
    }
}
from_text!(Memory);

/// Bytes a second: a number with `Mbit`, `kbit`, `Gbit`, `MB` or `kB`, a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Rate(pub u64);

impl FromStr for Rate {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let units = [
            ("gbit", 125_000_000),
            ("mbit", 125_000),
            ("kbit", 125),
            ("gb", 1_000_000_000),
            ("mb", 1_000_000),
            ("kb", 1_000),
        ];
        let bare = text.trim().trim_end_matches("/s");
        quantity(bare, &units)
            .map(Self)
            .ok_or_else(|| ValueError("a rate is a number with a unit, such as 20Mbit".to_owned()))
    }
}
from_text!(Rate);

/// A number with one of `units`; `None` if it is none, or not above zero.
fn quantity(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let (number, factor) = units
        .iter()
        .find_map(|(unit, factor)| text.strip_suffix(unit).map(|number| (number, *factor)))?;
    let number: f64 = number.trim().parse().ok()?;
    let value = number * factor as f64;
    // 2^53: beyond it f64 skips whole numbers, and no machine has that much.
    let fits = (1.0..=9.0e15).contains(&value);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to lie between 1 and 2^53"
    )]
    fits.then_some(value as u64)
}

/// A name that others see.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Name(pub String);

impl FromStr for Name {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let text = text.trim();
        let chars = text.chars().count();
        if chars == 0 || chars > NAME_CHARS_MAX || text.chars().any(char::is_control) {
            return Err(ValueError(format!(
                "a name has 1 to {NAME_CHARS_MAX} printable characters"
            )));
        }
        Ok(Self(text.to_owned()))
    }
}
from_text!(Name);

/// A named size of model.
#[derive(Clone, Debug, PartialEq)]
pub struct Preset {
    /// Its name.
    pub name: String,
    /// What it stands for.
    pub model: shared::config::model::ModelConfig,
}

impl FromStr for Preset {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        shared::config::model::ModelConfig::preset(text)
            .map(|model| Self {
                name: text.to_owned(),
                model,
            })
            .ok_or_else(|| ValueError("the presets are tiny, small and base".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_and_rates_are_read_with_their_units() {
        let size = |text: &str| text.parse::<Memory>().map(|memory| memory.0).ok();
        assert_eq!(size("6GB"), Some(6_000_000_000));
        assert_eq!(size("1.5 GiB"), Some(3 << 29));
        assert_eq!(size("512"), Some(512));
        for bad in ["", "GB", "-1GB", "0", "six", "1e400GB", "NaN"] {
            assert_eq!(size(bad), None, "{bad}");
        }
        let rate = |text: &str| text.parse::<Rate>().map(|rate| rate.0).ok();
        assert_eq!(rate("20Mbit"), Some(2_500_000));
        assert_eq!(rate("20 Mbit/s"), Some(2_500_000));
        assert_eq!(rate("2MB/s"), Some(2_000_000));
        assert_eq!(
            rate("20"),
            None,
            "without a unit nobody knows which was meant"
        );
    }

    #[test]
    fn a_throttle_is_a_share_from_10_to_100() {
        let share = |text: &str| text.parse::<Throttle>().map(|share| share.0).ok();
        assert_eq!(share("50"), Some(50));
        assert_eq!(share("50%"), Some(50));
        for bad in ["9", "101", "half", "-50", ""] {
            assert_eq!(share(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_option_given_twice_counts_as_the_last_one() {
        let cli = Cli::try_parse_from(["shoal", "join", "h:1", "--gpu", "cpu", "--gpu", "1"]);
        let Command::Join(join) = cli.expect("parses").command else {
            panic!("not join");
        };
        assert_eq!(join.device.gpu.as_deref(), Some("1"));
        assert_eq!(join.relay_only, None);
    }
}
