//! Settings from their three places: command line and environment, settings file, defaults.
//!
//! clap reads the first two, in this order; [`Settings::resolve`] fills what they leave open from
//! the TOML file. Keys of the file have the names of the options. A key that is none is an error
//! which names the nearest right one: a typo must not silently be a default.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::cli::{JoinArgs, LogFormat, Memory, Name, Rate, Throttle};
use crate::failure::{Code, Failure};
use crate::host::HostLink;

/// The file's keys.
const KEYS: [&str; 10] = [
    "gpu",
    "identity_path",
    "link",
    "log_format",
    "max_upload",
    "memory",
    "name",
    "relay_only",
    "throttle",
    "trace",
];
/// Largest settings file that is read.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// The settings file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct FileSettings {
    /// Default of `--gpu`.
    pub gpu: Option<Text>,
    /// Default of `--identity-path`.
    pub identity_path: Option<PathBuf>,
    /// Default of the link.
    pub link: Option<String>,
    /// Default of `--log-format`.
    pub log_format: Option<LogFormat>,
    /// Default of `--max-upload`.
    pub max_upload: Option<Rate>,
    /// Default of `--memory`.
    pub memory: Option<Memory>,
    /// Default of `--name`.
    pub name: Option<Name>,
    /// Default of `--relay-only`.
    pub relay_only: Option<bool>,
    /// Default of `--throttle`.
    pub throttle: Option<i64>,
    /// Default of `--trace`.
    pub trace: Option<PathBuf>,
}

/// Text, or a number that was meant as text: `gpu = 1`.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Text {
    /// As it is.
    Text(String),
    /// A number.
    Number(u32),
}

impl Text {
    pub(crate) fn into_string(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Number(number) => number.to_string(),
        }
    }
}

impl FileSettings {
    /// Reads the settings file: the one that was named, or the user's own if there is one.
    ///
    /// # Errors
    /// It cannot be read, is no TOML, or has a key or value that makes no sense.
    pub fn load(named: Option<&Path>) -> Result<Self, Failure> {
        let Some(path) = named.map(Path::to_owned).or_else(default_path) else {
            return Ok(Self::default());
        };
        let failed = |what: String| {
            let what = format!("the settings file {}: {what}", path.display());
            Failure::new(
                Code::Usage,
                what,
                "Correct the file, or name another with --config.",
            )
        };
        let text = match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => {
                return Ok(Self::default());
            }
            Ok(found) if found.len() > FILE_BYTES_MAX => {
                return Err(failed(format!("it is longer than {FILE_BYTES_MAX} bytes")));
            }
            Ok(_) | Err(_) => {
                std::fs::read_to_string(&path).map_err(|error| failed(error.to_string()))?
            }
        };
        Self::parse(&text).map_err(failed)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let table: toml::Table = text
            .parse()
            .map_err(|error: toml::de::Error| error.to_string().trim().to_owned())?;
        for key in table.keys() {
            if KEYS.contains(&key.as_str()) {
                continue;
            }
            let nearest = KEYS
                .iter()
                .min_by_key(|known| strsim::damerau_levenshtein(key, known))
                .expect("there are keys");
            return Err(format!(
                "there is no key `{key}`; did you mean `{nearest}`?"
            ));
        }
        table
            .try_into()
            .map_err(|error: toml::de::Error| error.to_string().trim().to_owned())
    }
}

fn default_path() -> Option<PathBuf> {
    user_folder("XDG_CONFIG_HOME", ".config").map(|folder| folder.join("shoal.toml"))
}

/// Where the identity is unless somebody says otherwise.
///
/// # Errors
/// The system names no home.
pub fn identity_path(asked: Option<PathBuf>, file: &FileSettings) -> Result<PathBuf, Failure> {
    asked
        .or_else(|| file.identity_path.clone())
        .or_else(|| user_folder("XDG_DATA_HOME", ".local/share").map(|f| f.join("identity")))
        .ok_or_else(|| {
            Failure::new(
                Code::Usage,
                "there is no home folder to keep the volunteer's key in",
                "Say where with --identity-path FILE.",
            )
        })
}

/// `shoal/` in one of the user's folders, as the XDG base directory specification places it.
fn user_folder(variable: &str, below_home: &str) -> Option<PathBuf> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute(variable)
        .or_else(|| absolute("HOME").map(|home| home.join(below_home)))
        .map(|folder| folder.join("shoal"))
}

/// What `shoal join` works with, from all places.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The run.
    pub link: HostLink,
    /// As typed: `auto`, `cpu`, a number or a name.
    pub gpu: String,
    /// Share of the time that the device works.
    pub throttle: Throttle,
    /// Memory to lend; `None` for a careful default.
    pub memory: Option<Memory>,
    /// Most that is sent, in bytes a second.
    pub max_upload: Option<Rate>,
    /// Whether to connect through relays only.
    pub relay_only: bool,
    /// What to be called; `None` for a name made from the key.
    pub name: Option<Name>,
    /// The key's file.
    pub identity_path: PathBuf,
    /// Where to write a trace; `None` for none.
    pub trace: Option<PathBuf>,
}

impl Settings {
    /// Fills what the command line and the environment left open.
    ///
    /// # Errors
    /// A value of the file makes no sense, or the link is nowhere.
    pub fn resolve(args: JoinArgs, file: &FileSettings) -> Result<Self, Failure> {
        let throttle = match (args.throttle, file.throttle) {
            (Some(asked), _) => asked,
            (None, Some(percent)) => percent.try_into().map_err(|error| {
                Failure::new(Code::Usage, error, "See `throttle` in the settings file.")
            })?,
            (None, None) => Throttle(100),
        };
        Ok(Self {
            link: link(args.link, file)?,
            gpu: gpu(args.device.gpu, file),
            throttle,
            memory: args.memory.or(file.memory),
            max_upload: args.max_upload.or(file.max_upload),
            relay_only: args.relay_only.or(file.relay_only).unwrap_or(false),
            name: args.name.or_else(|| file.name.clone()),
            identity_path: identity_path(args.identity.identity_path, file)?,
            trace: args.trace.or_else(|| file.trace.clone()),
        })
    }
}

/// The run's link: as typed, else from the file.
///
/// # Errors
/// It is nowhere, or the file's is none.
pub fn link(asked: Option<HostLink>, file: &FileSettings) -> Result<HostLink, Failure> {
    match (asked, &file.link) {
        (Some(link), _) => Ok(link),
        (None, Some(text)) => text
            .parse()
            .map_err(|error| Failure::new(Code::Usage, error, "See `link` in the settings file.")),
        (None, None) => Err(Failure::new(
            Code::Usage,
            "no run was named",
            "Give its link: shoal join https://host/",
        )),
    }
}

/// Which device: as typed, else from the file, else `auto`.
pub fn gpu(asked: Option<String>, file: &FileSettings) -> String {
    asked
        .or_else(|| file.gpu.clone().map(Text::into_string))
        .unwrap_or_else(|| "auto".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn join(arguments: &[&str]) -> JoinArgs {
        let line = ["shoal", "join"].iter().chain(arguments);
        let command = Cli::try_parse_from(line).expect("parses").command;
        let Command::Join(join) = command else {
            panic!("{command:?}");
        };
        join
    }

    #[test]
    fn the_command_line_goes_before_the_file_and_the_file_before_the_defaults() {
        let file = "link = \"h:1\"\ngpu = 1\nthrottle = 40\nmemory = \"2GB\"\nname = \"from file\"\nidentity_path = \"/k\"";
        let file = FileSettings::parse(file).expect("parses");
        let typed = join(&["other:2", "--throttle", "70"]);
        let settings = Settings::resolve(typed, &file).expect("complete");
        assert_eq!(settings.link.to_string(), "http://other:2/");
        assert_eq!(settings.throttle, Throttle(70));
        assert_eq!(settings.gpu, "1");
        assert_eq!(settings.memory, Some(Memory(2_000_000_000)));
        assert_eq!(settings.name, Some(Name("from file".to_owned())));
        assert!(!settings.relay_only);
        assert_eq!(settings.identity_path, PathBuf::from("/k"));
    }

    #[test]
    fn a_typo_in_the_file_names_the_key_that_was_meant() {
        let error = FileSettings::parse("max_uplaod = \"1Mbit\"").expect_err("refused");
        assert_eq!(
            error,
            "there is no key `max_uplaod`; did you mean `max_upload`?"
        );
    }

    #[test]
    fn a_value_that_makes_no_sense_is_refused_with_what_does() {
        let error = FileSettings::parse("memory = \"lots\"").expect_err("refused");
        assert!(error.contains("such as 6GB"), "{error}");
        let file = FileSettings::parse("throttle = 300\nlink = \"h:1\"").expect("parses");
        let error = Settings::resolve(join(&[]), &file).expect_err("refused");
        assert_eq!(error.code, Code::Usage);
    }

    #[test]
    fn a_run_must_be_named_somewhere() {
        let error = Settings::resolve(join(&[]), &FileSettings::default()).expect_err("refused");
        assert_eq!(error.code, Code::Usage);
        assert!(error.remedy.contains("shoal join"));
    }
}
