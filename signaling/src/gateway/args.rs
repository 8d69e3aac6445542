//! The command line of `shoal-gateway`: flag before environment before default.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Parser;
use clap::builder::NonEmptyStringValueParser;

use crate::args::LogFormat;

/// Serves volunteers' WebSockets for a host elsewhere, joined to it by NATS; keeps nothing but their connections.
///
/// Give the host the same --nats. A proxy in front sends /ws to the gateways and everything else to the host.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "shoal-gateway",
    version,
    max_term_width = 100,
    after_help = "\
Exit codes: 0 stopped in good order, 1 something failed while it ran, 2 what was asked for can't be done."
)]
pub struct GatewayArgs {
    /// The run's name: `name` under `[run]` in its configuration.
    #[arg(long, env = "SHOAL_RUN", value_name = "NAME")]
    pub run: String,

    /// NATS servers: nats://HOST:4222 or tls://HOST:4222; several of one cluster with commas between them.
    #[arg(
        long,
        env = "SHOAL_NATS",
        value_name = "URL",
        value_delimiter = ',',
        required = true,
        value_parser = NonEmptyStringValueParser::new(),
        hide_env_values = true
    )]
    pub nats: Vec<String>,

    /// Credentials for NATS (.creds), where name and password in the URL are not how it knows us.
    #[arg(long, env = "SHOAL_NATS_CREDENTIALS", value_name = "FILE")]
    pub nats_credentials: Option<PathBuf>,

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

    /// Take volunteers' addresses from X-Forwarded-For: only behind a proxy that sets it.
    #[arg(long, env = "SHOAL_TRUST_PROXY")]
    pub trust_proxy: bool,

    /// One JSON object a line on stdout: `listening`, then one whenever the way to the host opens or closes.
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_several_servers_are_read() {
        GatewayArgs::command().debug_assert();
        let line = "shoal-gateway --run school --nats nats://a,nats://b";
        let args = GatewayArgs::try_parse_from(line.split(' ')).unwrap();
        assert_eq!(args.nats, ["nats://a", "nats://b"]);
        assert!(GatewayArgs::try_parse_from(["shoal-gateway", "--run", "school"]).is_err());
        // As an empty variable does.
        let empty = ["shoal-gateway", "--run", "school", "--nats="];
        let refused = GatewayArgs::try_parse_from(empty).unwrap_err();
        assert!(refused.to_string().contains("--nats <URL>"), "{refused}");
    }
}
