//! `fieldgate-hub` on the command line.
//!
//! Everything but `run` and `demo-ca` works on the database itself: it needs no token and no
//! running hub, and a running hub notices within a second.

mod identity;
mod manage;
mod run;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{CommandFactory as _, Parser, Subcommand, error::ErrorKind};

use super::config::{Config, ConfigError, DEFAULT_FILE};
use crate::ops::log::FilterError;
use identity::{CaCommand, EnrollCodeArguments};

/// Something failed.
const FAILURE: u8 = 1;
/// The command line is wrong.
const USAGE: u8 = 2;
/// The configuration is wrong (sysexits.h, `EX_CONFIG`); the unit does not restart on it.
const BAD_CONFIG: u8 = 78;

/// The command line's definition, for its manual and its completions.
pub fn definition() -> clap::Command {
    Arguments::command()
}

/// Runs `fieldgate-hub` with these arguments, the program's name first.
pub fn main_from(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(args) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nobody reads what can't be printed.
            let _ = error.print();
            let is_help =
                matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return ExitCode::from(if is_help { 0 } else { USAGE });
        }
    };
    match obey(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<FilterError>() => {
            eprintln!("--log: {error}");
            ExitCode::from(USAGE)
        }
        Err(error) => {
            eprintln!("fieldgate-hub: {error:#}");
            ExitCode::from(if error.is::<ConfigError>() { BAD_CONFIG } else { FAILURE })
        }
    }
}

fn obey(arguments: &Arguments) -> anyhow::Result<()> {
    let config = || Config::load(&arguments.config);
    match &arguments.verb {
        Verb::Run => run::run(config()?, arguments.log.as_deref()),
        Verb::Gateway { command } => manage::gateway(&config()?, command),
        Verb::ApiToken { command } => manage::api_token(&config()?, command),
        Verb::Command { command } => manage::command(&config()?, command),
        Verb::Records { command } => manage::records(&config()?, command),
        Verb::EnrollCode(wanted) => identity::enroll_code(&config()?, wanted),
        Verb::Ca { command } => identity::ca(&config()?, command),
        Verb::DemoCa(wanted) => manage::demo_ca(wanted),
    }
}

/// The hub of fieldgate gateways.
#[derive(Debug, Parser)]
#[command(name = "fieldgate-hub", version)]
struct Arguments {
    /// The configuration.
    #[arg(long, global = true, value_name = "FILE", default_value = DEFAULT_FILE)]
    config: PathBuf,
    /// What to log: error, warn, info, debug, trace, or TARGET=LEVEL,… [default: info]
    #[arg(long, global = true, env = "FIELDGATE_LOG", value_name = "FILTER")]
    log: Option<String>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serves until SIGTERM or SIGINT.
    Run,
    /// Who may connect as a gateway.
    Gateway {
        #[command(subcommand)]
        command: GatewayCommand,
    },
    /// Who may use the HTTP API and /v1/live.
    ApiToken {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Commands for devices.
    Command {
        #[command(subcommand)]
        command: CommandCommand,
    },
    /// What gateways sent.
    Records {
        #[command(subcommand)]
        command: RecordsCommand,
    },
    /// Prints a code by which a board enrols itself, once.
    EnrollCode(EnrollCodeArguments),
    /// The hub's own certificate authority, in its state directory.
    Ca {
        #[command(subcommand)]
        command: CaCommand,
    },
    /// Makes a throwaway CA, and certificates to try TLS with.
    DemoCa(DemoCaArguments),
}

#[derive(Debug, Subcommand)]
enum GatewayCommand {
    /// Lets a gateway in and prints its token, once; for a known one that replaces whatever it had.
    Add {
        /// The gateway's id.
        id: String,
        /// Write the token to this file, mode 0600, instead of printing it.
        #[arg(long, value_name = "FILE", conflicts_with_all = ["certificate", "public_key"])]
        token_file: Option<PathBuf>,
        /// No token: it comes with a client certificate that names it, or a token of the issuer.
        #[arg(long, conflicts_with = "public_key")]
        certificate: bool,
        /// No token: it signs its own (JWT, EdDSA or ES256) with the key of this public key, PEM.
        #[arg(long, value_name = "FILE")]
        public_key: Option<PathBuf>,
    },
    /// Lists gateways and their accounts.
    List,
    /// Shuts a gateway out; what it sent stays.
    Revoke {
        /// The gateway's id.
        id: String,
    },
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Makes a token and prints it, once.
    Add {
        /// Names the token.
        name: String,
        /// gateways:read, records:read, commands:read, commands:write, live; separated by commas.
        #[arg(long, required = true, value_delimiter = ',')]
        scopes: Vec<String>,
        /// Write the token to this file, mode 0600, instead of printing it.
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
    },
    /// Lists tokens, without what would let anyone in.
    List,
    /// Ends a token.
    Revoke {
        /// The token's name.
        name: String,
    },
}

#[derive(Debug, Subcommand)]
enum CommandCommand {
    /// Gives a device a command and prints its id.
    Send(SendArguments),
    /// Lists commands, newest first.
    List {
        /// Of this gateway alone.
        #[arg(long)]
        gateway: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
}

#[derive(Debug, clap::Args)]
struct SendArguments {
    /// The gateway's id.
    #[arg(long)]
    gateway: String,
    /// The device.
    #[arg(long)]
    device: String,
    /// What to do.
    name: String,
    /// Its parameters, any JSON.
    #[arg(default_value = "null")]
    params: String,
    /// How long it may still be delivered, in milliseconds.
    #[arg(long, default_value_t = 30_000)]
    ttl_ms: u64,
    /// How long the device has to answer, in milliseconds.
    #[arg(long, default_value_t = 10_000)]
    timeout_ms: u64,
    /// It may be delivered twice.
    #[arg(long)]
    idempotent: bool,
}

#[derive(Debug, Subcommand)]
enum RecordsCommand {
    /// Prints records as lines of JSON, and goes on with what comes.
    Tail {
        /// The gateway's id.
        #[arg(long)]
        gateway: String,
        /// Begin after this id; default: with the newest ten.
        #[arg(long)]
        after: Option<u64>,
        /// Of this device alone.
        #[arg(long)]
        device: Option<String>,
        /// Of this stream alone.
        #[arg(long)]
        stream: Option<String>,
        /// End with what is there now.
        #[arg(long)]
        no_follow: bool,
    },
}

#[derive(Debug, clap::Args)]
struct DemoCaArguments {
    /// Where; made if it is not there.
    #[arg(long)]
    dir: PathBuf,
    /// The names and addresses of the hub's certificate.
    #[arg(long, value_delimiter = ',', default_value = "localhost,127.0.0.1")]
    host: Vec<String>,
    /// Gateways that get a client certificate; may be given several times.
    #[arg(long, value_name = "NAME")]
    client: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str) -> ExitCode {
        main_from(line.split(' ').map(OsString::from))
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
    }

    #[test]
    fn exit_codes_are_those_of_the_contract() {
        let code = |code: u8| format!("{:?}", ExitCode::from(code));
        assert_eq!(format!("{:?}", run("fieldgate-hub --help")), code(0));
        assert_eq!(format!("{:?}", run("fieldgate-hub nonsense")), code(2));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("hub.toml");
        std::fs::write(&file, "").unwrap();
        let loud = format!("fieldgate-hub run --log loud --config {}", file.display());
        assert_eq!(format!("{:?}", run(&loud)), code(2));
        assert_eq!(format!("{:?}", run("fieldgate-hub run --config /nonexistent.toml")), code(78));
        assert_eq!(format!("{:?}", run("fieldgate-hub demo-ca --dir /dev/null/x")), code(1));
    }
}
