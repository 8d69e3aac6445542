//! The command line of `shoal-host`: flag before environment before default.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::data::tokenizer::TokenizerSpec;
use crate::journal::Address;
use crate::turn::CREDENTIAL_SECS;

/// Hosts a run: lets volunteers in, serves its data and page, keeps its journal and checkpoints.
///
/// Whoever has the link can read the data's text, the weights and the names that volunteers choose.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "shoal-host",
    version,
    max_term_width = 100,
    after_help = "\
Exit codes: 0 stopped in good order, 1 something failed while it ran, 2 what was asked for can't be done."
)]
pub struct Args {
    /// The run's configuration (TOML). Without it, the preset `tiny`.
    pub run: Option<PathBuf>,

    /// File or folder of text to train on, or of .bin token shards.
    #[arg(long, env = "SHOAL_DATA", value_name = "PATH")]
    pub data: PathBuf,

    /// Folder for the run's journal, tokens and checkpoints.
    #[arg(
        long,
        env = "SHOAL_STORE",
        value_name = "DIR",
        default_value = "shoal-data"
    )]
    pub store: PathBuf,

    /// The run's journal elsewhere than in the store: sqlite:FILE or postgres://USER:PASSWORD@HOST/DATABASE. One run a
    /// database; the connection must be a direct one, without a pooler.
    #[arg(
        long,
        env = "SHOAL_JOURNAL",
        value_name = "ADDRESS",
        hide_env_values = true
    )]
    pub journal: Option<Address>,

    /// Address to listen on; 0.0.0.0 lets other machines in.
    #[arg(
        long,
        env = "SHOAL_HOST",
        value_name = "ADDRESS",
        default_value = "127.0.0.1"
    )]
    pub host: IpAddr,

    /// Port to listen on; 0 takes a free one. Also from PORT.
    #[arg(long, env = "SHOAL_PORT", value_name = "PORT")]
    pub port: Option<u16>,

    /// Serve https with this certificate (PEM, with those that signed it); needs --tls-key.
    #[arg(
        long,
        env = "SHOAL_TLS_CERT",
        value_name = "FILE",
        requires = "tls_key"
    )]
    pub tls_cert: Option<PathBuf>,

    /// The certificate's private key (PEM).
    #[arg(
        long,
        env = "SHOAL_TLS_KEY",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    pub tls_key: Option<PathBuf>,

    /// The link that volunteers use, where a proxy in front gives the run another one.
    #[arg(long, env = "SHOAL_PUBLIC_URL", value_name = "URL")]
    pub public_url: Option<String>,

    /// Take volunteers' addresses from X-Forwarded-For: only behind a proxy that sets it.
    #[arg(long, env = "SHOAL_TRUST_PROXY")]
    pub trust_proxy: bool,

    /// Folder of the page (`www` of the source) instead of the one that was built in; `cargo xtask web` fills it.
    #[arg(long, env = "SHOAL_WWW", value_name = "DIR")]
    pub www: Option<PathBuf>,

    /// Let gateways (shoal-gateway) serve volunteers, too, joined by these NATS servers: nats://HOST:4222 or
    /// tls://HOST:4222; several of one cluster with commas between them.
    #[arg(
        long,
        env = "SHOAL_NATS",
        value_name = "URL",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub nats: Vec<String>,

    /// Credentials for NATS (.creds), where name and password in the URL are not how it knows us.
    #[arg(
        long,
        env = "SHOAL_NATS_CREDENTIALS",
        value_name = "FILE",
        requires = "nats"
    )]
    pub nats_credentials: Option<PathBuf>,

    /// `bytes`, `bpe:N` (trained on the data) or a tokenizer.json.
    #[arg(
        long,
        env = "SHOAL_TOKENIZER",
        value_name = "TOKENIZER",
        default_value = "bytes"
    )]
    pub tokenizer: TokenizerSpec,

    /// STUN or TURN server for volunteers; may be given several times.
    #[arg(
        long,
        env = "SHOAL_ICE_SERVER",
        value_name = "URL",
        value_delimiter = ','
    )]
    pub ice_server: Vec<String>,

    /// Shared secret of the TURN servers (coturn: use-auth-secret).
    #[arg(
        long,
        env = "SHOAL_TURN_SECRET",
        value_name = "SECRET",
        hide_env_values = true
    )]
    pub turn_secret: Option<String>,

    /// Seconds that TURN credentials are good; volunteers get new ones when half of them is over.
    #[arg(
        long,
        env = "SHOAL_TURN_TTL",
        value_name = "SECONDS",
        default_value_t = CREDENTIAL_SECS,
        value_parser = clap::value_parser!(u32).range(2..)
    )]
    pub turn_ttl: u32,

    /// Go on with a run that paused itself, once you looked into its reason.
    #[arg(long)]
    pub resume: bool,

    /// One JSON object a line on stdout: `listening`, then one a commit.
    #[arg(long, env = "SHOAL_JSON")]
    pub json: bool,

    /// How logs are written to stderr; RUST_LOG says which.
    #[arg(
        long,
        env = "SHOAL_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub log_format: LogFormat,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The port where neither flag nor environment names one.
pub const PORT_DEFAULT: u16 = 8080;

impl Args {
    /// Where NATS is, if gateways are to come: an empty variable counts as none.
    pub fn nats(&self) -> Vec<String> {
        let named = self.nats.iter().filter(|url| !url.is_empty());
        named.cloned().collect()
    }

    /// The port to listen on, as [`port`] has it.
    ///
    /// # Errors
    /// `PORT` holds something else than a port.
    pub fn port(&self, port_variable: Option<&str>) -> Result<u16, PortError> {
        port(self.port, port_variable)
    }
}

/// The port to listen on: `--port`, `SHOAL_PORT`, `PORT`, then 8080.
///
/// # Errors
/// `PORT` holds something else than a port.
pub fn port(named: Option<u16>, port_variable: Option<&str>) -> Result<u16, PortError> {
    match (named, port_variable) {
        (Some(port), _) => Ok(port),
        (None, None) => Ok(PORT_DEFAULT),
        (None, Some(text)) => text.parse().map_err(|_| PortError {
            text: text.to_owned(),
        }),
    }
}

/// The environment's `PORT` is no port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PORT is '{text}', not a number from 0 to 65535: correct it, or give --port")]
pub struct PortError {
    text: String,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Args {
        Args::try_parse_from(line.split_whitespace()).unwrap()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_port_is_the_flag_then_the_environment_then_8080() {
        let args = parse("shoal-host --data x");
        assert_eq!(args.port(None), Ok(8080));
        assert_eq!(args.port(Some("3000")), Ok(3000));
        assert!(args.port(Some("http")).is_err());
        assert_eq!(
            parse("shoal-host --data x --port 0").port(Some("3000")),
            Ok(0)
        );
    }

    #[test]
    fn no_nats_and_an_empty_one_are_the_same() {
        assert!(parse("shoal-host --data x").nats().is_empty());
        assert!(parse("shoal-host --data x --nats=").nats().is_empty());
        let several = parse("shoal-host --data x --nats nats://a,nats://b").nats();
        assert_eq!(several, ["nats://a", "nats://b"]);
    }

    #[test]
    fn tokenizers_and_several_ice_servers_are_read() {
        let args = parse(
            "shoal-host run.toml --data x --tokenizer bpe:4096 --ice-server stun:a,stun:b --ice-server turn:c",
        );
        assert_eq!(args.tokenizer, TokenizerSpec::Bpe(4096));
        assert_eq!(args.ice_server, ["stun:a", "stun:b", "turn:c"]);
        let refused = Args::try_parse_from(["shoal-host", "--data", "x", "--tokenizer", "bpe:12"]);
        assert!(
            refused
                .unwrap_err()
                .to_string()
                .contains("'bpe:12' is no tokenizer")
        );
    }
}
