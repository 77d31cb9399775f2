//! The command line: what was typed, once, into one call each.

mod check;
#[cfg(feature = "demo")]
mod demo;
mod device;
mod dialer;
mod disk;
mod doctor;
mod driver;
mod enroll;
mod expiry;
mod exposition;
mod identity;
mod options;
mod reload;
mod run;
mod send;
mod spool;
mod status;
mod wear;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::{
    config::{Config, ConfigError},
    ops::log,
};

/// Wrong usage.
const EXIT_USAGE: u8 = 2;

#[derive(Debug, Parser)]
#[command(
    name = "fieldgate",
    version,
    about = "A field gateway: local MQTT telemetry, kept safe on disk, delivered over one secure WebSocket"
)]
struct Arguments {
    /// What to log: error, warn, info, debug, trace, or TARGET=LEVEL,… [default: info]
    #[arg(long, global = true, env = "FIELDGATE_LOG", value_name = "FILTER")]
    log: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
struct ConfigFile {
    /// The configuration file
    #[arg(
        long,
        env = "FIELDGATE_CONFIG",
        value_name = "FILE",
        default_value = "/etc/fieldgate/fieldgate.toml"
    )]
    config: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway
    Run(ConfigFile),
    /// Read the configuration and explain it; touches nothing
    Check(ConfigFile),
    /// Show how a running gateway stands
    Status {
        #[command(flatten)]
        file: ConfigFile,
        /// As one JSON object: --format json
        #[arg(long, conflicts_with = "format")]
        json: bool,
        /// How
        #[arg(long, value_enum, default_value_t = status::Format::Text)]
        format: status::Format,
        /// Again every second, until interrupted
        #[arg(long, conflicts_with_all = ["json", "format"])]
        watch: bool,
    },
    /// Hand a record to a running gateway, as if a device had published it
    Send {
        #[command(flatten)]
        file: ConfigFile,
        /// The device it is from
        #[arg(long)]
        device: String,
        /// The topic [default: the first [[telemetry]] topic, filled in]
        #[arg(long)]
        topic: Option<String>,
        /// The payload, usually JSON; - reads standard input
        payload: String,
    },
    /// Have a running gateway read its configuration and certificates anew
    Reload {
        #[command(flatten)]
        file: ConfigFile,
        /// Wait for what comes of it, and fail if the gateway can't use what it read
        #[arg(long)]
        wait: bool,
    },
    /// Which devices may connect to the listener by name and password
    #[command(subcommand)]
    Device(device::Command),
    /// Try each thing that the gateway needs, and say what mends it: clock, DNS, TLS, disk, broker
    Doctor {
        #[command(flatten)]
        file: ConfigFile,
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Get this board an identity from a hub, by a code that the hub gave out
    Enroll(enroll::Arguments),
    /// The device key and its certificate: make, request, import, show, renew
    #[command(subcommand)]
    Identity(identity::Command),
    /// What the spool holds: look at it, check it, take it out, let go of it
    #[command(subcommand)]
    Spool(spool::Command),
    /// Show both sides at work on this machine: hub, gateway, three devices, a cut link, a command
    #[cfg(feature = "demo")]
    Demo {
        /// End by itself after so long, with exit code 0 if the account balances (such as 30s)
        #[arg(long, value_name = "DURATION", value_parser = demo::duration)]
        r#for: Option<std::time::Duration>,
    },
    /// The hub, for the demo, which has only its own executable
    #[cfg(feature = "demo")]
    #[command(hide = true, disable_help_flag = true)]
    Hub {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// A process of the demo, which ends with it
    #[cfg(feature = "demo")]
    #[command(name = demo::PART_COMMAND, hide = true, disable_help_flag = true)]
    DemoPart {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

/// The command line's definition, for its manual and its completions.
pub fn definition() -> clap::Command {
    Arguments::command()
}

/// Runs the command line `arguments`, the program's name first.
pub fn main_from(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are no errors; where the terminal went away nobody is left to tell.
            error.print().ok();
            return if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    #[cfg(feature = "demo")]
    match arguments.command {
        Command::Hub { arguments } => {
            return crate::hub::main_from(std::iter::once("fieldgate-hub".into()).chain(arguments));
        }
        Command::DemoPart { arguments } => {
            demo::end_with_standard_input();
            let program: OsString = "fieldgate".into();
            return main_from(std::iter::once(program).chain(arguments).collect::<Vec<_>>());
        }
        _ => {}
    }
    if let Err(error) = log::start(arguments.log.as_deref()) {
        eprintln!("--log: {error}");
        return ExitCode::from(EXIT_USAGE);
    }
    match arguments.command {
        Command::Run(file) => run::run(&file.config),
        Command::Check(file) => check::check(&file.config),
        Command::Status { file, json, format, watch } => {
            let format = if json { status::Format::Json } else { format };
            with_config(&file.config, |config| status::status(config, format, watch))
        }
        Command::Send { file, device, topic, payload } => {
            with_config(&file.config, |config| send::send(config, device, topic, payload))
        }
        Command::Reload { file, wait } => {
            with_config(&file.config, |config| reload::reload(config, wait))
        }
        Command::Device(command) => device::device(command),
        Command::Doctor { file, json } => doctor::doctor(&file.config, json),
        Command::Enroll(arguments) => enroll::enroll(&arguments),
        Command::Identity(command) => identity::identity(&command),
        Command::Spool(command) => spool::spool(&command),
        #[cfg(feature = "demo")]
        Command::Demo { r#for } => demo::demo(r#for),
        #[cfg(feature = "demo")]
        Command::Hub { .. } | Command::DemoPart { .. } => {
            unreachable!("handled above, before the log is started")
        }
    }
}

/// Runs `work` to its end, on this thread.
///
/// # Panics
/// When the kernel gives no event loop: nothing can be done then.
fn with_runtime<T>(work: impl Future<Output = T>) -> T {
    let mut done = None;
    run_to_end(Box::pin(async { done = Some(work.await) }));
    done.expect("it ran to its end")
}

/// One event loop's code for all commands: boards are small.
#[inline(never)]
fn run_to_end(work: std::pin::Pin<Box<dyn Future<Output = ()> + '_>>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("the kernel gives an event loop").block_on(work);
}

fn with_config(file: &std::path::Path, command: impl FnOnce(&Config) -> ExitCode) -> ExitCode {
    match Config::load(file) {
        Ok(config) => command(&config),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(ConfigError::EXIT_CODE)
        }
    }
}
