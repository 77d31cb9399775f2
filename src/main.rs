//! `fieldgate`: the gateway's program.

use std::process::ExitCode;

fn main() -> ExitCode {
    fieldgate::cli::main_from(std::env::args_os())
}
